"""Small folders in COCO's format, for tests of their readers."""

import json
import warnings

import keras
import numpy as np
from PIL import Image

CATEGORIES = [
    {"id": 90, "name": "toothbrush", "isthing": 1},
    {"id": 1, "name": "person", "isthing": 1},
    {"id": 17, "name": "cat", "isthing": 1},
    {"id": 187, "name": "sky", "isthing": 0},
]
HEIGHT, WIDTH = 30, 40


def noise(seed, height=HEIGHT, width=WIDTH):
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (height, width, 3)).astype("uint8")


def write(folder, annotations, pictures):
    """A folder of PNG images `ID.png`, and a JSON file of annotations beside it.

    Args:
        pictures: arrays by image id.

    Returns:
        The first two arguments of a reader.
    """
    (folder / "images").mkdir(exist_ok=True)
    entries = []
    for image_id, pixels in pictures.items():
        Image.fromarray(pixels).save(folder / "images" / f"{image_id}.png")
        entries.append(image_entry(image_id, *pixels.shape[:2]))
    data = {"images": entries, "annotations": annotations}
    if not any("caption" in annotation for annotation in annotations):
        data["categories"] = CATEGORIES
    (folder / "file.json").write_text(json.dumps(data))
    return str(folder / "images"), str(folder / "file.json")


def image_entry(image_id, height=HEIGHT, width=WIDTH):
    name = f"{image_id}.png"
    return {"id": image_id, "file_name": name, "height": height, "width": width}


def box(number, image_id, bbox, category_id=17, **more):
    about = {"id": number, "image_id": image_id, "category_id": category_id}
    return {**about, "bbox": bbox, **more}


def boxes_folder(folder, count=7, seed=0):
    """Noise with 0 to 3 boxes an image, some of them crowds."""
    generator = np.random.default_rng(seed)
    annotations = []
    for image_id in range(1, count + 1):
        for _ in range(image_id % 4):
            left, top = generator.integers(0, (WIDTH - 9, HEIGHT - 9)).tolist()
            width, height = generator.uniform(2, 9, 2).tolist()
            about = {"area": 0.5 * width * height, "iscrowd": image_id % 2}
            category_id = int(generator.choice([90, 1, 17]))
            bbox = [left, top, width, height]
            number = len(annotations) + 1
            annotations.append(box(number, image_id, bbox, category_id, **about))
    return write(folder, annotations, {i: noise(i) for i in range(1, count + 1)})


def quietly(reader, *arguments, **options):
    """A reader, made without its warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return reader(*arguments, **options)


def assert_same(batch, other):
    """Whether two batches are equal to the last bit."""
    got, expected = keras.tree.flatten(batch), keras.tree.flatten(other)
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def caption(number, image_id, text):
    return {"id": number, "image_id": image_id, "caption": text}


def numbered_folder(folder, count):
    """Images that are of one grey each: their number."""
    pictures = {i: np.full((4, 4, 3), i, "uint8") for i in range(count)}
    found = [box(i + 1, i, [0, 0, 2, 2]) for i in range(count)]
    return write(folder, found, pictures)


def numbers(batches):
    """The images in batches, by their greys."""
    return [
        round(255 * float(image[0, 0, 0])) for images, _ in batches for image in images
    ]


def brightness(images, targets):
    """A batch for a model of numbers."""
    return images.mean((1, 2, 3))[:, None], targets["area"][:, :1]
