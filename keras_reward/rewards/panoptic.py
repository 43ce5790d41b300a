"""Reward for panoptic segmentation (Pinto et al. 2023, section 4.1)."""

import keras
import numpy as np
from keras import ops

from keras_reward.forms.integers import maps_as_int32, narrow_maps
from keras_reward.forms.panoptic_maps import joint_counts, rank_segments
from keras_reward.nests import check_size, is_integer, with_last_sizes
from keras_reward.rewards.checks import refuse_empty
from keras_reward.rewards.reward import Reward

# Each row takes their square: of numbers of pixels for each pair of segments.
MAX_SEGMENTS = 4096
MAX_CLASS = 2**16  # of stuff, in a table of all classes up to it
MAX_PIXELS = 2**24  # Keras's segment operations count in float32 on PyTorch


@keras.saving.register_keras_serializable(package="keras_reward")
class PanopticQualityReward(Reward):
    """Sum of the IoU of matched segments, minus 0.3 for each unmatched prediction.

    Panoptic quality is not a sum over images; this reward is, and rises with it. A
    segment is all pixels of one class and instance, connected or not. A predicted
    segment matches a ground-truth segment of the same class if their IoU is above 0.5;
    then neither can match another. As in the COCO panoptic evaluation, pixels that are
    void in the ground truth are left out of the union, and a predicted segment of
    which more than half lies there is not counted as unmatched.

    Does not punish: ground-truth segments that nothing matches, beyond the IoU that
    they would have earned; pixels predicted as void. An image with many segments counts
    more than one with few. `MeanIoUReward`, on the classes of the pixels, also punishes
    misses: `PanopticQualityReward() + (lambda y_true, y_pred: MeanIoUReward(81,
    ignore_class=0)(y_true[..., 0], y_pred[..., 0]))`. Lower `unmatched_penalty` if the
    model stops predicting segments.

    Args:
        max_segments: maximum number of segments of a map: the first ones in reading
            order. In the ground truth, the others become void. In a prediction, each
            of the others counts as unmatched, wherever it lies, so that too many
            segments never pay off; the count is exact up to 32 times `max_segments` in
            all. The component `dropped_segments` is the number left out in both maps.
            Default 64.
        unmatched_penalty: subtracted for each unmatched predicted segment. Default 0.3.
        stuff_classes: classes without instances, such as sky, whose instance ids are
            ignored. Positive ids, as in the maps. Default: none.
        name: optional name.

    Call arguments: `y_true` and `y_pred` int maps `(rows, height, width, 2)` of class
    and instance. Instance ids may be any integers, need not be consecutive, and have no
    meaning beyond their map and class. Classes beyond int32 are refused; within a
    compiled step, where values cannot be seen, they are void in `y_true` and wrong in
    `y_pred`. Void is class 0, in `y_true` also any negative class; in `y_pred`, an
    unknown or negative class is an ordinary segment that nothing matches. A negative
    instance in `y_true` marks a crowd of its class (things only): it is not matched,
    and a prediction of its class that lies mostly on it and on void is not counted as
    unmatched. Returns `(rows,)`, at most the number of ground-truth segments;
    components `matched_iou`, `unmatched_segments` and `dropped_segments`.

    Example:

    ```python
    import numpy as np
    from keras_reward import PanopticQualityReward

    y_true = np.zeros((1, 2, 4, 2), "int32")
    y_true[:, :, :2] = [3, 1]  # left half: class 3, instance 1
    y_true[:, :, 2:] = [3, 2]  # right half: class 3, instance 2
    y_pred = y_true.copy()
    y_pred[:, 0, 3] = [5, 1]  # one wrong pixel: a segment of another class
    PanopticQualityReward()(y_true, y_pred)  # [1.45]: 1 + 3/4 - 0.3
    ```

    References: Kirillov et al. 2019, "Panoptic segmentation", section 4 (matching);
    Pinto et al. 2023, "Tuning computer vision models with task rewards" (reward).
    """

    component_names = ("matched_iou", "unmatched_segments", "dropped_segments")

    def __init__(
        self, max_segments=64, unmatched_penalty=0.3, stuff_classes=(), name=None
    ):
        super().__init__(name=name)
        check_size("max_segments", max_segments, MAX_SEGMENTS)
        for stuff_class in stuff_classes:  # 0 is void
            check_size("stuff_classes", stuff_class, MAX_CLASS)
        self.max_segments = max_segments
        self.unmatched_penalty = unmatched_penalty
        self.stuff_classes = tuple(stuff_classes)

    def narrow(self, argument, values):
        return narrow_maps(f"Reward {self.name!r}", argument, values)

    def prepare(self, y_true):
        maps = self._checked("y_true", y_true)
        is_void = maps[..., 0] <= 0
        segments = rank_segments(maps, is_void, self.max_segments, self.stuff_classes)
        ranks = segments["ranks"]
        ranks = ops.where(ranks > self.max_segments, 0, ranks)  # beyond becomes void
        # The map is repeated for each row, so a rank takes as few bytes as possible.
        dtype = "uint8" if self.max_segments < 256 else "int32"
        return {**segments, "ranks": ops.cast(ranks, dtype)}

    def call(self, y_true, y_pred):
        maps = self._checked("y_pred", y_pred)
        self._check_sizes(y_true["ranks"], maps)
        segments = rank_segments(
            maps, maps[..., 0] == 0, self.max_segments, self.stuff_classes
        )
        overlaps = joint_counts(
            ops.cast(y_true["ranks"], "int32"),
            segments["ranks"],
            self.max_segments + 1,
            self.max_segments + 2,
        )
        matched_iou, unmatched = match_segments(overlaps, y_true, segments)
        unmatched += segments["dropped"]
        reward = matched_iou - self.unmatched_penalty * unmatched
        return reward, {
            "matched_iou": matched_iou,
            "unmatched_segments": unmatched,
            "dropped_segments": y_true["dropped"] + segments["dropped"],
        }

    def get_config(self):
        return {
            **super().get_config(),
            "max_segments": self.max_segments,
            "unmatched_penalty": self.unmatched_penalty,
            "stuff_classes": list(self.stuff_classes),
        }

    def _checked(self, argument, maps):
        """Panoptic maps in int32."""
        shape = tuple(getattr(maps, "shape", ()))
        dtype = getattr(maps, "dtype", type(maps).__name__)
        if len(shape) != 4 or shape[-1] not in (None, 2) or not is_integer(maps):
            raise ValueError(
                f"Reward {self.name!r} needs integer panoptic maps of class and "
                f"instance as `{argument}`. Expected: shape (rows, height, width, 2). "
                f"Received: shape {shape}, dtype {dtype}"
            )
        refuse_empty(self.name, argument, shape)
        if None not in shape[1:3] and shape[1] * shape[2] > MAX_PIXELS:
            raise ValueError(
                f"Reward {self.name!r} counts pixels exactly up to {MAX_PIXELS} a map. "
                f"Received: `{argument}` of shape {shape}"
            )
        if isinstance(maps, np.ndarray):
            maps = self.narrow(argument, maps)
        return maps_as_int32(with_last_sizes(maps, (2,)))

    def _check_sizes(self, true_ranks, maps):
        for true_size, size in zip(true_ranks.shape[1:], maps.shape[1:3], strict=True):
            if None not in (true_size, size) and true_size != size:
                raise ValueError(
                    f"Reward {self.name!r} needs maps of the same size. "
                    f"Received: y_true of {tuple(true_ranks.shape[1:])} pixels, "
                    f"y_pred of {tuple(maps.shape[1:3])}"
                )


def match_segments(overlaps, true, pred):
    """Matches segments as the COCO panoptic evaluation does.

    Args:
        overlaps: `(rows, 1 + segments, 2 + segments)` int32, numbers of pixels by rank
            in the ground truth and in the prediction.
        true, pred: from `rank_segments`.

    Returns:
        `(matched_iou, unmatched)`: the sum of the IoU of matches, and the number of
        predicted segments that count as unmatched, `(rows,)` float32 each.
    """
    true_area = ops.sum(overlaps, axis=2)[:, 1:, None]
    pred_area = ops.sum(overlaps, axis=1)[:, None, 1:-1]
    on_void = overlaps[:, :1, 1:-1]
    overlap = overlaps[:, 1:, 1:-1]
    same_class = true["classes"][:, :, None] == pred["classes"][:, None, :]
    is_crowd = true["instances"][:, :, None] < 0

    union = true_area + pred_area - overlap - on_void
    # In integers, so that an IoU of exactly 0.5 is no match.
    matches = ops.logical_and(same_class, 2 * overlap > union)
    matches = ops.logical_and(matches, ops.logical_not(is_crowd))
    iou = ops.cast(overlap, "float32") / ops.cast(ops.maximum(union, 1), "float32")
    matched_iou = ops.sum(ops.where(matches, iou, 0.0), axis=(1, 2))

    on_crowd = ops.where(ops.logical_and(same_class, is_crowd), overlap, 0)
    forgiven = on_void[:, 0] + ops.sum(on_crowd, axis=1)
    counts = ops.logical_and(2 * forgiven <= pred_area[:, 0], pred_area[:, 0] > 0)
    unmatched = ops.logical_and(counts, ops.logical_not(ops.any(matches, axis=1)))
    return matched_iou, ops.sum(ops.cast(unmatched, "float32"), axis=-1)
