"""NumPy and OpenVINO, on which Keras cannot train: only rewards and greedy outputs.

`predict` and `evaluate` are Keras's own.
"""

import contextlib

import keras
from keras import ops

XLA_CALLS_HOST = True  # nothing is compiled by XLA
LOOPS_RECOMPUTE = False  # there is no gradient to save memory for


class RewardTrainer:
    """Mixin for `keras.Model`: refuses to train."""

    def keep_weights(self):
        """Does nothing: no step changes the weights."""

    def has_weights(self):
        """True: no step takes the weights."""
        return True

    def is_out_of_memory(self, error):
        """Whether an exception says that a step needs more memory than there is."""
        return isinstance(error, MemoryError)

    def variable_scope(self):
        """Where a model that is called outside of its loops makes its variables."""
        return contextlib.nullcontext()

    def of_one_replica(self, batch):
        """The batch: here, none is divided before a step."""
        return batch

    def fit(self, *args, **kwargs):
        refuse_training()

    def train_on_batch(self, *args, **kwargs):
        refuse_training()


def refuse_training():
    raise NotImplementedError(
        "keras_reward trains on the Keras backends jax, tensorflow and torch. "
        f"Received: keras.config.backend() == {keras.config.backend()!r}"
    )


def is_exporting():
    """False: loops are exported as they are."""
    return False


def without_recording(function, *args):
    """Calls a function in a thread that records no gradient: here, none does."""
    return function(*args)


def asks_for_values(error):
    """Whether an exception was raised for values that a tensor does not have."""
    # Here, all have them.
    del error
    return False


def host_call(function, tensors, shape):
    """Calls a function that takes NumPy arrays and returns one.

    Args:
        function: takes an array for each of `tensors`.
        tensors: list of tensors.
        shape: shape of the float32 array that it returns.

    Returns:
        A float32 tensor.
    """
    del shape
    return ops.convert_to_tensor(function(*map(ops.convert_to_numpy, tensors)))
