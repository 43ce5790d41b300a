"""Rewards of many samples: against distributions that are known in closed form."""

import itertools

import keras
import numpy as np
import pytest
from backends import trains
from chance import counts_within_chance
from keras import ops
from scipy import special
from tiny import classifier, inputs, to_numpy, weights_of

from keras_reward import HostReward, Reward, RewardTuning
from keras_reward.evaluation import (
    RewardDistribution,
    findings,
    plot,
    reward_distribution,
)
from keras_reward.evaluation.sample_pools import (
    by_likelihood,
    by_reward,
    mean_of_chosen,
)

VALUES = np.array([0.3, -1.0, 2.0, 0.9, 0.3], "float32")  # two classes earn the same
X = inputs(5)


def value(y_true, y_pred):
    return ops.take(ops.convert_to_tensor(VALUES), y_pred)


class Offset(Reward):
    """The class's value and an offset from the data; NaN where that is NaN."""

    def call(self, y_true, y_pred):
        return value(None, y_pred) + y_true


def probabilities(model):
    kernel, bias = weights_of(model)
    logits = X.astype("float64") @ kernel + bias
    return special.softmax(logits, axis=-1)


def best_of(p, size):
    """Expected value of the best of `size` draws: sums over the distinct values."""
    levels = np.unique(VALUES)
    below = np.array([p[level >= VALUES].sum() for level in levels]) ** size
    return (levels * np.diff(below, prepend=0.0)).sum()


def most_likely_of(p, size):
    """Expected value of the likeliest of `size` draws, classes of distinct p."""
    order = np.argsort(p)
    up_to = np.cumsum(p[order]) ** size
    return (VALUES[order] * np.diff(up_to, prepend=0.0)).sum()


def test_pool_estimates_are_unbiased_over_all_pools():
    """The mean over every pool of 4 draws of 3 classes is the closed form, exactly."""
    p, values = np.array([0.5, 0.2, 0.3]), np.array([1.0, 4.0, -2.0])
    best, likeliest = np.zeros(4), np.zeros(4)
    for pool in map(list, itertools.product(range(3), repeat=4)):
        weight = p[pool].prod()
        rewards, log_probs = values[pool][None], np.log(p[pool])[None]
        best += weight * mean_of_chosen(by_reward(rewards)[0])
        likeliest += weight * mean_of_chosen(by_likelihood(rewards, log_probs)[0])
    for size in range(1, 5):
        draws = [list(d) for d in itertools.product(range(3), repeat=size)]
        weights = [p[d].prod() for d in draws]
        exact = np.dot(weights, [values[d].max() for d in draws])
        np.testing.assert_allclose(best[size - 1], exact, rtol=1e-12)
        exact = np.dot(weights, [values[d[np.argmax(p[d])]] for d in draws])
        np.testing.assert_allclose(likeliest[size - 1], exact, rtol=1e-12)


def test_pool_estimates_by_hand_and_for_large_pools():
    np.testing.assert_allclose(mean_of_chosen([0.0, 3.0, 6.0]), [3.0, 5.0, 6.0])
    n = 3000  # the largest of N different numbers of 1 ... n: N (n + 1) / (N + 1)
    sizes = np.arange(1, n + 1)
    result = mean_of_chosen(sizes)
    np.testing.assert_allclose(result, sizes * (n + 1) / (sizes + 1), rtol=1e-9)


def test_equally_likely_samples_stand_for_their_mean():
    rewards, log_probs = [[1.0, 5.0, 3.0, 9.0]], [[-1.0, -2.0, -1.0, -3.0]]
    ordered = by_likelihood(rewards, log_probs)
    np.testing.assert_allclose(ordered, [[9.0, 5.0, 2.0, 2.0]])


@pytest.mark.chance
def test_samples_of_a_known_policy():
    model = classifier()
    tuned = RewardTuning(model, reward=value)
    result = reward_distribution(
        tuned, (X, None), num_samples=3000, chunk_size=500, batch_size=2, verbose=0
    )
    p = probabilities(model)
    assert result.rewards.shape == result.log_probs.shape == (5, 3000)
    for probs, rewards, log_probs in zip(p, *result[:2], strict=True):
        counts = [(np.abs(rewards - v) < 1e-6).sum() for v in VALUES]
        same = [probs[v == VALUES].sum() for v in VALUES]
        assert counts_within_chance(counts, 3000, same)
        known = np.log(probs)[np.abs(np.log(probs) - log_probs[:, None]).argmin(1)]
        np.testing.assert_allclose(log_probs, known, atol=1e-5)
    np.testing.assert_allclose(result.greedy, VALUES[p.argmax(1)])
    np.testing.assert_allclose(result.quantiles().mean(), result.mean(), rtol=1e-6)
    assert (np.diff(result.quantiles()) >= 0).all()
    for size in (1, 2, 10, 100):
        best = np.mean([best_of(row, size) for row in p])
        likeliest = np.mean([most_likely_of(row, size) for row in p])
        assert abs(result.best_of()[size - 1] - best) < 0.06
        assert abs(result.most_likely_of()[size - 1] - likeliest) < 0.06


def sample(tuned, data=None, **arguments):
    arguments = {"chunk_size": 8, "batch_size": 2, "verbose": 0, **arguments}
    return reward_distribution(tuned, data or (X, None), **arguments)


@pytest.mark.chance
def test_the_seed_decides_and_more_samples_begin_with_fewer():
    tuned = RewardTuning(classifier(), reward=value)
    few = sample(tuned, num_samples=12)
    many = sample(tuned, num_samples=20)
    np.testing.assert_array_equal(few.log_probs, many.log_probs[:, :12])
    other = sample(tuned, num_samples=20, seed=1)
    assert (other.log_probs != many.log_probs).mean() > 0.3
    chunks = many.log_probs[:, :8] != many.log_probs[:, 8:16]
    assert chunks.mean() > 0.3  # every chunk draws anew


def test_batches_of_a_dataset_equal_arrays():
    tuned = RewardTuning(classifier(), reward=Offset())
    y = np.arange(5, dtype="float32")
    arrays = sample(tuned, (X, y), num_samples=8)
    batches = [(X[i : i + 2], y[i : i + 2]) for i in (0, 2, 4)]
    for a, b in zip(arrays, sample(tuned, batches, num_samples=8), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    assert arrays.rewards[4].min() >= 3.0  # each example with its own target


class Interrupting(list):
    """Batches, of which the third one never comes."""

    def __iter__(self):
        yield from list(super().__iter__())[:2]
        raise KeyboardInterrupt


def test_an_interrupted_run_goes_on_from_its_file(tmp_path):
    calls = []

    def counted(y_true, y_pred):
        calls.append(len(y_pred))
        return VALUES[y_pred]

    tuned = RewardTuning(classifier(), reward=HostReward(counted))
    batches = [(X[i : i + 2], None) for i in (0, 2)] + [(X[4:], None)]
    path = tmp_path / "samples.npz"
    whole = sample(tuned, batches, num_samples=20)
    in_all = sum(calls)
    calls.clear()
    with pytest.raises(KeyboardInterrupt):
        sample(tuned, Interrupting(batches), num_samples=20, path=path)
    resumed = sample(tuned, batches, num_samples=20, path=path)
    assert sum(calls) <= in_all + 2 * 2 * 8  # nothing but the last, cut chunks twice
    for a, b in zip(resumed, whole, strict=True):
        np.testing.assert_array_equal(a, b)
    loaded = RewardDistribution.load(path)
    np.testing.assert_array_equal(loaded.rewards, whole.rewards)
    with pytest.raises(ValueError, match="other weights or settings"):
        sample(tuned, batches, num_samples=20, path=path, seed=1)
    tuned.model.set_weights([w + 1.0 for w in tuned.model.get_weights()])
    with pytest.raises(ValueError, match="other weights or settings"):
        sample(tuned, batches, num_samples=20, path=path)


def test_examples_that_cannot_be_scored_are_left_out():
    tuned = RewardTuning(classifier(), reward=Offset())
    y = np.array([0.0, np.nan, 0.0, 0.0, 0.0], "float32")
    some = sample(tuned, (X, y), num_samples=8)
    assert np.isnan(some.rewards[1]).all() and np.isfinite(some.mean())
    np.testing.assert_allclose(some.mean(), np.delete(some.rewards, 1, 0).mean())
    none = sample(tuned, (X, np.full(5, np.nan, "float32")), num_samples=8)
    with pytest.raises(ValueError, match="at least one example"):
        none.quantiles()


@trains
def test_sampling_leaves_the_tuner_as_it_was():
    tuned = RewardTuning(classifier(), reward=value, seed=0)
    tuned.compile(keras.optimizers.SGD(0.1))
    tuned.fit(X, epochs=1, verbose=0)
    before = weights_of(tuned), to_numpy(tuned.seed_generator.state)
    sample(tuned, num_samples=8)
    for a, b in zip(before[0], weights_of(tuned), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(before[1], to_numpy(tuned.seed_generator.state))
    tuned.fit(X, epochs=1, verbose=0)


def made(rewards, log_probs, greedy=0.0):
    rewards = np.array(rewards, "float64")
    return RewardDistribution(rewards, np.array(log_probs), np.full(len(rewards), 0.5))


def test_findings_by_hand():
    ramp = np.arange(20.0)[None]  # a twentieth reaches 19
    before = made(ramp, ramp)
    after = made(np.full((1, 20), 18.5), ramp)
    after.rewards[0, :12] = 19.0
    found = findings(before, after)
    assert found["level"] == 19.0
    assert found["share_above"] == found["share_above_own"] == 0.6
    # The best of all 20 is 19 in both; the best of fewer is less before.
    assert found["crossing"] == 20
    assert found["likeliest_before"] == pytest.approx(19.0)
    assert not found["likeliest_stays_below"]
    assert findings(made(ramp, -ramp), after)["likeliest_stays_below"]
    assert findings(made(ramp * 0.9, ramp), after)["crossing"] is None
    with pytest.raises(ValueError, match="same examples"):
        findings(before, made(ramp[:, :5], ramp[:, :5]))


def test_plot_draws_three_panels_of_the_curves(tmp_path):
    generator = np.random.default_rng(0)
    before = made(generator.random((3, 16)), generator.random((3, 16)))
    after = made(generator.random((3, 16)) + 0.5, generator.random((3, 16)))
    figure = plot(before, after, path=tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 1000
    assert len(figure.axes) == 3
    curves = [[line.get_ydata() for line in axes.lines] for axes in figure.axes]
    np.testing.assert_allclose(curves[0][0], before.quantiles())
    np.testing.assert_allclose(curves[1][2], after.best_of())
    np.testing.assert_allclose(curves[2][2], after.most_likely_of())
    np.testing.assert_allclose(curves[2][3][0], after.greedy_mean())


@pytest.mark.parametrize("name", ["num_samples", "chunk_size", "batch_size"])
def test_numbers_must_be_positive(name):
    tuned = RewardTuning(classifier(), reward=value)
    with pytest.raises(ValueError, match=f"`{name}` must be a positive int"):
        sample(tuned, **{"num_samples": 8, name: 0})
