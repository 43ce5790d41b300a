"""Policies whose output positions are independent given the input.

The model's output defines the distribution: one forward pass is enough for samples,
their likelihood and the greedy output.
"""

import keras
from keras import ops

from keras_reward import objective
from keras_reward.categorical import draw_categorical
from keras_reward.policies.likelihood import of_positions
from keras_reward.policies.policy import Policy

SMALLEST_PROBABILITY = 1e-7  # as Keras's losses clip probabilities


class FactorizedPolicy(Policy):
    """Base class of policies over independent positions.

    `encode` calls the model, and the noise has the shape of the samples.
    """

    min_rank = 1
    expected_output = "(batch, ...)"

    def encode(self, x, training=False):
        return self.read_output(self.model(x, training=training))

    def read_output(self, output):
        """The context, from what the model returned.

        Raises:
            ValueError: if the output is not one tensor of floats of the right rank.
        """
        shape = getattr(output, "shape", None)
        if (
            shape is None
            or len(shape) < self.min_rank
            or not keras.backend.is_float_dtype(output.dtype)
        ):
            received = (
                f"a {type(output).__name__}"
                if shape is None
                else f"shape {tuple(shape)}, "
                f"dtype {keras.backend.standardize_dtype(output.dtype)}"
            )
            raise ValueError(
                f"{type(self).__name__} expects the model to return one tensor of "
                f"floats of shape {self.expected_output}. "
                f"Received: {received} from model {self.model.name!r}"
            )
        return self.parameters(ops.cast(output, "float32"))

    def parameters(self, output):
        """The distribution's parameters, from the model's output in float32."""
        raise NotImplementedError

    def sample_shape(self, context):
        """Shape of a sample, without the batch axis."""
        return tuple(context.shape[1:])

    def noise(self, context, num_samples, seed):
        """Uniform numbers in [0, 1), one per position of each sample."""
        shape = (ops.shape(context)[0], num_samples, *self.sample_shape(context))
        return keras.random.uniform(shape, seed=seed, dtype="float32")

    def sample(self, context, num_samples, seed=None, noise=None):
        if noise is None:
            noise = self.noise(context, num_samples, seed)
        return self.transform(context, ops.convert_to_tensor(noise, "float32"))

    def transform(self, context, noise):
        """Noise `(batch, n, ...)` to samples `(batch, n, ...)`."""
        raise NotImplementedError

    def likelihood(self, context, samples, choices=(), entropy_gradient=False):
        log_probs = [self.position_log_probs(context, c) for c in (samples, *choices)]
        log_probs = ops.stack(log_probs) if choices else log_probs[0][None]
        if not entropy_gradient:
            context = ops.stop_gradient(context)
        return of_positions(log_probs, self.entropy(context))

    def position_log_probs(self, context, samples):
        """Log-probability of each position of samples: `(batch, n, ...)`."""
        raise NotImplementedError

    def position_entropy(self, context):
        """Entropy of each position `(batch, ...)`, in nats."""
        raise NotImplementedError

    def target_log_prob(self, context, targets):
        """Log-probability `(batch,)` of the ground truth.

        Args:
            context: what `encode` returned.
            targets: `(batch, ...)`, with the shape of one sample of each input.
        """
        shape = getattr(targets, "shape", None)
        expected = self.sample_shape(context)
        if shape is None or tuple(shape[1:]) != expected:
            described = ", ".join(["batch", *map(str, expected)])
            received = type(targets).__name__ if shape is None else tuple(shape)
            raise ValueError(
                f"For its likelihood, {type(self).__name__} needs `y` in the form of a "
                f"sample: shape ({described}). Received: y of shape {received}"
            )
        targets = ops.expand_dims(ops.convert_to_tensor(targets), 1)
        targets, mask = self.targets_and_mask(context, targets)
        log_probs = self.position_log_probs(context, targets)
        return objective.sequence_log_prob(log_probs, mask)[:, 0]

    def targets_and_mask(self, context, targets):
        """Valid targets `(batch, 1, ...)`, and a mask of those that count, or None."""
        return targets, None

    def entropy(self, context):
        """Mean entropy of the positions of each input, `(batch,)`, in nats."""
        entropies = self.position_entropy(context)
        axes = tuple(range(1, len(entropies.shape)))
        return ops.mean(entropies, axis=axes) if axes else entropies


@keras.saving.register_keras_serializable(package="keras_reward")
class CategoricalPolicy(FactorizedPolicy):
    """One of several classes at each position: logits over the last axis.

    For classifiers, semantic segmentation, colour bins and the like: the model
    returns `(batch, ..., classes)` and a sample is `(batch, ...)` class indices.

    Args:
        codec: how class indices become what a reward sees, see `Policy`.
        from_logits: True (default) if the model returns logits, False if it returns
            probabilities, as after a softmax.
        name: optional name.

    Example:

    ```python
    import keras
    import numpy as np
    from keras_reward import CategoricalPolicy

    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(5)])
    policy = CategoricalPolicy().bind(model)
    context = policy.encode(np.zeros((2, 8), "float32"))
    samples = policy.sample(context, num_samples=3, seed=0)  # (2, 3)
    policy.log_prob(context, samples)                        # (2, 3)
    ```
    """

    min_rank = 2
    expected_output = "(batch, ..., classes), classes in the last axis"

    def __init__(self, codec=None, from_logits=True, name=None, **kwargs):
        super().__init__(codec=codec, name=name, **kwargs)
        self.from_logits = from_logits

    def bind(self, model, temperature=1.0):
        refuse_activation(self, model, "softmax")
        return super().bind(model, temperature)

    def parameters(self, output):
        if output.shape[-1] == 1:
            raise ValueError(
                "CategoricalPolicy needs at least two classes to choose from. For a "
                'model with one logit per position pass `policy="bernoulli"`, for '
                'one that predicts a value `policy="gaussian"`. '
                f"Received: model output of shape {tuple(output.shape)}"
            )
        if not self.from_logits:
            output = ops.log(ops.maximum(output, SMALLEST_PROBABILITY))
        return output / self.temperature if self.temperature != 1.0 else output

    def sample_shape(self, context):
        return tuple(context.shape[1:-1])

    def transform(self, context, noise):
        indices = draw_categorical(context, ops.moveaxis(noise, 1, -1))
        return ops.moveaxis(indices, -1, 1)

    def position_log_probs(self, context, samples):
        indices = ops.cast(ops.moveaxis(samples, 1, -1), "int32")
        return ops.moveaxis(objective.categorical_log_prob(context, indices), -1, 1)

    def targets_and_mask(self, context, targets):
        dtype = keras.backend.standardize_dtype(targets.dtype)
        if not keras.backend.is_int_dtype(dtype):
            raise ValueError(
                "For its likelihood, CategoricalPolicy needs `y` of class indices, "
                f"integers. Received: y of dtype {dtype}"
            )
        targets = ops.cast(targets, "int32")
        # Labels outside the classes mark unlabelled positions, as in the rewards.
        labelled = ops.logical_and(targets >= 0, targets < context.shape[-1])
        return ops.where(labelled, targets, 0), labelled

    def position_entropy(self, context):
        return objective.categorical_entropy(context)

    def mode(self, context):
        return ops.cast(ops.argmax(context, axis=-1), "int32")

    def get_config(self):
        return {**super().get_config(), "from_logits": self.from_logits}


@keras.saving.register_keras_serializable(package="keras_reward")
class BernoulliPolicy(FactorizedPolicy):
    """A yes or no at each position: one logit each.

    For binary masks and multi-label classifiers: the model returns `(batch, ...)`
    and a sample has the same shape, 0 or 1, int32.

    Args:
        codec: how zeros and ones become what a reward sees, see `Policy`.
        from_logits: True (default) if the model returns logits, False if it returns
            probabilities, as after a sigmoid.
        name: optional name.

    Example:

    ```python
    import keras
    import numpy as np
    from keras_reward import BernoulliPolicy

    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(5)])
    policy = BernoulliPolicy().bind(model)
    context = policy.encode(np.zeros((2, 8), "float32"))
    policy.sample(context, num_samples=3, seed=0)  # (2, 3, 5)
    ```
    """

    expected_output = "(batch, ...), one logit per position"

    def __init__(self, codec=None, from_logits=True, name=None, **kwargs):
        super().__init__(codec=codec, name=name, **kwargs)
        self.from_logits = from_logits

    def bind(self, model, temperature=1.0):
        refuse_activation(self, model, "sigmoid")
        return super().bind(model, temperature)

    def parameters(self, output):
        if not self.from_logits:
            low = SMALLEST_PROBABILITY
            output = ops.clip(output, low, 1.0 - low)
            output = ops.log(output) - ops.log1p(-output)
        return output / self.temperature if self.temperature != 1.0 else output

    def transform(self, context, noise):
        return ops.cast(noise < ops.sigmoid(context)[:, None], "int32")

    def position_log_probs(self, context, samples):
        logits = context[:, None]
        return -ops.softplus(ops.where(ops.cast(samples, "bool"), -logits, logits))

    def position_entropy(self, context):
        # p * log(1 / p) + q * log(1 / q), with log(1 / p) = softplus(-logit).
        return ops.softplus(context) - context * ops.sigmoid(context)

    def mode(self, context):
        return ops.cast(context > 0.0, "int32")

    def get_config(self):
        return {**super().get_config(), "from_logits": self.from_logits}


def refuse_activation(policy, model, activation):
    """Raises if a model that ends in `activation` is about to be read as logits."""
    last = last_layer(model)
    if last is None or not policy.from_logits:
        return
    is_layer = type(last).__name__.lower() == activation
    if is_layer or getattr(last, "activation", None) is keras.activations.get(
        activation
    ):
        name = type(policy).__name__
        raise ValueError(
            f"{name} reads the model's output as logits, but model {model.name!r} ends "
            f"in a {activation}: it returns probabilities. Pass "
            f"`policy={name}(from_logits=False)`. "
            f"Received: last layer {last.name!r}"
        )


# Layers whose output is probabilities if their input is.
PASSING = (
    keras.layers.Cropping2D,
    keras.layers.Permute,
    keras.layers.Reshape,
    keras.layers.Resizing,
    keras.layers.UpSampling2D,
)


def last_layer(model):
    """The last layer of a model that is not in `PASSING`, also in nested models."""
    for layer in reversed(getattr(model, "layers", None) or []):
        if not isinstance(layer, PASSING):
            return last_layer(layer) if isinstance(layer, keras.Model) else layer
    return None
