"""Ends training when a reward that runs on the host fails."""

import keras


class HostFailure(keras.callbacks.Callback):
    """Raises an error that occurred in a `HostReward`, after the step in which it did.

    `RewardTuning` adds it if the reward runs on the host. The rows that failed had no
    influence on that step, and the model keeps its weights.
    """

    # Must run between steps, so Keras waits for each one to end.
    async_safe = False

    def on_train_batch_end(self, batch, logs=None):
        self.raise_failure()

    def on_test_batch_end(self, batch, logs=None):
        self.raise_failure()

    def raise_failure(self):
        try:
            self.model.reward.raise_failure()
        except BaseException:
            self.model.keep_weights()
            raise
