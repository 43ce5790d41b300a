"""Batches of NumPy arrays from any data that `fit` takes."""

import keras
import numpy as np
from keras import ops

from keras_reward.nests import map_leaves, rows_of, string_arrays, take_rows, to_numpy


def batches_of(data, batch_size):
    """The number of batches, and the batches.

    Args:
        data: `(x, y)` arrays or nests of them, y may be None; or an iterable of such
            batches: a `keras.utils.PyDataset`, a `tf.data.Dataset`, a PyTorch
            `DataLoader`, a list.
        batch_size: batch size if `data` is arrays.

    Returns:
        The number of batches, None if unknown, and an iterator of `(x, y)` in NumPy.
    """
    if isinstance(data, tuple):
        data = (string_arrays(data[0]), *data[1:])
        rows = rows_of(data)
        starts = range(0, rows, batch_size)
        slices = [slice(start, start + batch_size) for start in starts]
        return len(slices), (as_pair(take_rows(data, rows)) for rows in slices)
    if isinstance(data, keras.utils.PyDataset):
        count = data.num_batches
        return count, (as_pair(data[i]) for i in range(count))
    count = len(data) if hasattr(data, "__len__") else None
    return count, (as_pair(batch) for batch in data)


def as_pair(batch):
    """A batch as `(x, y)` in NumPy; y is None if there is none."""
    batch = batch if isinstance(batch, tuple | list) else (batch,)
    x, y = (*batch, None)[:2]
    return to_numpy((string_arrays(x), y))


def permutation(count, *key):
    """An order of `count` things, `(count,)` ints, that follows from a key of ints."""
    key = [part % 2**64 for part in key]  # NumPy takes no negative ones
    return np.random.default_rng(key).permutation(count)


FIRST_ROWS = 8


def first_rows(x, model):
    """A few rows of inputs, as tensors that a model can be called with.

    Args:
        x: a nest of arrays or tensors of any backend, `(batch, ...)` each.
        model: a `keras.Model`. If its batch size is fixed, there are as many rows.
    """
    shapes = [tensor.shape for tensor in getattr(model, "inputs", None) or ()]
    rows = next((shape[0] for shape in shapes if shape and shape[0]), FIRST_ROWS)

    def as_tensor(leaf):
        if ops.is_tensor(leaf):
            return ops.convert_to_tensor(leaf[:rows])
        leaf = np.asarray(leaf[:rows])
        if np.issubdtype(leaf.dtype, np.floating):  # as `fit` does with arrays
            return ops.convert_to_tensor(leaf, keras.config.floatx())
        numbers = np.issubdtype(leaf.dtype, np.integer) or leaf.dtype == bool
        return ops.convert_to_tensor(leaf) if numbers else leaf

    return map_leaves(as_tensor, x)
