"""Colorization by UViM: learn what codes say of colours, then which codes to write.

A UViM model (Kolesnikov et al. 2022) colours a photograph in two steps. A language
model writes a short code about the grey image; a base model paints by image and code.
What belongs together, such as the two sleeves of a shirt, is decided once, in the code.
Three stages, as in Pinto et al. 2023, "Tuning computer vision models with task
rewards", section 4.3: the codes and the base model; the language model, by maximum
likelihood on the codes of true colours; and its reward tuning for colourfulness.

    python examples/colorization.py --model uvim --photos my_pictures
    python examples/colorization.py --model uvim --stages outputs/colorization_uvim
    python examples/colorization.py --model uvim --photos my_pictures --preset paper \
        --checkpoint DIR_OF_BIG_VISION_FILES

The photographs, and what is measured, are those of colorization.py. Tuning soon finds
out that a rainbow is colourful, the same one over every picture. The published codes
are of places and allow that; those of the tiny preset are of parts of the picture. Look
at the mirror agreement, and at how much of the colours is decided by place.
"""

import functools
import types

import keras
import numpy as np
import shared
from colorization import (
    GRID,
    SPACING,
    cut_square,
    grey,
    held_out_squares,
    load_photos,
    save_gallery,
    table_column,
)
from keras import ops
from shared_uvim import PUBLISHED, build_language_model, build_stage_one, load

from keras_reward import KL, ColorfulnessReward, ColorPalette, RewardTuning
from keras_reward.codecs import rgb_to_lab
from keras_reward.models import CodeUsage, ColorizationTask, UViM

# Of the photographs to train on, one in so many is watched instead: their loss says
# when to stop. The held-out ones are for the table alone.
WATCH_EVERY = 12
GALLERY_ROWS = 12
RANGE = (-1, 1)  # of grey images, in three channels: as big_vision's models expect

TINY = {
    "image_size": 64,
    "patch_size": 8,
    "color_output": "ab",  # see `ColorizationTask`
    "smoothing": 4,  # likewise: without it, patches are blocks of colour
    "scales": (0.5, 1.0),  # of random squares, see `cut_square`
    # What the chroma of labels is multiplied by in the first stage: codes must be able
    # to say colours as vivid as tuning will ask for.
    "chroma": (1.0, 2.0),
    "stage_one": {
        "code_grid": 8,  # parts, see `UViMStageOne`
        "num_codes": 64,
        "width": 64,
        "oracle_layers": 1,
        "base_layers": 2,
        "oracle_sees_image": False,
        "momentum": 0.97,  # there are few steps: the dictionary must follow fast
        "stem": "conv",
    },
    "encoder": {"width": 64, "num_layers": 2, "stem": "conv"},
    "decoder": {"num_layers": 1},
    # Whenever the loss of watched photographs stops improving, the learning rate falls;
    # when that does not help, a stage ends.
    "codes": {"rate": 2e-3, "batch": 32, "steps": 100, "epochs": 8},
    "likelihood": {"rate": 1e-3, "batch": 32, "steps": 100, "epochs": 20},
    "patience": 3,
    # Reward tuning: the learning rate grows for a while, then falls along a cosine to
    # a last fraction. If it is higher, the first code that is colourful wins.
    "tuning": {
        "rate": 2e-4,
        "warmup": 120,
        "last": 0.05,
        "batch": 32,
        "steps": 15,
        "epochs": 36,
    },
    "num_samples": 4,
    "kl_weight": 0.02,  # of two colourful codes, keeps the likelier
}
PAPER = {
    **TINY,
    **PUBLISHED,
    "color_output": "rgb",
    "smoothing": 0,
    "chroma": (1.0, 1.0),
    "codes": {"rate": 4e-4, "batch": 1024, "steps": 1000, "epochs": 125},
    "likelihood": {"rate": 1e-3, "batch": 512, "steps": 1000, "epochs": 125},
    "tuning": {
        "rate": 3e-7,
        "warmup": 1,
        "last": 1.0,
        "batch": 512,
        "steps": 50,
        "epochs": 20,
    },
    "num_samples": 2,
    "kl_weight": 0.0,
}
CHECKPOINTS = ("color_stageI_params.npz", "color_stageII_params.npz")


def run(args):
    """All stages, and what came of them in the folder `args.output`."""
    settings = PAPER if args.preset == "paper" else TINY
    preset, clock, curves = types.SimpleNamespace(**settings), shared.Clock(), {}
    task = ColorizationTask(preset.color_output, RANGE, preset.smoothing)
    uvim = load(args, preset, task, CHECKPOINTS)
    shared.heading("Photographs")
    photos = Photographs(args, preset)
    clock.stop("data")
    uvim = uvim or train(photos, preset, task, args.seed, curves, clock)
    shared.save_model(uvim, args.output / "mle.keras")

    first = uvim.stage_one
    truth, _ = measure(lambda _, colours: colours, photos.table)
    ceiling, painted_oracle = measure(first.reconstruct, photos.table)
    before, painted_before = measure(painter(uvim), photos.table)
    different = {"before": different_codes(uvim, photos.table)}
    usage = report_codes(first, photos.table, ceiling["color error"])
    clock.stop("measuring")
    shared.heading("3. Reward tuning: which codes do we want?")
    curves["tuning"] = tune(uvim, photos, preset, args.seed)
    clock.stop("tuning")
    shared.save_model(uvim, args.output / "tuned.keras")

    after, painted_after = measure(painter(uvim), photos.table)
    different["after"] = different_codes(uvim, photos.table)
    clock.stop("measuring")
    shared.heading(
        f"4. Held-out photographs, greedy codes, {len(photos.table)} squares"
    )
    shared.print_table(
        {"truth": truth, "oracle": ceiling, "before": before, "after": after}
    )
    print("different codes: {before} before, {after} after".format(**different))
    columns = {
        "grey": grey(photos.table),
        "truth": photos.table,
        "oracle's code": painted_oracle,
        "before": painted_before,
        "after": painted_after,
    }
    save_gallery(args.output / "gallery.png", columns, GALLERY_ROWS)
    codes, likelihood = (curves.get(stage, {}) for stage in ("codes", "likelihood"))
    panels = {
        "codes: error of colours": (codes, ["val_color_error"]),
        "codes: use": (codes, ["val_perplexity", "val_dead_codes"]),
        "likelihood: nats a code": (likelihood, ["loss", "val_loss"]),
        "tuning: reward": (curves["tuning"], ["reward", "val_reward"]),
    }
    shared.save_curves(args.output / "curves.png", panels)
    clock.stop("saving")
    shared.save_results(
        args.output,
        "reward",
        before,
        after,
        clock,
        truth=truth,
        ceiling=ceiling,
        code_usage=usage,
        different_codes=different,
        seeds=[args.seed],
        settings={**vars(args), "output": str(args.output), **settings},
        curves=curves,
    )


# Photographs


class Photographs:
    """Those to train on, and squares of others, to watch and for the table.

    `train` is a list; `watched` and `table` are `(count, size, size, 3)` in [0, 1].
    """

    def __init__(self, args, preset):
        train, held_out = load_photos(args.photos, preset.image_size)
        self.train = [p for i, p in enumerate(train) if i % WATCH_EVERY]
        if not self.train:
            raise SystemExit(
                "Expected at least two photographs beside the held-out ones, one to "
                f"train on and one to watch. Received: {len(train)}"
            )
        self.watched = held_out_squares(train[::WATCH_EVERY], preset.image_size)
        self.table = held_out_squares(held_out, preset.image_size)
        print(f"of those to train on, watched: {len(train) - len(self.train)}")


class Squares(keras.utils.PyDataset):
    """Batches of random squares of photographs, every second one mirrored.

    Each epoch has new ones: a few hundred photographs are soon known by heart.

    Args:
        photos: RGB images.
        preset: where `image_size` and `scales` are.
        schedule: dict of `batch` and `steps`.
        seed: int.
        transform: from grey images and true colours to what `fit` is given.
    """

    def __init__(self, photos, preset, schedule, seed, transform=None):
        super().__init__()
        self.photos, self.preset, self.schedule = photos, preset, schedule
        self.rng = np.random.default_rng(seed)
        self.transform = transform or (lambda images, colours: (images, colours))

    def __len__(self):
        return self.schedule["steps"]

    def __getitem__(self, index):
        rng, colours = self.rng, []
        for i in range(self.schedule["batch"]):
            photo = self.photos[rng.integers(len(self.photos))]
            scale, size = rng.uniform(*self.preset.scales), self.preset.image_size
            colours.append(cut_square(photo, scale, rng, size, mirrored=i % 2))
        colours = np.stack(colours)
        return self.transform(model_input(colours), colours)


def saturated(factors, rng, images, colours):
    """Grey images and true colours, with more chroma in all of a photograph.

    Args:
        factors: of the chroma, least and most, drawn evenly on a logarithmic scale.
        rng: NumPy's generator.
        images, colours: as `Squares` makes them.
    """
    factors = np.exp(rng.uniform(*np.log(factors), (len(colours), 1, 1, 1)))
    middle = grey(colours)
    colours = middle + factors.astype("float32") * (colours - middle)
    return images, np.clip(colours, 0.0, 1.0)


def model_input(photos):
    """What the networks are given of photographs: grey, in three channels."""
    low, high = RANGE
    return np.repeat(low + (high - low) * grey(photos), 3, axis=-1)


# 1. and 2. Maximum likelihood


def train(photos, preset, task, seed, curves, clock):
    """Both stages, one after the other."""
    watched = model_input(photos.watched), photos.watched
    shared.heading("1. Codes: what guides the base model?")
    first = build_stage_one(preset, task, seed)
    first.compile(optimizer(preset.codes["rate"]))
    labels = functools.partial(saturated, preset.chroma, np.random.default_rng(seed))
    data = Squares(photos.train, preset, preset.codes, seed, labels)
    error = ReconstructionError(*watched)
    curves["codes"] = fit(first, data, watched, preset, preset.codes, [error])
    clock.stop("codes")

    shared.heading("2. Maximum likelihood: which codes are likely?")
    second = build_language_model(preset, first)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    second.compile(optimizer(preset.likelihood["rate"]), loss)
    schedule = preset.likelihood
    data = Squares(photos.train, preset, schedule, seed + 1, first.code_pairs)
    watched = first.code_pairs(*watched)
    curves["likelihood"] = fit(second, data, watched, preset, schedule)
    clock.stop("likelihood")
    return UViM(first, second)


def optimizer(rate):
    return keras.optimizers.Adam(rate, global_clipnorm=1.0)


def fit(model, data, watched, preset, schedule, callbacks=()):
    """Trains until the loss of watched photographs stops improving."""
    history = model.fit(
        data,
        validation_data=watched,
        epochs=schedule["epochs"],
        callbacks=[
            *callbacks,
            keras.callbacks.ReduceLROnPlateau(factor=0.3, patience=1),
            keras.callbacks.EarlyStopping(
                patience=preset.patience, restore_best_weights=True
            ),
        ],
        verbose=2,
    ).history
    losses = history["val_loss"]
    best = int(np.argmin(losses)) + 1
    print(f"least loss of watched photographs: {losses[best - 1]:.4f} in epoch {best}")
    if len(losses) == schedule["epochs"]:
        print(f"All {len(losses)} epochs of the schedule were used.")
    return {name: values for name, values in history.items() if "rate" not in name}


class ReconstructionError(keras.callbacks.Callback):
    """Logs the error of colours that are painted by the oracle's own codes."""

    def __init__(self, images, photos):
        super().__init__()
        self.images, self.photos = images, photos

    def on_epoch_end(self, epoch, logs=None):
        painted = self.model.reconstruct(self.images, self.photos)
        logs["val_color_error"] = color_error(self.photos, painted)


def color_error(photos, painted):
    """Mean distance of colours in Lab's (a, b), lightness apart."""
    (_, a, b), (_, c, d) = (rgb_to_lab(x, stack=False) for x in (photos, painted))
    distance = ops.sqrt(ops.square(a - c) + ops.square(b - d))
    return float(ops.convert_to_numpy(ops.mean(distance)))


def report_codes(first, photos, error):
    """Prints the most that tuning can reach, and how much of the dictionary is used.

    Args:
        first: the first stage.
        photos: `(count, size, size, 3)` in [0, 1].
        error: of their colours, painted by the oracle's own codes.
    """
    usage = CodeUsage(first.num_codes)
    usage.update_state(first.codes(model_input(photos), photos))
    usage = {name: float(value) for name, value in usage.result().items()}
    none = color_error(photos, np.broadcast_to(grey(photos), photos.shape))
    print(
        f"Held-out colours are {error:.2f} off when painted by the oracle's own codes, "
        f"{none:.2f} when grey (distance in Lab's a and b).\n"
        f"The codes have a perplexity of {usage['perplexity']:.1f}; "
        f"{usage['dead_codes']:.0f} of {first.num_codes} entries are not used."
    )
    return {**usage, "num_codes": first.num_codes, "length": first.code_length}


# 3. Reward tuning


def tune(uvim, photos, preset, seed):
    """Maximum likelihood of the model's own codes, weighted by what they earn."""
    schedule = preset.tuning
    rate = shared.learning_rate(
        schedule["steps"] * schedule["epochs"],
        schedule["rate"],
        schedule["warmup"],
        schedule["last"],
    )
    tuned = RewardTuning(
        uvim,
        reward=ColorfulnessReward(),
        num_samples=preset.num_samples,
        terms=[KL("copy", preset.kl_weight)] if preset.kl_weight else [],
        seed=seed,
    )
    tuned.compile(optimizer(rate))
    history = tuned.fit(
        Squares(photos.train, preset, schedule, seed + 2),
        validation_data=(model_input(photos.watched), photos.watched),
        epochs=schedule["epochs"],
        verbose=2,
    ).history
    names = ("reward", "vividness", "hue_entropy")
    names = (*names, *(f"val_{name}" for name in names), "entropy")
    return {name: history[name] for name in names}


# 4. Results


def painter(uvim):
    """What `measure` asks for, of a model: its greedy outputs."""
    return lambda images, _: uvim.predict(images, verbose=0)


def measure(paint, photos):
    """A column of the table, and the painted photographs.

    Args:
        paint: from grey images and true colours to colours.
        photos: `(count, size, size, 3)` in [0, 1].
    """

    def cells(colours):
        colours = ColorPalette(SPACING).encode(colours, grid=(GRID, GRID))
        return ops.convert_to_numpy(colours)

    painted = paint(model_input(photos), photos)
    mirrored = mirror(photos)
    mirrored = mirror(paint(model_input(mirrored), mirrored))
    table = table_column(photos, painted, cells(painted) == cells(mirrored))
    table["decided by place"] = place_share(painted)
    return {**table, "color error": color_error(photos, painted)}, painted


def place_share(photos):
    """How much of the colours is the same in all pictures, from 0 to 1.

    The mean square of Lab's (a, b), averaged over the photographs at each place, and
    divided by that without the average. 1: all have the same colours. 0: all are grey,
    or place does not matter.
    """
    _, a, b = rgb_to_lab(photos, stack=False)
    colours = ops.convert_to_numpy(ops.stack([a, b]))
    common, total = np.square(colours.mean(1)).mean(), np.square(colours).mean()
    return float(common / total) if total > 1.0 else 0.0


def different_codes(uvim, photos):
    """Number of different greedy codes: 1 if all photographs are painted by one."""
    codes = uvim.language_model.generate(model_input(photos), temperature=0)
    return len(np.unique(codes, axis=0))


def mirror(photos):
    return np.ascontiguousarray(photos[:, :, ::-1])
