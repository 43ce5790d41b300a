"""A warning when no output has a reward."""

import warnings

import keras


class NoRewardWarning(keras.callbacks.Callback):
    """Warns once if no sample of the epoch so far has a finite reward.

    `RewardTuning` adds it. Training continues, but all advantages are 0, so the reward
    does not change the weights.
    """

    async_safe = True  # reads its own logs only

    def __init__(self):
        super().__init__()
        self.warned = False

    def on_train_batch_end(self, batch, logs=None):
        if self.warned or (logs or {}).get("no_reward", 0.0) < 1.0:
            return
        self.warned = True
        warnings.warn(
            "The reward is NaN or infinite for every sample so far, so nothing is "
            "learned: all advantages are 0. Call the reward on a few outputs "
            "(`tuned.reward(y, tuned.predict(x))`) to see why.",
            stacklevel=2,
        )
