"""Colours: RGB and CIE Lab, and maps that follow the edges of an image.

Images are float sRGB in [0, 1], `(..., 3)`. Lab is CIE 1976 with the D65 white of
the 2 degree observer: L in [0, 100], a and b in about [-110, 110].
"""

import functools
import numbers

import numpy as np
from keras import ops

from keras_reward.nests import host_array

# How far outside [0, 1] values may lie, to be clipped: a policy adds noise to images.
# Images in 0 to 255 are beyond.
MAX_OVERSHOOT = 2.0

# IEC 61966-2-1 (sRGB) primaries to CIE XYZ, and the D65 white point, with the digits
# that scikit-image uses. White becomes (100, -0.0025, 0.0047), not exactly grey.
RGB_TO_XYZ = np.array(
    [
        [0.412453, 0.357580, 0.180423],
        [0.212671, 0.715160, 0.072169],
        [0.019334, 0.119193, 0.950227],
    ]
)


WHITE = np.array([0.95047, 1.0, 1.08883])


XYZ_TO_RGB = np.linalg.inv(RGB_TO_XYZ)


# CIE 15: where the cube root of Lab becomes linear, and the linear part.
LAB_EDGE = (6.0 / 29.0) ** 3


LAB_SLOPE = (29.0 / 6.0) ** 2 / 3.0

LAB_OFFSET = 4.0 / 29.0


def are_readable(images):
    """Whether values are in [0, 1], or so near to it that clipping them makes sense.

    Args:
        images: float tensor of any shape.

    Returns:
        Bools of its shape; False for NaN.
    """
    return ops.abs(images - 0.5) <= 0.5 + MAX_OVERSHOOT


def check_range(reader, images, allow_nan=True):
    """Raises if the values of images are far outside [0, 1].

    Args:
        reader: name of what reads the images, for the message.
        images: array or tensor. Not checked inside a compiled function.
        allow_nan: whether NaN passes.
    """
    values = host_array(images) if hasattr(images, "shape") else None
    if values is None or not values.size:
        return
    values = np.asarray(values, "float32")
    low, high = np.fmin.reduce(values, axis=None), np.fmax.reduce(values, axis=None)
    if not allow_nan and np.isnan(values).any():
        low = high = np.nan
    is_inside = low >= -MAX_OVERSHOOT and high <= 1.0 + MAX_OVERSHOOT
    if not is_inside and not (allow_nan and np.isnan(low)):
        raise ValueError(
            f"{reader} needs images with values in [0, 1]; up to {MAX_OVERSHOOT:g} "
            "outside they are clipped. Divide images in 0 to 255 by 255. "
            f"Received: values from {low:g} to {high:g}"
        )


def power(x, exponent):
    """`x ** exponent` for x > 0, as the exponential of a multiple of the logarithm."""
    return ops.exp(exponent * ops.log(x))


def srgb_to_linear(rgb):
    """Undoes the sRGB transfer curve: display values to light, both in [0, 1]."""
    curve = power((ops.maximum(rgb, 0.04045) + 0.055) / 1.055, 2.4)
    return ops.where(rgb > 0.04045, curve, rgb / 12.92)


def linear_to_srgb(rgb):
    """The sRGB transfer curve: light to display values, both in [0, 1]."""
    curve = 1.055 * power(ops.maximum(rgb, 0.0031308), 1.0 / 2.4) - 0.055
    return ops.where(rgb > 0.0031308, curve, rgb * 12.92)


def lab_curve(t):
    """CIE's f: the cube root with a linear piece near black."""
    root = power(ops.maximum(t, LAB_EDGE), 1.0 / 3.0)
    return ops.where(t > LAB_EDGE, root, LAB_SLOPE * t + LAB_OFFSET)


def inverse_lab_curve(f):
    """The inverse of `lab_curve`."""
    return ops.where(f > 6.0 / 29.0, f * f * f, (f - LAB_OFFSET) / LAB_SLOPE)


def rgb_to_lab(images, stack=True):
    """Converts sRGB to CIE Lab (D65).

    Args:
        images: `(..., 3)` float RGB in [0, 1]. A NumPy array far outside raises a
            `ValueError`; the values of tensors are not checked.
        stack: if False, returns a tuple of the three planes instead of one tensor.

    Returns:
        `(..., 3)` float32: L in [0, 100], a, b; or a tuple of three `(...)`.

    Example:

    ```python
    import numpy as np
    from keras_reward.codecs import rgb_to_lab

    rgb_to_lab(np.array([1.0, 0.0, 0.0], "float32"))  # [53.24, 80.09, 67.20], red
    ```
    """
    if isinstance(images, np.ndarray):
        check_range("rgb_to_lab", images)
    linear = srgb_to_linear(ops.cast(images, "float32"))
    red, green, blue = linear[..., 0], linear[..., 1], linear[..., 2]
    x, y, z = (
        lab_curve(float(r) * red + float(g) * green + float(b) * blue)
        for r, g, b in RGB_TO_XYZ / WHITE[:, None]
    )
    planes = (116.0 * y - 16.0, 500.0 * (x - y), 200.0 * (y - z))
    return ops.stack(planes, axis=-1) if stack else planes


def lab_to_linear(lightness, a, b):
    """Converts Lab planes to linear RGB planes, outside [0, 1] if out of gamut."""
    y = (lightness + 16.0) / 116.0
    x, z = y + a / 500.0, y - b / 200.0
    light = [inverse_lab_curve(f) for f in (x, y, z)]
    return [
        sum(float(weight) * plane for weight, plane in zip(row, light, strict=True))
        for row in XYZ_TO_RGB * WHITE
    ]


def lab_to_rgb(lightness, a, b, gamut_steps=7):
    """Converts CIE Lab (D65) to sRGB, with less chroma where it does not fit.

    A colour outside sRGB is moved straight towards the grey of its lightness until it
    fits: lightness and the direction of (a, b) do not change. The distance is found by
    bisection.

    Args:
        lightness, a, b: Lab planes of one shape `(...)` (or shapes that broadcast).
        gamut_steps: bisection steps. The chroma is within `2 ** -gamut_steps` of the
            largest one that fits.

    Returns:
        `(..., 3)` float32 RGB in [0, 1].

    Example:

    ```python
    import numpy as np
    from keras_reward.codecs import lab_to_rgb

    zero = np.zeros((1,), "float32")
    lab_to_rgb(zero + 50.0, zero, zero)  # [[0.466, 0.466, 0.466]], middle grey
    ```
    """
    planes = tuple(ops.cast(plane, "float32") for plane in (lightness, a, b))
    # A loop, since XLA on a CPU computes unrolled steps once for each later use. Its
    # function is always the same one, so that JAX compiles it once for eager calls.
    state = (
        ops.cast(fits_gamut(1.0, *planes), "float32"),
        ops.convert_to_tensor(0.5, "float32"),
    )
    scale = ops.fori_loop(0, gamut_steps, bisect_gamut, (*state, *planes))[0]
    scale = ops.stop_gradient(scale)  # piecewise constant
    lightness, a, b = planes
    linear = ops.stack(lab_to_linear(lightness, scale * a, scale * b), axis=-1)
    return linear_to_srgb(ops.clip(linear, 0.0, 1.0))


def fits_gamut(scale, lightness, a, b):
    """Whether sRGB can show Lab planes whose chroma is multiplied by `scale`."""
    planes = lab_to_linear(lightness, scale * a, scale * b)
    low = functools.reduce(ops.minimum, planes)
    high = functools.reduce(ops.maximum, planes)
    return ops.logical_and(low >= -GAMUT_SLACK, high <= 1.0 + GAMUT_SLACK)


def bisect_gamut(_, state):
    """One step of the search for the largest scale of the chroma that fits."""
    scale, step, *planes = state
    larger = scale + step
    larger_fits = ops.logical_and(larger <= 1.0, fits_gamut(larger, *planes))
    return ops.where(larger_fits, larger, scale), 0.5 * step, *planes


GAMUT_SLACK = 2e-4  # grey itself misses the gamut by rounding at L = 0 and 100


def lightness_of(images):
    """Lab lightness of grey or RGB images.

    Args:
        images: `(..., 1)` or `(..., 3)` float sRGB, clipped to [0, 1].

    Returns:
        `(...)` float32 in [0, 100]; NaN for pixels that are NaN or further than
        `MAX_OVERSHOOT` outside.
    """
    images = ops.cast(images, "float32")
    clipped = ops.where(are_readable(images), ops.clip(images, 0.0, 1.0), np.nan)
    linear = srgb_to_linear(clipped)
    if linear.shape[-1] not in (1, 3):
        raise ValueError(
            "The lightness is that of grey or RGB images, with 1 or 3 channels, whose "
            "number must be known while a step is compiled. "
            f"Received: images of shape {tuple(linear.shape)}"
        )
    if linear.shape[-1] == 1:
        luminance = linear[..., 0]
    else:
        luminance = sum(
            float(weight) * linear[..., channel]
            for channel, weight in enumerate(RGB_TO_XYZ[1])
        )
    return 116.0 * lab_curve(luminance) - 16.0


def check_whole_cells(size, grid):
    """Raises unless images are a whole number of cells high and wide.

    Args:
        size: height and width of the images. Not checked if these are tensors:
            unknown while tracing.
        grid: rows and columns of cells.
    """
    sizes = (*size, *grid)
    is_known = all(isinstance(length, numbers.Integral) for length in sizes)
    if is_known and (size[0] % grid[0] or size[1] % grid[1]):
        height, width = size
        raise ValueError(
            "The image must be a whole number of cells high and wide. Resize the "
            "images, or choose another grid. "
            f"Received: images of {height}x{width} pixels, grid={tuple(grid)}"
        )


def to_gray(images):
    """The grey image of the same Lab lightness.

    Args:
        images: `(..., 3)` float RGB in [0, 1].

    Returns:
        `(..., 1)` float32 in [0, 1].

    Raises:
        ValueError: for a NumPy array far outside [0, 1], such as one in 0 to 255. Such
            pixels of tensors become NaN.
    """
    if isinstance(images, np.ndarray):
        check_range("to_gray", images)
    luminance = inverse_lab_curve((lightness_of(images) + 16.0) / 116.0)
    return ops.clip(linear_to_srgb(luminance), 0.0, 1.0)[..., None]


def guided_filter(maps, guide, radius, epsilon=1e-3):
    """Smooths maps except across the edges of a guide, such as colours by lightness.

    In each window, the map is fitted by a slope times the guide plus an offset, with
    least squares. Each pixel uses the mean slope and offset of all windows that it lies
    in.

    Args:
        maps: `(batch, height, width, channels)`.
        guide: `(batch, height, width, 1)`, in [0, 1].
        radius: radius of the windows in pixels. They are squares of side
            `2 * radius + 1`, cut off at the border. With 0, the maps do not change.
        epsilon: variance of the guide at which a slope is halved. In windows with a
            smaller variance, the maps become flat.

    Returns:
        Float32, of the shape of `maps`.

    Reference: He, Sun and Tang 2010, "Guided Image Filtering", section 3.
    """
    maps, guide = (ops.cast(x, "float32") for x in (maps, guide))
    means = functools.partial(window_means, radius=radius)
    level, middle = means(maps), means(guide)
    variance = means(guide * guide) - middle * middle
    slope = (means(guide * maps) - middle * level) / (variance + epsilon)
    return means(slope) * guide + means(level - slope * middle)


def window_means(maps, radius):
    """Means over the part of the square around each pixel that lies in the map."""
    side = 2 * radius + 1
    maps = ops.average_pool(maps, (side, 1), strides=1, padding="same")
    return ops.average_pool(maps, (1, side), strides=1, padding="same")
