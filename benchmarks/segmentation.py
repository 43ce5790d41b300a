"""Credit by parts beside what else a segmenter may be trained with.

    python benchmarks/segmentation.py
    python benchmarks/segmentation.py --reward dice

Every seed's model of `examples/semantic_segmentation.py` is trained by maximum
likelihood until its held-out loss stops improving. From there it is trained by each of
these, with Adam and a learning rate that falls to 0:

- more likelihood: the first stage goes on,
- soft loss: 1 minus the IoU, or Dice, of probabilities,
- by outputs: reward tuning with one number for a mask, and eight samples,
- by parts: reward tuning with what each pixel was worth, and one sample.

The first two have more epochs, so that they do not have less time. For outlines
(`--reward boundary`) there is no soft loss: those tuned for the IoU stand beside them.

First, a model of another seed than those of the table compares learning rates, for each
method by the reward of validation pictures. The table is of greedy masks for test
pictures, which decide nothing, as mean and each seed. "best" is the same measure with
the thresholds that are best for it on validation pictures, "ms" the processor time of a
step. Finished runs are kept in the folder `--output` and not repeated.
"""

import argparse
import json
import pathlib
import sys
import time
import types

import keras
import numpy as np
from keras import ops

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "examples"))
import semantic_segmentation as example

EPOCHS = {"more likelihood": 4, "soft loss": 4, "by outputs": 3, "by parts": 3}
RATES = (5e-4, 1e-3, 2e-3)
SEARCH_SEED = 0
DRAWING = {  # one number for a mask needs samples that differ
    "by outputs": {"num_samples": 8, "temperature": 0.5},
    "by parts": {},
}
WARM_UP = 0.05  # of the steps


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--classes", choices=("binary", "all"), default="binary")
    parser.add_argument("--reward", choices=tuple(SOFT), default="iou")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--methods", nargs="*", choices=tuple(EPOCHS), default=EPOCHS)
    parser.add_argument("--output", default="outputs/segmentation")
    args = parser.parse_args()
    args.output = pathlib.Path(args.output)
    args.output.mkdir(parents=True, exist_ok=True)
    if SEARCH_SEED in args.seeds:
        raise SystemExit(
            f"Seed {SEARCH_SEED} compares learning rates, and can have no row in the "
            f"table. Received: --seeds {args.seeds}"
        )
    columns = {}
    for seed in args.seeds:
        for method, column in run(args, args.reward, seed).items():
            columns.setdefault(method, []).append(column)
    print_table(f"{args.classes}, tuned for {args.reward}", columns)


def run(args, reward, seed):
    """The columns of one seed, by method."""
    columns, methods = {}, args.methods
    if reward == "boundary":  # which has no soft loss: beside those for IoU
        columns = run(args, "iou", seed)
        methods = [method for method in methods if method in DRAWING]
    else:
        columns["before"] = kept(args, reward, seed, "before", measure_first)
    for method in methods:
        rate = best_rate(args, reward, method)
        columns[f"{method}, {reward}"] = kept(args, reward, seed, method, train, rate)
    return columns


def best_rate(args, reward, method):
    """Of `RATES`, the one after which validation pictures earn most."""
    earned = [
        kept(args, reward, SEARCH_SEED, method, train, rate, part="validation")
        for rate in RATES
    ]
    return RATES[int(np.argmax([column["reward"] for column in earned]))]


def kept(args, reward, seed, method, function, *rate, part="test"):
    """The column of a run, now or from an earlier one with the same settings."""
    name = "_".join([args.classes, reward, str(seed), method, *map(str, rate)])
    path = args.output / f"{name.replace(' ', '_')}.json"
    settings = json.loads(
        json.dumps(
            [
                example.TINY[args.classes],
                EPOCHS,
                DRAWING,
                WARM_UP,
                part,
                example.TEST_START,
            ]
        )
    )
    if path.exists():
        held = json.loads(path.read_text())
        if held["settings"] != settings:
            raise SystemExit(
                "Earlier runs can only be kept if their settings were the same. Choose "
                f"another --output. Received: {path}"
            )
        return held["column"]
    task, first = prepared(args, args.classes, seed, reward)
    column = function(first, task, method, *rate, part=part)
    keras.utils.clear_session()  # or the memory of all runs adds up
    print(name, rounded(column), flush=True)
    path.write_text(json.dumps({"settings": settings, "column": column}))
    return column


def measure_first(path, task, method, part):
    """The column of a model after the first stage alone."""
    return measure(keras.models.load_model(path, compile=False), task, part)


def prepared(args, classes, seed, reward):
    """The task of a seed, and the path of its model after the first stage."""
    keras.utils.set_random_seed(seed)
    asked = argparse.Namespace(
        data="scenes", classes=classes, reward=reward, credit="auto", seed=seed
    )
    task = example.Task(asked, types.SimpleNamespace(**example.TINY[classes]))
    path = args.output / f"{classes}_{seed}.keras"
    if not path.exists():
        model = example.build_model("unet", task)
        start = time.process_time()
        example.fit_likelihood(model, task)
        print(f"{path.stem}: likelihood, {time.process_time() - start:.0f} s")
        model.save(path)
    return task, path


def train(path, task, method, rate, part):
    """Trains a model from a file, and measures it."""
    keras.utils.set_random_seed(task.seed)
    model = keras.models.load_model(path, compile=False)
    data, clock, epochs = task.training(), ProcessorTime(), EPOCHS[method]
    trainer = compiled(model, task, method, rate, epochs * len(data))
    trainer.fit(data, epochs=epochs, verbose=0, callbacks=[clock])
    return {**measure(model, task, part), "ms": clock.milliseconds / len(data)}


class ProcessorTime(keras.callbacks.Callback):
    """Milliseconds of an epoch, without the first one, in which Keras compiles."""

    def on_epoch_end(self, epoch, logs=None):
        if epoch == 0:
            self.start = time.process_time()
        self.milliseconds = 1e3 * (time.process_time() - self.start) / max(epoch, 1)


def compiled(model, task, method, rate, steps):
    """What `fit` is called of."""
    rate = example.shared.learning_rate(steps, rate, int(WARM_UP * steps), last=0.0)
    optimizer = keras.optimizers.Adam(rate)
    if method == "more likelihood":
        model.compile(optimizer, example.negative_log_likelihood)
        return model
    if method == "soft loss":
        model.compile(optimizer, SOFT[task.reward_name])
        return model
    credit = {"by outputs": "output", "by parts": "parts"}[method]
    tuner = task.tuner(model, credit=credit, **DRAWING[method])
    tuner.compile(optimizer)
    return tuner


# Soft losses: what the rewards would be of probabilities, differentiable.


def soft_counts(y_true, logits):
    """Overlap, area and predicted pixels of classes from probabilities.

    Returns:
        Three times `(rows, classes)`; of a binary map, of the foreground alone.
    """
    labels = ops.cast(y_true[..., 0], "int32")
    counts = ops.cast(labels != example.VOID, "float32")[..., None]
    if logits.shape[-1] == 1:
        chances, truth = ops.sigmoid(logits), (labels == 1)[..., None]
    else:
        chances = ops.softmax(logits)
        truth = labels[..., None] == ops.arange(logits.shape[-1])
    chances, truth = chances * counts, ops.cast(truth, "float32") * counts
    return [ops.sum(part, (1, 2)) for part in (chances * truth, truth, chances)]


def mean_of_present(ratios, area):
    present = ops.cast(area > 0, "float32")
    return ops.sum(ratios * present, -1) / ops.maximum(ops.sum(present, -1), 1.0)


def soft_iou_loss(y_true, logits):
    overlap, area, predicted = soft_counts(y_true, logits)
    union = ops.maximum(area + predicted - overlap, 1e-6)
    return 1.0 - mean_of_present(overlap / union, area)


def soft_dice_loss(y_true, logits):
    overlap, area, predicted = soft_counts(y_true, logits)
    both = ops.maximum(area + predicted, 1e-6)
    return 1.0 - mean_of_present(2.0 * overlap / both, area)


SOFT = {"iou": soft_iou_loss, "dice": soft_dice_loss, "boundary": soft_iou_loss}


# Measuring


def measure(model, task, part="test"):
    """The greedy measures of a part's pictures, and each with its best offsets."""
    logits = logits_of(model, task, part)
    labels, maps = getattr(task, part)[1], example.greedy_maps(logits)
    rewards = {**task.rewards, "reward": task.reward}
    column = {n: example.mean(r, labels, maps) for n, r in rewards.items()}
    pooled = keras.metrics.MeanIoU(logits.shape[-1])  # of the pixels of all pictures
    pooled.update_state(labels[..., 0], maps)
    column["pooled iou"] = float(pooled.result())
    if part == "test":
        validation = logits_of(model, task, "validation"), task.validation[1]
        for name, reward in task.rewards.items():
            maps = example.greedy_maps(
                logits + example.best_offsets(*validation, reward)
            )
            column[f"{name}, best"] = example.mean(reward, labels, maps)
    return column


def logits_of(model, task, part):
    images = getattr(task, part)[0]
    return example.two_channels(model.predict(images, verbose=0))


def rounded(column):
    return {name: round(value, 4) for name, value in column.items()}


def print_table(title, columns):
    """A Markdown table: a row for each method, mean and every seed."""
    names = [name for name in columns["before"][0] if name != "reward"]
    print(f"\n{title}\n\n| method | {' | '.join(names)} | ms |")
    print("| --- |" + " --- |" * (len(names) + 1))
    for method, runs in columns.items():
        cells = []
        for name in names:
            values = np.array([run[name] for run in runs])
            each = ", ".join(f"{value:.3f}" for value in values)
            cells.append(f"{values.mean():.3f} ({each})")
        times = [run["ms"] for run in runs if "ms" in run]
        cells.append(f"{np.mean(times):.0f}" if times else "")
        print(f"| {method} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
