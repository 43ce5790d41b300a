"""Batches of NumPy arrays from any data that `fit` takes."""

import keras

from keras_reward.nests import rows_of, take_rows, to_numpy


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
    return to_numpy((*batch, None)[:2])
