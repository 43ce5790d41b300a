"""Baselines as users pass them: names, functions, objects with state."""

import json

import keras
import numpy as np
import pytest
from backends import trains
from keras import ops
from tiny import classifier, inputs, to_numpy

from keras_reward import (
    Baseline,
    LeaveOneOutBaseline,
    MovingAverageBaseline,
    RewardTuning,
    StandardizedBaseline,
    advantages,
    baselines,
)

REWARDS = np.array([[1.0, 2.0, 6.0], [4.0, 4.0, np.nan]], "float32")


@keras.saving.register_keras_serializable(package="keras_reward_tests")
def minus_first(rewards):
    return rewards - rewards[:, :1]


@keras.saving.register_keras_serializable(package="keras_reward_tests")
class CountingBaseline(Baseline):
    """Subtracts how many batches it has seen."""

    def __init__(self, name=None, **kwargs):
        super().__init__(name=name, **kwargs)
        self.seen = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def advantages(self, rewards):
        seen = ops.convert_to_tensor(self.seen)
        result = rewards - seen
        self.seen.assign(seen + 1.0)
        return result


@pytest.mark.parametrize("name", ["leave_one_out", "mean"])
def test_a_name_is_the_function_of_that_name(name):
    expected = getattr(advantages, name)(REWARDS)
    np.testing.assert_array_equal(
        to_numpy(baselines.get(name).advantages(ops.array(REWARDS))),
        to_numpy(expected),
    )


def test_greedy_rewards_are_what_is_subtracted():
    baseline = baselines.get("greedy")
    assert baseline.uses_greedy and not baselines.get("mean").uses_greedy
    result = baseline.advantages(ops.array(REWARDS[:1]), ops.array([2.0]))
    np.testing.assert_allclose(to_numpy(result), [[-1.0, 0.0, 4.0]])


def test_none_leaves_rewards_as_they_are():
    result = baselines.get(None).advantages(ops.array(REWARDS[:1]))
    np.testing.assert_array_equal(to_numpy(result), REWARDS[:1])


def test_standardized_by_hand():
    """Leave-one-out is (-3, -1.5, 4.5), and the deviation the root of 7."""
    for identifier, expected in (
        ("standardized", np.array([-3.0, -1.5, 4.5]) / np.sqrt(7)),
        (StandardizedBaseline("mean"), np.array([-2.0, -1.0, 3.0]) / np.sqrt(7)),
    ):
        result = baselines.get(identifier).advantages(ops.array(REWARDS))
        np.testing.assert_allclose(to_numpy(result)[0], expected, rtol=1e-5)
        np.testing.assert_array_equal(to_numpy(result)[1], 0.0)


def test_standardized_divides_every_position():
    class OfPositions(Baseline):
        def advantages(self, rewards):
            return ops.stack([rewards, 2.0 * rewards], axis=-1)

    result = StandardizedBaseline(OfPositions()).advantages(ops.array(REWARDS[:1]))
    expected = REWARDS[0][:, None] * [1.0, 2.0] / np.sqrt(7)
    np.testing.assert_allclose(to_numpy(result)[0], expected, rtol=1e-5)


def test_a_moving_average_by_hand():
    """The first batch sets it, to a mean of 3; then it moves by 0.25."""
    baseline = MovingAverageBaseline(momentum=0.75)
    first = baseline.advantages(ops.array(REWARDS[:1]))
    np.testing.assert_array_equal(to_numpy(first), REWARDS[:1])
    assert float(to_numpy(baseline.average)) == 3.0
    second = baseline.advantages(ops.array([[7.0, 7.0]]))
    np.testing.assert_array_equal(to_numpy(second), [[4.0, 4.0]])
    assert float(to_numpy(baseline.average)) == 4.0


@pytest.mark.parametrize(
    "identifier",
    [
        *(*baselines.BASELINES, None, minus_first, MovingAverageBaseline(0.5)),
        StandardizedBaseline(minus_first, epsilon=0.1),
    ],
)
def test_every_baseline_is_restored_from_its_config(identifier):
    baseline = baselines.get(identifier)
    config = keras.saving.serialize_keras_object(baseline)
    copy = keras.saving.deserialize_keras_object(json.loads(json.dumps(config)))
    assert type(copy) is type(baseline) and copy.get_config() == baseline.get_config()
    assert copy.uses_greedy == baseline.uses_greedy
    assert copy.min_samples == baseline.min_samples


@pytest.mark.parametrize("identifier", ["loo", 3, LeaveOneOutBaseline])
def test_what_is_no_baseline_is_refused(identifier):
    with pytest.raises(ValueError, match=r"must be one of 'leave_one_out'.*Received"):
        baselines.get(identifier)


@pytest.mark.parametrize("momentum", [-0.1, 1.0])
def test_wrong_momentum_is_refused(momentum):
    with pytest.raises(ValueError, match=f"Received: momentum={momentum}"):
        MovingAverageBaseline(momentum)


def value(y_true, y_pred):
    return ops.cast(y_pred, "float32")


def tuner(baseline, **arguments):
    tuned = RewardTuning(
        classifier(), reward=value, baseline=baseline, seed=0, **arguments
    )
    tuned.compile(keras.optimizers.Adam(0.05))
    return tuned


@trains
def test_state_lives_in_the_compiled_step_and_in_the_file(tmp_path):
    tuned = tuner(CountingBaseline())
    tuned.fit(inputs(16), batch_size=4, verbose=0)
    assert float(to_numpy(tuned.baseline.seen)) == 4.0
    tuned.save_weights(tmp_path / "tuned.weights.h5")
    other = tuner(CountingBaseline())
    other.load_weights(tmp_path / "tuned.weights.h5")
    assert float(to_numpy(other.baseline.seen)) == 4.0


@pytest.mark.chance
@trains
def test_a_function_is_a_baseline():
    tuned = tuner(minus_first, num_samples=4)
    history = tuned.fit(inputs(64), epochs=30, verbose=0).history
    assert np.mean(history["reward"][-3:]) > np.mean(history["reward"][:3]) + 0.5


@trains
@pytest.mark.parametrize(
    ("baseline", "shape"),
    [(lambda r: r[:, 0], r"\(\d+,\)"), (lambda r: ops.stack([r, r], axis=-1), "2")],
)
def test_advantages_of_another_shape_are_refused(baseline, shape):
    with pytest.raises(ValueError, match=f"an advantage for each sample.*{shape}"):
        tuner(baseline).train_on_batch(inputs(4))


@pytest.mark.slow
@trains
def test_advantages_that_are_not_finite_count_as_zero():
    """A mean that a NaN spoils: the step leaves the weights as they are."""

    def sometimes(y_true, y_pred):
        return ops.where(ops.arange(y_pred.shape[0]) % 2 == 0, float("nan"), 1.0)

    def minus_mean(rewards):
        return rewards - ops.mean(rewards, axis=1, keepdims=True)

    tuned = RewardTuning(classifier(), reward=sometimes, baseline=minus_mean, seed=0)
    tuned.compile("sgd", run_eagerly=True)
    before = tuned.model.get_weights()
    tuned.train_on_batch(inputs(4))
    for a, b in zip(before, tuned.model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@trains
def test_baselines_that_compare_samples_need_them():
    for baseline, least in (("standardized", 2), ("mean", 2)):
        with pytest.raises(ValueError, match=f"at least {least}.*num_samples=1"):
            tuner(baseline, num_samples=1)
