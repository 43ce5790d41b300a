"""An error in a reward that runs on the host ends the training."""

import keras


class HostFailure(keras.callbacks.Callback):
    """Raises what went wrong in a `HostReward`, after the step in which it did.

    `RewardTuning` adds it where the reward runs on the host. The rows that
    failed had no influence on that step, and the model keeps its weights.
    """

    # Not safe to run apart from the steps, so Keras waits for each one to end.
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
