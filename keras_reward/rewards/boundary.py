"""A reward for boundaries: those that a model draws, or those of its regions."""

import keras
import numpy as np
from keras import ops

from keras_reward.nests import host_array
from keras_reward.rewards.label_maps import LabelMapReward
from keras_reward.rewards.mask_boundaries import (
    DECIDED,
    found_alone,
    numbers_with,
    of_each_label,
    steps,
)
from keras_reward.rewards.neighbors import count, disc_sum, moved

MAX_TOLERANCE = 256


@keras.saving.register_keras_serializable(package="keras_reward")
class BoundaryReward(LabelMapReward):
    """F-measure of boundary pixels within a distance, for each image.

    With the Euclidean distance between pixels, and only pixels that count:

    - precision P: the share of the predicted boundary pixels that have a true one
      within `tolerance`,
    - recall R: the share of the true boundary pixels that have a predicted one within
      `tolerance`,
    - the reward: 2PR / (P + R). If there is no boundary in either map it is 1, if
      there is one in only one of them, 0.

    A boundary map has 1 at boundary pixels and 0 elsewhere. In a mask, a pixel is a
    boundary pixel if its label differs from that of its right or its lower neighbour.

    Void pixels of the ground truth do not count, whatever is predicted there: in
    boundary maps these are labels other than 0 and 1, in masks negative labels and 255.
    In a mask, a pixel does not count either if its right or its lower neighbour is
    void: what lies between it and a void pixel is unknown. An image that is all void
    earns 0.

    Does not punish: thick boundaries, as long as they stay within `tolerance` (several
    predicted pixels may share one true pixel, unlike in the benchmark of BSDS500);
    gaps shorter than twice `tolerance`; in masks, wrong classes on either side of a
    boundary. Add `MeanIoUReward` for these. In masks, dots where a boundary is likely,
    since each dot has a boundary of its own: look at the masks.

    Args:
        tolerance: distance in pixels, at least 0. Papers take 0.75 % of the image's
            diagonal (Csurka), or 0.8 % (DAVIS).
        masks: whether maps are masks of any number of classes, from which boundaries
            are taken. Default: False, they are boundary maps.
        ignore_class: label of more void pixels in `y_true`. Default: none.
        name: optional name.

    Call arguments: `y_true` and `y_pred` labels `(rows, height, width)` or
    `(rows, height, width, 1)`, integers or bools; `y_true` also floats that are whole
    numbers. Returns `(rows,)` in [0, 1]; NaN for a row of `y_true` with a float that
    is not a whole number, and for a boundary map `y_pred` with labels other than 0
    and 1.

    Raises:
        ValueError: if `tolerance` is negative or above 256.

    Example:

    ```python
    import numpy as np
    from keras_reward import BoundaryReward

    y_true = np.array([[[0, 1, 0, 0, 0, 0]]])
    y_pred = np.array([[[0, 0, 1, 0, 0, 1]]])
    BoundaryReward(tolerance=0)(y_true, y_pred)  # [0.0]
    BoundaryReward(tolerance=1)(y_true, y_pred)  # [0.667]: P is 1/2, R is 1

    y_true = np.array([[[0, 0, 2, 2, 2, 2]]])  # the same boundary
    y_pred = np.array([[[0, 0, 0, 2, 2, 1]]])  # a pixel later, and another one
    BoundaryReward(tolerance=1, masks=True)(y_true, y_pred)  # [0.667]
    ```

    References: Csurka et al. 2013, "What is a good evaluation measure for semantic
    segmentation?"; Perazzi et al. 2016, "A benchmark dataset and evaluation
    methodology for video object segmentation" (DAVIS), section 5.1.
    """

    def __init__(self, tolerance, masks=False, ignore_class=None, name=None):
        super().__init__(ignore_class, name=name)
        if not 0 <= tolerance <= MAX_TOLERANCE:
            raise ValueError(
                "`tolerance` must be a distance in pixels, at least 0 and at most "
                f"{MAX_TOLERANCE}, since each row of a disc is added on its own. "
                f"Received: tolerance={tolerance}"
            )
        self.tolerance = float(tolerance)
        self.masks = masks

    def prepare(self, y_true):
        labels, readable = self.labels_of_targets(y_true)
        is_void = labels < 0
        is_void = is_void | (labels == 255 if self.masks else labels > 1)
        if self.ignore_class is not None:
            is_void = is_void | (labels == self.ignore_class)
        counts = ~is_void
        if self.masks:
            counts = ~(is_void | moved(is_void, 0, 1) | moved(is_void, 1, 0))
        boundary = self._boundary(labels) & counts
        targets = {
            "counts": counts,
            "boundary": boundary,
            "near": disc_sum(boundary, self.tolerance) > 0,
            "number": count(boundary),
            "without": ops.cast(ops.any(~is_void, axis=(1, 2)), "float32"),
        }
        return targets if readable is None else {**targets, "readable": readable}

    def call(self, y_true, y_pred):
        labels, predicted = self._predicted(y_true, y_pred)
        finders = disc_sum(predicted, self.tolerance)
        return self._rewards(y_true, labels, *numbers_of(y_true, predicted, finders))

    def alternatives(self, y_true, y_pred, choices):
        choices = self._chosen_labels(choices)
        labels, predicted = self._predicted(y_true, y_pred)
        worth = self._worth_of_masks if self.masks else self._worth_of_maps
        worth = worth(y_true, labels, predicted, choices)
        return ops.reshape(worth, (*ops.shape(y_pred), worth.shape[-1]))

    def check_values(self, y_true, y_pred):
        super().check_values(y_true, y_pred)
        labels = None if self.masks else host_array(y_pred)
        if labels is not None and not np.isin(labels, (0, 1)).all():
            raise ValueError(
                f"Reward {self.name!r} needs boundary maps of 0 and 1 as `y_pred`. "
                "For masks, pass `masks=True`. "
                f"Received: labels from {labels.min()} to {labels.max()}"
            )

    def get_config(self):
        config = {"tolerance": self.tolerance, "masks": self.masks}
        return {**super().get_config(), **config}

    def _boundary(self, labels):
        """Which pixels are boundary pixels, `(rows, height, width)` bools."""
        if not self.masks:
            return labels == 1
        right, below = steps(labels)
        return right | below

    def _predicted(self, y_true, y_pred):
        """Labels, and which pixels are predicted boundary pixels that count."""
        labels = self.checked_map("y_pred", y_pred)
        self.check_same_size(y_true["boundary"], labels)
        return labels, self._boundary(labels) & y_true["counts"]

    def _chosen_labels(self, choices):
        """Labels, `(choices,)` or, with a codec, `(rows, height, width, choices)`."""
        if hasattr(choices, "map"):
            return choices.map(lambda labels: self.checked_map("y_pred", labels))
        if not self.masks and choices.shape[0] != 2:
            raise ValueError(
                f"Reward {self.name!r} needs boundary maps of 0 and 1, drawn by "
                "`BernoulliPolicy` for example. For masks, pass `masks=True`. "
                f"Received: {choices.shape[0]} choices"
            )
        return choices

    def _worth_of_maps(self, y_true, labels, predicted, choices):
        off, on = (
            self._rewards(y_true, labels, *numbers)[..., None]
            for numbers in numbers_off_and_on(y_true, predicted, self.tolerance)
        )
        return ops.where(choices == 1, on, off)

    def _worth_of_masks(self, y_true, labels, predicted, choices):
        finders = disc_sum(predicted, self.tolerance)
        numbers = of_each_pixel(numbers_of(y_true, predicted, finders))
        now = [moved(predicted, *place) for place in DECIDED]
        is_near = [moved(y_true["near"], *place) for place in DECIDED]
        alone = found_alone(y_true["boundary"], finders, now, self.tolerance)
        removed = numbers_with(now, is_near, alone)
        others = [a - b for a, b in zip(numbers, removed, strict=True)]

        def worth(masks):
            added = numbers_with(masks, is_near, alone)
            numbers = (a + b for a, b in zip(others, added, strict=True))
            return self._rewards(y_true, labels, *numbers)

        return of_each_label(labels, y_true["counts"], choices, worth)

    def _rewards(self, y_true, labels, near, predicted, found):
        """The rewards from numbers of pixels, `(rows,)` or `(rows, height, width)`."""
        shape = (-1, 1, 1) if len(near.shape) == 3 else (-1,)
        number, without = (
            ops.reshape(y_true[name], shape) for name in ("number", "without")
        )
        rewards = f_measure(near, predicted, found, number, without)
        if not self.masks:
            is_map = ops.all((labels == 0) | (labels == 1), axis=(1, 2))
            rewards = ops.where(ops.reshape(is_map, shape), rewards, np.nan)
        if "readable" in y_true:
            readable = ops.reshape(y_true["readable"], shape)
            rewards = ops.where(readable, rewards, np.nan)
        return rewards


def f_measure(near, predicted, found, number, without):
    """2PR / (P + R) with precision P = near / predicted and recall R = found / number.

    Args:
        near: number of predicted pixels near a true one, of any shape.
        predicted: number of predicted pixels.
        found: number of true pixels near a predicted one.
        number: number of true pixels.
        without: the result if there are neither predicted nor true pixels.
    """
    near, predicted, found, number = (
        ops.cast(each, "float32") for each in (near, predicted, found, number)
    )
    # Without fractions of nothing, where one of the maps is empty.
    both = near * number + found * predicted
    ratio = 2.0 * near * found / ops.maximum(both, 1.0)
    return ops.where(predicted + number > 0.0, ratio, without)


def numbers_of(y_true, predicted, finders):
    """Numbers of pixels: predicted near a true one, predicted, true that are found.

    Args:
        y_true: prepared targets.
        predicted: mask of the predicted boundary pixels, `(rows, height, width)`.
        finders: how many predicted boundary pixels lie near each pixel.

    Returns:
        Three times `(rows,)` int32.
    """
    near = count(predicted & y_true["near"])
    return near, count(predicted), count(y_true["boundary"] & (finders > 0))


def numbers_off_and_on(y_true, predicted, tolerance):
    """`numbers_of` boundary maps with one pixel off, and with this pixel on.

    Args:
        y_true: prepared targets.
        predicted: mask of the predicted boundary pixels, `(rows, height, width)`.
        tolerance: distance in pixels.

    Returns:
        Two triples of `(rows, height, width)` int32.
    """
    finders = disc_sum(predicted, tolerance)
    near, number, found = of_each_pixel(numbers_of(y_true, predicted, finders))
    # Without a pixel, the true ones are lost that it alone finds. With one more, those
    # are gained that none finds.
    lost, gained = (
        disc_sum(y_true["boundary"] & (finders == others), tolerance)
        for others in (1, 0)
    )
    is_near = ops.cast(y_true["near"], "int32")
    less = ops.cast(predicted, "int32")
    more = ops.cast(~predicted & y_true["counts"], "int32")
    return (
        (near - less * is_near, number - less, found - less * lost),
        (near + more * is_near, number + more, found + more * gained),
    )


def of_each_pixel(numbers):
    """`(rows,)` to `(rows, 1, 1)`."""
    return [number[:, None, None] for number in numbers]
