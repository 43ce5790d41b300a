"""Data for `fit`, with a function applied to every batch on the host."""

import types

import keras

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

    def set_epoch(self, epoch):
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)

    def on_epoch_begin(self):
        self.dataset.on_epoch_begin()

    def on_epoch_end(self):
        self.dataset.on_epoch_end()


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
