"""What each part was worth, against the reward of outputs with that part changed."""

import keras
import numpy as np
import pytest
from keras import ops
from tiny import compiled, to_numpy

from keras_reward import (
    BernoulliPolicy,
    DiceReward,
    FBetaReward,
    MapReward,
    MeanIoUReward,
)
from keras_reward.policies.choices import choices_for

# The reward, the number of choices, and the classes of the ground truth.
OVERLAP = {
    "iou of the foreground": (MeanIoUReward(1), 2, 2),
    "dice of the foreground": (DiceReward(1), 2, 2),
    "f of the foreground": (FBetaReward(beta=0.5), 2, 2),
    "iou": (MeanIoUReward(3), 3, 3),
    "dice, a class ignored": (DiceReward(4, ignore_class=2), 4, 4),
    "f": (FBetaReward(3, beta=2.0), 3, 3),
    "iou of the truth": (MeanIoUReward(3, ignore_absent=True), 3, 3),
    "f of the truth": (FBetaReward(4, 2.0, 1, ignore_absent=True), 4, 4),
    "choices beyond the classes": (MeanIoUReward(2), 4, 3),
}


def by_changing_parts(reward, y_true, y_pred, choices):
    """Changes one part after the other, and asks for the reward."""
    worth = np.empty((*y_pred.shape, choices))
    for place in np.ndindex(*y_pred.shape[1:]):
        for choice in range(choices):
            changed = y_pred.copy()
            changed[(slice(None), *place)] = choice
            worth[(slice(None), *place, choice)] = to_numpy(reward(y_true, changed))
    return worth


def alternatives(reward, y_true, y_pred, choices):
    prepared = reward.prepare(ops.convert_to_tensor(y_true))
    choices = ops.arange(choices, dtype="int32")
    return reward.alternatives(prepared, ops.convert_to_tensor(y_pred), choices)


def maps(choices, classes, seed=0):
    """Void, empty and full maps among random ones, `(7, 2, 3)`."""
    generator = np.random.default_rng(seed)
    y_true = generator.integers(-1, classes, (7, 2, 3))
    y_pred = generator.integers(0, choices, (7, 2, 3))
    y_true[0], y_pred[0] = 0, 0
    y_true[1], y_pred[2] = 0, 0
    y_true[3] = 255
    y_true[4] = 1
    y_pred[4] = 1
    y_pred[5], y_pred[5, 0, 0] = 0, 1
    return y_true, y_pred.astype("int32")


@pytest.mark.parametrize("name", OVERLAP)
def test_overlap_is_worth_what_a_changed_map_earns(name):
    reward, choices, classes = OVERLAP[name]
    y_true, y_pred = maps(choices, classes)
    expected = by_changing_parts(reward, y_true, y_pred, choices)
    step = compiled(lambda t, p: alternatives(reward, t, p, choices))
    result = to_numpy(step(y_true, y_pred))
    np.testing.assert_allclose(result, expected, atol=1e-6)
    drawn = np.take_along_axis(result, y_pred[..., None], -1)[..., 0]
    earned = to_numpy(reward(y_true, y_pred))[:, None, None]
    np.testing.assert_array_equal(drawn, np.broadcast_to(earned, drawn.shape))


def test_maps_with_a_channel_and_rows_without_reward():
    y_true, y_pred = maps(2, 2)
    y_true = y_true.astype("float32")
    y_true[1, 0, 0] = 0.5
    result = to_numpy(
        alternatives(DiceReward(1), y_true[..., None], y_pred[..., None], 2)
    )
    assert result.shape == (7, 2, 3, 1, 2)
    assert np.isnan(result[1]).all()
    rest = np.delete(np.arange(7), 1)
    expected = by_changing_parts(DiceReward(1), y_true[rest], y_pred[rest], 2)
    np.testing.assert_allclose(result[rest, :, :, 0], expected, atol=1e-6)


class Upscaled:
    """Yes at a cell paints class 2, no class 1; each cell is one pixel."""

    independent_positions = True

    def decode(self, inputs, samples):
        return samples + 1


def test_a_codec_of_classes_is_asked_choice_by_choice():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Reshape((1, 2))])
    policy = BernoulliPolicy(from_logits=True, codec=Upscaled()).bind(model)
    x = np.zeros((4, 2), "float32")
    samples = np.random.default_rng(0).integers(0, 2, (4, 2, 1, 2)).astype("int32")
    samples = ops.convert_to_tensor(samples)
    context = policy.encode(x)
    choices = choices_for(policy, x, context, samples)
    assert len(choices) == 2
    assert choices.positions == (1, 2)
    np.testing.assert_array_equal(to_numpy(choices[1]), np.full((8, 1, 2), 2))
    y_true = np.repeat(np.array([[[1, 2]], [[0, 2]], [[2, 2]], [[1, 0]]]), 2, 0)
    y_pred = to_numpy(policy.decode(x, samples))
    reward = MeanIoUReward(3)
    prepared = reward.prepare(ops.convert_to_tensor(y_true))
    result = reward.alternatives(prepared, ops.convert_to_tensor(y_pred), choices)
    expected = by_changing_parts(reward, y_true, y_pred, 3)[..., 1:]
    np.testing.assert_allclose(to_numpy(result), expected, atol=1e-6)


def test_f_measures_by_hand():
    y_true, y_pred = np.array([[[0, 1, 1, 1]]]), np.array([[[1, 1, 0, 0]]])
    precision, recall = 1 / 2, 1 / 3
    for beta in (0.5, 1.0, 2.0):
        weight = beta**2
        expected = (1 + weight) * precision * recall / (weight * precision + recall)
        result = to_numpy(FBetaReward(beta=beta)(y_true, y_pred))
        np.testing.assert_allclose(result, [expected], rtol=1e-6)
    both = maps(3, 3)
    np.testing.assert_allclose(
        to_numpy(FBetaReward(3)(*both)), to_numpy(DiceReward(3)(*both)), rtol=1e-6
    )
    with pytest.raises(ValueError, match="beta=0"):
        FBetaReward(beta=0)


@keras.saving.register_keras_serializable(package="keras_reward_tests")
def agreement(y_true, y_pred):
    return ops.cast(y_true == y_pred, "float32")


def test_a_map_reward_is_the_mean_or_sum_of_its_map():
    y_true = np.array([[[0, 1, 2], [0, 0, 0]]], "int32")
    y_pred = np.zeros_like(y_true)
    for reduction, expected in (("mean", 4 / 6), ("sum", 4.0)):
        reward = MapReward(agreement, reach=1, reduction=reduction)
        np.testing.assert_allclose(to_numpy(reward(y_true, y_pred)), [expected])
        config = keras.saving.serialize_keras_object(reward)
        copy = keras.saving.deserialize_keras_object(config)
        assert copy.get_config() == reward.get_config()
        assert copy.name == "agreement"


@pytest.mark.parametrize("reach", [0, 1, 2, 4])
def test_credit_of_a_map_is_its_sum_within_reach(reach):
    places = np.random.default_rng(0).normal(size=(2, 4, 5)).astype("float32")
    reward = MapReward(lambda y_true, y_pred: y_pred, reach=reach, reduction="sum")
    expected = np.zeros_like(places)
    for y, x in np.ndindex(4, 5):
        rows, columns = (slice(max(0, i - reach), i + reach + 1) for i in (y, x))
        expected[:, y, x] = places[:, rows, columns].sum((1, 2))
    given = None, ops.convert_to_tensor(places), None, None
    _, _, credit = reward.evaluate_parts(*given, positions=(4, 5))
    assert credit.alternatives is None
    np.testing.assert_allclose(to_numpy(credit.part_rewards), expected, atol=1e-5)
    _, _, credit = reward.evaluate_parts(*given, positions=(4, 5, 3))
    expected = np.repeat(expected[..., None], 3, -1)
    np.testing.assert_allclose(to_numpy(credit.part_rewards), expected, atol=1e-5)
