"""Ends a run after the step in which Ctrl-C was pressed."""

import keras

from keras_reward import interrupts


class Interruption(keras.callbacks.Callback):
    """Raises a `KeyboardInterrupt` between two steps, with all weights kept.

    `RewardTuning` adds it to `fit`, `evaluate` and `predict`, in which it defers Ctrl-C
    to here, see `keras_reward.interrupts`.
    """

    # At the beginning of steps, which Keras never dispatches to other threads: at the
    # end of one it would have to wait for the device.
    def on_epoch_begin(self, epoch, logs=None):
        self.end_if_wanted()

    def on_train_batch_begin(self, batch, logs=None):
        self.end_if_wanted()

    def on_test_batch_begin(self, batch, logs=None):
        self.end_if_wanted()

    def on_predict_batch_begin(self, batch, logs=None):
        self.end_if_wanted()

    def end_if_wanted(self):
        if interrupts.is_wanted():
            self.model.keep_weights()
            raise KeyboardInterrupt


def with_interruption(callbacks, model):
    """The callbacks of a loop of Keras, with an `Interruption`.

    Args:
        callbacks: as Keras takes them.
        model: the `RewardTuning`.

    Returns:
        A list, or the `keras.callbacks.CallbackList` that was given.
    """
    own = Interruption()
    if not isinstance(callbacks, keras.callbacks.CallbackList):
        return [*(keras.tree.flatten(callbacks) if callbacks else []), own]
    if not any(isinstance(callback, Interruption) for callback in callbacks.callbacks):
        own.set_model(model)
        callbacks.callbacks.append(own)
    return callbacks
