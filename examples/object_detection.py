"""Object detection: teach a detector to find more, by tuning it for recall or mAP.

A detector writes boxes as a sequence of tokens, and learns that by maximum likelihood.
But likelihood is not what it is for: where it is unsure, it names its best guess and
stops. Reward tuning (Pinto et al. 2023, "Tuning computer vision models with task
rewards", section 4.2) then asks for what is measured: objects found and, for mean
average precision (mAP), tight boxes whose scores say how good they are.

    python examples/object_detection.py --reward recall
    python examples/object_detection.py --reward map --mle-checkpoint mle.keras
    python examples/object_detection.py --data coco:my_coco_folder --preset paper
    python examples/object_detection.py --model retinanet --reward map

KerasHub's RetinaNet and D-FINE score boxes instead, and learn that by their own loss.
Tuning then decides which of the boxes that they find are shown.

The default data are scenes of handwritten digits over photographs, `Scenes`. Metrics
are COCO's official ones, of greedy outputs for held-out images.
"""

import argparse
import functools
import pathlib
import types

import keras
import matplotlib.pyplot
import numpy as np
import shared
import shared_detectors as detectors
from keras import ops

from keras_reward import (
    AutoregressivePolicy,
    BoxCodec,
    ConfidenceLoss,
    MeanAveragePrecisionReward,
    RecallReward,
    RewardTuning,
)
from keras_reward.callbacks import OfficialMetrics
from keras_reward.data import CocoBoxes, Scenes, coco_files
from keras_reward.evaluation import CocoDetection, reward_distribution
from keras_reward.models import VisionEncoderDecoder, VisionTransformer
from keras_reward.rewards.detection import COCO_THRESHOLDS

HELD_OUT_SCENES = 1280
BATCH, WATCHED_BATCHES = 64, 4  # of held-out images

TINY = {
    # Too few pictures to learn everything from, as is usual: with endless new ones a
    # detector comes to see nearly all objects, and has little left to gain.
    "train_scenes": 8192,
    "image_size": 32,
    "encoder": {"patch_size": 8, "stem": "conv", "width": 64, "num_layers": 1},
    "decoder": {"num_layers": 1, "num_heads": 2, "mlp_dim": 256},
    "max_boxes": 6,  # a scene has up to four objects; tuned models write more
    "num_buckets": 33,  # one at each edge of a pixel
    "coco_classes": ("person",),
    "likelihood": {"rate": 2e-3, "batch": 32, "steps": 5120},
    "tuning": {"rate": 5e-4, "warmup": 50, "last": 0.0, "batch": 16, "steps": 3072},
    "num_samples": 8,
    "held_out_start": 0,
    "false_positive_penalty": 0.0,  # the boxes of a sequence are limited
}
PAPER = {  # without its pretraining on Objects365
    **TINY,
    "image_size": 1280,
    "encoder": {"patch_size": 16, "width": 768, "num_layers": 12, "num_heads": 12},
    "decoder": {"num_layers": 6, "num_heads": 12},
    "max_boxes": 100,
    "num_buckets": 1000,
    "coco_classes": None,
    "likelihood": {"rate": 1e-4, "batch": 256, "steps": 10_000},
    "tuning": {"rate": 1e-6, "warmup": 1000, "last": 1.0, "batch": 256, "steps": 10**5},
    "num_samples": 2,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="scenes", help="scenes, or coco:DIR")
    parser.add_argument("--preset", choices=("tiny", "paper"), default="tiny")
    parser.add_argument(
        "--model", choices=("sequence", *detectors.PRESETS), default="sequence"
    )
    parser.add_argument("--reward", choices=("recall", "map"), default="recall")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mle-checkpoint", help="a mle.keras; skips the first stage")
    parser.add_argument("--output", default="outputs/object_detection")
    args = parser.parse_args()
    (output := pathlib.Path(args.output)).mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(args.seed)
    settings = settings_of(args)
    clock, task = shared.Clock(), Task(args, types.SimpleNamespace(**settings))
    clock.stop("data")
    shared.heading("1. Maximum likelihood: which boxes are likely?")
    if args.mle_checkpoint:
        model, curves = load_checkpoint(args.mle_checkpoint, task), {}
    else:
        model, curves = fit_likelihood(task)
        shared.save_model(model, output / "mle.keras")
    clock.stop("likelihood")
    before, boxes_before = measure(model, task, ("class",))
    clock.stop("measuring")
    shared.heading(f"2. Reward tuning: which boxes do we want? {task.reward.name}")
    curves.update(tune(model, task))
    shared.save_model(model, output / "tuned.keras")
    clock.stop("tuning")
    after, boxes_after = measure(model, task, task.scores)
    clock.stop("measuring")
    shared.heading("3. Greedy boxes in held-out images")
    shared.print_table({"before": before, "after": after})
    panels = {
        "maximum likelihood": (curves, ("loss", "val_loss")),
        "tuning: samples": (curves, ("reward", "confidence_loss")),
        "tuning: greedy, held out": (curves, ("val_ar_100", "val_map")),
    }
    shared.save_curves(output / "curves.png", panels)
    save_gallery(output / "boxes.png", task, boxes_before, boxes_after)
    shared.save_results(
        output,
        "ar_100" if args.reward == "recall" else "map",
        before,
        after,
        clock,
        settings={**vars(args), **settings},
        curves=curves,
    )


def settings_of(args):
    if args.preset == "paper":
        if args.model != "sequence":
            raise SystemExit(
                "Expected --preset paper with --model sequence, which was published. "
                f"Received: --model {args.model}"
            )
        return PAPER
    return {**TINY, **detectors.PRESETS.get(args.model, {})}


def load_checkpoint(path, task):
    """The model of an earlier run, if it was trained for this task."""
    model = keras.models.load_model(path, compile=False)
    names = ("num_classes", "vocabulary_size", "max_length")
    shape = getattr(model, "image_shape", None) or model.input_shape[1:]
    if [getattr(model, name, None) for name in names] + [shape[0]] != task.sizes():
        raise SystemExit(
            "Expected --mle-checkpoint of the same --model, --data and --preset. "
            f"Received: {path}, for other boxes or images"
        )
    return model


class Task:
    """What is detected, in which images, and what it earns."""

    def __init__(self, args, preset):
        self.source, self.preset, self.seed = args.data, preset, args.seed
        self.model, self.detects = args.model, args.model != "sequence"
        if self.source == "scenes":
            start = preset.held_out_start
            data = self.scenes("test", HELD_OUT_SCENES, start=start)
        elif self.source.startswith("coco:"):
            data = self.coco("eval", check_images=True)
        else:
            raise SystemExit(
                f"Expected --data scenes or --data coco:DIR. Received: {self.source}"
            )
        self.class_names = getattr(data, "class_names", tuple("0123456789"))
        # The first images say when to stop, the others are for the table.
        watched = min(WATCHED_BATCHES, len(data) // 2)
        if not watched:
            raise SystemExit(
                f"Expected more than {BATCH} held-out images. "
                f"Received: no more in {self.source}"
            )
        self.watched = shared.collect(data[i] for i in range(watched))
        self.test, self.test_batches = data, range(watched, len(data))
        penalty = {"false_positive_penalty": preset.false_positive_penalty}
        if args.reward == "recall":
            # Average recall is over the same thresholds.
            self.reward = RecallReward(iou_thresholds=COCO_THRESHOLDS, **penalty)
            self.scores = ("class",)
        else:
            counts = "coco" if len(self.class_names) == 80 else None
            self.reward = MeanAveragePrecisionReward(class_counts=counts, **penalty)
            # The confidence rates a box of this class, and not how sure the class is.
            self.scores = "class", "confidence", "product"

    def sizes(self):
        """What a model of the task has: classes, or words and length; image size."""
        size, codec = self.preset.image_size, self.codec()
        if self.detects:
            return [len(self.class_names), None, None, size]
        return [None, codec.vocabulary_size, codec.max_length, size]

    def training(self, stage, transform=None):
        """Batches for a stage, and for how many epochs, each a pass over the images."""
        schedule = getattr(self.preset, stage)
        arguments = {"batch_size": schedule["batch"], "transform": transform}
        if self.source == "scenes":
            count = self.preset.train_scenes
            data = self.scenes("train", count, start=self.seed * count, **arguments)
        else:
            arguments |= {"keep_crowds": False, "keep_empty": False, "shuffle": True}
            data = self.coco("train", **arguments)
        return data, -(-schedule["steps"] // len(data))

    def scenes(self, split, count, **arguments):
        arguments = {"batch_size": BATCH, **arguments}
        return Scenes(split, count, size=self.preset.image_size, **arguments)

    def coco(self, split, **arguments):
        return CocoBoxes(
            **coco_files(self.source.removeprefix("coco:"), split, "boxes"),
            image_size=(self.preset.image_size, self.preset.image_size),
            categories=self.preset.coco_classes,
            seed=self.seed,
            **{"batch_size": BATCH, **arguments},
        )

    def codec(self, score=None):
        return BoxCodec(
            num_classes=len(self.class_names),
            image_size=self.preset.image_size,
            max_boxes=self.preset.max_boxes,
            num_buckets=self.preset.num_buckets,
            score=score,
            end_id=None,  # all boxes are written; superfluous ones are "nothing"
        )

    def tuner(self, model, score):
        """The model as a distribution over boxes, and what they earn."""
        if self.detects:
            return detectors.tuner(model, self)
        return RewardTuning(
            model,
            reward=self.reward,
            policy=AutoregressivePolicy(codec=self.codec(score)),
            terms=[ConfidenceLoss()] if "confidence" in self.scores else [],
            num_samples=self.preset.num_samples,
            seed=self.seed,
        )


# 1. Maximum likelihood


def fit_likelihood(task):
    """A model fitted to the tokens of the ground truth, and its losses.

    Trains until the loss of held-out images stops improving.
    """
    if task.detects:
        return detectors.fit_likelihood(task)
    preset, codec = task.preset, task.codec()
    generator = np.random.default_rng(task.seed)
    in_new_order = functools.partial(codec.preprocess, seed=generator)
    data, epochs = task.training("likelihood", in_new_order)
    rate = preset.likelihood["rate"]
    rate = keras.optimizers.schedules.CosineDecay(rate, len(data) * epochs)
    stop = keras.callbacks.EarlyStopping(patience=5, restore_best_weights=True)
    size = preset.image_size
    encoder = VisionTransformer((size, size, 3), **preset.encoder)
    model = VisionEncoderDecoder(
        encoder, codec.vocabulary_size, codec.max_length, **preset.decoder
    )
    model.compile(
        keras.optimizers.Adam(rate, global_clipnorm=1.0),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    history = model.fit(
        data,
        validation_data=codec.preprocess(*task.watched, seed=0),
        epochs=epochs,
        callbacks=[stop],
    )
    return model, {name: history.history[name] for name in ("loss", "val_loss")}


# 2. Reward tuning


def tune(model, task):
    """Maximum likelihood of the model's own boxes, weighted by what they earn."""
    rate, warmup, last = (task.preset.tuning[k] for k in ("rate", "warmup", "last"))
    data, epochs = task.training("tuning")
    rate = shared.learning_rate(len(data) * epochs, rate, warmup, last)
    tuner = task.tuner(model, task.scores[-1])
    tuner.compile(optimizer=keras.optimizers.Adam(rate, global_clipnorm=1.0))
    history = tuner.fit(
        data,
        epochs=epochs,
        callbacks=[OfficialMetrics(CocoDetection(), task.watched)],
    )
    names = ("reward", "val_ar_100", "val_map", "confidence_loss")
    return {name: history.history[name] for name in names if name in history.history}


# 3. Results


def measure(model, task, scores):
    """The table's column for a model, and its boxes in the first images."""
    if task.detects:
        return detectors.measure(model, task)
    tuners = {score: task.tuner(model, score) for score in scores}
    official = {score: CocoDetection() for score in ("constant", *scores)}
    shown, sums = None, np.zeros(4)
    for i in task.test_batches:
        images, targets = task.test[i]
        for score, tuner in tuners.items():
            boxes = tuner.predict_on_batch(images)
            boxes = keras.tree.map_structure(ops.convert_to_numpy, boxes)
            official[score].update_state(targets, boxes)
        boxes["scores"] = np.ones_like(boxes["scores"])
        official["constant"].update_state(targets, boxes)
        rewards = ops.convert_to_numpy(task.reward(targets, boxes))
        counts = [(each["labels"] >= 0).sum() for each in (boxes, targets)]
        sums += np.array([rewards.sum(), *counts, len(images)])
        shown = shown or boxes
    results = {score: evaluator.result() for score, evaluator in official.items()}
    maps = {f"map, {score} score": result["map"] for score, result in results.items()}
    means = ("greedy reward", "boxes an image", "objects an image")
    column = {
        "ar_100": results["constant"]["ar_100"],
        "map": results[scores[-1]]["map"],
        **maps,
        "sampled reward": reward_distribution(
            tuners[scores[0]], task.watched, task.preset.num_samples, batch_size=BATCH
        ).mean(),
        **dict(zip(means, sums / sums[-1], strict=False)),
    }
    return {name: float(value) for name, value in column.items()}, shown


def save_gallery(path, task, before, after):
    """Ground truth and predictions in the first images."""
    images, targets = task.test[task.test_batches[0]]  # those of `measure`
    columns = {"ground truth": targets, "before": before, "after": after}
    _, axes = matplotlib.pyplot.subplots(3, 8, figsize=(16, 6))
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
    shared.save_figure(path)


if __name__ == "__main__":
    matplotlib.use("Agg")
    main()
