"""The rules of the detection rewards, one box at a time, in plain Python.

Written to be read. The tests compare the rewards with it. Coordinates may be floats or
`Fraction`, which do not round.
"""

import math

import numpy as np


def read(detections, layout):
    """A list of rows; a row is a list of `(left, top, right, bottom, label)` or None.

    None stands for padding, so that boxes keep their places.
    """
    labels = detections.get("labels", detections.get("classes"))
    return [
        [
            None if label < 0 else (*corners(layout, *map(float, box)), int(label))
            for box, label in zip(row_boxes, row_labels, strict=True)
        ]
        for row_boxes, row_labels in zip(detections["boxes"], labels, strict=True)
    ]


def corners(layout, a, b, c, d):
    layout = layout.replace("rel_", "")
    if layout == "xyxy":
        return a, b, c, d
    if layout == "yxyx":
        return b, a, d, c
    if layout == "xywh":
        return a, b, a + c, b + d
    if layout == "center_xywh":
        return a - c / 2, b - d / 2, a + c / 2, b + d / 2
    if layout == "center_yxhw":
        return b - d / 2, a - c / 2, b + d / 2, a + c / 2
    raise ValueError(layout)


def iou(one, other):
    """Intersection over union; 0 if a box is padding, empty, inverted or has NaN."""
    for box in (one, other):
        if box is None or any(math.isnan(side) for side in box[:4]):
            return 0.0
        left, top, right, bottom = box[:4]
        if right <= left or bottom <= top:
            return 0.0
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    areas = [
        (right - left) * (bottom - top) for left, top, right, bottom, _ in (one, other)
    ]
    return shared / (areas[0] + areas[1] - shared)


def published_iou(one, other):
    """The arithmetic of the authors' code: float32 throughout, of relative boxes."""
    if one is None or other is None:
        return np.float32(0)
    sides = [[np.float32(side) for side in box[:4]] for box in (one, other)]
    (left, top, right, bottom), (left2, top2, right2, bottom2) = sides
    area = abs((bottom - top) * (right - left))
    area2 = abs((bottom2 - top2) * (right2 - left2))
    height = max(np.float32(0), min(bottom, bottom2) - max(top, top2))
    width = max(np.float32(0), min(right, right2) - max(left, left2))
    shared = width * height
    return shared / (area + area2 - shared + np.float32(1e-9))


def match(truth, predictions, threshold, overlap=iou):
    """For one row, the ground-truth box that each prediction belongs to, or None.

    Returns:
        A list of `(index, iou)`, one per prediction.
    """
    belongs = []
    for prediction in predictions:
        index, highest = None, threshold
        for g, box in enumerate(truth):
            if box is None or prediction is None or box[4] != prediction[4]:
                continue
            value = overlap(box, prediction)
            if value > highest:  # strictly, so that the first box wins a tie
                index, highest = g, value
        belongs.append((index, highest if index is not None else 0.0))
    return belongs


def score(truth, predictions, threshold, weight=lambda label: 1.0, overlap=iou):
    """For one row at one threshold.

    Returns:
        `(matches, duplicates, weighted matches, weighted duplicates)`.
    """
    matches = duplicates = weighted_matches = weighted_duplicates = 0
    belongs = match(truth, predictions, threshold, overlap)
    for g, box in enumerate(truth):
        here = [p for p, (index, _) in enumerate(belongs) if index == g]
        if not here:
            continue
        best = max(here, key=lambda p: belongs[p][1])
        matches += 1
        weighted_matches += weight(box[4])
        for p in here:
            if p != best:
                duplicates += 1
                weighted_duplicates += weight(predictions[p][4])
    return matches, duplicates, weighted_matches, weighted_duplicates


def class_weight(counts, smoothing):
    """A function from a label to its weight."""
    raw = [1.0 / (count + smoothing * sum(counts)) for count in counts]
    weights = [value * len(raw) / sum(raw) for value in raw]
    return lambda label: weights[label] if label < len(weights) else max(weights)


def reward(
    y_true,
    y_pred,
    thresholds,
    penalty=0.3,
    layout="xyxy",
    counts=None,
    smoothing=0.05,
    overlap=iou,
):
    """The reward of each row: the mean over thresholds."""
    weight = class_weight(counts, smoothing) if counts is not None else lambda _: 1.0
    rewards = []
    for truth, predictions in zip(
        read(y_true, layout), read(y_pred, layout), strict=True
    ):
        total = 0.0
        for threshold in thresholds:
            *_, matches, duplicates = score(
                truth, predictions, threshold, weight, overlap
            )
            total += matches - penalty * duplicates
        rewards.append(total / len(thresholds))
    return rewards


def published_reward(y_true, y_pred, thresholds, size=1, **options):
    """The same as the authors' code computes it.

    It keeps results in a dictionary whose keys are thresholds of one decimal. Boxes are
    divided by the size of the images, if they are in pixels.
    """
    y_true, y_pred = (
        {**each, "boxes": (each["boxes"] / size).astype("float32")}
        for each in (y_true, y_pred)
    )
    results = {}
    for threshold in thresholds:
        results[f"{threshold:0.1f}"] = reward(
            y_true, y_pred, [np.float32(threshold)], overlap=published_iou, **options
        )
    looked_up = [results[f"{threshold:0.1f}"] for threshold in thresholds]
    return [sum(values) / len(values) for values in zip(*looked_up, strict=True)]


def matched_iou(y_true, y_pred, threshold=0.5, layout="xyxy"):
    """Each prediction's IoU with the ground-truth box that it belongs to."""
    rows = zip(read(y_true, layout), read(y_pred, layout), strict=True)
    return [
        [value for _, value in match(truth, predictions, threshold)]
        for truth, predictions in rows
    ]
