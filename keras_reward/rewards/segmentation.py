"""Rewards for semantic segmentation: overlap of classes, image by image."""

import keras
import numpy as np
from keras import ops

from keras_reward.nests import is_float, with_last_sizes
from keras_reward.rewards.label_maps import LabelMapReward


class OverlapReward(LabelMapReward):
    """Base class: a mean over classes of a ratio of pixel counts.

    Args:
        num_classes: classes are 0 to `num_classes - 1`. With 1, maps are 0 and 1, and
            only class 1, the foreground, is rated.
        ignore_class: label of the pixels of `y_true` that do not count. Other labels,
            such as 255 or -1, never count.
        name: optional name.
    """

    other_targets = ", or one-hot"

    def __init__(self, num_classes, ignore_class=None, name=None):
        super().__init__(ignore_class, name=name)
        if num_classes < 1:
            raise ValueError(
                f"`num_classes` must be at least 1. Received: num_classes={num_classes}"
            )
        self.num_classes = num_classes

    @property
    def num_labels(self):
        """Number of labels that count: classes, and the background of class 1 alone."""
        return max(2, self.num_classes)

    def warn_of_bytes(self, values):
        if self.num_classes <= 2:
            super().warn_of_bytes(values)

    def prepare(self, y_true):
        labels, readable = self.labels_of_targets(y_true)
        is_void = ops.logical_or(labels < 0, labels >= self.num_labels)
        if self.ignore_class is not None:
            is_void = ops.logical_or(is_void, labels == self.ignore_class)
        labels = ops.where(is_void, self.num_labels, labels)
        area = histogram(labels, self.num_labels + 1)[:, :-1]
        targets = {"labels": labels, "area": area}
        return targets if readable is None else {**targets, "readable": readable}

    def call(self, y_true, y_pred):
        labels = self.checked_map("y_pred", y_pred)
        truth = y_true["labels"]
        self.check_same_size(truth, labels)
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
        if not self._is_one_hot(y_true):
            super().check_values(y_true, y_pred)

    def ratio(self, overlap, area, predicted):
        """The ratio of each class from pixel counts, `(rows, num_classes)` float32.

        Args:
            overlap: pixels of the class in both maps, `(rows, num_labels)`.
            area: pixels of the class in the ground truth.
            predicted: pixels of the class in the prediction, outside void.
        """
        raise NotImplementedError

    def get_config(self):
        return {**super().get_config(), "num_classes": self.num_classes}

    def _is_one_hot(self, y_true):
        shape = tuple(getattr(y_true, "shape", ()))
        return len(shape) == 4 and shape[-1] == self.num_classes > 1

    def labels_of_targets(self, y_true):
        shape = tuple(getattr(y_true, "shape", ()))
        if len(shape) == 4 and shape[-1] is None and is_float(y_true):
            # One-hot, or the one channel of a binary mask.
            y_true = with_last_sizes(y_true, (self.num_classes,))
        if not self._is_one_hot(y_true):
            return super().labels_of_targets(y_true)
        one_hot = ops.cast(y_true, "float32")
        largest = ops.max(one_hot, axis=-1)
        labels = ops.cast(ops.argmax(one_hot, axis=-1), "int32")
        readable = None
        if is_float(y_true):
            readable = ops.all(largest == largest, axis=(1, 2))
        return ops.where(largest > 0.0, labels, -1), readable


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
