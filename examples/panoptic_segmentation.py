"""Panoptic segmentation: teach a UViM model to make maps whose segments match.

UViM (Kolesnikov et al. 2022) makes a map in two steps. A language model writes a short
code about the image; a base model makes the map of image and code. Both are trained by
maximum likelihood first: the codes in a first stage of their own, the language model on
the codes of the ground truth. Reward tuning (Pinto et al. 2023, "Tuning computer vision
models with task rewards", section 4.1) then asks the language model for codes whose
maps earn more.

    python examples/panoptic_segmentation.py
    python examples/panoptic_segmentation.py --stages outputs/panoptic_segmentation
    python examples/panoptic_segmentation.py --data coco:DIR --preset paper \
        --checkpoint DIR_OF_BIG_VISION_FILES

The default data are scenes of handwritten digits over photographs that come with
scikit-learn and scikit-image, so nothing is downloaded. The metric is panoptic quality
(PQ), of greedy outputs for held-out images.
"""

import argparse
import functools
import pathlib
import types

import keras
import matplotlib.pyplot
import numpy as np
import shared
from keras import ops
from shared_uvim import PUBLISHED, build_language_model, build_stage_one, load

from keras_reward import PanopticQualityReward, RewardTuning
from keras_reward.callbacks import OfficialMetrics
from keras_reward.data import CocoPanoptic, Scenes, coco_files
from keras_reward.data.scenes import STUFF_CLASSES
from keras_reward.evaluation import PanopticQuality
from keras_reward.models import PanopticTask, UViM

HELD_OUT_START = 1_000_000  # of scenes that are watched, apart from those of the table
SCENE_CLASSES = 12
CHECKPOINTS = ("panoptic_stageI_params.npz", "panoptic_stageII_params.npz")
GAMMAS, GAINS = (0.6, 1.4), (0.7, 1.3)  # of recoloured training scenes

TINY = {
    # Too few pictures to learn everything from, as is usual.
    "scenes": {"train": 8192, "held_out": 256, "test": 512},
    "keep_scenes": True,  # in memory; otherwise they are drawn again in every epoch
    "image_size": 32,
    "patch_size": 4,
    "max_segments": 8,
    "stage_one": {
        "code_grid": (4, 4),
        "num_codes": 128,
        "width": 64,
        "oracle_layers": 1,
        "base_layers": 2,
        "oracle_sees_image": False,
        "momentum": 0.98,  # there are few steps: the dictionary must follow fast
        "stem": "conv",
    },
    "encoder": {"width": 64, "num_layers": 2, "stem": "conv"},
    "decoder": {"num_layers": 1},
    # Learning rates grow for a while, then fall to a last fraction.
    "codes": {"rate": 2e-3, "warmup": 100, "last": 0.0, "batch": 16, "steps": 5120},
    "likelihood": {
        "rate": 2e-3,
        "warmup": 100,
        "last": 0.0,
        "batch": 32,
        "steps": 3072,
    },
    "patience": 5,
    "tuning": {"rate": 5e-4, "warmup": 50, "last": 0.0, "batch": 32, "steps": 1024},
    "num_samples": 4,
}
COSINE = {"warmup": 4000, "last": 0.0}
PAPER = {
    **TINY,
    **PUBLISHED,
    "scenes": {"train": 10**6, "held_out": 256, "test": 512},
    "keep_scenes": False,
    "max_segments": 99,
    "codes": {**COSINE, "rate": 4e-4, "batch": 1024, "steps": 100_000},
    "likelihood": {**COSINE, "rate": 1e-3, "batch": 512, "steps": 40_000},
    "tuning": {
        "rate": 1e-6,
        "warmup": 4000,
        "last": 1.0,
        "batch": 128,
        "steps": 30_000,
    },
    "num_samples": 2,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="scenes", help="scenes, or coco:DIR")
    parser.add_argument("--preset", choices=("tiny", "paper"), default="tiny")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stages", help="a folder with a mle.keras: skips 1 and 2")
    parser.add_argument("--checkpoint", help="a folder of big_vision's files: likewise")
    parser.add_argument("--output", default="outputs/panoptic_segmentation")
    args = parser.parse_args()
    output = pathlib.Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(args.seed)
    settings = PAPER if args.preset == "paper" else TINY
    clock, curves = shared.Clock(), {}
    task = Task(args, types.SimpleNamespace(**settings))
    clock.stop("data")
    uvim = load(args, task.preset, task.labels, CHECKPOINTS)
    uvim = uvim or train(task, curves, clock)
    shared.save_model(uvim, output / "mle.keras")

    before, maps_before = measure(uvim, task)
    clock.stop("measuring")
    shared.heading("3. Reward tuning: which codes do we want?")
    curves["tuning"] = tune(uvim, task)
    clock.stop("tuning")
    shared.save_model(uvim, output / "tuned.keras")

    after, maps_after = measure(uvim, task)
    clock.stop("measuring")
    shared.heading(f"4. Greedy maps of held-out images, {task.count} of them")
    shared.print_table({"before": before, "after": after})
    panels = {
        "codes": (curves.get("codes", {}), ("loss", "val_loss")),
        "likelihood": (curves.get("likelihood", {}), ("loss", "val_loss")),
        "tuning": (curves["tuning"], ("reward", "val_reward", "val_pq")),
    }
    shared.save_curves(output / "curves.png", panels)
    save_gallery(output / "maps.png", task, maps_before, maps_after)
    clock.stop("saving")
    shared.save_results(
        output,
        "pq",
        before,
        after,
        clock,
        settings={**vars(args), **settings},
        curves=curves,
    )


# The task: data, classes and reward


class Task:
    """What is segmented, in which images, and what it earns."""

    def __init__(self, args, preset):
        self.source, self.preset, self.seed = args.data, preset, args.seed
        self.rng = np.random.default_rng(args.seed)
        if args.data != "scenes" and not args.data.startswith("coco:"):
            raise SystemExit(
                f"Expected --data scenes or --data coco:DIR. Received: {args.data}"
            )
        self.held_out = self.read("held_out", 64)
        self.test = self.read("test", 64)
        self.stuff_classes = getattr(self.test, "stuff_classes", STUFF_CLASSES)
        names = getattr(self.test, "class_names", range(SCENE_CLASSES))
        self.labels = PanopticTask(
            len(names), preset.max_segments, stuff_classes=self.stuff_classes
        )
        self.reward = PanopticQualityReward(
            preset.max_segments, stuff_classes=self.stuff_classes
        )
        self.count = sum(len(images) for images, _ in self.batches(self.test))

    def read(self, part, batch_size, transform=lambda images, labels: (images, labels)):
        """A data set: `"train"`, `"held_out"` for curves, `"test"` for the table."""
        training, size = part == "train", self.preset.image_size

        def in_range(images, labels):  # [-1, 1], as big_vision's models expect
            if training and self.source == "scenes":
                images = recolour(images, self.rng)
            return transform(2.0 * images - 1.0, labels)

        arguments = {"batch_size": batch_size, "transform": in_range}
        if self.source == "scenes":
            split = "train" if training else "test"
            count = self.preset.scenes[part]
            starts = {"train": self.seed * count, "held_out": HELD_OUT_START}
            arguments["start"] = starts.get(part, 0)
            return Scenes(split, count, task="panoptic", size=size, **arguments)
        folder = self.source.removeprefix("coco:")
        data = CocoPanoptic(
            **coco_files(folder, "train" if training else "eval", "panoptic"),
            image_size=(size, size),
            shuffle=training,
            seed=self.seed,
            check_images=not training,
            **arguments,
        )
        if not training:  # every other image is watched, the rest is for the table
            data.items = data.items[part == "test" :: 2]
            data.on_epoch_end()  # their order
        return data

    def training(self, schedule, transform=None):
        """What `fit` is given for a stage. An epoch is a pass over the images."""
        if self.source == "scenes" and self.preset.keep_scenes:
            x, y = self.scenes if transform is None else transform(*self.scenes)
            steps = -(-len(y) // schedule["batch"])
            data = {"x": x, "y": y, "batch_size": schedule["batch"]}
        else:
            transform = {} if transform is None else {"transform": transform}
            data = {"x": self.read("train", schedule["batch"], **transform)}
            steps = len(data["x"])
        return {**data, "epochs": -(-schedule["steps"] // steps), "verbose": 2}, steps

    @functools.cached_property
    def scenes(self):
        """All scenes to train on."""
        return shared.collect(self.batches(self.read("train", 256)))

    def batches(self, dataset):
        return (dataset[i] for i in range(len(dataset)))


def recolour(images, rng):
    """Other colours and another brightness for each image; what is grey stays grey.

    Training scenes are made of eight photographs only. A model soon knows those by
    heart, and is then lost on others.
    """
    images = np.stack([image[..., rng.permutation(3)] for image in images])
    gamma, gain = (rng.uniform(*r, (len(images), 1, 1, 1)) for r in (GAMMAS, GAINS))
    return np.minimum(gain * images**gamma, 1.0).astype("float32")


# 1. and 2. Maximum likelihood


def train(task, curves, clock):
    """Both stages, one after the other."""
    shared.heading("1. Codes: what guides the base model?")
    first = build_stage_one(task.preset, task.labels, task.seed)
    curves["codes"] = fit(first, task, task.preset.codes)
    clock.stop("codes")

    shared.heading("2. Maximum likelihood: which codes are likely?")
    second = build_language_model(task.preset, first)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    schedule = task.preset.likelihood
    curves["likelihood"] = fit(second, task, schedule, loss, first.code_pairs)
    clock.stop("likelihood")
    return UViM(first, second)


def fit(model, task, schedule, loss=None, transform=None):
    """Trains until the loss of held-out images stops improving."""
    data, steps = task.training(schedule, transform)
    model.compile(optimizer(schedule, steps * data["epochs"]), loss)
    transform = {} if transform is None else {"transform": transform}
    patience = task.preset.patience
    history = model.fit(
        **data,
        validation_data=task.read("held_out", 64, **transform),
        callbacks=[
            keras.callbacks.EarlyStopping(patience=patience, restore_best_weights=True)
        ],
    ).history
    losses = history["val_loss"]
    best = int(np.argmin(losses)) + 1
    print(f"least loss of held-out images: {losses[best - 1]:.4f} in epoch {best}")
    return history


def optimizer(schedule, steps):
    """Adam, with a learning rate that grows, and falls along a cosine."""
    rate, warmup, last = (schedule[key] for key in ("rate", "warmup", "last"))
    rate = shared.learning_rate(steps, rate, warmup, last)
    return keras.optimizers.Adam(rate, global_clipnorm=1.0)


# 3. Reward tuning


def tune(uvim, task):
    """Maximum likelihood of the model's own codes, weighted by what their maps earn."""
    schedule = task.preset.tuning
    tuned = RewardTuning(
        uvim,
        reward=task.reward,
        num_samples=task.preset.num_samples,
        seed=task.seed,
    )
    data, steps = task.training(schedule)
    tuned.compile(optimizer(schedule, steps * data["epochs"]))
    history = tuned.fit(
        **data,
        validation_data=task.held_out,
        callbacks=[OfficialMetrics(PanopticQuality(task.stuff_classes), task.held_out)],
    ).history
    return {name: history[name] for name in ("reward", "val_reward", "val_pq")}


# 4. Results


def measure(uvim, task):
    """The table's column for a model, and its maps of the first images."""
    quality = PanopticQuality(task.stuff_classes)
    ceiling = PanopticQuality(task.stuff_classes)
    shown, rewards, codes = None, [], []
    for images, labels in task.batches(task.test):
        maps = uvim.predict_on_batch(images)
        quality.update_state(labels, maps)
        rewards.append(ops.convert_to_numpy(task.reward(labels, maps)))
        first = uvim.stage_one
        ceiling.update_state(labels, first.reconstruct(images, labels))
        codes.append(first.codes(images, labels))
        shown = maps if shown is None else shown
    shares = np.bincount(np.concatenate(codes).ravel(), minlength=first.num_codes)
    shares = shares / shares.sum()
    entropy = -(shares * np.log(np.maximum(shares, 1e-12))).sum()
    results = quality.result()
    column = {
        **{name: results[name] for name in ("pq", "sq", "rq", "pq_things", "pq_stuff")},
        "greedy reward": np.concatenate(rewards).mean(),
        "pq of the oracle's codes": ceiling.result()["pq"],
        "codes used": (shares > 0).sum(),
        "perplexity of codes": np.exp(entropy),
    }
    return {name: float(value) for name, value in column.items()}, shown


def save_gallery(path, task, before, after, count=8):
    """Ground truth and predictions of the first images."""
    images, labels = task.test[0]
    count = min(count, len(images))
    columns = {"image": None, "truth": labels, "before": before, "after": after}
    size = (2 * count, 8)
    _, axes = matplotlib.pyplot.subplots(4, count, squeeze=False, figsize=size)
    for row, (title, maps) in zip(axes, columns.items(), strict=True):
        row[0].set_title(title, loc="left")
        for i, panel in enumerate(row):
            panel.axis("off")
            panel.imshow(0.5 * images[i] + 0.5 if maps is None else colours(maps[i]))
    shared.save_figure(path)


def colours(labels):
    """A colour for each class, a shade for each instance; void is black."""
    classes, instances = labels[..., 0], labels[..., 1]
    palette = matplotlib.colormaps["tab20"](np.maximum(classes, 0) % 20)[..., :3]
    shade = 1.0 - 0.15 * (np.abs(instances) % 4)
    return palette * shade[..., None] * (classes > 0)[..., None]


if __name__ == "__main__":
    matplotlib.use("Agg")
    main()
