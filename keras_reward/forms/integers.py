"""Integers beyond int32, in which rewards count: refused, renumbered or replaced.

JAX holds no wider ones, and a cast drops the upper bits without a word: 2^32 + 5
becomes 5, and COCO's id of a crowd, 900100448263, a negative number. On the host, where
values can be seen, they are refused or renumbered. Within a compiled step they become a
value that does no harm.
"""

import numpy as np
from keras import ops

from keras_reward.nests import dtype_of, host_array, is_integer

SMALLEST, LARGEST = -(2**31), 2**31 - 1
WIDE = ("int64", "uint32", "uint64")  # dtypes that can be beyond int32


def is_wide(values):
    """Whether a tensor or array is of an integer dtype with numbers beyond int32."""
    return is_integer(values) and dtype_of(values) in WIDE


def beyond_int32(values):
    """Where integers are beyond int32: bools, of a tensor or a NumPy array."""
    too_large = values > LARGEST
    if dtype_of(values) != "int64":  # unsigned
        return too_large
    return (values < SMALLEST) | too_large


def as_int32(values, replacement):
    """Integers of any dtype in int32; those beyond it become `replacement`."""
    narrow = ops.cast(values, "int32")
    if not is_wide(values):
        return narrow
    return ops.where(beyond_int32(signed(values)), replacement, narrow)


def signed(values):
    """uint64 as int64, which all backends compare."""
    return ops.cast(values, "int64") if dtype_of(values) == "uint64" else values


def array_beyond_int32(values):
    """The values of an array or tensor as NumPy, if they can be seen and are beyond."""
    array = host_array(values) if is_wide(values) else None
    if array is None or not array.size:
        return None
    is_beyond = array.max() > LARGEST or array.min() < SMALLEST
    return array if is_beyond else None


def refuse_beyond_int32(name, argument, values, what):
    """Raises a ValueError for integers beyond int32, where values can be seen.

    Args:
        name: of what reads them, for the message.
        argument: name of the argument.
        values: an array or tensor; any other value passes.
        what: name of the integers, for the message.
    """
    array = array_beyond_int32(values)
    if array is not None:
        worst = array[beyond_int32(array)].flat[0]
        raise ValueError(
            f"{name} computes in int32: {what} must be from {SMALLEST} to {LARGEST}. "
            "Number them anew before, for example by their place in "
            f"`numpy.unique(ids)`, the same in targets and outputs. "
            f"Received: {worst} in `{argument}`, dtype {array.dtype}"
        )


def narrow_maps(name, argument, maps):
    """Panoptic maps whose ids fit int32, on the host.

    Instances have no meaning beyond their map and class, so they are numbered anew,
    with their signs. Classes beyond int32 are refused.

    Args:
        name, argument: as for `refuse_beyond_int32`.
        maps: class and instance, `(rows, height, width, 2)`; any other value is
            returned as it is.

    Returns:
        `maps`, or an int32 array.
    """
    array = array_beyond_int32(maps)
    if array is None or array.ndim != 4 or array.shape[-1] != 2:
        return maps
    refuse_beyond_int32(name, argument, array[..., 0], "classes")
    instances = np.zeros(array.shape[:-1], "int32")
    for row, ids in zip(instances, array[..., 1], strict=True):
        found, index = np.unique(ids, return_inverse=True)
        numbers = np.arange(len(found)) - (found < 0).sum() + (found > 0)
        row[...] = numbers[index].reshape(row.shape)
    return np.stack([array[..., 0].astype("int32"), instances], axis=-1)


def maps_as_int32(maps):
    """Panoptic maps in int32, within a compiled step: see `narrow_maps`.

    A class beyond int32 becomes -1. Instances are only sorted if one is beyond.
    """
    if not is_wide(maps):
        return ops.cast(maps, "int32")
    classes, instances = maps[..., 0], signed(maps[..., 1])
    instances = ops.cond(
        ops.any(beyond_int32(instances)),
        lambda: numbered(instances),
        lambda: ops.cast(instances, "int32"),
    )
    return ops.stack([as_int32(classes, -1), instances], axis=-1)


def numbered(ids):
    """Different int32 numbers of the same signs for the ids of each map.

    Args:
        ids: `(rows, height, width)`, of any integer dtype.
    """
    shape = ops.shape(ids)
    flat = ops.reshape(ids, (shape[0], -1))
    order = ops.argsort(flat, axis=-1)
    ranked = ops.take_along_axis(flat, order, axis=-1)
    starts = ops.cast(ranked[:, 1:] != ranked[:, :-1], "int32")
    starts = ops.concatenate([ops.ones_like(starts[:, :1]), starts], axis=1)
    negative = ops.sum(ops.where(ranked < 0, starts, 0), axis=1, keepdims=True)
    numbers = ops.cumsum(starts, axis=1) - 1 - negative
    numbers = ops.where(ranked > 0, numbers + 1, numbers)
    back = ops.argsort(order, axis=-1)
    numbers = ops.take_along_axis(numbers, back, axis=-1)
    return ops.cast(ops.reshape(numbers, shape), "int32")
