"""The confidence loss against numbers worked out by hand and numeric gradients."""

import json

import keras
import numpy as np
import pytest
from tiny import compiled, randomize, to_numpy

from keras_reward import (
    AutoregressivePolicy,
    BoxCodec,
    ConfidenceLoss,
    RecallReward,
    RewardTuning,
)
from keras_reward.models import VisionEncoderDecoder, VisionTransformer
from keras_reward.nests import merge_rows
from keras_reward.policies.likelihood import Likelihood
from keras_reward.terms.update import Rollout, Update

# Bucket b is at b pixels and is token b + 2; class c is token c + 67.
codec = BoxCodec(num_classes=2, image_size=64, max_boxes=2, num_buckets=65)
policy = AutoregressivePolicy(codec=codec)
WRONG, RIGHT, END = codec.wrong_id, codec.right_id, 1
LENGTH = 12

# The truth of both images: a box of 40 by 40 pixels of class 1. The image of boxes of
# two samples each: their tokens up to the confidence, with the IoU of each.
TRUTH = {
    "boxes": np.array(2 * [[[0, 0, 40, 40]]], "float32"),
    "labels": np.full((2, 1), 1),
}
EXACT = [2, 2, 42, 42, 68]  # IoU 1
THREE_QUARTERS = [2, 2, 32, 42, 68]  # 30 of 40 rows
HALF = [2, 2, 22, 42, 68]  # not above the threshold: 0
OTHER_CLASS = [2, 2, 42, 42, 67]
NO_BOX = [42, 2, 2, 42, 68]  # inverted: padding
SAMPLES = np.array(
    [
        [
            [*EXACT, RIGHT, *THREE_QUARTERS, WRONG],
            [*OTHER_CLASS, RIGHT, END, 0, 0, 0, 0, 0],
        ],
        [
            [*NO_BOX, RIGHT, *HALF, RIGHT],
            [END, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        ],
    ],
    "int32",
)
# (image, sample, position of the confidence, IoU) of the boxes that there are.
SAMPLE_COUNT = 4
BOXES = [(0, 0, 5, 1.0), (0, 0, 11, 0.75), (0, 1, 5, 0.0), (1, 0, 11, 0.0)]


def call(wrong, right, loss=None, samples=SAMPLES, truth=TRUTH, policy=policy):
    """The loss, given log-probabilities of both confidences at every position."""
    outputs = merge_rows(policy.codec.decode(None, samples))
    rollout = Rollout(samples, outputs, None, None, {})
    likelihood = Likelihood(None, None, None, None, [wrong, right])
    update = Update(policy, None, truth, None, rollout, likelihood, None, None)
    return (loss or ConfidenceLoss()).loss(update)


def right_probabilities(values):
    """Log-probabilities of "wrong" and "right", from P(right) of the boxes.

    At positions that must not be read they are -1e30, as of forbidden tokens.
    """
    wrong = np.full((2, 2, LENGTH), -1e30, "float32")
    right = wrong.copy()
    for (image, sample, position, _), value in zip(BOXES, values, strict=True):
        wrong[image, sample, position] = np.log(1 - value)
        right[image, sample, position] = np.log(value)
    return wrong, right


def test_choices_are_both_confidences_and_else_the_samples():
    choices = map(to_numpy, ConfidenceLoss().choices(policy, SAMPLES))
    for choice, token in zip(choices, (WRONG, RIGHT), strict=True):
        expected = SAMPLES.copy()
        for image, sample, position, _ in [*BOXES, (1, 0, 5, None)]:
            expected[image, sample, position] = token
        np.testing.assert_array_equal(choice, expected)
        assert choice.dtype == "int32"


@pytest.mark.slow
def test_loss_is_six_times_the_cross_entropy_of_a_sample():
    rights = [0.8, 0.6, 0.3, 0.1]
    expected = [
        -np.log(0.8),
        -0.75 * np.log(0.6) - 0.25 * np.log(0.4),
        -np.log(0.7),
        -np.log(0.9),
    ]
    loss = to_numpy(call(*right_probabilities(rights)))
    assert loss.shape == () and loss.dtype == "float32"
    np.testing.assert_allclose(loss, 6 * np.sum(expected) / SAMPLE_COUNT, rtol=1e-5)


def test_lower_threshold_makes_half_a_match():
    rights = [0.8, 0.6, 0.3, 0.1]
    high, low = (
        to_numpy(call(*right_probabilities(rights), ConfidenceLoss(iou_threshold=t)))
        for t in (0.5, 0.4)
    )
    # The last box's target becomes its IoU of a half.
    difference = -0.5 * np.log(0.1) - 0.5 * np.log(0.9) + np.log(0.9)
    np.testing.assert_allclose(low - high, 6 * difference / SAMPLE_COUNT, rtol=1e-4)


def test_least_where_probabilities_are_ious():
    """There it is the entropy of the targets: of 0.75 and 0.25."""
    ious = np.array([1.0, 0.75, 0.0, 0.0])
    best = to_numpy(call(*right_probabilities(np.clip(ious, 1e-6, 1 - 1e-6))))
    entropy = -0.75 * np.log(0.75) - 0.25 * np.log(0.25)
    np.testing.assert_allclose(best, 6 * entropy / SAMPLE_COUNT, atol=1e-3)
    for rights in ([0.9, 0.75, 1e-6, 1e-6], [1 - 1e-6, 0.6, 1e-6, 1e-6]):
        assert to_numpy(call(*right_probabilities(rights))) > best


@pytest.mark.slow
def test_samples_without_boxes_count():
    """Two samples about one image with one box between them, P(right) 0.1."""
    wrong, right = right_probabilities([0.8, 0.6, 0.3, 0.1])
    truth = {name: value[1:] for name, value in TRUTH.items()}
    loss = call(wrong[1:], right[1:], samples=SAMPLES[1:], truth=truth)
    np.testing.assert_allclose(to_numpy(loss), -6 * np.log(0.9) / 2, rtol=1e-4)


def test_without_boxes_it_is_zero():
    samples = np.zeros((2, 2, LENGTH), "int32")
    log_probs = np.full((2, 2, LENGTH), -3.0, "float32")
    assert to_numpy(call(log_probs, log_probs, samples=samples)) == 0.0


def gradient(function, value):
    """The gradient of a scalar function of one float32 array."""
    backend = keras.config.backend()
    if backend == "jax":
        import jax

        return np.array(jax.jit(jax.grad(function))(value))
    if backend == "tensorflow":
        import tensorflow as tf

        value = tf.convert_to_tensor(value)
        with tf.GradientTape() as tape:
            tape.watch(value)
            result = tf.function(function)(value)
        return tape.gradient(result, value).numpy()
    import torch

    value = torch.tensor(value, requires_grad=True)
    function(value).backward()
    return value.grad.numpy()


def test_gradient_of_logits_agrees_with_numeric_ones():
    """Of logits of P(right), for which it is 6 (P(right) - IoU) / samples."""
    log_sigmoid = keras.ops.log_sigmoid

    def loss(logits):
        return call(log_sigmoid(-logits), log_sigmoid(logits))

    logits = np.random.default_rng(0).normal(size=SAMPLES.shape).astype("float32")
    actual = gradient(loss, logits)
    expected = np.zeros_like(logits)
    for image, sample, position, iou in BOXES:
        right = 1 / (1 + np.exp(-logits[image, sample, position]))
        expected[image, sample, position] = 6 * (right - iou) / SAMPLE_COUNT
    np.testing.assert_allclose(actual, expected, atol=1e-5)

    for index in [box[:3] for box in BOXES] + [(1, 0, 5), (1, 1, 5), (0, 0, 4)]:
        step = np.zeros_like(logits)
        step[index] = 0.05
        low, high = (float(to_numpy(loss(logits + s))) for s in (-step, step))
        np.testing.assert_allclose((high - low) / 0.1, actual[index], atol=2e-3)


def test_compiled_equals_eager():
    arguments = right_probabilities([0.8, 0.6, 0.3, 0.1])
    eager = to_numpy(call(*arguments))
    for xla in (False, True):
        np.testing.assert_allclose(compiled(call, xla)(*arguments), eager, rtol=1e-6)


def test_truth_in_the_format_of_the_codec():
    relative = BoxCodec(2, 64, 2, 65, bounding_box_format="rel_center_xywh")
    boxes = np.full((2, 1, 4), [20, 20, 40, 40], "float32") / 64
    arguments = right_probabilities([0.8, 0.6, 0.3, 0.1])
    loss = call(
        *arguments,
        truth={**TRUTH, "boxes": boxes},
        policy=AutoregressivePolicy(codec=relative),
    )
    np.testing.assert_allclose(to_numpy(loss), to_numpy(call(*arguments)), rtol=1e-6)


def test_policy_without_box_codec_is_an_error():
    for policy in (AutoregressivePolicy(), object()):
        with pytest.raises(ValueError, match=r"codec is a BoxCodec.*Received: \w+ wit"):
            ConfidenceLoss().choices(policy, SAMPLES)


@pytest.mark.parametrize("name, value", [("weight", -1.0), ("iou_threshold", 1.0)])
def test_wrong_arguments_are_named(name, value):
    with pytest.raises(ValueError, match=f"Received: .*{name}={value}"):
        ConfidenceLoss(**{name: value})


def test_serializes():
    loss = ConfidenceLoss(weight=0.1, iou_threshold=0.4, name="calibration")
    config = keras.saving.serialize_keras_object(loss)
    copy = keras.saving.deserialize_keras_object(json.loads(json.dumps(config)))
    assert isinstance(copy, ConfidenceLoss) and copy.get_config() == loss.get_config()
    assert (copy.weight, copy.iou_threshold, copy.name) == (0.1, 0.4, "calibration")


# --- together with the reward ---


class LogitsTable(keras.Model):
    """Logits of each position, whatever the image and the tokens before."""

    start_id, pad_id, end_id = 0, 0, END
    vocabulary_size, max_length = codec.vocabulary_size, LENGTH

    def __init__(self):
        super().__init__()
        self.table = self.add_weight((LENGTH, self.vocabulary_size), name="table")
        self.built = True
        randomize(self)

    def encode(self, x, training=False):
        return x

    def hidden_states(self, context, token_ids, training=False):
        return self.table + keras.ops.zeros_like(token_ids, "float32")[..., None]

    def logits(self, hidden):
        return hidden

    def start_cache(self, context, n):
        return ()

    def next_hidden(self, context, cache, token_ids, position):
        row = keras.ops.take(self.table, position, axis=0)
        return row + keras.ops.zeros_like(token_ids, "float32")[..., None], cache


class GivenSamples(AutoregressivePolicy):
    def sample(self, context, num_samples, seed=None, noise=None):
        return keras.ops.convert_to_tensor(SAMPLES)


ADVANTAGES = np.array([[2, -2], [1, -1]])  # of boxes of class 1 as reward: 2, 0; 1, 0


def gradients_by_hand(table):
    """Of the logits: of Reinforce's loss, and of the confidence loss."""
    allowed = np.where(codec.slot_mask, np.exp(table), 0.0)
    probs = allowed / allowed.sum(-1, keepdims=True)
    reinforce, confidence = np.zeros((2, *table.shape))
    for (image, sample), advantage in np.ndenumerate(ADVANTAGES):
        tokens = SAMPLES[image, sample].tolist()
        for t, token in enumerate(tokens):
            if t % 6 != 5 and END not in tokens[:t]:
                drawn = np.arange(codec.vocabulary_size) == token
                reinforce[t] -= advantage * (drawn - probs[t]) / SAMPLE_COUNT
    for _, _, t, iou in BOXES:
        excess = 6 * (probs[t, RIGHT] - iou) / SAMPLE_COUNT
        confidence[t, [RIGHT, WRONG]] += [excess, -excess]
    return reinforce, confidence


@pytest.mark.parametrize(("scale", "weight"), [(1, None), (0, 0.3), (1, 0.3)])
def test_reward_moves_boxes_and_the_loss_their_confidences(scale, weight):
    """Each leaves the logits alone that are the other's."""

    def reward(y_true, y_pred):
        is_class_1 = keras.ops.cast(y_pred["labels"] == 1, "float32")
        return scale * keras.ops.sum(is_class_1, axis=-1)

    tuned = RewardTuning(
        LogitsTable(),
        reward=reward,
        policy=GivenSamples(codec=codec),
        terms=[ConfidenceLoss(weight)] if weight else [],
        num_samples=2,
    )
    tuned.compile(keras.optimizers.SGD(1.0))
    before = to_numpy(tuned.model.table).astype("float64")
    tuned.train_on_batch(np.zeros((2, 1), "float32"), TRUTH)
    reinforce, confidence = gradients_by_hand(before)
    is_confidence = np.arange(LENGTH) % 6 == 5
    assert reinforce.any(-1).tolist() == (~is_confidence).tolist()
    assert confidence.any(-1).tolist() == is_confidence.tolist()
    expected = scale * reinforce + (weight or 0.0) * confidence
    actual = before - to_numpy(tuned.model.table)
    np.testing.assert_allclose(actual, expected, atol=1e-6)


def tiny_detector(codec):
    encoder = VisionTransformer((16, 16, 3), 8, width=8, num_layers=1, num_heads=2)
    model = VisionEncoderDecoder(
        encoder, codec.vocabulary_size, codec.max_length, num_layers=1, num_heads=2
    )
    return randomize(model, seed=0, scale=0.3)


@pytest.mark.slow
@pytest.mark.chance
def test_a_detector_learns_that_its_boxes_are_wrong():
    """Boxes of an untrained model match nothing: its confidence in them falls."""
    codec = BoxCodec(num_classes=2, image_size=16, max_boxes=2, num_buckets=5)
    tuned = RewardTuning(
        tiny_detector(codec),
        reward=RecallReward(),
        policy=AutoregressivePolicy(codec=codec),
        terms=[ConfidenceLoss(weight=1.0)],
        num_samples=4,
        seed=0,
    )
    tuned.compile(keras.optimizers.Adam(0.02))
    images = np.random.default_rng(0).random((32, 16, 16, 3)).astype("float32")
    y = {
        "boxes": np.tile([[15.9, 15.9, 16.0, 16.0]], (32, 1, 1)).astype("float32"),
        "labels": np.zeros((32, 1), "int32"),
    }
    history = tuned.fit(images, y, batch_size=16, epochs=10, verbose=0).history
    assert history["confidence_loss"][-1] < 0.5 * history["confidence_loss"][0]
    scores = tuned.predict(images, verbose=0)["scores"]
    assert scores.shape == (32, 2) and (scores >= 0.0).all() and (scores <= 1.0).all()


@pytest.mark.slow
@pytest.mark.chance
def test_a_detector_learns_which_of_its_boxes_are_right():
    """It may write the whole image as class 0 or 1. Bright images are of class 1, dark
    ones show nothing: it comes to be sure of class 1 in bright images alone."""
    codec = BoxCodec(num_classes=2, image_size=16, max_boxes=1, num_buckets=5)
    whole = [codec.first_bucket + bucket for bucket in (0, 0, 4, 4)]
    slot_mask = codec.slot_mask
    slot_mask[:4] = np.arange(codec.vocabulary_size) == np.array(whole)[:, None]
    policy = AutoregressivePolicy(codec=codec, slot_mask=slot_mask)
    tuned = RewardTuning(
        randomize(tiny_detector(codec), scale=0.2),
        reward=0.0 * RecallReward(),  # it writes both classes all along
        policy=policy,
        terms=[ConfidenceLoss(weight=1.0)],
        num_samples=4,
        seed=0,
    )
    tuned.compile(keras.optimizers.Adam(0.01))
    bright = np.arange(160) % 2
    images = np.broadcast_to(2 * bright[:, None, None, None] - 1, (160, 16, 16, 3))
    images = images.astype("float32")
    boxes = np.tile([[0.0, 0.0, 16.0, 16.0]], (160, 1, 1)).astype("float32")
    y = {"boxes": boxes, "labels": 2 * bright[:, None] - 1}  # -1 is padding
    written = [[*whole, codec.first_class + label, codec.right_id] for label in (0, 1)]
    written = np.array(2 * [written])

    def confidences():
        """In boxes of class 0 and 1, of a dark image and of a bright one."""
        context = policy.encode(images[:2])
        log_probs, _ = policy.token_likelihoods(context, written[None])
        return np.exp(to_numpy(log_probs)[0, ..., 5])

    right = [[0.0, 0.0], [0.0, 1.0]]
    assert np.abs(confidences() - right).max() > 0.4
    tuned.fit(images, y, batch_size=16, epochs=8, verbose=0)
    np.testing.assert_allclose(confidences(), right, atol=0.35)
