"""The policy of a model that implements the policy protocol itself."""

import keras

from keras_reward.policies.policy import Policy

PROTOCOL = ("encode", "sample", "likelihood", "mode", "decode")


def has_protocol(model):
    """Whether `model` has the methods of a policy."""
    return all(callable(getattr(model, method, None)) for method in PROTOCOL)


@keras.saving.register_keras_serializable(package="keras_reward")
class ModelPolicy(Policy):
    """The policy of a `keras.Model` that has the methods of a policy itself.

    Calls the model's methods, with the arguments and results that `Policy` documents;
    also `target_log_prob`, `check_inputs` and `check_targets`, if the model has them.
    With `policy="auto"` such a model gets this policy.

    Args:
        name: optional name.

    Raises:
        ValueError: in `bind`, for a model without these methods, or a temperature other
            than 1, which the model would have to apply itself.

    Example:

    ```python
    import keras
    from keras import ops
    from keras_reward import Likelihood, RewardTuning

    class Coin(keras.Model):  # heads or tails, given one feature
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(1)
            self.dense.build((None, 1))
            self.built = True

        def encode(self, x, training=False):
            return self.dense(x)

        def sample(self, context, num_samples, seed=None):
            shape = (ops.shape(context)[0], num_samples)
            uniform = keras.random.uniform(shape, seed=seed)
            return ops.cast(uniform < ops.sigmoid(context), "int32")

        def likelihood(self, context, samples, choices=(), entropy_gradient=False):
            signs = 2.0 * ops.cast(samples, "float32") - 1.0
            log_prob = -ops.softplus(-signs * context)
            p = ops.sigmoid(context)[:, 0]
            entropy = ops.softplus(context)[:, 0] - p * context[:, 0]
            counted = ops.ones_like(samples, dtype="bool")
            return Likelihood(log_prob, entropy, log_prob, counted, log_prob[None][:0])

        def mode(self, context):
            return ops.cast(context[:, 0] > 0, "int32")

        def decode(self, x, samples):
            return ops.reshape(samples, (-1,))

    tuned = RewardTuning(Coin(), reward=lambda y_true, y_pred: y_pred * 1.0)
    ```
    """

    takes_choices = False

    def bind(self, model, temperature=1.0):
        if not has_protocol(model):
            raise ValueError(
                f"ModelPolicy wraps a model with the methods {', '.join(PROTOCOL)}. "
                f"Received: model {model.name!r}"
            )
        if temperature != 1.0:
            raise ValueError(
                f"Model {model.name!r} is its own policy, so its temperature is its "
                f"own too: set it there. Received: temperature={temperature}"
            )
        return super().bind(model, temperature)

    def encode(self, x, training=False):
        return self.model.encode(x, training=training)

    def sample(self, context, num_samples, seed=None, noise=None):
        # A model need not take noise.
        given = {"seed": seed} if noise is None else {"noise": noise}
        return self.model.sample(context, num_samples, **given)

    def likelihood(self, context, samples, choices=(), entropy_gradient=False):
        if choices:
            raise ValueError(
                "A model that is its own policy does not say how likely other choices "
                "are, which a term asks for. Leave out that term, or write a Policy. "
                f"Received: {len(choices)} choices, model {self.model.name!r}"
            )
        return self.model.likelihood(
            context, samples, entropy_gradient=entropy_gradient
        )

    def target_log_prob(self, context, targets):
        own = getattr(self.model, "target_log_prob", super().target_log_prob)
        return own(context, targets)

    def check_inputs(self, x):
        getattr(self.model, "check_inputs", super().check_inputs)(x)

    def check_targets(self, targets):
        getattr(self.model, "check_targets", super().check_targets)(targets)

    def mode(self, context):
        return self.model.mode(context)

    @property
    def decode_function(self):
        return self.model.decode

    def decode(self, x, samples, context=None, **details):
        return self.call_decode_function(x, samples, context, details)
