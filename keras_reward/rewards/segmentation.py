"""Rewards for semantic segmentation: overlap of classes, image by image."""

import warnings

import keras
import numpy as np
from keras import ops

from keras_reward.forms.integers import array_beyond_int32, as_int32, beyond_int32
from keras_reward.nests import (
    dtype_of,
    host_array,
    is_float,
    is_integer,
    with_last_sizes,
)
from keras_reward.rewards.reward import Reward


class OverlapReward(Reward):
    """Base class: a mean over classes of a ratio of pixel counts.

    Args:
        num_classes: classes are 0 to `num_classes - 1`. With 1, maps are 0 and 1, and
            only class 1, the foreground, is rated.
        ignore_class: label of the pixels of `y_true` that do not count. Other labels,
            such as 255 or -1, never count.
        name: optional name.
    """

    def __init__(self, num_classes, ignore_class=None, name=None):
        super().__init__(name=name)
        if num_classes < 1:
            raise ValueError(
                f"`num_classes` must be at least 1. Received: num_classes={num_classes}"
            )
        self.num_classes = num_classes
        self.ignore_class = ignore_class

    @property
    def num_labels(self):
        """Number of labels that count: classes, and the background of class 1 alone."""
        return max(2, self.num_classes)

    def narrow(self, argument, values):
        if argument == "y_true" and self.num_classes <= 2:
            self.warn_of_bytes(values)
        array = array_beyond_int32(values)
        if array is None:
            return values
        return np.where(beyond_int32(array), -1, array).astype("int32")

    def warn_of_bytes(self, values):
        """Warns of binary masks of 0 and 255, in which 255 would not count."""
        labels = host_array(values) if hasattr(values, "shape") else None
        if labels is None or not (labels == 255).any() or (labels == 1).any():
            return
        warnings.warn(
            f"Reward {self.name!r} found the label 255, which does not count, and no "
            "label 1 in `y_true`. If these are masks of 0 and 255, divide them by 255.",
            stacklevel=2,
        )

    def prepare(self, y_true):
        labels, readable = self._labels_of_targets(y_true)
        is_void = ops.logical_or(labels < 0, labels >= self.num_labels)
        if self.ignore_class is not None:
            is_void = ops.logical_or(is_void, labels == self.ignore_class)
        labels = ops.where(is_void, self.num_labels, labels)
        area = histogram(labels, self.num_labels + 1)[:, :-1]
        targets = {"labels": labels, "area": area}
        return targets if readable is None else {**targets, "readable": readable}

    def call(self, y_true, y_pred):
        labels = self._checked("y_pred", y_pred)
        truth = y_true["labels"]
        for true_size, size in zip(truth.shape[1:], labels.shape[1:], strict=True):
            if None not in (true_size, size) and true_size != size:
                raise ValueError(
                    f"Reward {self.name!r} needs maps of the same size. Received: "
                    f"y_true of {tuple(truth.shape[1:])} pixels, y_pred of "
                    f"{tuple(labels.shape[1:])}"
                )
        classes = self.num_labels
        left_out = ops.logical_or(truth == classes, labels < 0)
        left_out = ops.logical_or(left_out, labels >= classes)
        # Correct and wrong pixels of each predicted class, in one histogram.
        kinds = ops.where(labels == truth, labels, labels + classes)
        counts = histogram(ops.where(left_out, 2 * classes, kinds), 2 * classes + 1)
        overlap = counts[:, :classes]
        predicted = overlap + counts[:, classes : 2 * classes]
        ratios = self.ratio(overlap, y_true["area"], predicted)
        reward = self.mean_ratio(ratios, y_true["area"] + predicted > 0)
        if "readable" in y_true:
            reward = ops.where(y_true["readable"], reward, np.nan)
        return reward

    def mean_ratio(self, ratios, present):
        """The mean over classes that are present; 0 for an image that is all void.

        Args:
            ratios: `(rows, num_labels)`.
            present: bools, which classes are in the ground truth or the prediction.
        """
        if self.num_classes == 1:
            # Rightly no foreground is as good as can be.
            reward = ops.where(present[:, 1], ratios[:, 1], 1.0)
            return ops.where(ops.any(present, axis=-1), reward, 0.0)
        present = ops.cast(present, "float32")
        number = ops.maximum(ops.sum(present, axis=-1), 1.0)
        return ops.sum(ratios * present, axis=-1) / number

    def check_values(self, y_true, y_pred):
        if not is_float(y_true) or self._is_one_hot(y_true):
            return
        labels = host_array(y_true)
        if labels is not None and not np.array_equal(labels, np.round(labels)):
            raise ValueError(
                f"Reward {self.name!r} needs whole numbers as `y_true`, the labels of "
                "pixels: round a soft mask first. "
                f"Received: values from {labels.min():g} to {labels.max():g}, not all "
                "of them whole"
            )

    def ratio(self, overlap, area, predicted):
        """The ratio of each class from pixel counts, `(rows, num_classes)` float32.

        Args:
            overlap: pixels of the class in both maps, `(rows, num_labels)`.
            area: pixels of the class in the ground truth.
            predicted: pixels of the class in the prediction, outside void.
        """
        raise NotImplementedError

    def get_config(self):
        config = {"num_classes": self.num_classes, "ignore_class": self.ignore_class}
        return {**super().get_config(), **config}

    def _is_one_hot(self, y_true):
        shape = tuple(getattr(y_true, "shape", ()))
        return len(shape) == 4 and shape[-1] == self.num_classes > 1

    def _labels_of_targets(self, y_true):
        """Labels `(rows, height, width)` in int32, and which rows are labels.

        The latter, `(rows,)` bools, is None unless the targets are floats.
        """
        shape = tuple(getattr(y_true, "shape", ()))
        if len(shape) == 4 and shape[-1] is None and is_float(y_true):
            # One-hot, or the one channel of a binary mask.
            y_true = with_last_sizes(y_true, (self.num_classes,))
        if not self._is_one_hot(y_true):
            labels = self._checked("y_true", y_true)
            if not is_float(labels):
                return labels, None
            is_whole = labels == ops.round(labels)  # NaN is not
            labels = ops.cast(ops.where(is_whole, labels, -1.0), "int32")
            return labels, ops.all(is_whole, axis=(1, 2))
        one_hot = ops.cast(y_true, "float32")
        largest = ops.max(one_hot, axis=-1)
        labels = ops.cast(ops.argmax(one_hot, axis=-1), "int32")
        readable = None
        if is_float(y_true):
            readable = ops.all(largest == largest, axis=(1, 2))
        return ops.where(largest > 0.0, labels, -1), readable

    def _checked(self, argument, labels):
        """Label maps `(rows, height, width)` in int32; floats, of targets, as are."""
        shape = tuple(getattr(labels, "shape", ()))
        if len(shape) == 4 and shape[-1] == 1:
            labels, shape = ops.squeeze(labels, -1), shape[:-1]
        is_target = argument == "y_true" and is_float(labels)
        if len(shape) != 3 or not (is_target or is_label_dtype(labels)):
            hint = ", or one-hot" if argument == "y_true" else ""
            raise ValueError(
                f"Reward {self.name!r} needs integer label maps as `{argument}`{hint}. "
                "Expected: shape (rows, height, width) or (rows, height, width, 1). "
                f"Received: shape {shape}, "
                f"dtype {getattr(labels, 'dtype', type(labels).__name__)}"
            )
        return labels if is_target else as_int32(labels, -1)


def is_label_dtype(tensor):
    """Whether a tensor or array is of integers or bools."""
    return is_integer(tensor) or dtype_of(tensor) == "bool"


def histogram(values, size):
    """Counts how often each number occurs in each row.

    Args:
        values: int32 in `[0, size)`, `(rows, height, width)`.

    Returns:
        `(rows, size)` int32.
    """
    rows = ops.shape(values)[0]
    # One flat scatter for all rows: a batched one is many times slower on a CPU.
    starts = ops.reshape(ops.arange(rows, dtype="int32") * size, (-1, 1, 1))
    flat = ops.reshape(values + starts, (-1,))
    counts = ops.segment_sum(ops.ones_like(flat), flat, rows * size)
    return ops.reshape(ops.cast(counts, "int32"), (-1, size))


@keras.saving.register_keras_serializable(package="keras_reward")
class MeanIoUReward(OverlapReward):
    """Mean over classes of intersection over union, for each image.

    The mean is over the classes that are in the ground truth or in the prediction of
    that image, so that wrongly predicted classes are punished. A pixel predicted with a
    label outside `[0, num_classes)` is wrong. Void pixels of the ground truth do not
    count, whatever is predicted there; an image that is all void earns 0.

    Does not punish: anything on void pixels; errors of a few pixels in large classes,
    such as ragged borders. The mean over images is not the mean IoU of the dataset,
    which pools the pixels of all images.

    Args:
        num_classes: classes are 0 to `num_classes - 1`. With 1, maps are binary masks
            of 0 and 1, of which only the foreground, 1, is rated: an image without
            foreground earns 1 if none is predicted, else 0.
        ignore_class: label of the void pixels in `y_true`, as in
            `keras.metrics.MeanIoU`. Other labels, such as 255 or -1,
            are void in any case. Default: none.
        name: optional name.

    Call arguments: `y_true` labels `(rows, height, width)` or
    `(rows, height, width, 1)`, or one-hot `(rows, height, width, num_classes)`, where
    a pixel of zeros is void; `y_pred` int labels `(rows, height, width)` or
    `(rows, height, width, 1)`. Labels of `y_true` are integers, bools, or floats that
    are whole numbers, such as the masks for Keras's losses. Returns `(rows,)` in
    [0, 1]; NaN for a row of `y_true` with a float that is not a whole number.

    Example:

    ```python
    import numpy as np
    from keras_reward import MeanIoUReward

    y_true = np.array([[[0, 0, 1, 255]]])
    y_pred = np.array([[[0, 1, 1, 1]]])
    MeanIoUReward(num_classes=3)(y_true, y_pred)  # [0.5]: 1/2 for both classes
    ```

    Reference: Everingham et al. 2010, "The PASCAL visual object classes (VOC)
    challenge", section 4.3 (segmentation).
    """

    def ratio(self, overlap, area, predicted):
        union = ops.maximum(area + predicted - overlap, 1)
        return ops.cast(overlap, "float32") / ops.cast(union, "float32")


@keras.saving.register_keras_serializable(package="keras_reward")
class DiceReward(OverlapReward):
    """Mean over classes of the Dice coefficient, for each image.

    The Dice coefficient of a class is twice its overlap divided by its pixels in the
    ground truth plus its pixels in the prediction. The mean is over the classes that
    are in the ground truth or in the prediction of that image. A pixel predicted with a
    label outside `[0, num_classes)` is wrong. Void pixels of the ground truth do not
    count, whatever is predicted there; an image that is all void earns 0.

    Does not punish: anything on void pixels; errors of a few pixels in large classes.
    It ranks the predictions of one class as the IoU does, but is milder on poor ones.
    Use `MeanIoUReward` if these should be punished more.

    Args:
        num_classes: classes are 0 to `num_classes - 1`. With 1, maps are binary masks
            of 0 and 1, of which only the foreground, 1, is rated: an image without
            foreground earns 1 if none is predicted, else 0.
        ignore_class: label of the void pixels in `y_true`. Other labels,
            such as 255 or -1, are void in any case. Default: none.
        name: optional name.

    Call arguments: `y_true` labels `(rows, height, width)` or
    `(rows, height, width, 1)`, or one-hot `(rows, height, width, num_classes)`, where
    a pixel of zeros is void; `y_pred` int labels `(rows, height, width)` or
    `(rows, height, width, 1)`. Labels of `y_true` are integers, bools, or floats that
    are whole numbers, such as the masks for Keras's losses. Returns `(rows,)` in
    [0, 1]; NaN for a row of `y_true` with a float that is not a whole number.

    Example:

    ```python
    import numpy as np
    from keras_reward import DiceReward

    y_true = np.array([[[0, 0, 1, 255]]])
    y_pred = np.array([[[0, 1, 1, 1]]])
    DiceReward(num_classes=3)(y_true, y_pred)  # [0.667]: 2/3 for both classes
    ```

    Reference: Dice 1945, "Measures of the amount of ecologic association between
    species".
    """

    def ratio(self, overlap, area, predicted):
        both = ops.maximum(area + predicted, 1)
        return 2.0 * ops.cast(overlap, "float32") / ops.cast(both, "float32")
