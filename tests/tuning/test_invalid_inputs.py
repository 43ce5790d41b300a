"""An input with NaN or an infinity has no influence."""

import warnings

import keras
import numpy as np
import pytest
from detectors import FewOfClass, TinyDetector, features, targets, tiny_detector
from keras import ops
from tiny import classifier, inputs, randomize, to_numpy, weights_of

from keras_reward import (
    KL,
    ConfidenceLoss,
    DetectionPolicy,
    Entropy,
    MapReward,
    MaximumLikelihood,
    MeanIoUReward,
    RewardTuning,
    Term,
)

NAN, INF = float("nan"), float("inf")


def class_three(y_true, y_pred):
    return ops.cast(y_pred == 3, "float32")


class Own(Term):
    """A user's term that knows nothing of weights."""

    def loss(self, update):
        return -ops.mean(update.likelihood.log_prob)


def tuner(model=None, reward=class_three, terms=(), **arguments):
    tuned = RewardTuning(
        model or classifier(), reward=reward, terms=list(terms), seed=0, **arguments
    )
    tuned.compile(keras.optimizers.SGD(0.5))
    return tuned


def with_invalid(x, value, rows=(2, 5)):
    x = x.copy()
    for row in rows:
        x[row].reshape(-1)[row % x[row].size] = value
    return x


ROWS, VALID = [2, 5], [0, 1, 3, 4, 6, 7]
WEIGHT = np.ones(8, "float32")
WEIGHT[ROWS] = 0.0


def assert_equal(weights, others):
    for one, other in zip(weights, others, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("value", [NAN, -INF])
def test_it_counts_as_zeros_of_weight_zero(value):
    x, y = inputs(8), np.arange(8) % 5
    zeros = x.copy()
    zeros[ROWS] = 0.0
    runs = []
    for given, weight in [(with_invalid(x, value), None), (zeros, WEIGHT)]:
        tuned = tuner(terms=[MaximumLikelihood(0.5)])
        data = {"y": y, "sample_weight": weight, "batch_size": 8}
        logs = tuned.fit(given, **data, shuffle=False, verbose=0).history
        runs.append((logs, weights_of(tuned.model)))
    assert runs[0][0]["invalid_inputs"] == runs[0][0]["no_reward"] == [0.25]
    np.testing.assert_allclose(runs[0][0]["loss"], runs[1][0]["loss"], rtol=1e-5)
    assert_equal(runs[0][1], runs[1][1])


def no_reward_differs(y_true, y_pred):
    leaf = y_pred["labels"][:, 0] if isinstance(y_pred, dict) else y_pred
    return ops.cast(leaf, "float32") * 0.0


def own_loss(x, y, y_pred, sample_weight, training):
    """Of a detector: a sum, divided by the number of objects in the batch."""
    number = ops.sum(ops.cast(y["labels"] >= 0, "float32"))
    return ops.sum(ops.softplus(y_pred["scores"])) / ops.maximum(number, 1.0)


DETECTORS = {"own loss": MaximumLikelihood, "confidence": ConfidenceLoss}


def detector(terms):
    model = TinyDetector()
    model.dense.use_bias = True  # by which zeros have a gradient too
    model.build((None, 2))
    randomize(model)
    model.compile(loss="mse")  # which the next line replaces
    model.compute_loss = own_loss
    arguments = {"policy": DetectionPolicy(4), "terms": terms}
    return tuner(model, no_reward_differs, **arguments), features(8), targets(8)


@pytest.mark.parametrize("name", ["entropy", *DETECTORS])
def test_terms_without_weights_are_those_of_the_others(name):
    """A mean over inputs is 6 of 8 times that over the other inputs alone."""
    steps = []
    for rows in (VALID, range(8)):
        if name == "entropy":
            tuned = tuner(reward=no_reward_differs, terms=[Entropy(0.5)])
            x, y = inputs(8), np.zeros(8)
        else:
            tuned, x, y = detector([DETECTORS[name]()])
        before = weights_of(tuned.model)
        x = x if rows is VALID else with_invalid(x, NAN)
        given = keras.tree.map_structure(lambda leaf, rows=rows: leaf[rows], (x, y))
        tuned.fit(*given, batch_size=8, verbose=0)
        after = weights_of(tuned.model)
        steps.append([b - a for a, b in zip(before, after, strict=True)])
    assert max(np.abs(step).max() for step in steps[0]) > 1e-3
    share = 1.0 if name == "own loss" else 6 / 8
    assert_equal([share * step for step in steps[0]], steps[1])


TERMS = {
    "none": list,
    "all": lambda: [
        Entropy(0.5),
        MaximumLikelihood(0.5),
        KL(randomize(classifier(), 1), 0.5),
        Own(0.5),
    ],
}


@pytest.mark.parametrize("terms", TERMS)
def test_a_batch_of_them_changes_nothing(terms):
    tuned = tuner(terms=TERMS[terms]())
    before = weights_of(tuned.model)
    x = with_invalid(inputs(8), NAN, range(8))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        logs = tuned.fit(x, np.zeros(8, "int32"), batch_size=4, epochs=2, verbose=0)
    messages = [str(w.message) for w in caught if "so nothing is" in str(w.message)]
    assert len(messages) == 1
    assert "Every input so far has a NaN or infinite value" in messages[0]
    assert logs.history["invalid_inputs"] == [1.0, 1.0]
    for one, same in zip(weights_of(tuned.model), before, strict=True):
        np.testing.assert_array_equal(one, same)


def test_means_are_of_the_others():
    x = inputs(8)
    valid = [0, 1, 3, 4, 6, 7]
    whole, rest = tuner(), tuner()
    given = whole.evaluate(with_invalid(x, NAN), verbose=0, return_dict=True)
    expected = rest.evaluate(x[valid], verbose=0, return_dict=True)
    assert given.pop("invalid_inputs") == 0.25
    assert given.pop("no_reward") == 0.25
    for name, value in given.items():
        np.testing.assert_allclose(value, expected[name], atol=1e-6)
    shown = whole.predict(with_invalid(x, NAN), verbose=0)
    np.testing.assert_array_equal(shown[valid], rest.predict(x[valid], verbose=0))


def test_an_average_of_earlier_rewards_does_not_see_them():
    def ones(y_true, y_pred):
        return ops.ones_like(y_pred, dtype="float32")

    tuned = tuner(reward=ones, baseline="moving_average")
    tuned.fit(with_invalid(inputs(8), NAN), batch_size=8, verbose=0)
    np.testing.assert_allclose(float(tuned.baseline.average), 1.0)


def test_parts_of_them_have_no_advantage():
    x, y = features(8), targets(8)
    policy = DetectionPolicy(4, tune_boxes=0.05)
    tuned = tuner(tiny_detector(), FewOfClass(), policy=policy, num_samples=3)
    valid = np.isin(np.arange(8), VALID)
    rollout = tuned.rollout(policy.encode(x), x, y, valid)
    advantages = to_numpy(rollout.advantages)
    assert not advantages[~valid].any() and advantages[valid].any()


def test_nests_and_integers():
    first, second = keras.Input((3,), name="a"), keras.Input((1,), name="b")
    ids = keras.Input((), dtype="int32", name="c")
    embedded = keras.layers.Embedding(4, 3)(ids)
    both = keras.layers.Concatenate()([first, second, embedded])
    model = keras.Model(
        {"a": first, "b": second, "c": ids}, keras.layers.Dense(5)(both)
    )
    x = {"a": inputs(8), "b": inputs(8, 1), "c": np.arange(8) % 4}
    x["a"][1, 0], x["b"][6, 0], x["b"][1, 0] = NAN, INF, INF
    logs = tuner(model).fit(x, batch_size=8, verbose=0).history
    assert logs["invalid_inputs"] == [0.25]
    assert all(np.isfinite(w).all() for w in weights_of(model))
    only_ids = keras.Model(ids, keras.layers.Dense(5)(embedded))
    logs = tuner(only_ids).fit(x["c"], batch_size=8, verbose=0).history
    assert logs["invalid_inputs"] == [0.0]


def test_a_reward_that_uses_inputs_gets_zeros():
    def of_inputs(y_true, y_pred, inputs):
        return ops.sum(inputs, axis=-1)

    x = np.ones((8, 3), "float32")
    logs = tuner(reward=of_inputs).evaluate(
        with_invalid(x, NAN), verbose=0, return_dict=True
    )
    assert logs["reward"] == 3.0


@pytest.mark.parametrize("reward", ["alternatives", "map"])
def test_credit_by_parts_leaves_them_out(reward):
    def right(y_true, y_pred):
        return ops.cast(y_true == y_pred, "float32")

    generator = np.random.default_rng(0)
    x = generator.normal(size=(8, 4, 4, 2)).astype("float32")
    y = generator.integers(0, 3, (8, 4, 4)).astype("int32")
    runs = []
    for given, weight in [(with_invalid(x, NAN), None), (x.copy(), WEIGHT)]:
        if weight is not None:
            given[ROWS] = 0.0
        layers = [keras.Input((4, 4, 2)), keras.layers.Conv2D(3, 1)]
        model = randomize(keras.Sequential(layers))
        own = {"alternatives": MeanIoUReward(num_classes=3), "map": MapReward(right)}
        tuned = tuner(model, own[reward])
        assert tuned.by_parts
        data = {"y": y, "sample_weight": weight, "batch_size": 8}
        tuned.fit(given, **data, shuffle=False, verbose=0)
        runs.append(weights_of(model))
    assert_equal(*runs)
