"""Batches of NumPy arrays from whatever `fit` takes."""

import keras
import numpy as np


def batches_of(data, batch_size):
    """The number of batches and the batches.

    Args:
        data: `(x, y)` arrays or nests of them, y may be None; or an iterable of such
            batches: a `keras.utils.PyDataset`, a `tf.data.Dataset`, a PyTorch
            `DataLoader`, a list.
        batch_size: of batches where `data` is arrays.

    Returns:
        The number of batches, None if unknown, and an iterator of `(x, y)` in NumPy.
    """
    if isinstance(data, tuple):
        rows = rows_of(data)
        starts = range(0, rows, batch_size)
        slices = [slice(start, start + batch_size) for start in starts]
        return len(slices), (as_pair(take(data, rows)) for rows in slices)
    if isinstance(data, keras.utils.PyDataset):
        count = data.num_batches
        return count, (as_pair(data[i]) for i in range(count))
    count = len(data) if hasattr(data, "__len__") else None
    return count, (as_pair(batch) for batch in data)


def as_pair(batch):
    """`(x, y)` in NumPy of a batch; y is None if there is none."""
    batch = batch if isinstance(batch, tuple | list) else (batch,)
    return to_numpy((*batch, None)[:2])


def rows_of(structure):
    """Length of the first axis of a nest of arrays."""
    return len(keras.tree.flatten(structure)[0])


def take(data, rows):
    """A slice of every array in a nest."""
    return map_arrays(lambda array: array[rows], data)


def pad_rows(structure, rows):
    """Repeats the last row of every array in a nest, so that there are `rows`."""
    missing = rows - rows_of(structure)
    if missing <= 0:
        return structure
    return map_arrays(
        lambda array: np.concatenate([array, np.repeat(array[-1:], missing, axis=0)]),
        structure,
    )


def to_numpy(structure):
    """Every tensor in a nest as a NumPy array."""
    return map_arrays(keras.ops.convert_to_numpy, structure)


def map_arrays(function, structure):
    """Applies `function` to the arrays of a nest, and leaves None as it is."""
    return keras.tree.map_structure(
        lambda leaf: None if leaf is None else function(leaf), structure
    )
