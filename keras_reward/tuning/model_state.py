"""What a saved tuning says about its model beyond the model's own config.

A model that makes its layers itself is made again by its class, without the adapters
that its layers had, without knowing which were frozen, and perhaps without weights,
where the first call makes them.
"""

import keras

from keras_reward import policies
from keras_reward.backend.keras_private import flatten_layers
from keras_reward.nests import check_size
from keras_reward.saved_objects import deserialized, is_found, warn_not_registered
from keras_reward.terms.lora_base import adapters_of, lora_layers
from keras_reward.tuning.greedy_model import GreedyModel

LARGEST_RANK = 2**16


def state_of(tuner):
    """A serialisable dict of what `restore` needs.

    Args:
        tuner: a `RewardTuning`.
    """
    model = tuner.model
    layers, variables = flatten_layers(model), model.variables
    adapted = {id(layer) for layer in lora_layers(model)}
    return {
        "inputs": keras.saving.serialize_keras_object(tuner.seen_inputs),
        "weights": number_of_weights(model),
        "layers": len(layers),
        "adapters": [
            [index, layer.lora_rank, layer.lora_alpha]
            for index, layer in enumerate(layers)
            if id(layer) in adapted
        ],
        "frozen_layers": [i for i, layer in enumerate(layers) if not layer.trainable],
        "frozen_variables": [i for i, v in enumerate(variables) if not v.trainable],
    }


def inputs_of(state):
    """Symbolic inputs like those of the tuner's first call, or None."""
    return keras.saving.deserialize_keras_object(state["inputs"])


def restore(model, policy, temperature, state):
    """Gives a model that was made from its config the state that it was saved with.

    Args:
        model: a `keras.Model`.
        policy: its `Policy`.
        temperature: of the policy.
        state: what `state_of` returned.

    Raises:
        ValueError: if the model does not have the weights that were saved.
    """
    inputs = inputs_of(state)
    if inputs is not None and number_of_weights(model) < state["weights"]:
        policy = policies.get(policy, model, temperature)
        GreedyModel(model, policy)(inputs)
    made = number_of_weights(model), len(flatten_layers(model))
    saved = state["weights"], state["layers"]
    to_restore = state["adapters"] or state["frozen_layers"]
    if made != saved and (to_restore or made[0] != saved[0]):
        raise ValueError(
            f"The weights of model {model.name!r} are not made by its class alone, nor "
            "by a call with inputs of the shape that it was tuned with, so they cannot "
            f"be loaded. Make all layers in `{type(model).__name__}.__init__` and "
            "their weights there or in `build`, and save again. "
            f"Received: {made[0]} weights in {made[1]} layers, of {saved[0]} in "
            f"{saved[1]} in the file"
        )
    if made == saved:
        restore_layers(flatten_layers(model), state)
        freeze(model.variables, state["frozen_variables"])


def number_of_weights(model):
    """How many weights a model has, besides adapters."""
    return len(model.weights) - len(adapters_of(model))


def restore_layers(layers, state):
    """Freezes layers and gives them adapters, as they were saved."""
    freeze(layers, state["frozen_layers"])  # a layer before those within it
    for index, rank, alpha in state["adapters"]:
        check_size("adapters", index, len(layers) - 1, smallest=0)
        layer = layers[index]
        check_size("lora_rank", rank, LARGEST_RANK)
        if not layer.lora_enabled:
            layer.enable_lora(rank, lora_alpha=alpha)
        layer.lora_alpha = alpha  # which Keras forgets of a layer made with a rank


def freeze(parts, frozen):
    """Makes layers or variables trainable, except those of the indices `frozen`."""
    frozen = set(frozen)
    for index, part in enumerate(parts):
        if part.trainable == (index in frozen):
            part.trainable = index not in frozen


def made_again(config, custom_objects):
    """A model from its config; an error says in two sentences what is missing."""
    try:
        return deserialized(config, custom_objects)
    except TypeError as error:
        # Keras adds the whole config to its message.
        text = str(error).split("Exception encountered: ")[-1]
        text = text.split("Full object config")[0].strip()
        raise ValueError(
            f"Model class {config['class_name']!r} does not make itself again from its "
            "own `get_config`. It needs a `from_config` that takes what `get_config` "
            f"returns. Received: {text[:300]}"
        ) from error


def warn_unregistered(model):
    """Warns if the class of a model, or of a layer in its config, will not be found."""
    names = sorted({type(layer).__name__ for layer in unregistered(model)})
    if names:
        warn_not_registered(names)


def unregistered(layer):
    """Of a model, and of the layers that its config has, those of unknown classes."""
    if not is_found(type(layer)):
        return [layer]
    in_config = isinstance(layer, keras.Sequential) or hasattr(layer, "operations")
    of_keras = type(layer).__module__.split(".")[0] == "keras"
    inner = layer.layers if in_config and of_keras else ()
    return [found for part in inner for found in unregistered(part)]
