"""A model and its policy as a model of greedy outputs: what is deployed."""

import keras

from keras_reward.backend.keras_private import structure_of_inputs
from keras_reward.nests import map_leaves
from keras_reward.policies.detection import DetectionPolicy
from keras_reward.policies.factorized import FactorizedPolicy
from keras_reward.policies.multi_output import MultiOutputPolicy

CALL_THE_MODEL = (
    DetectionPolicy,
    FactorizedPolicy,
    MultiOutputPolicy,
)  # policies that do


class GreedyModel(keras.Model):
    """Returns greedy outputs, decoded, as `RewardTuning.predict` does.

    It has neither the reward nor the terms of the loss, so that they are not exported.

    Args:
        model: a `keras.Model`.
        policy: its policy.
    """

    def __init__(self, model, policy):
        super().__init__(dtype=model.dtype_policy, autocast=False)
        self.model = model
        self.policy = policy
        self.supports_jit = model.supports_jit

    def call(self, inputs):
        context = self.policy.encode(inputs, training=False)
        return self.policy.greedy_outputs(inputs, context)


def symbolic(inputs):
    """Symbolic tensors like those of a nest, for a batch of any size."""
    return map_leaves(
        lambda leaf: keras.KerasTensor(
            (None, *leaf.shape[1:]), keras.backend.standardize_dtype(leaf.dtype)
        ),
        inputs,
    )


def known_inputs(tuner):
    """Symbolic inputs of a tuner's model, or None if nothing says what they are.

    A model that is called by its policy has the inputs that it was made with; others
    are known once a tuner has been called.
    """
    own = structure_of_inputs(tuner.model)
    if isinstance(tuner.policy, CALL_THE_MODEL) and own is not None:
        return own
    return tuner.seen_inputs


def input_signature(tuner):
    """The `input_signature` for `export`, from `known_inputs`."""
    inputs = known_inputs(tuner)
    if inputs is None:
        raise ValueError(
            f"The shapes of what model {tuner.model.name!r} takes are not known yet. "
            "Call `predict` or `fit` once before `export`, or pass `input_signature="
            '[keras.InputSpec("float32", (None, ...))]`, in the structure of `x`. '
            "Received: a tuning that has not seen any inputs"
        )
    return [map_leaves(lambda leaf: keras.InputSpec(leaf.dtype, leaf.shape), inputs)]
