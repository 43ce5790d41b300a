"""The benchmark of boundaries: hand-worked maps, and its rules in plain Python."""

import sys

import numpy as np
import pytest
import skimage.morphology
from scipy import ndimage

from keras_reward.evaluation import BoundaryDetection, boundary_detection
from keras_reward.evaluation.boundaries import Pixels, ridges

SHOULDER = {
    17: 0.3,
    18: 0.4,
    19: 0.6,
    20: 0.9,
    21: 0.6,
    22: 0.4,
    23: 0.3,
    24: 0.3,
    25: 0.3,
    26: 0.3,
    27: 0.3,
}
HALF = {"thresholds": [0.5], "suppress": False}


def line(*columns, height=8, width=16, value=1.0):
    """A map of vertical lines."""
    drawn = np.zeros((height, width), "float32")
    drawn[:, list(columns)] = value
    return drawn


def pixels(distance):
    """The tolerance that is a distance in pixels."""
    return (distance + 0.01) / np.hypot(8, 16)


# distance, people, prediction, precision, recall
CASES = {
    "the same": (0, [line(4)], line(4), 1, 1),
    "near enough": (2, [line(4)], line(6), 1, 1),
    "too far": (2, [line(4)], line(7), 0, 0),
    "one to one": (2, [line(4)], line(4, 6), 1 / 2, 1),
    "half is found": (1, [line(4, 10)], line(5), 1, 1 / 2),
    # Each line is right for one person, and finds half of what both drew.
    "any person": (1, [line(2), line(10)], line(2, 10), 1, 1),
    "all people": (1, [line(2), line(10)], line(2), 1, 1 / 2),
    "padding": (1, [line(2), line()], line(2), 1, 1),
    "nothing predicted": (1, [line(2)], line(), 0, 0),
    "nothing drawn": (1, [line()], line(2), 0, 0),
}


@pytest.mark.parametrize("case", CASES)
def test_hand_worked_maps(case):
    distance, people, predicted, precision, recall = CASES[case]
    result = boundary_detection(
        [np.stack(people)], [predicted], tolerance=pixels(distance), **HALF
    )
    np.testing.assert_allclose(result["precision"], [precision])
    np.testing.assert_allclose(result["recall"], [recall])
    f = 2 * precision * recall / max(precision + recall, 1e-9)
    np.testing.assert_allclose([result["ods"], result["ois"]], f)
    assert result["ods_threshold"] == 0.5


def test_ois_takes_the_best_threshold_of_each_image_and_ods_one_for_all():
    # The first image needs a threshold above 0.3, the second one below it.
    first = line(4, value=0.9) + line(10, value=0.3)
    second = line(4, value=0.2)
    result = boundary_detection(
        np.stack([line(4), line(4)]),
        np.stack([first, second]),
        tolerance=pixels(0),
        thresholds=[0.1, 0.6],
        suppress=False,
    )
    # At 0.1: 16 of 24 predicted pixels are right, 16 of 16 true ones are found.
    # At 0.6: 8 of 8 are right, 8 of 16 are found.
    np.testing.assert_allclose(result["precision"], [2 / 3, 1])
    np.testing.assert_allclose(result["recall"], [1, 1 / 2])
    np.testing.assert_allclose(result["f"], [4 / 5, 2 / 3])
    assert np.isclose(result["ods"], 4 / 5) and np.isclose(result["ods_threshold"], 0.1)
    assert result["ois"] == 1.0


def brute_force_matching(true, predicted, distance):
    """The most pairs, by trying to give every true pixel each free predicted one."""
    if not len(true):
        return 0
    rest = brute_force_matching(true[1:], predicted, distance)
    for i, place in enumerate(predicted):
        if np.hypot(*(true[0] - place)) <= distance:
            others = np.delete(predicted, i, axis=0)
            rest = max(rest, 1 + brute_force_matching(true[1:], others, distance))
    return rest


def test_a_matching_has_as_many_pairs_as_can_be():
    rng = np.random.default_rng(0)
    for distance in (0.0, 1.0, 1.5, 2.3):
        for _ in range(6):
            true, predicted = rng.random((2, 5, 6)) < 0.18
            matched = Pixels(true, distance).matches(*np.nonzero(predicted))
            assert matched.shape == (predicted.sum(),)
            assert matched.sum() == brute_force_matching(
                np.argwhere(true), np.argwhere(predicted), distance
            )


def augmenting_paths(true, predicted, distance):
    """The most pairs, as textbooks find them."""
    near = [
        np.flatnonzero(np.hypot(*(true - place).T) <= distance) for place in predicted
    ]
    owner = {}

    def gets(pixel, seen):
        for other in near[pixel]:
            if other not in seen:
                seen.add(other)
                if other not in owner or gets(owner[other], seen):
                    owner[other] = pixel
                    return True
        return False

    return sum(gets(pixel, set()) for pixel in range(len(predicted)))


def test_curves_are_those_of_the_rules_in_plain_python():
    rng = np.random.default_rng(1)
    shapes, tolerance = [(14, 20), (20, 14), (16, 16)], 0.09
    people, maps, counts = [], [], []
    thresholds = np.arange(1, 9) / 9
    for number, shape in enumerate(shapes, 1):
        people.append(rng.random((number, *shape)) < 0.1)
        # Few values, so that some thresholds change nothing.
        maps.append(np.round(ndimage.gaussian_filter(rng.random(shape), 1) * 5) / 5)
        for threshold in thresholds:
            above = skimage.morphology.thin(maps[-1] >= np.float32(threshold))
            places = np.argwhere(above)
            found = [
                augmenting_paths(np.argwhere(each), places, 0.09 * np.hypot(*shape))
                for each in people[-1]
            ]
            counts.append((sum(found), people[-1].sum(), len(places)))
    found, truth, predicted = np.array(counts).reshape(3, 8, 3).sum(0).T
    result = boundary_detection(people, maps, tolerance=tolerance, suppress=False)
    every = np.searchsorted(result["thresholds"], thresholds.astype("float32"))
    assert len(result["thresholds"]) == 33 and every.max() <= 33
    result = boundary_detection(
        people, maps, tolerance=tolerance, thresholds=thresholds, suppress=False
    )
    np.testing.assert_allclose(result["recall"], found / truth)
    assert len(set(np.round(result["recall"], 6))) > 2
    # Which predicted pixels are matched with any of several people is not unique, but
    # there are at most as many as pairs, and at least as many as with one person.
    right = result["precision"] * predicted
    assert (right <= found + 1e-6).all() and (right >= found / 3 - 1e-6).all()


def test_batches_add_up_and_can_be_forgotten():
    rng = np.random.default_rng(2)
    people = rng.random((4, 2, 12, 12)) < 0.1
    maps = rng.random((4, 12, 12, 1)).astype("float32")
    boundaries = BoundaryDetection(0.1)
    for rows in (slice(0, 1), slice(1, 4)):
        boundaries.update_state(people[rows], maps[rows])
    together = boundary_detection(people, maps, tolerance=0.1)
    for name, value in boundaries.result().items():
        np.testing.assert_array_equal(value, together[name])
    boundaries.reset_state()
    assert boundaries.result()["ods"] == boundaries.result()["ois"] == 0.0


@pytest.mark.parametrize("angle", [0.0, 30.0, 45.0, 90.0, 120.0])
def test_ridges_are_where_a_blurred_line_is_highest(angle):
    down, right = np.indices((48, 48)) - 23.5
    across = right * np.cos(np.radians(angle)) + down * np.sin(np.radians(angle))
    blurred = np.exp(-(across**2) / (2 * 3.0**2))
    found = ridges(blurred)[8:-8, 8:-8] > 0.5
    # Within a pixel of the middle, hardly more than one pixel a row or column.
    assert np.abs(across[8:-8, 8:-8][found]).max() <= 1.0
    length = 32 / max(abs(np.cos(np.radians(angle))), abs(np.sin(np.radians(angle))))
    assert length * 0.7 <= found.sum() <= 2.1 * length


def test_ridges_are_smoothed_and_fade_along_the_border():
    found = ridges(line(24, height=48, width=48))
    expected = np.zeros((48, 48))
    expected[:, 24] = 0.5  # the middle of 1/4, 1/2, 1/4
    expected[[0, 47]] = 0.0
    for step in range(1, 5):
        expected[[step, 47 - step]] *= step / 5
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_thick_lines_are_thinned_before_the_thresholds_too():
    people = line(20, height=32, width=48)
    # A second, lower line on the shoulder of the first: not a ridge of its own.
    thick = sum(line(x, height=32, width=48, value=v) for x, v in SHOULDER.items())
    found = {
        suppress: boundary_detection(
            people[None], thick[None], tolerance=0.02, suppress=suppress, thresholds=3
        )["recall"]
        for suppress in (True, False)
    }
    # At 0.25 the middle of the whole is elsewhere. At the border ridges fade.
    assert found[False][0] < 0.1 and (found[False][1:] > 0.8).all()
    assert (found[True] > 0.6).all()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"tolerance": -0.1}, "share of the diagonal.*Received: tolerance=-0.1"),
        ({"tolerance": np.nan}, "Received: tolerance=nan"),
        ({"thresholds": [0.5, 1.0]}, r"must be in \(0, 1\)"),
        ({"thresholds": 0}, "at least 1"),
    ],
)
def test_wrong_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        BoundaryDetection(**arguments)


@pytest.mark.parametrize(
    "people, maps, message",
    [
        (np.zeros((2, 4, 4)), np.zeros((1, 4, 4)), "same number of images.*2 and 1"),
        (np.zeros((1, 4, 4)), np.zeros((1, 4, 5)), r"\(4, 5\), y_true .*\(1, 4, 4\)"),
        (np.zeros((1, 4, 4)), np.zeros((1, 4, 4, 2)), r"y_pred of shape \(4, 4, 2\)"),
    ],
)
def test_maps_that_do_not_fit(people, maps, message):
    with pytest.raises(ValueError, match=message):
        boundary_detection(people, maps)


@pytest.mark.parametrize("module", ["scipy.ndimage", "skimage.morphology"])
def test_a_missing_library_is_said(monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match="pip install scikit-image"):
        BoundaryDetection()
