"""Weights of classes from how frequent they are."""

import numpy as np

from keras_reward.rewards.coco_classes import COCO_CLASS_COUNTS


def inverse_frequency(class_counts, class_smoothing):
    """Class weights `1 / (count + smoothing * all counts)`, scaled to mean 1.

    Returns:
        `(classes + 1,)` float32. The last is for labels beyond the counts; it is the
        weight of the rarest class.
    """
    counts = class_counts
    if isinstance(class_counts, str):
        known = {"coco": list(COCO_CLASS_COUNTS.values())}
        counts = known.get(class_counts, [])
    counts = np.asarray(counts, "float64")
    smooth = counts + class_smoothing * counts.sum()
    if counts.ndim != 1 or not counts.size or counts.min() < 0 or smooth.min() <= 0:
        raise ValueError(
            "`class_counts` must be numbers of boxes, one per class, or 'coco', and a "
            "count of 0 needs a `class_smoothing` above 0. "
            f"Received: class_counts={class_counts!r}, "
            f"class_smoothing={class_smoothing}"
        )
    weights = smooth.min() / smooth
    weights /= weights.mean()
    return np.append(weights, weights.max()).astype("float32")
