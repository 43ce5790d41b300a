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
from keras_reward.forms.integers import refuse_beyond_int32
from keras_reward.nests import may_be_equal
from keras_reward.rewards.coco_classes import COCO_CLASS_COUNTS
from keras_reward.rewards.reward import Reward

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
    iou, surely, _ = best_ious(truth, boxes, iou_rounding(ops, boxes, layout))
    return ops.where(surely > iou_threshold, ops.minimum(iou, 1.0), 0.0)


def matches_and_duplicates(hits, matches):
    """Total weights of matches and of duplicates, `(rows,)` each.

    Of the predictions assigned to a ground-truth box with a sufficient IoU, one is its
    match and the others are duplicates.

    Args:
        hits: share of the thresholds that each prediction exceeds, times its weight,
            `(rows, M)`.
        matches: the same for each ground-truth box, `(rows, G)`. A match has one class,
            so its weight is the same on both sides.
    """
    matches = ops.sum(matches, axis=1)
    return matches, ops.maximum(ops.sum(hits, axis=1) - matches, 0.0)


def published_thresholds(thresholds):
    """The thresholds that the authors' code averages over.

    It stores results in a dict by the threshold rounded to one decimal, where later
    ones replace earlier ones, and then looks up each threshold.
    """
    stored = {f"{threshold:0.1f}": threshold for threshold in thresholds}
    return tuple(stored[f"{threshold:0.1f}"] for threshold in thresholds)


def inverse_frequency(class_counts, class_smoothing):
    """Class weights `1 / (count + smoothing * all counts)`, scaled to mean 1.

    Returns:
        `(classes + 1,)` float32. The last is for labels beyond the counts; it is the
        weight of the rarest class.
    """
    counts = class_counts
    if isinstance(class_counts, str):
        known = {"coco": list(COCO_CLASS_COUNTS.values())}
        counts = known.get(class_counts, [])
    counts = np.asarray(counts, "float64")
    smooth = counts + class_smoothing * counts.sum()
    if counts.ndim != 1 or not counts.size or counts.min() < 0 or smooth.min() <= 0:
        raise ValueError(
            "`class_counts` must be numbers of boxes, one per class, or 'coco', and a "
            "count of 0 needs a `class_smoothing` above 0. "
            f"Received: class_counts={class_counts!r}, "
            f"class_smoothing={class_smoothing}"
        )
    weights = smooth.min() / smooth
    weights /= weights.mean()
    return np.append(weights, weights.max()).astype("float32")


class DetectionReward(Reward):
    """Base class of rewards that match predicted boxes with the ground truth."""

    component_names = ("matches", "duplicates")

    def __init__(self, iou_thresholds, duplicate_penalty, bounding_box_format, name):
        super().__init__(name=name)
        self.iou_thresholds = tuple(float(threshold) for threshold in iou_thresholds)
        if not self.iou_thresholds or not all(0 <= t < 1 for t in self.iou_thresholds):
            raise ValueError(
                "`iou_thresholds` must be one or more numbers from 0 to below 1. "
                f"Received: iou_thresholds={iou_thresholds}"
            )
        self.duplicate_penalty = duplicate_penalty
        self.bounding_box_format = standardize_format(bounding_box_format)
        self.averaged_thresholds = self.iou_thresholds

    def weights(self, labels):
        """The weight of each label, float32."""
        return ops.ones_like(labels, dtype="float32")

    def narrow(self, argument, values):
        for key in ("labels", "classes"):
            labels = values.get(key) if isinstance(values, dict) else None
            refuse_beyond_int32(f"Reward {self.name!r}", argument, labels, key)
        return values

    def read(self, detections, role):
        """Boxes as `read_boxes` returns them."""
        return read_boxes(detections, self.bounding_box_format, role)

    def ious(self, truth, boxes):
        """The IoU of each prediction and of each ground-truth box, for thresholds."""
        rounding = iou_rounding(ops, boxes, self.bounding_box_format)
        return best_ious(truth, boxes, rounding)[1:]

    def prepare(self, y_true):
        truth = self.read(y_true, "y_true")
        return {**truth, "weights": self.weights(truth["labels"])}

    def call(self, y_true, y_pred):
        boxes = self.read(y_pred, "y_pred")
        rows, truth_rows = boxes["area"].shape[0], y_true["area"].shape[0]
        if not may_be_equal((rows,), (truth_rows,)):
            raise ValueError(
                f"Reward {self.name!r} needs as many rows of targets as of outputs. "
                f"Received: {truth_rows} rows in y_true, {rows} in y_pred"
            )
        hits, matches = map(self.share_passed, self.ious(y_true, boxes))
        counts = matches_and_duplicates(hits, matches)
        found, repeated = matches_and_duplicates(
            hits * self.weights(boxes["labels"]), matches * y_true["weights"]
        )
        reward = found - self.duplicate_penalty * repeated
        return reward, dict(zip(self.component_names, counts, strict=True))

    def share_passed(self, iou):
        """Share of the thresholds that each IoU exceeds."""
        thresholds = self.averaged_thresholds
        passed = sum(ops.cast(iou > threshold, "float32") for threshold in thresholds)
        return passed / len(thresholds)

    def get_config(self):
        return {
            **super().get_config(),
            "iou_thresholds": list(self.iou_thresholds),
            "duplicate_penalty": self.duplicate_penalty,
            "bounding_box_format": self.bounding_box_format,
        }


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

    Does not punish: false positives, that is, boxes that overlap no ground-truth box of
    their class. A model that may predict many boxes earns more by predicting as many as
    it can. Fix the number of boxes, or subtract a reward that counts them (see the
    example). It ignores confidences: train them with `matched_iou` as target.

    Args:
        iou_thresholds: IoUs that a match must exceed. Default `(0.5,)`, our choice:
            the published code only sets thresholds for average precision.
        duplicate_penalty: what a duplicate costs. Default 0.3.
        bounding_box_format: Keras's name of the format of all boxes, in pixels or
            relative. Default `"xyxy"`.
        name: optional name.

    Call arguments: `y_true` and `y_pred` are dicts of `boxes`, `(rows, N, 4)` floats,
    and `labels` or `classes`, `(rows, N)` whole numbers. Any negative label is
    padding. The numbers of boxes may differ; other keys, such as `scores`, are
    ignored. Empty and inverted boxes and boxes with NaN match nothing. Returns
    `(rows,)` from `-duplicate_penalty * predicted boxes` to the number of ground-truth
    boxes.

    Example:

    ```python
    import numpy as np
    from keras import ops
    from keras_reward import FunctionReward, RecallReward

    def box_count(y_true, y_pred):
        return ops.sum(ops.cast(y_pred["labels"] >= 0, "float32"), axis=1)

    truth = {"boxes": np.array([[[0, 0, 4, 4]]], "float32"), "labels": np.array([[7]])}
    boxes = np.array([[[0, 0, 4, 4], [0, 0, 4, 3], [9, 9, 10, 10]]], "float32")
    boxes = {"boxes": boxes, "labels": np.array([[7, 7, 7]])}
    RecallReward()(truth, boxes)  # [0.7]: match, duplicate, free false positive
    (RecallReward() - 0.1 * FunctionReward(box_count))(truth, boxes)  # [0.4]
    ```

    Reference: Pinto et al. 2023, "Tuning computer vision models with task rewards".
    """

    def __init__(
        self,
        iou_thresholds=(0.5,),
        duplicate_penalty=0.3,
        bounding_box_format="xyxy",
        name=None,
    ):
        super().__init__(iou_thresholds, duplicate_penalty, bounding_box_format, name)


@keras.saving.register_keras_serializable(package="keras_reward")
class MeanAveragePrecisionReward(DetectionReward):
    """`RecallReward` over several IoU thresholds, with larger weights for rare classes.

    Rewards what raises COCO's mean average precision: tight boxes, and rare classes as
    much as frequent ones. A match is weighted by the class of the ground truth, a
    duplicate by the predicted class; the weights are proportional to
    `1 / (count + class_smoothing * sum of counts)` and have mean 1 over all classes.
    Logs the components `matches` and `duplicates`, which are unweighted numbers of
    boxes.

    Does not punish: false positives and meaningless confidences, though average
    precision depends on the order of confidences. Fix the number of boxes or count
    them (see `RecallReward`), and train the confidence with `matched_iou` as target.

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
        name: optional name.

    Call arguments: as for `RecallReward`. Returns `(rows,)` from
    `-duplicate_penalty` to 1 times the weights of the boxes.

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
        name=None,
    ):
        super().__init__(iou_thresholds, duplicate_penalty, bounding_box_format, name)
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
