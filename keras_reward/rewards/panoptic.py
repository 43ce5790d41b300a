"""Reward for panoptic segmentation (Pinto et al. 2023, section 4.1)."""

import keras
from keras import ops

from keras_reward.rewards.reward import Reward, is_integer

SLOTS_PER_SEGMENT = 32  # so sparse a hash table takes few rounds to fill
MAX_PIXELS = 2**24  # Keras's segment operations count in float32 on PyTorch
# Odd constants with bits all over, for a hash of (class, instance) in 32 bits.
MIX_CLASS, MIX_INSTANCE, MIX_AGAIN = 0x27D4EB2F, 0x165667B1, 0x2C1B3C6D


@keras.saving.register_keras_serializable(package="keras_reward")
class PanopticQualityReward(Reward):
    """Sum of the IoU of matched segments, minus 0.3 for each unmatched prediction.

    Panoptic quality does not split into a sum over images; this does, and rises with
    it. A segment is all pixels of one class and instance, connected or not. A
    predicted segment matches a segment of the ground truth of the same class if their
    IoU is over 0.5; then neither can match another. As in the COCO panoptic evaluation,
    pixels that are void in the ground truth are left out of the union, and a predicted
    segment of which more than half is void there is not counted as unmatched.

    Does not punish: segments of the ground truth that nothing matches, beyond the IoU
    they would have earned; pixels predicted as void. An image with many segments weighs
    more than one with few. `MeanIoUReward`, on the classes of the pixels, pays for the
    misses as well: `PanopticQualityReward() + (lambda y_true, y_pred:
    MeanIoUReward(81, ignore_class=0)(y_true[..., 0], y_pred[..., 0]))`. Lower
    `unmatched_penalty` if the model falls silent.

    Args:
        max_segments: segments of a map that are looked at, those that come first in
            reading order. In a ground truth with more, the others become void. In a
            prediction with more, each of the others counts as unmatched, wherever it
            lies, so that there is nothing to earn by overflowing; the count is exact up
            to 32 times `max_segments` in all. How many were left out in both maps is
            the part `dropped_segments`. Default 64.
        unmatched_penalty: taken off for each unmatched predicted segment. Default 0.3.
        stuff_classes: classes without instances, such as sky: instance ids of these
            are ignored. Positive ids, as in the maps. Default: none.
        name: optional name.

    Call arguments: `y_true` and `y_pred` int maps `(rows, height, width, 2)` of class
    and instance. The ids of instances need not be consecutive, may be as large as int32
    goes, and stand for another instance in every map and class. Void is class 0, in
    `y_true` also any negative class; in `y_pred` an unknown or negative class is a
    segment like others, which nothing matches. A negative instance in `y_true` marks a
    crowd of its class (things only): it is not matched, and a prediction of its class
    that lies mostly on it and on void is not counted as unmatched. Returns `(rows,)`,
    at most the number of segments of the ground truth; parts `matched_iou`,
    `unmatched_segments` and `dropped_segments`.

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

    part_names = ("matched_iou", "unmatched_segments", "dropped_segments")

    def __init__(
        self, max_segments=64, unmatched_penalty=0.3, stuff_classes=(), name=None
    ):
        super().__init__(name=name)
        if max_segments < 1:
            raise ValueError(
                "`max_segments` must be at least 1. "
                f"Received: max_segments={max_segments}"
            )
        if any(stuff_class < 1 for stuff_class in stuff_classes):
            raise ValueError(
                "`stuff_classes` must be positive class ids; 0 is void. "
                f"Received: stuff_classes={tuple(stuff_classes)}"
            )
        self.max_segments = max_segments
        self.unmatched_penalty = unmatched_penalty
        self.stuff_classes = tuple(stuff_classes)

    def prepare(self, y_true):
        maps = self._checked("y_true", y_true)
        is_void = maps[..., 0] <= 0
        segments = rank_segments(maps, is_void, self.max_segments, self.stuff_classes)
        ranks = segments["ranks"]
        ranks = ops.where(ranks > self.max_segments, 0, ranks)  # beyond becomes void
        # The map is repeated to rows: as few bytes a pixel as hold a rank.
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
        if len(shape) != 4 or shape[-1] != 2 or not is_integer(maps):
            raise ValueError(
                f"Reward {self.name!r} needs integer panoptic maps of class and "
                f"instance as `{argument}`. Expected: shape (rows, height, width, 2). "
                f"Received: shape {shape}, dtype {dtype}"
            )
        if None not in shape[1:3] and shape[1] * shape[2] > MAX_PIXELS:
            raise ValueError(
                f"Reward {self.name!r} counts pixels exactly up to {MAX_PIXELS} a map. "
                f"Received: `{argument}` of shape {shape}"
            )
        return ops.cast(maps, "int32")

    def _check_sizes(self, true_ranks, maps):
        for true_size, size in zip(true_ranks.shape[1:], maps.shape[1:3], strict=True):
            if None not in (true_size, size) and true_size != size:
                raise ValueError(
                    f"Reward {self.name!r} needs maps of the same size. "
                    f"Received: y_true of {tuple(true_ranks.shape[1:])} pixels, "
                    f"y_pred of {tuple(maps.shape[1:3])}"
                )


def rank_segments(maps, is_void, max_segments, stuff_classes=()):
    """Numbers the segments of each map from 1 on.

    A hash table for each map. In every round, the pixels that have no slot yet probe
    the next one. An empty slot goes to the first pixel, in reading order, that probes
    it, and so to its segment. The pixels that find their own class and instance in a
    slot keep it: nothing but equal ids puts two pixels in one slot. All pixels of a
    segment probe the same slots at the same time, and in the end they would probe all
    of them; so the rounds go on until every pixel has its slot or the table is full.

    Args:
        maps: int32 class and instance, `(rows, height, width, 2)`.
        is_void: pixels that belong to no segment, `(rows, height, width)`.
        max_segments: how many segments of a map get a number of their own: those that
            come first in reading order.
        stuff_classes: classes whose instances count as 0.

    Returns:
        dict: `ranks` `(rows, height, width)` int32: 0 for void, 1 to `max_segments`,
        and one more for segments beyond; `classes` and `instances`
        `(rows, max_segments)` of ranks 1 and up, 0 where there is none; `dropped`
        `(rows,)` float32, the number of segments beyond.
    """
    shape = ops.shape(maps)
    pixels = shape[1] * shape[2]
    maps = ops.reshape(maps, (-1, pixels, 2))
    is_void = ops.reshape(is_void, (-1, pixels))
    slots = 1 << (SLOTS_PER_SEGMENT * max_segments - 1).bit_length()
    slot_of_pixel, last = fill_table(maps, is_void, slots, stuff_classes)

    # `last` counts pixels from the end, so that 0 and up is taken and -1 is free.
    largest, slot_of_rank = ops.top_k(last, max_segments)
    first_pixel = ops.expand_dims(pixels - 1 - ops.maximum(largest, 0), -1)
    keys = ops.take_along_axis(maps, first_pixel, axis=1)
    is_free = largest < 0
    classes = ops.where(is_free, 0, keys[..., 0])
    is_single = ops.logical_or(is_free, is_stuff(classes, stuff_classes))
    instances = ops.where(is_single, 0, keys[..., 1])

    starts = row_starts(last, slots + 1)
    numbers = ops.zeros_like(slot_of_rank) + ops.arange(1, max_segments + 1)
    rank_of_slot = ops.segment_max(
        ops.reshape(numbers, (-1,)),
        ops.reshape(ops.cast(slot_of_rank, "int32") + starts, (-1,)),
        shape[0] * (slots + 1),
    )
    rank_of_slot = ops.where(rank_of_slot < 1, max_segments + 1, rank_of_slot)
    rank_of_slot = ops.cast(rank_of_slot, "int32")
    ranks = ops.where(
        is_void, 0, ops.take(rank_of_slot, slot_of_pixel + starts, axis=0)
    )
    found = ops.sum(ops.cast(last >= 0, "float32"), axis=-1)
    return {
        "ranks": ops.reshape(ranks, (-1, shape[1], shape[2])),
        "classes": classes,
        "instances": instances,
        "dropped": ops.maximum(found - max_segments, 0.0),
    }


def fill_table(maps, is_void, slots, stuff_classes):
    """Gives each segment a slot of its map's hash table: see `rank_segments`.

    Args:
        maps: int32 class and instance, `(rows, pixels, 2)`.
        is_void: `(rows, pixels)`.
        slots: size of a table, a power of two.
        stuff_classes: classes whose instances count as 0.

    Returns:
        `(slot_of_pixel, last)`: `(rows, pixels)` int32, `slots` for a pixel without
        slot; and `(rows, slots)` int32, the place of the slot's first pixel counted
        from the end of the map, -1 for a free slot.
    """
    rows, pixels = ops.shape(maps)[0], ops.shape(maps)[1]
    # One number a pixel, for the sake of memory: below `slots`, the slot that a waiting
    # pixel probes next; from there on, `slots` more than the slot that it has.
    state = ops.where(is_void, 2 * slots, first_probe(maps, slots, stuff_classes))
    last = ops.cast(ops.zeros((rows, slots)) - 1, "int32")
    starts = row_starts(maps[..., 0], slots)

    def is_unfinished(state, last):
        waits = ops.any(state < slots, axis=-1)
        return ops.any(ops.logical_and(waits, ops.any(last < 0, axis=-1)))

    def probe(state, last):
        waits = state < slots
        flat = ops.bitwise_and(state, slots - 1) + starts
        claims = ops.segment_max(
            ops.reshape(ops.zeros_like(flat) + ops.arange(pixels - 1, -1, -1), (-1,)),
            ops.reshape(ops.where(waits, flat, rows * slots), (-1,)),
            rows * slots + 1,
        )
        claims = ops.reshape(ops.maximum(claims[:-1], -1), (-1, slots))
        # Of ints, Keras's `segment_max` is a float on NumPy.
        last = ops.where(last < 0, ops.cast(claims, "int32"), last)
        first_pixel = pixels - 1 - ops.maximum(last, 0)

        def of_slot(table):
            return ops.take(ops.reshape(table, (-1,)), flat, axis=0)

        classes, instances = maps[..., 0], maps[..., 1]
        owner_class = ops.take_along_axis(classes, first_pixel, axis=1)
        owner_instance = ops.take_along_axis(instances, first_pixel, axis=1)
        same_instance = instances == of_slot(owner_instance)
        if stuff_classes:
            any_instance = of_slot(is_stuff(owner_class, stuff_classes))
            same_instance = ops.logical_or(same_instance, any_instance)
        owns = ops.logical_and(classes == of_slot(owner_class), same_instance)
        moved = ops.where(owns, state + slots, ops.bitwise_and(state + 1, slots - 1))
        return ops.where(waits, moved, state), last

    state, last = ops.while_loop(is_unfinished, probe, (state, last))
    return ops.where(state < slots, slots, state - slots), last


def first_probe(maps, slots, stuff_classes):
    """The slot that each pixel probes first: a hash of class and instance."""
    classes, instances = maps[..., 0], maps[..., 1]
    instances = ops.where(is_stuff(classes, stuff_classes), 0, instances)
    mixed = classes * MIX_CLASS + instances * MIX_INSTANCE  # may wrap around
    mixed = ops.bitwise_xor(mixed, ops.right_shift(mixed, 15)) * MIX_AGAIN
    mixed = ops.bitwise_xor(mixed, ops.right_shift(mixed, 13))
    return ops.bitwise_and(mixed, slots - 1)


def is_stuff(classes, stuff_classes):
    """Whether each class is one of `stuff_classes`: bools of the shape of `classes`."""
    beyond = max(stuff_classes, default=0) + 1
    table = [label in stuff_classes for label in range(beyond + 1)]
    return ops.take(
        ops.convert_to_tensor(table, dtype="bool"), ops.clip(classes, 0, beyond), axis=0
    )


def row_starts(tensor, width):
    """`row * width` for each row of `tensor`, `(rows, 1)` int32."""
    return ops.expand_dims(ops.arange(ops.shape(tensor)[0], dtype="int32") * width, -1)


def joint_counts(first, second, first_size, second_size):
    """How many pixels have each pair of values.

    Args:
        first, second: int32 in `[0, first_size)` and `[0, second_size)`, of one shape
            `(rows, ...)`.

    Returns:
        `(rows, first_size, second_size)` int32.
    """
    rows = ops.shape(first)[0]
    first = ops.reshape(first, (rows, -1))
    second = ops.reshape(second, (rows, -1))
    # One flat scatter for all rows: a batched one takes many times as long on a CPU.
    pairs = first * second_size + second
    pairs = ops.reshape(pairs + row_starts(first, first_size * second_size), (-1,))
    counts = ops.segment_sum(
        ops.ones_like(pairs), pairs, rows * first_size * second_size
    )
    counts = ops.cast(counts, "int32")
    return ops.reshape(counts, (-1, first_size, second_size))


def match_segments(overlaps, true, pred):
    """Matches segments as the COCO panoptic evaluation does.

    Args:
        overlaps: `(rows, 1 + segments, 2 + segments)` int32, pixels by rank in the
            ground truth and in the prediction.
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
