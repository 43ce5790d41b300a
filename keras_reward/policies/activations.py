"""What a model's layers say about its output: its last activation, its class axis."""

from typing import NamedTuple

import keras

from keras_reward.backend.keras_private import flatten_layers, producer_of

# What these functions do to an output is known. Of others, its values must tell.
FUNCTIONS = {
    getattr(keras.activations, name): name
    for name in (
        *("linear", "softmax", "log_softmax"),
        *("sigmoid", "hard_sigmoid", "log_sigmoid"),
    )
}
FUNCTIONS.update({getattr(keras.ops, f.__name__, f): n for f, n in FUNCTIONS.items()})
# The operations behind the same functions, where they are called on symbolic tensors.
OPERATIONS = {
    "Softmax": "softmax",
    "LogSoftmax": "log_softmax",
    "Sigmoid": "sigmoid",
    "HardSigmoid": "hard_sigmoid",
    "LogSigmoid": "log_sigmoid",
}
# Layers whose result is a sum of products, and then their `activation`.
LINEAR = (
    *(keras.layers.Dense, keras.layers.EinsumDense),
    *(keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D),
    *(keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose),
    *(keras.layers.Conv3DTranspose, keras.layers.DepthwiseConv1D),
    *(keras.layers.DepthwiseConv2D, keras.layers.SeparableConv1D),
    keras.layers.SeparableConv2D,
)
# Layers that hand on what they are given when they do not train, each number as it is.
SAME = (
    *(keras.layers.Identity, keras.layers.ActivityRegularization),
    *(keras.layers.Dropout, keras.layers.AlphaDropout, keras.layers.GaussianDropout),
    *(keras.layers.GaussianNoise, keras.layers.SpatialDropout1D),
    *(keras.layers.SpatialDropout2D, keras.layers.SpatialDropout3D),
)
# Layers after which probabilities are still probabilities, in the same axis.
SPATIAL = (
    *(keras.layers.Cropping1D, keras.layers.Cropping2D, keras.layers.Cropping3D),
    *(keras.layers.UpSampling1D, keras.layers.UpSampling3D),
    *(keras.layers.UpSampling2D, keras.layers.Resizing),
)
BETWEEN_NEIGHBOURS = ("nearest", "bilinear")  # others overshoot
MOVING = (keras.layers.Reshape, keras.layers.Permute, keras.layers.Flatten)
# The same for operations, by the names of their classes.
SAME_OPERATIONS = ("Cast", "StopGradient")
MOVING_OPERATIONS = (
    *("Reshape", "Squeeze", "ExpandDims", "Transpose", "Moveaxis", "Swapaxes"),
    "GetItem",
)


class LastActivation(NamedTuple):
    """The last activation before an output.

    Attributes:
        name: of the function, a key of `keras.activations`: `"linear"` for logits.
        layer: name of the layer or operation with it.
        axis: the axis with the classes, counted with the batch; -1 for the last one,
            None if the layers do not tell.
    """

    name: str
    layer: str
    axis: int | None


class Step(NamedTuple):
    """One operation on the way to an output; tensors are None in an unbuilt model."""

    operation: keras.Operation
    given: object = None
    result: object = None


def last_activation(model, path=()):
    """The activation that made an output of a model, from its graph of layers.

    It is looked for from the output backwards, through layers after which
    probabilities are still probabilities, and in nested models.

    Args:
        model: a `keras.Model`.
        path: the names and indices that lead to the output; `()` for the only one.

    Returns:
        A `LastActivation`; None if the layers do not tell, as in a subclassed model.
    """
    later = []
    for step in steps_to(model, symbolic_output(model, path)):
        name = activation_name(step.operation)
        if name is not None:
            axis = class_axis(step, name)
            for following in reversed(later):
                axis = moved_axis(axis, following)
            return LastActivation(name, step.operation.name, axis)
        if not hands_on(step.operation):
            return None
        later.append(step)
    return None


def steps_to(model, tensor):
    """The operations of a model that lead to a tensor, the last one first.

    The first one with several inputs is the last that is given.

    Args:
        model: a `keras.Model`.
        tensor: symbolic; None if a `Sequential` has not been built.
    """
    if not runs_its_graph(model):
        return
    if tensor is None and isinstance(model, keras.Sequential):
        for layer in reversed(model.layers):
            yield from steps_of(Step(layer), 0)
    while tensor is not None:
        operation, inputs, index = producer_of(tensor)
        if not inputs:
            return
        yield from steps_of(Step(operation, inputs[0], tensor), index)
        tensor = inputs[0] if len(inputs) == 1 else None


def steps_of(step, index):
    """A step, or those within it if it is a model with a graph of its own."""
    if runs_its_graph(step.operation):
        outputs = getattr(step.operation, "outputs", None) or [None]
        yield from steps_to(step.operation, outputs[index])
    else:
        yield step


def runs_its_graph(model):
    """Whether calling a model runs its layers as they are connected."""
    has_graph = isinstance(model, keras.Sequential) or hasattr(model, "operations")
    return isinstance(model, keras.Model) and has_graph and is_call_of_keras(model)


def is_call_of_keras(operation):
    """Whether an operation's `call` is Keras's own, not that of a user's subclass."""
    return type(operation).call.__module__.startswith("keras.")


def symbolic_output(model, path=()):
    """The symbolic tensor of an output; None if there is none, or if it is unclear.

    Args:
        model: a `keras.Model`.
        path: the names and indices that lead to the output; `()` for the only one.
    """
    if not path:
        outputs = list(getattr(model, "outputs", None) or [])
        return outputs[0] if len(outputs) == 1 else None
    output = getattr(model, "output", None)
    for key in path:
        held = isinstance(output, dict) and key in output
        if isinstance(output, list | tuple):
            held = isinstance(key, int) and key < len(output)
        if not held:
            return None
        output = output[key]
    return output if hasattr(output, "shape") else None


def activation_name(operation):
    """The name of an operation's activation; None if it has none that is known."""
    if not is_call_of_keras(operation):
        return None
    if isinstance(operation, keras.layers.Softmax):
        return "softmax"
    if isinstance(operation, LINEAR):
        return FUNCTIONS.get(operation.activation)
    if isinstance(operation, keras.layers.Activation):
        name = FUNCTIONS.get(operation.activation)
        return None if name == "linear" else name
    return None if is_layer(operation) else OPERATIONS.get(type(operation).__name__)


def is_layer(operation):
    return isinstance(operation, keras.layers.Layer)


def hands_on(operation):
    """Whether probabilities are still probabilities after an operation."""
    if not is_call_of_keras(operation):
        return False
    if isinstance(operation, keras.layers.Activation):
        return FUNCTIONS.get(operation.activation) == "linear"
    if isinstance(operation, SPATIAL):
        kind = getattr(operation, "interpolation", "nearest")
        return kind in BETWEEN_NEIGHBOURS
    if is_layer(operation):
        return isinstance(operation, (*SAME, *MOVING))
    return type(operation).__name__ in (*SAME_OPERATIONS, *MOVING_OPERATIONS)


def class_axis(step, name):
    """The axis with the classes right after an activation."""
    axis = getattr(step.operation, "axis", -1) if "softmax" in name else -1
    if isinstance(step.operation, LINEAR) and not last_channels(step.operation):
        axis = 1
    if isinstance(axis, list | tuple):
        axis = axis[0] if len(axis) == 1 else None
    rank = rank_of(step.result)
    if axis is None or rank is None:
        return axis
    return -1 if axis % rank == rank - 1 else axis % rank


def moved_axis(axis, step):
    """Where an axis is after a step that hands on what it is given."""
    operation, rank = step.operation, rank_of(step.result)
    kind = type(operation).__name__
    if axis is None or rank is None:
        return axis if axis == -1 and kind not in MOVING_NAMES else None
    if isinstance(operation, keras.layers.Permute):
        axis = operation.dims.index(axis % rank) + 1
        return -1 if axis == rank - 1 else axis
    if kind not in MOVING_NAMES:
        return axis
    same = axis == -1 and step.given.shape[-1] == step.result.shape[-1]
    return -1 if same and kind in ("Reshape", "Flatten") else None


MOVING_NAMES = {*MOVING_OPERATIONS, *(layer.__name__ for layer in MOVING)}


def rank_of(tensor):
    return None if tensor is None else len(tensor.shape)


def last_channels(layer):
    """Whether a layer's channels are in the last axis."""
    return getattr(layer, "data_format", None) != "channels_first"


def channels_first_width(model, shape):
    """Whether the classes seem to be in axis 1 of an output that a model returns.

    For models whose graph does not tell. All their layers that have a data format must
    say "channels_first", the length of axis 1 be the width of one of them, and that of
    the last axis not be the width of any.

    Args:
        model: a `keras.Model`.
        shape: of its output, with the batch.
    """
    layers = flatten_layers(model)
    if len(shape) < 3 or not any(getattr(x, "data_format", None) for x in layers):
        return False
    if any(last_channels(x) for x in layers if getattr(x, "data_format", None)):
        return False
    widths = {getattr(x, "filters", getattr(x, "units", None)) for x in layers} - {None}
    return shape[1] in widths and shape[-1] not in widths
