"""Colorization: teach a small colorizer to dare, by tuning it for colourfulness.

A colorizer sees a grey photograph and picks a colour for every cell of a coarse grid.
Maximum likelihood makes it timid: grass is surely green, but a shirt may be anything,
and the likeliest guess for "anything" is greyish brown. Reward tuning (Pinto et al.
2023, "Tuning computer vision models with task rewards", section 4.3) then asks for
what we wanted in the first place: vivid pictures of many hues.

    python examples/colorization.py
    python examples/colorization.py --photos my_pictures --seed 1
    python examples/colorization.py --photos my_pictures --model uvim

With `--model uvim` the colorizer is a UViM model like the paper's, small or of the
published size; colorization_uvim.py has its three stages.

The photographs come with scikit-image and scikit-learn, so nothing is downloaded. Some
of them are held out, and every number in the table is measured on those.
"""

import argparse
import io
import pathlib
import tarfile

import keras
import matplotlib.pyplot
import numpy as np
import shared
import skimage
import sklearn
from keras import layers, ops
from PIL import Image, ImageOps

from keras_reward import (
    CategoricalPolicy,
    ColorfulnessReward,
    ColorPalette,
    RewardTuning,
)
from keras_reward.codecs import rgb_to_lab, to_gray

# Data. The network sees squares of SIZE pixels and paints GRID x GRID cells: the eye
# sees lightness finely and colour coarsely, which JPEG and television rely on.
SIZE = 32
GRID = 8
SCALES = (0.35, 1.0)  # side of a square, as a share of the photograph's short side
TRAIN_SQUARES = 1536  # in all, the same number from each photograph
HELD_OUT_SQUARES = 96
HOLD_OUT_EVERY = 8  # with --photos: the first of every eight files is held out
GREY_SPREAD = 2.0  # of 255: a photograph whose channels differ less on average is grey
BUILT_IN = {
    skimage: "astronaut chelsea coffee hubble_deep_field motorcycle_left retina rocket",
    sklearn: "china flower",
}
BUILT_IN_HELD_OUT = ("china.jpg", "flower.jpg")

# Maximum likelihood, until the loss of held-out pictures stops improving: with so few
# photographs, after two epochs.
WIDTH = 64
BATCH = 32
LIKELIHOOD_EPOCHS = 2

# Reward tuning. At temperature 1 independent samples are colourful by noise alone and
# the likeliest colours stay grey; a low temperature ties the two together. Too low, and
# the samples of a photograph are all alike and teach nothing.
TEMPERATURE = 0.25
NUM_SAMPLES = 8
LEARNING_RATE = 1e-4
STEPS_PER_EPOCH = 16
MOST_EPOCHS = 96
# When to stop: ln 4 is what four hues in equal parts earn if all is vivid. Photographs
# earn less. Beyond it samples earn by noise, and colours no longer follow the content.
ENOUGH_REWARD = float(np.log(4.0))
SPACING = 20.0  # of the colours to choose from, in Lab units


def main():
    args = read_arguments()
    keras.utils.set_random_seed(args.seed)
    if args.model == "cells":
        return run(args)
    import colorization_uvim  # not above: it imports this file

    colorization_uvim.run(args)


def read_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--photos", help="a folder or a tar file of photographs")
    parser.add_argument("--model", choices=("cells", "uvim"), default="cells")
    parser.add_argument("--output", help="default: outputs/colorization, or ..._uvim")
    uvim = parser.add_argument_group("with --model uvim")
    uvim.add_argument("--preset", choices=("tiny", "paper"), help="default: tiny")
    uvim.add_argument("--stages", help="a folder with a mle.keras: skips 1 and 2")
    uvim.add_argument("--checkpoint", help="a folder of big_vision's files: likewise")
    args = parser.parse_args()
    if args.model != "uvim" and (args.preset or args.stages or args.checkpoint):
        raise SystemExit(
            "--preset, --stages and --checkpoint are for --model uvim. "
            f"Received: --model {args.model}"
        )
    args.preset = args.preset or "tiny"
    suffix = "_uvim" if args.model == "uvim" else ""
    args.output = pathlib.Path(args.output or f"outputs/colorization{suffix}")
    args.output.mkdir(parents=True, exist_ok=True)
    return args


def run(args):
    """The colorizer that chooses the colour of each cell by itself."""
    output, clock = args.output, shared.Clock()
    shared.heading("1. Photographs")
    rng = np.random.default_rng(args.seed)
    train, held_out = load_photos(args.photos, SIZE)
    train = rng.permutation(cut_squares(train, TRAIN_SQUARES, rng, SIZE))
    held_out = held_out_squares(held_out, SIZE)
    palette = ColorPalette(SPACING)
    clock.stop("data")

    shared.heading("2. Maximum likelihood: which colours are likely?")
    colorizer = build_colorizer(palette.num_colors)
    fit_likelihood(colorizer, palette, train)
    clock.stop("likelihood")

    before, painted_before = measure(colorizer, palette, held_out)
    clock.stop("measuring")

    shared.heading("3. Reward tuning: which colours do we want?")
    tuned, history = tune(colorizer, palette, train, held_out, args.seed)
    clock.stop("tuning")

    after, painted_after = measure(tuned.model, palette, held_out)
    clock.stop("measuring")

    shared.heading(f"4. Held-out photographs, greedy colours, {len(held_out)} squares")
    shared.print_table({"before": before, "after": after})
    columns = {
        "grey": grey(held_out),
        "original": held_out,
        "before": painted_before,
        "after": painted_after,
    }
    save_gallery(output / "gallery.png", columns, rows=8)
    panels = {"tuning: colourfulness": (history, ("reward", "val_reward"))}
    shared.save_curves(output / "reward.png", panels)
    shared.save_model(tuned.model, output / "tuned.keras")
    clock.stop("saving")
    settings = {k: v for k, v in globals().items() if k.isupper() and k != "BUILT_IN"}
    shared.save_results(
        output,
        "reward",
        before,
        after,
        clock,
        seeds=[args.seed],
        settings=settings,
    )


# 1. Photographs


def load_photos(source, size):
    """Photographs to train on, and held-out ones, with pixels for squares of `size`."""
    photos, refused = {}, {"unreadable": 0, "grey": 0}
    for name, content in find_files(source):
        photo, problem = read_photo(content, size)
        if problem:
            refused[problem] += 1
        else:
            photos[name] = photo
    where = source or "scikit-image and scikit-learn"
    counts = f"{refused['unreadable']} unreadable files, {refused['grey']} grey ones"
    if len(photos) < 2:
        raise SystemExit(
            "Expected at least two colour photographs, one to train on and one to hold "
            f"out. Received: {len(photos)} usable in {where} ({counts})"
        )
    held_out = BUILT_IN_HELD_OUT if source is None else sorted(photos)[::HOLD_OUT_EVERY]
    train = [photo for name, photo in sorted(photos.items()) if name not in held_out]
    test = [photo for name, photo in sorted(photos.items()) if name in held_out]
    print(f"{len(photos)} colour photographs from {where}; left out: {counts}")
    print(f"{len(train)} to train on, held out: {', '.join(held_out[:5])}", end="")
    print(f" and {len(held_out) - 5} more" if len(held_out) > 5 else "")
    return train, test


def find_files(source):
    """Yields `(name, bytes)` of the built-in photographs, a folder's or a tar's."""
    if source is None:
        for library, names in BUILT_IN.items():
            for path in sorted(pathlib.Path(library.__file__).parent.rglob("*.*")):
                if path.stem in names.split() and path.suffix in (".jpg", ".png"):
                    yield path.name, path.read_bytes()
        return
    source = pathlib.Path(source)
    if not source.exists():
        raise SystemExit(f"Expected a folder or tar of photographs. Received: {source}")
    paths = sorted(source.rglob("*")) if source.is_dir() else [source]
    for path in paths:
        if path.is_file() and tarfile.is_tarfile(path):
            with tarfile.open(path) as tar:
                for member in tar:
                    if member.isfile():
                        yield (
                            f"{path.name}/{member.name}",
                            tar.extractfile(member).read(),
                        )
        elif path.is_file():
            yield str(path.relative_to(source.parent)), path.read_bytes()


def read_photo(content, size):
    """An RGB image of moderate size and None, or None and what is wrong with it."""
    try:
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")
    except Exception:
        return None, "unreadable"
    enlarge = size / SCALES[0] / min(image.size)
    if enlarge < 1.0:  # more pixels than any square will show
        image = image.resize([max(1, round(enlarge * side)) for side in image.size])
    pixels = np.asarray(image, "float32")
    spread = pixels.max(-1) - pixels.min(-1)
    return (None, "grey") if spread.mean() < GREY_SPREAD else (image, None)


def held_out_squares(photos, size):
    """The same ones for every seed, `(count, size, size, 3)` in [0, 1]."""
    return cut_squares(photos, HELD_OUT_SQUARES, np.random.default_rng(0), size)


def cut_squares(photos, count, rng, size):
    """Random squares at several scales, every second one mirrored."""
    squares = []
    for photo in photos:
        for i in range(max(1, count // len(photos))):
            # The first square of a photograph is as large as fits.
            scale = rng.uniform(*SCALES) if i else 1.0
            squares.append(cut_square(photo, scale, rng, size, mirrored=i % 2))
    return np.stack(squares)


def cut_square(photo, scale, rng, size, mirrored):
    """A square somewhere in a photograph, `(size, size, 3)` in [0, 1].

    Args:
        photo: an RGB image.
        scale: side of the square, as a share of the photograph's short side.
        rng: NumPy's generator.
        size: side of the result in pixels.
        mirrored: whether left becomes right.
    """
    side = min(photo.size) * scale
    left, top = (rng.uniform(0.0, length - side) for length in photo.size)
    box = (left, top, left + side, top + side)
    square = photo.resize((size, size), Image.Resampling.BOX, box=box)
    square = ImageOps.mirror(square) if mirrored else square
    return np.asarray(square, "float32") / 255.0


# 2. The colorizer


@keras.saving.register_keras_serializable(package="colorization_example")
class ReflectPadding(layers.Layer):
    """Mirrors one pixel beyond each edge.

    With zeros there, the network can tell where in the picture it is. Tuning exploits
    that, and paints the same rainbow over every picture.
    """

    def call(self, images):
        return ops.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")


def build_colorizer(num_colors):
    """Grey image in, logits of each cell's colours out, without a notion of place."""

    def conv(x, filters):
        x = layers.Conv2D(filters, 3, use_bias=False)(ReflectPadding()(x))
        return layers.Activation("relu")(layers.BatchNormalization(momentum=0.9)(x))

    image = keras.Input((SIZE, SIZE, 1), name="grey")
    x = conv(image, WIDTH // 4)
    # Averages treat left and right alike, which strides need not.
    x = conv(layers.AveragePooling2D(2)(x), WIDTH // 2)
    x = conv(layers.AveragePooling2D(2)(x), WIDTH)
    return keras.Model(image, layers.Conv2D(num_colors, 1, name="colors")(x))


def fit_likelihood(colorizer, palette, photos):
    """Ordinary training: cross-entropy against the colours of the photographs."""
    colorizer.compile(
        optimizer=keras.optimizers.Adam(
            keras.optimizers.schedules.CosineDecay(
                2e-3, LIKELIHOOD_EPOCHS * len(photos) // BATCH
            )
        ),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    colorizer.fit(
        grey(photos),
        ops.convert_to_numpy(palette.encode(photos, grid=(GRID, GRID))),
        batch_size=BATCH,
        epochs=LIKELIHOOD_EPOCHS,
    )


def grey(photos):
    return ops.convert_to_numpy(to_gray(photos))


# 3. Reward tuning


def tune(colorizer, palette, photos, held_out, seed):
    """Maximum likelihood on the colorizer's own samples, weighted by their reward."""
    tuned = RewardTuning(
        reward=ColorfulnessReward(),
        policy=CategoricalPolicy(codec=palette),
        temperature=TEMPERATURE,
        num_samples=NUM_SAMPLES,
        seed=seed,
    )(colorizer)
    tuned.compile(optimizer=keras.optimizers.Adam(LEARNING_RATE))
    history = tuned.fit(
        grey(photos),
        batch_size=BATCH,
        steps_per_epoch=STEPS_PER_EPOCH,
        validation_data=grey(held_out),
        epochs=MOST_EPOCHS,
        callbacks=[StopWhenEnough()],
    )
    return tuned, history.history


class StopWhenEnough(keras.callbacks.Callback):
    """Ends the tuning once samples on the training photographs earn enough."""

    def on_epoch_end(self, epoch, logs=None):
        self.model.stop_training = logs["reward"] >= ENOUGH_REWARD


# 4. Results


def measure(colorizer, palette, photos):
    """The table's column for a colorizer, and its painted photographs."""
    images = grey(photos)
    bins = likeliest(colorizer, images)
    mirrored = likeliest(colorizer, images[:, :, ::-1])[:, :, ::-1]
    painted = ops.convert_to_numpy(palette.decode(images, bins[:, None])[:, 0])
    return table_column(photos, painted, bins == mirrored), painted


def likeliest(colorizer, images):
    return colorizer.predict(images, batch_size=BATCH, verbose=0).argmax(-1)


def table_column(photos, painted, agreement):
    """Rewards and more of painted photographs, by name.

    Args:
        photos, painted: `(count, height, width, 3)` in [0, 1].
        agreement: bools `(count, GRID, GRID)`, whether a cell has the colour that it
            has when the photograph is mirrored.
    """
    reward, components = ColorfulnessReward().call(None, painted)
    lightness, _, _ = rgb_to_lab(painted, stack=False)
    true_lightness, _, _ = rgb_to_lab(photos, stack=False)
    table = {
        "reward": reward,
        "vivid fraction": components["vividness"],
        "hue entropy": components["hue_entropy"],
        "lightness error": ops.abs(lightness - true_lightness),
        "mirror agreement": agreement,
    }
    return {name: float(np.mean(ops.convert_to_numpy(v))) for name, v in table.items()}


def save_gallery(path, columns, rows):
    """Pictures `(count, size, size, ...)` by the title of their column."""
    count, size = next(iter(columns.values())).shape[:2]
    pick = np.linspace(0, count, rows, endpoint=False).astype(int)
    shape = (rows, size, size, 3)
    images = [np.broadcast_to(c[pick], shape) for c in columns.values()]
    images = np.stack(images, axis=1).reshape(-1, size, size, 3)
    keras.visualization.plot_image_gallery(
        images, rows=rows, cols=len(columns), value_range=(0, 1), show=False
    )
    figure = matplotlib.pyplot.gcf()
    for axes, title in zip(figure.axes, columns, strict=False):
        axes.set_title(title)
    shared.save_figure(path)


if __name__ == "__main__":
    matplotlib.use("Agg")
    main()
