"""Panoptic maps: numbering the segments of each map, and the overlaps of two maps."""

from keras import ops

SLOTS_PER_SEGMENT = 32  # a hash table this sparse takes few rounds to fill
# Odd constants with well-mixed bits, for a hash of (class, instance) in 32 bits.
MIX_CLASS, MIX_INSTANCE, MIX_AGAIN = 0x27D4EB2F, 0x165667B1, 0x2C1B3C6D


def rank_segments(maps, is_void, max_segments, stuff_classes=()):
    """Numbers the segments of each map, starting at 1.

    Uses a hash table for each map. In every round, the pixels without a slot probe the
    next one. An empty slot is given to the first pixel, in reading order, that probes
    it, and so to its segment. A pixel keeps a slot that has its class and instance, so
    only pixels with equal ids share a slot. All pixels of a segment probe the same
    slots in the same rounds, and would finally probe all of them. The rounds end when
    every pixel has a slot or the table is full.

    Args:
        maps: int32 class and instance, `(rows, height, width, 2)`.
        is_void: pixels that belong to no segment, `(rows, height, width)`.
        max_segments: number of segments of a map that get a number of their own: the
            first ones in reading order.
        stuff_classes: classes whose instances count as 0.

    Returns:
        dict: `ranks` `(rows, height, width)` int32: 0 for void, 1 to `max_segments`,
        and `max_segments + 1` for all further segments; `classes` and `instances`
        `(rows, max_segments)` of ranks from 1, 0 where there is none; `dropped`
        `(rows,)` float32, the number of further segments.
    """
    shape = ops.shape(maps)
    pixels = shape[1] * shape[2]
    maps = ops.reshape(maps, (-1, pixels, 2))
    is_void = ops.reshape(is_void, (-1, pixels))
    slots = 1 << (SLOTS_PER_SEGMENT * max_segments - 1).bit_length()
    slot_of_pixel, last = fill_table(maps, is_void, slots, stuff_classes)

    # `last` counts pixels from the end: a slot is free if it is -1, otherwise taken.
    largest, slot_of_rank = ops.top_k(last, max_segments)
    first_pixel = ops.expand_dims(pixels - 1 - ops.maximum(largest, 0), -1)
    keys = ops.take_along_axis(maps, first_pixel, axis=1)
    is_free = largest < 0
    classes = ops.where(is_free, 0, keys[..., 0])
    is_single = ops.logical_or(is_free, is_stuff(classes, stuff_classes))
    instances = ops.where(is_single, 0, keys[..., 1])

    starts = row_starts(last, slots + 1)
    numbers = ops.arange(1, max_segments + 1, dtype="int32")
    numbers = ops.broadcast_to(numbers, ops.shape(slot_of_rank))
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
        slot; and `(rows, slots)` int32, the index of the slot's first pixel, counted
        from the end of the map, -1 for a free slot.
    """
    rows, pixels = ops.shape(maps)[0], ops.shape(maps)[1]
    # One number per pixel, to save memory: below `slots`, it is the slot that a waiting
    # pixel probes next; otherwise, `slots` plus the slot of the pixel.
    state = ops.where(is_void, 2 * slots, first_probe(maps, slots, stuff_classes))
    last = ops.full((rows, slots), -1, dtype="int32")
    from_end = ops.arange(pixels - 1, -1, -1, dtype="int32")
    starts = row_starts(maps[..., 0], slots)

    def is_unfinished(state, last):
        waits = ops.any(state < slots, axis=-1)
        return ops.any(ops.logical_and(waits, ops.any(last < 0, axis=-1)))

    def probe(state, last):
        waits = state < slots
        flat = ops.bitwise_and(state, slots - 1) + starts
        claims = ops.segment_max(
            ops.reshape(ops.zeros_like(flat) + from_end, (-1,)),
            ops.reshape(ops.where(waits, flat, rows * slots), (-1,)),
            rows * slots + 1,
        )
        claims = ops.reshape(ops.maximum(claims[:-1], -1), (-1, slots))
        # On NumPy, Keras's `segment_max` of ints is a float.
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
    """Counts the pixels with each pair of values.

    Args:
        first, second: int32 in `[0, first_size)` and `[0, second_size)`, of one shape
            `(rows, ...)`.

    Returns:
        `(rows, first_size, second_size)` int32.
    """
    rows = ops.shape(first)[0]
    first = ops.reshape(first, (rows, -1))
    second = ops.reshape(second, (rows, -1))
    # One flat scatter for all rows: a batched one is many times slower on a CPU.
    pairs = first * second_size + second
    pairs = ops.reshape(pairs + row_starts(first, first_size * second_size), (-1,))
    counts = ops.segment_sum(
        ops.ones_like(pairs), pairs, rows * first_size * second_size
    )
    counts = ops.cast(counts, "int32")
    return ops.reshape(counts, (-1, first_size, second_size))
