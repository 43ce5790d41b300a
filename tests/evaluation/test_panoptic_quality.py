"""Panoptic quality of a dataset: the rules in plain Python, and hand-worked maps."""

import numpy as np
import panoptic_in_numpy as in_numpy
import pytest

from keras_reward.evaluation.panoptic_quality import PanopticQuality, panoptic_quality

VOID, A, B, C = (0, 0), (1, 1), (1, 2), (2, 1)


def random_maps(seed=0, rows=20):
    """Blocks of few classes and instances, crowds too, and moved predictions."""
    generator = np.random.default_rng(seed)
    classes = generator.integers(-1, 5, (rows, 4, 3))
    instances = generator.integers(-1, 4, classes.shape)
    y_true = np.stack([classes, instances], -1).repeat(2, 1).repeat(4, 2)
    is_moved = generator.random((rows, 8, 12, 1)) < 0.3
    return y_true, np.where(is_moved, np.roll(y_true, 1, axis=1), y_true)


@pytest.mark.parametrize("stuff_classes", [(), (1, 3)])
def test_scores_are_those_of_the_rules_in_plain_python(stuff_classes):
    y_true, y_pred = random_maps()
    expected = in_numpy.panoptic_quality(y_true, y_pred, stuff_classes)
    result = panoptic_quality(y_true, y_pred, stuff_classes)
    assert set(result["per_class"]) == set(expected)
    for label, numbers in expected.items():
        got = [result["per_class"][label][key] for key in ("pq", "sq", "rq")]
        np.testing.assert_allclose(got, numbers, atol=1e-9)
    for group, labels in (
        ("", set(expected)),
        ("_things", set(expected) - set(stuff_classes)),
        ("_stuff", set(expected) & set(stuff_classes)),
    ):
        means = np.mean([expected[label] for label in labels] or [(0, 0, 0)], axis=0)
        got = [result[key + group] for key in ("pq", "sq", "rq")]
        np.testing.assert_allclose(got, means, atol=1e-9)
        assert all(0.0 <= value <= 1.0 for value in got)
    assert 0.1 < result["pq"] < 0.9


# name: ground truth, prediction, {class: (pq, sq, rq)}
CASES = {
    "perfect": ([A] * 4 + [C] * 4, [B] * 4 + [C] * 4, {1: (1, 1, 1), 2: (1, 1, 1)}),
    "no prediction": ([A] * 8, [VOID] * 8, {1: (0, 0, 0)}),
    "no ground truth": ([VOID] * 8, [A] * 8, {}),
    "both empty": ([VOID] * 8, [VOID] * 8, {}),
    # One match of IoU 5/8, one false positive: 5/8 / 1.5.
    "split": ([A] * 8, [A] * 5 + [B] * 3, {1: (5 / 12, 5 / 8, 2 / 3)}),
    # One match of IoU 5/8, one miss.
    "merged": ([A] * 5 + [B] * 3, [A] * 8, {1: (5 / 12, 5 / 8, 2 / 3)}),
    # 4 of 8 pixels: a false positive and two misses.
    "exactly half": ([A] * 4 + [C] * 4, [A] * 8, {1: (0, 0, 0), 2: (0, 0, 0)}),
    # With a pixel of void: 4 of 7, and class 2 is missed.
    "void": ([A] * 4 + [C] * 3 + [VOID], [A] * 8, {1: (4 / 7, 4 / 7, 1), 2: (0, 0, 0)}),
    # The crowd is neither missed nor matched.
    "crowd": ([(1, -1)] * 6 + [B] * 2, [A] * 6 + [B] * 2, {1: (1, 1, 1)}),
    "only a crowd": ([(1, -1)] * 8, [VOID] * 8, {}),
    # 2 of 4 pixels on the crowd: a false positive. Class 2: 4 of 6.
    "half on crowd": (
        [(1, -1)] * 2 + [C] * 6,
        [A] * 4 + [C] * 4,
        {1: (0, 0, 0), 2: (2 / 3, 2 / 3, 1)},
    ),
    "unknown class": (
        [A] * 4 + [C] * 4,
        [A] * 4 + [(-9, 1)] * 4,
        {1: (1, 1, 1), 2: (0, 0, 0), -9: (0, 0, 0)},
    ),
    "huge ids": ([(2**31 - 1, 2**31 - 1)] * 4, [(2**31 - 1, -7)] * 4, None),
}


@pytest.mark.parametrize("name", CASES)
def test_hand_worked_cases(name):
    y_true, y_pred, expected = CASES[name]
    if expected is None:
        expected = {2**31 - 1: (1, 1, 1)}
    result = panoptic_quality(*(np.array([[each]]) for each in (y_true, y_pred)))
    per_class = {
        label: tuple(score[key] for key in ("pq", "sq", "rq"))
        for label, score in result["per_class"].items()
    }
    assert per_class == {label: pytest.approx(each) for label, each in expected.items()}
    means = np.mean(list(expected.values()) or [(0, 0, 0)], axis=0)
    np.testing.assert_allclose([result[key] for key in ("pq", "sq", "rq")], means)


def test_mean_pq_is_not_the_product_of_the_means():
    y_true = np.array([[[A] * 8 + [C] * 8]])
    y_pred = np.array([[[A] * 5 + [B] * 3 + [C] * 8]])
    result = panoptic_quality(y_true, y_pred, stuff_classes=[2])
    assert result["pq"] == pytest.approx((5 / 12 + 1) / 2)
    assert result["sq"] * result["rq"] == pytest.approx(13 / 16 * 5 / 6)
    assert result["pq_things"] == pytest.approx(5 / 12)
    assert result["pq_stuff"] == 1.0
    assert {key: result["per_class"][1][key] for key in ("tp", "fp", "fn")} == {
        **{"tp": 1, "fp": 1, "fn": 0}
    }


def test_instances_of_stuff_are_ignored():
    y_true = np.array([[[(4, 1)] * 4 + [(4, -1)] * 4]])
    y_pred = np.array([[[(4, 9)] * 3 + [(4, 8)] * 5]])
    assert panoptic_quality(y_true, y_pred, stuff_classes=[4])["pq_stuff"] == 1.0
    assert panoptic_quality(y_true, y_pred)["per_class"][4]["pq"] == 3 / 4


def test_batches_add_up_and_reset_forgets():
    y_true, y_pred = random_maps(1)
    quality = PanopticQuality(stuff_classes=[2])
    assert quality.result()["pq"] == 0.0
    quality.update_state(y_true, y_true)
    assert quality.result()["pq"] == 1.0
    quality.reset_state()
    for start in (0, 7, 14):
        batch = slice(start, start + 7)
        quality.update_state(y_true[batch].astype("int8"), y_pred[batch])
    assert quality.result() == panoptic_quality(y_true, y_pred, [2])


@pytest.mark.parametrize(
    ("y_true", "y_pred", "message"),
    [
        (np.zeros((2, 3, 2), int), np.zeros((2, 3, 2), int), r"`y_true`.*\(2, 3, 2\)"),
        (np.zeros((1, 2, 3, 2), int), np.zeros((1, 2, 3, 2)), "`y_pred`.*float64"),
        (np.zeros((1, 2, 3, 2), int), np.zeros((2, 2, 3, 2), int), "as many pred"),
        (np.zeros((1, 2, 3, 2), int), np.zeros((1, 2, 4, 2), int), "same size"),
    ],
)
def test_wrong_maps_are_refused(y_true, y_pred, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        PanopticQuality().update_state(y_true, y_pred)
