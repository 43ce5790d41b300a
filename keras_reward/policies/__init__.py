"""How a model's output is a probability distribution."""

import keras

from keras_reward.policies.autoregressive import AutoregressivePolicy, missing_parts
from keras_reward.policies.causal_lm import CausalLMPolicy
from keras_reward.policies.factorized import BernoulliPolicy, CategoricalPolicy
from keras_reward.policies.gaussian import GaussianPolicy
from keras_reward.policies.language_tasks import is_language_model
from keras_reward.policies.policy import PROTOCOL, Policy

POLICIES = {
    "categorical": CategoricalPolicy,
    "bernoulli": BernoulliPolicy,
    "gaussian": GaussianPolicy,
    "autoregressive": AutoregressivePolicy,
    "causal_lm": CausalLMPolicy,
}


def get(identifier, model, temperature=1.0):
    """The policy of a model.

    Args:
        identifier: `"auto"`, a name from `POLICIES`, a `Policy`, or its serialised
            config. `"auto"`: a model that has the methods of the policy protocol is
            its own policy; a KerasHub `CausalLM` or `Seq2SeqLM` gets a
            `CausalLMPolicy`, a sequence model an `AutoregressivePolicy`; any other
            model's output is read as logits over its last axis.
        model: the `keras.Model` to read.
        temperature: divides the logits.

    Returns:
        A policy bound to `model`.

    Raises:
        ValueError: for an unknown identifier, or a temperature for a model that is
            its own policy.
    """
    if identifier == "auto" and all(
        callable(getattr(model, method, None)) for method in PROTOCOL
    ):
        if temperature != 1.0:
            raise ValueError(
                f"Model {model.name!r} is its own policy, so its temperature is its "
                f"own too: set it there. Received: temperature={temperature}"
            )
        return model
    if identifier == "auto" and is_language_model(model):
        identifier = "causal_lm"
    if identifier == "auto":
        identifier = "categorical" if missing_parts(model) else "autoregressive"
    if isinstance(identifier, str) and identifier in POLICIES:
        identifier = POLICIES[identifier]()
    if isinstance(identifier, dict):
        identifier = keras.saving.deserialize_keras_object(identifier)
    if not isinstance(identifier, Policy):
        names = ", ".join(repr(name) for name in ["auto", *POLICIES])
        raise ValueError(
            f"`policy` must be one of {names}, or an instance of Policy. "
            f"Received: policy={identifier!r}"
        )
    return identifier.bind(model, temperature)


def greedy_outputs(policy, x, context):
    """The greedy output of each input, decoded: what `predict` returns.

    Args:
        policy: a `Policy`, or a model that is its own.
        x: the model's inputs.
        context: what `policy.encode(x)` returned.
    """
    if isinstance(policy, Policy):
        return policy.greedy_outputs(x, context)
    return policy.decode(x, policy.mode(context)[:, None])
