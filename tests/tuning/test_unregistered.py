"""Functions and classes of the user's that Keras cannot load: said when saving."""

import warnings

import keras
import numpy as np
import pytest
from backends import trains
from keras import ops
from tiny import classifier, inputs

from keras_reward import (
    KL,
    CategoricalPolicy,
    FunctionReward,
    LeaveOneOutBaseline,
    MaximumLikelihood,
    Reward,
    RewardTuning,
    StandardizedBaseline,
)
from keras_reward.saved_objects import NotRegisteredWarning, deserialized, serialized

pytestmark = [pytest.mark.slow, trains]


def plain(y_true, y_pred):
    return ops.cast(y_pred, "float32")


def same(inputs, samples):
    return samples


def centred(rewards):
    return rewards - ops.mean(rewards, axis=1, keepdims=True)


class Plain(Reward):
    def call(self, y_true, y_pred):
        return plain(y_true, y_pred)


class Mine(LeaveOneOutBaseline):
    pass


@keras.saving.register_keras_serializable(package="keras_reward_tests")
def registered(y_true, y_pred):
    return plain(y_true, y_pred)


@keras.saving.register_keras_serializable(package="keras_reward_tests")
class Registered(Plain):
    pass


# What is not registered, and a tuning that has it.
CASES = {
    "function": (plain, {"reward": plain}),
    "summand": (
        plain,
        {"reward": FunctionReward(registered) + 0.5 * FunctionReward(plain)},
    ),
    "reward": (Plain, {"reward": Plain()}),
    "codec": (same, {"policy": CategoricalPolicy(codec=same)}),
    "baseline": (centred, {"baseline": centred}),
    "inner baseline": (centred, {"baseline": StandardizedBaseline(centred)}),
    "baseline class": (Mine, {"baseline": Mine()}),
}


@pytest.mark.parametrize("name", CASES)
def test_saving_warns_and_loading_says_what_is_missing(name, tmp_path):
    own, arguments = CASES[name]
    tuned = RewardTuning(classifier(), **{"reward": registered, **arguments})
    tuned.compile("sgd")
    path = tmp_path / "tuned.keras"
    known = own.__name__
    message = rf"'{known}' is not registered.*`@keras.saving.register_keras_seri"
    with pytest.warns(NotRegisteredWarning, match=message):
        tuned.save(path)
    message = rf"^The (function|class) '{known}' must be registered"
    with pytest.raises(ValueError, match=message) as failure:
        keras.saving.load_model(path)
    assert len(str(failure.value)) < 400
    loaded = keras.saving.load_model(path, custom_objects={known: own})
    x = inputs(4)
    np.testing.assert_array_equal(
        loaded.predict(x, verbose=0), tuned.predict(x, verbose=0)
    )


def test_what_is_registered_is_saved_without_a_warning(tmp_path):
    for reward in (registered, Registered(), Registered(name="other") + registered):
        terms = [KL("copy"), MaximumLikelihood(0.1)]
        tuned = RewardTuning(classifier(), reward, terms=terms)
        with warnings.catch_warnings():
            warnings.simplefilter("error", NotRegisteredWarning)
            tuned.save(tmp_path / "tuned.keras")
            keras.saving.load_model(tmp_path / "tuned.keras")


def test_a_twin_of_a_policy_is_not_saved_and_does_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error", NotRegisteredWarning)
        policy = CategoricalPolicy(codec=same)
        RewardTuning(classifier(), registered, policy=policy, terms=[KL("copy")])


def test_objects_of_keras_and_registered_ones_are_known():
    for value in (None, "a", 2.0, keras.layers.Dense(3), keras.activations.relu):
        with warnings.catch_warnings():
            warnings.simplefilter("error", NotRegisteredWarning)
            serialized(value)
    with keras.saving.custom_object_scope({"plain": plain}):
        assert deserialized(serialized(plain)) is plain
