"""How rewards read label maps: one integer for each pixel of an image."""

import warnings

import numpy as np
from keras import ops

from keras_reward.forms.integers import array_beyond_int32, as_int32, beyond_int32
from keras_reward.nests import dtype_of, host_array, is_float, is_integer
from keras_reward.rewards.checks import refuse_empty
from keras_reward.rewards.reward import Reward


class LabelMapReward(Reward):
    """Base class: compares label maps of the same size.

    Args:
        ignore_class: label of the pixels of `y_true` that do not count.
        name: optional name.
    """

    other_targets = ""  # what else `y_true` may be, in messages

    def __init__(self, ignore_class=None, name=None):
        super().__init__(name=name)
        self.ignore_class = ignore_class

    def narrow(self, argument, values):
        if argument == "y_true":
            self.warn_of_bytes(values)
        array = array_beyond_int32(values)
        if array is None:
            return values
        return np.where(beyond_int32(array), -1, array).astype("int32")

    def warn_of_bytes(self, values):
        """Warns of binary masks of 0 and 255, in which 255 would not count."""
        labels = host_array(values) if hasattr(values, "shape") else None
        if labels is None or not (labels == 255).any():
            return
        if ((labels > 0) & (labels != 255)).any():
            return
        warnings.warn(
            f"Reward {self.name!r} found the label 255, which does not count, and no "
            "label 1 in `y_true`. If these are masks of 0 and 255, divide them by 255.",
            stacklevel=2,
        )

    def check_values(self, y_true, y_pred):
        labels = host_array(y_true) if is_float(y_true) else None
        if labels is not None and not np.array_equal(labels, np.round(labels)):
            raise ValueError(
                f"Reward {self.name!r} needs whole numbers as `y_true`, the labels of "
                "pixels: round a soft mask first. "
                f"Received: values from {labels.min():g} to {labels.max():g}, not all "
                "of them whole"
            )

    def labels_of_targets(self, y_true):
        """Labels `(rows, height, width)` in int32, and which rows are labels.

        The latter, `(rows,)` bools, is None unless the targets are floats.
        """
        labels = self.checked_map("y_true", y_true)
        if not is_float(labels):
            return labels, None
        is_whole = labels == ops.round(labels)  # NaN is not
        labels = ops.cast(ops.where(is_whole, labels, -1.0), "int32")
        return labels, ops.all(is_whole, axis=(1, 2))

    def checked_map(self, argument, labels):
        """Label maps `(rows, height, width)` in int32; floats, of targets, as are."""
        shape = tuple(getattr(labels, "shape", ()))
        if len(shape) == 4 and shape[-1] == 1:
            labels, shape = ops.squeeze(labels, -1), shape[:-1]
        is_target = argument == "y_true" and is_float(labels)
        if len(shape) != 3 or not (is_target or is_label_dtype(labels)):
            hint = self.other_targets if argument == "y_true" else ""
            raise ValueError(
                f"Reward {self.name!r} needs integer label maps as `{argument}`{hint}. "
                "Expected: shape (rows, height, width) or (rows, height, width, 1). "
                f"Received: shape {shape}, "
                f"dtype {getattr(labels, 'dtype', type(labels).__name__)}"
            )
        refuse_empty(self.name, argument, shape)
        return labels if is_target else as_int32(labels, -1)

    def check_same_size(self, truth, labels):
        """Raises unless two tensors `(rows, height, width)` are of the same size."""
        for true_size, size in zip(truth.shape[1:], labels.shape[1:], strict=True):
            if None not in (true_size, size) and true_size != size:
                raise ValueError(
                    f"Reward {self.name!r} needs maps of the same size. Received: "
                    f"y_true of {tuple(truth.shape[1:])} pixels, y_pred of "
                    f"{tuple(labels.shape[1:])}"
                )

    def get_config(self):
        return {**super().get_config(), "ignore_class": self.ignore_class}


def is_label_dtype(tensor):
    """Whether a tensor or array is of integers or bools."""
    return is_integer(tensor) or dtype_of(tensor) == "bool"
