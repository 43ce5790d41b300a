"""What an object detector predicts before it applies any threshold.

KerasHub and KerasCV are not imported: detectors are recognized by their attributes.
"""

from keras import ops, tree
from keras.utils.bounding_boxes import convert_format

from keras_reward.backend.keras_private import (
    build_compiled_loss,
    without_loss_metrics,
)
from keras_reward.forms.boxes import corners
from keras_reward.nests import is_float, map_leaves
from keras_reward.policies.factorized import SMALLEST_PROBABILITY
from keras_reward.policies.keras_hub_tasks import class_names

OF_DETECTORS = ("decode_predictions", "prediction_decoder", "bounding_box_format")
OF_DECODERS = ("from_logits", "iou_threshold", "max_detections")
# Suppression looks at this many boxes for each candidate, those with the best scores.
# All pairs of them are compared. It is the share of torchvision's detectors.
BOXES_PER_CANDIDATE = 10
# Detectors that give their decoder boxes in a format of their own, whatever the format
# of the model.
DECODED_FORMATS = {"DFineObjectDetector": "yxyx"}


def missing_of_detector(model):
    """What a model lacks to be a detector that `DetectionPolicy` reads, in words."""
    missing = [f"`{name}`" for name in OF_DETECTORS if not hasattr(model, name)]
    if missing:
        return missing
    decoder = model.prediction_decoder
    if "MultiClassNonMaxSuppression" in class_names(decoder):
        return ["a `prediction_decoder` that suppresses boxes whatever their class"]
    return [
        f"`prediction_decoder.{name}`"
        for name in OF_DECODERS
        if not hasattr(decoder, name)
    ]


def is_detector(model):
    """Whether `model` is in the form of KerasHub's and KerasCV's detectors."""
    return not missing_of_detector(model)


class Recorder:
    """Takes the place of a `prediction_decoder`, and keeps what it is given."""

    def __init__(self, bounding_box_format):
        self.bounding_box_format = bounding_box_format
        self.boxes = self.scores = None

    def __call__(self, boxes, scores, **images):
        self.boxes, self.scores = boxes, scores
        return {"boxes": boxes}


class WithDecoder:
    """A detector with another `prediction_decoder`, for a call of its own code.

    The detector stays as it is: its setter would compile its functions anew.
    """

    def __init__(self, detector, prediction_decoder):
        self.detector = detector
        self.prediction_decoder = prediction_decoder

    def __getattr__(self, name):
        return getattr(self.detector, name)


def all_predictions(detector, x, outputs):
    """All that a detector predicts, decoded by its own code, without suppression.

    Args:
        detector: a detector.
        x: the inputs that it was called with.
        outputs: what it returned.

    Returns:
        Boxes `(batch, N, 4)` in the detector's `bounding_box_format`, and logits
        `(batch, N, classes)`, both float32, with gradient.
    """
    outputs = map_leaves(
        lambda leaf: ops.cast(leaf, "float32") if is_float(leaf) else leaf, outputs
    )
    images = tree.flatten(x)[0]
    recorder = Recorder(detector.bounding_box_format)
    decode = type(detector).decode_predictions
    decode(WithDecoder(detector, recorder), outputs, images)
    boxes = ops.cast(recorder.boxes, "float32")
    for name in class_names(detector):
        if name in DECODED_FORMATS:
            height, width = ops.shape(images)[1:3]
            boxes = convert_format(
                boxes,
                source=DECODED_FORMATS[name],
                target=detector.bounding_box_format,
                height=height,
                width=width,
            )
    logits = ops.cast(recorder.scores, "float32")
    if not detector.prediction_decoder.from_logits:
        low = SMALLEST_PROBABILITY
        probabilities = ops.clip(logits, low, 1.0 - low)
        logits = ops.log(probabilities) - ops.log1p(-probabilities)
    return boxes, logits


def ready_own_loss(detector):
    """Makes a detector ready for `own_loss`, outside of any step.

    Raises:
        ValueError: if it was not compiled; for a D-FINE that has KerasHub's own loss.
    """
    if not detector.compiled:
        raise ValueError(
            "The term `MaximumLikelihood` uses the detector's own loss. Compile the "
            "detector, as for training it: `detector.compile()`. "
            f"Received: {type(detector).__name__} {detector.name!r}, not compiled"
        )
    own = vars(detector).get("compute_loss", type(detector).compute_loss)
    if "d_fine" in getattr(own, "__module__", ""):
        raise ValueError(
            "KerasHub's loss of a D-FINE compares the boxes of all images of a batch "
            "with the objects of the first one. For the term `MaximumLikelihood`, give "
            "the detector a `compute_loss` that does not. "
            f"Received: {type(detector).__name__} {detector.name!r} with KerasHub's"
        )
    build_compiled_loss(detector)


def own_loss(detector, x, y, outputs):
    """The loss that a detector was compiled with, a scalar.

    Args:
        detector: a detector, after `ready_own_loss`.
        x: the inputs that it was called with.
        y: dict of `boxes` `(batch, N, 4)` in the detector's format, and `labels`
            `(batch, N)`, -1 for padding.
        outputs: what it returned.
    """
    truth = {name: y[name] for name in ("boxes", "labels")}
    if type(detector).__module__.startswith("keras_cv"):
        labels = truth.pop("labels")
        # Its padding is a box of -1.
        is_object = ops.expand_dims(labels >= 0, -1)
        truth = {
            "boxes": ops.where(is_object, ops.cast(truth["boxes"], "float32"), -1.0),
            "classes": labels,
        }
    with without_loss_metrics(detector):
        return detector.compute_loss(
            x=x, y=truth, y_pred=outputs, sample_weight=None, training=True
        )


def best_candidates(boxes, logits, bounding_box_format, iou_threshold, count):
    """The pairs of a box and a class that suppression leaves, best scores first.

    As the detectors' own decoders do, each box has its best class, and a box goes if it
    overlaps a better one that stays, of whatever class.

    Args:
        boxes: `(batch, N, 4)`.
        logits: `(batch, N, classes)`.
        bounding_box_format: Keras's name of the format of the boxes.
        iou_threshold: IoU from which on a box goes.
        count: how many pairs, at most N.

    Returns:
        dict of `boxes` `(batch, count, 4)` and `logits` `(batch, count)`, with
        gradient, `labels` `(batch, count)` int32, `valid` `(batch, count)` bool, and
        `places` `(batch, count)`, which of the N boxes they are. Where fewer are left,
        the last ones are not valid: zeros. If all scores of an image are NaN, as of a
        model whose weights are, its logits are NaN and valid, so that the loss is NaN
        too, and does not look as if nothing had been found.
    """
    number, classes = logits.shape[1:]
    held = ops.stop_gradient(logits)
    best = ops.max(held, axis=-1)
    unknown = ops.isnan(best)
    lost = ops.all(unknown, axis=1, keepdims=True)
    best = ops.where(unknown, -float("inf"), best)
    best, order = ops.top_k(best, min(number, BOXES_PER_CANDIDATE * count))
    order = ops.cast(order, "int32")
    labels = ops.cast(ops.argmax(held, axis=-1), "int32")
    labels = ops.take_along_axis(labels, order, axis=1)
    boxes = ops.take_along_axis(boxes, order[:, :, None], axis=1)
    sides = corners(ops.stop_gradient(boxes), bounding_box_format)
    usable = ops.logical_and(ops.isfinite(best), upright(*sides))
    chosen, valid = first_true(unsuppressed(*sides, usable, iou_threshold), count)
    boxes = ops.take_along_axis(boxes, chosen[:, :, None], axis=1)
    labels = ops.take_along_axis(labels, chosen, axis=1)
    places = ops.take_along_axis(order, chosen, axis=1)
    logits = ops.reshape(logits, (-1, number * classes))
    logits = ops.take_along_axis(logits, places * classes + labels, axis=1)
    logits = ops.where(valid, logits, 0.0)
    return {
        "boxes": ops.where(valid[:, :, None], boxes, 0.0),
        "labels": ops.where(valid, labels, 0),
        "logits": ops.where(lost, float("nan"), logits),
        "valid": ops.logical_or(valid, lost),
        "places": places,
    }


def upright(left, top, right, bottom):
    """Whether boxes have an area; False where a side is NaN."""
    has_area = ops.logical_and(right > left, bottom > top)
    return ops.logical_and(has_area, ops.isfinite((right - left) * (bottom - top)))


def unsuppressed(left, top, right, bottom, usable, iou_threshold):
    """The boxes that greedy non-maximum suppression leaves.

    From the best one on, each box that is left removes those after it that it overlaps.
    All boxes are decided at once, again and again: what the first k boxes become is
    settled after k rounds, and after a few in practice. (KerasHub's layer
    `NonMaxSuppression` needs to know the batch size while TensorFlow traces, and does
    not say which boxes it leaves.)

    Args:
        left, top, right, bottom: `(batch, K)`, the best score first.
        usable: `(batch, K)` bool. The other boxes neither stay nor remove others.
        iou_threshold: IoU from which on a box is removed.

    Returns:
        `(batch, K)` bool.
    """
    width = ops.minimum(right[:, :, None], right[:, None]) - ops.maximum(
        left[:, :, None], left[:, None]
    )
    height = ops.minimum(bottom[:, :, None], bottom[:, None]) - ops.maximum(
        top[:, :, None], top[:, None]
    )
    shared = ops.maximum(width, 0.0) * ops.maximum(height, 0.0)
    area = (right - left) * (bottom - top)
    union = area[:, :, None] + area[:, None] - shared
    number = ops.arange(usable.shape[1], dtype="int32")
    removes = ops.logical_and(shared >= iou_threshold * union, number[:, None] < number)

    def again(left_over, changed):
        removed = ops.logical_and(removes, left_over[:, :, None])
        now = ops.logical_and(usable, ops.logical_not(ops.any(removed, axis=1)))
        return now, ops.any(ops.logical_xor(now, left_over))

    always = ops.ones((), dtype="bool")
    return ops.while_loop(lambda left_over, changed: changed, again, (usable, always))[
        0
    ]


def first_true(values, count):
    """Where the first `count` true values of each row are.

    Args:
        values: `(batch, K)` bool.
        count: int, at most K.

    Returns:
        Places `(batch, count)` int32, and whether there is one, bool.
    """
    size = values.shape[1]
    left = ops.where(values, ops.arange(size, 0, -1, dtype="int32"), 0)
    left = ops.cast(ops.top_k(left, count)[0], "int32")
    return ops.minimum(size - left, size - 1), left > 0
