"""Tiny models and data that several tests share."""

import keras
import numpy as np


def randomize(model, seed=0, scale=0.5):
    """Gives a built model normal weights, the same on every backend.

    Not by `keras.utils.set_random_seed`, which imports TensorFlow where it can.
    """
    generator = np.random.default_rng(seed)
    shapes = [weight.shape for weight in model.weights]
    model.set_weights([generator.normal(0.0, scale, shape) for shape in shapes])
    return model


def classifier(classes=5, features=3, positions=None, **dense):
    """A linear model: `(batch, features)` to `(batch, [positions,] classes)` logits."""
    units = classes * (positions or 1)
    layers = [keras.Input((features,)), keras.layers.Dense(units, **dense)]
    if positions is not None:
        layers.append(keras.layers.Reshape((positions, classes)))
    return randomize(keras.Sequential(layers))


def two_layers(positions=4, classes=5, dropout=0.0, dropout_seed=1):
    """`classifier` with a hidden layer, and dropout after it."""
    return randomize(
        keras.Sequential(
            [
                keras.Input((3,)),
                keras.layers.Dense(32, activation="relu"),
                keras.layers.Dropout(dropout, seed=dropout_seed),
                keras.layers.Dense(positions * classes),
                keras.layers.Reshape((positions, classes)),
            ]
        )
    )


def inputs(batch=16, features=3, seed=0):
    """Standard normal inputs `(batch, features)`."""
    return np.random.default_rng(seed).normal(size=(batch, features)).astype("float32")


def to_numpy(tensor):
    """A NumPy array from a tensor of any backend."""
    tensor = keras.ops.convert_to_tensor(tensor)
    return keras.ops.convert_to_numpy(keras.ops.stop_gradient(tensor))


def weights_of(model):
    """Copies of a model's weights, as NumPy arrays."""
    return [np.array(to_numpy(weight)) for weight in model.weights]


def compiled(function, xla=False):
    """A function of arrays, compiled as the backend's training step would be.

    Args:
        function: takes and returns nests of tensors.
        xla: on TensorFlow, compile through XLA, which JAX always does.

    Returns:
        The compiled function; on torch, which runs eagerly, the function itself.
    """
    if keras.config.backend() == "jax":
        import jax

        return jax.jit(function)
    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        return tf.function(function, jit_compile=xla)
    return function
