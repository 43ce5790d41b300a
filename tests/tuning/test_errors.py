"""Every error message: what was expected, what was received."""

import re
import warnings

import keras
import numpy as np
import pytest
from keras import ops
from tiny import classifier, inputs, weights_of

from keras_reward import (
    CategoricalPolicy,
    GaussianPolicy,
    Reward,
    RewardTuning,
)


def good(y_true, y_pred):
    return ops.cast(y_pred, "float32")


def fit(reward, model=None, x=None, **arguments):
    tuned = RewardTuning(model or classifier(), reward=reward, **arguments)
    tuned.compile("sgd")
    tuned.fit(inputs() if x is None else x, batch_size=16, verbose=0)


def activated_model(activation):
    return classifier(activation=activation)


def needs_targets(y_true, y_pred):
    return ops.cast(ops.equal(y_true, y_pred), "float32")


CASES = {
    "no reward": (
        lambda: RewardTuning(classifier()),
        "needs a reward.*'colorfulness'.*Received: reward=None",
    ),
    "no reward, unbound": (lambda: RewardTuning(), "needs a reward"),
    "not a model": (
        lambda: RewardTuning("resnet", reward=good),
        "tunes a keras.Model. Received: 'resnet'",
    ),
    "unbound fit": (
        lambda: RewardTuning(reward=good).fit(inputs()),
        r"no model yet.*RewardTuning\(reward=...\)\(model\).*Received: `fit`",
    ),
    "unbound compile": (
        lambda: RewardTuning(reward=good).compile("sgd"),
        "no model yet.*Received: `compile`",
    ),
    "unbound call": (
        lambda: RewardTuning(reward=good)(inputs()),
        "no model yet.*Received: ndarray",
    ),
    "unknown reward": (
        lambda: RewardTuning(classifier(), reward="colourfulness"),
        "Known: 'colorfulness', 'hue_entropy'.*'vividness'.*'colourfulness'",
    ),
    "unknown policy": (
        lambda: RewardTuning(classifier(), reward=good, policy="softmax"),
        "'auto', 'categorical', 'bernoulli', 'gaussian'.*policy='softmax'",
    ),
    "unknown baseline": (
        lambda: RewardTuning(classifier(), reward=good, baseline="loo"),
        "'leave_one_out', 'greedy'.*None, a function.*baseline='loo'",
    ),
    "unknown update": (
        lambda: RewardTuning(reward=good, update="last"),
        r"\('all', 'first'\). Received: update='last'",
    ),
    "one sample, leave one out": (
        lambda: RewardTuning(classifier(), reward=good, num_samples=1),
        "`num_samples` must be at least 2.*Received: num_samples=1",
    ),
    "no samples": (
        lambda: RewardTuning(reward=good, num_samples=0, baseline=None),
        "positive int. Received: num_samples=0",
    ),
    "temperature zero": (
        lambda: RewardTuning(classifier(), reward=good, temperature=0.0),
        "`temperature` must be a positive number. Received: temperature=0.0",
    ),
    "top-k sampling": (
        lambda: RewardTuning(classifier(), reward=good, top_k=50),
        "whole distribution.*Remove the argument.*Received: top_k=50",
    ),
    "top-p policy": (
        lambda: CategoricalPolicy(top_p=0.9),
        "whole distribution.*Received: top_p=0.9",
    ),
    "reward of wrong length": (
        lambda: fit(lambda y_true, y_pred: good(y_true, y_pred)[::2]),
        r"'lambda' must return one number per row.*Expected: shape \(\d+,\). "
        r"Received: shape \(\d+,\)",
    ),
    "reward that would broadcast": (
        lambda: fit(lambda y_true, y_pred: good(y_true, y_pred)[:1]),
        r"nothing is broadcast.*Received: shape \(1,\)",
    ),
    "reward of the whole batch": (
        lambda: fit(lambda y_true, y_pred: ops.mean(good(y_true, y_pred))),
        r"One number for the whole batch.*reduction=None.*Received: shape \(\)",
    ),
    "reward of wrong rank": (
        lambda: fit(lambda y_true, y_pred: good(y_true, y_pred)[:, None]),
        r"Expected: shape \(\d+,\). Received: shape \((\d+|None), 1\)",
    ),
    "reward of wrong dtype": (
        lambda: fit(lambda y_true, y_pred: y_pred),
        "must return floats.*Expected: a float dtype. Received: int32",
    ),
    "boolean reward": (
        lambda: fit(lambda y_true, y_pred: y_pred == 1),
        "Expected: a float dtype. Received: bool",
    ),
    "no targets": (
        lambda: fit(needs_targets),
        r"'needs_targets' failed, and the data has no targets.*pass `\(x, y\)`.*"
        "Received: y_true=None",
    ),
    "output of rank one": (
        lambda: fit(
            good,
            keras.Sequential(
                [keras.Input((3,)), keras.layers.Dense(1), keras.layers.Reshape(())]
            ),
        ),
        r"CategoricalPolicy expects.*\(batch, ..., classes\).*Received: shape \(",
    ),
    "one class": (
        lambda: fit(good, classifier(classes=1)),
        'at least two classes.*policy="bernoulli".*policy="gaussian"',
    ),
    "integer output": (
        lambda: fit(
            good,
            keras.Sequential(
                [keras.Input((3,)), keras.layers.Rescaling(1.0, dtype="int32")]
            ),
        ),
        "one tensor of floats.*dtype int32",
    ),
    "several outputs": (
        lambda: fit(good, two_outputs()),
        "one tensor of floats.*Received: a list",
    ),
    "sigmoid read as one class of several": (
        lambda: RewardTuning(activated_model("sigmoid"), reward=good),
        r"CategoricalPolicy reads logits, or probabilities after a softmax.*ends in a "
        r'sigmoid.*policy="bernoulli".*Received: last layer',
    ),
    "softmax read as yes or no": (
        lambda: RewardTuning(
            activated_model("softmax"), reward=good, policy="bernoulli"
        ),
        r"BernoulliPolicy reads logits, or probabilities after a sigmoid.*ends in a "
        r'softmax.*policy="categorical".*Received: last layer',
    ),
    "unknown from_logits": (
        lambda: CategoricalPolicy(from_logits="no"),
        "True, False, or \"auto\". Received: from_logits='no'",
    ),
    "codec that is none": (
        lambda: CategoricalPolicy(codec=3),
        r"method `decode\(inputs, samples\)`.*Received: codec=3",
    ),
    "standard deviation zero": (
        lambda: GaussianPolicy(stddev=0.0),
        "positive number. Received: stddev=0.0",
    ),
    "policy of another model": (
        lambda: [CategoricalPolicy().bind(classifier()).bind(classifier())],
        "belongs to another model already",
    ),
    "reward that is none": (
        lambda: RewardTuning(classifier(), reward=3.0),
        "must be a Reward or a function.*Received: 3.0",
    ),
    "part named like a metric": (
        lambda: RewardTuning(classifier(), reward=BadPart()),
        r"RewardTuning's own metrics.*Received: \['entropy'\]",
    ),
    "loss in compile": (
        lambda: compile_and_fit(loss="mse"),
        "objective is the reward.*Received: loss='mse'",
    ),
    "sample weight per position": (
        lambda: compile_and_fit(np.zeros(16), np.ones((16, 2))),
        r"one number for each input.*Received: shape \((16|None), 2\)",
    ),
    "sample weight without targets": (
        lambda: compile_and_fit(sample_weight=np.ones(16)),
        "Keras drops `sample_weight` where there is no `y`",
    ),
}


class BadPart(Reward):
    component_names = ("entropy",)


def two_outputs():
    x = keras.Input((3,))
    return keras.Model(x, [keras.layers.Dense(2)(x), keras.layers.Dense(2)(x)])


def compile_and_fit(y=None, sample_weight=None, **arguments):
    tuned = RewardTuning(classifier(), reward=good)
    tuned.compile("sgd", **arguments)
    tuned.fit(inputs(), y, sample_weight=sample_weight, verbose=0)


@pytest.mark.parametrize("case", CASES)
def test_message(case):
    function, pattern = CASES[case]
    with pytest.raises(ValueError) as error:
        function()
    assert re.search(pattern, str(error.value), re.DOTALL), str(error.value)


def test_unknown_argument_is_refused():
    with pytest.raises(TypeError, match="samples"):
        RewardTuning(classifier(), reward=good, samples=4)
    with pytest.raises(TypeError, match="samples"):
        RewardTuning(reward=good, samples=4)


def test_an_error_loses_no_weights():
    model = classifier()
    before = weights_of(model)
    tuned = RewardTuning(model, reward=lambda y_true, y_pred: y_pred)
    tuned.compile("sgd")
    for method in (tuned.fit, tuned.evaluate, tuned.train_on_batch):
        with pytest.raises(ValueError, match="float"):
            method(inputs())
        for a, b in zip(weights_of(model), before, strict=True):
            np.testing.assert_array_equal(a, b)


def test_own_error_of_a_reward_with_targets_is_raised_as_it_is():
    def broken(y_true, y_pred):
        raise KeyError("own")

    tuned = RewardTuning(classifier(), reward=broken)
    tuned.compile("sgd")
    with pytest.raises(KeyError, match="own"):
        tuned.fit(inputs(), np.zeros(16, "int32"), verbose=0)


@pytest.mark.chance
def test_reward_that_is_nan_for_some_rows_trains_on():
    def sometimes(y_true, y_pred):
        score = ops.cast(y_pred == 3, "float32")
        return ops.where(y_pred == 0, float("nan"), score)

    tuned = RewardTuning(classifier(), reward=sometimes, num_samples=4, seed=0)
    tuned.compile(keras.optimizers.Adam(0.05))
    x = inputs(64)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        history = tuned.fit(x, epochs=30, verbose=0).history
    assert 0.0 < history["no_reward"][0] < 1.0
    assert np.isfinite(history["loss"]).all()
    assert np.isfinite(history["reward"]).all()
    assert history["reward"][-1] > history["reward"][0]
    assert all(np.isfinite(weight).all() for weight in weights_of(tuned.model))


@pytest.mark.parametrize("baseline", ["leave_one_out", "greedy", "moving_average"])
def test_reward_that_is_nan_for_all_rows_warns_once_and_changes_nothing(baseline):
    def never(y_true, y_pred):
        return ops.cast(y_pred, "float32") * float("nan")

    model = classifier()
    before = weights_of(model)
    tuned = RewardTuning(model, reward=never, baseline=baseline)
    tuned.compile(keras.optimizers.Adam(0.1))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        history = tuned.fit(inputs(), epochs=3, batch_size=8, verbose=0).history
    messages = [str(w.message) for w in caught if w.category is UserWarning]
    assert len([m for m in messages if "NaN or infinite for every sample" in m]) == 1
    assert history["no_reward"] == [1.0] * 3
    for a, b in zip(weights_of(model), before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_loading_an_unregistered_reward_says_what_to_do(tmp_path):
    class Unregistered(Reward):
        def call(self, y_true, y_pred):
            return good(y_true, y_pred)

    tuned = RewardTuning(classifier(), reward=Unregistered())
    tuned.compile("sgd")
    tuned.save(tmp_path / "tuned.keras")
    with pytest.raises((TypeError, ValueError)) as error:
        keras.models.load_model(tmp_path / "tuned.keras")
    assert "Unregistered" in str(error.value)
    assert "register_keras_serializable" in str(error.value)
    custom = {"Unregistered": Unregistered}
    loaded = keras.models.load_model(tmp_path / "tuned.keras", custom_objects=custom)
    assert isinstance(loaded.reward, Unregistered)


def test_a_file_of_the_model_alone_goes_into_the_model(tmp_path):
    model = classifier()
    model.save_weights(tmp_path / "first.weights.h5")
    model.save(tmp_path / "first.keras")
    tuned = RewardTuning(classifier(), reward=good)
    for name in ("first.weights.h5", "first.keras"):
        with pytest.raises(ValueError, match=r"`tuned\.model\.load_weights\(path\)`"):
            tuned.load_weights(tmp_path / name)
        tuned.model.load_weights(tmp_path / name)


class OfSmallNumbers:
    """A codec that reads inputs up to 9."""

    def check_inputs(self, x):
        if np.max(x) > 9:
            raise ValueError("Expected inputs up to 9.")

    def decode(self, x, samples):
        return samples


@pytest.mark.parametrize("kind", ["fit", "validation", "evaluate", "predict"])
def test_a_codec_refuses_inputs_wherever_they_come_in(kind):
    tuned = RewardTuning(
        classifier(),
        reward=lambda y_true, y_pred: ops.cast(y_pred, "float32"),
        policy=CategoricalPolicy(codec=OfSmallNumbers()),
    )
    tuned.compile("sgd")
    x, large = inputs(4), inputs(4) + 100.0
    with pytest.raises(ValueError, match="up to 9"):
        if kind == "validation":
            tuned.fit(x, validation_data=(large, np.zeros(4)), verbose=0)
        else:
            getattr(tuned, kind)(large, verbose=0)
