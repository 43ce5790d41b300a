"""What the layers of a model tell about its output."""

import keras
import pytest
from keras import layers, ops

from keras_reward.policies.activations import last_activation, symbolic_output


def ends_in(*last, shape=(4,)):
    """A functional model that ends in some layers or functions."""
    x = y = keras.Input(shape)
    for layer in last:
        y = layer(y)
    return keras.Model(x, y)


def softmax_segmenter():
    """As KerasCV's: the softmax stands in an inner model, before an upsampling."""
    head = layers.Conv2D(3, 1, activation="softmax")
    inner = keras.Sequential([head, layers.UpSampling2D(2, interpolation="bilinear")])
    return keras.Sequential([keras.Input((4, 4, 3)), inner])


def shared_head():
    """The head is called twice; the second call is followed by a softmax."""
    head, x = layers.Dense(3, activation="sigmoid"), keras.Input((3,))
    return keras.Model(x, ops.softmax(head(layers.Dense(3)(head(x)))))


def out_of_order():
    """The layer that makes the output is not the last one in the list of layers."""
    x = keras.Input((4,))
    middle = layers.Dense(4)(x)
    gate = layers.Dense(4, activation="sigmoid")(layers.Dense(4)(middle))
    return keras.Model(x, {"b": middle, "a": gate})


def inner_called_twice():
    inner, x = ends_in(layers.Dense(4, activation="softmax")), keras.Input((4,))
    return keras.Model(x, inner(inner(x)))


@keras.saving.register_keras_serializable(package="keras_reward_tests")
class SoftmaxDense(layers.Dense):
    def call(self, inputs):
        return ops.softmax(super().call(inputs))


class Rerun(keras.Model):
    """A functional model whose `call` is not that of its graph."""

    def __init__(self):
        x = keras.Input((4,))
        super().__init__(x, layers.Dense(3)(x))

    def call(self, x):
        return ops.softmax(super().call(x))


class Subclassed(keras.Model):
    """It owns a sigmoid gate, and returns logits."""

    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(3)
        self.gate = layers.Dense(3, activation="sigmoid")

    def call(self, x):
        return self.dense(x) * self.gate(x)


GRID = (4, 4, 3)
MODELS = {
    "dense": (lambda: ends_in(layers.Dense(3)), ("linear", -1)),
    "activation of a layer": (
        lambda: ends_in(layers.Dense(3, activation="softmax")),
        ("softmax", -1),
    ),
    "function of ops as activation": (
        lambda: ends_in(layers.Dense(3, activation=ops.softmax)),
        ("softmax", -1),
    ),
    "function of ops": (lambda: ends_in(layers.Dense(3), ops.sigmoid), ("sigmoid", -1)),
    "function of activations": (
        lambda: ends_in(layers.Dense(3), keras.activations.softmax),
        ("softmax", -1),
    ),
    "cast": (
        lambda: ends_in(
            layers.Dense(3, activation="softmax"),
            layers.Activation("linear", dtype="float32"),
            lambda y: ops.cast(y, "float16"),
        ),
        ("softmax", -1),
    ),
    "dropout and identity": (
        lambda: ends_in(
            layers.Dense(3, activation="hard_sigmoid"),
            layers.Dropout(0.5),
            layers.Identity(),
        ),
        ("hard_sigmoid", -1),
    ),
    "log_softmax": (
        lambda: ends_in(layers.Dense(3), layers.Activation("log_softmax")),
        ("log_softmax", -1),
    ),
    "inner model": (softmax_segmenter, ("softmax", -1)),
    "unbuilt": (
        lambda: keras.Sequential([layers.Dense(3), layers.Softmax()]),
        ("softmax", -1),
    ),
    "shared head": (shared_head, ("softmax", -1)),
    "inner model called twice": (inner_called_twice, ("softmax", -1)),
    "softmax over another axis": (
        lambda: ends_in(layers.Conv2D(5, 1), layers.Softmax(1), shape=GRID),
        ("softmax", 1),
    ),
    "that axis is moved to the end": (
        lambda: ends_in(
            layers.Conv2D(5, 1),
            layers.Softmax(1),
            layers.Permute((2, 3, 1)),
            shape=GRID,
        ),
        ("softmax", -1),
    ),
    "classes stay together": (
        lambda: ends_in(
            layers.Conv2D(5, 1, activation="softmax"),
            layers.Reshape((16, 5)),
            shape=GRID,
        ),
        ("softmax", -1),
    ),
    "classes are torn apart": (
        lambda: ends_in(layers.Dense(6, activation="softmax"), layers.Reshape((2, 3))),
        ("softmax", None),
    ),
    "channels first": (
        lambda: ends_in(
            layers.Conv2D(5, 1, data_format="channels_first"), shape=(3, 4, 4)
        ),
        ("linear", 1),
    ),
    "channels first, moved": (
        lambda: ends_in(
            layers.Conv2D(5, 1, data_format="channels_first"),
            layers.Permute((2, 3, 1)),
            shape=(3, 4, 4),
        ),
        ("linear", -1),
    ),
    "relu": (lambda: ends_in(layers.Dense(3, activation="relu")), None),
    "function of the user's": (
        lambda: ends_in(layers.Dense(3, activation=lambda x: ops.softmax(x))),
        None,
    ),
    "interpolation that overshoots": (
        lambda: ends_in(
            layers.Conv2D(3, 1, activation="softmax"),
            layers.UpSampling2D(2, interpolation="bicubic"),
            shape=GRID,
        ),
        None,
    ),
    "sum of two": (
        lambda: ends_in(lambda x: layers.Add()([layers.Dense(3)(x)] * 2)),
        None,
    ),
    "own layer": (lambda: ends_in(SoftmaxDense(3)), None),
    "own call": (Rerun, None),
    "subclassed": (Subclassed, None),
}


@pytest.mark.parametrize("case", MODELS)
def test_last_activation(case):
    make, expected = MODELS[case]
    last = last_activation(make())
    assert (last and (last.name, last.axis)) == expected


def test_each_output_has_its_own():
    model = out_of_order()
    assert last_activation(model) is None  # which one?
    assert last_activation(model, ("a",)).name == "sigmoid"
    assert last_activation(model, ("b",)).name == "linear"
    for path in (("c",), (0,), ("a", 0)):
        assert last_activation(model, path) is None
    x = keras.Input((4,))
    model = keras.Model(x, [layers.Dense(2)(x), {"a": ops.softmax(x)}])
    assert last_activation(model, (0,)).name == "linear"
    assert last_activation(model, (1, "a")).name == "softmax"
    assert symbolic_output(model, (1,)) is None
    assert symbolic_output(model, (2,)) is None
