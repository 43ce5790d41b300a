"""Panoptic maps for networks: ids in a canonical order, and maps from logits."""

import numpy as np
from keras import ops

from keras_reward.forms.integers import maps_as_int32, narrow_maps
from keras_reward.forms.panoptic_maps import (
    is_stuff,
    joint_counts,
    rank_segments,
    row_starts,
)

VOID = 0
NO_INSTANCE = -1  # instance of pixels whose segment has no number


def canonical_segments(maps, max_segments):
    """Numbers the segments of each map from top to bottom, by their centres.

    A segment is all pixels of one class and instance. Stuff and crowds are ordinary
    segments, and all classes share the numbers 1, 2, ... Segments are ordered by
    `height * y + x` of their centre of mass.

    Args:
        maps: int class and instance, `(batch, height, width, 2)`. Void is class 0 or a
            negative class.
        max_segments: maximum number of segments in a map. If there are more, the first
            ones in reading order are numbered.

    Returns:
        Int32 maps `(batch, height, width, 2)`: the class, 0 for void, and the number,
        0 for void and -1 for segments without number.

    Example:

    ```python
    import numpy as np
    from keras_reward.codecs import canonical_segments

    maps = np.array([[[[3, 9], [3, 9]], [[0, 0], [7, 2]]]])  # 2x2 pixels
    canonical_segments(maps, max_segments=5)[..., 1]         # [[[1, 1], [0, 2]]]
    ```

    Reference: Kolesnikov et al. 2022, "UViM: A Unified Modeling Approach for Vision
    with Learned Guiding Codes"; the order is that of its published code.
    """
    if isinstance(maps, np.ndarray):
        maps = narrow_maps("`canonical_segments`", "maps", maps)
    maps = maps_as_int32(ops.convert_to_tensor(maps))
    _, height, width, _ = ops.shape(maps)
    is_void = maps[..., 0] <= VOID
    ranks = rank_segments(maps, is_void, max_segments)["ranks"]
    places = max_segments + 2  # void, the segments, those beyond

    rows = ops.arange(height, dtype="int32")[:, None] + ops.zeros_like(ranks)
    columns = ops.arange(width, dtype="int32") + ops.zeros_like(ranks)
    vertical, area = centres(joint_counts(ranks, rows, places, height))
    horizontal, _ = centres(joint_counts(ranks, columns, places, width))
    keys = (ops.cast(height, "float32") * vertical + horizontal)[:, 1:-1]
    keys = ops.where(area[:, 1:-1] > 0, keys, float("inf"))

    numbers = 1 + order_of(keys)
    ends = ops.zeros_like(numbers[:, :1])
    table = ops.concatenate([ends, numbers, ends + NO_INSTANCE], axis=1)
    flat = ops.reshape(ranks, (-1, height * width))
    instances = ops.take_along_axis(table, flat, axis=1)
    instances = ops.reshape(instances, (-1, height, width))
    return ops.stack([ops.maximum(maps[..., 0], VOID), instances], axis=-1)


def centres(counts):
    """Mean index and area `(batch, segments)` of counts `(batch, segments, size)`."""
    counts = ops.cast(counts, "float32")
    area = ops.sum(counts, axis=-1)
    index = ops.arange(ops.shape(counts)[-1], dtype="float32")
    return ops.sum(counts * index, axis=-1) / ops.maximum(area, 1.0), area


def order_of(keys):
    """Rank of each key `(batch, n)` in its row, from 0, int32.

    Equal keys keep their order, on every backend.
    """
    index = ops.arange(ops.shape(keys)[-1], dtype="int32")
    mine, other = keys[:, :, None], keys[:, None, :]
    tie = ops.logical_and(mine == other, index[None, :] < index[:, None])
    before = ops.logical_or(other < mine, tie)
    return ops.sum(ops.cast(before, "int32"), axis=-1)


def panoptic_from_logits(semantics, instances, min_fraction=0.0, stuff_classes=()):
    """Panoptic maps from per-pixel logits.

    Each pixel belongs to its likeliest instance. All pixels of an instance get the
    class with the largest sum of logits over them.

    Args:
        semantics: logits of classes, void first, `(batch, height, width, classes)`.
        instances: logits of instances, void first, `(batch, height, width, n)`.
        min_fraction: an instance that covers this fraction of the map or less becomes
            void. Default 0.0.
        stuff_classes: classes whose instance is 0. Default: none.

    Returns:
        Int32 maps of class and instance, `(batch, height, width, 2)`; void is (0, 0).

    Example:

    ```python
    import numpy as np
    from keras_reward.codecs import panoptic_from_logits

    semantics = np.eye(3, dtype="float32")[[[[1, 2, 1, 0]]]]  # 1x4 pixels, 2 classes
    instances = np.eye(2, dtype="float32")[[[[1, 1, 1, 0]]]]
    panoptic_from_logits(semantics, instances)  # [[[[1, 1], [1, 1], [1, 1], [0, 0]]]]
    ```

    Reference: as published with Kolesnikov et al. 2022, "UViM".
    """
    _, height, width, classes = ops.shape(semantics)
    number = ops.shape(instances)[-1]
    chosen = ops.cast(ops.argmax(instances, axis=-1), "int32")
    chosen = ops.reshape(chosen, (-1, height * width))
    segments = ops.reshape(chosen + row_starts(chosen, number), (-1,))
    total = ops.shape(chosen)[0] * number
    logits = ops.reshape(ops.cast(semantics, "float32"), (-1, classes))
    sums = ops.reshape(ops.segment_sum(logits, segments, total), (-1, number, classes))
    area = ops.segment_sum(ops.ones_like(segments, dtype="float32"), segments, total)
    fraction = ops.reshape(area, (-1, number)) / ops.cast(height * width, "float32")

    labels = ops.cast(ops.argmax(sums, axis=-1), "int32")
    labels = ops.where(fraction > min_fraction, labels, VOID)
    numbers = ops.arange(number, dtype="int32") + ops.zeros_like(labels)
    single = ops.logical_or(labels == VOID, is_stuff(labels, stuff_classes))
    numbers = ops.where(single, 0, numbers)
    maps = [
        ops.reshape(ops.take_along_axis(table, chosen, axis=1), (-1, height, width))
        for table in (labels, numbers)
    ]
    return ops.stack(maps, axis=-1)
