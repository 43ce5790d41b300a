"""Rewards: the contract, combinations, serialisation."""

import keras
import numpy as np
import pytest
from keras import ops
from tiny import to_numpy

from keras_reward import (
    ColorfulnessReward,
    FunctionReward,
    HueEntropyReward,
    ProductReward,
    Reward,
    SumReward,
    VividnessReward,
    rewards,
)


class First(Reward):
    """The first column of the outputs."""

    def call(self, y_true, y_pred):
        return y_pred[:, 0]


class Second(Reward):
    """The second column."""

    def call(self, y_true, y_pred):
        return y_pred[:, 1]


class TwoParts(Reward):
    component_names = ("left", "right")

    def call(self, y_true, y_pred):
        left, right = y_pred[:, 0], y_pred[:, 1]
        return left + right, {"left": left, "right": right}


OUTPUTS = np.array([[1.0, 10.0], [2.0, 20.0], [3.0, np.nan]], "float32")


def scores(reward, y_true=None, y_pred=OUTPUTS, inputs=None):
    return to_numpy(reward(y_true, y_pred, inputs))


@pytest.mark.parametrize(
    ("reward", "expected"),
    [
        (First() + Second(), [11.0, 22.0, np.nan]),
        (First() - 2 * Second(), [-19.0, -38.0, np.nan]),
        (-First(), [-1.0, -2.0, -3.0]),
        (1 - First(), [0.0, -1.0, -2.0]),
        (First() + 0.5, [1.5, 2.5, 3.5]),
        (First() * Second(), [10.0, 40.0, np.nan]),
        (0.5 * (First() + 1), [1.0, 1.5, 2.0]),
        (sum([First(), First(name="again")]), [2.0, 4.0, 6.0]),
        (First() + (lambda y_true, y_pred: y_pred[:, 0]), [2.0, 4.0, 6.0]),
        ((First() + 1) * Second(), [20.0, 60.0, np.nan]),
    ],
)
def test_rewards_combine(reward, expected):
    np.testing.assert_allclose(scores(reward), expected)


def test_monitor_of_weight_zero_is_logged_without_influence():
    reward = First() + 0.0 * Second()
    total, components = reward.evaluate([None, None], ops.convert_to_tensor(OUTPUTS))
    np.testing.assert_allclose(to_numpy(total), [1.0, 2.0, 3.0])
    np.testing.assert_allclose(to_numpy(components["second"]), [10.0, 20.0, np.nan])


def test_sums_are_flat_and_keep_their_weights():
    reward = 2 * (First() + 3 * Second()) + TwoParts()
    assert reward.weights == [2.0, 6.0, 1.0]
    assert reward.component_names == ("first", "second", "two_parts", "left", "right")


def test_parts_of_a_term_are_logged_beside_it():
    _, components = (First() + TwoParts()).evaluate([None, None], OUTPUTS[:2])
    np.testing.assert_allclose(to_numpy(components["two_parts"]), [11.0, 22.0])
    np.testing.assert_allclose(to_numpy(components["right"]), [10.0, 20.0])


def test_a_decorated_function_is_a_reward_that_adds_to_others():
    @FunctionReward
    def tenth(y_true, y_pred):
        return 0.1 * y_pred[:, 0]

    def second(y_true, y_pred):
        return y_pred[:, 1]

    assert tenth.name == "tenth"
    np.testing.assert_allclose(scores(tenth), [0.1, 0.2, 0.3])
    np.testing.assert_allclose(scores(tenth + second), [10.1, 20.2, np.nan])
    np.testing.assert_allclose(scores(tenth + First()), [1.1, 2.2, 3.3])


def test_equal_names_are_refused():
    with pytest.raises(ValueError, match=r"different names.*\['first'\]"):
        First() + First()


def test_a_named_reward_puts_its_name_before_its_components():
    reward = TwoParts() + TwoParts(name="mine") + (First() + Second())
    named = SumReward([First(), Second()], name="both") + 0.0 * TwoParts(name="mine")
    assert reward.component_names == (
        *("two_parts", "left", "right"),
        *("mine", "mine_left", "mine_right"),
        *("first", "second"),
    )
    assert named.component_names[:3] == ("both", "both_first", "both_second")
    for each in (reward, named):
        total, components = each.evaluate(each.prepare(None), OUTPUTS[:2])
        assert set(components) == set(each.component_names)
    np.testing.assert_allclose(to_numpy(total), [11.0, 22.0])
    np.testing.assert_allclose(to_numpy(components["both"]), [11.0, 22.0])


def test_parts_must_be_those_declared():
    class Wrong(TwoParts):
        component_names = ("left",)

    with pytest.raises(ValueError, match=r"Expected: \['left'\]"):
        Wrong()(None, OUTPUTS)


def test_names_are_snake_case_without_reward():
    assert HueEntropyReward().name == "hue_entropy"
    assert First().name == "first"
    assert First(name="mine").name == "mine"
    assert FunctionReward(np.mean).name == "mean"


def test_a_subclass_may_forget_to_call_init():
    class Careless(First):
        def __init__(self):
            self.setting = 1

    assert Careless().name == "careless"
    np.testing.assert_allclose(scores(Careless()), [1.0, 2.0, 3.0])


def test_inputs_reach_the_rewards_that_ask_for_them():
    def compare(y_true, y_pred, inputs):
        return y_pred[:, 0] - inputs[:, 0] + y_true[:, 0]

    inputs = np.full((3, 1), 0.5, "float32")
    y_true = np.full((3, 1), 2.0, "float32")
    assert FunctionReward(compare).uses_inputs
    assert not First().uses_inputs
    assert not (First() + Second()).uses_inputs
    reward = First() + compare
    assert reward.uses_inputs
    np.testing.assert_allclose(scores(reward, y_true, inputs=inputs), [3.5, 5.5, 7.5])


def test_prepare_runs_before_call():
    class Prepared(Reward):
        def prepare(self, y_true):
            return {"double": 2.0 * y_true}

        def call(self, y_true, y_pred):
            return y_true["double"][:, 0] + y_pred[:, 0]

    ones = np.ones((3, 1), "float32")
    np.testing.assert_allclose(scores(Prepared(), ones), [3.0, 4.0, 5.0])


@pytest.mark.parametrize(
    "reward",
    [
        VividnessReward(threshold=5.0),
        HueEntropyReward(bins=9, name="hues"),
        ColorfulnessReward(threshold=8.0, bins=5),
        VividnessReward() + 0.5 * HueEntropyReward() - 1.0,
        VividnessReward() * HueEntropyReward(),
    ],
)
def test_rewards_survive_serialisation(reward):
    config = keras.saving.serialize_keras_object(reward)
    assert config["registered_name"].startswith("keras_reward>")
    copy = keras.saving.deserialize_keras_object(config)
    images = np.random.default_rng(0).random((3, 4, 4, 3)).astype("float32")
    np.testing.assert_array_equal(
        scores(copy, None, images), scores(reward, None, images)
    )
    assert copy.component_names == reward.component_names
    assert copy.name == reward.name
    assert repr(copy) == repr(reward)


def test_registered_function_survives_serialisation():
    @keras.saving.register_keras_serializable(package="keras_reward_tests")
    def doubled(y_true, y_pred):
        return 2.0 * y_pred[:, 0]

    config = keras.saving.serialize_keras_object(FunctionReward(doubled))
    copy = keras.saving.deserialize_keras_object(config)
    np.testing.assert_allclose(scores(copy), [2.0, 4.0, 6.0])


def test_every_name_gives_its_reward():
    for name, reward_class in rewards.REWARDS.items():
        assert type(rewards.get(name)) is reward_class
        assert rewards.get(name).name == name


def test_weights_must_match_rewards():
    with pytest.raises(ValueError, match="1 weights, 2 rewards"):
        SumReward([First(), Second()], weights=[1.0])


def test_product_of_a_product():
    reward = ProductReward([First() * Second(), TwoParts()])
    np.testing.assert_allclose(scores(reward, y_pred=OUTPUTS[:2]), [110.0, 880.0])


def test_half_precision_reward_becomes_float32():
    reward = FunctionReward(lambda y_true, y_pred: ops.cast(y_pred[:, 0], "float16"))
    assert keras.backend.standardize_dtype(reward(None, OUTPUTS).dtype) == "float32"
