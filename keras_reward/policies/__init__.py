"""How a model's output defines a probability distribution."""

from keras_reward.policies.activations import symbolic_output
from keras_reward.policies.autoregressive import AutoregressivePolicy
from keras_reward.policies.causal_lm import CausalLMPolicy
from keras_reward.policies.detection import DetectionPolicy
from keras_reward.policies.detectors import is_detector
from keras_reward.policies.factorized import BernoulliPolicy, CategoricalPolicy
from keras_reward.policies.gaussian import GaussianPolicy
from keras_reward.policies.keras_hub_tasks import is_language_model
from keras_reward.policies.likelihood import Likelihood
from keras_reward.policies.model_policy import ModelPolicy, has_protocol
from keras_reward.policies.multi_output import (
    OUTPUT_POLICIES,
    MultiOutputPolicy,
    is_config,
)
from keras_reward.policies.policy import Policy
from keras_reward.policies.unreadable import refuse_next_tokens
from keras_reward.saved_objects import deserialized
from keras_reward.sequences.sequence_model import what_is_missing

POLICIES = {
    **OUTPUT_POLICIES,
    "autoregressive": AutoregressivePolicy,
    "causal_lm": CausalLMPolicy,
    "detection": DetectionPolicy,
    "model": ModelPolicy,
}


def get(identifier, model, temperature=1.0):
    """The policy of a model.

    Args:
        identifier: `"auto"`, a name from `POLICIES`, a `Policy`, its serialised config,
            or a dict, list or tuple of them, see `MultiOutputPolicy`. With `"auto"`, a
            model that has the methods of the policy protocol gets a `ModelPolicy`, a
            KerasHub `CausalLM` or `Seq2SeqLM` a `CausalLMPolicy`, a detector of
            KerasHub or KerasCV a `DetectionPolicy`, and a sequence model an
            `AutoregressivePolicy`; the output of any other model is read as classes
            in its last axis.
        model: the `keras.Model` to read.
        temperature: divides the logits.

    Returns:
        A policy bound to `model`.

    Raises:
        ValueError: for an unknown identifier, or a policy that does not fit the model.
    """
    if identifier == "auto":
        identifier = kind_of(model)
        output = symbolic_output(model)
        if identifier == "categorical" and output is not None:
            refuse_next_tokens(model, model.inputs, output, fewest=1)
    if isinstance(identifier, str) and identifier in POLICIES:
        identifier = POLICIES[identifier]()
    if isinstance(identifier, (dict, list, tuple)) and not is_config(identifier):
        identifier = MultiOutputPolicy(identifier)
    identifier = deserialized(identifier)
    if not isinstance(identifier, Policy):
        names = ", ".join(repr(name) for name in ["auto", *POLICIES])
        raise ValueError(
            f"`policy` must be one of {names}, an instance of Policy, or a dict or "
            "list with a policy for each output. "
            f"Received: policy={identifier!r}"
        )
    return identifier.bind(model, temperature)


def kind_of(model):
    """The name of the policy that `"auto"` stands for."""
    if has_protocol(model):
        return "model"
    if is_language_model(model):
        return "causal_lm"
    if is_detector(model):
        return "detection"
    return "categorical" if what_is_missing(model) else "autoregressive"
