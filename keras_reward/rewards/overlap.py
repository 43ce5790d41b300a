"""The base class of rewards for the overlap of classes, image by image."""

import numpy as np
from keras import ops

from keras_reward.nests import check_size, is_float, with_last_sizes
from keras_reward.rewards.checks import refuse_empty
from keras_reward.rewards.label_maps import LabelMapReward

MAX_CLASSES = 2**16


class OverlapReward(LabelMapReward):
    """Base class: a mean over classes of a ratio of pixel counts.

    Args:
        num_classes: classes are 0 to `num_classes - 1`. With 1, maps are 0 and 1, and
            only class 1, the foreground, is rated.
        ignore_class: label of the pixels of `y_true` that do not count. Other labels,
            such as 255 or -1, never count.
        ignore_absent: whether the mean is over the classes of the ground truth alone,
            and not over those of the prediction too.
        name: optional name.
    """

    other_targets = ", or one-hot"

    def __init__(self, num_classes, ignore_class=None, ignore_absent=False, name=None):
        super().__init__(ignore_class, name=name)
        check_size("num_classes", num_classes, MAX_CLASSES)
        if ignore_absent and num_classes == 1:
            raise ValueError(
                "`ignore_absent` is about the mean over several classes. For binary "
                "masks leave it out: an image without foreground earns 1 if none is "
                f"predicted. Received: num_classes={num_classes}, "
                f"ignore_absent={ignore_absent}"
            )
        self.num_classes = num_classes
        self.ignore_absent = ignore_absent

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
        truth, area = y_true["labels"], y_true["area"]
        overlap, predicted = self.counts(truth, self.predicted_labels(truth, y_pred))
        ratios, present = self.of_classes(overlap, area, predicted)
        reward = mean_over(ratios, present, self.without_classes(area))
        if "readable" in y_true:
            reward = ops.where(y_true["readable"], reward, np.nan)
        return reward

    def alternatives(self, y_true, y_pred, choices):
        truth, area = y_true["labels"], y_true["area"]
        drawn = self.predicted_labels(truth, y_pred)
        counts = self.counts(truth, drawn)
        now = self.of_classes(counts[0], area, counts[1])
        empty = self.without_classes(area)
        reward = mean_over(*now, empty)[:, None, None, None]
        # A part that changes takes one pixel from the class that was drawn, and gives
        # one to the class that is chosen, each of which was right or wrong there.
        lost = self.changes(now, counts, area, -1)
        won = self.changes(now, counts, area, 1)
        chosen = self.chosen_labels(choices)
        drawn, truth = drawn[..., None], truth[..., None]
        sums = [
            ops.sum(before, axis=-1)[:, None, None, None]
            + of_labels(before_lost, drawn, drawn == truth)
            + of_labels(before_won, chosen, chosen == truth)
            for before, before_lost, before_won in zip(now, lost, won, strict=True)
        ]
        worth = ratio_of_sums(*sums, empty[:, None, None, None])
        same = ops.logical_or(chosen == drawn, truth == self.num_labels)
        worth = ops.where(same, reward, worth)
        if "readable" in y_true:
            worth = ops.where(y_true["readable"][:, None, None, None], worth, np.nan)
        return ops.reshape(worth, (*ops.shape(y_pred), worth.shape[-1]))

    def predicted_labels(self, truth, y_pred):
        """Labels `(rows, height, width)`; `num_labels` for those outside the classes"""
        labels = self.checked_map("y_pred", y_pred)
        self.check_same_size(truth, labels)
        return self.within_classes(labels)

    def chosen_labels(self, choices):
        """As `predicted_labels`, of choices: `(choices,)` or `(rows, ..., choices)`.

        Args:
            choices: as for `alternatives`.
        """
        if hasattr(choices, "map"):
            choices = choices.map(lambda labels: self.checked_map("y_pred", labels))
        return self.within_classes(choices)

    def within_classes(self, labels):
        outside = ops.logical_or(labels < 0, labels >= self.num_labels)
        return ops.where(outside, self.num_labels, labels)

    def counts(self, truth, labels):
        """Pixels of each class in both maps, and in the prediction outside void.

        Args:
            truth: labels `(rows, height, width)`, `num_labels` for void.
            labels: likewise, `num_labels` for labels outside the classes.

        Returns:
            Two int32 tensors `(rows, num_labels)`.
        """
        classes = self.num_labels
        left_out = ops.logical_or(truth == classes, labels == classes)
        # Correct and wrong pixels of each predicted class, in one histogram.
        kinds = ops.where(labels == truth, labels, labels + classes)
        counts = histogram(ops.where(left_out, 2 * classes, kinds), 2 * classes + 1)
        overlap = counts[:, :classes]
        return overlap, overlap + counts[:, classes : 2 * classes]

    def of_classes(self, overlap, area, predicted):
        """The ratio of each class that is rated, and whether it is present.

        Returns:
            Two float32 tensors `(rows, num_labels)`: ratios, 0 for classes that are not
            in the ground truth or, unless `ignore_absent`, the prediction; and 1 or 0
            for whether they are.
        """
        present = area > 0 if self.ignore_absent else area + predicted > 0
        if self.num_classes == 1:
            present = ops.logical_and(present, np.array([False, True]))
        ratios = ops.where(present, self.ratio(overlap, area, predicted), 0.0)
        return ratios, ops.cast(present, "float32")

    def changes(self, now, counts, area, step):
        """How `of_classes` changes if a class gets or loses a predicted pixel.

        Args:
            now: what `of_classes` returned.
            counts: what `counts` returned.
            area: pixels of each class in the ground truth.
            step: 1 or -1.

        Returns:
            For both tensors of `of_classes`, a pair `(rows, num_labels)`: the change
            by a pixel that is wrong, and by one that is right.
        """
        overlap, predicted = counts
        wrong = self.of_classes(overlap, area, predicted + step)
        right = self.of_classes(overlap + step, area, predicted + step)
        return [(wrong[i] - now[i], right[i] - now[i]) for i in range(2)]

    def without_classes(self, area):
        """The reward of a row in which no class that is rated is present: `(rows,)`.

        Rightly no foreground is as good as can be; an image that is all void earns 0.
        """
        has_pixels = ops.any(area > 0, axis=-1)
        return ops.cast(ops.logical_and(has_pixels, self.num_classes == 1), "float32")

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
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "ignore_absent": self.ignore_absent,
        }

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
        refuse_empty(self.name, "y_true", tuple(y_true.shape))
        one_hot = ops.cast(y_true, "float32")
        largest = ops.max(one_hot, axis=-1)
        labels = ops.cast(ops.argmax(one_hot, axis=-1), "int32")
        readable = None
        if is_float(y_true):
            readable = ops.all(largest == largest, axis=(1, 2))
        return ops.where(largest > 0.0, labels, -1), readable


def mean_over(ratios, present, empty):
    """The mean over the classes that are present, `(rows,)`; `empty` if none is."""
    sums = ops.sum(ratios, axis=-1), ops.sum(present, axis=-1)
    return ratio_of_sums(*sums, empty)


def ratio_of_sums(total, number, empty):
    """`total / number`, of classes; `empty` if their number is 0."""
    return ops.where(number > 0.5, total / ops.maximum(number, 1.0), empty)


def of_labels(changes, labels, is_right):
    """The changes at labels: `(rows, height, width, n)`.

    Args:
        changes: pair of `(rows, num_labels)`, for labels that are wrong and right.
        labels: `(n,)` or `(rows, height, width, n)`; `num_labels` changes nothing.
        is_right: bools of that shape, or that it broadcasts to.
    """
    tables = [ops.pad(change, ((0, 0), (0, 1))) for change in changes]
    if len(labels.shape) == 1:
        wrong, right = (ops.take(t, labels, axis=1)[:, None, None] for t in tables)
        return ops.where(is_right, right, wrong)
    shape = ops.shape(labels)
    places = ops.where(is_right, labels + tables[0].shape[1], labels)
    places = ops.reshape(places, (shape[0], -1))
    found = ops.take_along_axis(ops.concatenate(tables, axis=1), places, axis=1)
    return ops.reshape(found, shape)


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
