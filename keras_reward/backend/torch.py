"""The reward tuning step on PyTorch."""

import contextlib

import keras
import numpy as np
import torch

from keras_reward.backend.keras_private import StartsAtBatch

XLA_CALLS_HOST = True  # `torch.compile` leaves `host_call` alone
LOOPS_RECOMPUTE = True
NO_VALUES = (TypeError, RuntimeError)  # on another device, or with gradient


class RewardTrainer(StartsAtBatch):
    """Mixin for `keras.Model`: one step of reward tuning."""

    def keep_weights(self):
        """Does nothing: a step writes to the model's own variables."""

    def make_train_function(self, force=False):
        refuse_processes()
        return super().make_train_function(force)

    def has_weights(self):
        """True: a step writes to the model's own variables."""
        return True

    def is_out_of_memory(self, error):
        """Whether an exception says that a step needs more memory than there is."""
        return isinstance(error, torch.OutOfMemoryError)

    def variable_scope(self):
        """Where a model that is called outside of its loops makes its variables."""
        return contextlib.nullcontext()

    def of_one_replica(self, batch):
        """The batch: here, none is divided before a step."""
        return batch

    def data_for_fit(self, data):
        """What `fit` gets instead of an `OrderedData`: here, the same."""
        return data

    def random_state(self):
        """Random state outside of variables, a list of NumPy arrays: PyTorch's own.

        Keras draws from it for layers that were not given a seed.
        """
        states = [torch.get_rng_state()]
        if torch.cuda.is_available():
            states += torch.cuda.get_rng_state_all()
        return [state.numpy() for state in states]

    def number_of_processes(self):
        """How many processes train one model: here, several are not supported."""
        return 1

    def set_random_state(self, state):
        """Sets what `random_state` returned."""
        own, *devices = [torch.from_numpy(np.array(part)) for part in state]
        torch.set_rng_state(own)
        if devices and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(devices)

    def train_step(self, data):
        return self.training_step(data, lambda loss: descend(self, loss))


def descend(model, loss_function):
    """Differentiates a loss and takes a step of the optimizer.

    Args:
        model: a `keras.Model`.
        loss_function: takes `no_gradient` and returns a scalar and a nest of tensors.

    Returns:
        The nest, without gradient.
    """
    model.zero_grad()
    loss, result = loss_function(no_gradient)
    weights = model.trainable_weights
    if weights:
        model.optimizer.scale_loss(loss).backward()
        gradients = [weight.value.grad for weight in weights]
        with torch.no_grad():
            model.optimizer.apply(gradients, weights)
    else:
        model.warn_untrainable()
    return keras.tree.map_structure(detached, result)


def detached(value):
    """Of a nest, the tensors without gradient, and the rest as it is."""
    return value.detach() if torch.is_tensor(value) else value


def refuse_processes():
    """Raises if other processes train too: each would train its own model."""
    group = torch.distributed
    if group.is_available() and group.is_initialized() and group.get_world_size() > 1:
        raise NotImplementedError(
            "keras_reward does not average gradients between processes on PyTorch yet. "
            "Train in one process, or on several devices with JAX or TensorFlow. "
            f"Received: world size {group.get_world_size()}"
        )


def no_gradient(function, *args):
    """Calls a function without recording it; `stop_gradient` alone would record it."""
    with torch.no_grad():
        return function(*args)


def is_exporting():
    """Whether `torch.export` is tracing, which cannot export loops that values end."""
    return torch.compiler.is_exporting()


def without_recording(function, *args):
    """Calls a function in a thread of its own, which would record its gradient."""
    return no_gradient(function, *args)


def asks_for_values(error):
    """Whether an exception was raised for values that NumPy cannot read."""
    return isinstance(error, NO_VALUES) and "numpy" in str(error).lower()


@torch.compiler.disable
def host_call(function, tensors, shape):
    """Calls a function that takes NumPy arrays and returns one.

    Args:
        function: takes an array for each of `tensors`.
        tensors: list of tensors.
        shape: shape of the float32 array that it returns.

    Returns:
        A float32 tensor on the device of `tensors`.
    """
    device = tensors[0].device
    if device.type == "meta":  # Keras infers shapes
        return torch.empty(shape, dtype=torch.float32, device=device)
    arrays = [tensor.detach().cpu().numpy() for tensor in tensors]
    return torch.from_numpy(function(*arrays)).to(device)
