"""Rewards for detected boxes (Pinto et al. 2023, section 4.2)."""

import keras
import numpy as np
from keras import ops

from keras_reward.forms.boxes import (
    best_ious,
    iou_rounding,
    published_ious,
    read_boxes,
    standardize_format,
)
from keras_reward.rewards.box_matching import DetectionReward
from keras_reward.rewards.checks import check_rows
from keras_reward.rewards.class_weights import inverse_frequency

COCO_THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)


def matched_iou(y_true, y_pred, iou_threshold=0.5, bounding_box_format="xyxy"):
    """IoU of each predicted box with the ground-truth box that it matches.

    The score of a box should predict this: it is the target of `ConfidenceLoss`, which
    goes with `MeanAveragePrecisionReward`. As in the published code, a duplicate has
    the IoU with its own best ground-truth box, like the match itself.

    Args:
        y_true: dict of `boxes` `(rows, G, 4)` and `labels` or `classes` `(rows, G)`.
        y_pred: dict of `boxes` `(rows, M, 4)` and `labels` or `classes` `(rows, M)`.
        iou_threshold: IoU that a match must exceed; an IoU of exactly the threshold
            does not, whatever the rounding. Default 0.5.
        bounding_box_format: Keras's name of the format of all boxes. Default `"xyxy"`.

    Returns:
        `(rows, M)` float32 in [0, 1]: 0 for padding and for boxes without a
        ground-truth box of their class that they overlap by more than the threshold.

    Example:

    ```python
    import numpy as np
    from keras_reward import matched_iou

    truth = {"boxes": np.array([[[0, 0, 4, 4]]], "float32"), "labels": np.array([[7]])}
    boxes = np.array([[[0, 0, 4, 3], [0, 0, 4, 1], [0, 0, 4, 4]]], "float32")
    matched_iou(truth, {"boxes": boxes, "labels": np.array([[7, 7, 2]])})
    # [[0.75, 0.0, 0.0]]
    ```

    Reference: Pinto et al. 2023, "Tuning computer vision models with task rewards".
    """
    layout = standardize_format(bounding_box_format)
    truth = read_boxes(y_true, layout, "y_true")
    boxes = read_boxes(y_pred, layout, "y_pred")
    check_rows("matched_iou", truth, boxes)
    iou, surely, _ = best_ious(truth, boxes, iou_rounding(ops, boxes, layout))
    return ops.where(surely > iou_threshold, ops.minimum(iou, 1.0), 0.0)


def published_thresholds(thresholds):
    """The thresholds that the authors' code averages over.

    It stores results in a dict by the threshold rounded to one decimal, where later
    ones replace earlier ones, and then looks up each threshold.
    """
    stored = {f"{threshold:0.1f}": threshold for threshold in thresholds}
    return tuple(stored[f"{threshold:0.1f}"] for threshold in thresholds)


@keras.saving.register_keras_serializable(package="keras_reward")
class RecallReward(DetectionReward):
    """Number of ground-truth boxes found, minus a penalty for finding them twice.

    A predicted box is assigned to the ground-truth box of its class with which it has
    the highest intersection over union (IoU), if that is above the threshold. (An IoU
    of exactly the threshold is not above it, whatever the rounding in float32.) Of the
    boxes assigned to a ground-truth box, the best is its match and the others are
    duplicates. The reward is matches minus `duplicate_penalty` times duplicates,
    averaged over the thresholds. It is a count, not divided by the number of boxes.
    Logs the components `matches` and `duplicates`.

    Does not punish, by default: false positives, that is, boxes that are assigned to no
    ground-truth box. Then showing everything is optimal: a model that may predict many
    boxes earns more by predicting as many as it can. Fix the number of boxes, or set
    `false_positive_penalty`. With a penalty of p, a box that would be a match is worth
    showing if the probability that it is right is above p / (1 + p). It ignores
    confidences: train them with `matched_iou` as target.

    Args:
        iou_thresholds: IoUs that a match must exceed. Default `(0.5,)`, our choice:
            the published code only sets thresholds for average precision.
        duplicate_penalty: what a duplicate costs. Default 0.3.
        bounding_box_format: Keras's name of the format of all boxes, in pixels or
            relative. Default `"xyxy"`.
        false_positive_penalty: what a false positive costs. At a threshold, it is a box
            with a label that is assigned to no ground-truth box, an empty one or one
            with NaN too. Default 0, as published. Else the number of them is logged as
            the component `false_positives`.
        name: optional name.

    Call arguments: `y_true` and `y_pred` are dicts of `boxes`, `(rows, N, 4)` floats,
    and `labels` or `classes`, `(rows, N)` whole numbers. Any negative label is
    padding. The numbers of boxes may differ; other keys, such as `scores`, are
    ignored. Empty and inverted boxes and boxes with NaN match nothing. Returns
    `(rows,)` from minus the larger penalty times the number of predicted boxes to the
    number of ground-truth boxes. Credits parts that are boxes, see `alternatives` and
    `gains`.

    Example:

    ```python
    import numpy as np
    from keras_reward import RecallReward

    truth = {"boxes": np.array([[[0, 0, 4, 4]]], "float32"), "labels": np.array([[7]])}
    boxes = np.array([[[0, 0, 4, 4], [0, 0, 4, 3], [9, 9, 10, 10]]], "float32")
    boxes = {"boxes": boxes, "labels": np.array([[7, 7, 7]])}
    RecallReward()(truth, boxes)  # [0.7]: match, duplicate, free false positive
    RecallReward(false_positive_penalty=0.1)(truth, boxes)  # [0.6]
    ```

    Reference: Pinto et al. 2023, "Tuning computer vision models with task rewards".
    """

    def __init__(
        self,
        iou_thresholds=(0.5,),
        duplicate_penalty=0.3,
        bounding_box_format="xyxy",
        false_positive_penalty=0.0,
        name=None,
    ):
        super().__init__(
            iou_thresholds,
            duplicate_penalty,
            bounding_box_format,
            false_positive_penalty,
            name,
        )


@keras.saving.register_keras_serializable(package="keras_reward")
class MeanAveragePrecisionReward(DetectionReward):
    """`RecallReward` over several IoU thresholds, with larger weights for rare classes.

    Rewards what raises COCO's mean average precision: tight boxes, and rare classes as
    much as frequent ones. A match is weighted by the class of the ground truth, a
    duplicate by the predicted class; the weights are proportional to
    `1 / (count + class_smoothing * sum of counts)` and have mean 1 over all classes.
    Logs the components `matches` and `duplicates`, which are unweighted numbers of
    boxes.

    Does not punish, by default: false positives and meaningless confidences, though
    average precision depends on the order of confidences. With false positives free,
    showing everything is optimal. Fix the number of boxes or set
    `false_positive_penalty`, and train the confidence with `matched_iou` as target.

    Args:
        iou_thresholds: IoUs that a match must exceed. Default 0.50, 0.55, ..., 0.95.
        duplicate_penalty: what a duplicate costs. Default 0.3.
        class_counts: number of boxes of each class in the training data, `"coco"` for
            those of COCO's 80 classes, or None (the default) for equal weights. A label
            beyond the counts has the weight of the rarest class.
        class_smoothing: share of all boxes that is added to each count. Default 0.05.
        as_published: if True, compute as the authors' code does. It stores the result
            of each threshold under the threshold rounded to one decimal, so that only
            five of the ten are left, with the weights {0.5: 1, 0.6: 2, 0.7: 2, 0.85: 3,
            0.95: 2} / 10. It divides in float32 by a union of relative boxes plus
            1e-9, which keeps small boxes below a threshold that they meet exactly;
            with others, rounding decides. Needs a relative format or `image_size`.
            Default False: the mean, and no rounding.
        bounding_box_format: Keras's name of the format of all boxes, in pixels or
            relative. Default `"xyxy"`.
        image_size: with `as_published` and boxes in pixels, the size of the images that
            they are divided by: `(height, width)`, or one int for both. Default None.
        false_positive_penalty: what a false positive costs, as for `RecallReward`, here
            weighted by the predicted class like a duplicate: so it pays to show a box
            from the same probability on in each class. Default 0, as published.
        name: optional name.

    Call arguments: as for `RecallReward`. Returns `(rows,)` from minus the larger
    penalty to 1 times the weights of the boxes.

    Example:

    ```python
    import numpy as np
    from keras_reward import MeanAveragePrecisionReward

    truth = {"boxes": np.array([[[0, 0, 4, 4]]], "float32"), "labels": np.array([[0]])}
    boxes = np.array([[[0, 0, 4, 3]]], "float32")
    MeanAveragePrecisionReward()(truth, {"boxes": boxes, "labels": np.array([[0]])})
    # [0.5]: an IoU of 0.75 is above five of the ten thresholds
    ```

    Reference: Pinto et al. 2023, "Tuning computer vision models with task rewards", and
    the `detection_reward.py` published with it.
    """

    def __init__(
        self,
        iou_thresholds=COCO_THRESHOLDS,
        duplicate_penalty=0.3,
        class_counts=None,
        class_smoothing=0.05,
        as_published=False,
        bounding_box_format="xyxy",
        image_size=None,
        false_positive_penalty=0.0,
        name=None,
    ):
        super().__init__(
            iou_thresholds,
            duplicate_penalty,
            bounding_box_format,
            false_positive_penalty,
            name,
        )
        self.class_counts = class_counts
        self.class_smoothing = class_smoothing
        self.as_published = as_published
        self.image_size = image_size
        self.divisor = None
        if as_published:
            self.averaged_thresholds = published_thresholds(self.iou_thresholds)
            if not self.bounding_box_format.startswith("rel_"):
                self.divisor = self.size_to_divide_by(image_size)
        self.class_weights = None
        if class_counts is not None:
            self.class_weights = inverse_frequency(class_counts, class_smoothing)

    def size_to_divide_by(self, image_size):
        if image_size is None:
            raise ValueError(
                "The published code computes with relative boxes: with `as_published`, "
                "use a relative format, or give `image_size=(height, width)`. "
                f"Received: bounding_box_format={self.bounding_box_format!r}, "
                "image_size=None"
            )
        return (image_size,) * 2 if isinstance(image_size, int) else tuple(image_size)

    def read(self, detections, role):
        return read_boxes(detections, self.bounding_box_format, role, self.divisor)

    def ious(self, truth, boxes):
        if self.as_published:
            return published_ious(truth, boxes)
        return super().ious(truth, boxes)

    def weights(self, labels):
        if self.class_weights is None:
            return super().weights(labels)
        unknown = len(self.class_weights) - 1
        return ops.take(self.class_weights, ops.clip(labels, 0, unknown))

    def get_config(self):
        counts = self.class_counts
        if counts is not None and not isinstance(counts, str):
            counts = np.asarray(counts).tolist()
        return {
            **super().get_config(),
            "class_counts": counts,
            "class_smoothing": self.class_smoothing,
            "as_published": self.as_published,
            "image_size": self.image_size,
        }
