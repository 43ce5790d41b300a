"""Credit by parts beside credit by outputs: variance, memory and time of a step.

- variance: of the gradient, with `MeanIoUReward`, for a small network that finds discs
  in noise well. By parts with one sample, against by outputs with eight samples and
  leave-one-out.
- tokens: the same of the detector that `examples/object_detection.py` trains by maximum
  likelihood, whose boxes are sequences of tokens: each token credited with its box and
  later ones, against by outputs, 8 samples each. Needs `--detector FOLDER/mle.keras`.
- memory: temporaries and results of a compiled step on 4 maps of 512 x 512 pixels with
  21 classes, one sample, as JAX's compiler plans them for this machine's device, in
  multiples of the logits' size. The model is one 1 x 1 convolution; what a step of
  maximum likelihood takes with it (logits, their gradient, copies) stands beside.
- time: a step of `fit` by parts against one by outputs with the same number of samples,
  on 64 x 64 maps of 12 classes, in turns in one process. With a small U-Net, and with
  one 1 x 1 convolution, which is the worst case: nothing but the step itself.

    KERAS_BACKEND=jax python benchmarks/credit.py
    KERAS_BACKEND=torch python benchmarks/credit.py --only time
    python benchmarks/credit.py --only tokens --detector outputs/boxes/mle.keras
"""

import argparse
import itertools
import pathlib
import statistics
import sys

import keras
import numpy as np
from timing import steps_of_fit

from keras_reward import (
    AutoregressivePolicy,
    BoundaryReward,
    DiceReward,
    MeanIoUReward,
    RewardTuning,
)

SIZES = (16, 96, 288)
TRAINING_SIZE, TRAINING_STEPS = 96, 200
IMAGES = 4  # of which each gradient is
# Gradients become differences of weights. Large steps, so that these are not rounded.
LARGE = 1e4
MEMORY = {"size": 512, "classes": 21, "batch": 4}
TIME = {"size": 64, "classes": 12, "batch": 8}
REWARDS = {
    "MeanIoUReward": MeanIoUReward,
    "DiceReward": DiceReward,
    "BoundaryReward(1)": lambda classes: BoundaryReward(1, masks=True),
    "BoundaryReward(4)": lambda classes: BoundaryReward(4, masks=True),
}


def convolution(filters, size=3, **settings):
    return keras.layers.Conv2D(filters, size, padding="same", **settings)


# Variance


def discs(count, size, seed):
    """Noisy images of discs, `(count, size, size, 1)`, and masks of 0 and 1."""
    generator = np.random.default_rng(seed)
    masks = np.zeros((count, size, size), "int32")
    places = np.arange(size)
    for mask in masks:
        for _ in range(max(1, size**2 // 600)):
            y, x = generator.random(2) * size
            distance = np.hypot(places[:, None] - y, places - x)
            mask[distance < generator.uniform(3, 7)] = 1
    noise = generator.normal(0.0, 0.5, masks.shape)
    return (masks + noise).astype("float32")[..., None], masks[..., None]


def disc_finder():
    """A network of logits for images of any size, after maximum likelihood."""
    model = keras.Sequential(
        [
            keras.Input((None, None, 1)),
            convolution(8, 5, activation="relu"),
            convolution(8, 5, activation="relu"),
            convolution(1),
        ]
    )
    images, masks = discs(8 * TRAINING_STEPS, TRAINING_SIZE, seed=0)
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss)
    model.fit(images, masks, batch_size=8, verbose=0)
    return model


def gradients(tuned, images, targets, count):
    """Gradients of steps that differ in their samples alone: `(count, weights)`."""
    tuned.compile(keras.optimizers.SGD(LARGE))
    model = tuned.model
    start = model.get_weights()
    found = []
    for _ in range(count):
        tuned.train_on_batch(images, targets)
        steps = [b - a for a, b in zip(start, model.get_weights(), strict=True)]
        found.append(np.concatenate([step.ravel() for step in steps]) / LARGE)
        model.set_weights(start)
    return np.array(found, "float64")


def spread(found):
    """The trace of the covariance of gradients, and the mean cosine of two of them."""
    lengths = np.linalg.norm(found, axis=1)
    products = (found[:-1] * found[1:]).sum(axis=1)
    cosines = products / (lengths[:-1] * lengths[1:])
    return found.var(axis=0, ddof=1).sum(), cosines.mean()


def compare_variance(count):
    print("variance of the gradient, by outputs (8 samples) over by parts (1 sample)")
    print(f"{'pixels':>10} {'IoU':>6} {'ratio':>8}   cosine of two estimates")
    model = disc_finder()
    for size in SIZES:
        images, masks = discs(IMAGES, size, seed=1)
        drawn = (model.predict(images, verbose=0) > 0).astype("int32")
        iou = float(np.mean(MeanIoUReward(1)(masks, drawn)))
        tuners = (
            RewardTuning(model, MeanIoUReward(1), "bernoulli", n, credit=credit, seed=i)
            for i, (credit, n) in enumerate([("parts", 1), ("output", 8)])
        )
        parts, outputs = (
            spread(gradients(tuned, images, masks, count)) for tuned in tuners
        )
        print(
            f"{size:>4} x {size:>3} {iou:6.2f} {outputs[0] / parts[0]:8.0f}"
            f"   {outputs[1]:.2f} by outputs, {parts[1]:.2f} by parts",
            flush=True,
        )


def compare_tokens(path, count):
    sys.path.append(str(pathlib.Path(__file__).parent.parent / "examples"))
    from object_detection import TINY, Task

    print("variance of the gradient, by outputs over by tokens (8 samples each)")
    print("  reward    ratio   cosine of two estimates")
    model = keras.models.load_model(path, compile=False)
    task = Task(
        argparse.Namespace(data="scenes", seed=0, reward="recall", model="sequence"),
        argparse.Namespace(**TINY),
    )
    images, targets = task.training("tuning")[0][0]
    found = {}
    for credit in ("parts", "output"):
        tuned = RewardTuning(
            model,
            task.reward,
            AutoregressivePolicy(codec=task.codec()),
            num_samples=TINY["num_samples"],
            credit=credit,
            seed=0,
        )
        found[credit] = spread(gradients(tuned, images, targets, count))
    earned = keras.ops.mean(tuned.reward(targets, tuned.predict_on_batch(images)))
    (parts, parts_cosine), (outputs, outputs_cosine) = found.values()
    print(
        f"{float(earned):8.2f} {outputs / parts:8.2f}   "
        f"{outputs_cosine:.2f} by outputs, {parts_cosine:.2f} by tokens",
        flush=True,
    )


# Memory and time


def one_convolution(size, classes):
    return keras.Sequential([keras.Input((size, size, 3)), convolution(classes, 1)])


def unet(size, classes, width=16):
    """Three levels, two convolutions each on the way down and one on the way up."""
    x = inputs = keras.Input((size, size, 3))
    levels = []
    for factor in (1, 2, 4):
        if levels:
            x = keras.layers.MaxPooling2D()(x)
        for _ in range(2):
            x = convolution(factor * width, activation="relu")(x)
        levels.append(x)
    for level in reversed(levels[:-1]):
        x = keras.layers.UpSampling2D()(x)
        x = keras.layers.Concatenate()([level, x])
        x = convolution(level.shape[-1], activation="relu")(x)
    return keras.Model(inputs, convolution(classes, 1)(x))


MODELS = {"U-Net": unet, "1 x 1 convolution": one_convolution}


def label_maps(count, size, classes):
    """Images, and maps of squares of some classes."""
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, classes, (count, size // 8, size // 8))
    images = generator.random((count, size, size, 3)).astype("float32")
    return images, coarse.repeat(8, axis=1).repeat(8, axis=2).astype("int32")


def measure_memory():
    sys.path.append(str(pathlib.Path(__file__).parent.parent / "tests" / "helpers"))
    from jax_steps import planned

    size, classes, batch = MEMORY.values()
    logits = 4 * batch * size * size * classes
    data = tuple(map(keras.ops.convert_to_tensor, label_maps(batch, size, classes)))
    model = one_convolution(size, classes)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss)
    print(f"memory of a step, in multiples of the logits ({logits / 2**20:.0f} MiB)")
    print(f"maximum likelihood: {planned(model, data) / logits:.2f}")
    print(f"{'reward':>18} {'by parts':>9} {'by outputs':>11}")
    for name, reward in REWARDS.items():
        multiples = []
        for credit, baseline in (("parts", None), ("output", "moving_average")):
            tuned = RewardTuning(
                one_convolution(size, classes),
                reward(classes),
                num_samples=1,
                baseline=baseline,
                credit=credit,
                seed=0,
            )
            tuned.compile(keras.optimizers.SGD(0.1))
            multiples.append(planned(tuned, data) / logits)
        print(f"{name:>18} {multiples[0]:9.2f} {multiples[1]:11.2f}", flush=True)


def make_steps(model, reward, credit, num_samples):
    """A function that runs `n` steps of `fit` and returns the seconds of each."""
    size, classes, batch = TIME.values()
    tuned = RewardTuning(
        model(size, classes),
        reward(classes),
        num_samples=num_samples,
        credit=credit,
        seed=0,
    )
    tuned.compile(keras.optimizers.Adam(1e-5))
    return steps_of_fit(tuned, lambda count: label_maps(count, size, classes), batch)


def compare_time(num_samples, rounds, steps):
    title = f"{num_samples} samples, {keras.config.backend()}"
    print(f"time of a step by parts over one by outputs ({title})")
    print(f"{'model':>18} {'reward':>18} {'ratio':>6} {'by outputs':>11}")
    for model, reward in itertools.product(MODELS, REWARDS):
        runs = [
            make_steps(MODELS[model], REWARDS[reward], credit, num_samples)
            for credit in ("parts", "output")
        ]
        for run in runs:
            run(2)  # compiles
        pairs = [[statistics.median(run(steps)) for run in runs] for _ in range(rounds)]
        ratio = statistics.median(parts / outputs for parts, outputs in pairs)
        plain = 1e3 * statistics.median(outputs for _, outputs in pairs)
        print(f"{model:>18} {reward:>18} {ratio:6.2f} {plain:8.1f} ms", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parts = ["variance", "memory", "time"]
    choices = [*parts, "tokens"]
    parser.add_argument("--only", nargs="+", default=parts, choices=choices)
    parser.add_argument("--detector", help="an mle.keras, for the tokens")
    parser.add_argument("--gradients", type=int, default=64, help="for the variance")
    parser.add_argument("--samples", type=int, default=2, help="for the time")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5)
    args = parser.parse_args()
    if "tokens" in args.only and not args.detector:
        parser.error("--only tokens needs --detector FILE, an mle.keras")
    keras.utils.set_random_seed(0)
    if "variance" in args.only:
        compare_variance(args.gradients)
    if "tokens" in args.only:
        compare_tokens(args.detector, args.gradients)
    if "memory" in args.only and keras.config.backend() == "jax":
        measure_memory()
    if "time" in args.only:
        compare_time(args.samples, args.rounds, args.steps)


if __name__ == "__main__":
    main()
