"""The checks that what every reward gets, and what it returns, must pass."""

import keras
from keras import ops

from keras_reward.advantages import within_range
from keras_reward.nests import (
    dtype_of,
    is_string,
    leaves_of,
    map_leaves,
    may_be_equal,
    rows_of,
)

NUMBERS = ("bool", "int", "uint", "float", "bfloat")  # how names of dtypes start


def check_numbers(name, **arguments):
    """Raises unless a reward gets arrays or tensors of numbers, or nests of them.

    Args:
        name: the reward's name, for the message.
        **arguments: nests by the names of the arguments.
    """
    for argument, nest in arguments.items():
        check_keys(name, argument, nest)
        for leaf in leaves_of(nest):
            if is_string(leaf) or not dtype_of(leaf).startswith(NUMBERS):
                raise ValueError(
                    f"Reward {name!r} needs arrays of numbers, or nests of them, as "
                    f"`{argument}`. Encode text as ids before. "
                    f"Received: {described(leaf)}"
                )


def check_keys(name, argument, nest):
    """Raises for a dict whose keys have no order, in which Keras sorts leaves."""
    if isinstance(nest, dict) and len(set(map(type, nest))) > 1:
        raise ValueError(
            f"Reward {name!r} needs dicts whose keys are all strings. Received: "
            f"`{argument}` with keys {', '.join(map(ascii, nest))}"
        )
    inner = nest.values() if isinstance(nest, dict) else nest
    for each in inner if isinstance(nest, dict | list | tuple) else ():
        check_keys(name, argument, each)


def check_rows(name, y_true, y_pred, inputs=None):
    """Raises unless all that a reward gets has the same number of rows.

    Args:
        name: the reward's name, for the message.
        y_true, y_pred, inputs: as for `Reward.evaluate`.
    """
    given = {"y_true": y_true, "y_pred": y_pred, "inputs": inputs}
    leaves = [(each, leaf) for each, nest in given.items() for leaf in leaves_of(nest)]
    outputs = leaves_of(y_pred)
    are_rows = all(map(has_rows, (leaf for _, leaf in leaves)))
    if not outputs or not are_rows or outputs[0].shape[0] == 0:
        received = [described(leaf) for leaf in outputs] or [repr(y_pred)]
        raise ValueError(
            f"Reward {name!r} needs outputs in one or more rows, and targets of as "
            "many, or None: arrays or tensors (rows, ...), or nests of them. "
            f"Received: y_pred of {', '.join(received)}"
        )
    rows = outputs[0].shape[0]
    for argument, leaf in leaves:
        if not may_be_equal(tuple(leaf.shape[:1]), (rows,)):
            raise ValueError(
                f"Reward {name!r} needs targets and inputs of as many rows as outputs: "
                "a row is one sample of one input, and nothing is broadcast. "
                f"Expected: {rows} rows. Received: {leaf.shape[0]} rows in "
                f"`{argument}`, an array or tensor of shape {tuple(leaf.shape)}"
            )


def has_rows(leaf):
    """Whether a leaf has a first axis; a shape that is unknown may have one."""
    try:
        return len(leaf.shape) > 0
    except AttributeError:  # no tensor
        return False
    except ValueError:  # of unknown rank, in a TensorFlow graph
        return True


def described(leaf):
    """A leaf in a message: its shape and dtype, or what else it is."""
    if not hasattr(leaf, "shape"):
        return f"{type(leaf).__name__} {repr(leaf)[:40]}"
    return f"shape {tuple(leaf.shape)}, dtype {leaf.dtype}"


def refuse_empty(name, argument, shape):
    """Raises for outputs of no pixels, over which a mean is not a number."""
    if 0 in shape[1:]:
        raise ValueError(
            f"Reward {name!r} needs at least one value in each row, since a mean over "
            f"none is not a number. Received: `{argument}` of shape {tuple(shape)}"
        )


def as_rows(name, rewards, rows):
    """Checks that a reward is one float per row, and returns it in float32.

    Args:
        name: the reward's name, for the message.
        rewards: what the reward returned.
        rows: the expected length, or None if it is unknown while tracing.

    Returns:
        `(rows,)` float32, NaN for a reward beyond `advantages.LARGEST_REWARD`.
    """
    rewards = as_tensor(f"Reward {name!r}", rewards)
    shape = tuple(rewards.shape)
    if len(shape) != 1 or (None not in (rows, shape[0]) and shape[0] != rows):
        hint = ""
        if shape == ():
            hint = (
                " One number for the whole batch cannot tell good samples from bad "
                "ones: give each row a number of its own (a Keras loss does with "
                "`reduction=None`)."
            )
        raise ValueError(
            f"Reward {name!r} must return one number per row: a row is one sample of "
            f"one input, and nothing is broadcast.{hint} "
            f"Expected: shape ({'rows' if rows is None else rows},). "
            f"Received: shape {shape}"
        )
    return as_floats(f"Reward {name!r}", rewards)


def as_alternatives(name, worth, expected):
    """Checks the `alternatives` of a reward, and returns them in float32.

    Args:
        name: the reward's name, for the message.
        worth: what `alternatives` returned.
        expected: shape `(rows, *positions, choices)`.
    """
    worth = as_tensor(f"`alternatives` of reward {name!r}", worth)
    shape = tuple(worth.shape)
    if not may_be_equal(shape, expected):
        raise ValueError(
            f"`alternatives` of reward {name!r} must return the reward of each row for "
            "each choice at each position: (rows, *positions, choices). If positions "
            'are others than those of samples, pass `credit="output"`. '
            f"Expected: shape {expected}. Received: shape {shape}"
        )
    return as_floats(f"`alternatives` of reward {name!r}", worth)


def as_gains(name, added, rows):
    """Checks the `gains` of a reward, and returns them in float32.

    Args:
        name: the reward's name, for the message.
        added: what `gains` returned.
        rows: the expected number of rows, or None if it is unknown while tracing.
    """
    added = as_tensor(f"`gains` of reward {name!r}", added)
    shape = tuple(added.shape)
    if len(shape) != 2 or not may_be_equal(shape[:1], (rows,)):
        raise ValueError(
            f"`gains` of reward {name!r} must return what each part of each row adds "
            f"to its reward: (rows, parts). Received: shape {shape}, for "
            f"{'unknown' if rows is None else rows} rows"
        )
    return as_floats(f"`gains` of reward {name!r}", added)


def as_tensor(what, values):
    """The result of a function as a tensor, with an error of ours if it is none."""
    try:
        if values is None or is_string(values):
            raise TypeError("no numbers")
        return ops.convert_to_tensor(values)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{what} must return a tensor of floats. Received: {described(values)}"
        ) from error


def as_floats(what, values):
    """Checks that a tensor is of floats, and returns it in float32.

    What is beyond `advantages.LARGEST_REWARD` becomes NaN, as no reward.
    """
    dtype = keras.backend.standardize_dtype(values.dtype)
    if not keras.backend.is_float_dtype(dtype):
        raise ValueError(
            f"{what} must return floats; cast it with "
            '`keras.ops.cast(reward, "float32")`. '
            f"Expected: a float dtype. Received: {dtype}"
        )
    return within_range(values)


def check_shapes(reward, y_true, y_pred, inputs, multiple=1):
    """Checks a reward's result if the number of rows is unknown while tracing.

    TensorFlow traces a step for batches of any size, so a result of the wrong length
    would fail only when the step runs, or not at all. Here the reward is traced once
    more, for a known number of rows.

    Args:
        reward: a `Reward`.
        y_true, y_pred, inputs: as for `Reward.evaluate`.
        multiple: the number of rows is a multiple of this.
    """
    if rows_of(y_pred) is not None:
        return
    specs = map_leaves(
        lambda tensor: keras.KerasTensor(
            (PROBE_INPUTS * multiple, *tensor.shape[1:]),
            keras.backend.standardize_dtype(tensor.dtype),
        ),
        (y_true, y_pred, inputs),
    )
    operation = RewardOperation(reward)
    try:
        operation.compute_output_spec(*specs)
    except Exception as error:
        raise operation.error or error from None


class RewardOperation(keras.Operation):
    """A reward as an operation, so that Keras can infer its output shape."""

    def __init__(self, reward):
        super().__init__()
        self.reward = reward
        self.error = None

    def call(self, y_true, y_pred, inputs):
        try:
            return self.reward.evaluate(y_true, y_pred, inputs)[0]
        except Exception as error:
            self.error = error  # Keras raises another one, about shapes
            raise


PROBE_INPUTS = 13  # an arbitrary number that a reward is unlikely to return
