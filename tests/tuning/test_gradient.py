"""The gradient of a training step against the exact gradient by enumeration.

Tiny models with few possible outputs: the expected reward and its gradient follow
from summing over all of them, in float64 NumPy. The library's estimate is read off
real training steps: with SGD and learning rate 1 a step moves the weights by minus
the gradient.
"""

import itertools

import keras
import numpy as np
import pytest
from chance import largest_deviation
from keras import ops
from tiny import weights_of

from keras_reward import (
    Entropy,
    GaussianPolicy,
    RewardTuning,
    StandardizedBaseline,
)

pytestmark = [pytest.mark.chance, pytest.mark.slow]

SEED = 31337
STEPS = 60  # independent estimates of the gradient
COPIES = 200  # of each input in a batch
INPUTS = np.array([[1.0, -0.5], [0.3, 0.8]])
KERNEL = np.random.default_rng(0).normal(0, 0.7, (2, 6))


def linear_model(units, *shape):
    model = keras.Sequential(
        [
            keras.Input((2,)),
            keras.layers.Dense(units, use_bias=False),
            keras.layers.Reshape(shape),
        ]
    )
    model.set_weights([KERNEL[:, :units]])
    return model


def table_reward(y_true, y_pred):
    """Looks up the reward of the drawn outcomes in a table, one for each input."""
    classes = y_true.shape[-1]
    first, second = (ops.one_hot(y_pred[:, i], classes) for i in range(2))
    return ops.einsum("rij,ri,rj->r", y_true, first, second)


def estimates(tuned, targets, steps=STEPS, copies=COPIES):
    """Gradients of the expected reward, as `steps` training steps estimate them."""
    tuned.compile(keras.optimizers.SGD(1.0))
    x = np.repeat(INPUTS, copies, 0).astype("float32")
    y = np.repeat(targets, copies, 0).astype("float32")
    start = [np.array(v) for v in tuned.model.get_weights()]
    tuned.train_on_batch(x, y)  # the moving average is an average from here on
    result = []
    for _ in range(steps):
        tuned.model.set_weights(start)
        tuned.train_on_batch(x, y)
        moved = [a - b for a, b in zip(weights_of(tuned.model), start, strict=True)]
        result.append(np.concatenate([m.ravel() for m in moved]))
    return np.array(result, "float64")


def softmax(logits):
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def exact_categorical_gradient(tables, temperature=1.0):
    """Gradient of E[R] in the kernel: two positions with three classes each."""
    gradient = np.zeros((2, 6))
    for x, table in zip(INPUTS, tables, strict=True):
        p = softmax((x @ KERNEL).reshape(2, 3) / temperature)
        by_logit = np.zeros((2, 3))
        for i, j in itertools.product(range(3), repeat=2):
            indicator = np.stack([np.eye(3)[i], np.eye(3)[j]])
            by_logit += p[0, i] * p[1, j] * table[i, j] * (indicator - p)
        gradient += np.outer(x, by_logit.ravel()) / temperature / len(INPUTS)
    return gradient.ravel()


def assert_mean_is(samples, exact):
    """The mean lies within standard errors, which are small beside the gradient."""
    error = samples.std(0, ddof=1) / np.sqrt(len(samples))
    deviation = (samples.mean(0) - exact) / error
    bound = largest_deviation(exact.size, freedom=len(samples) - 1)
    assert np.abs(deviation).max() < bound, deviation
    # Power: a wrong sign, a factor of 2, or no gradient at all would be found.
    assert np.abs(exact / error).max() > 20.0


TABLES = np.random.default_rng(1).normal(0.5, 1.0, (2, 3, 3))


@pytest.mark.parametrize("update", ["all", "first"])
@pytest.mark.parametrize(
    "baseline", ["leave_one_out", "greedy", "moving_average", None]
)
def test_step_ascends_the_expected_reward(baseline, update):
    tuned = RewardTuning(
        linear_model(6, 2, 3),
        reward=table_reward,
        num_samples=3,
        baseline=baseline,
        update=update,
        seed=SEED,
    )
    exact = exact_categorical_gradient(TABLES)
    assert_mean_is(estimates(tuned, TABLES), exact)


def test_mean_baseline_is_short_by_a_known_factor():
    tuned = RewardTuning(
        linear_model(6, 2, 3),
        reward=table_reward,
        num_samples=3,
        baseline="mean",
        seed=SEED,
    )
    exact = exact_categorical_gradient(TABLES)
    assert_mean_is(estimates(tuned, TABLES), exact * 2.0 / 3.0)


def expected_step(advantage, n):
    """The mean over all draws of n samples of what a step estimates.

    Args:
        advantage: takes rewards `(draws, n)` and returns advantages `(draws, n)`, or
            `(draws, n, 2)` with one for each position.
        n: number of samples.
    """
    outputs = np.array(list(itertools.product(range(3), repeat=2)))
    draws = np.array(list(itertools.product(range(9), repeat=n)))
    gradient = np.zeros((2, 6))
    for x, table in zip(INPUTS, TABLES, strict=True):
        p = softmax((x @ KERNEL).reshape(2, 3))
        of_output = p[0, outputs[:, 0]] * p[1, outputs[:, 1]]
        slope = np.eye(3)[outputs] - p  # (9, 2, 3), of the log-probability
        values = advantage(table[outputs[:, 0], outputs[:, 1]][draws])
        values = values[..., None] * [1.0, 1.0] if values.ndim == 2 else values
        by_logit = (values[..., None] * slope[draws]).mean(1)
        by_logit = (of_output[draws].prod(1)[:, None, None] * by_logit).sum(0)
        gradient += np.outer(x, by_logit.ravel()) / len(INPUTS)
    return gradient.ravel()


def leave_one_out(rewards):
    n = rewards.shape[1]
    return rewards - (rewards.sum(1, keepdims=True) - rewards) / (n - 1)


# A baseline, and what it does in NumPy. Of the last, the second position is weighed
# three times as much as the first.
ENUMERATED = {
    "leave_one_out": ("leave_one_out", leave_one_out),
    "mean": ("mean", lambda r: r - r.mean(1, keepdims=True)),
    "standardized": (
        StandardizedBaseline(epsilon=0.1),
        lambda r: leave_one_out(r) / (r.std(1, ddof=1, keepdims=True) + 0.1),
    ),
    "function": (
        lambda rewards: rewards - 0.5 * ops.max(rewards, axis=1, keepdims=True),
        lambda r: r - 0.5 * r.max(1, keepdims=True),
    ),
    "positions": (
        lambda rewards: rewards[..., None] * np.array([0.5, 1.5], "float32"),
        lambda r: r[..., None] * [0.5, 1.5],
    ),
}


@pytest.mark.parametrize("name", ENUMERATED)
def test_step_is_that_of_all_draws(name):
    baseline, in_numpy = ENUMERATED[name]
    tuned = RewardTuning(
        linear_model(6, 2, 3),
        reward=table_reward,
        num_samples=3,
        baseline=baseline,
        seed=SEED,
    )
    assert_mean_is(estimates(tuned, TABLES), expected_step(in_numpy, 3))


def test_temperature_tunes_the_distribution_that_is_sampled():
    tuned = RewardTuning(
        linear_model(6, 2, 3), reward=table_reward, temperature=0.7, seed=SEED
    )
    exact = exact_categorical_gradient(TABLES, temperature=0.7)
    assert_mean_is(estimates(tuned, TABLES), exact)


def test_leave_one_out_has_lower_variance_than_no_baseline():
    variance = {}
    for baseline in ("leave_one_out", None):
        tuned = RewardTuning(
            linear_model(6, 2, 3),
            reward=table_reward,
            num_samples=4,
            baseline=baseline,
            seed=SEED,
        )
        variance[baseline] = estimates(tuned, TABLES + 1.0, steps=30).var(0).sum()
    assert variance["leave_one_out"] < 0.9 * variance[None]


def test_sample_weight_weighs_the_gradient_of_an_input():
    tuned = RewardTuning(
        linear_model(6, 2, 3), reward=table_reward, num_samples=2, seed=SEED
    )
    tuned.compile(keras.optimizers.SGD(1.0))
    before = weights_of(tuned.model)
    tables = TABLES.astype("float32")
    x = INPUTS.astype("float32")
    tuned.train_on_batch(x, tables, sample_weight=np.array([0.0, 0.0]))
    np.testing.assert_array_equal(weights_of(tuned.model), before)
    # The second input has weight 0, and the first one's features are (1, -0.5).
    for _ in range(5):
        tuned.train_on_batch(x, tables, sample_weight=np.array([1.0, 0.0]))
    moved = weights_of(tuned.model)[0] - before[0]
    assert np.abs(moved).max() > 0.01
    np.testing.assert_allclose(moved[1], -0.5 * moved[0], atol=1e-6)


def test_the_entropy_term_adds_the_gradient_of_the_entropy():
    def nothing(y_true, y_pred):
        return 0.0 * ops.cast(y_pred[:, 0], "float32")

    tuned = RewardTuning(linear_model(6, 2, 3), reward=nothing, terms=[Entropy(0.5)])
    # H = -sum p log p, so dH/dlogit_k = -p_k (log p_k + H); mean over two positions.
    exact = np.zeros((2, 6))
    for x in INPUTS:
        p = softmax((x @ KERNEL).reshape(2, 3))
        entropy = -(p * np.log(p)).sum(-1, keepdims=True)
        by_logit = -p * (np.log(p) + entropy) / 2
        exact += 0.5 * np.outer(x, by_logit.ravel()) / len(INPUTS)
    estimate = estimates(tuned, TABLES, steps=1, copies=1)[0]
    np.testing.assert_allclose(estimate, exact.ravel(), atol=1e-5)


def test_bernoulli_step_ascends_the_expected_reward():
    """Three yes-or-no positions: eight outputs."""

    def reward(y_true, y_pred):
        a, b, c = (y_pred[:, i] for i in range(3))
        index = 4 * a + 2 * b + c
        return ops.sum(y_true * ops.one_hot(index, 8), axis=-1)

    tables = np.random.default_rng(2).normal(0.5, 1.0, (2, 8))
    exact = np.zeros((2, 3))
    for x, table in zip(INPUTS, tables, strict=True):
        p = 1.0 / (1.0 + np.exp(-(x @ KERNEL[:, :3])))
        for index, bits in enumerate(itertools.product([0, 1], repeat=3)):
            bits = np.array(bits)
            probability = np.prod(np.where(bits, p, 1 - p))
            exact += np.outer(x, probability * table[index] * (bits - p)) / 2
    tuned = RewardTuning(
        linear_model(3, 3), reward=reward, policy="bernoulli", num_samples=3, seed=SEED
    )
    assert_mean_is(estimates(tuned, tables), exact.ravel())


def test_gaussian_step_ascends_the_expected_reward():
    """R = -|s - t|^2, so E[R] = -|mean - t|^2 - k sigma^2: the gradient is known."""

    def reward(y_true, y_pred):
        return -ops.sum(ops.square(y_pred - y_true), axis=-1)

    targets = np.array([[0.5, -1.0], [1.0, 0.0]])
    stddev = 0.6
    policy = GaussianPolicy(stddev=stddev, learn_stddev=True)
    tuned = RewardTuning(
        linear_model(2, 2), reward=reward, policy=policy, num_samples=3, seed=SEED
    )
    tuned.compile(keras.optimizers.SGD(1.0))
    by_mean = -2.0 * (INPUTS @ KERNEL[:, :2] - targets)
    exact_kernel = (INPUTS.T @ by_mean / 2).ravel()
    exact_log_stddev = -2.0 * 2 * stddev**2
    x = np.repeat(INPUTS, COPIES, 0).astype("float32")
    y = np.repeat(targets, COPIES, 0).astype("float32")
    start = [np.array(w) for w in tuned.get_weights()]
    samples = []
    for _ in range(STEPS):
        tuned.set_weights(start)
        tuned.train_on_batch(x, y)
        samples.append(
            np.concatenate(
                [
                    (after - before).ravel()
                    for after, before in zip(tuned.get_weights(), start, strict=True)
                ]
            )
        )
    names = [weight.name for weight in tuned.weights]
    assert sorted(names) == ["kernel", "log_stddev"]
    parts = {"kernel": exact_kernel, "log_stddev": [exact_log_stddev]}
    assert_mean_is(
        np.array(samples, "float64"), np.concatenate([parts[name] for name in names])
    )


def test_regularisers_of_the_model_are_part_of_the_loss():
    def nothing(y_true, y_pred):
        return 0.0 * ops.cast(y_pred[:, 0], "float32")

    model = keras.Sequential(
        [
            keras.Input((2,)),
            keras.layers.Dense(
                4, use_bias=False, kernel_regularizer=keras.regularizers.L2(0.1)
            ),
            keras.layers.Reshape((2, 2)),
        ]
    )
    before = model.get_weights()[0]
    tuned = RewardTuning(model, reward=nothing)
    tuned.compile(keras.optimizers.SGD(1.0))
    tuned.train_on_batch(INPUTS.astype("float32"))
    np.testing.assert_allclose(model.get_weights()[0], 0.8 * before, atol=1e-6)
