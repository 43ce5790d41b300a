"""Boxes as rewards see them: formats, labels and overlaps."""

import keras
import numpy as np
from keras import ops

from keras_reward.forms.integers import as_int32, refuse_beyond_int32
from keras_reward.nests import as_tensor, dtype_of, may_be_equal, with_last_sizes

BOX_FORMATS = (
    *("xyxy", "yxyx", "xywh", "center_xywh", "center_yxhw"),
    *("rel_xyxy", "rel_yxyx", "rel_xywh", "rel_center_xywh"),
)
CROWD_KEYS = ("is_crowd", "iscrowd")
LARGEST_COORDINATE = 1e18  # sums of areas stay below float32's 3e38
# By how many times 2^-24 an IoU is off in float32 at most, for each time that the reach
# of a box, from the origin to its far side, is as large as its side. Found by trying:
# 3.8, 4.2 and 6.6. Boxes given by their centres have the most roundings.
ROUNDINGS = {"xyxy": 4, "yxyx": 4, "xywh": 5, "center_xywh": 8, "center_yxhw": 8}


def standardize_format(bounding_box_format):
    """The name of a box format in lower case, or a ValueError that lists them."""
    name = str(bounding_box_format).lower()
    if name not in BOX_FORMATS:
        raise ValueError(
            "`bounding_box_format` must be one of Keras's names. "
            f"Known: {', '.join(map(repr, BOX_FORMATS))}. "
            f"Received: bounding_box_format={bounding_box_format!r}"
        )
    return name


def refuse_other_format(reward, written, whose):
    """Raises if a reward, or one in a sum or product, reads boxes of another format.

    Args:
        reward: a `Reward`.
        written: Keras's name of the format of the boxes that it gets.
        whose: whose boxes, in words.
    """
    parts = getattr(reward, "rewards", None)
    for part in parts if isinstance(parts, list) else ():
        refuse_other_format(part, written, whose)
    read = getattr(reward, "bounding_box_format", written)
    if read != str(written).lower():
        raise ValueError(
            f"Reward {reward.name!r} must read boxes in the format of those {whose}. "
            f"Pass the reward `bounding_box_format={written!r}`, and `y` with boxes in "
            f"this format. Received: bounding_box_format={read!r}"
        )


def corners(boxes, bounding_box_format):
    """Left, top, right and bottom of boxes, as four separate planes.

    Boxes relative to the image's size stay relative, since intersection over union
    does not change when an axis is scaled. (Keras's own converter needs the size.)

    Args:
        boxes: `(..., N, 4)`, a tensor or a NumPy array.
        bounding_box_format: a name in `BOX_FORMATS`.

    Returns:
        Four arrays of the same kind, `(..., N)`.
    """
    layout = bounding_box_format.removeprefix("rel_")
    first, second, third, fourth = (boxes[..., i] for i in range(4))
    if layout.startswith("center_"):
        first, second = first - 0.5 * third, second - 0.5 * fourth
    if layout not in ("xyxy", "yxyx"):
        third, fourth = first + third, second + fourth
    if layout in ("yxyx", "center_yxhw"):
        return second, first, fourth, third
    return first, second, third, fourth


def read_boxes(detections, bounding_box_format, role, image_size=None):
    """Reads boxes and labels from a dictionary, and makes them safe to compare.

    Padding, inverted boxes and boxes with NaN become empty: they overlap nothing.

    Args:
        detections: dict of `boxes` `(rows, N, 4)` and `labels` or `classes`
            `(rows, N)`; other keys are ignored.
        bounding_box_format: a name in `BOX_FORMATS`.
        role: name of the dictionary in error messages.
        image_size: `(height, width)` by which boxes are divided. Default: they stay in
            their unit.

    Returns:
        dict of `left`, `top`, `right`, `bottom`, `area` (float32) and `labels`
        (int32, -1 for padding), `(rows, N)` each.
    """
    boxes, labels = _check_boxes(detections, role)
    labels = _standardize_labels(labels)
    left, top, right, bottom = corners(ops.cast(boxes, "float32"), bounding_box_format)
    if image_size is not None:
        height, width = image_size
        left, top, right, bottom = (
            *(left / width, top / height),
            *(right / width, bottom / height),
        )
    upright = ops.logical_and(right > left, bottom > top)  # False where one is NaN
    usable = ops.logical_and(labels >= 0, upright)
    left, top, right, bottom = (
        ops.where(usable, ops.clip(side, -LARGEST_COORDINATE, LARGEST_COORDINATE), 0.0)
        for side in (left, top, right, bottom)
    )
    area = (right - left) * (bottom - top)
    planes = {"left": left, "top": top, "right": right, "bottom": bottom}
    return {**planes, "area": area, "labels": labels}


def _check_boxes(detections, role):
    if not isinstance(detections, dict):
        received = "None" if detections is None else type(detections).__name__
        raise ValueError(
            f"Detection rewards need `{role}` to be a dict of `boxes` (rows, N, 4) and "
            f"`labels` or `classes` (rows, N). Received: {role}={received}"
        )
    label_key = "labels" if "labels" in detections else "classes"
    if "boxes" not in detections or label_key not in detections:
        raise ValueError(
            f"`{role}` must have the keys `boxes` and `labels` (or `classes`). "
            f"Received: keys {sorted(map(str, detections))}"
        )
    labels = detections[label_key]
    for key, value in (("boxes", detections["boxes"]), (label_key, labels)):
        if not dtype_of(value).startswith(("int", "uint", "float", "bfloat", "bool")):
            raise ValueError(
                f"`{role}` must hold arrays of numbers in `{key}`. "
                f"Received: {getattr(value, 'dtype', type(value).__name__)}"
            )
    if isinstance(labels, np.ndarray):
        refuse_beyond_int32("A detection reward", role, labels, label_key)
    boxes, labels = as_tensor(detections["boxes"]), as_tensor(labels)
    shape, label_shape = tuple(boxes.shape), tuple(labels.shape)
    if len(shape) != 3 or not may_be_equal(shape, (*label_shape, 4)):
        raise ValueError(
            f"`{role}` must hold `boxes` of shape (rows, N, 4) and `{label_key}` of "
            f"shape (rows, N). Received: boxes of shape {shape}, "
            f"{label_key} of shape {label_shape}"
        )
    if keras.backend.standardize_dtype(labels.dtype) == "bool":
        raise ValueError(
            f"`{role}` must hold class numbers, -1 for padding, in `{label_key}`. "
            "Received: dtype bool"
        )
    return with_last_sizes(boxes, (4,)), labels


def _standardize_labels(labels):
    """Labels in int32, -1 for any padding. KerasCV's labels are whole floats.

    One beyond int32 is refused on the host; here its box matches nothing.
    """
    if keras.backend.is_float_dtype(keras.backend.standardize_dtype(labels.dtype)):
        largest = 2.0**30  # a larger class number is just as unknown
        # NaN compares as False.
        labels = ops.where(labels >= 0, ops.minimum(labels, largest), -1.0)
    return ops.maximum(as_int32(labels, -1), -1)


def find_crowds(boxes):
    """What boxes say of crowds, under the key `is_crowd` or COCO's own, `iscrowd`.

    Args:
        boxes: a dict, of columns or of one annotation.

    Returns:
        The value of the key; None without either.
    """
    found = [boxes[key] for key in CROWD_KEYS if boxes.get(key) is not None]
    if len(found) == 2:
        ours, cocos = (np.asarray(ops.convert_to_numpy(each), "bool") for each in found)
        if not np.array_equal(ours, cocos):
            raise ValueError(
                "`is_crowd` and `iscrowd` mean the same: give one of them, or the same "
                f"values in both. Received: is_crowd={ours}, iscrowd={cocos}"
            )
    return found[0] if found else None


def iou_rounding(xp, boxes, bounding_box_format, unit=2.0**-24):
    """By how much an IoU with each box may be off by rounding: `(rows, N)`.

    Boxes made of tokens meet thresholds exactly: 4 of 5 pixels are an IoU of 0.8. A
    coordinate is off by half of its last bit at most, and so is a side, which may be
    much shorter. An IoU is then off by that share of the side.

    Args:
        xp: `keras.ops` or `numpy`.
        boxes: dict of `left`, `top`, `right` and `bottom`, `(rows, N)` each.
        bounding_box_format: the format that they were given in.
        unit: half of the last bit of 1.0. Default: that of float32.
    """
    total = 0.0
    for low, high in (("left", "right"), ("top", "bottom")):
        side = boxes[high] - boxes[low]
        reach = xp.maximum(xp.abs(boxes[low]), xp.abs(boxes[high]))
        total = total + reach / xp.where(side > 0.0, side, 1.0)
    return ROUNDINGS[bounding_box_format.removeprefix("rel_")] * unit * total


def best_ious(truth, boxes, rounding):
    """The IoU with which boxes are matched.

    Each predicted box is assigned to the ground-truth box of its class with which it
    has the highest IoU, the first one on ties. This does not depend on the threshold,
    so one pass over the pairs is enough for all thresholds.

    Args:
        truth: ground truth as `read_boxes` returns it, `(rows, G)` each.
        boxes: predictions in the same form, `(rows, M)` each.
        rounding: from `iou_rounding`, `(rows, M)`. IoUs that differ by no
            more are equal.

    Returns:
        `(predicted, surely, chosen)`, `(rows, M)` each: the IoU of each prediction with
        the box that it is assigned to; the same less rounding, which is above a
        threshold only if the exact IoU is; and the number of that box, int32. IoUs are
        0 where no box overlaps, and the number has no meaning.
    """
    if 0 in (truth["area"].shape[1], boxes["area"].shape[1]):
        nothing = ops.zeros_like(boxes["area"])
        return nothing, nothing, ops.zeros_like(boxes["labels"])
    shared, same = overlaps(truth, boxes)
    union = truth["area"][:, :, None] + boxes["area"][:, None, :] - shared
    iou = ops.where(same, shared / union, 0.0)
    predicted = ops.max(iou, axis=1)
    surely = ops.maximum(predicted - rounding, 0.0)
    # Finds the first maximum with two plain reductions, which vectorise; argmax does
    # not. With `surely` this is correct even if a compiler computes `iou` twice and
    # rounds differently.
    number = ops.arange(ops.shape(truth["area"])[1], dtype="int32")[None, :, None]
    best = iou >= surely[:, None, :]
    return predicted, surely, ops.min(ops.where(best, number, 2**30), axis=1)


def published_ious(truth, boxes):
    """As `best_ious`, in the arithmetic of the code published with Pinto et al. 2023.

    Relative boxes in float32, 1e-9 added to the union, a quotient, and nothing about
    rounding. `abs` is theirs too, and keeps compilers from fusing a product and a sum.

    Args:
        truth, boxes: as for `best_ious`, relative to the size of the image.

    Returns:
        `(predicted, chosen)`, `(rows, M)` each.
    """
    if 0 in (truth["area"].shape[1], boxes["area"].shape[1]):
        return ops.zeros_like(boxes["area"]), ops.zeros_like(boxes["labels"])
    shared, same = overlaps(truth, boxes)
    areas = ops.abs(boxes["area"])[:, None, :] + ops.abs(truth["area"])[:, :, None]
    iou = ops.where(same, shared / (areas - shared + 1e-9), 0.0)
    return ops.max(iou, axis=1), ops.cast(ops.argmax(iou, axis=1), "int32")


def overlaps(truth, boxes):
    """The shared area of pairs of boxes, and whether they overlap and are of one class.

    Pairs are `(rows, G, M)`, so that the maximum over G runs along vectors of M.
    """
    g = {name: plane[:, :, None] for name, plane in truth.items()}
    p = {name: plane[:, None, :] for name, plane in boxes.items()}
    width = ops.minimum(g["right"], p["right"]) - ops.maximum(g["left"], p["left"])
    height = ops.minimum(g["bottom"], p["bottom"]) - ops.maximum(g["top"], p["top"])
    shared = ops.maximum(width, 0.0) * ops.maximum(height, 0.0)
    return shared, ops.logical_and(g["labels"] == p["labels"], shared > 0.0)
