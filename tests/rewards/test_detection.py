"""Detection rewards against numbers worked out by hand and plain Python."""

import functools

import detection_in_numpy as in_numpy
import hypothesis.extra.numpy as hnp
import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import compiled, to_numpy

from keras_reward import MeanAveragePrecisionReward, RecallReward, matched_iou
from keras_reward.forms.boxes import BOX_FORMATS, corners, read_boxes
from keras_reward.rewards.coco_classes import COCO_CLASS_COUNTS
from keras_reward.rewards.detection import COCO_THRESHOLDS

NAN = float("nan")
quick = settings(max_examples=25, deadline=None, derandomize=True)


def boxes_of(*boxes):
    """A dictionary of one row from `(left, top, right, bottom, label)` tuples."""
    values = np.array(boxes, "float32").reshape(1, -1, 5)
    return {"boxes": values[..., :4], "labels": values[..., 4].astype("int32")}


def score(reward, y_true, y_pred):
    return to_numpy(reward(y_true, y_pred))


WHOLE = (0, 0, 4, 4, 1)  # 16 pixels
UPPER = (0, 0, 4, 3, 1)  # 12 of them: IoU 0.75, above five of COCO's ten thresholds
LOWER = (0, 1, 4, 4, 1)  # 12 others: IoU 0.75 too
LEFT = (0, 0, 2, 4, 1)  # 8 of them: IoU 0.5 exactly
RIGHT = (2, 0, 4, 4, 1)
FAR = (50, 50, 60, 60, 1)
PADDING = (0, 0, 4, 4, -1)
OTHER_CLASS = (0, 0, 4, 4, 2)

# name: (ground truth, predictions, recall reward, mean average precision reward)
CASES = {
    "match": ([WHOLE], [WHOLE], 1, 1),
    "match at five of ten thresholds": ([WHOLE], [UPPER], 1, 0.5),
    "IoU not above 0.5": ([WHOLE], [LEFT], 0, 0),
    "no prediction": ([WHOLE, FAR], [], 0, 0),
    "no ground truth": ([], [WHOLE, FAR], 0, 0),
    "both empty": ([], [], 0, 0),
    "predictions all padding": ([WHOLE], [PADDING, PADDING], 0, 0),
    "ground truth all padding": ([PADDING], [WHOLE, WHOLE], 0, 0),
    "all padding": ([PADDING, PADDING], [PADDING], 0, 0),
    "padding in the middle": ([WHOLE, FAR], [WHOLE, PADDING, FAR], 2, 2),
    # One match, one duplicate with IoU 0.75: 1 - 0.3 and 1 - 0.3 * 0.5.
    "duplicate": ([WHOLE], [WHOLE, UPPER], 0.7, 0.85),
    "duplicate before the match": ([WHOLE], [UPPER, WHOLE], 0.7, 0.85),
    # Either is the match, the other the duplicate, at the same five thresholds.
    "two predictions with equal IoU": ([WHOLE], [UPPER, LOWER], 0.7, 0.35),
    "three times the same": ([WHOLE], [WHOLE, WHOLE, WHOLE], 0.4, 0.4),
    # It overlaps both by more than 0.5, and goes to the one with IoU 1 alone.
    "one prediction over two ground truths": ([UPPER, WHOLE], [WHOLE], 1, 1),
    # Both go to WHOLE (UPPER with LOWER: 8 / 16), though UPPER stays unfound.
    "not one to one": ([UPPER, WHOLE], [WHOLE, LOWER], 0.7, 0.85),
    "false positives are free": ([WHOLE], [WHOLE, FAR, FAR], 1, 1),
    "another class": ([WHOLE], [OTHER_CLASS], 0, 0),
    "the same place in two classes": ([WHOLE, OTHER_CLASS], [OTHER_CLASS], 1, 1),
    "unknown label on both sides": ([(0, 0, 4, 4, 900)], [(0, 0, 4, 4, 900)], 1, 1),
    "negative labels": ([(0, 0, 4, 4, -7)], [(0, 0, 4, 4, -7)], 0, 0),
    "zero area": ([(1, 1, 1, 4, 1)], [(1, 1, 1, 4, 1)], 0, 0),
    "a point in a box": ([WHOLE], [(2, 2, 2, 2, 1)], 0, 0),
    "inverted on both axes": ([WHOLE], [(4, 4, 0, 0, 1)], 0, 0),
    "inverted on one axis": ([WHOLE], [(4, 0, 0, 4, 1)], 0, 0),
    "inverted on both sides": ([(4, 4, 0, 0, 1)], [(4, 4, 0, 0, 1)], 0, 0),
    "NaN prediction": ([WHOLE], [(0, 0, NAN, 4, 1), WHOLE], 1, 1),
    "NaN ground truth": ([(0, NAN, 4, 4, 1), WHOLE], [WHOLE], 1, 1),
    "NaN on both sides": ([(NAN,) * 4 + (1,)], [(NAN,) * 4 + (1,)], 0, 0),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_cases_worked_out_by_hand(case):
    truth, predictions, recall, precision = CASES[case]
    # Up to three boxes of either kind, where there are any: few shapes compile fast.
    y_true, y_pred = (
        boxes_of(*boxes, *[PADDING] * (3 - len(boxes) if boxes else 0))
        for boxes in (truth, predictions)
    )
    assert score(RecallReward(), y_true, y_pred) == pytest.approx([recall])
    result = score(MeanAveragePrecisionReward(), y_true, y_pred)
    assert result == pytest.approx([precision])
    # The transcription that the random cases are compared with says the same.
    assert in_numpy.reward(y_true, y_pred, [0.5]) == pytest.approx([recall])


def test_first_ground_truth_wins_a_tie():
    """WHOLE has IoU 0.5 with both halves, and LEFT is the left half itself."""
    reward = RecallReward(iou_thresholds=(0.4,))
    predictions = boxes_of(WHOLE, LEFT)
    # Both go to LEFT.
    assert score(reward, boxes_of(LEFT, RIGHT), predictions) == pytest.approx([0.7])
    # WHOLE goes to RIGHT.
    assert score(reward, boxes_of(RIGHT, LEFT), predictions) == pytest.approx([2.0])


def test_class_weights_by_hand():
    """Counts 1 and 3: inverse 1 and 1/3, mean 2/3, so weights 1.5 and 0.5."""
    reward = MeanAveragePrecisionReward(class_counts=[1, 3], class_smoothing=0.0)
    for label, weight in ((0, 1.5), (1, 0.5), (2, 1.5), (900, 1.5)):
        box = (0, 0, 4, 4, label)
        matched = score(reward, boxes_of(box), boxes_of(box))
        assert matched == pytest.approx([weight]), label
        # A duplicate costs 0.3 of its class, an unknown class that of the rarest.
        twice = score(reward, boxes_of(box), boxes_of(box, box))
        assert twice == pytest.approx([0.7 * weight]), label


def test_class_smoothing_by_hand():
    """Counts 0 and 3 with half of all: 1.5 and 4.5, so weights 1.5 and 0.5."""
    reward = MeanAveragePrecisionReward(class_counts=[0, 3], class_smoothing=0.5)
    np.testing.assert_allclose(reward.class_weights, [1.5, 0.5, 1.5])


def test_coco_counts_are_those_of_train2017():
    counts = list(COCO_CLASS_COUNTS.values())
    assert len(counts) == 80
    assert sum(counts) == 860001
    assert min(COCO_CLASS_COUNTS, key=COCO_CLASS_COUNTS.get) == "hair drier"
    weights = MeanAveragePrecisionReward(class_counts="coco").class_weights
    assert weights[:80].mean() == pytest.approx(1.0, abs=1e-6)
    weight = in_numpy.class_weight(counts, 0.05)
    np.testing.assert_allclose(weights, [weight(c) for c in range(81)], rtol=1e-5)


def test_published_arithmetic_keeps_five_of_ten_thresholds():
    reward = MeanAveragePrecisionReward(as_published=True, image_size=16)
    kept = dict.fromkeys(reward.averaged_thresholds, 0)
    for threshold in reward.averaged_thresholds:
        kept[threshold] += 1
    assert kept == {0.5: 1, 0.6: 2, 0.7: 2, 0.85: 3, 0.95: 2}
    # IoU 0.75: ours passes 0.5, 0.55, ..., 0.7, theirs 0.5, 0.6, 0.6, 0.7, 0.7;
    # IoU 7/8: ours eight (up to 0.85), theirs eight too (all but 0.95 twice);
    # IoU 10/16 = 0.625: ours three (0.5, 0.55, 0.6), theirs three (0.5, 0.6, 0.6);
    # IoU 13/16 = 0.8125: ours seven (up to 0.8), theirs five (0.85 counts thrice).
    for height, ours, theirs in ((12, 5, 5), (14, 8, 8), (10, 3, 3), (13, 7, 5)):
        y_true, y_pred = boxes_of((0, 0, 1, 16, 1)), boxes_of((0, 0, 1, height, 1))
        assert score(reward, y_true, y_pred) == pytest.approx([theirs / 10])
        mean = score(MeanAveragePrecisionReward(), y_true, y_pred)
        assert mean == pytest.approx([ours / 10])


def random_boxes(generator, rows, number, classes):
    """Random boxes, some of them padding."""
    low = generator.uniform(0, 8, (rows, number, 2))
    size = generator.uniform(1, 8, (rows, number, 2))
    labels = generator.integers(-1, classes, (rows, number))
    boxes = np.concatenate([low, low + size], -1).astype("float32")
    return {"boxes": boxes, "labels": labels.astype("int32")}


def random_case(seed, rows=16, truths=7, predictions=11, classes=3):
    """Ground truth and predictions near it: many matches, duplicates and misses."""
    generator = np.random.default_rng(seed)
    y_true = random_boxes(generator, rows, truths, classes)
    y_pred = random_boxes(generator, rows, predictions, classes)
    chosen = generator.integers(0, truths, (rows, predictions - 2))
    near = np.take_along_axis(y_true["boxes"], chosen[..., None], 1)
    near = near + generator.normal(0, 0.4, near.shape)
    y_pred["boxes"][:, 2:] = near
    y_pred["labels"][:, 2:] = np.take_along_axis(y_true["labels"], chosen, 1)
    return y_true, y_pred


def grid_case(seed):
    """The same on few whole coordinates: ties, and empty and inverted boxes."""
    y_true, y_pred = random_case(seed)
    generator = np.random.default_rng(seed)
    for boxes in (y_true, y_pred):
        coarse = np.round(boxes["boxes"] / 2)
        inverted = generator.random(boxes["labels"].shape) < 0.1
        boxes["boxes"] = np.where(inverted[..., None], coarse[..., ::-1], coarse)
    return y_true, y_pred


OPTIONS = [
    {},
    {"iou_thresholds": (0.3,), "duplicate_penalty": 1.5},
    {"class_counts": [5, 100], "class_smoothing": 0.05},
    {"as_published": True, "image_size": 16},
    {
        "iou_thresholds": (0.0, 0.33, 0.6, 0.61, 0.64, 0.9),
        **{"as_published": True, "image_size": (16, 16)},
    },
    {
        "class_counts": [7, 0, 3],
        **{"class_smoothing": 0.1, "as_published": True, "image_size": 16},
    },
]


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("make", [random_case, grid_case])
def test_rewards_are_those_of_plain_python(options, make):
    reward = MeanAveragePrecisionReward(**options)
    rule = in_numpy.reward
    if options.get("as_published"):
        rule = functools.partial(in_numpy.published_reward, size=16)
    for seed in range(4):
        y_true, y_pred = make(seed)
        expected = rule(
            y_true,
            y_pred,
            options.get("iou_thresholds", COCO_THRESHOLDS),
            penalty=options.get("duplicate_penalty", 0.3),
            counts=options.get("class_counts"),
            smoothing=options.get("class_smoothing"),
        )
        result = score(reward, y_true, y_pred)
        np.testing.assert_allclose(result, expected, atol=1e-5)
    assert np.std(expected) > 0.2  # the cases differ


def test_parts_count_boxes_without_weights():
    y_true, y_pred = random_case(0)
    reward = MeanAveragePrecisionReward(class_counts=[1, 1000], iou_thresholds=(0.6,))
    _, components = reward.evaluate(reward.prepare(y_true), y_pred)
    rows = zip(*(in_numpy.read(b, "xyxy") for b in (y_true, y_pred)), strict=True)
    expected = np.array([in_numpy.score(*row, 0.6)[:2] for row in rows], "float32")
    assert expected.min(0).tolist() != expected.max(0).tolist()
    np.testing.assert_allclose(
        to_numpy(components["matches"]), expected[:, 0], atol=1e-5
    )
    np.testing.assert_allclose(
        to_numpy(components["duplicates"]), expected[:, 1], atol=1e-5
    )


def test_matched_iou_by_hand():
    y_true = boxes_of(WHOLE, FAR, PADDING)
    predictions = [WHOLE, UPPER, LEFT, OTHER_CLASS, PADDING, (0, 0, 4, NAN, 1)]
    # The duplicate UPPER has its IoU as well; LEFT's is 0.5, not above 0.5.
    expected = [[1.0, 0.75, 0.0, 0.0, 0.0, 0.0]]
    result = to_numpy(matched_iou(y_true, boxes_of(*predictions)))
    np.testing.assert_allclose(result, expected)
    result = to_numpy(matched_iou(y_true, boxes_of(*predictions), iou_threshold=0.4))
    np.testing.assert_allclose(result, [[1.0, 0.75, 0.5, 0.0, 0.0, 0.0]])
    assert to_numpy(matched_iou(boxes_of(), boxes_of(WHOLE))).tolist() == [[0.0]]


def test_matched_iou_is_that_of_plain_python():
    y_true, y_pred = random_case(3)
    result = to_numpy(matched_iou(y_true, y_pred, iou_threshold=0.3))
    expected = in_numpy.matched_iou(y_true, y_pred, threshold=0.3)
    np.testing.assert_allclose(result, expected, atol=1e-5)


def from_corners(boxes, layout):
    """xyxy to another layout, by Keras; relative ones for an image of 16 x 32."""
    return to_numpy(
        keras.utils.bounding_boxes.convert_format(
            boxes, source="xyxy", target=layout, height=16, width=32
        )
    )


@pytest.mark.parametrize("layout", [*BOX_FORMATS, "YXYX"])
def test_all_formats_give_the_same_reward(layout):
    y_true, y_pred = random_case(5)
    expected = score(MeanAveragePrecisionReward(), y_true, y_pred)
    ious = to_numpy(matched_iou(y_true, y_pred))
    for boxes in (y_true, y_pred):
        boxes["boxes"] = from_corners(boxes["boxes"], layout)
    reward = MeanAveragePrecisionReward(bounding_box_format=layout)
    np.testing.assert_allclose(score(reward, y_true, y_pred), expected, atol=1e-5)
    result = to_numpy(matched_iou(y_true, y_pred, bounding_box_format=layout))
    np.testing.assert_allclose(result, ious, atol=1e-5)


@pytest.mark.parametrize("layout", BOX_FORMATS)
def test_corners_are_those_of_keras(layout):
    boxes = random_case(6)[0]["boxes"]
    sides = corners(from_corners(boxes, layout), layout)
    if layout.startswith("rel_"):
        sides = [
            side * size for side, size in zip(sides, (32, 16, 32, 16), strict=True)
        ]
    np.testing.assert_allclose(np.stack(sides, -1), boxes, atol=1e-5)


def test_dictionaries_of_kerashub_and_kerascv_are_read():
    y_true, y_pred = random_case(7)
    expected = score(RecallReward(), y_true, y_pred)
    rows, number = y_pred["labels"].shape
    confidence = np.ones((rows, number), "float32")
    kerashub = {
        "boxes": y_pred["boxes"],
        "labels": y_pred["labels"].astype("int64"),
        "confidence": confidence,
        "num_detections": np.full((rows,), number, "int32"),
    }
    np.testing.assert_allclose(score(RecallReward(), y_true, kerashub), expected)
    kerascv = {
        "boxes": y_pred["boxes"],
        "classes": y_pred["labels"].astype("float32"),
        "confidence": confidence,
    }
    kerascv_truth = {
        "boxes": y_true["boxes"],
        "classes": y_true["labels"].astype("float32"),
    }
    np.testing.assert_allclose(score(RecallReward(), kerascv_truth, kerascv), expected)


def test_boxes_that_match_nothing_are_read_as_empty():
    """Not left to how a backend's maximum treats NaN."""
    inf = float("inf")
    broken = [(NAN, 0, 4, 4, 1), (0, 0, NAN, 4, 1), (4, 4, 0, 0, 1), (4, 0, 0, 4, 1)]
    broken += [PADDING, (1, 1, 1, 4, 1), (inf, 0, inf, 4, 1)]
    planes = read_boxes(boxes_of(WHOLE, *broken), "xyxy", "y_true")
    areas = to_numpy(planes["area"])[0].tolist()
    assert areas == [16.0] + [0.0] * len(broken)
    for side in ("left", "top", "right", "bottom"):
        assert to_numpy(planes[side])[0, 1:].tolist() == [0.0] * len(broken)


def test_labels_that_are_no_numbers_are_padding():
    y_true = boxes_of(WHOLE)
    y_pred = {"boxes": y_true["boxes"], "classes": np.array([[NAN]], "float32")}
    assert score(RecallReward(), y_true, y_pred) == [0.0]


SEEDS = st.integers(0, 2**16)


@quick
@given(SEEDS)
def test_order_of_boxes_changes_nothing(seed):
    y_true, y_pred = random_case(seed)
    generator = np.random.default_rng(seed)
    reward = MeanAveragePrecisionReward(class_counts=[1, 10, 100])
    expected = score(reward, y_true, y_pred)
    for boxes in (y_true, y_pred):
        order = generator.permutation(boxes["labels"].shape[1])
        shuffled = {name: value[:, order] for name, value in boxes.items()}
        pair = (shuffled, y_pred) if boxes is y_true else (y_true, shuffled)
        np.testing.assert_allclose(score(reward, *pair), expected, atol=1e-5)


@pytest.mark.slow
@quick
@given(SEEDS, hnp.arrays("float32", (16, 3, 4)))
def test_padding_changes_nothing(seed, anything):
    y_true, y_pred = random_case(seed)
    reward = MeanAveragePrecisionReward(class_counts=[1, 10, 100])
    expected = score(reward, y_true, y_pred)
    generator = np.random.default_rng(seed)
    padded = []
    for boxes in (y_true, y_pred):
        place = generator.integers(0, boxes["labels"].shape[1], 3)
        padded.append(
            {
                "boxes": np.insert(boxes["boxes"], place, anything, axis=1),
                "labels": np.insert(boxes["labels"], place, -1, axis=1),
            }
        )
    np.testing.assert_allclose(score(reward, *padded), expected, atol=1e-5)


FINITE = st.one_of(
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.sampled_from([0.0, 1.0, -1e30, 1e30, 3.4e38, -3.4e38, 1e-40]),
)
BOXES = hnp.arrays("float32", (2, 3, 4), elements=FINITE)
LABELS = hnp.arrays("int32", (2, 3), elements=st.integers(-(2**31), 2**31 - 1))


@pytest.mark.slow
@quick
@given(BOXES, BOXES, LABELS, st.sampled_from(["xyxy", "xywh", "center_xywh"]))
def test_rewards_are_finite_for_finite_boxes(truth, predictions, labels, layout):
    y_true = {"boxes": truth, "labels": np.maximum(labels, 0)}
    y_pred = {"boxes": predictions, "labels": np.maximum(labels, 0)}
    reward = MeanAveragePrecisionReward(class_counts="coco", bounding_box_format=layout)
    result = score(reward, y_true, y_pred)
    assert np.isfinite(result).all()
    ious = to_numpy(matched_iou(y_true, y_pred, bounding_box_format=layout))
    assert ((ious >= 0) & (ious <= 1)).all()
    same = score(reward, y_true, {"boxes": truth, "labels": labels})
    assert np.isfinite(same).all()


def test_huge_boxes_match_and_disturb_no_others():
    huge = (-1e30, -1e30, 1e30, 1e30, 1)
    assert score(RecallReward(), boxes_of(huge), boxes_of(huge)) == [1.0]
    y_true, y_pred = boxes_of(huge, WHOLE), boxes_of(WHOLE, huge)
    assert score(RecallReward(), y_true, y_pred) == [2.0]


@pytest.mark.parametrize("xla", [False, True])
def test_compiled_equals_eager(xla):
    y_true, y_pred = random_case(8)
    reward = MeanAveragePrecisionReward(
        class_counts=[1, 10], as_published=True, image_size=16
    )
    result = to_numpy(compiled(reward, xla=xla)(y_true, y_pred))
    np.testing.assert_allclose(result, score(reward, y_true, y_pred), atol=1e-5)
    result = to_numpy(compiled(matched_iou, xla=xla)(y_true, y_pred))
    np.testing.assert_allclose(result, matched_iou(y_true, y_pred), atol=1e-5)


def test_number_of_rows_may_be_unknown_while_tracing():
    class Score(keras.Operation):
        def call(self, y_true, y_pred):
            return MeanAveragePrecisionReward(class_counts="coco")(y_true, y_pred)

    specs = [
        {
            "boxes": keras.KerasTensor((None, number, 4)),
            "labels": keras.KerasTensor((None, number), "int32"),
        }
        for number in (3, 5)
    ]
    result = Score().compute_output_spec(*specs)
    assert result.shape == (None,)
    assert result.dtype == "float32"


@pytest.mark.parametrize(
    "reward",
    [
        RecallReward((0.5, 0.75), 0.1, "rel_yxyx", name="mine"),
        MeanAveragePrecisionReward(
            class_counts="coco", as_published=True, image_size=(16, 32)
        ),
        MeanAveragePrecisionReward(class_counts=np.array([3, 4]), class_smoothing=0.2),
    ],
)
def test_rewards_survive_serialisation(reward):
    config = keras.saving.serialize_keras_object(reward)
    copy = keras.saving.deserialize_keras_object(config)
    assert copy.get_config() == reward.get_config()
    assert copy.name == reward.name
    y_true, y_pred = random_case(9)
    np.testing.assert_array_equal(
        score(copy, y_true, y_pred), score(reward, y_true, y_pred)
    )


GOOD = boxes_of(WHOLE, UPPER)


@pytest.mark.parametrize(
    ("y_true", "y_pred", "message"),
    [
        (None, GOOD, r"`y_true` to be a dict of `boxes`.*Received: y_true=None"),
        (GOOD, np.zeros((1, 2, 4)), r"`y_pred` to be a dict.*Received: y_pred="),
        (GOOD, {"boxes": GOOD["boxes"]}, r"keys `boxes` and `labels`.*\['boxes'\]"),
        (
            GOOD,
            {"boxes": GOOD["boxes"], "labels": np.array([[1]])},
            r"`labels` of shape \(rows, N\).*\(1, 2, 4\), labels of shape \(1, 1\)",
        ),
        (
            {"boxes": np.zeros((1, 2, 5)), "classes": np.zeros((1, 2))},
            GOOD,
            r"`classes` of shape.*Received: boxes of shape \(1, 2, 5\)",
        ),
        (
            GOOD,
            {"boxes": GOOD["boxes"], "labels": np.array([[True, False]])},
            "class numbers.*Received: dtype bool",
        ),
        (
            {name: np.repeat(value, 3, 0) for name, value in GOOD.items()},
            GOOD,
            "'recall' needs targets .*: 1 rows. Received: 3 rows in `y_true`",
        ),
    ],
)
def test_wrong_boxes_are_refused(y_true, y_pred, message):
    with pytest.raises(ValueError, match=message):
        RecallReward()(y_true, y_pred)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"bounding_box_format": "xywx"},
            r"Known: 'xyxy', .*'rel_center_xywh'.*'xywx'",
        ),
        ({"iou_thresholds": ()}, r"iou_thresholds=\(\)"),
        ({"iou_thresholds": (0.5, 1.0)}, r"below 1.*\(0.5, 1.0\)"),
        ({"class_counts": "voc"}, "or 'coco'.*class_counts='voc'"),
        ({"class_counts": [1, -1]}, r"class_counts=\[1, -1\]"),
        ({"class_counts": [1, 0], "class_smoothing": 0.0}, "class_smoothing=0.0"),
        ({"as_published": True}, r"relative.*image_size=\(height.*'xyxy', image_size"),
    ],
)
def test_wrong_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MeanAveragePrecisionReward(**options)
