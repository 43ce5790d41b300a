"""A palette of colour bins, from which a colorizer chooses."""

import math

import keras
import numpy as np
from keras import ops

from keras_reward.forms.colors import (
    LAB_OFFSET,
    LAB_SLOPE,
    WHITE,
    XYZ_TO_RGB,
    check_range,
    check_whole_cells,
    lab_to_rgb,
    lightness_of,
    rgb_to_lab,
)

MIN_SPACING, MAX_SPACING = 1.0, 1000.0  # from about 130 on, there is grey alone


def gamut_colors(spacing):
    """Points of a square (a, b) grid that sRGB can show at some lightness.

    Args:
        spacing: distance between grid points in Lab units. The grid contains (0, 0).

    Returns:
        NumPy float32 array `(colors, 2)`, grey first, then by growing chroma.
    """
    reach = math.ceil(130.0 / spacing)
    axis = spacing * np.arange(-reach, reach + 1)
    a, b = (plane.ravel() for plane in np.meshgrid(axis, axis, indexing="ij"))
    lightness = np.arange(1.0, 100.0)[:, None]
    y = (lightness + 16.0) / 116.0
    f = np.stack([y + a / 500.0, y + 0.0 * a, y - b / 200.0])
    light = np.where(f > 6.0 / 29.0, f**3, (f - LAB_OFFSET) / LAB_SLOPE)
    linear = np.tensordot(XYZ_TO_RGB * WHITE, light, axes=1)
    shown = np.all((linear >= 0.0) & (linear <= 1.0), axis=0).any(axis=0)
    shown |= (a == 0.0) & (b == 0.0)
    points = np.stack([a, b], axis=-1)[shown]
    order = np.lexsort((points[:, 1], points[:, 0], np.hypot(*points.T).round(3)))
    return points[order].astype("float32")


@keras.saving.register_keras_serializable(package="keras_reward")
class ColorPalette:
    """Colour bins: a grid of the (a, b) plane, as far as sRGB can show it.

    The codec of colorizers that choose one of `num_colors` colours for each cell of a
    coarse grid, while the lightness comes from the grey input image, as in Zhang et al.
    2016, "Colorful image colorization".

    Args:
        spacing: distance between neighbouring bins in Lab units. Default 20.0.
        interpolation: how the colours of cells become those of pixels. "bilinear", the
            default, interpolates between the centres of cells. With "nearest", each
            cell paints a block of pixels of its own, so that a reward can tell what
            each cell was worth; images must be a whole number of cells high and wide.

    Attributes:
        num_colors: number of bins.
        colors: NumPy array `(num_colors, 2)` of (a, b); bin 0 is grey.
        independent_positions: whether each cell paints pixels of its own.

    Raises:
        ValueError: if `spacing` is below 1, or `interpolation` is another one.

    Example:

    ```python
    import numpy as np
    from keras_reward.codecs import ColorPalette, to_gray

    palette = ColorPalette(spacing=20.0)
    photos = np.random.default_rng(0).random((2, 8, 8, 3), "float32")
    bins = palette.encode(photos, grid=(4, 4))                 # (2, 4, 4)
    painted = palette.decode(to_gray(photos), bins[:, None])   # (2, 1, 8, 8, 3)
    ```
    """

    def __init__(self, spacing=20.0, interpolation="bilinear"):
        if not MIN_SPACING <= spacing <= MAX_SPACING:
            raise ValueError(
                f"`spacing` must be a positive number, from {MIN_SPACING:g}, where a "
                f"palette has 22,144 colours, to {MAX_SPACING:g}. "
                f"Received: spacing={spacing}"
            )
        if interpolation not in INTERPOLATIONS:
            raise ValueError(
                '`interpolation` must be "bilinear" or "nearest". With "nearest" each '
                "cell paints pixels of its own. "
                f"Received: interpolation={interpolation!r}"
            )
        self.spacing = spacing
        self.interpolation = interpolation
        self.colors = gamut_colors(spacing)
        self.num_colors = len(self.colors)

    @property
    def independent_positions(self):
        return self.interpolation == "nearest"

    def encode(self, images, grid=None):
        """The nearest bin of each cell's mean colour.

        Args:
            images: `(batch, H, W, 3)` float RGB in [0, 1].
            grid: `(rows, columns)` of cells; H and W must be multiples of these.
                Default: one cell for each pixel.

        Returns:
            `(batch, rows, columns)` int32.

        Raises:
            ValueError: if images are not whole cells, or have values that are NaN or
                far outside [0, 1]. Within a compiled function, values are not checked.
        """
        check_range("ColorPalette", images, allow_nan=False)
        _, height, width, _ = ops.shape(images)
        rows, columns = grid or (height, width)
        check_whole_cells((height, width), (rows, columns))
        cell = (-1, rows, height // rows, columns, width // columns)
        _, a, b = rgb_to_lab(images, stack=False)
        a, b = (ops.mean(ops.reshape(p, cell), axis=(2, 4))[..., None] for p in (a, b))
        distance = ops.square(a - self.colors[:, 0]) + ops.square(b - self.colors[:, 1])
        return ops.cast(ops.argmin(distance, axis=-1), "int32")

    def check_inputs(self, inputs):
        """Raises if the lightness of input images cannot be read, see `decode`.

        Args:
            inputs: array or tensor of images.
        """
        check_range("ColorPalette", inputs)

    def decode(self, inputs, samples):
        """Combines the lightness of the input images with the sampled colours.

        Each pixel gets the colour of its cell, or one interpolated between the centres
        of cells, as `interpolation` says. Where sRGB cannot show it, its chroma is
        reduced (`lab_to_rgb`), so that the lightness is kept.

        Args:
            inputs: `(batch, H, W, 1)` or `(batch, H, W, 3)` float images in [0, 1].
                Pixels far outside, as in images of 0 to 255, become NaN: an image with
                such a pixel has no reward.
            samples: `(batch, n, rows, columns)` int bins.

        Returns:
            `(batch, n, H, W, 3)` float32 RGB in [0, 1].

        Raises:
            ValueError: with `interpolation="nearest"`, if images are not whole cells.
        """
        _, height, width, _ = ops.shape(inputs)
        _, n, rows, columns = ops.shape(samples)
        samples = ops.reshape(samples, (-1, rows, columns))
        if self.independent_positions:
            check_whole_cells((height, width), (rows, columns))
        planes = []
        for axis in range(2):
            plane = ops.take(ops.convert_to_tensor(self.colors[:, axis]), samples)
            plane = resize(plane, height, width, self.interpolation)
            planes.append(ops.reshape(plane, (-1, n, height, width)))
        return lab_to_rgb(lightness_of(inputs)[:, None], *planes)

    def get_config(self):
        return {"spacing": self.spacing, "interpolation": self.interpolation}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


INTERPOLATIONS = ("bilinear", "nearest")


def resize(planes, height, width, interpolation):
    """Interpolation of `(rows, h, w)` to `(rows, height, width)`.

    Computed as two small matrix products, so that planes need no channel axis. Blocks
    as well: with `ops.repeat`, decoding takes four times as long on a CPU with XLA.
    """
    _, rows, columns = ops.shape(planes)
    vertical = interpolation_matrix(rows, height, interpolation)
    horizontal = interpolation_matrix(columns, width, interpolation)
    return ops.matmul(ops.matmul(vertical, planes), ops.transpose(horizontal))


def interpolation_matrix(size, target, interpolation):
    """Weights `(target, size)` of the cells at each pixel: float32.

    With "bilinear", those of linear interpolation between cell centres; with "nearest",
    1 for the cell that the pixel lies in. Computed on the host, unless a size is a
    tensor: unknown while tracing.
    """
    xp, dtype = np, "float64"
    if not isinstance(size, int) or not isinstance(target, int):
        xp, dtype = ops, "float32"
        size, target = ops.cast(size, dtype), ops.cast(target, dtype)
    position = (xp.arange(target, dtype=dtype) + 0.5) * size / target - 0.5
    if interpolation == "nearest":
        position = xp.round(position)
    position = xp.clip(position, 0.0, size - 1.0)[:, None]
    distance = xp.abs(position - xp.arange(size, dtype=dtype))
    weights = xp.maximum(1.0 - distance, 0.0)
    return weights.astype("float32") if xp is np else weights
