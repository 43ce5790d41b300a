"""Models that draw 2 x 2 pixels, every output of theirs, and the exact gradient."""

import itertools

import keras
import numpy as np
from gradients import differentiate
from keras import ops
from tiny import to_numpy, weights_of

from keras_reward import BernoulliPolicy, FunctionReward

INPUTS = np.array([[1.0, -0.5], [0.3, 0.8], [-0.7, 0.2]])
KERNEL = np.random.default_rng(0).normal(0, 0.7, (2, 12))
WEIGHTS = np.array([1.0, 2.0, 0.5])  # of the inputs
# Targets of 2 x 2 pixels. The third has no reward: its labels are not whole numbers.
MASKS = np.array([[[0, 1], [1, 1]], [[1, 0], [255, 0]], [[0.5, 0], [0, 1]]])
MAPS = np.array([[[0, 2], [1, 2]], [[1, 1], [255, 0]], [[0.5, 0], [0, 1]]])


def linear_model(*shape, dtype="float32"):
    units = int(np.prod(shape))
    model = keras.Sequential(
        [
            keras.Input((2,)),
            keras.layers.Dense(units, use_bias=False, dtype=dtype),
            keras.layers.Reshape(shape, dtype=dtype),
        ]
    )
    model.set_weights([KERNEL[:, :units]])
    return model


@FunctionReward
def match_of_rows(y_true, y_pred):
    equal = ops.cast(ops.cast(y_true, "int32") == y_pred, "float32")
    return ops.mean(equal, axis=(1, 2))


def neighbours_agree(y_true, y_pred):
    """Of each pixel, times a target: whether the next one in its row is the same."""
    same = ops.cast(y_pred[:, :, :1] == y_pred[:, :, 1:], "float32")
    weight = ops.where(y_true < 1.0, 1.0, -2.0)
    own = ops.cast(y_pred == 1, "float32") * weight
    return ops.concatenate([2.0 * same, -1.0 * same], axis=2) + own


def given(policy):
    """A class of policies that takes its samples from the data."""

    class Given(policy):
        independent_parts = True  # although it draws in a way of its own
        choice_probabilities = policy.choice_probabilities

        def encode(self, x, training=False):
            self.samples = x["samples"]
            return super().encode(x["features"], training)

        def sample(self, context, num_samples, seed=None, noise=None):
            return self.samples

    return Given


def softmax(logits):
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def probabilities(kernel, x, policy, temperature):
    """Of each choice at each of four positions: `(4, choices)`."""
    logits = (x @ kernel) / temperature
    if policy is BernoulliPolicy:
        logits = np.stack([0.0 * logits, logits], -1)
    return softmax(logits.reshape(4, -1))


def every_output(policy, targets, temperature, num_samples=1):
    """A batch of all draws: inputs, samples, targets, and weights that sum to 3."""
    choices = 2 if policy is BernoulliPolicy else 3
    kernel = KERNEL[:, : 4 if choices == 2 else 12]
    outputs = np.array(list(itertools.product(range(choices), repeat=4)))
    draws = list(itertools.product(range(len(outputs)), repeat=num_samples))
    drawn = outputs[np.array(draws)]  # (draws, samples, 4)
    rows = []
    for x, y, weight in zip(INPUTS, targets, WEIGHTS, strict=True):
        p = probabilities(kernel, x, policy, temperature)
        chance = p[np.arange(4), drawn].prod((-2, -1))
        for output, share in zip(drawn, chance, strict=True):
            rows.append((x, output.reshape(num_samples, 2, 2), y, weight * share))
    x, samples, y, weights = map(np.array, zip(*rows, strict=True))
    x = {"features": x.astype("float32"), "samples": samples.astype("int32")}
    return x, y.astype("float32"), (weights * len(rows) / 3).astype("float32")


def step_gradient(tuned, x, y, weights):
    """What a step adds to the kernel: the gradient of the expected reward."""
    tuned.compile(keras.optimizers.SGD(1.0))
    before = weights_of(tuned.model)[0].astype("float64")
    tuned.train_on_batch(x, y, sample_weight=weights)
    return weights_of(tuned.model)[0] - before


def exact_gradient(policy, targets, reward, temperature):
    """Differences of the expected reward, which sums over all outputs."""
    choices = 2 if policy is BernoulliPolicy else 3
    outputs = np.array(list(itertools.product(range(choices), repeat=4)))
    maps = outputs.reshape(-1, 2, 2).astype("int32")
    earned = [
        to_numpy(reward(np.repeat(y[None], len(maps), 0), maps)) for y in targets[:2]
    ]

    def expected(weights):
        total = 0.0
        for x, rewards, weight in zip(INPUTS[:2], earned, WEIGHTS[:2], strict=True):
            p = probabilities(weights[0], x, policy, temperature)
            chance = p[np.arange(4), outputs].prod(-1)
            total += weight * (chance * rewards).sum()
        return total / 3

    kernel = KERNEL[:, : 4 if choices == 2 else 12].copy()
    return differentiate(expected, [kernel]).reshape(kernel.shape)
