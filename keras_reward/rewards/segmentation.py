"""Rewards for semantic segmentation: overlap of classes, image by image."""

import keras
from keras import ops

from keras_reward.rewards.overlap import OverlapReward


@keras.saving.register_keras_serializable(package="keras_reward")
class MeanIoUReward(OverlapReward):
    """Mean over classes of intersection over union, for each image.

    The mean is over the classes that are in the ground truth or in the prediction of
    that image, so that wrongly predicted classes are punished. A pixel predicted with a
    label outside `[0, num_classes)` is wrong. Void pixels of the ground truth do not
    count, whatever is predicted there; an image that is all void earns 0.

    With many classes, a few pixels of a wrong class cost as much as a whole class. A
    model that is often unsure then earns most by leaving out what it is not sure of.
    With `ignore_absent`, wrong pixels only cost what their own class loses.

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
        ignore_absent: if True, the mean is over the classes of the ground truth alone.
            Default False.
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
    With many classes, a few pixels of a wrong class cost a lot, see `MeanIoUReward`.
    It ranks the predictions of one class as the IoU does, but is milder on poor ones.
    Use `MeanIoUReward` if these should be punished more.

    Args:
        num_classes: classes are 0 to `num_classes - 1`. With 1, maps are binary masks
            of 0 and 1, of which only the foreground, 1, is rated: an image without
            foreground earns 1 if none is predicted, else 0.
        ignore_class: label of the void pixels in `y_true`. Other labels,
            such as 255 or -1, are void in any case. Default: none.
        ignore_absent: if True, the mean is over the classes of the ground truth alone.
            Default False.
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


@keras.saving.register_keras_serializable(package="keras_reward")
class FBetaReward(OverlapReward):
    """F-measure of pixels: the weighted harmonic mean of precision and recall.

    `(1 + beta^2) * overlap / (beta^2 * area + predicted)`, from the numbers of pixels
    of a class in both maps, in the ground truth and in the prediction. With `beta` of
    1, this is the Dice coefficient. By default of the foreground of binary masks; with
    more classes, the mean over those in the ground truth or the prediction of an image.
    Void pixels of the ground truth do not count; an image that is all void earns 0.

    Does not punish: anything on void pixels; errors of a few pixels in large classes;
    with a large `beta`, too much foreground, with a small one, too little.

    Args:
        num_classes: classes are 0 to `num_classes - 1`. Default 1: binary masks of 0
            and 1, of which only the foreground, 1, is rated: an image without
            foreground earns 1 if none is predicted, else 0.
        beta: how many times as much recall counts as precision. Default 1.0.
        ignore_class: label of the void pixels in `y_true`. Other labels,
            such as 255 or -1, are void in any case. Default: none.
        ignore_absent: if True, the mean is over the classes of the ground truth alone.
            Default False.
        name: optional name.

    Call arguments: as those of `DiceReward`. Returns `(rows,)` in [0, 1].

    Raises:
        ValueError: if `beta` is not positive.

    Example:

    ```python
    import numpy as np
    from keras_reward import FBetaReward

    y_true = np.array([[[0, 1, 1, 1]]])
    y_pred = np.array([[[1, 1, 0, 0]]])  # precision 1/2, recall 1/3
    FBetaReward(beta=2.0)(y_true, y_pred)  # [0.357]: 5 / (4 * 3 + 2)
    ```

    Reference: van Rijsbergen 1979, "Information retrieval", chapter 7.
    """

    def __init__(
        self,
        num_classes=1,
        beta=1.0,
        ignore_class=None,
        ignore_absent=False,
        name=None,
    ):
        super().__init__(num_classes, ignore_class, ignore_absent, name)
        if not beta > 0.0:
            raise ValueError(f"`beta` must be positive. Received: beta={beta}")
        self.beta = beta

    def ratio(self, overlap, area, predicted):
        weight = self.beta**2
        both = weight * ops.cast(area, "float32") + ops.cast(predicted, "float32")
        share = ops.cast(overlap, "float32") / ops.maximum(both, 1.0)
        return (1.0 + weight) * share

    def get_config(self):
        return {**super().get_config(), "beta": self.beta}
