"""The rules of the COCO panoptic evaluation in plain Python, with sets of pixels.

Written to be read, and as slow as that is. Maps are `(height, width, 2)` arrays of
class and instance, as in `PanopticQualityReward`.
"""

from collections import defaultdict
from fractions import Fraction

VOID = "void"


def segments_of(panoptic_map, stuff_classes=(), is_truth=False):
    """`{(class, instance): set of pixels}`, the void pixels under `VOID`."""
    segments = defaultdict(set)
    for row, line in enumerate(panoptic_map.tolist()):
        for column, (label, instance) in enumerate(line):
            key = (label, 0 if label in stuff_classes else instance)
            if label == 0 or (is_truth and label < 0):
                key = VOID
            segments[key].add((row, column))
    return segments


def first_segments(segments, max_segments):
    """The first `max_segments` in reading order, and the others."""
    keys = sorted((min(pixels), key) for key, pixels in segments.items() if key != VOID)
    keys = [key for _, key in keys]
    return keys[:max_segments], keys[max_segments:]


def score_image(y_true, y_pred, stuff_classes=(), max_segments=10**9):
    """What the evaluation sees in one image.

    Returns:
        dict of `matches` (list of class and IoU), `unmatched` (classes of predicted
        segments), `missed` (classes of true segments), `dropped` (a number).
    """
    true_segments = segments_of(y_true, stuff_classes, is_truth=True)
    true_keys, true_beyond = first_segments(true_segments, max_segments)
    void = set(true_segments.get(VOID, ()))
    for key in true_beyond:
        void |= true_segments[key]
    pred_segments = segments_of(y_pred, stuff_classes)
    pred_keys, pred_beyond = first_segments(pred_segments, max_segments)
    crowds = [key for key in true_keys if key[1] < 0]

    matches, matched = [], set()
    for true_key in true_keys:
        for pred_key in pred_keys:
            if true_key in crowds or true_key[0] != pred_key[0]:
                continue
            true, pred = true_segments[true_key], pred_segments[pred_key]
            iou = Fraction(len(true & pred), len((true | pred) - (pred & void)))
            if iou > Fraction(1, 2):
                matches.append((true_key[0], float(iou)))
                matched |= {("true", true_key), ("pred", pred_key)}

    unmatched = [key[0] for key in pred_beyond]
    for pred_key in pred_keys:
        pred = pred_segments[pred_key]
        ignored = set(void)
        for key in crowds:
            if key[0] == pred_key[0]:
                ignored |= true_segments[key]
        is_forgiven = Fraction(len(pred & ignored), len(pred)) > Fraction(1, 2)
        if ("pred", pred_key) not in matched and not is_forgiven:
            unmatched.append(pred_key[0])
    return {
        "matches": matches,
        "unmatched": unmatched,
        "missed": [
            key[0]
            for key in true_keys
            if key not in crowds and ("true", key) not in matched
        ],
        "dropped": len(true_beyond) + len(pred_beyond),
    }


def reward(y_true, y_pred, stuff_classes=(), max_segments=10**9, penalty=0.3):
    """`(reward, matched_iou, unmatched_segments, dropped_segments)` of one image."""
    score = score_image(y_true, y_pred, stuff_classes, max_segments)
    matched_iou = sum(iou for _, iou in score["matches"])
    unmatched = len(score["unmatched"])
    return matched_iou - penalty * unmatched, matched_iou, unmatched, score["dropped"]


def panoptic_quality(y_true, y_pred, stuff_classes=()):
    """`{class: (pq, sq, rq)}` of a dataset: PQ = sum of IoU / (TP + FP/2 + FN/2)."""
    ious, false = defaultdict(list), defaultdict(int)
    for true_map, pred_map in zip(y_true, y_pred, strict=True):
        score = score_image(true_map, pred_map, stuff_classes)
        for label, iou in score["matches"]:
            ious[label].append(iou)
        for label in score["unmatched"] + score["missed"]:
            false[label] += 1
    result = {}
    for label in set(ious) | set(false):
        total, number = sum(ious[label]), len(ious[label])
        weight = number + false[label] / 2
        result[label] = (
            total / weight,
            total / number if number else 0.0,
            number / weight,
        )
    return result
