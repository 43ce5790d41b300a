"""What a tuned model is kept close to."""

import keras

from keras_reward.reference.frozen import (
    MISSING,
    Reference,
    copy_model,
    score_parts,
    twin_policy,
)
from keras_reward.reference.lora import AdaptersOff

KINDS = ("copy", "lora_base")


def make_reference(identifier, tuner, kl_weight, save):
    """The `Reference` of a tuner, or None.

    Args:
        identifier: None, `"copy"`, `"lora_base"`, or a built `keras.Model`; from a
            saved config also `"missing"`.
        tuner: a `RewardTuning` that has its model and policy.
        kl_weight: weight of the divergence in the loss, for the checks.
        save: whether a copy or model enters the tuner's checkpoint.

    Raises:
        ValueError: if the identifier is none of these, or the weight is negative or has
            nothing to weigh.
    """
    if not kl_weight >= 0 or (kl_weight and identifier is None):
        raise ValueError(
            "`kl_weight` must not be negative, and needs a `reference` to be close to: "
            '"copy" (the model as it is now), "lora_base" or a model. '
            f"Received: kl_weight={kl_weight}, reference={identifier!r}"
        )
    if identifier is None:
        return None
    if isinstance(identifier, str) and identifier == MISSING:
        return Reference(None, None, save)
    if isinstance(identifier, str) and identifier == "lora_base":
        return AdaptersOff(tuner.model, tuner.policy)
    if isinstance(identifier, str) and identifier == "copy":
        identifier = copy_model(tuner.model)
    moving = identifier is tuner.model
    if moving or not isinstance(identifier, keras.Model) or not identifier.built:
        raise ValueError(
            f"`reference` must be one of {KINDS}, or a built keras.Model that is not "
            "the tuned one itself. "
            f"Received: reference={identifier!r}"
        )
    policy = twin_policy(tuner.policy, tuner.model, identifier, tuner.temperature)
    return Reference(identifier, policy, save)
