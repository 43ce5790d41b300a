"""Rewards of any size leave the weights finite, and are counted."""

import keras
import numpy as np
import pytest
from tiny import classifier, weights_of

import keras_reward as kr


def at_chosen(value):
    """The reward of a class: huge for class 1, small for the others."""

    def reward(y_true, y_pred):
        small = keras.ops.cast(y_pred, "float32")
        return keras.ops.where(y_pred == 1, value, small)

    return reward


@pytest.mark.parametrize("baseline", ["leave_one_out", "standardized", None])
@pytest.mark.parametrize("value", [3e38, -3e38, 1e12])
def test_fit_with_huge_rewards(value, baseline):
    """What is beyond the limit is as if it had no reward; at the limit, it counts."""
    model = classifier()
    x = np.random.default_rng(0).normal(size=(16, *model.input_shape[1:]))
    x = x.astype("float32")
    tuned = kr.RewardTuning(
        model, at_chosen(value), num_samples=4, baseline=baseline, seed=0
    )
    tuned.compile(optimizer=keras.optimizers.Adam(0.01))
    history = tuned.fit(x, batch_size=8, epochs=2, verbose=0).history
    assert all(np.isfinite(weight).all() for weight in weights_of(model))
    assert np.isfinite(history["loss"]).all() and np.isfinite(history["reward"]).all()
    beyond = value != 1e12
    assert (history["no_reward"][0] > 0) == beyond
    logs = tuned.evaluate(x, verbose=0, return_dict=True)
    assert np.isfinite(logs["loss"]) and np.isfinite(logs["reward"])
    if beyond:
        assert logs["reward"] <= 10.0 and max(history["reward"]) <= 10.0


def test_the_others_of_an_input_learn_as_if_it_had_no_reward():
    """The same steps with 3e38 and with NaN give the same weights."""
    x = np.random.default_rng(1).normal(size=(8, *classifier().input_shape[1:]))
    found = []
    for value in (3e38, float("nan")):
        model = classifier()
        tuned = kr.RewardTuning(model, at_chosen(value), num_samples=3, seed=0)
        tuned.compile(optimizer="sgd")
        tuned.fit(x.astype("float32"), epochs=2, shuffle=False, verbose=0)
        found.append(weights_of(model))
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a, b)
