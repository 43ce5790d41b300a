"""What a step trains: nothing, or what has changed since it was compiled."""

import warnings

import keras
import numpy as np
import pytest
from keras import ops
from sequences import SequenceModel, images
from tiny import classifier, inputs, two_layers, weights_of

from keras_reward import GaussianPolicy, RewardTuning


def value(y_true, y_pred):
    return ops.mean(ops.cast(y_pred, "float32"), axis=-1)


def score(y_true, y_pred):
    return ops.cast(y_pred, "float32")


def tuner(model, **arguments):
    tuned = RewardTuning(model, **{"reward": score, "seed": 0, **arguments})
    tuned.compile(keras.optimizers.SGD(0.5))
    return tuned


def fit(tuned, x=None, **arguments):
    """The history of `fit`, and Keras's warnings that nothing is trained."""
    x = inputs(12) if x is None else x
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        history = tuned.fit(x, batch_size=5, verbose=0, **arguments).history
    text = "The model does not have any trainable weights."
    return history, [w for w in caught if str(w.message) == text]


class Lazy(keras.Model):
    """A model that a call builds."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(5)

    def call(self, x):
        return self.dense(x)


FROZEN = {
    "built": (classifier, lambda: inputs(12)),
    "not built": (Lazy, lambda: inputs(12)),
    "sequences": (SequenceModel, lambda: images(12)),
}


@pytest.mark.parametrize("case", FROZEN)
def test_nothing_trainable_warns_once_and_logs_on(case):
    make, data = FROZEN[case]
    model = make()
    model.trainable = False
    tuned = tuner(model, reward=value if case == "sequences" else score)
    history, warned = fit(tuned, data(), epochs=3)
    assert len(warned) == 1
    assert set(history) >= {"loss", "reward", "entropy", "reward_std"}
    assert np.isfinite(history["loss"]).all()
    before = weights_of(model)
    assert not fit(tuned, data())[1]
    tuned.compile("sgd")
    with pytest.warns(UserWarning, match="any trainable weights"):
        tuned.train_on_batch(data())
    for a, b in zip(before, weights_of(model), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_policy_may_have_the_only_trainable_weight():
    model = classifier()
    model.trainable = False
    policy = GaussianPolicy(stddev=0.5, learn_stddev=True)
    tuned = tuner(model, reward=value, policy=policy)
    assert not fit(tuned)[1]
    assert float(ops.convert_to_numpy(policy.log_stddev)) != pytest.approx(np.log(0.5))


CHANGES = {
    "adapters": lambda model: model.layers[0].enable_lora(rank=2),
    "frozen": lambda model: setattr(model.layers[0], "trainable", False),
    "another": lambda model: [
        setattr(layer, "trainable", not layer.trainable) for layer in model.layers
    ],
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_trainable_may_not_change_unseen(change):
    model = two_layers()
    model.layers[2].trainable = False
    tuned = tuner(model, reward=value)
    tuned.fit(inputs(), verbose=0)
    CHANGES[change](model)
    before = weights_of(model)
    for method in (tuned.fit, tuned.train_on_batch):
        with pytest.raises(ValueError, match=r"Compile it again.*Received: \d train"):
            method(inputs())
    for a, b in zip(before, weights_of(model), strict=True):
        np.testing.assert_array_equal(a, b)
    tuned.compile(keras.optimizers.SGD(0.5))
    tuned.fit(inputs(), epochs=2, verbose=0)  # the first has no gradient for A in A B
    changed = [v for v, old in zip(model.weights, before, strict=True) if moved(v, old)]
    assert {v.path for v in changed} == {v.path for v in model.trainable_weights}


def moved(variable, before):
    return np.abs(ops.convert_to_numpy(variable.value) - before).max() > 0


def test_what_is_trainable_may_change_before_the_first_step():
    model = two_layers()
    tuned = tuner(model, reward=value)
    model.layers[0].trainable = False
    before = weights_of(model)
    tuned.fit(inputs(), verbose=0)
    same = [np.array_equal(*pair) for pair in zip(before, weights_of(model))]  # noqa: B905
    assert same == [True, True, False, False]
