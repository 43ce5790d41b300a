"""Rewards for colourful images (Pinto et al. 2023, section 4.3)."""

import math

import keras
from keras import ops

from keras_reward.nests import check_size
from keras_reward.rewards.color_reward import ColorReward

# Palettes have colours whose chroma is exactly the threshold, or whose hue is exactly
# on the boundary of two bins, such as those with b = 0. In float32, a and b of what was
# painted are off by up to 1.2e-4. So that rounding decides nothing, the threshold is a
# little higher, the boundaries are turned by a little, and painted grey counts as grey.
CHROMA_MARGIN = 5e-4
MAX_BINS = 360  # each is compared with on its own
TURN = 5e-5  # radians: 1e-3 at a chroma of 20


def is_vivid(a, b, threshold):
    """Whether `sqrt(a^2 + b^2) > threshold`: bools of the shape of `a`.

    A chroma of the threshold itself is not above it, whatever the rounding.
    """
    return ops.square(a) + ops.square(b) > (threshold + CHROMA_MARGIN) ** 2


def beyond_hues(a, b, bins):
    """Whether the hue, the angle of (a, b), is in bin k or above.

    The bins cover (-pi, pi] in equal parts; a hue on a boundary, or off it by rounding,
    is in the bin below. No angle is computed: a pixel lies beyond the boundary at angle
    t if the cross product of (cos t, sin t) and (a, b) is positive, within the half
    plane of t. Exact grey (0, 0) counts as an angle just above 0.

    Args:
        a, b: `(rows, H, W)`.
        bins: number of bins.

    Returns:
        A list over k = 1 to `bins - 1` of bools `(rows, H, W)`.
    """
    if bins < 2:
        raise ValueError(f"`bins` must be at least 2. Received: bins={bins}")
    upper = b >= math.tan(TURN) * a
    beyond = []
    for k in range(1, bins):
        angle = -math.pi + 2.0 * math.pi * k / bins + TURN
        cross = math.cos(angle) * b - math.sin(angle) * a > 0.0
        if 2 * k < bins:
            beyond.append(ops.logical_or(upper, cross))
        elif 2 * k > bins:
            beyond.append(ops.logical_and(upper, cross))
        else:
            beyond.append(upper)
    return beyond


def hue_entropy(beyond):
    """Entropy in nats of the distribution of hues: `(rows, ...)`.

    Args:
        beyond: list of `(rows, ...)`: shares of pixels in bin 1 or above, 2 or above,
            and so on.
    """
    ones = ops.ones_like(beyond[0])
    edges = ops.stack([ones, *beyond, ops.zeros_like(ones)], axis=-1)
    in_bins = ops.maximum(edges[..., :-1] - edges[..., 1:], 0.0)
    return -ops.sum(in_bins * ops.log(ops.maximum(in_bins, 1e-12)), axis=-1)


@keras.saving.register_keras_serializable(package="keras_reward")
class VividnessReward(ColorReward):
    """Fraction of vivid pixels: those with Lab chroma `sqrt(a^2 + b^2)` above 10.

    A chroma of exactly 10, which palettes have, is not above it, whatever the rounding.

    Does not punish: one colour everywhere, colours that do not fit the content.

    Args:
        threshold: chroma above which a pixel is vivid, in Lab units. Default 10.
        name: optional name.

    Call arguments: `y_true` is not used; `y_pred` float RGB images,
    `(rows, height, width, 3)`, clipped to [0, 1]. Returns `(rows,)` in [0, 1], NaN
    for images with values that are NaN or further than 2 outside [0, 1].

    Example:

    ```python
    import numpy as np
    from keras_reward import VividnessReward

    images = np.zeros((1, 2, 2, 3), "float32")
    images[0, 0, :, 0] = 1.0  # two red pixels, two black ones
    VividnessReward()(None, images)  # [0.5]
    ```

    Reference: Pinto et al. 2023, "Tuning computer vision models with task rewards".
    """

    def __init__(self, threshold=10.0, name=None):
        super().__init__(name=name)
        self.threshold = threshold

    def flags(self, a, b):
        return [is_vivid(a, b, self.threshold)]

    def of_shares(self, vivid):
        return vivid

    def get_config(self):
        return {**super().get_config(), "threshold": self.threshold}


@keras.saving.register_keras_serializable(package="keras_reward")
class HueEntropyReward(ColorReward):
    """Entropy of the distribution of hues in an image, in nats.

    The hue is the angle of (a, b) in CIE Lab, in equal bins over (-pi, pi]. A hue on
    the boundary of two bins, which palettes have, counts in the one below, whatever the
    rounding. All pixels count, including dull ones; black and painted grey in the bin
    of angle 0. The paper does not state the base of the logarithm; the natural
    logarithm fits its figures.

    Does not punish: dull colours (the hue of a nearly grey image is noise and can have
    a high entropy; multiply by `VividnessReward`), colours that do not fit the content.

    Args:
        bins: number of equal bins. Default 7, so the entropy is at most ln 7 = 1.95.
        name: optional name.

    Call arguments: `y_true` is not used; `y_pred` float RGB images,
    `(rows, height, width, 3)`, clipped to [0, 1]. Returns `(rows,)` in [0, ln bins],
    NaN for images with values that are NaN or further than 2 outside [0, 1].

    Example:

    ```python
    import numpy as np
    from keras_reward import HueEntropyReward

    images = np.zeros((1, 2, 2, 3), "float32")
    images[0, 0, :, 0] = 1.0  # two red pixels
    images[0, 1, :, 2] = 1.0  # two blue ones
    HueEntropyReward()(None, images)  # [0.693], ln 2
    ```

    Reference: Pinto et al. 2023, "Tuning computer vision models with task rewards".
    """

    def __init__(self, bins=7, name=None):
        super().__init__(name=name)
        check_size("bins", bins, MAX_BINS)
        self.bins = bins

    def flags(self, a, b):
        return beyond_hues(a, b, self.bins)

    def of_shares(self, *beyond):
        return hue_entropy(beyond)

    def get_config(self):
        return {**super().get_config(), "bins": self.bins}


@keras.saving.register_keras_serializable(package="keras_reward")
class ColorfulnessReward(ColorReward):
    """Vivid and varied colours: `VividnessReward() * HueEntropyReward()`.

    Converts to Lab only once, and logs both as components `vividness` and
    `hue_entropy`.

    Does not punish: colours that do not fit the content. A network that knows the
    position of its pixels can earn the full reward by painting the same rainbow on
    every image.

    Args:
        threshold: chroma above which a pixel is vivid, in Lab units. Default 10.
        bins: number of hue bins. Default 7.
        name: optional name.

    Call arguments: `y_true` is not used; `y_pred` float RGB images,
    `(rows, height, width, 3)`, clipped to [0, 1]. Returns `(rows,)` in [0, ln bins],
    NaN for images with values that are NaN or further than 2 outside [0, 1].

    Example:

    ```python
    import numpy as np
    from keras_reward import ColorfulnessReward

    images = np.zeros((1, 2, 2, 3), "float32")
    images[0, 0, :, 0] = 1.0  # two red pixels
    images[0, 1, :, 2] = 1.0  # two blue ones
    ColorfulnessReward()(None, images)  # [0.693]: all are vivid, times ln 2
    ```

    Reference: Pinto et al. 2023, "Tuning computer vision models with task rewards".
    """

    component_names = ("vividness", "hue_entropy")

    def __init__(self, threshold=10.0, bins=7, name=None):
        super().__init__(name=name)
        check_size("bins", bins, MAX_BINS)
        self.threshold = threshold
        self.bins = bins

    def flags(self, a, b):
        return [is_vivid(a, b, self.threshold), *beyond_hues(a, b, self.bins)]

    def of_shares(self, vivid, *beyond):
        hues = hue_entropy(beyond)
        return vivid * hues, {"vividness": vivid, "hue_entropy": hues}

    def get_config(self):
        config = {"threshold": self.threshold, "bins": self.bins}
        return {**super().get_config(), **config}
