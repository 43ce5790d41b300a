"""Ragged captions, as lists or ragged tensors, in the form of padded arrays.

TensorFlow's `RaggedTensor` is recognised by its methods: no backend is named here.
"""

import itertools
import numbers

import keras
import numpy as np

PADDING = -1  # a negative id is padding, whatever `pad_id` is


def is_ragged(value):
    """Whether a value is a ragged tensor."""
    return hasattr(value, "row_splits") and callable(getattr(value, "to_tensor", None))


def dense(nest):
    """Ragged tensors of integers in a nest become padded tensors, also in a step."""
    return keras.tree.map_structure(
        lambda leaf: dense_tensor(leaf) if is_ragged(leaf) else leaf, nest
    )


def dense_tensor(ragged):
    """A ragged tensor of integers as a tensor, padded at the end of each axis."""
    if not keras.backend.is_int_dtype(ragged.dtype.name):
        raise ValueError(
            "A ragged tensor of token ids is padded where it is read; other ragged "
            "tensors have no padding that is known to be right. Pad it, for example "
            "with its method `to_tensor`. "
            f"Received: a ragged tensor of {ragged.dtype.name}"
        )
    return ragged.to_tensor(default_value=PADDING)


def with_arrays(nest):
    """Ragged tensors and lists of numbers in a nest become arrays, integers padded."""
    if isinstance(nest, dict):
        return {name: with_arrays(held) for name, held in nest.items()}
    if isinstance(nest, list) and nest and holds_numbers(nest):
        return padded(nest)
    if isinstance(nest, list | tuple) and type(nest) in (list, tuple):
        return type(nest)(map(with_arrays, nest))
    if is_object(nest) and holds_numbers(nest):
        return padded(nest)
    return dense_tensor(nest) if is_ragged(nest) else nest


def as_array(values):
    """Lists of numbers or arrays, or a ragged tensor, as one array; others as are."""
    is_list = isinstance(values, list | tuple) or is_object(values)
    return padded(values) if is_list else with_arrays(values)


def holds_numbers(values):
    """Whether the first value within lists is a number, and not an array."""
    while isinstance(values, list | tuple) or is_object(values):
        values = next((v for v in values if not is_empty(v)), None)
    return isinstance(values, numbers.Number | np.bool_)


def is_object(value):
    """Whether a value is a NumPy array of Python objects, of at least one axis."""
    return isinstance(value, np.ndarray) and value.dtype.kind == "O" and value.ndim > 0


def is_empty(value):
    """Whether a value is a list or array without items."""
    if isinstance(value, np.ndarray) and not value.ndim:
        return False
    return isinstance(value, list | tuple | np.ndarray) and not len(value)


def rank_of(values):
    """Number of axes of an array, a ragged tensor or nested lists of numbers."""
    if hasattr(values, "shape") and not is_object(values):
        return len(values.shape)
    if not isinstance(values, list | tuple | np.ndarray):
        return 0
    return 1 + max(map(rank_of, itertools.islice(values, LOOKED_AT)), default=0)


LOOKED_AT = 8  # of a list, whose first items may be empty


def padded(values):
    """Nested lists of numbers as an array.

    Args:
        values: lists, tuples and arrays within each other. If they are ragged, their
            numbers must be integers.

    Returns:
        A NumPy array, with `PADDING` after the end of shorter lists.
    """
    try:
        regular = np.asarray(values)
        if regular.dtype != object:
            return regular.astype("float32") if regular.dtype == "float64" else regular
    except ValueError:  # ragged
        pass
    shape, kinds = shape_of(values), set()
    array = np.full(shape, PADDING, "int64")
    fill(array, values, kinds)
    if not kinds <= set("iu"):
        raise ValueError(
            "Lists of different lengths must hold integers, which are padded at the "
            "end. Pad lists of other numbers yourself. "
            f"Received: lists of lengths up to {shape}, not all of integers"
        )
    return array


def shape_of(values):
    """The smallest shape that holds nested lists."""
    if hasattr(values, "shape") and not is_object(values):
        return tuple(values.shape)
    if not isinstance(values, list | tuple | np.ndarray):
        return ()
    inner = set(map(shape_of, values))
    sizes = itertools.zip_longest(*inner, fillvalue=0)
    return (len(values), *map(max, sizes))


def fill(array, values, kinds):
    """Writes nested lists into the start of each axis of an array."""
    if not isinstance(values, list | tuple | np.ndarray):
        kinds.add("a list beside a number")
    elif array.ndim > 1:
        for place, inner in zip(array, values, strict=False):
            fill(place, inner, kinds)
    elif len(values):
        own = np.array(list(values))  # of what may be objects
        kinds.add(own.dtype.kind)
        array[: len(own)] = own if own.dtype.kind in "iu" else PADDING
