"""UViM: the two stages together, tuned."""

import functools

import keras
import numpy as np
import pytest
from gradients import differentiate
from keras import ops
from sequences import InNumPy
from tiny import compiled, to_numpy, weights_of
from uvim_models import (
    SIZE,
    PixelModel,
    gray,
    language_model,
    maps,
    panoptic_task,
    photos,
    pixels,
    stage_one,
    uvim,
)

from keras_reward import (
    AutoregressivePolicy,
    ColorfulnessReward,
    PanopticQualityReward,
    RewardTuning,
)
from keras_reward.models import UViM

pytestmark = pytest.mark.slow


@functools.cache
def color_model():
    """The model of tests that leave it as it is."""
    return uvim()


@functools.cache
def enumeration_model():
    """Two codes out of four, written by the model that is known in NumPy as well."""
    first = stage_one(code_grid=(1, 2), num_codes=4)
    return UViM(first, PixelModel(first))


# The policy.


def test_outputs_are_those_of_the_first_stage():
    """The oracle's own code, decoded, is the reconstruction; rows are as asked for."""
    model, labels = color_model(), photos(3)
    images, first = gray(labels), model.stage_one
    own = first.codes(images, labels)
    other = (own + 1) % first.num_codes
    tokens = np.stack([own, other], axis=1) + 1
    rows = to_numpy(compiled(model.decode)(images, tokens))
    assert rows.shape == (6, SIZE, SIZE, 3)
    expected = first.reconstruct(images, labels)
    np.testing.assert_allclose(rows[::2], expected, atol=1e-5)
    assert np.abs(rows[1::2] - expected).max() > 0.05


def test_samples_are_codes():
    """Token 0, which starts a sequence, is never drawn, likely as it may be."""
    model = uvim()
    bias = np.zeros(model.vocabulary_size)
    bias[0] = 10.0
    model.language_model.head.bias.assign(bias)
    policy = AutoregressivePolicy().bind(model)
    noise = np.random.default_rng(0).random((4, 20, 4), "float32")
    samples, greedy = compiled(
        lambda x, noise: (
            policy.sample(policy.encode(x), 20, noise=noise),
            policy.mode(policy.encode(x)),
        )
    )(gray(photos()), noise)
    samples = to_numpy(samples)
    assert samples.shape == (4, 20, 4) and samples.min() == 1
    assert samples.max() == model.stage_one.num_codes
    assert to_numpy(greedy).min() >= 1


def test_predict_is_greedy_with_tuning_and_without():
    model, images = color_model(), gray(photos())
    outputs = model.predict(images, verbose=0)
    policy = AutoregressivePolicy().bind(model)
    greedy = compiled(lambda x: policy.mode(policy.encode(x)))(images)
    expected = compiled(model.decode)(images, to_numpy(greedy)[:, None])
    np.testing.assert_allclose(outputs, to_numpy(expected), atol=1e-5)
    tuned = RewardTuning(model, reward=ColorfulnessReward())
    assert isinstance(tuned.policy, AutoregressivePolicy)
    np.testing.assert_allclose(tuned.predict(images, verbose=0), outputs, atol=1e-5)


def test_the_base_model_runs_once_for_all_samples():
    first = stage_one()
    batches = []

    class Counting(keras.layers.Layer):
        def call(self, inputs):
            batches.append(inputs["codes"].shape[0])
            return networks(inputs)

    networks = first.base
    object.__setattr__(first, "base", Counting())
    model = UViM(first, PixelModel(first))
    codes = np.ones((2, 3, 4), "int32")
    outputs = compiled(model.decode)(gray(photos(2)), codes)
    assert batches == [6] == [outputs.shape[0]]


# The gradient through the frozen decoder, by enumeration.

TOKENS = np.array([[i, j] for i in range(1, 5) for j in range(1, 5)])


class Everything(AutoregressivePolicy):
    """Draws each of the 16 codes once."""

    def sample(self, context, num_samples, seed=None, noise=None):
        batch = ops.shape(keras.tree.flatten(context)[0])[0]
        return ops.broadcast_to(ops.convert_to_tensor(TOKENS), (batch, 16, 2))


def weighted_redness(y_true, y_pred):
    """How red an output is where, times the weight of its code."""
    redness = ops.mean(y_pred[..., 0] * y_true["where"], axis=(1, 2))
    weights = ops.reshape(y_true["weights"], (-1, 16, 16))
    return redness * ops.reshape(ops.diagonal(weights, axis1=1, axis2=2), (-1,))


def test_a_step_ascends_the_expected_reward_of_decoded_codes():
    """Each code weighted by its probability: the estimate is the expectation itself."""
    model = enumeration_model()
    images = gray(photos(2))
    where = np.random.default_rng(5).normal(size=(2, SIZE, SIZE)).astype("float32")
    # Every code there is, decoded one by one; and what it earns, in NumPy.
    decode = compiled(model.decode)
    outputs = [np.float64(to_numpy(decode(images, [[t], [t]]))) for t in TOKENS]
    earned = np.stack([(o[..., 0] * where).mean((1, 2)) for o in outputs], axis=1)
    assert earned.std(axis=1).min() > 1e-3

    slots = np.ones((2, 5), "bool")
    slots[:, 0] = False
    in_numpy = InNumPy(model.language_model, allowed=slots)

    def probabilities():
        log_probs = [
            [sum(in_numpy.token_log_probs(x, tokens)) for tokens in TOKENS.tolist()]
            for x in np.float64(pixels(images))
        ]
        return np.exp(log_probs)

    weights = [
        in_numpy.encoder,
        in_numpy.head,
        in_numpy.embedding,
        in_numpy.positions,
    ]
    exact = differentiate(lambda _: (probabilities() * earned).sum(1).mean(), weights)
    policy = Everything()
    tuned = RewardTuning(model, weighted_redness, policy, num_samples=16, baseline=None)
    tuned.compile(keras.optimizers.SGD(1.0))
    own = model.language_model
    variables = [own.encoder.kernel, own.head.kernel, own.embedding, own.positions]
    start = [np.array(to_numpy(v)) for v in variables]
    shares = np.float32(16.0 * probabilities())
    targets = {"where": where, "weights": shares}
    tuned.train_on_batch(images, targets)
    moved = [to_numpy(v) - s for v, s in zip(variables, start, strict=True)]
    moved = np.concatenate([m.ravel() for m in moved])
    np.testing.assert_allclose(moved, exact, atol=1e-3 * np.abs(exact).max())
    assert np.abs(exact).max() > 1e-4


# Tuning.


def test_only_the_language_model_is_tuned_and_all_parts_are_saved(tmp_path):
    """A run that is saved and continued equals the uninterrupted one."""
    model = uvim()
    images = gray(photos())
    tuned = RewardTuning(model, reward=ColorfulnessReward(), seed=0)
    tuned.compile(keras.optimizers.Adam(0.01))
    first, own = weights_of(model.stage_one), weights_of(model.language_model)
    count = len(model.language_model.trainable_variables)
    assert len(tuned.trainable_variables) == count
    logs = tuned.fit(images, shuffle=False, verbose=0).history
    assert {"reward", "vividness", "hue_entropy", "entropy"} <= set(logs)
    assert {"perplexity", "dead_codes"}.isdisjoint(logs)
    moved = [
        np.abs(a - b).max()
        for a, b in zip(weights_of(model.language_model), own, strict=True)
    ]
    assert np.mean(np.array(moved) > 0) > 0.9

    tuned.save(tmp_path / "tuned.keras")
    continued = keras.models.load_model(tmp_path / "tuned.keras")
    for run in (tuned, continued):
        run.fit(images, shuffle=False, verbose=0)
    for a, b in zip(weights_of(continued), weights_of(tuned), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    for a, b in zip(weights_of(continued.model.stage_one), first, strict=True):
        np.testing.assert_array_equal(a, b)


def test_tuning_for_panoptic_quality():
    images, labels = photos(2), maps(2)
    model = uvim(panoptic_task(), channels=3)
    tuned = RewardTuning(model, reward=PanopticQualityReward(4), seed=0)
    tuned.compile(keras.optimizers.Adam(0.01))
    logs = tuned.fit(images, labels, verbose=0).history
    assert {"reward", "matched_iou", "unmatched_segments"} <= set(logs)
    outputs = tuned.predict(images, verbose=0)
    assert outputs.shape == (2, SIZE, SIZE, 2) and outputs.dtype == "int32"


@pytest.mark.chance
def test_the_second_stage_learns_the_codes_of_the_first():
    first, labels = stage_one(), photos(2)
    own = language_model(first)
    own.compile(
        keras.optimizers.Adam(0.02),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    x, y = first.code_pairs(gray(labels), labels)
    loss = own.fit(x, y, epochs=200, verbose=0).history["loss"]
    assert loss[-1] < 0.1 < loss[0]
    outputs = UViM(first, own).predict(gray(labels), verbose=0)
    expected = first.reconstruct(gray(labels), labels)
    np.testing.assert_allclose(outputs, expected, atol=1e-4)


# Errors.


def without(**arguments):
    first = stage_one()
    return UViM(first, language_model(first, **arguments))


def other_images():
    return UViM(stage_one(channels=3), language_model(stage_one(channels=1)))


ERRORS = {
    "stage": (lambda: UViM(color_model(), None), "must be a UViMStageOne.*UViM"),
    "model": (
        lambda: UViM(stage_one(), stage_one()),
        "sequence model.*UViMStageOne without encode, hidden_states",
    ),
    "words": (lambda: without(vocabulary_size=9), "vocabulary_size=7.*=9"),
    "length": (lambda: without(max_length=5), "max_length=4.*max_length=5"),
    "end": (lambda: without(end_id=1), "end_id=None.*end_id=1"),
    "images": (other_images, r"\(8, 8, 3\) for `stage_one`, \(8, 8, 1\)"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_message(case):
    call, message = ERRORS[case]
    with pytest.raises(ValueError, match=message):
        call()
