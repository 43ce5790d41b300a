"""The reward tuning step on JAX."""

import contextlib

import jax
import keras
import numpy as np
from jax.experimental import io_callback

from keras_reward.backend.keras_private import (
    KeepsWeights,
    ReadsBatches,
    StartsAtBatch,
)

XLA_CALLS_HOST = True
LOOPS_RECOMPUTE = True
# By NumPy; by Python, such as `float(x)` and `if x`.
NO_VALUES = (
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.ConcretizationTypeError,
)


class RewardTrainer(KeepsWeights, ReadsBatches, StartsAtBatch):
    """Mixin for `keras.Model`: one step of reward tuning, as a pure function."""

    def has_weights(self):
        """Whether model and optimizer have values, and no failed step took them."""
        optimizer = getattr(self, "optimizer", None)  # which `compile` sets
        variables = self.variables + getattr(optimizer, "variables", [])
        try:
            # What a step failed to compute raises here.
            jax.block_until_ready([variable.value for variable in variables])
        except (RuntimeError, ValueError):
            return False
        return True

    def is_out_of_memory(self, error):
        """Whether an exception says that a step needs more memory than there is."""
        message = str(error)
        return isinstance(error, RuntimeError) and (
            "RESOURCE_EXHAUSTED" in message or "Out of memory" in message
        )

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
        """Random state outside of variables, a list of NumPy arrays: here, none."""
        return []

    def number_of_processes(self):
        """How many processes train one model."""
        return jax.process_count()

    def set_random_state(self, state):
        """Sets what `random_state` returned."""

    def train_step(self, state, data):
        kinds = (
            self.trainable_variables,
            self.non_trainable_variables,
            self.optimizer.variables,
            self.metrics_variables,
        )
        values = [
            pair
            for variables, given in zip(kinds, state, strict=True)
            for pair in zip(variables, given, strict=True)
        ]
        with keras.StatelessScope(values) as scope:
            logs = self.training_step(data, lambda loss: descend(self, loss, scope))
        return logs, tuple(values_in(scope, variables) for variables in kinds)


def descend(model, loss_function, scope):
    """Differentiates a loss and takes a step of the optimizer.

    Args:
        model: a `keras.Model`.
        loss_function: takes `no_gradient` and returns a scalar and a nest of tensors.
        scope: `keras.StatelessScope` with all variables of the model, which are
            updated there.

    Returns:
        The nest.
    """
    optimizer, weights = model.optimizer, model.trainable_variables
    if not weights:
        model.warn_untrainable()
    before = values_in(scope, weights)
    # Variables that a loss changes: seeds, averages, metrics within the model.
    updated = model.non_trainable_variables + model.metrics_variables
    constants = pairs_in(scope, updated + optimizer.variables)

    def loss_and_updates(differentiated):
        pairs = [*zip(weights, differentiated, strict=True), *constants]
        inner = keras.StatelessScope(pairs, collect_losses=True)

        def no_gradient(function, *args):
            # The same variables, but with weights that carry no derivative, so
            # that nothing of a sampling loop is recorded.
            pairs = [*zip(weights, before, strict=True), *pairs_in(inner, updated)]
            with keras.StatelessScope(pairs) as held:
                result = function(*jax.lax.stop_gradient(args))
            for pair in pairs_in(held, updated):
                inner.add_update(pair)
            return jax.lax.stop_gradient(result)

        with inner:
            loss, result = loss_function(no_gradient)
            scaled = optimizer.scale_loss(loss)
        return scaled, (result, values_in(inner, updated))

    gradients, (result, changed) = jax.grad(loss_and_updates, has_aux=True)(before)
    after, optimizer_values = optimizer.stateless_apply(
        values_in(scope, optimizer.variables), gradients, before
    )
    for variables, values in (
        (updated, changed),
        (weights, after),
        (optimizer.variables, optimizer_values),
    ):
        for pair in zip(variables, values, strict=True):
            scope.add_update(pair)
    return result


def values_in(scope, variables):
    """Values of variables within a `keras.StatelessScope`."""
    return [scope.get_current_value(variable) for variable in variables]


def pairs_in(scope, variables):
    """Variables with their values within a `keras.StatelessScope`."""
    return list(zip(variables, values_in(scope, variables), strict=True))


def is_exporting():
    """False: loops are exported as they are."""
    return False


def without_recording(function, *args):
    """Calls a function in a thread that records no gradient: here, none does."""
    return function(*args)


def asks_for_values(error):
    """Whether an exception was raised for the values of a traced array."""
    return isinstance(error, NO_VALUES)


def host_call(function, tensors, shape):
    """Calls a function of NumPy arrays that returns one, from a compiled step.

    Args:
        function: takes an array for each of `tensors`.
        tensors: list of tensors.
        shape: shape of what it returns, in float32.

    Returns:
        A float32 tensor.
    """

    def call(*arrays):
        return function(*map(np.asarray, arrays))

    if not any(isinstance(tensor, jax.core.Tracer) for tensor in tensors):
        return jax.numpy.asarray(call(*tensors))
    return io_callback(call, jax.ShapeDtypeStruct(shape, "float32"), *tensors)
