"""The tuned model with its LoRA adapters off, as the reference model."""

import contextlib

import keras
import numpy as np
from keras import ops

from keras_reward.backend.keras_private import flatten_layers
from keras_reward.terms.reference_model import MISSING, ReferenceModel

ADAPTED = ("kernel", "embeddings")  # weights that Keras's layers add adapters to


class LoRABase(ReferenceModel):
    """The tuned model without its LoRA adapters, which needs no second copy of it.

    Other weights that are tuned too, such as biases, are copied, so that the reference
    model keeps their initial values. The copies are in the tuner's file. The base is
    what is left when the adapters are taken out of the weights again, see
    `SavedAdapters`.

    Args:
        model: a built `keras.Model` with layers that have adapters.
        policy: its policy.

    Raises:
        ValueError: if no layer has adapters.
    """

    def __init__(self, model, policy):
        if not lora_layers(model):
            raise ValueError(
                '`KL("lora_base")` is the model with its adapters off: give its '
                "layers adapters first, with `layer.enable_lora(rank)` or "
                f"`backbone.enable_lora(rank)`. Received: model {model.name!r} "
                "without adapters"
            )
        super().__init__(model, policy, save=False)
        adapters = adapters_of(model)
        self.kept = [
            (index, variable, copy_of(variable))
            for index, variable in enumerate(model.variables)
            if variable.trainable and id(variable) not in map(id, adapters)
        ]
        self.places = {f"kept_{i}": Place(copy) for i, _, copy in self.kept}
        self.pending = False  # whether a file was loaded but not yet restored from

    @property
    def variables(self):
        return [copy for _, _, copy in self.kept]

    @property
    def saved_variables(self):
        return self.places if can_be_taken_out(self.model) else {}

    @property
    def run_variables(self):
        return self.variables  # a run that goes on would copy what was tuned

    def position_log_probs(self, x, samples):
        with adapters_off(self.model), self.start_values():
            return super().position_log_probs(x, samples)

    def start_values(self):
        """A scope in which tuned weights other than adapters have initial values."""
        if not self.kept:
            return contextlib.nullcontext()
        # All variables, since this scope replaces any outer one.
        values = {id(v): (v, v.value) for v in self.model.variables}
        values.update({id(v): (v, copy.value) for _, v, copy in self.kept})
        return keras.StatelessScope(list(values.values()))

    def begin_loading(self):
        self.pending = True
        for place in self.places.values():
            place.held = None

    def restore(self):
        """Gives the copies the values in the loaded file."""
        if not self.pending:
            return
        self.pending = False
        places = {id(place.variable): place for place in self.places.values()}
        for _, variable, copy in self.kept:
            held = places[id(copy)].held  # None: not tuned when the file was saved
            copy.assign(copied(variable) if held is None else held)

    def get_config(self):
        return "lora_base" if can_be_taken_out(self.model) else MISSING


class Place:
    """Stands for a variable in a file, and holds the value that is read."""

    def __init__(self, variable):
        self.variable = variable
        self.held = None

    def assign(self, value):
        self.held = np.array(value)

    @property
    def value(self):
        """The value to write to a file."""
        return self.variable.value


def copy_of(variable):
    """A frozen variable with a copy of a variable's values, of its dtype."""
    return keras.Variable(copied(variable), trainable=False, dtype=variable.dtype)


def copied(variable):
    """A copy of a variable's values in new memory: JAX donates the variable's own."""
    return np.array(ops.convert_to_numpy(variable))


class SavedAdapters:
    """The adapters of a model in the file of its tuner.

    Keras merges adapters into the weights when it saves a file, and sets them to 0 when
    it loads one: the base is lost, and as a product of two zeros an adapter has no
    gradient. So a tuner saves the adapters a second time, and takes them out of the
    merged weights before training continues. Adapters that a file does not have keep
    the values that they had before.

    Args:
        model: a `keras.Model`.
    """

    def __init__(self, model):
        self.model = model
        self.loaded = {}  # values by the id of their variable, until `restore`

    @property
    def variables(self):
        """The adapters to save, by name."""
        adapters = adapters_of(self.model) if can_be_taken_out(self.model) else []
        return {f"adapter_{i}": variable for i, variable in enumerate(adapters)}

    def read(self, store):
        """Takes the adapters from a file, whose other weights are not read yet.

        Args:
            store: dict of arrays by name, from which the adapters are removed.
        """
        for name, variable in self.variables.items():
            value = store.get(name)
            fits = value is not None and tuple(value.shape) == tuple(variable.shape)
            self.loaded[id(variable)] = np.array(value) if fits else copied(variable)
        for name in [name for name in store if name.startswith("adapter_")]:
            del store[name]

    def restore(self):
        """Takes loaded adapters out of the weights that they were merged into."""
        loaded, self.loaded = self.loaded, {}
        for layer in lora_layers(self.model) if loaded else ():
            for name in adapted_names(layer):
                take_out(layer, name, loaded)


def can_be_taken_out(model):
    """Whether adapters can be subtracted again: not from quantized weights."""
    layers = lora_layers(model)
    return not any(getattr(layer, "quantization_mode", None) for layer in layers)


def take_out(layer, name, values):
    """Sets a layer's adapters, and its base to the merged weights without them."""
    adapters = [getattr(layer, f"lora_{name}_{side}") for side in "ab"]
    if any(id(variable) not in values for variable in adapters):
        return  # it was not there when the file was loaded
    merged = ops.convert_to_numpy(getattr(layer, name))  # its adapters are still 0
    for variable in adapters:
        variable.assign(values[id(variable)])
    twice = ops.convert_to_numpy(getattr(layer, name))
    (base,) = [variable for variable in layer.variables if variable.name == name]
    base.assign(merged - (twice - merged))


def adapted_names(layer):
    """Names of a layer's weights that have adapters."""
    return [name for name in ADAPTED if hasattr(layer, f"lora_{name}_a")]


def adapters_of(model):
    """The variables of all of a model's LoRA adapters."""
    return [
        getattr(layer, f"lora_{name}_{side}")
        for layer in lora_layers(model)
        for name in adapted_names(layer)
        for side in "ab"
    ]


def lora_layers(model):
    """The layers of a model that have LoRA adapters."""
    layers = flatten_layers(model)
    return [layer for layer in layers if getattr(layer, "lora_enabled", False)]


@contextlib.contextmanager
def adapters_off(model):
    """A context in which the model computes without its adapters."""
    layers = lora_layers(model)
    for layer in layers:
        layer.lora_enabled = False
    try:
        yield
    finally:
        for layer in layers:
            layer.lora_enabled = True
