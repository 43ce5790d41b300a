"""NumPy and OpenVINO, on which Keras trains nothing: rewards and greedy outputs alone.

`predict` and `evaluate` are Keras's own there.
"""

import keras
from keras import ops

XLA_CALLS_HOST = True  # nothing is compiled by XLA
LOOPS_RECOMPUTE = False  # there is no gradient to save memory for


class RewardTrainer:
    """Mixin for `keras.Model`: refuses to train."""

    def keep_weights(self):
        """Nothing to do: no step changes them."""

    def fit(self, *args, **kwargs):
        refuse_training()

    def train_on_batch(self, *args, **kwargs):
        refuse_training()


def refuse_training():
    raise NotImplementedError(
        "keras_reward trains on the Keras backends jax, tensorflow and torch. "
        f"Received: keras.config.backend() == {keras.config.backend()!r}"
    )


def host_call(function, tensors, shape):
    """Calls a function of NumPy arrays that returns one.

    Args:
        function: takes an array for each of `tensors`.
        tensors: list of tensors.
        shape: shape of what it returns, in float32.

    Returns:
        A float32 tensor.
    """
    del shape
    return ops.convert_to_tensor(function(*map(ops.convert_to_numpy, tensors)))
