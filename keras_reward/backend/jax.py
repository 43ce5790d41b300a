"""The reward tuning step on JAX."""

import jax
import keras
import numpy as np
from jax.experimental import io_callback

from keras_reward.backend.keras_private import KeepsWeights

XLA_CALLS_HOST = True
LOOPS_RECOMPUTE = True


class RewardTrainer(KeepsWeights):
    """Mixin for `keras.Model`: one step of reward tuning, as a pure function."""

    def train_step(self, state, data):
        trainable, non_trainable, optimizer_variables, metrics_variables = state
        # Variables that a step changes besides the weights: seeds, averages, metrics.
        updated = self.non_trainable_variables + self.metrics_variables
        constants = [
            *zip(updated, non_trainable + metrics_variables, strict=True),
            *zip(self.optimizer.variables, optimizer_variables, strict=True),
        ]

        def loss_and_updates(differentiated):
            weights = zip(self.trainable_variables, differentiated, strict=True)
            scope = keras.StatelessScope([*weights, *constants], collect_losses=True)

            def no_gradient(function, *args):
                # The same variables, but with weights outside of the gradient, so that
                # no sampling loop is recorded.
                weights = zip(self.trainable_variables, trainable, strict=True)
                current = [(v, scope.get_current_value(v)) for v in updated]
                with keras.StatelessScope([*weights, *current]) as inner:
                    result = function(*jax.lax.stop_gradient(args))
                for variable in updated:
                    scope.add_update((variable, inner.get_current_value(variable)))
                return jax.lax.stop_gradient(result)

            with scope:
                loss = self.training_loss(data, no_gradient)
                scaled = self.optimizer.scale_loss(loss)
                logs = self.training_logs()
            return scaled, (logs, [scope.get_current_value(v) for v in updated])

        gradients, (logs, values) = jax.grad(loss_and_updates, has_aux=True)(trainable)
        trainable, optimizer_variables = self.optimizer.stateless_apply(
            optimizer_variables, gradients, trainable
        )
        seam = len(non_trainable)
        return logs, (trainable, values[:seam], optimizer_variables, values[seam:])


def host_call(function, tensors, shape):
    """Calls a function of NumPy arrays that returns one, from a compiled step.

    Args:
        function: takes an array for each of `tensors`.
        tensors: list of tensors.
        shape: shape of the float32 array that it returns.

    Returns:
        A float32 tensor.
    """

    def call(*arrays):
        return function(*map(np.asarray, arrays))

    if not any(isinstance(tensor, jax.core.Tracer) for tensor in tensors):
        return jax.numpy.asarray(call(*tensors))
    return io_callback(call, jax.ShapeDtypeStruct(shape, "float32"), *tensors)
