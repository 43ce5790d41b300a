"""A progress bar that shows the reward first."""

import keras


class RewardProgress(keras.callbacks.ProgbarLogger):
    """Keras's progress bar with `reward` and `val_reward` first.

    `RewardTuning` adds it; Keras would list the metrics by name.
    """

    async_safe = True  # like the progress bar that Keras adds

    def on_train_batch_end(self, batch, logs=None):
        super().on_train_batch_end(batch, reward_first(logs))

    def on_test_batch_end(self, batch, logs=None):
        super().on_test_batch_end(batch, reward_first(logs))

    def on_epoch_end(self, epoch, logs=None):
        super().on_epoch_end(epoch, reward_first(logs))

    def on_test_end(self, logs=None):
        super().on_test_end(reward_first(logs))


def reward_first(logs):
    """A copy of the logs: `reward`, `val_reward`, then the others in their order.

    Without `invalid_inputs` while there are none.
    """
    logs = {
        name: value
        for name, value in (logs or {}).items()
        if value or not name.endswith("invalid_inputs")
    }
    lead = {name: logs[name] for name in ("reward", "val_reward") if name in logs}
    return {**lead, **logs}
