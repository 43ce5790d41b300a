"""The progress bar, with the reward in front."""

import keras


class RewardProgress(keras.callbacks.ProgbarLogger):
    """Keras's progress bar with `reward` and `val_reward` first.

    `RewardTuning` adds it; Keras would list the metrics by name.
    """

    async_safe = True  # like the progress bar that Keras adds

    def _update_progbar(self, batch, logs=None):
        super()._update_progbar(batch, reward_first(logs))

    def _finalize_progbar(self, logs):
        super()._finalize_progbar(reward_first(logs))


def reward_first(logs):
    """A copy of the logs: `reward`, `val_reward`, then the others as they were."""
    logs = dict(logs or {})
    lead = {name: logs[name] for name in ("reward", "val_reward") if name in logs}
    return {**lead, **logs}
