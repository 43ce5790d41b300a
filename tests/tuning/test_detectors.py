"""Tuning a detector: the gradient of a step, `fit`, evaluation and saving."""

import itertools

import keras
import numpy as np
import pytest
from detectors import BOXES, FewOfClass, features, targets, tiny_detector
from gradients import differentiate
from keras import ops
from pixels import given
from tiny import to_numpy, weights_of

from keras_reward import (
    DetectionPolicy,
    FunctionReward,
    MeanAveragePrecisionReward,
    RecallReward,
    Reward,
    RewardTuning,
)

TEMPERATURE = 0.7


def best_logits(kernel, x, left):
    """The logits of the candidates, best first, and their labels."""
    logits = (x @ kernel).reshape(-1, 2)[left]
    return logits.max(-1), logits.argmax(-1)


def monitored():
    scores = FunctionReward(lambda y, outputs: outputs["scores"][:, 0] * np.nan, "nan")
    return 0.5 * RecallReward(false_positive_penalty=0.2) + 0.0 * scores - 1.0


REWARDS = {
    "few": FewOfClass,
    "recall": lambda: RecallReward(false_positive_penalty=0.2),
    "precision": lambda: MeanAveragePrecisionReward(
        class_counts=[3, 1], false_positive_penalty=0.2
    ),
    "sum": monitored,
    "product": lambda: (RecallReward() + 1.0) * (FewOfClass() + 2.0),
}


def outputs_of(candidates, classes, scores, shown):
    """What a reward sees of samples `(S, 4)` of candidates, best first."""
    return {
        "boxes": np.tile(BOXES[candidates], (len(shown), 1, 1)),
        "labels": np.where(shown, classes, -1).astype("int32"),
        "scores": np.tile(scores, (len(shown), 1)).astype("float32"),
    }


@pytest.mark.parametrize(
    "padding, name, credit",
    [(1, "few", "parts"), (1, "few", "output"), *((0, n, "parts") for n in REWARDS)],
)
def test_a_step_ascends_the_expected_reward(padding, name, credit):
    number = 4 + padding  # the fifth overlaps the first, and one of them is suppressed
    model = tiny_detector(number=number)
    kernel = weights_of(model)[0].astype("float64")
    inputs = features(3).astype("float64")
    # The first truth overlaps the first candidate, a little off; others are exact.
    off = np.array([0, 0, 3, 0], "float32")
    places = np.array([[0, 1, 0], [1, 2, 1], [3, 2, 0]])
    truth = {
        "boxes": BOXES[places] - off,
        "labels": np.array([[0, 1, -1], [1, 0, 1], [1, 1, 0]], "int32"),
    }
    shown = np.array(list(itertools.product((0, 1), repeat=4)))

    def chances(weights, x):
        first = (x @ weights[0]).reshape(-1, 2).max(-1)
        suppressed = 0 if padding and first[4] > first[0] else 4
        order = [n for n in np.argsort(-first) if n != suppressed]
        logits, classes = best_logits(weights[0], x, order)
        scores = 1 / (1 + np.exp(-logits))
        p = 1 / (1 + np.exp(-logits / TEMPERATURE))
        return np.where(shown, p, 1 - p).prod(-1), (order, classes, scores)

    reward, earned = REWARDS[name](), []
    for i, x in enumerate(inputs):
        outputs = outputs_of(*chances([kernel], x)[1], shown)
        targets = {key: np.repeat(v[i : i + 1], 16, 0) for key, v in truth.items()}
        earned.append(to_numpy(reward(targets, outputs)).astype("float64"))
    assert np.std(earned, axis=1).min() > 0.05  # each image has something to learn

    def expected(weights):
        pairs = zip(inputs, earned, strict=True)
        return sum((chances(weights, x)[0] * r).sum() for x, r in pairs) / 3

    exact = differentiate(expected, [kernel]).reshape(kernel.shape)
    weights = np.concatenate([chances([kernel], x)[0] for x in inputs])
    if padding:  # both cases are there
        first = (inputs @ kernel).reshape(3, 5, 2).max(-1)
        assert len(set(first[:, 4] > first[:, 0])) == 2
    samples = np.pad(np.tile(shown, (3, 1)), ((0, 0), (0, padding)))
    x = {
        "features": np.repeat(inputs, 16, axis=0).astype("float32"),
        "samples": samples[:, None].astype("int32"),
    }
    policy = given(DetectionPolicy)(num_candidates=number)
    settings = {"temperature": TEMPERATURE, "credit": credit}
    tuned = RewardTuning(model, reward, policy, 1, None, **settings)
    assert tuned.by_parts == (credit == "parts")
    tuned.compile(keras.optimizers.SGD(1.0))
    y = {key: np.repeat(values, 16, axis=0) for key, values in truth.items()}
    tuned.train_on_batch(x, y, sample_weight=(16 * weights).astype("float32"))
    np.testing.assert_allclose(weights_of(model)[0] - kernel, exact, atol=2e-6)
    assert np.abs(exact).max() > 0.01


def start(seed=3, **arguments):
    given = {"reward": FewOfClass(), "policy": DetectionPolicy(5, 0.4), "seed": seed}
    tuned = RewardTuning(tiny_detector(), **{**given, **arguments})
    tuned.compile(keras.optimizers.Adam(0.03))
    return tuned


def fit(tuned, epochs, batch=24):
    data = features(batch), targets(batch)
    logs = tuned.fit(*data, batch_size=8, epochs=epochs, shuffle=False, verbose=0)
    return logs.history


@pytest.mark.slow
def test_fit_raises_the_greedy_reward():
    tuned = start(num_samples=1)
    assert tuned.by_parts
    x, y = features(24), targets(24)
    before = tuned.evaluate(x, y, verbose=0, return_dict=True)["reward"]
    fit(tuned, 20)
    after = tuned.evaluate(x, y, verbose=0, return_dict=True)["reward"]
    assert after > before + 0.2


@pytest.mark.slow
def test_a_detector_that_became_nan_has_a_loss_that_is_nan():
    tuned = start(reward=RecallReward(false_positive_penalty=0.2))
    kernel = weights_of(tuned.model)[0]
    tuned.model.dense.kernel.assign(np.full_like(kernel, np.nan))
    logs = tuned.train_on_batch(features(4), targets(4), return_dict=True)
    assert np.isnan(logs["loss"])
    outputs = tuned.predict(features(4), verbose=0)
    assert np.isnan(outputs["scores"]).all() and not outputs["shown"].any()


def test_evaluate_sees_what_is_shown_and_predict_returns_all():
    tuned = start(reward=RecallReward(), credit="output")
    x, y = features(6), targets(6)
    outputs = tuned.predict(x, verbose=0)
    assert (outputs["labels"] >= 0).all() and 0 < outputs["shown"].mean() < 1
    seen = {**outputs, "labels": np.where(outputs["shown"], outputs["labels"], -1)}
    rewards = [to_numpy(RecallReward()(y, given)).mean() for given in (seen, outputs)]
    logs = tuned.evaluate(x, y, verbose=0, return_dict=True)
    np.testing.assert_allclose(logs["reward"], rewards[0], rtol=1e-5)
    assert abs(rewards[0] - rewards[1]) > 0.01


@pytest.mark.slow
def test_compiled_equals_eager():
    noise = np.random.default_rng(4).random((24, 2, 5))

    class GivenNoise(DetectionPolicy):
        independent_parts = True
        choice_probabilities = DetectionPolicy.choice_probabilities

        def encode(self, x, training=False):
            self.noise = x["noise"]
            return super().encode(x["features"], training)

        def sample(self, context, num_samples, seed=None, noise=None):
            return super().sample(context, num_samples, noise=self.noise)

    x = {"features": features(24), "noise": noise.astype("float32")}
    modes = [{"run_eagerly": True}, {"run_eagerly": False}]
    if keras.config.backend() == "tensorflow":
        modes.append({"jit_compile": True})
    weights = []
    for mode in modes:
        tuned = start(policy=GivenNoise(5))
        tuned.compile(keras.optimizers.Adam(0.03), **mode)
        y = targets(24)
        tuned.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
        weights.append(weights_of(tuned.model)[0])
    for other in weights[1:]:
        np.testing.assert_allclose(other, weights[0], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_run_that_is_saved_and_continued_equals_the_uninterrupted_one(tmp_path):
    whole, first = start(), start()
    fit(whole, 3)
    fit(first, 1)
    first.save(tmp_path / "tuned.keras")
    resumed = keras.models.load_model(tmp_path / "tuned.keras")
    assert resumed.by_parts
    assert (resumed.policy.num_candidates, resumed.policy.threshold) == (5, 0.4)
    fit(resumed, 2)
    np.testing.assert_allclose(
        weights_of(resumed.model)[0], weights_of(whole.model)[0], rtol=1e-5
    )


@pytest.mark.slow
def test_mixed_precision():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        tuned = start()
    finally:
        keras.config.set_dtype_policy("float32")
    for name, values in fit(tuned, 2).items():
        assert np.isfinite(values).all(), name
    outputs = tuned.predict(features(3), verbose=0)
    assert outputs["scores"].dtype == outputs["boxes"].dtype == np.float32


GOALS = BOXES[:4] + np.array([1.0, -0.5, 2.0, 0.5], "float32")


class NearGoals(Reward):
    """Minus the squared distance of each shown box from its goal, by its top left."""

    def call(self, y_true, y_pred):
        return ops.sum(self.of_boxes(y_pred), axis=1)

    def of_boxes(self, y_pred):
        boxes = y_pred["boxes"]
        apart = ops.sum(
            (boxes[:, :, None] - ops.convert_to_tensor(GOALS)) ** 2, axis=-1
        )
        return ops.where(y_pred["labels"] >= 0, 2.0 - 0.1 * ops.min(apart, axis=-1), 0)

    def alternatives(self, y_true, y_pred, choices):
        reward = self.call(y_true, y_pred)[:, None]
        own = self.of_boxes(y_pred)
        worth = [reward - own + self.of_boxes(choices[c]) for c in range(2)]
        return ops.stack(worth, axis=-1)


@pytest.mark.chance
def test_boxes_that_are_drawn_ascend_the_expected_reward():
    model = tiny_detector(number=4, moves=True)
    model.shift.assign(np.zeros((4, 4)))
    x = features(1)
    before = to_numpy(model.dense.kernel).copy()
    logits = (x @ before).reshape(4, 2).max(-1)
    n, stddev = 20_000, 0.05
    policy = DetectionPolicy(4, tune_boxes=stddev)
    tuned = RewardTuning(model, NearGoals(), policy, n, seed=1)
    assert tuned.by_parts and tuned.uses_baseline
    tuned.compile(keras.optimizers.SGD(1.0))
    tuned.train_on_batch(x)
    # E[2 - 0.1 |b - goal|^2] where b is shown, with variances of (stddev * side)^2.
    p = 1 / (1 + np.exp(-logits))
    exact = p[:, None] * 0.2 * (GOALS - BOXES[:4])
    np.testing.assert_allclose(to_numpy(model.shift), exact, atol=0.02)
    assert np.abs(exact).max() > 0.1
    sides = np.stack([BOXES[:4, 2] - BOXES[:4, 0], BOXES[:4, 3] - BOXES[:4, 1]], -1)
    apart = ((GOALS - BOXES[:4]) ** 2).sum(-1) + 2 * ((stddev * sides) ** 2).sum(-1)
    slope = (2.0 - 0.1 * apart) * p * (1 - p)
    best = (x @ before).reshape(4, 2).argmax(-1)
    moved = (to_numpy(model.dense.kernel) - before).reshape(2, 4, 2)
    exact = x[0][:, None] * slope
    np.testing.assert_allclose(moved[:, np.arange(4), best], exact, atol=0.01)


@pytest.mark.slow
def test_only_boxes_that_are_drawn_have_a_baseline():
    policy = DetectionPolicy(4, tune_boxes=0.05)
    tuned = RewardTuning(
        tiny_detector(number=4), NearGoals(), policy, 3, "moving_average"
    )
    x = ops.convert_to_tensor(features(2))
    context = policy.encode(x)
    tuned.rollout(context, x, None)
    average = float(tuned.baseline.average)
    rollout = tuned.rollout(context, x, None)
    drawn = to_numpy(rollout.samples["boxes"])
    apart = ((drawn[..., None, :] - GOALS) ** 2).sum(-1).min(-1)
    advantages = to_numpy(rollout.advantages)
    np.testing.assert_allclose(
        advantages[..., :4], 2 - 0.1 * apart - average, rtol=1e-4, atol=1e-5
    )
    assert average > 1 and not advantages[..., 4:].any()


@pytest.mark.slow
def test_boxes_learn_and_are_saved(tmp_path):
    model = tiny_detector(number=4, moves=True)
    model.shift.assign(np.zeros((4, 4)))
    policy = DetectionPolicy(4, tune_boxes=0.05)
    tuned = RewardTuning(model, NearGoals(), policy, 8, seed=1, baseline="greedy")
    tuned.compile(keras.optimizers.Adam(0.05))
    x = features(32)
    before = tuned.evaluate(x, verbose=0, return_dict=True)["reward"]
    logs = tuned.fit(x, epochs=20, verbose=0).history
    assert all(np.isfinite(values).all() for values in logs.values())
    apart = np.abs(to_numpy(model.shift) - (GOALS - BOXES[:4])).mean()
    assert apart < 0.5 * np.abs(GOALS - BOXES[:4]).mean()
    assert tuned.evaluate(x, verbose=0, return_dict=True)["reward"] > before
    assert tuned.predict(x, verbose=0)["boxes"].shape == (32, 4, 4)
    tuned.save(tmp_path / "tuned.keras")
    custom = {"NearGoals": NearGoals}
    loaded = keras.models.load_model(tmp_path / "tuned.keras", custom_objects=custom)
    assert loaded.policy.tune_boxes == 0.05
