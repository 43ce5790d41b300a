"""Object detection: teach a detector to find more, by tuning it for recall or mAP.

A detector writes boxes as a sequence of tokens, and learns that by maximum likelihood.
But likelihood is not what it is for: where it is unsure, it names its best guess and
stops. Reward tuning (Pinto et al. 2023, "Tuning computer vision models with task
rewards", section 4.2) then asks for what is measured: objects found, and, for mean
average precision (mAP), in tight boxes that know how good they are.

    python examples/object_detection.py --reward recall
    python examples/object_detection.py --reward map --mle-checkpoint mle.keras
    python examples/object_detection.py --data coco:my_coco_folder --preset paper

The default data are scenes of handwritten digits over photographs that scikit-learn and
scikit-image bring along, so nothing is downloaded. Scores are COCO's official ones, of
greedy outputs for held-out images.
"""

import argparse
import functools
import json
import pathlib
import time
import types

import keras
import matplotlib
import matplotlib.pyplot
import numpy as np
from keras import ops

from keras_reward import (
    AutoregressivePolicy,
    MeanAveragePrecisionReward,
    RecallReward,
    RewardTuning,
)
from keras_reward.auxiliary import ConfidenceLoss
from keras_reward.callbacks import OfficialScores
from keras_reward.codecs.boxes import BoxCodec
from keras_reward.data import CocoBoxes, Scenes, coco_files
from keras_reward.evaluation import CocoDetection
from keras_reward.models import VisionEncoderDecoder, VisionTransformer
from keras_reward.rewards.detection import COCO_THRESHOLDS

HELD_OUT_START = 1_000_000  # of scenes that are watched, apart from those of the table

TINY = {
    "image_size": 64,
    "encoder": {"patch_size": 16, "stem": "conv", "width": 64, "num_layers": 1},
    "decoder": {"num_layers": 2, "mlp_dim": 128},
    "max_boxes": 8,  # more than a scene has objects: tuned models write more
    "num_buckets": 65,  # one at each edge of a pixel
    "coco_classes": ("person",),
    # Maximum likelihood. Whenever the loss of held-out images stops to fall, the
    # learning rate falls; when that does not help, the training ends.
    "likelihood": {"rate": 2e-3, "cosine": False, "batch": 32, "steps": 128},
    "likelihood_epochs": 60,
    "patience": 3,
    # Reward tuning: warm-up, then a constant learning rate.
    "tuning": {"rate": 3e-4, "warmup": 50, "batch": 32, "steps": 60},
    "tuning_epochs": 15,
    "num_samples": 8,
    # Numbers of scenes. No epoch sees those of another.
    "scenes": {"train": 10**7, "held_out": 256, "test": 1024},
}
PAPER = {  # but for its first training, on Objects365
    **TINY,
    "image_size": 1280,
    "encoder": {"patch_size": 16, "width": 768, "num_layers": 12, "num_heads": 12},
    "decoder": {"num_layers": 6, "num_heads": 12},
    "max_boxes": 100,
    "num_buckets": 1000,
    "coco_classes": None,
    "likelihood": {"rate": 1e-4, "cosine": True, "batch": 256, "steps": 500},
    "likelihood_epochs": 20,
    "tuning": {"rate": 1e-6, "warmup": 1000, "batch": 256, "steps": 1000},
    "tuning_epochs": 100,
    "num_samples": 2,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="scenes", help="scenes, or coco:DIR")
    parser.add_argument("--preset", choices=("tiny", "paper"), default="tiny")
    parser.add_argument("--reward", choices=("recall", "map"), default="recall")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mle-checkpoint", help="a mle.keras: leaves out stage one")
    parser.add_argument("--output", default="outputs/object_detection")
    args = parser.parse_args()
    output = pathlib.Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(args.seed)
    settings = PAPER if args.preset == "paper" else TINY
    task = Task(args, types.SimpleNamespace(**settings))
    seconds, start = {}, time.perf_counter()
    heading("1. Maximum likelihood: which boxes are likely?")
    if args.mle_checkpoint:
        model, curves = keras.models.load_model(args.mle_checkpoint, compile=False), {}
    else:
        model, curves = fit_likelihood(task)
        model.save(output / "mle.keras")
    seconds["likelihood"] = time.perf_counter() - start

    before, boxes_before = measure(model, task, ("class",))
    start = time.perf_counter()
    heading(f"2. Reward tuning: which boxes do we want? {task.reward.name}")
    curves.update(tune(model, task))
    seconds["tuning"] = time.perf_counter() - start
    model.save(output / "tuned.keras")

    scores = ("class", "confidence") if args.reward == "map" else ("class",)
    after, boxes_after = measure(model, task, scores)
    heading("3. Greedy boxes in held-out images")
    print_table(before, after)
    save_curves(output / "curves.png", curves)
    save_picture(output / "boxes.png", task, boxes_before, boxes_after)
    results = {
        "metric": "ar_100" if args.reward == "recall" else "map",
        "before": before,
        "after": after,
        "seconds": {k: round(v, 1) for k, v in seconds.items()},
        "backend": keras.backend.backend(),
        "settings": {**vars(args), **settings},
        "curves": curves,
    }
    (output / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    print(f"saved {output}/results.json; seconds: {results['seconds']}")


def heading(text):
    print(f"\n{text}\n{'-' * len(text)}", flush=True)


# The task: data, codec and reward


class Task:
    """What is detected, in which images, and what it earns."""

    def __init__(self, args, preset):
        self.source, self.preset, self.seed = args.data, preset, args.seed
        self.held_out = self.read("held_out", 64)
        self.test = self.read("test", 64)
        self.class_names = getattr(self.test, "class_names", tuple("0123456789"))
        if args.reward == "recall":
            # Average recall is over the same thresholds.
            self.reward = RecallReward(iou_thresholds=COCO_THRESHOLDS)
            self.auxiliary_loss, self.score = None, "class"
        else:
            counts = "coco" if len(self.class_names) == 80 else None
            self.reward = MeanAveragePrecisionReward(class_counts=counts)
            self.auxiliary_loss, self.score = ConfidenceLoss(), "confidence"

    def read(self, part, batch_size, transform=None):
        """A data set: `"train"`, `"held_out"` for curves, `"test"` for the table."""
        arguments = {"batch_size": batch_size, "transform": transform}
        training, size = part == "train", self.preset.image_size
        if self.source == "scenes":
            arguments["start"] = HELD_OUT_START if part == "held_out" else 0
            split = "train" if training else "test"
            return Scenes(split, self.preset.scenes[part], **arguments)
        folder = self.source.removeprefix("coco:")
        return CocoBoxes(
            **coco_files(folder, "train" if training else "eval", "boxes"),
            image_size=(size, size),
            categories=self.preset.coco_classes,
            keep_crowds=not training,
            keep_empty=not training,
            shuffle=training,
            seed=self.seed,
            **arguments,
        )

    def codec(self, score=None):
        return BoxCodec(
            num_classes=len(self.class_names),
            image_size=self.preset.image_size,
            max_boxes=self.preset.max_boxes,
            num_buckets=self.preset.num_buckets,
            score=score,
        )

    def tuner(self, model, score):
        """The model as a distribution over boxes, and what they earn."""
        return RewardTuning(
            model,
            reward=self.reward,
            policy=AutoregressivePolicy(codec=self.codec(score)),
            auxiliary_loss=self.auxiliary_loss,
            num_samples=self.preset.num_samples,
            seed=self.seed,
        )


# 1. Maximum likelihood


def fit_likelihood(task):
    """A model fitted to the tokens of the ground truth, and its losses."""
    preset, codec = task.preset, task.codec()
    generator = np.random.default_rng(task.seed)
    in_new_order = functools.partial(codec.preprocess, seed=generator)
    in_fixed_order = functools.partial(codec.preprocess, seed=0)

    schedule, rate = preset.likelihood, preset.likelihood["rate"]
    stop = {"patience": preset.patience, "restore_best_weights": True}
    callbacks = [keras.callbacks.EarlyStopping(**stop)]
    if schedule["cosine"]:
        steps = schedule["steps"] * preset.likelihood_epochs
        rate = keras.optimizers.schedules.CosineDecay(rate, steps)
    else:
        callbacks.append(keras.callbacks.ReduceLROnPlateau(factor=0.3, patience=1))
    image_shape = (preset.image_size, preset.image_size, 3)
    encoder = VisionTransformer(image_shape, **preset.encoder)
    model = VisionEncoderDecoder(
        encoder, codec.vocabulary_size, codec.max_length, **preset.decoder
    )
    model.compile(
        optimizer=keras.optimizers.Adam(rate, global_clipnorm=1.0),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    history = model.fit(
        task.read("train", schedule["batch"], in_new_order),
        validation_data=task.read("held_out", 64, in_fixed_order),
        steps_per_epoch=schedule["steps"],
        epochs=preset.likelihood_epochs,
        callbacks=callbacks,
        verbose=2,
    )
    return model, {name: history.history[name] for name in ("loss", "val_loss")}


# 2. Reward tuning


def tune(model, task):
    """Maximum likelihood of the model's own boxes, weighted by what they earn."""
    schedule = task.preset.tuning
    rate, warmup = schedule["rate"], schedule["warmup"]
    # Grows to the rate, and stays there.
    rate = keras.optimizers.schedules.PolynomialDecay(rate / warmup, warmup, rate)
    tuner = task.tuner(model, task.score)
    tuner.compile(optimizer=keras.optimizers.Adam(rate, global_clipnorm=1.0))
    history = tuner.fit(
        task.read("train", schedule["batch"]),
        steps_per_epoch=schedule["steps"],
        epochs=task.preset.tuning_epochs,
        callbacks=[OfficialScores(CocoDetection(), task.held_out)],
        verbose=2,
    )
    names = ("reward", "val_ar_100", "val_map", "confidence_loss")
    return {name: history.history[name] for name in names if name in history.history}


# 3. Results


def measure(model, task, scores):
    """The table's column for a model, and its boxes in the first images."""
    tuners = {score: task.tuner(model, score) for score in scores}
    official = {score: CocoDetection() for score in ("constant", *scores)}
    shown, sums, images_seen = None, np.zeros(3), 0
    for i in range(len(task.test)):
        images, targets = task.test[i]
        for score, tuner in tuners.items():
            boxes = tuner.predict_on_batch(images)
            boxes = keras.tree.map_structure(ops.convert_to_numpy, boxes)
            official[score].update_state(targets, boxes)
        boxes["scores"] = np.ones_like(boxes["scores"])
        official["constant"].update_state(targets, boxes)
        rewards = ops.convert_to_numpy(task.reward(targets, boxes))
        counts = [(each["labels"] >= 0).sum() for each in (boxes, targets)]
        sums += np.array([rewards.sum(), *counts])
        images_seen += len(images)
        shown = shown or boxes
    results = {score: evaluator.result() for score, evaluator in official.items()}
    maps = {f"map, {score} score": result["map"] for score, result in results.items()}
    means = ("greedy reward", "boxes an image", "objects an image")
    column = {
        "ar_100": results["constant"]["ar_100"],
        "map": max(maps.values()),
        **maps,
        "sampled reward": sampled_reward(tuners[scores[0]], *task.test[0]),
        **dict(zip(means, sums / images_seen, strict=True)),
    }
    return {name: float(value) for name, value in column.items()}, shown


def sampled_reward(tuner, images, targets):
    """Mean reward of samples, for one batch of images."""
    context = tuner.policy.encode(images)
    samples = tuner.policy.sample(context, tuner.num_samples, seed=0)
    rewards, _ = tuner.score(images, targets, samples)
    return ops.convert_to_numpy(rewards).mean()


def print_table(before, after):
    print(f"{'':24}{'before':>8}{'after':>8}{'change':>8}")
    for name in {**before, **after}:
        old, new = (np.float64(c.get(name, np.nan)) for c in (before, after))
        print(f"{name:24}{old:8.3f}{new:8.3f}{new / old - 1.0:+8.0%}")


def save_curves(path, curves):
    """The losses of maximum likelihood, and what happened while tuning."""
    panels = {
        "maximum likelihood": ("loss", "val_loss"),
        "tuning: samples": ("reward", "confidence_loss"),
        "tuning: greedy, held out": ("val_ar_100", "val_map"),
    }
    figure, axes = matplotlib.pyplot.subplots(1, 3, figsize=(12, 3.5))
    for panel, (title, names) in zip(axes, panels.items(), strict=True):
        for name in names:
            panel.plot(curves.get(name, []), label=name)
        panel.set(title=title, xlabel="epoch")
        panel.legend()
    save_figure(figure, path)


def save_picture(path, task, before, after):
    """Ground truth and predictions in the first images."""
    images, targets = task.test[0]
    columns = {"ground truth": targets, "before": before, "after": after}
    figure, axes = matplotlib.pyplot.subplots(3, 8, figsize=(16, 6))
    for row, (title, boxes) in zip(axes, columns.items(), strict=True):
        row[0].set_title(title, loc="left")
        for i, panel in enumerate(row):
            panel.imshow(images[i])
            panel.axis("off")
            for box, label in zip(boxes["boxes"][i], boxes["labels"][i], strict=True):
                if label >= 0:
                    left, top, right, bottom = box - 0.5
                    x, y = [left, right, right, left, left], [top, top, bottom, bottom]
                    colour, name = f"C{label % 10}", task.class_names[label]
                    panel.plot(x, [*y, top], color=colour)
                    panel.text(left, top, name, backgroundcolor=colour, fontsize=7)
    save_figure(figure, path)


def save_figure(figure, path):
    figure.savefig(path, dpi=100, bbox_inches="tight")
    matplotlib.pyplot.close(figure)
    print(f"saved {path}")


if __name__ == "__main__":
    matplotlib.use("Agg")
    main()
