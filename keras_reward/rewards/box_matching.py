"""What predicted boxes earn, together and one by one, by the truth that they match."""

from keras import ops

from keras_reward.forms.boxes import (
    best_ious,
    iou_rounding,
    read_boxes,
    standardize_format,
)
from keras_reward.forms.integers import refuse_beyond_int32
from keras_reward.nests import goes_with, may_be_equal
from keras_reward.rewards.best_boxes import (
    assignments,
    at_own_box,
    best_of_all,
    best_of_earlier,
    best_of_others,
)
from keras_reward.rewards.credit import positions_of
from keras_reward.rewards.reward import Reward


class DetectionReward(Reward):
    """Base class of rewards that match predicted boxes with the ground truth."""

    component_names = ("matches", "duplicates")

    def __init__(
        self,
        iou_thresholds,
        duplicate_penalty,
        bounding_box_format,
        false_positive_penalty,
        name,
    ):
        super().__init__(name=name)
        self.iou_thresholds = tuple(float(threshold) for threshold in iou_thresholds)
        if not self.iou_thresholds or not all(0 <= t < 1 for t in self.iou_thresholds):
            raise ValueError(
                "`iou_thresholds` must be one or more numbers from 0 to below 1. "
                f"Received: iou_thresholds={iou_thresholds}"
            )
        if not false_positive_penalty >= 0:
            raise ValueError(
                "`false_positive_penalty` must be a number of at least 0. "
                f"Received: false_positive_penalty={false_positive_penalty!r}"
            )
        self.duplicate_penalty = duplicate_penalty
        self.false_positive_penalty = false_positive_penalty
        if false_positive_penalty:  # else logs stay as they were
            self.component_names = (*self.component_names, "false_positives")
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
        """The IoU of each prediction, for thresholds, and what it is assigned to."""
        rounding = iou_rounding(ops, boxes, self.bounding_box_format)
        return best_ious(truth, boxes, rounding)[1:]

    def prepare(self, y_true):
        truth = self.read(y_true, "y_true")
        return {**truth, "weights": self.weights(truth["labels"])}

    def compare(self, y_true, boxes):
        """The share of the thresholds that each prediction exceeds, and `assignments`.

        Args:
            y_true: what `prepare` returned, in rows.
            boxes: predictions as `read` returns them.

        Returns:
            `(rows, M)` float32 and `(rows, G, M)` bool.
        """
        rows, truth_rows = boxes["area"].shape[0], y_true["area"].shape[0]
        if not may_be_equal((rows,), (truth_rows,)):
            raise ValueError(
                f"Reward {self.name!r} needs as many rows of targets as of outputs. "
                f"Received: {truth_rows} rows in y_true, {rows} in y_pred"
            )
        iou, chosen = self.ious(y_true, boxes)
        return self.share_passed(iou), assignments(chosen, y_true)

    def call(self, y_true, y_pred):
        boxes = self.read(y_pred, "y_pred")
        return self.total(y_true, boxes, *self.compare(y_true, boxes))

    def total(self, y_true, boxes, hits, assigned):
        """The reward of each row and its components, from what `compare` returned."""
        matches, weights = best_of_all(hits, assigned), self.weights(boxes["labels"])
        counts = matches_and_duplicates(hits, matches)
        found, repeated = matches_and_duplicates(
            hits * weights, matches * y_true["weights"]
        )
        reward = found - self.duplicate_penalty * repeated
        if self.false_positive_penalty:
            wrong = false_positives(boxes, hits)
            counts = (*counts, ops.sum(wrong, axis=1))
            wrong = ops.sum(wrong * weights, axis=1)
            reward = reward - self.false_positive_penalty * wrong
        return reward, dict(zip(self.component_names, counts, strict=True))

    def has_own(self, method):
        if not super().has_own(method):
            return False
        # What boxes add must fit the total of a subclass.
        return any(goes_with(type(self), n, ("total",)) for n in (method, "added"))

    def added(self, boxes, hits, rest):
        """What each box adds to the reward of others.

        Args:
            boxes: predictions as `read` returns them.
            hits: `(rows, M)`, the share of the thresholds that each exceeds.
            rest: `(rows, M)`, the highest share of the others that are assigned to the
                same ground-truth box.
        """
        found = ops.maximum(hits - rest, 0.0)
        added = found - self.duplicate_penalty * (hits - found)
        if self.false_positive_penalty:
            wrong = false_positives(boxes, hits)
            added = added - self.false_positive_penalty * wrong
        return added * self.weights(boxes["labels"])

    def alternatives(self, y_true, y_pred, choices):
        """The reward of each row if one box alone had been another, or hidden.

        Each ground-truth box needs to know the best of its boxes and the second best,
        so each choice costs what the reward costs.

        Args:
            y_true: the prepared targets.
            y_pred: boxes, `(rows, M)` with labels, as for `call`.
            choices: decoded choices whose `positions` are `(M,)`: each part is one
                box. A negative label hides it.

        Returns:
            `(rows, M, choices)` float32.

        Raises:
            ValueError: if parts are not the boxes.
        """
        boxes = self.read(y_pred, "y_pred")
        self.check_parts(choices, boxes)
        compared = hits, assigned = self.compare(y_true, boxes)
        reward = self.total(y_true, boxes, *compared)[0][:, None]
        others = best_of_others(hits, assigned)
        own = self.added(boxes, hits, at_own_box(others, assigned))

        def reward_with(output):
            """As if each box alone had been that of this output."""
            new = self.read(output, "y_pred")
            hits, assigned = self.compare(y_true, new)
            return reward + (self.added(new, hits, at_own_box(others, assigned)) - own)

        return choices.map(reward_with)

    def check_parts(self, choices, boxes):
        """Raises unless the parts of an output are its boxes."""
        parts = positions_of(boxes["labels"], choices)
        if not hasattr(choices, "map") or not may_be_equal(
            parts, tuple(boxes["labels"].shape[1:])
        ):
            raise ValueError(
                f"Reward {self.name!r} can credit parts that decode to one box each. "
                'Give the policy such a codec, or pass `credit="output"`. Received: '
                f"parts of shape {parts}, {boxes['labels'].shape[1]} boxes in a row"
            )

    def gains(self, y_true, y_pred):
        """What each box adds to the reward of those before it.

        Args:
            y_true: the prepared targets.
            y_pred: boxes, `(rows, M)` with labels, as for `call`.

        Returns:
            `(rows, M)` float32: the reward of the first k boxes minus that of the first
            k - 1. They sum to the reward.
        """
        boxes = self.read(y_pred, "y_pred")
        hits, assigned = self.compare(y_true, boxes)
        earlier = at_own_box(best_of_earlier(hits, assigned), assigned)
        return self.added(boxes, hits, earlier)

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
            "false_positive_penalty": self.false_positive_penalty,
        }


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


def false_positives(boxes, hits):
    """Share of the thresholds at which each box is a false positive, `(rows, M)`.

    Args:
        boxes: predictions as `read_boxes` returns them.
        hits: share of the thresholds that each exceeds, `(rows, M)`.
    """
    return ops.cast(boxes["labels"] >= 0, "float32") - hits
