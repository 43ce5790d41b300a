"""`DetectionPolicy`: its candidates, and what becomes of samples."""

import keras
import numpy as np
import pytest
from detectors import (
    BOXES,
    Decoder,
    TinyDetector,
    features,
    targets,
    tiny_detector,
)
from keras import ops
from tiny import classifier, compiled, to_numpy

from keras_reward import (
    KL,
    DetectionPolicy,
    MaximumLikelihood,
    MultiOutputPolicy,
    RecallReward,
    RewardTuning,
)
from keras_reward.policies import kind_of
from keras_reward.policies.detectors import best_candidates


def iou(a, b):
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
    shared = np.prod(np.maximum(high - low, 0.0))
    return shared / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - shared)


def greedy_suppression(boxes, scores, threshold):
    """The numbers of the boxes that are left, best first, in plain Python."""
    left = []
    for number in np.argsort(-scores, kind="stable"):
        if all(iou(boxes[number], boxes[other]) < threshold for other in left):
            left.append(number)
    return left


def random_boxes(batch, number, classes, seed=0):
    generator = np.random.default_rng(seed)
    corner = generator.uniform(0, 20, (batch, number, 2))
    size = generator.uniform(2, 12, (batch, number, 2))
    boxes = np.concatenate([corner, corner + size], axis=-1).astype("float32")
    return boxes, generator.normal(size=(batch, number, classes)).astype("float32")


def found_among(boxes, logits, threshold, count, layout="xyxy"):
    """What `best_candidates` finds, compiled, in NumPy."""

    def find(boxes, logits):
        given = map(ops.convert_to_tensor, (boxes, logits))
        return best_candidates(*given, layout, threshold, count)

    return numpy_of(compiled(find)(boxes, logits))


def numpy_of(nest):
    return {name: to_numpy(value) for name, value in nest.items()}


@pytest.mark.parametrize("threshold", [0.2, 0.5])
def test_candidates_are_what_greedy_suppression_leaves(threshold):
    boxes, logits = random_boxes(5, 40, 3)
    found = found_among(boxes, logits, threshold, 30)
    for row in range(5):
        left = greedy_suppression(boxes[row], logits[row].max(-1), threshold)[:30]
        assert len(left) > 5
        assert found["valid"][row].tolist() == [n < len(left) for n in range(30)]
        kept = slice(len(left))
        np.testing.assert_allclose(found["boxes"][row, kept], boxes[row, left])
        np.testing.assert_allclose(
            found["logits"][row, kept], logits[row, left].max(-1)
        )
        assert (found["labels"][row, kept] == logits[row, left].argmax(-1)).all()
        assert not found["boxes"][row, len(left) :].any()


def test_any_format_of_boxes():
    boxes, logits = random_boxes(2, 12, 3)
    x1, y1, x2, y2 = np.moveaxis(boxes, -1, 0)
    centred = np.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], -1)
    expected = found_among(boxes, logits, 0.3, 8)
    found = found_among(centred, logits, 0.3, 8, "center_xywh")
    np.testing.assert_allclose(found["logits"], expected["logits"])


def test_boxes_without_area_and_nan_are_no_candidates():
    boxes, logits = random_boxes(2, 6, 2)
    boxes[0, 0, 2] = boxes[0, 0, 0]
    boxes[0, 1] = np.nan
    logits[0, 2, 1] = np.nan
    logits[0, 3, 0] = np.nan
    boxes[1] = 0.0
    found = found_among(boxes, logits, 1.1, 6)
    assert found["valid"].sum(1).tolist() == [2, 0]
    assert np.isfinite(found["boxes"]).all() and np.isfinite(found["logits"]).all()


def bound(temperature=1.0, **arguments):
    given = {"num_candidates": 5, **arguments}
    return DetectionPolicy(**given).bind(tiny_detector(), temperature)


@pytest.mark.parametrize("threshold", [0.5, 0.3])
def test_scores_are_the_detectors_own_and_the_probability_is_sharper(threshold):
    x, policy = features(3), bound(temperature=0.5, threshold=threshold)
    offset = np.log(threshold / (1 - threshold))
    model = policy.model
    scores = to_numpy(model(x)["scores"]).max(-1)
    outputs = numpy_of(policy.greedy_outputs(x, policy.encode(x)))
    probabilities = to_numpy(policy.choice_probabilities(policy.encode(x)))
    for row in range(3):
        left = greedy_suppression(BOXES, scores[row], 0.5)[:5]
        logits = scores[row, left]
        np.testing.assert_allclose(
            outputs["scores"][row], 1 / (1 + np.exp(-logits)), rtol=1e-5
        )
        np.testing.assert_allclose(
            probabilities[row, :, 1],
            1 / (1 + np.exp(2 * (offset - logits))),
            rtol=1e-5,
        )
        assert (outputs["shown"][row] == (logits > offset)).all()
        assert (outputs["labels"][row] >= 0).all()
        np.testing.assert_allclose(outputs["boxes"][row], BOXES[left])
        assert (np.diff(outputs["scores"][row]) <= 0).all()


def test_likelihood_is_that_of_independent_draws():
    x, policy = features(4), bound(temperature=0.7)
    context = policy.encode(x)
    samples = to_numpy(policy.sample(context, 3, seed=1))
    assert samples.shape == (4, 3, 5) and set(np.unique(samples)) == {0, 1}
    p = to_numpy(policy.choice_probabilities(context))[..., 1]
    chosen = np.where(samples, p[:, None], 1 - p[:, None])
    likelihood = policy.likelihood(context, samples, choices=[1 - samples])
    np.testing.assert_allclose(
        to_numpy(likelihood.log_prob), np.log(chosen).sum(-1), rtol=1e-4
    )
    np.testing.assert_allclose(
        to_numpy(likelihood.choice_log_probs)[0], np.log(1 - chosen), rtol=1e-3
    )
    entropy = -(p * np.log(p) + (1 - p) * np.log(1 - p)).mean(-1)
    np.testing.assert_allclose(to_numpy(likelihood.entropy), entropy, rtol=1e-4)
    frequent = to_numpy(policy.sample(context, 4000, seed=2)).mean(1)
    np.testing.assert_allclose(frequent, p, atol=0.05)


def test_drawn_boxes_and_their_likelihood():
    x, policy = features(3), bound(num_candidates=6, tune_boxes=0.1)
    context = policy.encode(x)
    samples = numpy_of(policy.sample(context, 500, seed=1))
    plain = bound(num_candidates=6)
    boxes, valid = to_numpy(context["boxes"]), to_numpy(context["valid"])
    sizes = np.tile(boxes[..., 2:] - boxes[..., :2], 2)
    stddevs = np.where(valid[..., None], 0.1 * sizes, 1.0)[:, None]
    off = (samples["boxes"] - boxes[:, None]) / stddevs
    np.testing.assert_allclose(off.mean((0, 1)), 0, atol=0.15)
    np.testing.assert_allclose(off.std((0, 1)), 1, atol=0.1)
    log_probs = (-0.5 * off**2 - np.log(stddevs * np.sqrt(2 * np.pi))).sum(-1)
    seen = np.logical_and(samples["shown"], valid[:, None])
    shown = plain.likelihood(plain.encode(x), samples["shown"])
    likelihood = policy.likelihood(context, samples, choices=[samples])
    expected = np.concatenate(
        [np.where(seen, log_probs, 0.0), to_numpy(shown.position_log_probs)], axis=-1
    )
    found = to_numpy(likelihood.position_log_probs)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(
        to_numpy(likelihood.log_prob), expected.sum(-1), rtol=1e-3, atol=1e-2
    )
    np.testing.assert_allclose(
        to_numpy(likelihood.entropy), to_numpy(shown.entropy), rtol=1e-5
    )
    outputs = numpy_of(policy.sampled_outputs(x, context, samples))
    drawn = samples["boxes"].reshape(1500, 6, 4)
    np.testing.assert_array_equal(outputs["boxes"], drawn)
    predicted = numpy_of(policy.greedy_outputs(x, context))
    np.testing.assert_allclose(predicted["boxes"], boxes)


# Boxes 4 wide and 2 high.
WIDE = {
    "xyxy": [1, 2, 5, 4],
    "rel_yxyx": [2, 1, 4, 5],
    "rel_xywh": [1, 2, 4, 2],
    "center_xywh": [3, 3, 4, 2],
    "center_yxhw": [3, 3, 2, 4],
}


@pytest.mark.parametrize("layout", WIDE)
def test_drawn_boxes_deviate_by_their_own_sides(layout):
    model = tiny_detector()
    model.bounding_box_format = layout
    policy = DetectionPolicy(tune_boxes=0.5).bind(model)
    boxes = ops.convert_to_tensor([[WIDE[layout]]], "float32")
    context = {"boxes": boxes, "valid": ops.ones((1, 1), dtype="bool")}
    expected = [1.0, 2.0, 1.0, 2.0] if "_y" in f"_{layout}" else [2.0, 1.0, 2.0, 1.0]
    np.testing.assert_allclose(to_numpy(policy.drawn.stddevs(context))[0, 0], expected)


def test_what_a_sample_hides_has_label_minus_one():
    x, policy = features(2), bound()
    context = policy.encode(x)
    samples = np.array([[[1, 0, 1, 1, 0], [0] * 5], [[1] * 5, [0, 1, 0, 0, 0]]])
    outputs = numpy_of(policy.sampled_outputs(x, context, samples))
    rows = samples.reshape(4, 5).astype(bool)
    every = numpy_of(policy.detections(context))
    labels = np.repeat(every["labels"], 2, axis=0)
    assert (outputs["labels"] == np.where(rows, labels, -1)).all()
    assert (outputs["shown"] == rows).all()
    for name in ("boxes", "scores"):
        np.testing.assert_allclose(outputs[name], np.repeat(every[name], 2, axis=0))


def test_padding_is_never_shown():
    x, policy = features(3), bound(num_candidates=6)
    context = policy.encode(x)
    valid = to_numpy(context["valid"])
    assert not valid[:, -1].any() and valid[:, 0].all()
    probabilities = to_numpy(policy.choice_probabilities(context))
    assert (probabilities[~valid] == [1.0, 0.0]).all()
    samples = policy.sample(context, 50, seed=0)
    assert not to_numpy(samples)[np.repeat(~valid[:, None], 50, 1)].any()
    all_shown = np.ones((3, 1, 6), "int32")
    outputs = numpy_of(policy.sampled_outputs(x, context, all_shown))
    assert ((outputs["labels"] >= 0) == valid).all()
    likelihood = policy.likelihood(context, samples)
    assert not to_numpy(likelihood.position_log_probs)[..., -1].any()


def test_no_candidates_in_an_image():
    class Nothing(TinyDetector):
        def decode_predictions(self, predictions, images):
            scores = predictions["scores"]
            boxes = ops.zeros((ops.shape(images)[0], self.number, 4))
            return self.prediction_decoder(boxes, scores)

    model = Nothing()
    model.build((None, 2))
    reward = RecallReward()
    tuned = RewardTuning(model, reward, DetectionPolicy(), credit="output")
    tuned.compile(keras.optimizers.SGD(1.0))
    x, y = features(4), targets(4)
    before = to_numpy(model.dense.kernel).copy()
    logs = tuned.train_on_batch(x, y, return_dict=True)
    assert logs["reward"] == 0.0 and logs["entropy"] == 0.0
    np.testing.assert_array_equal(to_numpy(model.dense.kernel), before)
    outputs = tuned.predict(x, verbose=0)
    assert (outputs["labels"] == -1).all() and not outputs["shown"].any()


def test_probabilities_become_logits():
    x, models = features(3), (tiny_detector(), tiny_detector(from_logits=False))
    found = [DetectionPolicy(5).bind(model).encode(x)["logits"] for model in models]
    np.testing.assert_allclose(*map(to_numpy, found), rtol=1e-4)


def test_the_number_of_candidates():
    x = features(2)
    shapes = []
    for given in ({}, {"num_candidates": 3}):
        policy = DetectionPolicy(**given).bind(tiny_detector())
        shapes.append(policy.encode(x)["valid"].shape[1])
    policy.model.prediction_decoder.max_detections = 2
    policy = DetectionPolicy().bind(policy.model)
    assert [*shapes, policy.encode(x)["valid"].shape[1]] == [6, 3, 2]
    with pytest.raises(ValueError, match="num_candidates=7, and 6 boxes"):
        bound(num_candidates=7).encode(x)
    for wrong in (0, 2.0):
        with pytest.raises(ValueError, match=f"num_candidates={wrong}"):
            DetectionPolicy(wrong)
    with pytest.raises(ValueError, match="threshold=1"):
        DetectionPolicy(threshold=1)
    for wrong in (0, True, "own"):
        with pytest.raises(ValueError, match=f"tune_boxes={wrong!r}"):
            DetectionPolicy(tune_boxes=wrong)


def test_auto_recognizes_detectors():
    assert kind_of(tiny_detector()) == "detection"
    tuned = RewardTuning(tiny_detector(), RecallReward())
    assert isinstance(tuned.policy, DetectionPolicy)


def test_models_of_another_form_are_refused():
    with pytest.raises(ValueError, match=r"KerasHub's.*Sequential.*without `decode_pr"):
        DetectionPolicy().bind(classifier())
    model = tiny_detector()
    del model.prediction_decoder.iou_threshold
    with pytest.raises(ValueError, match=r"without `prediction_decoder.iou_threshold`"):
        DetectionPolicy().bind(model)

    class MultiClassNonMaxSuppression(Decoder):
        pass

    model = TinyDetector()
    model.prediction_decoder = MultiClassNonMaxSuppression()
    with pytest.raises(ValueError, match="that suppresses boxes whatever their class"):
        DetectionPolicy().bind(model)
    with pytest.raises(ValueError, match=r"a D-FINE predicts.*TinyDetector"):
        DetectionPolicy(tune_boxes="predicted").bind(tiny_detector())
    model = tiny_detector()
    model.bounding_box_format = "corners"
    with pytest.raises(ValueError, match="bounding_box_format='corners'"):
        DetectionPolicy().bind(model)
    with pytest.raises(ValueError, match="must read that output alone"):
        MultiOutputPolicy({"boxes": DetectionPolicy()})


def test_a_reward_of_other_boxes_is_refused():
    yxyx = RecallReward(bounding_box_format="yxyx")
    for reward in (yxyx, 0.5 * yxyx + RecallReward(name="other")):
        with pytest.raises(ValueError, match=r"'recall'.*'xyxy'.*Received.*'yxyx'"):
            RewardTuning(tiny_detector(), reward)


def test_a_reference_model_has_other_candidates():
    with pytest.raises(ValueError, match=r"KL compares.*DetectionPolicy"):
        RewardTuning(tiny_detector(), RecallReward(), terms=[KL()])


def test_the_own_loss_of_a_detector_that_was_not_compiled():
    terms = [MaximumLikelihood()]
    for credit in ("parts", "output"):
        tuned = RewardTuning(
            tiny_detector(), RecallReward(), terms=terms, credit=credit
        )
        tuned.compile("sgd")
        with pytest.raises(ValueError, match=r"Compile the detector.*TinyDetector"):
            tuned.fit(features(2), targets(2), verbose=0)


def test_a_policy_that_shows_in_a_way_of_its_own_has_no_parts():
    class Own(DetectionPolicy):
        def rewarded(self, outputs):
            return outputs

    assert "Own draws or decodes in a way of its own" in Own().without_parts()
    assert DetectionPolicy().without_parts() is None
