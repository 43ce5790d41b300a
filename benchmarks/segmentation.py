"""Credit by parts beside what else a segmenter may be trained with, in the same time.

    python benchmarks/segmentation.py --classes binary all
    python benchmarks/segmentation.py --reward boundary
    python benchmarks/segmentation.py --classes binary --search

Every seed's model of `examples/semantic_segmentation.py` is trained by maximum
likelihood until its held-out loss stops improving. From there it is trained by each of
these for as many steps, with Adam and a learning rate that falls to 0:

- more likelihood: the first stage goes on,
- by outputs: reward tuning with one number for a mask,
- by parts: reward tuning with what each pixel was worth,
- soft loss: 1 minus the IoU, or Dice, of probabilities.

For outlines (`--reward boundary`) there is no soft loss: they are measured beside those
for IoU.

Learning rates are those in `RATES`, which `--search` compares on the validation
pictures of the first seed. The table is of greedy masks for test pictures, as mean and
each seed. "best offsets" is the IoU or Dice with thresholds that were chosen on
validation pictures, "ms" the processor time of a step. Finished runs are kept in the
folder `--output` and not repeated.
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

METHODS = ("more likelihood", "by outputs", "by parts", "soft loss")
RATES = {  # tried by `--search`, and the best of them by classes
    "more likelihood": ((3e-4, 1e-3), {"binary": 1e-3, "all": 1e-3}),
    "by outputs": ((3e-4, 1e-3), {"binary": 1e-3, "all": 3e-4}),
    "by parts": ((1e-3, 2e-3), {"binary": 2e-3, "all": 1e-3}),
    "soft loss": ((1e-3, 2e-3), {"binary": 2e-3, "all": 1e-3}),
}
DRAWING = {  # one number for a mask needs samples that differ
    "by outputs": {"num_samples": 8, "temperature": 0.5},
    "by parts": {},
}
WARM_UP = 0.05  # of the steps


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--classes", nargs="+", default=["binary"])
    parser.add_argument("--reward", choices=tuple(SOFT), default="iou")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="*", default=METHODS)
    parser.add_argument("--epochs", type=int, default=3, help="of each method")
    parser.add_argument("--search", action="store_true", help="compares rates")
    parser.add_argument("--output", default="outputs/segmentation")
    args = parser.parse_args()
    args.output = pathlib.Path(args.output)
    args.output.mkdir(parents=True, exist_ok=True)
    if args.search:
        return search(args)
    for classes in args.classes:
        columns = {}
        for seed in args.seeds:
            for method, column in run(args, classes, seed).items():
                columns.setdefault(method, []).append(column)
        print_table(
            f"{classes}, tuned for {args.reward}, {args.epochs} epochs", columns
        )


def run(args, classes, seed):
    """The columns of one seed, by method."""
    task, path = prepared(args, classes, seed, args.reward)
    columns = {}
    if args.reward == "boundary":  # which has no soft loss: beside those for IoU
        columns = run(
            argparse.Namespace(**{**vars(args), "reward": "iou"}), classes, seed
        )
    else:
        name = args.output / f"{path.stem}_{args.reward}_before.json"
        columns["before"] = kept(name, lambda: measure(path, task))
    for method in args.methods:
        if args.reward == "boundary" and method not in DRAWING:
            continue
        rate = RATES[method][1][classes]
        name = f"{path.stem}_{args.reward}_{method.replace(' ', '_')}.json"
        columns[f"{method}, {args.reward}"] = kept(
            args.output / name,
            lambda m=method, r=rate: train(path, task, m, r, args.epochs),
        )
    return columns


def prepared(args, classes, seed, reward):
    """The task of a seed, and the path of its model after the first stage."""
    keras.utils.set_random_seed(seed)
    asked = argparse.Namespace(
        data="scenes", classes=classes, reward=reward, credit="auto", seed=seed
    )
    task = example.Task(asked, types.SimpleNamespace(**example.TINY))
    path = args.output / f"{classes}_{seed}.keras"
    if not path.exists():
        model = example.build_model("unet", task)
        start = time.process_time()
        example.fit_likelihood(model, task)
        print(f"{path.stem}: likelihood, {time.process_time() - start:.0f} s")
        model.save(path)
    return task, path


def kept(path, function):
    """What a function returned, now or in an earlier run."""
    if not path.exists():
        path.write_text(json.dumps(function()))
    return json.loads(path.read_text())


def train(path, task, method, rate, epochs, part="test"):
    """Trains a model for some epochs, and measures it."""
    keras.utils.set_random_seed(task.seed)
    model = keras.models.load_model(path, compile=False)
    data, clock = task.training(), ProcessorTime()
    trainer = compiled(model, task, method, rate, epochs * len(data))
    trainer.fit(data, epochs=epochs, verbose=0, callbacks=[clock])
    column = {**measure(model, task, part), "ms": clock.milliseconds / len(data)}
    print(f"{path.stem}: {method}, rate {rate:g}", rounded(column), flush=True)
    return column


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
    """The greedy rewards of a part's pictures, and with the best offsets."""
    if isinstance(model, pathlib.Path):
        model = keras.models.load_model(model, compile=False)
    parts = {name: getattr(task, name) for name in {"validation", part}}
    logits = {
        name: example.two_channels(model.predict(images, verbose=0))
        for name, (images, _) in parts.items()
    }
    labels = parts[part][1]
    maps = example.greedy_maps(logits[part])
    column = {n: example.mean(r, labels, maps) for n, r in task.rewards.items()}
    if part == "test" and task.reward_name != "boundary":
        validation = logits["validation"], parts["validation"][1]
        offsets = example.best_offsets(*validation, task.reward)
        maps = example.greedy_maps(logits[part] + offsets)
        column["best offsets"] = example.mean(
            task.rewards[task.reward_name], labels, maps
        )
    return column


def search(args):
    """Compares learning rates on the validation pictures of the first seed."""
    for classes in args.classes:
        task, path = prepared(args, classes, args.seeds[0], args.reward)
        print("before", rounded(measure(path, task, "validation")))
        for method in args.methods:
            for rate in RATES[method][0]:
                train(path, task, method, rate, args.epochs, "validation")


def rounded(column):
    return {name: round(value, 4) for name, value in column.items()}


def print_table(title, columns):
    """A Markdown table: a row for each method, mean and every seed."""
    names = ["iou", "dice", "boundary", "best offsets", "ms"]
    print(f"\n{title}\n\n| method | {' | '.join(names)} |")
    print("| --- |" + " --- |" * len(names))
    for method, runs in columns.items():
        cells = []
        for name in names:
            values = np.array([each.get(name, np.nan) for each in runs])
            each = ", ".join(f"{value:.3f}" for value in values)
            plain = f"{values.mean():.0f}" if np.isfinite(values).all() else ""
            cells.append(plain if name == "ms" else f"{values.mean():.3f} ({each})")
        print(f"| {method} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
