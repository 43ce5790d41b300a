"""Credit of rewards that are maps: the gradient of a step by enumeration."""

import itertools

import keras
import numpy as np
import pytest
from keras import ops
from pixels import (
    INPUTS,
    KERNEL,
    MAPS,
    MASKS,
    every_output,
    exact_gradient,
    given,
    linear_model,
    neighbours_agree,
    step_gradient,
)
from tiny import weights_of

from keras_reward import (
    BernoulliPolicy,
    CategoricalPolicy,
    DiceReward,
    GaussianPolicy,
    HostReward,
    MapReward,
    RewardTuning,
)


@pytest.mark.parametrize("policy", [BernoulliPolicy, CategoricalPolicy])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_map_credits_what_lies_within_reach(policy, reduction):
    binary = policy is BernoulliPolicy
    reward = MapReward(neighbours_agree, reach=1, reduction=reduction)
    targets = np.where(MAPS == 255, 1, MAPS)
    targets[2] = np.nan
    exact = exact_gradient(policy, targets, reward, 0.7)
    gradients = {}
    for reach in (1, 0):
        reward = MapReward(neighbours_agree, reach=reach, reduction=reduction)
        tuned = RewardTuning(
            linear_model(2, 2) if binary else linear_model(2, 2, 3),
            reward=reward + 0.0 * DiceReward(3, name="monitor"),
            policy=given(policy)(),
            num_samples=1,
            baseline=None,
            temperature=0.7,
            credit="parts",
        )
        x, y, weights = every_output(policy, targets, 0.7)
        weights = np.where(np.isnan(y[:, 0, 0]), 0.0, weights)
        y = np.nan_to_num(y)
        gradients[reach] = step_gradient(tuned, x, y, weights)
    np.testing.assert_allclose(gradients[1], exact, atol=5e-6)
    # A reach that is too small: the bias is what the next pixel's term would add.
    assert np.abs(gradients[0] - exact).max() > 0.2 * np.abs(exact).max()


def test_the_bias_of_a_reach_that_is_too_small_is_the_part_beyond():
    """The map of the right pixel depends on the left one, two places away."""
    p = 1.0 / (1.0 + np.exp(-(INPUTS[0] @ KERNEL[:, :4])))

    def far(y_true, y_pred):
        left, own = (ops.cast(y_pred[:, :, i], "float32") for i in (0, 3))
        return ops.stack([left, 0.0 * left, 0.0 * left, 4.0 * left * own], axis=2)

    for reach, in_reach in ((3, 1.0), (2, 0.0)):
        tuned = RewardTuning(
            linear_model(1, 4),
            reward=MapReward(far, reach=reach, reduction="sum"),
            policy=given(BernoulliPolicy)(),
            num_samples=1,
            baseline=None,
        )
        outputs = np.array(list(itertools.product([0, 1], repeat=4)))
        chance = np.where(outputs, p, 1 - p).prod(-1)
        x = {
            "features": np.repeat(INPUTS[:1], 16, 0).astype("float32"),
            "samples": outputs[:, None, None].astype("int32"),
        }
        weights = (16 * chance).astype("float32")
        moved = step_gradient(tuned, x, np.zeros(16, "float32"), weights)
        slope = p * (1 - p)
        by_logit = np.zeros(4)
        by_logit[0] = slope[0] * (1.0 + in_reach * 4.0 * p[3])
        by_logit[3] = slope[3] * 4.0 * p[0]
        np.testing.assert_allclose(moved, np.outer(INPUTS[0], by_logit), atol=1e-6)


def test_the_other_samples_are_the_baseline_of_a_map():
    targets = np.where(MASKS == 255, 1, MASKS)
    exact = exact_gradient(
        BernoulliPolicy, targets, MapReward(neighbours_agree, reach=1), 1.0
    )
    for baseline, factor in (("leave_one_out", 1.0), ("mean", 0.5)):
        tuned = RewardTuning(
            linear_model(2, 2),
            reward=MapReward(neighbours_agree, reach=1),
            policy=given(BernoulliPolicy)(),
            num_samples=2,
            baseline=baseline,
        )
        x, y, weights = every_output(BernoulliPolicy, targets, 1.0, num_samples=2)
        weights = np.where(y[:, 0, 0] == 0.5, 0.0, weights)
        estimate = step_gradient(tuned, x, y, weights)
        np.testing.assert_allclose(estimate, factor * exact, atol=5e-6)


def test_a_gaussian_map_by_quadrature():
    """R = sum of products of neighbours and squares, of three numbers in a row."""
    stddev, temperature = 0.6, 0.5
    targets = np.array([[[0.5, -1.0, 0.2]], [[1.0, 0.0, -0.3]]])

    def products(y_true, y_pred):
        following = ops.concatenate([y_pred[:, :, 1:], y_pred[:, :, :1]], axis=2)
        last = np.array([[[1.0, 1.0, 0.0]]], "float32")
        return y_pred * following * last - ops.square(y_pred - y_true)

    nodes, shares = np.polynomial.hermite_e.hermegauss(5)
    shares = shares / shares.sum()
    grid = np.array(list(itertools.product(nodes, repeat=3)))
    chance = np.array([np.prod(c) for c in itertools.product(shares, repeat=3)])
    rows, spread = len(grid), stddev * np.sqrt(temperature)
    exact = np.zeros((2, 3))
    x, samples, y = [], [], []
    for features, target in zip(INPUTS[:2], targets, strict=True):
        mean = features @ KERNEL[:, :3]
        slope = -2.0 * (mean - target[0])
        slope[:2] += mean[1:]
        slope[1:] += mean[:2]
        exact += np.outer(features, slope) / 2
        x.append(np.repeat(features[None], rows, 0))
        samples.append((mean + spread * grid).reshape(rows, 1, 1, 3))
        y.append(np.repeat(target[None], rows, 0))
    tuned = RewardTuning(
        linear_model(1, 3),
        reward=MapReward(products, reach=1, reduction="sum"),
        policy=given(GaussianPolicy)(stddev=stddev),
        num_samples=1,
        baseline=None,
        temperature=temperature,
    )
    assert tuned.by_parts
    x, samples, y = (np.concatenate(each).astype("float32") for each in (x, samples, y))
    weights = np.tile(chance * rows, 2).astype("float32")
    estimate = step_gradient(tuned, {"features": x, "samples": samples}, y, weights)
    np.testing.assert_allclose(estimate, exact, atol=2e-4)


def test_channels_of_a_place_share_its_credit():
    def brightness(y_true, y_pred):
        return ops.mean(y_pred, axis=-1)

    tuned = RewardTuning(
        linear_model(2, 2, 3), MapReward(brightness), GaussianPolicy(), 2, seed=0
    )
    tuned.compile(keras.optimizers.SGD(0.1))
    x = np.repeat(INPUTS, 64, 0).astype("float32")
    before = tuned.evaluate(x, x, verbose=0, return_dict=True)["reward"]
    tuned.fit(x, x, epochs=3, verbose=0)
    assert tuned.evaluate(x, x, verbose=0, return_dict=True)["reward"] > before


def test_a_sum_credits_each_reward_in_its_own_way():
    targets = np.where(MASKS == 255, 1, MASKS)
    both = MapReward(neighbours_agree, reach=1) + 0.5 * DiceReward(1)
    exact = exact_gradient(BernoulliPolicy, targets, both, 1.0)
    tuned = RewardTuning(
        linear_model(2, 2),
        reward=both,
        policy=given(BernoulliPolicy)(),
        num_samples=2,
    )
    assert tuned.by_parts
    x, y, weights = every_output(BernoulliPolicy, targets, 1.0, num_samples=2)
    weights = np.where(y[:, 0, 0] == 0.5, 0.0, weights)
    np.testing.assert_allclose(step_gradient(tuned, x, y, weights), exact, atol=5e-6)


def test_a_map_from_the_host_is_made_once_a_step():
    calls = []

    def on_host(y_true, y_pred):
        calls.append(len(y_pred))
        return -np.abs(y_true - y_pred).astype("float32")

    tuned = RewardTuning(
        linear_model(2, 2), MapReward(HostReward(on_host)), "bernoulli", 2, seed=0
    )
    tuned.compile(keras.optimizers.Adam(0.2))
    x = np.repeat(INPUTS, 8, 0).astype("float32")
    y = np.repeat(MASKS, 8, 0).round().clip(0, 1)
    logs = tuned.fit(x, y, epochs=20, batch_size=24, verbose=0).history
    assert logs["reward"][-1] > logs["reward"][0] + 0.05
    assert logs["reward_seconds"][-1] > 0.0
    assert calls.count(48) == 20

    def fails(y_true, y_pred):
        raise RuntimeError("no connection")

    tuned = RewardTuning(linear_model(2, 2), MapReward(HostReward(fails)), "bernoulli")
    tuned.compile(keras.optimizers.Adam(0.05))
    before = weights_of(tuned.model)
    with pytest.raises(RuntimeError, match="no connection"):
        tuned.fit(x, y, verbose=0)
    np.testing.assert_array_equal(weights_of(tuned.model)[0], before[0])


def test_a_map_with_nan_credits_no_place_of_its_row():
    y = np.where(MASKS == 255, 1, MASKS).astype("float32")
    samples = np.random.default_rng(5).integers(0, 2, (3, 1, 2, 2)).astype("int32")
    x = {"features": INPUTS.astype("float32"), "samples": samples}
    moved = []
    for row, weights in ((np.nan, [1.0, 1.0, 1.0]), (0.0, [1.0, 1.0, 0.0])):
        y[2, 1, 1] = row
        tuned = RewardTuning(
            linear_model(2, 2),
            MapReward(lambda t, p: t * ops.cast(p, "float32")),
            given(BernoulliPolicy)(),
            num_samples=1,
            baseline=None,
        )
        moved.append(step_gradient(tuned, x, y, np.array(weights, "float32")))
    np.testing.assert_allclose(*moved, atol=1e-7)
