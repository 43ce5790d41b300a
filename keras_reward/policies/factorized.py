"""Policies whose output positions are independent given the input.

The model's output defines the distribution: one forward pass is enough for samples,
their likelihood and the greedy output.
"""

import keras
from keras import ops

from keras_reward import objective
from keras_reward.categorical import draw_categorical
from keras_reward.nests import may_be_equal
from keras_reward.policies.activations import last_activation, symbolic_output
from keras_reward.policies.from_logits import (
    FromLogits,
    classes_are_logits,
    refuse_other_axis,
    refuse_unit_interval,
)
from keras_reward.policies.likelihood import of_positions
from keras_reward.policies.policy import Policy
from keras_reward.policies.unreadable import (
    expected,
    refuse_diffusion,
    refuse_next_tokens,
    refuse_several_outputs,
)

SMALLEST_PROBABILITY = 1e-7  # as Keras's losses clip probabilities


class FactorizedPolicy(Policy):
    """Base class of policies over independent positions.

    `encode` calls the model, and the noise has the shape of the samples.
    """

    min_rank = 1
    expected_output = "(batch, ...)"

    def bind(self, model, temperature=1.0):
        refuse_diffusion(model)
        return super().bind(model, temperature)

    def encode(self, x, training=False):
        return self.read_output(self.model(x, training=training))

    def read_output(self, output):
        """The context, from what the model returned.

        Raises:
            ValueError: if the output is not one tensor of floats of the right rank.
        """
        refuse_several_outputs(self, output)
        floats = keras.backend.is_float_dtype(output.dtype)
        if len(output.shape) < self.min_rank or not floats:
            dtype = keras.backend.standardize_dtype(output.dtype)
            received = f"shape {tuple(output.shape)}, dtype {dtype}"
            raise ValueError(expected(self, received))
        self.check_output(output)
        return self.parameters(ops.cast(output, "float32"))

    def check_output(self, output):
        """Raises if what the model returned cannot be read; called on a tensor.

        Its values can only be seen outside of compiled functions.
        """

    def parameters(self, output):
        """The distribution's parameters, from the model's output in float32."""
        raise NotImplementedError

    def sample_shape(self, shape):
        """Shape of a sample, without the batch axis, from that of a context."""
        return tuple(shape[1:])

    def noise(self, context, num_samples, seed):
        """Uniform numbers in [0, 1), one per position of each sample."""
        shape = ops.shape(context)
        shape = (shape[0], num_samples, *self.sample_shape(shape))
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
        expected = self.sample_shape(context.shape)
        if shape is None or not may_be_equal(tuple(shape[1:]), expected):
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
class CategoricalPolicy(FromLogits, FactorizedPolicy):
    """One of several classes at each position: logits or probabilities of them.

    For classifiers, semantic segmentation, colour bins and the like: the model
    returns `(batch, ..., classes)`, and a sample is `(batch, ...)` class indices.

    Args:
        codec: how class indices become what a reward sees, see `Policy`.
        from_logits: True if the model returns logits, False if it returns
            probabilities, as after a softmax. Default "auto": the model's last
            activation tells. Where it is not known, as in a subclassed model, the
            first batch does: numbers that are not negative and sum to 1 over the last
            axis are probabilities, which is said in a warning.
        name: optional name.

    Raises:
        ValueError: if the model ends in a sigmoid and `from_logits` is "auto"; if its
            classes are not in the last axis; if there is only one class.

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

    has_choices = True
    independent_parts = True
    min_rank = 2
    expected_output = "(batch, ..., classes), classes in the last axis"
    known = {"softmax": False, "linear": True, "log_softmax": True}
    instead = (
        'For a yes or no at each position pass `policy="bernoulli"`, for values such '
        'as colours `policy="gaussian"`; `CategoricalPolicy(from_logits=True)` reads '
        "logits all the same."
    )

    axis_checked = False

    def read_model(self):
        tensor = symbolic_output(self.model, self.output_path)
        if tensor is not None:
            refuse_next_tokens(self.model, self.model.inputs, tensor)
        super().read_model()

    def encode(self, x, training=False):
        output = self.model(x, training=training)
        if hasattr(output, "shape"):
            refuse_next_tokens(self.model, x, output)
        return self.read_output(output)

    def read_activation(self, last):
        tensor = symbolic_output(self.model, self.output_path)
        refuse_other_axis(self, last, None if tensor is None else tensor.shape)
        if last.name != "softmax" or last.axis == -1:
            super().read_activation(last)

    def check_output(self, output):
        if output.shape[-1] is None:
            raise ValueError(
                "CategoricalPolicy needs to know the number of classes while the step "
                "is compiled. Build the model with a known size of the last axis of "
                "its output, for example by a Dense layer at its end. "
                f"Received: model output of shape {tuple(output.shape)}"
            )
        if output.shape[-1] == 1:
            raise ValueError(
                "CategoricalPolicy needs at least two classes to choose from. For a "
                "model with one logit or probability per position pass "
                '`policy="bernoulli"`, for one that predicts a value '
                f'`policy="gaussian"`. Received: model output of shape '
                f"{tuple(output.shape)}"
            )
        if not self.axis_checked:
            last = last_activation(self.model, self.output_path)
            refuse_other_axis(self, last, output.shape)
            self._untracked(axis_checked=True)
        super().check_output(output)

    def read_values(self, values, tolerance):
        return classes_are_logits(self, values, tolerance)

    def parameters(self, output):
        if not self.from_logits:
            output = ops.log(ops.maximum(output, SMALLEST_PROBABILITY))
        return output / self.temperature if self.temperature != 1.0 else output

    def sample_shape(self, shape):
        return tuple(shape[1:-1])

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

    def choice_probabilities(self, context):
        return ops.softmax(context, axis=-1)

    def number_of_choices(self, context):
        return context.shape[-1]

    def position_entropy(self, context):
        return objective.categorical_entropy(context)

    def mode(self, context):
        return ops.cast(ops.argmax(context, axis=-1), "int32")


@keras.saving.register_keras_serializable(package="keras_reward")
class BernoulliPolicy(FromLogits, FactorizedPolicy):
    """A yes or no at each position: one logit or probability each.

    For binary masks and multi-label classifiers: the model returns `(batch, ...)`
    and a sample has the same shape, 0 or 1, int32.

    Args:
        codec: how zeros and ones become what a reward sees, see `Policy`.
        from_logits: True if the model returns logits, False if it returns
            probabilities, as after a sigmoid. Default "auto": the model's last
            activation tells. Where it is not known, as in a subclassed model, an output
            outside of [0, 1] in the first batch is logits; one within must be told.
        name: optional name.

    Raises:
        ValueError: with `from_logits="auto"`, if the model ends in a softmax, or if
            neither its layers nor the first batch tell what it returns.

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

    has_choices = True
    independent_parts = True
    expected_output = "(batch, ...), one logit or probability per position"
    known = {"linear": True, "hard_sigmoid": False, "sigmoid": False}
    instead = (
        'For one of several classes pass `policy="categorical"`; '
        "`BernoulliPolicy(from_logits=False)` reads each number as the probability of "
        "a yes all the same."
    )

    def read_values(self, values, tolerance):
        refuse_unit_interval(self, values)
        return True

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

    def choice_probabilities(self, context):
        return ops.stack([ops.sigmoid(-context), ops.sigmoid(context)], axis=-1)

    def number_of_choices(self, context):
        return 2

    def position_entropy(self, context):
        # p * log(1 / p) + q * log(1 / q), with log(1 / p) = softplus(-logit).
        return ops.softplus(context) - context * ops.sigmoid(context)

    def mode(self, context):
        return ops.cast(context > 0.0, "int32")
