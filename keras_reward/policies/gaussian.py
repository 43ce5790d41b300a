"""The policy of regression models: a normal distribution around their output."""

import math

import keras
from keras import ops

from keras_reward.policies.factorized import FactorizedPolicy


@keras.saving.register_keras_serializable(package="keras_reward")
class GaussianPolicy(FactorizedPolicy):
    """An independent normal distribution around each number that the model returns.

    For regression models: the output `(batch, ...)` is the mean and the greedy output.
    A sample has the same shape. A temperature `T` multiplies the variance: dividing the
    logits of a normal distribution by `T` does the same.

    Args:
        stddev: standard deviation of every position, in units of the output. With
            `learn_stddev`, its initial value.
        learn_stddev: if True, the logarithm of the standard deviation is a trainable
            scalar that is tuned with the model. It belongs to `tuned.policy`, not to
            `tuned.model`. Default False.
        codec: how sampled numbers become what a reward sees, see `Policy`.
        name: optional name.

    Raises:
        ValueError: if `stddev` is not a positive number.

    Example:

    ```python
    import keras
    import numpy as np
    from keras_reward import GaussianPolicy

    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(2)])
    policy = GaussianPolicy(stddev=0.1).bind(model)
    context = policy.encode(np.zeros((4, 8), "float32"))
    policy.sample(context, num_samples=3, seed=0)  # (4, 3, 2)
    ```
    """

    independent_parts = True
    expected_output = "(batch, ...), one mean per position"

    def __init__(self, stddev=0.1, learn_stddev=False, codec=None, name=None, **kwargs):
        super().__init__(codec=codec, name=name, **kwargs)
        if not stddev > 0:
            raise ValueError(
                f"`stddev` must be a positive number. Received: stddev={stddev}"
            )
        self.stddev = stddev
        self.learn_stddev = learn_stddev
        self.log_stddev = None
        if learn_stddev:
            self.log_stddev = self.add_weight(
                shape=(),
                initializer=keras.initializers.Constant(math.log(stddev)),
                name="log_stddev",
            )

    def current_log_stddev(self):
        """Logarithm of the standard deviation used in sampling: a scalar."""
        log_stddev = (
            ops.convert_to_tensor(self.log_stddev)
            if self.learn_stddev
            else ops.convert_to_tensor(math.log(self.stddev), "float32")
        )
        return log_stddev + 0.5 * math.log(self.temperature)

    def parameters(self, output):
        return output

    def noise(self, context, num_samples, seed):
        """Standard normal numbers, one per position of each sample."""
        shape = ops.shape(context)
        shape = (shape[0], num_samples, *self.sample_shape(shape))
        return keras.random.normal(shape, seed=seed, dtype="float32")

    def transform(self, context, noise):
        return context[:, None] + ops.exp(self.current_log_stddev()) * noise

    def position_log_probs(self, context, samples):
        log_stddev = self.current_log_stddev()
        # Samples are constants: the density is differentiated at fixed values.
        samples = ops.stop_gradient(ops.convert_to_tensor(samples))
        standard = (samples - context[:, None]) * ops.exp(-log_stddev)
        return -0.5 * ops.square(standard) - log_stddev - 0.5 * math.log(2.0 * math.pi)

    def position_entropy(self, context):
        entropy = self.current_log_stddev() + 0.5 * math.log(2.0 * math.pi * math.e)
        return ops.zeros_like(context) + entropy

    def mode(self, context):
        return context

    def get_config(self):
        return {
            **super().get_config(),
            "stddev": self.stddev,
            "learn_stddev": self.learn_stddev,
        }
