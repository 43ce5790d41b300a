"""Panoptic quality of a dataset, as the COCO panoptic evaluation computes it."""

from collections import defaultdict

import numpy as np

from keras_reward.forms.integers import narrow_maps

VOID = 0
GROUPS = ("", "_things", "_stuff")


class PanopticQuality:
    """Panoptic quality (PQ, SQ and RQ) over all images of a dataset.

    For a class, PQ is the sum of the IoU of its matches divided by
    TP + FP / 2 + FN / 2; SQ is their mean IoU; RQ is TP / (TP + FP / 2 + FN / 2).
    The metrics of a dataset are means over classes, so its PQ is not SQ times RQ.

    Segments are matched as in `PanopticQualityReward`, with any number of segments:
    class 0 is void; in the ground truth so is any negative class, and a negative
    instance marks a crowd of its class. A class that only occurs in predictions counts
    as 0 in the means.

    Args:
        stuff_classes: classes without instances, whose instance ids are ignored. All
            others are things. Default: none.

    Example:

    ```python
    import numpy as np
    from keras_reward.evaluation import PanopticQuality

    y_true = np.zeros((1, 2, 4, 2), "int32")
    y_true[:, :, :2] = [3, 1]  # left half: class 3, instance 1
    y_true[:, :, 2:] = [7, 0]  # right half: class 7
    quality = PanopticQuality(stuff_classes=[7])
    quality.update_state(y_true, y_true)
    quality.result()["pq"]  # 1.0
    ```

    Reference: Kirillov et al. 2019, "Panoptic segmentation", section 4.
    """

    def __init__(self, stuff_classes=()):
        self.stuff_classes = frozenset(int(label) for label in stuff_classes)
        self.reset_state()

    def reset_state(self):
        """Forgets all images."""
        self._iou = defaultdict(float)
        self._counts = {kind: defaultdict(int) for kind in ("tp", "fp", "fn")}

    def update_state(self, y_true, y_pred):
        """Adds images.

        Args:
            y_true, y_pred: int maps of class and instance, `(rows, height, width, 2)`.
                Instance ids may be any integers, classes are int32.
        """
        y_true, y_pred = np.asarray(y_true), np.asarray(y_pred)
        y_true, y_pred = (
            narrow_maps("Panoptic quality", argument, maps)
            for argument, maps in (("y_true", y_true), ("y_pred", y_pred))
        )
        for argument, maps in (("y_true", y_true), ("y_pred", y_pred)):
            is_integer = np.issubdtype(maps.dtype, np.integer)
            if maps.ndim != 4 or maps.shape[-1] != 2 or not is_integer:
                raise ValueError(
                    "Panoptic quality needs integer maps of class and instance as "
                    f"`{argument}`. Expected: shape (rows, height, width, 2). "
                    f"Received: shape {maps.shape}, dtype {maps.dtype}"
                )
        if y_true.shape != y_pred.shape:
            raise ValueError(
                "Panoptic quality needs as many predictions as targets, of the same "
                f"size. Received: y_true of shape {y_true.shape}, y_pred of shape "
                f"{y_pred.shape}"
            )
        for true_map, pred_map in zip(y_true, y_pred, strict=True):
            self._add_image(true_map, pred_map)

    def _add_image(self, true_map, pred_map):
        true, true_index = segments_of(true_map, self.stuff_classes)
        true[true[:, 0] < VOID] = VOID
        pred, pred_index = segments_of(pred_map, self.stuff_classes)
        pairs = true_index * len(pred) + pred_index
        overlap = np.bincount(pairs, minlength=len(true) * len(pred))
        overlap = overlap.reshape(len(true), len(pred))

        is_void = true[:, 0] == VOID
        is_crowd = ~is_void & (true[:, 1] < 0)
        is_segment = ~is_void & ~is_crowd
        same_class = true[:, None, 0] == pred[:, 0]
        pred_area = overlap.sum(0)
        union = overlap.sum(1)[:, None] + pred_area - overlap - overlap[is_void].sum(0)
        matches = same_class & is_segment[:, None] & (2 * overlap > union)

        ignored = is_void[:, None] | (is_crowd[:, None] & same_class)
        is_forgiven = 2 * (overlap * ignored).sum(0) > pred_area
        unmatched = (pred[:, 0] != VOID) & ~matches.any(0) & ~is_forgiven
        for i, j in zip(*np.nonzero(matches), strict=True):
            self._iou[int(true[i, 0])] += overlap[i, j] / union[i, j]
        for kind, labels in (
            ("tp", true[matches.any(1), 0]),
            ("fp", pred[unmatched, 0]),
            ("fn", true[is_segment & ~matches.any(1), 0]),
        ):
            for label in labels.tolist():
                self._counts[kind][label] += 1

    def result(self):
        """The metrics of all images so far.

        Returns:
            dict: `pq`, `sq`, `rq`, and the same for things and for stuff (`pq_things`,
            `pq_stuff`, ...), floats in [0, 1], 0 if there are no classes; `per_class`,
            a dict of `pq`, `sq`, `rq`, `tp`, `fp`, `fn` for each class that occurred.
        """
        labels = sorted(set().union(*self._counts.values()))
        per_class = {label: self._class_result(label) for label in labels}
        result = {}
        for group in GROUPS:
            results = [
                result_of_class
                for label, result_of_class in per_class.items()
                if group in ("", "_stuff" if label in self.stuff_classes else "_things")
            ]
            for key in ("pq", "sq", "rq"):
                values = [one[key] for one in results]
                result[key + group] = float(np.mean(values)) if values else 0.0
        return {**result, "per_class": per_class}

    def _class_result(self, label):
        tp, fp, fn = (self._counts[kind].get(label, 0) for kind in ("tp", "fp", "fn"))
        weight = tp + 0.5 * fp + 0.5 * fn
        iou = float(self._iou.get(label, 0.0))
        return {
            "pq": iou / weight,
            "sq": iou / tp if tp else 0.0,
            "rq": tp / weight,
            **{"tp": tp, "fp": fp, "fn": fn},
        }


def segments_of(panoptic_map, stuff_classes):
    """The segments of a map, and the segment of each pixel.

    Args:
        panoptic_map: `(height, width, 2)`.
        stuff_classes: classes whose instances count as 0.

    Returns:
        `(segments, index)`: `(segments, 2)`, class and instance, both 0 for void; and
        `(pixels,)`, the segment that each pixel belongs to.
    """
    labels, instances = np.moveaxis(panoptic_map.reshape(-1, 2).astype(np.int64), 1, 0)
    instances = np.where(np.isin(labels, [VOID, *stuff_classes]), 0, instances)
    # One 64-bit number per pixel: sorting pairs is many times slower.
    keys, index = np.unique(
        (labels << 32) | (instances & 0xFFFFFFFF), return_inverse=True
    )
    segments = np.stack([keys >> 32, keys.astype(np.int32)], -1)
    return segments, index.reshape(-1)


def panoptic_quality(y_true, y_pred, stuff_classes=()):
    """PQ, SQ and RQ of a dataset: see `PanopticQuality`.

    Args:
        y_true, y_pred: int maps of class and instance, `(rows, height, width, 2)`.
        stuff_classes: classes without instances.

    Returns:
        dict, as returned by `PanopticQuality.result`.

    Example:

    ```python
    import numpy as np
    from keras_reward.evaluation import panoptic_quality

    y_true = np.ones((2, 4, 4, 2), "int32")
    y_pred = y_true.copy()
    y_pred[1, :, :1] = 0  # a quarter of the second image is predicted as void
    panoptic_quality(y_true, y_pred)["pq"]  # 0.875
    ```
    """
    quality = PanopticQuality(stuff_classes)
    quality.update_state(y_true, y_pred)
    return quality.result()
