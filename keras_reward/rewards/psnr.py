"""Reward for regression models."""

import math

import keras
from keras import ops

from keras_reward.rewards.checks import refuse_empty
from keras_reward.rewards.reward import Reward

MAX_ERROR = 1e9  # relative to `max_val`; its square still fits in float32


@keras.saving.register_keras_serializable(package="keras_reward")
class PSNRReward(Reward):
    """Peak signal-to-noise ratio: `20 log10(max_val) - 10 log10(mean squared error)`.

    In decibels, over all values of a row. It is at most `max_psnr`, the reward of a
    perfect output, whose ratio would be infinite. Errors of single values are clipped
    at 1e9 times `max_val`, so that the reward is finite for any finite input.

    Does not punish: blur. The mean of all plausible outputs has the best expected
    reward, however little it looks like any of them. Add a reward that considers more
    than single values, such as a `ModelReward`.

    Args:
        max_val: difference of the largest and smallest possible values. Default 1.
        max_psnr: upper limit in decibels. Default 100.
        name: optional name.

    Call arguments: `y_true` and `y_pred` numbers of the same shape `(rows, ...)`.
    Returns `(rows,)` in [-180, `max_psnr`].

    Example:

    ```python
    import numpy as np
    from keras_reward import PSNRReward

    y_true = np.zeros((2, 4, 4, 3), "float32")
    y_pred = np.stack([np.full((4, 4, 3), 0.1, "float32"), y_true[1]])
    PSNRReward()(y_true, y_pred)  # [20.0, 100.0]
    ```

    Reference: Horé and Ziou 2010, "Image quality metrics: PSNR vs. SSIM".
    """

    def __init__(self, max_val=1.0, max_psnr=100.0, name=None):
        super().__init__(name=name)
        if not max_val > 0.0:
            raise ValueError(f"`max_val` must be positive. Received: max_val={max_val}")
        self.max_val = max_val
        self.max_psnr = max_psnr

    def call(self, y_true, y_pred):
        shapes = [tuple(getattr(each, "shape", ())) for each in (y_true, y_pred)]
        is_same = len(shapes[0]) == len(shapes[1]) > 0 and all(
            None in sizes or sizes[0] == sizes[1] for sizes in zip(*shapes, strict=True)
        )
        if not is_same:
            raise ValueError(
                f"Reward {self.name!r} needs targets and outputs of the same shape "
                f"(rows, ...). Received: y_true of shape {shapes[0]}, "
                f"y_pred of shape {shapes[1]}"
            )
        refuse_empty(self.name, "y_pred", shapes[1])
        y_true, y_pred = (ops.cast(each, "float32") for each in (y_true, y_pred))
        error = (y_true - y_pred) / self.max_val
        error = ops.clip(error, -MAX_ERROR, MAX_ERROR)
        axes = tuple(range(1, len(shapes[0])))
        mean_squared = ops.mean(ops.square(error), axis=axes) if axes else error**2
        floor = 10.0 ** (-self.max_psnr / 10.0)
        return -10.0 / math.log(10.0) * ops.log(ops.maximum(mean_squared, floor))

    def get_config(self):
        config = {"max_val": self.max_val, "max_psnr": self.max_psnr}
        return {**super().get_config(), **config}
