"""Nests of tensors and their rows, used by all other modules.

A nest is a tensor, or a dict, list or tuple of nests. Inputs, targets and outputs are
nests. Leaves that are None stay None.
"""

import math
import re

import keras
import numpy as np
from keras import ops

from keras_reward.ragged import dense


def map_leaves(function, nest):
    """Applies `function` to the leaves of a nest, except those that are None."""
    return keras.tree.map_structure(
        lambda leaf: None if leaf is None else function(leaf), nest
    )


def to_numpy(nest):
    """Converts every tensor in a nest to a NumPy array."""
    return map_leaves(ops.convert_to_numpy, dense(nest))


def to_arrays(nest):
    """Converts raw data to NumPy arrays.

    Tuples and dicts are nests; a list is one array, as KerasHub takes it: of strings,
    or of images of one size.
    """
    if isinstance(nest, dict):
        return {name: to_arrays(held) for name, held in nest.items()}
    if isinstance(nest, tuple):
        return tuple(to_arrays(held) for held in nest)
    if nest is None or isinstance(nest, np.ndarray):
        return nest
    nest = dense(nest)
    if ops.is_tensor(nest):
        return ops.convert_to_numpy(nest)
    return np.asarray(nest)


def to_tensor(nest):
    """Converts every array in a nest to a tensor; refuses integers that it cuts off."""
    refuse_cut_integers(nest)
    return map_leaves(as_tensor, nest)


def as_tensor(leaf):
    """An array as a tensor, with an error of ours for a dtype that tensors lack."""
    try:
        return ops.convert_to_tensor(leaf)
    except (TypeError, ValueError) as error:
        raise ValueError(
            "Arrays must be of a dtype that tensors of this backend have: cast them "
            f"before. Received: dtype {getattr(leaf, 'dtype', type(leaf).__name__)}"
        ) from error


def refuse_cut_integers(nest):
    """Raises a ValueError for NumPy integers that the backend's tensors cannot hold."""
    for leaf in keras.tree.flatten(nest):
        if not isinstance(leaf, np.ndarray) or leaf.dtype.kind not in "iu":
            continue
        if leaf.dtype.itemsize < 8 or not leaf.size:
            continue
        held = keras.backend.standardize_dtype(as_tensor(leaf[:0]).dtype)
        limits = np.iinfo(held)
        if leaf.max() > limits.max or leaf.min() < limits.min:
            raise ValueError(
                f"Tensors of this backend hold integers of at most {limits.bits} bits: "
                "number ids anew before they become tensors, for example by their "
                "place in `numpy.unique(ids)`. "
                f"Received: {leaf.min()} to {leaf.max()}, dtype {leaf.dtype}"
            )


def leaves_of(nest):
    """List of the leaves of a nest, except those that are None."""
    return [leaf for leaf in keras.tree.flatten(nest) if leaf is not None]


# Rows: the entries of the first axis.


def rows_of(nest):
    """Number of rows of a nest of arrays; None if it is unknown while tracing."""
    return leaves_of(nest)[0].shape[0]


def take_rows(nest, rows):
    """A slice of the rows of every array in a nest."""
    return map_leaves(lambda leaf: leaf[rows], nest)


def pad_rows(nest, rows):
    """Repeats the last row of every NumPy array in a nest, up to `rows` rows."""
    missing = rows - rows_of(nest)
    if missing <= 0:
        return nest
    return map_leaves(
        lambda leaf: np.concatenate([leaf, np.repeat(leaf[-1:], missing, axis=0)]),
        nest,
    )


def merge_rows(nest):
    """`(batch, n, ...)` to `(batch * n, ...)`, for every tensor in a nest."""

    def merge(leaf):
        # Not -1 for the rows: another axis may be empty.
        batch, n, *rest = ops.shape(leaf)
        return ops.reshape(leaf, (batch * n, *rest))

    return map_leaves(merge, nest)


def split_rows(nest, n):
    """`(batch * n, ...)` to `(batch, n, ...)`, for every tensor in a nest."""

    def split(leaf):
        rows, *rest = ops.shape(leaf)
        return ops.reshape(leaf, (rows // n, n, *rest))

    return map_leaves(split, nest)


def repeat_rows(nest, n):
    """`(batch, ...)` to `(batch * n, ...)`, with the `n` copies of a row adjacent."""

    def repeat(leaf):
        leaf = ops.convert_to_tensor(leaf)
        batch, *rest = ops.shape(leaf)
        shape = (batch, n, *rest)
        return merge_rows(ops.broadcast_to(ops.expand_dims(leaf, 1), shape))

    return map_leaves(repeat, nest)


def first_samples(outputs, total, count):
    """The outputs of the first samples of each input.

    Args:
        outputs: nest of `(batch * total, ...)`.
        total: number of samples of each input.
        count: how many to take.

    Returns:
        Nest of `(batch * count, ...)`.
    """
    if count == total:
        return outputs
    first = (slice(None), slice(count))
    return merge_rows(take_rows(split_rows(outputs, total), first))


def with_last_sizes(tensor, sizes):
    """A tensor whose last axes have these sizes, also while they are unknown.

    Where TensorFlow does not know a size while tracing, the step fails if another
    number of values comes. Known sizes must have been checked.
    """
    if None not in tuple(tensor.shape[-len(sizes) :]):
        return tensor
    return ops.reshape(tensor, (*ops.shape(tensor)[: -len(sizes)], *sizes))


def may_be_equal(shape, other):
    """Whether two shapes can be equal; None stands for an unknown length."""
    return len(shape) == len(other) and all(
        None in pair or pair[0] == pair[1] for pair in zip(shape, other, strict=True)
    )


# Samples: `(batch, n, ...)`, or a nest of such parts with the same batch and n.


def samples_per_input(samples):
    """The number n of samples of each input."""
    return leaves_of(samples)[0].shape[1]


def position_shape(samples):
    """Shape of what has one number for each position of samples.

    Returns:
        The shape of the samples, `(batch, n, ...)`. If they are a nest, the positions
        of its parts are side by side: `(batch, n, positions)`. None stands for an
        unknown length.
    """
    shapes = [tuple(leaf.shape) for leaf in leaves_of(samples)]
    if not keras.tree.is_nested(samples):
        return shapes[0]
    sizes = [None if None in shape[2:] else math.prod(shape[2:]) for shape in shapes]
    known = [size for size in sizes if size is not None]
    return (*shapes[0][:2], sum(known) if len(known) == len(sizes) else None)


def as_samples(outputs):
    """`(batch, ...)` to `(batch, 1, ...)`, for every tensor in a nest."""
    return map_leaves(lambda leaf: leaf[:, None], outputs)


def with_sample(samples, outputs):
    """Samples and, after the last one of each input, another output.

    Args:
        samples: nest of `(batch, n, ...)`.
        outputs: the same nest of `(batch, ...)`.

    Returns:
        The same nest of `(batch, n + 1, ...)`, in the dtype of the samples.
    """

    def append(leaf, output):
        if leaf is None:
            return None
        return ops.concatenate([leaf, ops.cast(output, leaf.dtype)[:, None]], axis=1)

    return keras.tree.map_structure(append, samples, outputs)


def first_of(samples, count):
    """The first `count` samples of each input: nest of `(batch, count, ...)`."""
    return take_rows(samples, (slice(None), slice(count)))


# Values, outside of compiled functions; names and configs.


def check_floatx():
    """Raises if Keras makes other numbers of ints, with `floatx` in half precision.

    On NumPy it makes int16, and with "bfloat16", on JAX too, floats. Class numbers and
    token ids would be rounded.
    """
    dtype = keras.backend.standardize_dtype(ops.convert_to_tensor(0).dtype)
    if dtype not in ("int32", "int64"):
        raise ValueError(
            "Integers must stay as they are. `keras.config.floatx()` may be "
            '"float32" or "float64", on JAX, TensorFlow and PyTorch also "float16", on '
            'TensorFlow and PyTorch also "bfloat16". For a model in half precision '
            'leave it at "float32" and pass `dtype` to the model, or call '
            '`keras.config.set_dtype_policy("bfloat16")`. '
            f"Received: floatx={keras.config.floatx()!r} on {keras.config.backend()}, "
            f"where Keras makes {dtype} of an int"
        )


def check_size(name, size, largest, smallest=1):
    """Raises unless a size, perhaps of a file's config, is one that memory can hold.

    Args:
        name: of the argument.
        size: its value.
        largest, smallest: ints.
    """
    is_whole = isinstance(size, int | np.integer) and not isinstance(size, bool)
    if not is_whole or not smallest <= size <= largest:
        raise ValueError(
            f"`{name}` must be a whole number from {smallest} to {largest}. "
            f"Received: {name}={size!r}"
        )


def dtype_of(value):
    """The name of the dtype of a tensor or array; "object" if Keras knows none."""
    try:
        return keras.backend.standardize_dtype(getattr(value, "dtype", "object"))
    except ValueError:
        return "object"


def is_integer(value):
    """Whether a value is a tensor or array of an integer dtype, which bool is not."""
    return dtype_of(value).startswith(("int", "uint"))


def is_float(value):
    """Whether a value is a tensor or array of a float dtype."""
    return dtype_of(value).startswith(("float", "bfloat"))


def has_strings(nest):
    """Whether a leaf of a nest is a string, or an array or tensor of strings."""
    return any(map(is_string, keras.tree.flatten(nest)))


def is_string(leaf):
    """Whether a leaf is a string, or an array or tensor of strings."""
    if isinstance(leaf, np.ndarray) and leaf.dtype.kind == "O":
        return leaf.size > 0 and isinstance(leaf.flat[0], str | bytes)
    if isinstance(leaf, np.ndarray):
        return leaf.dtype.kind in "US"
    return isinstance(leaf, str | bytes) or "string" in str(getattr(leaf, "dtype", ""))


def string_arrays(nest):
    """Lists of strings in a nest become arrays, which have rows."""
    if isinstance(nest, list) and nest and isinstance(nest[0], str | bytes):
        return np.asarray(nest)
    if isinstance(nest, dict):
        return {name: string_arrays(held) for name, held in nest.items()}
    if type(nest) in (list, tuple):
        return type(nest)(map(string_arrays, nest))
    return nest


def string_lists(nest):
    """Arrays of strings in a nest of arrays become lists of strings."""
    return map_leaves(
        lambda leaf: list(map(as_text, leaf.tolist())) if is_string(leaf) else leaf,
        nest,
    )


def as_text(string):
    """A string from a string or its bytes."""
    return string.decode() if isinstance(string, bytes) else string


def goes_with(kind, method, others):
    """Whether a class has a method that was written for the others that it has.

    A subclass that overwrites one of the others keeps a method that may not fit.

    Args:
        kind: a class.
        method: name of the method.
        others: names of the others.
    """
    place = {name: number_of_owner(kind, name) for name in (method, *others)}
    return all(place[method] <= place[name] for name in others)


def number_of_owner(kind, name):
    """How many classes lie between a class and the base class with its attribute."""
    owners = [name in vars(base) for base in kind.__mro__]
    return owners.index(True) if any(owners) else len(owners)


def are_arrays(nest):
    """Whether all leaves of a nest are NumPy arrays or tensors."""
    leaves = keras.tree.flatten(nest)
    return all(hasattr(leaf, "shape") and hasattr(leaf, "dtype") for leaf in leaves)


def host_array(tensor):
    """The values of a tensor as a NumPy array; None inside a compiled function."""
    try:
        return ops.convert_to_numpy(tensor)
    except (AttributeError, NotImplementedError, TypeError, ValueError):
        return None


def snake_case(class_name):
    """`HueEntropyReward` to `hue_entropy_reward`."""
    stem = re.sub(r"([A-Z]+)([A-Z][a-z])", r"\1_\2", class_name)
    return re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", stem).lower().strip("_")
