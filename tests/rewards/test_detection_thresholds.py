"""IoUs of exactly a threshold, against fractions, which do not round."""

import functools
import itertools
from fractions import Fraction

import detection_in_numpy as in_numpy
import keras
import numpy as np
import pytest
from tiny import compiled, to_numpy

from keras_reward import MeanAveragePrecisionReward, RecallReward, matched_iou
from keras_reward.evaluation import coco_detection
from keras_reward.forms.boxes import BOX_FORMATS
from keras_reward.rewards.detection import COCO_THRESHOLDS

HEIGHT, WIDTH = 480, 640
LAST = 999  # of the 1000 places of a side of the image
EXACT = [Fraction(n, 20) for n in range(10, 20)]  # COCO's thresholds
assert [float(threshold) for threshold in EXACT] == list(COCO_THRESHOLDS)


@functools.cache
def token_pairs(scale=1):
    """Pairs of boxes in whole steps of a grid of 1000: `(pairs, 4)` xyxy each.

    All pairs of a box of up to 20 by 3 steps with one that has the same corner or lies
    a step further, if their IoU is a threshold or above one by at most 0.01; near to
    the origin and far from it. `scale` makes them larger.
    """
    pairs = []
    for width, height in itertools.product((*range(1, 11), 20), (1, 2, 3)):
        truth = (0, 0, width, height)
        for w, h, shift in itertools.product(range(1, 21), (1, 2, 3), (0, 1)):
            iou = in_numpy.iou((*map(Fraction, truth), 1), (shift, 0, shift + w, h, 1))
            if any(0 <= iou - threshold <= Fraction(1, 100) for threshold in EXACT):
                pairs.append((truth, (shift, 0, shift + w, h)))
    places = np.array([(0, 0), (101, 7), (333, 978), (977, 600)])
    places = places % (LAST - scale * np.array([21, 3]))
    places = np.concatenate([places, places], 1)[:, None, None]
    return np.concatenate(places + scale * np.array(pairs)[None]).swapaxes(0, 1)


@functools.cache
def exact_ious(scale=1):
    truth, boxes = token_pairs(scale)
    return [
        in_numpy.iou((*map(Fraction, one), 1), (*map(Fraction, other), 1))
        for one, other in zip(truth.tolist(), boxes.tolist(), strict=True)
    ]


def in_format(corners, layout, dtype="float32"):
    """Boxes in steps, xyxy, in one of Keras's formats, one box in a row."""
    scale = np.ones(4) / LAST
    if not layout.startswith("rel_"):
        scale = np.array([WIDTH, HEIGHT, WIDTH, HEIGHT]) / LAST
    left, top, right, bottom = np.moveaxis(corners * scale, -1, 0)
    x, y, width, height = (
        *((left + right) / 2, (top + bottom) / 2),
        *(right - left, bottom - top),
    )
    sides = {
        "xyxy": (left, top, right, bottom),
        "yxyx": (top, left, bottom, right),
        "xywh": (left, top, width, height),
        "center_xywh": (x, y, width, height),
        "center_yxhw": (y, x, height, width),
    }[layout.removeprefix("rel_")]
    boxes = np.stack(sides, -1).astype(dtype)[:, None]
    return {"boxes": boxes, "labels": np.ones(boxes.shape[:2], "int32")}


@pytest.mark.parametrize("layout", BOX_FORMATS)
def test_an_iou_of_exactly_the_threshold_is_not_above_it(layout):
    y_true, y_pred = (in_format(each, layout) for each in token_pairs())
    passed = [sum(iou > threshold for threshold in EXACT) for iou in exact_ious()]
    at_least = [sum(iou >= threshold for threshold in EXACT) for iou in exact_ious()]
    assert sum(at_least) - sum(passed) > 100
    reward = MeanAveragePrecisionReward(bounding_box_format=layout)
    for score in (reward, compiled(reward, xla=True)):
        result = 10.0 * to_numpy(score(y_true, y_pred))
        np.testing.assert_allclose(result, passed, atol=1e-4)


@pytest.mark.parametrize("layout", ["xyxy", "rel_center_xywh"])
def test_matched_iou_is_above_the_threshold_exactly(layout):
    y_true, y_pred = (in_format(each, layout) for each in token_pairs())
    for threshold in (Fraction(1, 2), Fraction(4, 5)):
        result = to_numpy(matched_iou(y_true, y_pred, float(threshold), layout))
        expected = [float(iou) if iou > threshold else 0.0 for iou in exact_ious()]
        np.testing.assert_allclose(result[:, 0], expected, atol=1e-3)


def test_the_first_of_two_equal_ious_wins_whatever_the_rounding():
    """A box between two that it overlaps alike, and a second one on the first."""
    starts = np.arange(3, 990)
    left, middle, right = (
        np.stack([starts + k, 5 + 0 * starts, starts + k + 4, 8 + 0 * starts], -1)
        for k in (-1, 0, 1)
    )

    def both(first, second):
        pair = in_format(first, "rel_xyxy"), in_format(second, "rel_xyxy")
        return {
            name: np.concatenate([each[name] for each in pair], 1) for name in pair[0]
        }

    reward = RecallReward(bounding_box_format="rel_xyxy")
    predictions = both(middle, left)
    # Both go to the left one: a match and a duplicate; or the middle one to the right.
    result = to_numpy(reward(both(left, right), predictions))
    np.testing.assert_allclose(result, 0.7, rtol=1e-6)
    result = to_numpy(reward(both(right, left), predictions))
    np.testing.assert_allclose(result, 2.0, rtol=1e-6)


@pytest.mark.parametrize(
    ("layout", "scale"), [("rel_xyxy", 1), ("rel_xyxy", 40), ("rel_yxyx", 40)]
)
def test_published_arithmetic_is_repeated_to_the_last_bit(layout, scale):
    """1e-9 in the union keeps small boxes out; of larger ones rounding decides."""
    y_true, y_pred = (in_format(each, layout) for each in token_pairs(scale))
    expected = in_numpy.published_reward(
        y_true, y_pred, COCO_THRESHOLDS, layout=layout[4:]
    )
    reward = MeanAveragePrecisionReward(as_published=True, bounding_box_format=layout)
    for score in (reward, compiled(reward, xla=True)):
        result = to_numpy(score(y_true, y_pred))
        np.testing.assert_allclose(result, expected, atol=1e-6)
    exact = [
        sum(iou > Fraction(t).limit_denominator(20) for t in reward.averaged_thresholds)
        for iou in exact_ious(scale)
    ]
    differ = np.abs(10 * np.array(expected) - exact) > 0.5
    assert differ.any() == (scale == 40)


def test_published_arithmetic_divides_pixels_by_the_size_of_the_image():
    truth, boxes = (each % 16 for each in token_pairs())
    options = {"as_published": True, "image_size": (16, 16)}
    y_true, y_pred = (
        {"boxes": each[:, None].astype("float32"), "labels": np.ones((len(each), 1))}
        for each in (truth, boxes)
    )
    expected = in_numpy.published_reward(y_true, y_pred, COCO_THRESHOLDS, size=16)
    assert len(np.unique(expected)) > 3
    result = to_numpy(MeanAveragePrecisionReward(**options)(y_true, y_pred))
    np.testing.assert_allclose(result, expected, atol=1e-6)


@pytest.mark.parametrize("layout", ["rel_xyxy", "center_xywh"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_coco_keeps_an_iou_of_exactly_the_threshold(layout, dtype):
    """Each pair is a class of its own, whose mAP is the share of thresholds met."""
    chosen = slice(None, None, 7)
    y_true, y_pred = (in_format(each[chosen], layout, dtype) for each in token_pairs())
    expected = [
        sum(iou >= threshold for threshold in EXACT) / 10
        for iou in exact_ious()[chosen]
    ]
    labels = np.arange(len(expected))[:, None]
    y_true["labels"] = y_pred["labels"] = labels
    y_pred["scores"] = np.ones(labels.shape)
    scores = coco_detection(y_true, y_pred, layout, image_size=(HEIGHT, WIDTH))
    result = [scores["ap_per_class"][label] for label in range(len(expected))]
    np.testing.assert_allclose(result, expected, atol=1e-9)


def test_huge_and_tiny_boxes_have_no_nan_as_rounding():
    sides = np.array([0.0, 1e-38, 1e-20, 1.0, 1e18, np.inf], "float32")
    boxes = np.array(list(itertools.product(sides, repeat=4)), "float32")[:, None]
    boxes = {"boxes": boxes, "labels": np.ones(boxes.shape[:2], "int32")}
    result = to_numpy(MeanAveragePrecisionReward()(boxes, boxes))
    assert np.isfinite(result).all()
    assert keras.ops.shape(result) == (6**4,)
