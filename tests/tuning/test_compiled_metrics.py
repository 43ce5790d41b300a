"""Metrics given to `compile` compare targets with what `predict` returns."""

import keras
import numpy as np
import pytest
from keras import ops
from sequences import SequenceModel, images
from tiny import classifier, inputs, randomize

from keras_reward import (
    BernoulliPolicy,
    CategoricalPolicy,
    GaussianPolicy,
    RewardTuning,
)
from keras_reward.tuning.greedy_model import known_inputs

X = inputs(12)
Y = np.arange(12) % 5
metrics = keras.metrics


@keras.saving.register_keras_serializable(package="keras_reward_tests")
def first(y_true, y_pred):
    """A reward of any outputs."""
    leaf = ops.cast(keras.tree.flatten(y_pred)[0], "float32")
    return ops.mean(ops.reshape(leaf, (ops.shape(leaf)[0], -1)), axis=-1)


def pixels(channels):
    """A model of 2 x 2 pixels: `(batch, 3)` to `(batch, 2, 2, channels)`."""
    layers = [keras.Input((3,)), keras.layers.Dense(4 * channels)]
    layers.append(keras.layers.Reshape((2, 2, channels)))
    return randomize(keras.Sequential(layers))


def tuner(model, given, policy="auto", weighted=None):
    tuned = RewardTuning(model, reward=first, policy=policy, seed=0)
    tuned.compile("sgd", metrics=given, weighted_metrics=weighted)
    return tuned


def logs(tuned, x, y, **arguments):
    return tuned.evaluate(x, y, verbose=0, batch_size=5, return_dict=True, **arguments)


IDS = {
    "classes": (lambda: classifier(), "auto", X, Y),
    "classes in a column": (lambda: classifier(), "auto", X, Y[:, None]),
    "pixels": (lambda: pixels(3), "auto", X, np.arange(48).reshape(12, 2, 2) % 3),
    "masks": (
        lambda: pixels(1),
        BernoulliPolicy(),
        X,
        np.arange(48.0).reshape(12, 2, 2, 1) % 2,
    ),
    "tokens": (SequenceModel, "auto", images(12), np.arange(36).reshape(12, 3) % 4),
}


@pytest.mark.parametrize("case", IDS)
def test_accuracy_is_the_share_of_equal_ids(case):
    make, policy, x, y = IDS[case]
    tuned = tuner(make(), ["accuracy", metrics.Accuracy(name="same")], policy, ["acc"])
    outputs = tuned.predict(x, verbose=0)
    equal = outputs == y.reshape(outputs.shape)
    assert 0 < equal.mean() < 1
    got = logs(tuned, x, y)
    for name in ("accuracy", "same", "acc"):
        assert got[name] == pytest.approx(equal.mean())
    weight = np.arange(12.0)
    of_rows = equal.reshape(12, -1).mean(1)
    got = logs(tuned, x, y, sample_weight=weight)
    assert got["accuracy"] == pytest.approx(equal.mean())
    assert got["acc"] == pytest.approx(np.average(of_rows, weights=weight), rel=1e-5)


def test_accuracy_of_a_validation_and_of_a_loaded_file(tmp_path):
    tuned = tuner(classifier(), ["accuracy"])
    history = tuned.fit(X, Y, validation_data=(X, Y), epochs=2, verbose=0).history
    expected = (tuned.predict(X, verbose=0) == Y).mean()
    assert history["val_accuracy"][-1] == pytest.approx(expected)
    assert "accuracy" not in history
    tuned.save(tmp_path / "tuned.keras")
    loaded = keras.models.load_model(tmp_path / "tuned.keras")
    assert logs(loaded, X, Y)["accuracy"] == pytest.approx(expected)


def as_parts(x, samples):
    return {"ids": samples, "score": ops.cast(samples, "float32")}


@pytest.mark.parametrize("given", [{"ids": "accuracy"}, [["accuracy"], ["mae"]]])
def test_metrics_of_several_outputs(given):
    tuned = tuner(classifier(), given, CategoricalPolicy(codec=as_parts))
    y = {"ids": Y, "score": Y.astype("float32"), "unused": Y}
    expected = (tuned.predict(X, verbose=0)["ids"] == Y).mean()
    assert logs(tuned, X, y)["ids_accuracy"] == pytest.approx(expected)
    del y["score"]
    with pytest.raises(ValueError, match=r"structure.*y of \['ids', 'unused'\]"):
        logs(tuned, X, y)


def test_what_compares_ids_or_numbers_is_left_alone():
    tuned = tuner(classifier(), ["mae", metrics.MeanIoU(5, name="iou")])
    outputs = tuned.predict(X, verbose=0)
    got = tuned.evaluate(X, Y, verbose=0, return_dict=True)
    assert got["mae"] == pytest.approx(np.abs(outputs - Y).mean())
    ious = [
        ((outputs == k) & (k == Y)).sum() / ((outputs == k) | (k == Y)).sum()
        for k in set(outputs) | set(Y)
    ]
    assert got["iou"] == pytest.approx(np.mean(ious))
    y = np.arange(48.0).reshape(12, 2, 2, 1) % 2
    given = ["binary_accuracy", metrics.Precision(name="precision")]
    masks = tuner(pixels(1), given, BernoulliPolicy())
    outputs = masks.predict(X, verbose=0)
    got = logs(masks, X, y)
    assert got["binary_accuracy"] == pytest.approx((outputs == y).mean())
    assert got["precision"] == pytest.approx(y[outputs == 1].mean())
    yes = Y % 2  # two classes are a yes or no too
    two = tuner(classifier(classes=2), [metrics.Recall(name="recall")])
    recall = two.predict(X, verbose=0)[yes == 1].mean()
    assert logs(two, X, yes)["recall"] == pytest.approx(recall)


def test_decoded_scores_have_an_argmax():
    def scores(x, samples):
        return ops.one_hot(samples, 5)

    given = [metrics.SparseCategoricalAccuracy(), "categorical_accuracy"]
    for metric, y in zip(given, (Y, np.eye(5)[Y]), strict=True):
        tuned = tuner(classifier(), [metric], CategoricalPolicy(codec=scores))
        expected = (tuned.predict(X, verbose=0).argmax(-1) == Y).mean()
        own = {"loss", "reward", "no_reward", "invalid_inputs"}
        (name,) = logs(tuned, X, y).keys() - own
        assert logs(tuned, X, y)[name] == pytest.approx(expected)


REFUSED = {
    "sparse_categorical_accuracy": r"`predict` returns the ids.*metrics.Accuracy\(\)",
    "categorical_accuracy": "share of equal ids.*CategoricalAccuracy, outputs",
    "kl_divergence": "No such metric reads ids; or measure the model itself",
    metrics.SparseTopKCategoricalAccuracy(2): "share of equal ids",
    metrics.SparseCategoricalCrossentropy(from_logits=True): "No such metric",
    metrics.OneHotMeanIoU(5): r"MeanIoU\(num_classes\)",
    metrics.F1Score(): "share of equal ids",
    metrics.AUC(): "No such metric",
    metrics.Precision(top_k=1): "share of equal ids",
    metrics.sparse_categorical_accuracy: "share of equal ids",
    keras.losses.SparseCategoricalCrossentropy(): "No such metric",
    keras.losses.binary_crossentropy: "No such metric",
    "binary_accuracy": "needs zeros and ones.*MeanIoU",
    metrics.TruePositives(): "needs zeros and ones",
}


@pytest.mark.parametrize("metric", REFUSED, ids=lambda metric: str(metric)[:24])
@pytest.mark.parametrize("argument", ["given", "weighted"])
def test_what_reads_scores_is_refused(metric, argument):
    tuned = tuner(classifier(), **{"given": None, argument: [metric]})
    with pytest.raises(ValueError, match=f"(?s){REFUSED[metric]}"):
        logs(tuned, X, Y)
    with pytest.raises(ValueError, match=r"outputs of shape.*dtype int32"):
        tuned.fit(X, Y, verbose=0)  # before an epoch has passed


def test_accuracy_of_numbers_is_refused():
    tuned = tuner(classifier(), ["accuracy"], GaussianPolicy())
    with pytest.raises(ValueError, match=r"MeanAbsoluteError.*dtype float32"):
        logs(tuned, X, np.zeros((12, 5)))


def test_targets_that_are_no_ids_are_refused():
    tuned = tuner(classifier(), ["accuracy"])
    with pytest.raises(ValueError, match=r"argmax\(-1\).*y of shape \((5|None), 5\)"):
        logs(tuned, X, np.eye(5)[Y])
    with pytest.raises(ValueError, match=r"structure.*y of NoneType"):
        tuned.fit(X, verbose=0)
    tuner(classifier(), []).fit(X, verbose=0)


def heads():
    x = keras.Input((3,))
    outputs = {"ids": keras.layers.Dense(5)(x), "yes": keras.layers.Dense(1)(x)}
    return randomize(keras.Model(x, outputs))


def test_metrics_of_an_output_fit_its_own_policy():
    policy = {"ids": "categorical", "yes": "bernoulli"}
    y = {"ids": Y, "yes": Y[:, None] % 2}
    tuned = tuner(heads(), {"ids": metrics.Precision()}, policy)
    with pytest.raises(ValueError, match="needs zeros and ones"):
        logs(tuned, X, y)
    given = {"yes": metrics.Precision(name="precision"), "ids": "accuracy"}
    tuned = tuner(heads(), given, policy)
    outputs, got = tuned.predict(X, verbose=0), logs(tuned, X, y)
    said = outputs["yes"] == 1
    assert got["yes_precision"] == pytest.approx(y["yes"][said].mean())
    assert got["ids_accuracy"] == pytest.approx((outputs["ids"] == Y).mean())


def test_inputs_of_several_outputs_are_known_before_a_run():
    policy = {"ids": "categorical", "yes": "bernoulli"}
    assert known_inputs(tuner(heads(), None, policy)).shape == (None, 3)
