"""A warning when no output has a reward, or no input is valid."""

import warnings

import keras

from keras_reward.advantages import LARGEST_REWARD


class NoRewardWarning(keras.callbacks.Callback):
    """Warns once if no sample of the epoch so far has a finite reward.

    It names the inputs instead if all of them have NaN or infinite values.

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
        if logs.get("invalid_inputs", 0.0) >= 1.0:
            warnings.warn(
                "Every input so far has a NaN or infinite value, so nothing is "
                "learned: such inputs are left out. Look at `x`, for example at "
                "`numpy.isfinite(x).all()`.",
                stacklevel=2,
            )
            return
        warnings.warn(
            "The reward is NaN or infinite for every sample so far, or beyond "
            f"{LARGEST_REWARD:.0e}, so nothing is learned: all advantages are 0. Call "
            "the reward on a few outputs (`tuned.reward(y, tuned.predict(x))`) to see "
            "why.",
            stacklevel=2,
        )
