"""The pictures that scenes are made of: scanned digits and photographs."""

import functools
import pathlib

import numpy as np

TEST_EVERY = 5  # the first of every five digit images is a test image

# Photographs that come with scikit-image and scikit-learn, by split and kind. Those
# with "colour" have it nearly everywhere, so that most crops show their kind.
PHOTOGRAPHS = {
    "train": {
        "colour": ("astronaut.png", "chelsea.png", "coffee.png", "retina.jpg"),
        "grey": ("brick.png", "camera.png", "clock_motion.png", "gravel.png"),
    },
    "test": {
        "colour": ("china.jpg", "flower.jpg"),
        "grey": ("coins.png", "grass.png"),
    },
}
PHOTOGRAPH_SIDE = 2.0  # short side of a photograph, in scenes
BRIGHTNESS = 0.55  # of photographs, so that the light digits stand out

# Of what was scanned, 0 to 255, with more contrast, so that strokes have an edge.
OPACITY = np.clip(np.arange(256, dtype="float32") / 127.5 - 0.4, 0.0, 1.0)


def import_or_explain(name):
    """Imports a module of the packages with digits and photographs."""
    try:
        return __import__(name, fromlist=["_"])
    except ImportError as error:
        raise ImportError(
            "Scenes are made of the digits and photographs of scikit-learn and "
            "scikit-image: `pip install scikit-learn scikit-image`. "
            f"Received: {error}"
        ) from error


def digit_numbers(split):
    """Indices, in scikit-learn's order, of the digit images of a split."""
    total = len(load_digits().images)
    is_test = np.arange(total) % TEST_EVERY == 0
    return np.flatnonzero(is_test == (split == "test"))


@functools.cache
def load_digits():
    """scikit-learn's 1797 digits, 8 by 8 pixels."""
    return import_or_explain("sklearn.datasets").load_digits()


@functools.cache
def load_digit_images(split):
    """A split's digits as they were scanned: ten arrays `(n, 8, 8)` uint8."""
    digits, numbers = load_digits(), digit_numbers(split)
    pixels = (digits.images[numbers] * (255.0 / 16.0)).astype("uint8")
    return [pixels[digits.target[numbers] == digit] for digit in range(10)]


def enlarged(pixels, side):
    """Opacity of a scanned digit at another size, `(side, side)` float32 in [0, 1]."""
    Image = import_or_explain("PIL.Image")
    image = Image.fromarray(pixels).resize((side, side), Image.BICUBIC)
    return OPACITY[np.asarray(image)]


@functools.cache
def load_photographs(split, size):
    """A split's photographs by kind, `(height, width, 3)` float32, darkened."""
    Image = import_or_explain("PIL.Image")
    folders = [
        pathlib.Path(import_or_explain(name).__file__).parent
        for name in ("skimage.data", "sklearn.datasets")
    ]
    photographs = {}
    for kind, names in PHOTOGRAPHS[split].items():
        photographs[kind] = []
        for name in names:
            image = Image.open(find_photograph(folders, name)).convert("RGB")
            share = PHOTOGRAPH_SIDE * size / min(image.size)
            shape = [round(share * length) for length in image.size]
            pixels = np.asarray(image.resize(shape, Image.LANCZOS), "float32")
            photographs[kind].append(pixels * (BRIGHTNESS / 255.0))
    return photographs


def find_photograph(folders, name):
    """The path of a photograph in one of the folders or their folder `images`."""
    for folder in folders:
        for path in (folder / name, folder / "images" / name):
            if path.exists():
                return path
    raise FileNotFoundError(
        "Scenes need the photographs that come with scikit-image and scikit-learn. "
        f"Received: no {name} in {', '.join(map(str, folders))}"
    )
