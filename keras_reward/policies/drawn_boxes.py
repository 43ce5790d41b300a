"""How `DetectionPolicy` draws boxes: around them, or as a D-FINE predicts them."""

import importlib
import math

import keras
from keras import ops

from keras_reward.categorical import draw_categorical
from keras_reward.forms.boxes import corners

OF_DFINE = ("intermediate_predicted_corners", "initial_reference_points")


def boxes_drawn_by(tune_boxes, model, bounding_box_format):
    """What draws the boxes of a detector, or None; `tune_boxes` of `DetectionPolicy`.

    Raises:
        ValueError: for "predicted", if the detector predicts no distribution.
    """
    if tune_boxes is None:
        return None
    if tune_boxes != "predicted":
        return NormalBoxes(tune_boxes, bounding_box_format)
    decoder = getattr(getattr(model, "backbone", None), "decoder", None)
    if not all(hasattr(decoder, name) for name in ("max_num_bins", "reg_scale")):
        raise ValueError(
            '`tune_boxes="predicted"` draws the sides of a box from the distribution '
            "that a D-FINE predicts. For another detector, pass a standard deviation, "
            f"such as `tune_boxes=0.05`. Received: {type(model).__name__} "
            f"{model.name!r}"
        )
    return PredictedSides(decoder, bounding_box_format)


class NormalBoxes:
    """Draws from normal distributions around the boxes that a detector predicts.

    What is drawn are boxes, `(batch, n, M, 4)`.

    Args:
        stddev: standard deviation, as a share of the width or height of a box.
        bounding_box_format: Keras's name of the format of the boxes.
    """

    def __init__(self, stddev, bounding_box_format):
        self.stddev = stddev
        self.bounding_box_format = bounding_box_format

    def context(self, outputs, places, images):
        """What to add to the context of the policy."""
        return {}

    def stddevs(self, context):
        """The standard deviation of each number of each box, `(batch, M, 4)`."""
        boxes = ops.stop_gradient(context["boxes"])
        left, top, right, bottom = corners(boxes, self.bounding_box_format)
        sizes = [right - left, bottom - top]
        if self.bounding_box_format.split("_")[-1].startswith("y"):
            sizes.reverse()
        sizes = ops.stack([*sizes, *sizes], axis=-1)
        return ops.where(context["valid"][:, :, None], self.stddev * sizes, 1.0)

    def draw(self, context, shape, seed, noise):
        """Draws boxes; `noise` is normal, `(*shape, 4)`, or None."""
        if noise is None:
            noise = keras.random.normal((*shape, 4), seed=seed, dtype="float32")
        boxes = ops.stop_gradient(context["boxes"])[:, None]
        return boxes + self.stddevs(context)[:, None] * noise

    def mode(self, context):
        return ops.stop_gradient(context["boxes"])

    def boxes(self, context, drawn):
        return drawn

    def log_prob(self, context, drawn):
        """The log-density of each box, for drawn ones `(..., batch, n, M, 4)`."""
        stddevs = self.stddevs(context)[:, None]
        off = (drawn - context["boxes"][:, None]) / stddevs
        log_probs = -0.5 * off**2 - ops.log(stddevs) - 0.5 * math.log(2.0 * math.pi)
        return ops.sum(log_probs, axis=-1)


class PredictedSides:
    """Draws each side of a box from the distribution that a D-FINE predicts for it.

    A D-FINE predicts how likely each of some distances from a reference box is, and
    puts the side at their mean (Peng et al. 2024, "D-FINE: Redefine regression task in
    DETRs as fine-grained distribution refinement", equations 2 and 3). What is drawn
    are the indices of distances, `(batch, n, M, 4)`, left, top, right and bottom.

    Args:
        decoder: the `decoder` of the detector's backbone.
        bounding_box_format: Keras's name of the format of the boxes.
    """

    def __init__(self, decoder, bounding_box_format):
        self.decoder = decoder
        self.bounding_box_format = bounding_box_format

    def context(self, outputs, places, images):
        """The logits of the sides of the candidates, `(batch, M, 4, distances)`, and
        their reference boxes `(batch, M, 4)`, relative to images of a size."""
        sides, references = (ops.cast(outputs[k], "float32")[:, -1] for k in OF_DFINE)
        sides = ops.take_along_axis(sides, places[:, :, None], axis=1)
        references = ops.take_along_axis(references, places[:, :, None], axis=1)
        return {
            "sides": ops.reshape(sides, (*ops.shape(places), 4, -1)),
            "references": ops.stop_gradient(references),
            "size": ops.shape(images)[1:3],
        }

    def draw(self, context, shape, seed, noise):
        """Draws distances; `noise` is uniform, `(*shape, 4)`, or None."""
        if noise is None:
            noise = keras.random.uniform((*shape, 4), seed=seed, dtype="float32")
        logits = ops.stop_gradient(context["sides"])
        drawn = draw_categorical(logits, ops.transpose(noise, (0, 2, 3, 1)))
        return ops.transpose(drawn, (0, 3, 1, 2))

    def mode(self, context):
        return ops.cast(ops.argmax(context["sides"], axis=-1), "int32")

    def boxes(self, context, drawn):
        """The boxes of drawn distances `(batch, n, M, 4)`, in the detector's format."""
        own, decoder = (
            importlib.import_module(type(self.decoder).__module__),
            self.decoder,
        )
        distances = own.weighting_function(
            decoder.max_num_bins, decoder.upsampling_factor, decoder.reg_scale
        )
        distances = ops.take(ops.stop_gradient(distances), drawn)
        boxes = own.distance2bbox(
            ops.broadcast_to(context["references"][:, None], ops.shape(distances)),
            ops.cast(distances, "float32"),
            decoder.reg_scale,
        )
        height, width = context["size"]
        shape = ops.shape(boxes)
        boxes = keras.utils.bounding_boxes.convert_format(
            ops.reshape(boxes, (shape[0], -1, 4)),
            source="rel_center_xywh",
            target=self.bounding_box_format,
            height=height,
            width=width,
        )
        boxes = ops.reshape(boxes, shape)
        return ops.where(context["valid"][:, None, :, None], boxes, 0.0)

    def log_prob(self, context, drawn):
        """The log-probability of each box, for drawn ones `(..., batch, n, M, 4)`."""
        log_probs = ops.log_softmax(context["sides"], axis=-1)[:, None]
        chosen = ops.one_hot(drawn, log_probs.shape[-1], dtype="float32")
        return ops.sum(chosen * log_probs, axis=(-2, -1))
