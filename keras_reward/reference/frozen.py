"""A frozen model beside the tuned one."""

import keras
from keras import ops

from keras_reward import objective, policies
from keras_reward.policies.factorized import FactorizedPolicy
from keras_reward.policies.tokens import TokenPolicy

MISSING = "missing"  # stands in a saved config for a reference that is not saved


class Reference:
    """A frozen model beside the tuned one, with a policy of the same settings.

    Not a layer, so that Keras counts its weights neither as the tuner's nor into its
    files.

    Args:
        model: a built `keras.Model`, or None where a file came without it.
        policy: its policy.
        save: whether it enters the tuner's checkpoint.
    """

    def __init__(self, model, policy, save):
        self.model = model
        self.policy = policy
        self.save = save

    @property
    def variables(self):
        """What a compiled step reads beside the tuner's own variables."""
        if self.model is None:
            return []
        own = [] if self.policy is self.model else self.policy.variables
        return [*self.model.variables, *own]

    @property
    def saved_variables(self):
        """Those that enter the checkpoint, by name."""
        return {str(i): v for i, v in enumerate(self.variables if self.save else ())}

    def part_log_probs(self, x, samples):
        """Log-probabilities of samples under the reference, see `part_log_probs`.

        One forward pass: nothing is sampled from the reference.
        """
        context = self.policy.encode(x, training=False)
        return part_log_probs(self.policy, context, samples)

    def penalty(self, x, samples, log_probs, weights, no_gradient):
        """The divergence from the reference.

        Args:
            x: the model's inputs.
            samples: `(batch, n, ...)` of the tuned model.
            log_probs: `(batch, n, ...)` of their parts under the tuned model.
            weights: `(batch,)`, of the inputs, or None.
            no_gradient: calls a function and lets no gradient through it.

        Returns:
            Two scalars: one whose gradient estimates that of the divergence, its value
            without meaning; and the estimate of the divergence, without gradient.
        """
        known = no_gradient(self.part_log_probs, x, samples)
        ratios = ops.stop_gradient(log_probs) - known
        ordered = isinstance(self.policy, TokenPolicy)
        by_part = objective.kl_weights(ratios, ordered)
        surrogate = -objective.weighted_likelihood_loss(
            log_probs, by_part, None, weights
        )
        return surrogate, ops.mean(objective.kl_estimate(ratios))

    def ready(self):
        """Called before training: raises if there is nothing to be close to."""
        if self.model is None:
            raise ValueError(
                "This tuning was loaded from a file without its reference, which is "
                "left out unless `save_reference=True`. Set it by "
                "`tuned.set_reference(model)`. Received: no reference"
            )
        self.restore()

    def begin_loading(self):
        """Called before variables are read from a file."""

    def restore(self):
        """What is left to do after loading a file, before training goes on."""

    def get_config(self):
        """What stands for it in the tuner's config."""
        if self.model is None or not self.save:
            return MISSING
        return keras.saving.serialize_keras_object(self.model)


def copy_model(model):
    """A model of the same kind with the same weights."""
    if not model.built:
        raise ValueError(
            '`reference="copy"` copies the weights, and the model has none yet: call '
            f"it once on data to build it. Received: model {model.name!r}"
        )
    try:
        if isinstance(model, keras.Sequential) or hasattr(model, "operations"):
            twin = keras.models.clone_model(model)
        else:
            twin = type(model).from_config(model.get_config())
        if not twin.built:
            twin.build_from_config(model.get_build_config())
        twin.set_weights(model.get_weights())
    except Exception as error:
        raise ValueError(
            f"Model {model.name!r} cannot be copied by its `get_config`. Pass a frozen "
            "model as `reference`; for a model with LoRA adapters, "
            f'`reference="lora_base"`. Received: {type(error).__name__}: {error}'
        ) from error
    return twin


def twin_policy(policy, model, other, temperature):
    """A policy of the same settings for another model."""
    if policy is model:
        return policies.get("auto", other, temperature)
    twin = policy.twin().bind(other, temperature)
    twin.set_weights(policy.get_weights())
    return twin


def part_log_probs(policy, context, samples):
    """Log-probability of each part of samples that is drawn on its own.

    Args:
        policy: a policy, or a model that is its own.
        context: what `policy.encode` returned.
        samples: `(batch, n, ...)`.

    Returns:
        `(batch, n, ...)`, 0 for tokens that do not count; `(batch, n)` for a policy of
        which no more is known than `score`. Its sum over parts is the log-probability.
    """
    if isinstance(policy, TokenPolicy):
        log_probs = policy.token_log_prob(context, samples)
        return ops.where(policy.scored(context, samples), log_probs, 0.0)
    if isinstance(policy, FactorizedPolicy):
        return policy.token_log_prob(context, samples)
    return policy.score(context, samples)[0]


def score_parts(policy, context, samples, entropy_gradient=False):
    """As `Policy.score`, and the log-probabilities of parts, from one pass.

    Returns:
        `(batch, n)`, `(batch,)`, and what `part_log_probs` returns.
    """
    if isinstance(policy, TokenPolicy):
        log_probs, entropy, tokens = policy.score_choices(
            context, [samples], entropy_gradient
        )
        counted = policy.scored(context, samples)
        return log_probs, entropy, ops.where(counted, tokens[0], 0.0)
    log_probs, entropy = policy.score(
        context, samples, entropy_gradient=entropy_gradient
    )
    if isinstance(policy, FactorizedPolicy):
        return log_probs, entropy, policy.token_log_prob(context, samples)
    return log_probs, entropy, log_probs
