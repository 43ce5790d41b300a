"""COCO's official detection metrics, for the dictionaries that rewards see."""

import collections
import contextlib
import io

import keras
import numpy as np

from keras_reward.forms.boxes import (
    corners,
    find_crowds,
    iou_rounding,
    standardize_format,
)

METRICS = (
    *("map", "map_50", "map_75", "map_small", "map_medium", "map_large"),
    *("ar_1", "ar_10", "ar_100", "ar_small", "ar_medium", "ar_large"),
)


class CocoDetection:
    """Mean average precision and average recall over a dataset, as COCO defines them.

    Uses `COCOeval` of pycocotools (`pip install pycocotools`). Collects batches,
    like a Keras metric, but on the host. An IoU of at least the threshold is a match;
    one of exactly the threshold is, whatever the rounding of the boxes' dtype.

    Args:
        bounding_box_format: Keras's name of the format of all boxes. Default `"xyxy"`.
        image_size: `(height, width)` in pixels of all images, needed for boxes in a
            relative format: COCO sorts boxes by their area in pixels. Default None.
        iou_type: `"bbox"` (the default), or `"segm"` to compare masks.

    Example:

    ```python
    import numpy as np
    from keras_reward.evaluation import CocoDetection

    truth = {"boxes": np.array([[[0, 0, 4, 4]]], "float32"), "labels": np.array([[7]])}
    evaluation = CocoDetection()
    evaluation.update_state(truth, {**truth, "scores": np.array([[0.9]])})
    evaluation.result()["map"]  # 1.0
    ```

    Reference: Lin et al. 2014, "Microsoft COCO: common objects in context".
    """

    def __init__(self, bounding_box_format="xyxy", image_size=None, iou_type="bbox"):
        import_pycocotools()  # fails now, not after an epoch
        self.bounding_box_format = standardize_format(bounding_box_format)
        if self.bounding_box_format.startswith("rel_") and image_size is None:
            raise ValueError(
                "COCO's metrics depend on areas in pixels, so boxes in a relative "
                "format need `image_size=(height, width)`. Received: "
                f"bounding_box_format={bounding_box_format!r}, image_size=None"
            )
        if iou_type not in ("bbox", "segm"):
            raise ValueError(
                f"`iou_type` must be 'bbox' or 'segm'. Received: iou_type={iou_type!r}"
            )
        self.image_size = image_size
        self.iou_type = iou_type
        self.reset_state()

    def reset_state(self):
        """Forgets all images."""
        self.images = 0
        self.unit = 2.0**-53  # half of the last bit of a coordinate of 1
        self.truth = []
        self.predictions = []

    def update_state(self, y_true, y_pred):
        """Adds a batch of images.

        Args:
            y_true: dict of `boxes` `(images, N, 4)` and `labels` or `classes`
                `(images, N)`, where a negative label is padding; optionally `area`
                `(images, N)`, in pixels (default: that of the box or mask), and
                `is_crowd`, or as COCO spells it `iscrowd`, `(images, N)`.
            y_pred: the same with `scores` or `confidence` `(images, M)`, without the
                optional keys.

        With `iou_type="segm"` both have `masks` instead of `boxes`: `(images, N, H, W)`
        of 0 and 1, or for each image a list of COCO's compressed run-length encodings.
        """
        truth = self.annotations(y_true, "y_true")
        predictions = self.annotations(y_pred, "y_pred", with_scores=True)
        if truth[0] != predictions[0]:
            raise ValueError(
                "`y_true` and `y_pred` must hold the same number of images. "
                f"Received: {truth[0]} and {predictions[0]}"
            )
        self.truth += truth[1]
        self.predictions += predictions[1]
        self.images += truth[0]

    def annotations(self, detections, role, with_scores=False):
        """The number of images, and COCO's annotations of them."""
        label_key = find_key(detections, ("labels", "classes"), role)
        shape_key = find_key(
            detections, ("masks",) if self.iou_type == "segm" else ("boxes",), role
        )
        labels = to_array(detections[label_key])
        columns = {}
        if with_scores:
            score_key = find_key(detections, ("scores", "confidence"), role)
            columns["score"] = to_array(detections[score_key])
        else:
            given = {
                "area": detections.get("area"),
                "iscrowd": find_crowds(detections),
            }
            columns = {
                name: to_array(column)
                for name, column in given.items()
                if column is not None
            }
        shapes = detections[shape_key]
        if self.iou_type == "bbox":
            shapes = to_array(shapes)
            if shapes.dtype.itemsize < 8:
                self.unit = 2.0**-24
            shapes = to_left_top_width_height(
                shapes, self.bounding_box_format, self.image_size
            )
        check_lengths(role, labels, {shape_key: shapes, **columns})
        found = [
            {
                "image_id": self.images + image,
                "category_id": int(labels[image, i]),
                "iscrowd": 0,
                **self.shape(shapes[image][i]),
                **{name: float(value[image, i]) for name, value in columns.items()},
            }
            for image, i in zip(*np.nonzero(labels >= 0), strict=True)
        ]
        return len(labels), found

    def shape(self, shape):
        """The part of an annotation that describes one box or mask."""
        if self.iou_type == "bbox":
            return {"bbox": shape.tolist(), "area": float(shape[2] * shape[3])}
        mask = import_pycocotools().mask
        if not isinstance(shape, dict):
            shape = mask.encode(np.asfortranarray(to_array(shape) > 0, dtype="uint8"))
        return {"segmentation": shape, "area": float(mask.area(shape))}

    def result(self):
        """The metrics of all images so far.

        Returns:
            dict of COCO's twelve numbers as floats: `map` (IoU 0.50 to 0.95), `map_50`,
            `map_75`, `map_small`, `map_medium`, `map_large`, `ar_1`, `ar_10`, `ar_100`
            (average recall with this many boxes per image), `ar_small`, `ar_medium`,
            `ar_large`, which are -1 without ground truth of that kind; and
            `ap_per_class`, a dict from the label of each class with ground truth to
            its `map`.
        """
        tools = import_pycocotools()
        labels = {box["category_id"] for box in self.truth + self.predictions}
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
            evaluation = tools.cocoeval.COCOeval(
                *(
                    self.dataset(boxes, sorted(labels))
                    for boxes in (self.truth, self.predictions)
                ),
                self.iou_type,
            )
            if self.iou_type == "bbox":
                self.keep_exact_ones(evaluation)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        # Axes: (thresholds, recalls, classes, areas, numbers of boxes).
        precision = evaluation.eval["precision"][:, :, :, 0, -1]
        per_class = {
            label: float(precision[:, :, k].mean())
            for k, label in enumerate(sorted(labels))
            if precision[0, 0, k] > -1
        }
        metrics = dict(zip(METRICS, map(float, evaluation.stats), strict=True))
        return {**metrics, "ap_per_class": per_class}

    def keep_exact_ones(self, evaluation):
        """Has a `COCOeval` count an IoU that only rounding put below a threshold."""
        groups = collections.defaultdict(list)
        for box in self.predictions:
            groups[box["image_id"], box["category_id"]].append(box)
        compute = evaluation.computeIoU

        def with_rounding(image, label):
            ious, boxes = compute(image, label), groups[image, label]
            if not len(ious):
                return ious
            # The order of `COCOeval`, which takes the first ones.
            order = np.argsort([-box["score"] for box in boxes], kind="mergesort")
            sides = np.array([boxes[i]["bbox"] for i in order[: len(ious)]]).T
            corner, size = sides[:2], sides[2:]
            sides = np.concatenate([corner, corner + size])
            planes = dict(zip(("left", "top", "right", "bottom"), sides, strict=True))
            rounding = iou_rounding(np, planes, self.bounding_box_format, self.unit)
            return ious + rounding[:, None]

        evaluation.computeIoU = with_rounding

    def dataset(self, annotations, labels):
        """Annotations in the form that pycocotools needs."""
        dataset = import_pycocotools().coco.COCO()
        dataset.dataset = {
            # pycocotools reads the sizes, but encoded masks have their own.
            "images": [
                {"id": image, "height": 0, "width": 0} for image in range(self.images)
            ],
            "categories": [{"id": label} for label in labels],
            # COCOeval takes id 0 for "no match", and writes into the dicts.
            "annotations": [
                {**box, "id": i} for i, box in enumerate(annotations, start=1)
            ],
        }
        dataset.createIndex()
        return dataset


def coco_detection(
    y_true, y_pred, bounding_box_format="xyxy", image_size=None, iou_type="bbox"
):
    """COCO's official detection metrics of predicted boxes.

    Args:
        y_true: the ground truth of all images, as for `CocoDetection.update_state`.
        y_pred: the predictions in the same form, with `scores` or `confidence`.
        bounding_box_format: Keras's name of the format of all boxes. Default `"xyxy"`.
        image_size: `(height, width)` in pixels, for relative formats.
        iou_type: `"bbox"` (the default), or `"segm"` to compare masks.

    Returns:
        dict, as returned by `CocoDetection.result`.

    Example:

    ```python
    import numpy as np
    from keras_reward.evaluation import coco_detection

    truth = {"boxes": np.array([[[0, 0, 4, 4]]], "float32"), "labels": np.array([[7]])}
    metrics = coco_detection(truth, {**truth, "scores": np.array([[0.9]])})
    metrics["map"], metrics["ap_per_class"]  # 1.0, {7: 1.0}
    ```

    Reference: Lin et al. 2014, "Microsoft COCO: common objects in context".
    """
    evaluation = CocoDetection(bounding_box_format, image_size, iou_type)
    evaluation.update_state(y_true, y_pred)
    return evaluation.result()


def import_pycocotools():
    """The package with the modules used here, or an error on how to install it."""
    try:
        import pycocotools.coco
        import pycocotools.cocoeval
        import pycocotools.mask
    except ImportError as error:
        raise ImportError(
            "COCO's official metrics need pycocotools. Install it with "
            "`pip install pycocotools`."
        ) from error
    return pycocotools


def to_array(value):
    """A NumPy array from an array, a list or a tensor of any backend."""
    if isinstance(value, (np.ndarray, list, tuple)):
        return np.asarray(value)  # keeps float64, which matters at thresholds
    return keras.ops.convert_to_numpy(value)


def find_key(detections, names, role):
    """The first of some keys that a dictionary has."""
    keys = sorted(detections) if isinstance(detections, dict) else None
    for name in names:
        if name in (keys or ()):
            return name
    received = type(detections).__name__ if keys is None else f"keys {keys}"
    raise ValueError(
        f"`{role}` must be a dict with the key {' or '.join(map(repr, names))}. "
        f"Received: {received}"
    )


def check_lengths(role, labels, columns):
    """Checks that all columns are as long as the labels."""
    for name, value in columns.items():
        shape = np.shape(value)[:2] if isinstance(value, np.ndarray) else (len(value),)
        if labels.ndim != 2 or shape != labels.shape[: len(shape)]:
            raise ValueError(
                f"`{role}` must hold labels of shape (images, N) and as many {name}. "
                f"Received: labels of shape {labels.shape}, {name} of shape {shape}"
            )


def to_left_top_width_height(boxes, bounding_box_format, image_size):
    """Converts boxes to COCO's format, in pixels and float64: `(images, N, 4)`.

    Boxes with NaN and inverted ones become empty, so that they count as wrong.
    """
    left, top, right, bottom = corners(boxes.astype("float64"), bounding_box_format)
    boxes = np.stack([left, top, right - left, bottom - top], axis=-1)
    if bounding_box_format.startswith("rel_"):
        height, width = image_size
        boxes = boxes * [width, height, width, height]
    boxes[..., 2:] = np.maximum(boxes[..., 2:], 0.0)
    boxes[np.isnan(boxes).any(axis=-1)] = 0.0
    return boxes
