"""A step on JAX that needs more memory than there is."""

import jax
import keras
import numpy as np
import pytest
from keras import ops
from tiny import classifier, inputs, weights_of

from keras_reward import RewardTuning


class Checkpoint(keras.callbacks.Callback):
    newest = "folder/step_7"


def class_three(y_true, y_pred):
    return ops.cast(y_pred == 3, "float32")


def needs_terabytes_for_half_a_batch(y_true, y_pred):
    reward = class_three(y_true, y_pred)
    if y_pred.shape[0] == 8:  # rows, of 4 inputs
        noise = keras.random.uniform((2**23, 2**22), seed=1)
        reward = reward + 0.0 * ops.sort(noise, axis=0)[:8, 0]
    return reward


def test_the_error_names_the_newest_checkpoint():
    tuned = RewardTuning(classifier(), reward=needs_terabytes_for_half_a_batch, seed=0)
    tuned.compile(keras.optimizers.Adam(0.1))
    with pytest.raises(RuntimeError, match="Out of memory") as caught:
        tuned.fit(
            inputs(20), batch_size=8, shuffle=False, verbose=0, callbacks=Checkpoint()
        )
    notes = " ".join(caught.value.__notes__)
    assert "take smaller batches" in notes
    assert "The weights were lost with the step" in notes
    assert "The newest checkpoint is folder/step_7." in notes


def with_failing_step(are_taken):
    """A tuner whose third step fails, before or after it has taken its inputs."""
    tuned = RewardTuning(classifier(), reward=class_three, seed=0)
    tuned.compile(keras.optimizers.Adam(0.1))
    tuned.make_train_function()
    step, calls = tuned.train_function, []

    def failing(state, data):
        calls.append(1)
        if len(calls) == 3:
            if are_taken:
                jax.tree.map(lambda leaf: leaf.delete(), state)
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return step(state, data)

    tuned.train_function = failing
    return tuned


@pytest.mark.parametrize("are_taken", [False, True])
def test_weights_come_back_where_the_step_has_not_taken_them(are_taken):
    x = inputs(32)
    two_steps = with_failing_step(are_taken)
    two_steps.fit(x[:16], batch_size=8, shuffle=False, verbose=0)
    tuned = with_failing_step(are_taken)
    with pytest.raises(RuntimeError, match="RESOURCE_EXHAUSTED") as caught:
        tuned.fit(x, batch_size=8, shuffle=False, verbose=0)
    notes = " ".join(caught.value.__notes__)
    assert "The newest checkpoint" not in notes
    if are_taken:
        assert "The weights were lost with the step" in notes
        return
    assert "The model has the weights of before the step" in notes
    pairs = zip(weights_of(two_steps.model), weights_of(tuned.model), strict=True)
    for one, other in pairs:
        np.testing.assert_array_equal(one, other)
