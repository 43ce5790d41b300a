"""COCO's detection scores against pycocotools called directly."""

import sys

import keras
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from keras_reward.evaluation.coco_detection import (
    METRICS,
    CocoDetection,
    coco_detection,
)
from keras_reward.forms.boxes import BOX_FORMATS

HEIGHT, WIDTH = 200, 300


def random_case(seed, images=12, truths=9, predictions=20, classes=3):
    """Ground truth and scored predictions of all sizes, some near one another."""
    generator = np.random.default_rng(seed)

    def boxes(number):
        size = np.exp(generator.uniform(2, 5, (images, number, 2)))
        low = generator.uniform(0, 150, (images, number, 2))
        labels = generator.integers(-1, classes, (images, number))
        return {"boxes": np.concatenate([low, low + size], -1), "labels": labels}

    y_true, y_pred = boxes(truths), boxes(predictions)
    near = y_true["boxes"] + generator.normal(0, 2, y_true["boxes"].shape)
    y_pred["boxes"][:, :truths] = near
    y_pred["labels"][:, :truths] = y_true["labels"]
    y_pred["scores"] = generator.random((images, predictions))
    return y_true, y_pred


def crowds_and_areas(y_true, seed):
    """Ground truth with the optional keys."""
    generator = np.random.default_rng(seed)
    area = np.prod(y_true["boxes"][..., 2:] - y_true["boxes"][..., :2], axis=-1)
    return {
        **y_true,
        "is_crowd": generator.random(area.shape) < 0.2,
        "area": area * generator.uniform(0.3, 1.0, area.shape),
    }


def pycocotools_scores(truths, predictions, images, iou_type="bbox"):
    """The evaluator itself, with results loaded as its examples do."""
    truth = COCO()
    truth.dataset = {
        "info": {},
        "images": [{"id": i, "height": HEIGHT, "width": WIDTH} for i in range(images)],
        "categories": [{"id": i} for i in range(3)],
        "annotations": [{**a, "id": i + 1} for i, a in enumerate(truths)],
    }
    truth.createIndex()
    evaluation = COCOeval(truth, truth.loadRes(predictions), iou_type)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation


def annotations(detections):
    """COCO's list of annotations from a dictionary of `xyxy` boxes."""
    rows = []
    for image, i in np.argwhere(detections["labels"] >= 0):
        left, top, right, bottom = detections["boxes"][image, i].tolist()
        row = {
            "image_id": int(image),
            "category_id": int(detections["labels"][image, i]),
            "bbox": [left, top, right - left, bottom - top],
        }
        if "scores" in detections:
            row["score"] = float(detections["scores"][image, i])
        else:
            area = detections.get("area")
            crowd = detections.get("is_crowd")
            row["iscrowd"] = 0 if crowd is None else int(crowd[image, i])
            row["area"] = row["bbox"][2] * row["bbox"][3]
            row["area"] = row["area"] if area is None else float(area[image, i])
        rows.append(row)
    return rows


def check_equal(scores, evaluation):
    stats = [scores[name] for name in METRICS]
    np.testing.assert_allclose(stats, evaluation.stats, atol=1e-12)
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    expected = {k: precision[:, :, k].mean() for k in range(precision.shape[2])}
    assert scores["ap_per_class"] == pytest.approx(expected)


@pytest.mark.parametrize("optional_keys", [False, True])
def test_scores_are_those_of_pycocotools(optional_keys):
    for seed in range(3):
        y_true, y_pred = random_case(seed)
        if optional_keys:
            y_true = crowds_and_areas(y_true, seed)
        evaluation = pycocotools_scores(
            annotations(y_true), annotations(y_pred), len(y_true["labels"])
        )
        scores = coco_detection(y_true, y_pred)
        check_equal(scores, evaluation)
        assert 0.05 < scores["map_small"] < 0.95


def test_crowds_are_read_under_either_key():
    """Two better detections lie on the crowd: wrong if they count, else left out."""
    y_true = {
        "boxes": np.array([[[0, 0, 4, 4], [8, 8, 40, 40]]], "float64"),
        "labels": np.array([[1, 1]]),
    }
    y_pred = {
        "boxes": np.array([[[0, 0, 4, 4], [8, 8, 20, 20], [22, 22, 30, 30]]]) * 1.0,
        "labels": np.array([[1, 1, 1]]),
        "scores": np.array([[0.5, 0.9, 0.8]]),
    }
    crowd = np.array([[0, 1]])
    for keys in (("is_crowd",), ("iscrowd",), ("is_crowd", "iscrowd")):
        scores = coco_detection({**y_true, **dict.fromkeys(keys, crowd)}, y_pred)
        assert scores["map"] == pytest.approx(1.0), keys
    # As ordinary boxes: one of two is found, after two wrong ones. Precision is 1/3
    # up to a recall of 1/2, that is at 51 of 101 points.
    assert coco_detection(y_true, y_pred)["map"] == pytest.approx(51 / 101 / 3)
    with pytest.raises(ValueError, match=r"give one of them.*is_crowd=\[\[False"):
        coco_detection({**y_true, "iscrowd": crowd, "is_crowd": 0 * crowd}, y_pred)


def test_mask_scores_are_those_of_pycocotools():
    """Masks of boxes, as arrays in the ground truth and encoded in the predictions."""
    y_true, y_pred = random_case(0)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]

    def paint(boxes):
        left, top, right, bottom = np.moveaxis(boxes["boxes"], -1, 0)[..., None, None]
        inside = (columns >= left) & (columns < right) & (rows >= top)
        return (inside & (rows < bottom)).astype("uint8")

    def encode(masks):
        return [[coco_mask.encode(np.asfortranarray(m)) for m in row] for row in masks]

    truth_masks, encoded = paint(y_true), encode(paint(y_pred))
    truths, predictions = annotations(y_true), annotations(y_pred)
    for rows_, masks, boxes in (
        (truths, encode(truth_masks), y_true),
        (predictions, encoded, y_pred),
    ):
        for row, (image, i) in zip(
            rows_, np.argwhere(boxes["labels"] >= 0), strict=True
        ):
            row["segmentation"] = masks[image][i]
            del row["bbox"]
    for row in truths:
        row["area"] = float(coco_mask.area(row["segmentation"]))
    expected = pycocotools_scores(truths, predictions, len(y_true["labels"]), "segm")
    scores = coco_detection(
        {"masks": truth_masks, "labels": y_true["labels"]},
        {"masks": encoded, "labels": y_pred["labels"], "scores": y_pred["scores"]},
        iou_type="segm",
    )
    check_equal(scores, expected)
    assert scores["map"] > 0.1


@pytest.mark.parametrize("layout", BOX_FORMATS)
def test_all_formats_give_the_same_scores(layout):
    y_true, y_pred = random_case(1)
    expected = coco_detection(y_true, y_pred)
    y_true, y_pred = (
        {
            **boxes,
            "boxes": keras.ops.convert_to_numpy(
                keras.utils.bounding_boxes.convert_format(
                    boxes["boxes"].astype("float32"),
                    source="xyxy",
                    target=layout,
                    height=HEIGHT,
                    width=WIDTH,
                )
            ),
        }
        for boxes in (y_true, y_pred)
    )
    scores = coco_detection(y_true, y_pred, layout, image_size=(HEIGHT, WIDTH))
    assert [scores[name] for name in METRICS] == pytest.approx(
        [expected[name] for name in METRICS], abs=1e-3
    )


def test_batches_add_up_and_are_forgotten():
    y_true, y_pred = random_case(2)
    evaluation = CocoDetection()
    for _ in range(2):
        for part in (slice(0, 5), slice(5, 12)):
            evaluation.update_state(
                {name: value[part] for name, value in y_true.items()},
                {name: value[part] for name, value in y_pred.items()},
            )
        assert evaluation.result() == coco_detection(y_true, y_pred)
        assert evaluation.result() == coco_detection(y_true, y_pred)  # asks again
        evaluation.reset_state()


def test_tensors_and_the_names_of_kerascv_are_read():
    y_true, y_pred = random_case(3)
    expected = coco_detection(y_true, y_pred)
    kerascv = {
        "boxes": keras.ops.convert_to_tensor(y_pred["boxes"], "float32"),
        "classes": keras.ops.convert_to_tensor(y_pred["labels"], "float32"),
        "confidence": keras.ops.convert_to_tensor(y_pred["scores"], "float32"),
        "num_detections": keras.ops.ones((len(y_pred["labels"]),), "int32"),
    }
    assert coco_detection(y_true, kerascv)["map"] == pytest.approx(
        expected["map"], abs=1e-3
    )


def one(box, label=0, **columns):
    return {
        "boxes": np.array([[box]], "float64"),
        "labels": np.array([[label]]),
        **{name: np.array([[value]]) for name, value in columns.items()},
    }


@pytest.mark.parametrize(
    "wrong",
    [
        (9, 9, 0, 0),
        (9, 0, 0, 9),
        (float("nan"), 0, 9, 9),
        (3, 3, 3, 9),
        (50, 50, 60, 60),
    ],
)
def test_wrong_boxes_count_as_false_positives(wrong):
    """A wrong box of higher score before the right one halves the precision."""
    y_true = one((0, 0, 9, 9))
    right, wrong = one((0, 0, 9, 9), scores=0.5), one(wrong, scores=0.9)
    both = {name: np.concatenate([right[name], wrong[name]], 1) for name in right}
    assert coco_detection(y_true, right)["map"] == pytest.approx(1.0)
    assert coco_detection(y_true, both)["map"] == pytest.approx(0.5)


def test_classes_without_ground_truth_are_left_out():
    y_pred = one((0, 0, 9, 9), label=5, scores=0.9)
    scores = coco_detection(one((0, 0, 9, 9)), y_pred)
    assert scores["ap_per_class"] == {0: 0.0}
    assert scores["map"] == 0.0
    scores = coco_detection(one((0, 0, 9, 9), label=-1), y_pred)
    assert scores["ap_per_class"] == {}
    assert scores["map"] == -1.0


def test_nothing_at_all_scores_minus_one():
    empty = {"boxes": np.zeros((2, 0, 4)), "labels": np.zeros((2, 0), "int32")}
    scores = coco_detection(empty, {**empty, "scores": np.zeros((2, 0))})
    assert {scores[name] for name in METRICS} == {-1.0}


def test_nothing_is_printed(capsys):
    coco_detection(*random_case(4))
    assert capsys.readouterr().out == ""


def test_missing_pycocotools_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    with pytest.raises(ImportError, match=r"pip install pycocotools"):
        CocoDetection()


BOX = one((0, 0, 9, 9))


@pytest.mark.parametrize(
    ("y_true", "y_pred", "options", "message"),
    [
        (BOX, BOX, {}, r"`y_pred`.*'scores' or 'confidence'.*\['boxes', 'labels'\]"),
        (BOX, None, {}, "`y_pred` must be a dict.*Received: NoneType"),
        ({"labels": BOX["labels"]}, BOX, {}, r"`y_true`.*'boxes'.*\['labels'\]"),
        (BOX, BOX, {"iou_type": "segm"}, "'masks'"),
        (BOX, BOX, {"iou_type": "area"}, "'bbox' or 'segm'.*'area'"),
        (BOX, BOX, {"bounding_box_format": "xy"}, "Known: 'xyxy'"),
        (BOX, BOX, {"bounding_box_format": "rel_xyxy"}, r"image_size=\(height, width"),
        (
            BOX,
            {**BOX, "scores": np.ones((1, 2))},
            {},
            r"labels of shape \(1, 1\), score of shape \(1, 2\)",
        ),
        (
            {name: np.repeat(value, 2, 0) for name, value in BOX.items()},
            {**BOX, "scores": np.ones((1, 1))},
            {},
            "same number of images. Received: 2 and 1",
        ),
    ],
)
def test_wrong_calls_are_refused(y_true, y_pred, options, message):
    with pytest.raises(ValueError, match=message):
        coco_detection(y_true, y_pred, **options)
