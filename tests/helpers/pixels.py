"""Linear models of 2 x 2 pixels, their targets, and rewards with and without credit."""

import keras
import numpy as np
from keras import ops

from keras_reward import FunctionReward

INPUTS = np.array([[1.0, -0.5], [0.3, 0.8], [-0.7, 0.2]])
KERNEL = np.random.default_rng(0).normal(0, 0.7, (2, 12))
WEIGHTS = np.array([1.0, 2.0, 0.5])  # of the inputs
# Targets of 2 x 2 pixels. The third has no reward: its labels are not whole numbers.
MASKS = np.array([[[0, 1], [1, 1]], [[1, 0], [255, 0]], [[0.5, 0], [0, 1]]])
MAPS = np.array([[[0, 2], [1, 2]], [[1, 1], [255, 0]], [[0.5, 0], [0, 1]]])


def linear_model(*shape, dtype="float32"):
    units = int(np.prod(shape))
    model = keras.Sequential(
        [
            keras.Input((2,)),
            keras.layers.Dense(units, use_bias=False, dtype=dtype),
            keras.layers.Reshape(shape, dtype=dtype),
        ]
    )
    model.set_weights([KERNEL[:, :units]])
    return model


@FunctionReward
def match_of_rows(y_true, y_pred):
    equal = ops.cast(ops.cast(y_true, "int32") == y_pred, "float32")
    return ops.mean(equal, axis=(1, 2))


def neighbours_agree(y_true, y_pred):
    """Of each pixel, times a target: whether the next one in its row is the same."""
    same = ops.cast(y_pred[:, :, :1] == y_pred[:, :, 1:], "float32")
    weight = ops.where(y_true < 1.0, 1.0, -2.0)
    own = ops.cast(y_pred == 1, "float32") * weight
    return ops.concatenate([2.0 * same, -1.0 * same], axis=2) + own
