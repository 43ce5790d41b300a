"""An exported tuning is the greedy model, and returns what `predict` does."""

import tempfile

import keras
import numpy as np
import pytest
from keras import ops
from sequences import SequenceModel, images
from tiny import classifier, inputs, randomize

from keras_reward import CategoricalPolicy, Reward, RewardTuning

BACKEND = keras.config.backend()
# On JAX, it needs TensorFlow, which these processes do not have otherwise.
pytestmark = [pytest.mark.slow] + [pytest.mark.hub] * (BACKEND == "jax")


@keras.saving.register_keras_serializable(package="keras_reward_tests")
class Weighted(Reward):
    """A reward with weights of its own, which do not belong into what is deployed."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.large = keras.Variable(np.zeros(1000, "float32"), trainable=False)

    @property
    def variables(self):
        return [self.large]

    def call(self, y_true, y_pred):
        leaf = ops.cast(keras.tree.flatten(y_pred)[0], "float32")
        return ops.sum(ops.reshape(leaf, (leaf.shape[0], -1)), -1) + self.large[0]


def as_parts(x, samples):
    return {"ids": samples, "half": 0.5 * ops.cast(samples, "float32")}


def of_two_inputs():
    parts = {"a": keras.Input((3,), name="a"), "b": keras.Input((2,), name="b")}
    x = keras.layers.Concatenate()([parts["a"], parts["b"]])
    return randomize(keras.Model(parts, keras.layers.Dense(5)(x)))


TWO = {"a": inputs(6), "b": inputs(6, 2, seed=1)}
CASES = {
    "classes": (classifier, {}, inputs(6)),
    "decoded": (classifier, {"policy": CategoricalPolicy(codec=as_parts)}, inputs(6)),
    "two inputs": (of_two_inputs, {}, TWO),
    "sequences": (SequenceModel, {}, images(6)),
}


def load_back(path, x):
    """What the exported model at `path` returns."""
    if BACKEND == "torch":
        import torch

        module = torch.export.load(path).module()
        return module(keras.tree.map_structure(torch.from_numpy, x))
    import tensorflow as tf

    loaded = tf.saved_model.load(path)
    sizes = [np.prod(variable.shape) for variable in loaded.variables]
    assert all(size < 1000 for size in sizes)
    return loaded.serve(keras.tree.map_structure(tf.constant, x))


def check(case):
    make, arguments, x = CASES[case]
    tuned = RewardTuning(make(), reward=Weighted(), seed=0, **arguments)
    tuned.compile(keras.optimizers.SGD(0.5))
    if case == "sequences":
        with pytest.raises(ValueError, match=r"not known yet.*InputSpec"):
            tuned.export("nowhere")
    tuned.fit(x, batch_size=3, verbose=0)
    expected = tuned.predict(x, verbose=0)
    form = {"format": "torch"} if BACKEND == "torch" else {}
    if BACKEND == "torch":  # whose exports have one input at a time, unless asked
        x, expected = (
            keras.tree.map_structure(lambda a: a[:1], n) for n in (x, expected)
        )
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/tuned" + (".pt2" if BACKEND == "torch" else "")
        tuned.export(path, verbose=False, **form)
        outputs = load_back(path, x)
    leaves = [keras.tree.flatten(nest) for nest in (outputs, expected)]
    for output, known in zip(*leaves, strict=True):
        np.testing.assert_allclose(np.asarray(output), known, rtol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_an_export_returns_what_predict_does(hub, case):
    hub(check, case) if BACKEND == "jax" else check(case)
