"""The first batch of any data that `fit` takes, without losing it."""

import inspect
import types

import keras

from keras_reward.batches import first_rows


def show_first_batch(method, tuner, args, kwargs):
    """Shows a tuner's policy the first inputs of a run, if it needs them.

    Args:
        method: the method of `keras.Model` that runs: `fit`, `evaluate`, `predict`,
            or `*_on_batch`.
        tuner: a `RewardTuning`.
        args, kwargs: its arguments.

    Returns:
        The arguments to call it with: as given, except that a generator is replaced,
        since one batch of it has been taken.
    """
    policy = tuner.policy
    if not policy.needs_first_batch:
        return args, kwargs
    bound = inspect.signature(method).bind(tuner, *args, **kwargs)
    batch, bound.arguments["x"] = first_batch(bound.arguments.get("x"))
    if batch is not None:
        x, _, _ = keras.utils.unpack_x_y_sample_weight(tuner.of_one_replica(batch))
        with tuner.variable_scope():
            policy.check_first_batch(first_rows(x, tuner.model))
    return bound.args[1:], bound.kwargs


def first_batch(x):
    """The first batch of the `x` of `fit`, and the `x` to go on with.

    Args:
        x: arrays or tensors, or a nest of them; a generator, a
            `keras.utils.PyDataset`, a `tf.data.Dataset`, a PyTorch `DataLoader` or
            another iterable of batches.

    Returns:
        A batch in the form in which it was found: for arrays all of them, else what
        the data has first, such as `(x, y)`. None if there is none. And `x`, or what
        gives the same batches: a generator can be run once only.
    """
    if x is None:
        return None, x
    leaves = keras.tree.flatten(x)
    if all(leaf is None or hasattr(leaf, "shape") for leaf in leaves):
        return (x,), x
    if isinstance(x, types.GeneratorType):
        batch = next(x, None)
        return batch, x if batch is None else resumed(batch, x)
    if isinstance(x, keras.utils.PyDataset):
        return x[0], x
    return next(iter(x), None), x


def resumed(batch, generator):
    """A generator that starts with a batch which has been taken already."""
    yield batch
    yield from generator
