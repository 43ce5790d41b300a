"""The checks that the results of every reward must pass."""

import keras
from keras import ops

from keras_reward.nests import map_leaves, may_be_equal, rows_of


def as_rows(name, rewards, rows):
    """Checks that a reward is one float per row, and returns it in float32.

    Args:
        name: the reward's name, for the message.
        rewards: what the reward returned.
        rows: the expected length, or None if it is unknown while tracing.

    Returns:
        `(rows,)` float32.
    """
    rewards = ops.convert_to_tensor(rewards)
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
    worth = ops.convert_to_tensor(worth)
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
    added = ops.convert_to_tensor(added)
    shape = tuple(added.shape)
    if len(shape) != 2 or not may_be_equal(shape[:1], (rows,)):
        raise ValueError(
            f"`gains` of reward {name!r} must return what each part of each row adds "
            f"to its reward: (rows, parts). Received: shape {shape}, for "
            f"{'unknown' if rows is None else rows} rows"
        )
    return as_floats(f"`gains` of reward {name!r}", added)


def as_floats(what, values):
    """Checks that a tensor is of floats, and returns it in float32."""
    dtype = keras.backend.standardize_dtype(values.dtype)
    if not keras.backend.is_float_dtype(dtype):
        raise ValueError(
            f"{what} must return floats; cast it with "
            '`keras.ops.cast(reward, "float32")`. '
            f"Expected: a float dtype. Received: {dtype}"
        )
    return ops.cast(values, "float32")


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
