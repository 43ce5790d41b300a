"""Data for `fit`, with a function applied to every batch on the host."""

import types

import keras
import numpy as np

from keras_reward.nests import take_rows, to_arrays

AUTOTUNE = -1  # of tf.data


class MappedDataset(keras.utils.PyDataset):
    """A `PyDataset` whose batches are those of another, with a function applied.

    Args:
        dataset: a `PyDataset`.
        function: from a batch to a batch.
    """

    def __init__(self, dataset, function):
        if dataset.use_multiprocessing:
            raise ValueError(
                "A task's preprocessor does not run in other processes. Make the "
                "PyDataset with `use_multiprocessing=False`; its workers are threads "
                "then. Received: use_multiprocessing=True"
            )
        super().__init__(workers=dataset.workers, max_queue_size=dataset.max_queue_size)
        self.dataset = dataset
        self.function = function

    @property
    def num_batches(self):
        return self.dataset.num_batches

    def __getitem__(self, index):
        return self.function(self.dataset[index])

    def on_epoch_begin(self):
        self.dataset.on_epoch_begin()

    def on_epoch_end(self):
        self.dataset.on_epoch_end()


class MappedArrays(keras.utils.PyDataset):
    """Batches of arrays, with a function applied to each when it is needed.

    Args:
        arrays: `(x, y, sample_weight)`, nests of NumPy arrays or None.
        function: from a batch to a batch.
        batch_size: number of rows of a batch; the last one may have fewer. Default, as
            in Keras: so that there are `steps` batches, or else 32.
        steps: number of batches, or None.
        shuffle: whether each pass takes the rows in a new order.
    """

    def __init__(self, arrays, function, batch_size=None, steps=None, shuffle=False):
        super().__init__()
        self.arrays = arrays
        self.function = function
        self.rows = common_rows(arrays)
        self.batch_size = batch_size or (-(-self.rows // steps) if steps else 32)
        self.shuffle = shuffle
        self.order = np.arange(self.rows)

    @property
    def num_batches(self):
        return -(-self.rows // self.batch_size)

    def __getitem__(self, index):
        # Here and not at the end of an epoch, which Keras does not tell in time where
        # it fetches ahead.
        if self.shuffle and index == 0:
            self.order = np.random.permutation(self.rows)
        rows = self.order[index * self.batch_size :][: self.batch_size]
        return self.function(take_rows(self.arrays, rows))


def mapped(data, function, in_graph):
    """A dataset with a function applied to each of its batches.

    Args:
        data: a `keras.utils.PyDataset`, a generator, a `tf.data.Dataset`, or a dataset
            of Grain.
        function: from a batch to a batch.
        in_graph: the same for symbolic tensors; `tf.data` passes it `x` or
            `x, y[, sample_weight]`.

    Returns:
        A dataset of the same kind; None if `data` is of another kind.
    """
    if isinstance(data, keras.utils.PyDataset):
        return MappedDataset(data, function)
    if isinstance(data, types.GeneratorType):
        return (function(batch) for batch in data)
    if hasattr(data, "element_spec") and hasattr(data, "prefetch"):
        return data.map(in_graph, num_parallel_calls=AUTOTUNE).prefetch(AUTOTUNE)
    if is_grain(data):
        return data.map(function)
    return None


def is_grain(data):
    """Whether `data` is a dataset of Grain that can be mapped."""
    return hasattr(data, "map") and type(data).__module__.startswith("grain")


def are_rows(data):
    """Whether `data` is a nest of arrays or lists, and not a dataset."""
    leaves = [data]
    while leaves:
        leaf = leaves.pop()
        if isinstance(leaf, dict):
            leaves += leaf.values()
        elif isinstance(leaf, tuple):
            leaves += leaf
        elif not (isinstance(leaf, list | str) or hasattr(leaf, "__array__")):
            return False
    return True


def common_rows(arrays):
    """The number of rows that all arrays have."""
    leaves = [leaf for leaf in keras.tree.flatten(arrays) if leaf is not None]
    rows = {leaf.shape[0] if leaf.ndim else None for leaf in leaves}
    if len(rows) != 1 or None in rows:
        raise ValueError(
            "`x`, `y` and `sample_weight` must have one row for each input. "
            f"Received: shapes {[leaf.shape for leaf in leaves]}"
        )
    return rows.pop()


def split_off(arrays, share):
    """Splits the last rows off, as `validation_split` does.

    Args:
        arrays: nest of arrays or None.
        share: of the rows, between 0 and 1.

    Returns:
        The nest of the first rows, and that of the last ones.
    """
    arrays = to_arrays(arrays)
    rows = common_rows(arrays)
    first = int(rows * (1.0 - share))
    if not 0 < first < rows:
        raise ValueError(
            "`validation_split` must leave rows for training and for validation. "
            f"Received: validation_split={share}, {rows} rows"
        )
    parts = (slice(first), slice(first, None))
    return tuple(take_rows(arrays, part) for part in parts)
