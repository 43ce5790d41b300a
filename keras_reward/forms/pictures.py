"""Pictures of inputs and outputs, and sheets of pictures."""

import io

import keras
import numpy as np

from keras_reward.forms.colors import MAX_OVERSHOOT

CELL = 2.2  # inches


def input_images(x, stretched=False):
    """The images `(n, H, W, channels)` among a model's inputs, or None.

    Args:
        x: the inputs.
        stretched: whether to show the smallest value black and the largest one white,
            for images that are normalised in some way. Default False.
    """
    leaves = [x["images"]] if isinstance(x, dict) and "images" in x else [x]
    leaf = np.asarray(keras.tree.flatten(leaves)[0])
    if leaf.ndim != 4 or leaf.shape[-1] not in (1, 3) or leaf.dtype.kind not in "fu":
        return None
    if stretched:
        low, high = np.nanmin(leaf), np.nanmax(leaf)
        leaf = (leaf.astype("float32") - low) / max(high - low, 1e-6)
    return as_rgb(leaf)


def as_rgb(images):
    """Converts grey or RGB images to bytes `(..., 3)`.

    Args:
        images: floats in [0, 1] or in 0 to 255, which some models take, or bytes.
    """
    if images.dtype.kind == "f":
        # A few large values are noise, not another range.
        in_bytes = np.mean(images > 1.0 + MAX_OVERSHOOT) > 0.01
        images = np.nan_to_num(images) * (1.0 if in_bytes else 255.0)
        images = np.clip(images, 0.0, 255.0) + 0.5
    images = images.astype("uint8")
    return np.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images


def output_images(outputs, images, bounding_box_format="xyxy"):
    """Draws outputs as pictures; None if they cannot be drawn.

    Args:
        outputs: nest of arrays in rows, as a reward sees them: images, a dict of
            `boxes` and `labels`, or maps of integers `(rows, H, W[, channels])`, of
            which the first channel is drawn.
        images: the input images of each row, or None.
        bounding_box_format: Keras's name of the format of `boxes`.

    Returns:
        `(rows, H, W, 3)` bytes, or None.
    """
    if isinstance(outputs, dict) and {"boxes", "labels"} <= set(outputs):
        if images is None:
            return None
        return keras.visualization.draw_bounding_boxes(
            images,
            {name: np.asarray(outputs[name]) for name in ("boxes", "labels")},
            bounding_box_format,
            color=(255, 220, 0),
            line_thickness=1,
            data_format="channels_last",
        )
    if isinstance(outputs, (dict, list, tuple)):
        return None
    outputs = np.asarray(outputs)
    if outputs.ndim == 4 and outputs.shape[-1] in (1, 3) and outputs.dtype.kind == "f":
        return as_rgb(outputs)
    if outputs.ndim not in (3, 4) or outputs.dtype.kind not in "iu":
        return None
    masks = outputs[..., :1] if outputs.ndim == 4 else outputs[..., None]
    if images is None or images.shape[1:3] != masks.shape[1:3]:
        images = np.zeros((*masks.shape[:3], 3), "uint8")
    return keras.visualization.draw_segmentation_masks(
        images,
        masks.astype("int32"),
        num_classes=int(masks.max()) + 1,
        alpha=0.6,
        ignore_index=0,
        data_format="channels_last",
    )


def draw_sheet(cells):
    """Draws a PNG of pictures with captions.

    Args:
        cells: list of rows, each a list of `(picture or None, text)`; a picture is
            `(H, W, 3)` bytes.

    Returns:
        The PNG's bytes, its height and its width.
    """
    from matplotlib.figure import Figure

    rows, columns = len(cells), max(map(len, cells))
    figure = Figure(figsize=(CELL * columns, 1.25 * CELL * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for row, line in zip(panels, cells, strict=True):
        for panel, (picture, text) in zip(row, line, strict=False):
            if picture is not None:
                panel.imshow(picture, interpolation="nearest")
            # A "$" in a caption does not start a formula.
            panel.set_title(text, fontsize=8, wrap=True, parse_math=False)
        for panel in row:
            panel.axis("off")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    width, height = figure.canvas.get_width_height()
    return buffer.getvalue(), height, width
