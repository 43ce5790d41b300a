"""Training data in an order of their own: by seed and epoch, from any batch on."""

import keras
import numpy as np
from keras import ops

from keras_reward.batches import permutation
from keras_reward.nests import is_float, leaves_of, map_leaves, take_rows


class ArrayBatches(keras.utils.PyDataset):
    """Batches of arrays.

    Args:
        arrays: `(x, y, sample_weight)`, nests of NumPy arrays or None.
        function: from a batch to a batch, called when it is needed. Default: none.
        batch_size: number of rows of a batch; the last one may have fewer. Default, as
            in Keras: so that there are `steps` batches, or else 32.
        steps: number of batches, or None.
        shuffle: whether each pass takes the rows in an order of its own; `"batch"`: the
            rows within each batch.
        key: tuple of ints, from which the orders follow. Default `()`.
    """

    def __init__(
        self,
        arrays,
        function=None,
        batch_size=None,
        steps=None,
        shuffle=False,
        key=(),
    ):
        super().__init__()
        self.arrays = arrays
        self.function = function
        self.count = common_rows(arrays)
        self.batch_size = batch_size or (-(-self.count // steps) if steps else 32)
        self.shuffle = shuffle
        self.key = key
        self.order = None, None  # of a pass: its number, and the rows

    @property
    def num_batches(self):
        return -(-self.count // self.batch_size)

    @property
    def static_size(self):
        """Rows of each batch; None if the last one has fewer."""
        return None if self.count % self.batch_size else self.batch_size

    def __getitem__(self, index):
        return self.batch(0, index)

    def batch(self, number, index):
        """A batch of a pass.

        Args:
            number: of the pass, from 0.
            index: of the batch in it.
        """
        batch = take_rows(self.arrays, self.rows(number, index))
        return self.function(batch) if self.function else packed(*batch)

    def rows(self, number, index):
        """The rows of a batch of a pass, see `batch`: a slice, or an array of ints."""
        start = index * self.batch_size
        stop = min(start + self.batch_size, self.count)
        if not self.shuffle:
            return slice(start, stop)
        if self.shuffle == "batch":
            return start + permutation(stop - start, *self.key, number, index)
        known, order = self.order
        if known != number:
            order = permutation(self.count, *self.key, number)
            self.order = number, order
        return order[start:stop]

    def row_numbers(self, number, index):
        """As `rows`, always an array of ints."""
        rows = self.rows(number, index)
        return np.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows


class OrderedData(keras.utils.PyDataset):
    """The batches of each epoch of `fit`, which depend on nothing but their numbers.

    Args:
        dataset: an `ArrayBatches` or another `PyDataset`. Its `set_epoch(epoch)`, if it
            has one, is called before each epoch.
        shuffle: whether each pass takes the batches of a `PyDataset` in an order of its
            own.
        key: tuple of ints, from which the orders follow.
        steps: batches of an epoch. Default: those of the dataset. An epoch goes on
            where the one before has stopped.
    """

    def __init__(self, dataset, shuffle, key, steps=None):
        super().__init__(
            workers=dataset.workers,
            use_multiprocessing=dataset.use_multiprocessing,
            max_queue_size=dataset.max_queue_size,
        )
        self.dataset = dataset
        self.shuffle = shuffle
        self.key = key
        self.steps = steps
        self.epoch = self.first = 0
        self.order = None, None

    @property
    def num_batches(self):
        return (self.steps or self.dataset.num_batches) - self.first

    def go_to(self, epoch, first=0):
        """Makes the batches those of an epoch, from its batch `first` on."""
        self.epoch, self.first = epoch, first
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)

    def __getitem__(self, index):
        number, index = self.place(index)
        if isinstance(self.dataset, ArrayBatches):
            return self.dataset.batch(number, index)
        if self.shuffle and self.dataset.num_batches is not None:
            index = int(self.order_of(number)[index])
        return self.dataset[index]

    def place(self, index):
        """The number of the pass over the data, and which of its batches comes."""
        index += self.first
        if self.steps is None:
            return self.epoch, index
        index += self.epoch * self.steps
        batches = self.dataset.num_batches
        return (0, index) if batches is None else divmod(index, batches)

    def order_of(self, number):
        """The order of the batches of a `PyDataset` in a pass."""
        known, order = self.order
        if known != number:
            order = permutation(self.dataset.num_batches, *self.key, number)
            self.order = number, order
        return order

    def on_epoch_begin(self):
        self.dataset.on_epoch_begin()

    def on_epoch_end(self):
        self.dataset.on_epoch_end()


class TellsEpoch(keras.callbacks.Callback):
    """Tells `OrderedData` which epoch begins, before Keras fetches its batches.

    Args:
        data: an `OrderedData`.
        first: the batch with which the first epoch begins.
    """

    def __init__(self, data, first=0):
        super().__init__()
        self.data = data
        self.first = first

    def on_epoch_begin(self, epoch, logs=None):
        self.data.go_to(epoch, self.first)
        self.first = 0


def own_order(given, key):
    """Takes over the order of the data of `fit`, if they are arrays or a `PyDataset`.

    Args:
        given: the arguments of `fit` by name. `x` becomes an `OrderedData`, and what
            that takes care of is removed.
        key: tuple of ints, from which the orders follow.

    Returns:
        The `OrderedData`; None if Keras is to read the data itself.
    """
    shuffle, steps = given.get("shuffle", True), given.get("steps_per_epoch")
    x, y, weight = (given.get(name) for name in ("x", "y", "sample_weight"))
    if not isinstance(x, keras.utils.PyDataset):
        if not are_numbers((x, y, weight)):
            return None
        arrays, held_out = split_arrays((x, y, weight), given)
        if held_out is not None:
            given.update(validation_data=held_out, validation_split=0.0)
        if given.get("class_weight"):
            arrays = weighted_by_class(arrays, given.pop("class_weight"))
        x = ArrayBatches(arrays, None, given.get("batch_size"), steps)
    elif y is not None or weight is not None:
        return None  # Keras says that they are part of the dataset
    if x.num_batches is None and not steps:
        return None
    most = keras.config.max_steps_per_epoch()
    if most and most < (steps or x.num_batches):
        steps = most
    if isinstance(x, ArrayBatches):
        x.shuffle, x.key = shuffle, key
    data = OrderedData(x, shuffle, key, None if steps == x.num_batches else steps)
    rest = ("y", "sample_weight", "steps_per_epoch")
    given.update({"x": data, "shuffle": False, **{name: None for name in rest}})
    return data


def are_numbers(nest):
    """Whether all leaves of a nest are dense arrays or tensors of numbers, or None."""
    leaves = leaves_of(nest)
    return all(map(is_numbers, leaves)) and bool(leaves)


def is_numbers(leaf):
    """Whether a leaf is a dense array or tensor of numbers, with rows."""
    if not isinstance(leaf, np.ndarray):
        return ops.is_tensor(leaf) and hasattr(leaf, "__array__") and len(leaf.shape)
    return leaf.dtype.kind not in "OUSMm" and leaf.ndim > 0 and len(leaf) > 0


def split_arrays(arrays, given):
    """The arrays to train with, as Keras takes them, and the validation data.

    Args:
        arrays: `(x, y, sample_weight)`.
        given: the arguments of `fit` by name.

    Returns:
        NumPy arrays, floats in `floatx`, lists as tuples; and the rows at their end
        that `validation_split` asks for, or None.
    """
    arrays = keras.tree.lists_to_tuples(map_leaves(as_floatx, arrays))
    share = given.get("validation_split")
    if not share or given.get("validation_data") is not None:
        return arrays, None
    return split_off(arrays, share)


def as_floatx(leaf):
    """A NumPy array; floats in the dtype in which `fit` takes them."""
    if not isinstance(leaf, np.ndarray):
        leaf = ops.convert_to_numpy(leaf)
    return leaf.astype(keras.config.floatx(), copy=False) if is_float(leaf) else leaf


def weighted_by_class(arrays, class_weight):
    """Arrays whose sample weights are those of the classes in `y`, as in Keras."""
    x, y, weight = arrays
    if weight is not None or not isinstance(y, np.ndarray):
        raise ValueError(
            "`class_weight` needs a `y` that is a single array, and cannot be given "
            "together with `sample_weight`. "
            f"Received: class_weight={class_weight}"
        )
    if y.ndim > 1:
        y = y[..., 0] if y.shape[-1] == 1 else y.argmax(-1)
    weights = [class_weight.get(int(number), 1.0) for number in np.round(y)]
    return x, arrays[1], np.asarray(weights, keras.config.floatx())


def packed(x, y, sample_weight):
    """A batch as a tuple, without what is None at its end."""
    batch = keras.utils.pack_x_y_sample_weight(x, y, sample_weight)
    return batch if isinstance(batch, tuple) else (batch,)


def common_rows(arrays):
    """The number of rows that all arrays have."""
    leaves = leaves_of(arrays)
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
        arrays: nest of NumPy arrays or None.
        share: of the rows, between 0 and 1.

    Returns:
        The nest of the first rows, and that of the last ones.
    """
    rows = common_rows(arrays)
    first = int(rows * (1.0 - share))
    if not 0 < first < rows:
        raise ValueError(
            "`validation_split` must leave rows for training and for validation. "
            f"Received: validation_split={share}, {rows} rows"
        )
    parts = (slice(first), slice(first, None))
    return tuple(take_rows(arrays, part) for part in parts)
