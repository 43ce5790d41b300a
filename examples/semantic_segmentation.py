"""Semantic segmentation: tune a segmenter for the overlap or outline that is measured.

A segmenter learns the likely class of every pixel by itself. It is measured by what all
pixels make together: intersection over union (IoU), Dice, or how well its outlines
match. Where pictures are hard to read, that is not the same: of a stroke that may be
here or there, no pixel is likely, and the likeliest map has no stroke at all.

The pixels of a mask are drawn independently, so a reward that counts pixels can say
what each of them was worth: the reward of the drawn mask, with this pixel alone
changed. That is credit by parts. By outputs, one number for the whole mask is spread
over all of its pixels.

    python examples/semantic_segmentation.py
    python examples/semantic_segmentation.py --classes all --reward dice
    python examples/semantic_segmentation.py --reward boundary --model hub
    python examples/semantic_segmentation.py --data DIR --mle-checkpoint mle.keras

The default data are scenes of handwritten digits over photographs, with noise. A folder
of your own needs `images/` and, with the same names, `masks/` of labels; 255 is void.
"""

import argparse
import pathlib
import types

import keras
import matplotlib.pyplot
import numpy as np
import shared
import shared_segmenters as models
from keras import ops
from shared_pictures import VOID, Pictures, add_noise, as_binary, read_folder

from keras_reward import BoundaryReward, DiceReward, MeanIoUReward, RewardTuning
from keras_reward.data import Scenes

# Scenes that decide, and those of the table, by which nothing was decided.
VALIDATION_START, TEST_START = 1_000_000, 2_000_000
OFFSETS = np.linspace(-3.0, 3.0, 13)  # of logits
TOLERANCE = 1  # pixels, of outlines
FOLDER_SIZE = 64  # pixels; the size of scenes is in the settings

COMMON = {
    "scenes": {"train": 4096, "validation": 256, "test": 512},
    "batch": 16,
    # Samples at temperature 1 are speckled. Colder ones are close to the greedy mask.
    "temperature": 0.2,
    "num_samples": 1,
}
TINY = {
    "binary": {
        **COMMON,
        "image_size": 64,
        "noise": (2.5, 3),  # standard deviation (white is 1) and channels
        "widths": (8, 16, 32, 96),  # of the U-Net, from half to a sixteenth of the size
        # The rate falls until validation pictures do not improve any more.
        "likelihood": {"rate": 3e-3, "warmup": 50, "last": 0.0, "epochs": 8},
        "tuning": {"rate": 1e-3, "warmup": 50, "last": 0.0, "epochs": 3},
    },
    "all": {
        **COMMON,
        "image_size": 32,
        "noise": (0.1, 1),  # grey: it leaves the colours of photographs visible
        "widths": (16, 32, 48, 96),  # the first holds all classes
        "likelihood": {"rate": 3e-3, "warmup": 100, "last": 0.0, "epochs": 40},
        "tuning": {"rate": 2e-3, "warmup": 50, "last": 0.0, "epochs": 3},
    },
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="scenes", help="scenes, or a folder")
    parser.add_argument("--classes", choices=("binary", "all"), default="binary")
    parser.add_argument(
        "--model", default="unet", help="unet, hub (SegFormer), or a .keras file"
    )
    parser.add_argument("--reward", choices=("dice", "iou", "boundary"), default="iou")
    parser.add_argument("--credit", choices=("auto", "parts", "output"), default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mle-checkpoint", help="a mle.keras; skips the first stage")
    parser.add_argument("--output", default="outputs/semantic_segmentation")
    args = parser.parse_args()
    (output := pathlib.Path(args.output)).mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(args.seed)
    clock, settings = shared.Clock(), TINY[args.classes]
    task = Task(args, types.SimpleNamespace(**settings))
    clock.stop("data")

    shared.heading("1. Maximum likelihood: which class is likely?")
    curves = {}
    if args.mle_checkpoint:
        model = load_model(args.mle_checkpoint, task)
    else:
        model = build_model(args.model, task)
        curves["likelihood"] = fit_likelihood(model, task)
    shared.save_model(model, output / "mle.keras")
    clock.stop("likelihood")
    before, maps_before = measure(model, task)
    clock.stop("measuring")
    shared.heading(f"2. Reward tuning: which maps do we want? {task.reward.name}")
    curves["tuning"] = tune(model, task)
    shared.save_model(model, output / "tuned.keras")
    clock.stop("tuning")
    after, maps_after = measure(model, task)
    clock.stop("measuring")

    shared.heading(f"3. Held-out pictures, {len(task.test[1])} of them")
    shared.print_table({"before": before, "after": after})
    names = {"likelihood": ("loss", "val_loss"), "tuning": ("reward", "val_reward")}
    panels = {stage: (curves.get(stage, {}), names[stage]) for stage in names}
    shared.save_curves(output / "curves.png", panels)
    rows = {
        "truth": task.test[1],
        "before": maps_before["greedy"],
        "after": maps_after["greedy"],
        f"after, a sample at {task.preset.temperature}": maps_after["sample"],
    }
    save_gallery(output / "maps.png", task, rows)
    clock.stop("saving")
    settings = {**vars(args), **settings}
    shared.save_results(
        output, args.reward, before, after, clock, settings=settings, curves=curves
    )


# The task: pictures, classes and reward


class Task:
    """What is segmented, in which pictures, and what it earns.

    Attributes:
        train, validation, test: images `(n, size, size, 3)` float32, around [0, 1], and
            labels `(n, size, size, 1)` int32. Validation decides when to stop and which
            offsets are best, test is for the table.
        channels: of the model's logits: 1 if binary, else the number of classes.
        size: height and width of the pictures.
        noise: standard deviation and channels of the noise that scenes to train on get,
            anew in every epoch; the others have theirs. None for a folder.
        rewards: dict of all measures by name, of which `reward_name` is asked for.
        reward: what tuning is for.
    """

    def __init__(self, args, preset):
        self.preset, self.seed, self.credit = preset, args.seed, args.credit
        self.rng = np.random.default_rng(args.seed)
        binary = args.classes == "binary"
        self.size, self.noise = FOLDER_SIZE, None
        if args.data == "scenes":
            self.size, self.noise = preset.image_size, preset.noise
            parts = [self.scenes(part) for part in ("train", "validation", "test")]
        else:
            parts = read_folder(pathlib.Path(args.data), self.size)
        if binary:
            parts = [(images, as_binary(labels, args.data)) for images, labels in parts]
        self.train, self.validation, self.test = parts
        labels = sorted({int(n) for _, labels in parts for n in np.unique(labels)})
        if set(labels) <= {0, VOID}:
            raise SystemExit(
                "Expected masks of labels 0, 1, ...; 255 is void. If these are masks "
                f"of 0 and 255, divide them by 255. Received: labels {labels}"
            )
        self.channels = 1 if binary else max(set(labels) - {VOID}) + 1
        # Else pixels of a wrong class cost so much that what is unsure is left out.
        several = {"ignore_absent": self.channels > 1}
        self.rewards = {
            "iou": MeanIoUReward(self.channels, **several),
            "dice": DiceReward(self.channels, **several),
            "boundary": BoundaryReward(TOLERANCE, masks=True),
        }
        self.reward, self.reward_name = self.rewards[args.reward], args.reward
        if args.reward == "boundary":  # or masks become as thin as their outlines
            self.reward = self.reward + self.rewards["iou"]

    def scenes(self, part):
        """Scenes of a part, with noise unless they are to train on."""
        count, size = self.preset.scenes[part], self.size
        split = "train" if part == "train" else "test"
        starts = {"validation": VALIDATION_START, "test": TEST_START}
        start = starts.get(part, self.seed * count)
        data = Scenes(split, count, "panoptic", start=start, size=size)
        images, labels = shared.collect(data[i] for i in range(len(data)))
        if part != "train":  # the same for every seed
            images = add_noise(images, self.noise, np.random.default_rng(start))
        return images, labels[..., :1] - 1  # 0 to 9 are digits, then photographs

    def training(self):
        """Training pictures in batches, in a new order each epoch."""
        return Pictures(*self.train, self.preset.batch, self.noise, self.rng)

    def tuner(self, model, **arguments):
        """The model as a distribution over maps, and what they earn."""
        arguments = {
            "credit": self.credit,
            "temperature": self.preset.temperature,
            "num_samples": self.preset.num_samples,
            "seed": self.seed,
            **arguments,
        }
        policy = "bernoulli" if self.channels == 1 else "categorical"
        return RewardTuning(model, self.reward, policy, **arguments)


# 1. Maximum likelihood


def build_model(name, task):
    """A new U-Net or SegFormer, or one from a file, that returns logits."""
    if name == "unet":
        return models.build_unet(task.size, task.preset.widths, task.channels)
    if name == "hub":
        return models.build_segformer(task.size, task.channels)
    return load_model(name, task)


def load_model(path, task):
    """A model from a file, if it is for these pictures and classes."""
    if not pathlib.Path(path).is_file():
        raise SystemExit(f"Expected unet, hub or a .keras file. Received: {path}")
    model = keras.models.load_model(path, compile=False)
    size = task.size
    shape = tuple(model.compute_output_shape((None, size, size, 3)))
    logits = task.tuner(model).policy.from_logits
    if shape[1:] != (size, size, task.channels) or logits is False:
        raise SystemExit(
            f"Expected a model of logits, {task.channels} for each of {size} x {size} "
            f"pixels. Received: {path}, which returns "
            f"{'logits' if logits else 'probabilities'} of shape {shape}"
        )
    return model


@keras.saving.register_keras_serializable(package="segmentation_example")
def negative_log_likelihood(y_true, logits):
    """Cross-entropy of the pixels that are not void, `(rows,)`: a mean over them."""
    labels = ops.cast(y_true[..., 0], "int32")
    counts = ops.cast(labels != VOID, "float32")
    labels = ops.where(labels == VOID, 0, labels)
    if logits.shape[-1] == 1:  # of class 1; the logit of class 0 is 0
        logits = ops.concatenate([ops.zeros_like(logits), logits], axis=-1)
    losses = keras.losses.sparse_categorical_crossentropy(
        labels, logits, from_logits=True
    )
    return ops.sum(losses * counts, (1, 2)) / ops.maximum(ops.sum(counts, (1, 2)), 1.0)


def fit_likelihood(model, task):
    """Trains until the loss of validation pictures stops improving."""
    data, epochs, rate = schedule_of(task, "likelihood")
    model.compile(keras.optimizers.Adam(rate), negative_log_likelihood)
    best = keras.callbacks.EarlyStopping(patience=epochs, restore_best_weights=True)
    history = model.fit(
        data,
        validation_data=task.validation,
        epochs=epochs,
        callbacks=[best],
        verbose=2,
    )
    return {name: history.history[name] for name in ("loss", "val_loss")}


def schedule_of(task, stage):
    """Batches of a stage, for how many epochs, and the learning rate of each step."""
    data, schedule = task.training(), dict(getattr(task.preset, stage))
    epochs = schedule.pop("epochs")
    return data, epochs, shared.learning_rate(len(data) * epochs, **schedule)


# 2. Reward tuning


def tune(model, task):
    """Maximum likelihood of the model's own maps, by what each part was worth."""
    data, epochs, rate = schedule_of(task, "tuning")
    tuner = task.tuner(model)
    tuner.compile(keras.optimizers.Adam(rate))
    history = tuner.fit(data, validation_data=task.validation, epochs=epochs, verbose=2)
    return {name: history.history[name] for name in ("reward", "val_reward")}


# 3. Results


def measure(model, task):
    """The table's column for a model, and maps of the first test pictures."""
    logits, labels = two_channels(model.predict(task.test[0], verbose=0)), task.test[1]
    validation = two_channels(model.predict(task.validation[0], verbose=0))
    offsets = best_offsets(validation, task.validation[1], task.reward)
    greedy = greedy_maps(logits)
    rng, temperature = np.random.default_rng(task.seed), task.preset.temperature
    sample = greedy_maps(logits / temperature + rng.gumbel(size=logits.shape))
    moved = greedy_maps(logits + offsets)
    measured = task.rewards[task.reward_name]
    column = {
        **{name: mean(r, labels, greedy) for name, r in task.rewards.items()},
        f"{task.reward_name}, best offsets": mean(measured, labels, moved),
        "reward, greedy": mean(task.reward, labels, greedy),
        "reward, sampled": mean(task.reward, labels, sample),
    }
    return column, {"greedy": greedy, "sample": sample}


def mean(reward, labels, maps):
    return float(np.mean(ops.convert_to_numpy(reward(labels, maps))))


def two_channels(logits):
    """Logits of all classes. Of a binary map, that of class 0 is 0."""
    if logits.shape[-1] > 1:
        return logits
    return np.concatenate([np.zeros_like(logits), logits], axis=-1)


def greedy_maps(logits):
    return logits.argmax(-1).astype("int32")


def best_offsets(logits, labels, reward):
    """What to add to the logits of each class, so that greedy maps earn most.

    For two classes that is the best threshold. Of more, each class in turn gets its
    best one of `OFFSETS`.
    """
    offsets = np.zeros(logits.shape[-1], "float32")
    best = mean(reward, labels, greedy_maps(logits))
    for channel in range(1 if len(offsets) == 2 else 0, len(offsets)):
        for value in OFFSETS:
            tried = offsets.copy()
            tried[channel] = value
            earned = mean(reward, labels, greedy_maps(logits + tried))
            if earned > best:
                offsets, best = tried, earned
    return offsets


def save_gallery(path, task, rows, count=8):
    """The first test pictures, and maps of them by the title of their row."""
    images, count = task.test[0], min(count, len(task.test[0]))
    rows = {"picture": None, **rows}
    size = (1.6 * count, 1.8 * len(rows))
    _, axes = matplotlib.pyplot.subplots(len(rows), count, squeeze=False, figsize=size)
    for panels, (title, maps) in zip(axes, rows.items(), strict=True):
        panels[0].set_title(title, loc="left")
        for i, panel in enumerate(panels):
            panel.axis("off")
            panel.imshow(images[i].clip(0, 1) if maps is None else colours(maps[i]))
    shared.save_figure(path)


def colours(labels):
    """RGB of a map of labels `(size, size)` or `(size, size, 1)`; void is black."""
    labels = labels.reshape(labels.shape[:2])
    palette = matplotlib.colormaps["tab20"](labels % 20)[..., :3]
    return palette * (labels != VOID)[..., None]


if __name__ == "__main__":
    matplotlib.use("Agg")
    main()
