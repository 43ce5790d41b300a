"""Rewards for colourful images (Pinto et al. 2023, section 4.3)."""

import math

import keras
from keras import ops

from keras_reward.codecs.colors import rgb_to_lab
from keras_reward.rewards.reward import Reward


class ColorReward(Reward):
    """Base class of rewards that look at the (a, b) plane of images."""

    def chroma_plane(self, images):
        """The Lab coordinates a and b of RGB images: two `(rows, H, W)` tensors."""
        shape = tuple(getattr(images, "shape", ()))
        if len(shape) != 4 or shape[-1] != 3 or not _is_float(images):
            dtype = getattr(images, "dtype", type(images).__name__)
            raise ValueError(
                f"Reward {self.name!r} needs float RGB images in [0, 1]. "
                "Expected: shape (rows, height, width, 3). "
                f"Received: shape {shape}, dtype {dtype}. If the policy's samples are "
                "not images, give it a `codec` that turns them into images."
            )
        _, a, b = rgb_to_lab(ops.cast(images, "float32"), stack=False)
        return a, b


def _is_float(tensor):
    dtype = getattr(tensor, "dtype", "object")
    return keras.backend.is_float_dtype(keras.backend.standardize_dtype(dtype))


def vividness(a, b, threshold):
    """Fraction of pixels with `sqrt(a^2 + b^2) > threshold`: `(rows,)`."""
    vivid = ops.square(a) + ops.square(b) > threshold**2
    return ops.mean(ops.cast(vivid, "float32"), axis=(1, 2))


def hue_entropy(a, b, bins):
    """Entropy of the hue in nats, the angle of (a, b) in equal bins: `(rows,)`.

    The bins cover [-pi, pi). No angle is computed: a pixel lies beyond the boundary
    at angle t if the cross product of (cos t, sin t) and (a, b) is positive, within
    the half plane of t. Exact grey (0, 0) counts as angle 0.

    Args:
        a, b: `(rows, H, W)`.
        bins: number of bins.
    """
    upper = b >= 0.0
    beyond = []  # beyond[k]: share of pixels in bin k + 1 or above
    for k in range(1, bins):
        angle = -math.pi + 2.0 * math.pi * k / bins
        cross = math.cos(angle) * b - math.sin(angle) * a > 0.0
        if angle < 0.0:
            inside = ops.logical_or(upper, cross)
        elif angle > 0.0:
            inside = ops.logical_and(upper, cross)
        else:
            inside = upper
        beyond.append(ops.mean(ops.cast(inside, "float32"), axis=(1, 2)))
    ones = ops.ones_like(a[:, 0, 0])
    edges = ops.stack([ones, *beyond, ops.zeros_like(ones)], axis=-1)
    shares = ops.maximum(edges[:, :-1] - edges[:, 1:], 0.0)
    return -ops.sum(shares * ops.log(ops.maximum(shares, 1e-12)), axis=-1)


@keras.saving.register_keras_serializable(package="keras_reward")
class VividnessReward(ColorReward):
    """Fraction of vivid pixels: those with Lab chroma `sqrt(a^2 + b^2)` above 10.

    Does not punish: one colour everywhere, colours that do not fit the content.

    Args:
        threshold: chroma above which a pixel is vivid, in Lab units. Default 10.
        name: optional name.

    Call arguments: `y_true` is not used; `y_pred` float RGB images in [0, 1],
    `(rows, height, width, 3)`. Returns `(rows,)` in [0, 1].

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

    def call(self, y_true, y_pred):
        return vividness(*self.chroma_plane(y_pred), self.threshold)

    def get_config(self):
        return {**super().get_config(), "threshold": self.threshold}


@keras.saving.register_keras_serializable(package="keras_reward")
class HueEntropyReward(ColorReward):
    """Entropy of the distribution of hues in an image, in nats.

    The hue is the angle of (a, b) in CIE Lab, in equal bins over [-pi, pi); all pixels
    count, dull ones too. The paper leaves the logarithm open; the natural one fits its
    figures.

    Does not punish: dull colours (the hue of a nearly grey image is noise and can have
    a high entropy; multiply with `VividnessReward`), colours that do not fit the
    content.

    Args:
        bins: number of equal bins. Default 7, so the entropy is at most ln 7 = 1.95.
        name: optional name.

    Call arguments: `y_true` is not used; `y_pred` float RGB images in [0, 1],
    `(rows, height, width, 3)`. Returns `(rows,)` in [0, ln bins].

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
        self.bins = bins

    def call(self, y_true, y_pred):
        return hue_entropy(*self.chroma_plane(y_pred), self.bins)

    def get_config(self):
        return {**super().get_config(), "bins": self.bins}


@keras.saving.register_keras_serializable(package="keras_reward")
class ColorfulnessReward(ColorReward):
    """Vivid and various colours: `VividnessReward() * HueEntropyReward()`.

    Converts to Lab once for both, and logs both as parts `vividness` and
    `hue_entropy`.

    Does not punish: colours that do not fit the content. A network that knows the
    position of its pixels can earn the whole reward by painting the same rainbow on
    every image.

    Args:
        threshold: chroma above which a pixel is vivid, in Lab units. Default 10.
        bins: number of hue bins. Default 7.
        name: optional name.

    Call arguments: `y_true` is not used; `y_pred` float RGB images in [0, 1],
    `(rows, height, width, 3)`. Returns `(rows,)` in [0, ln bins].

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

    part_names = ("vividness", "hue_entropy")

    def __init__(self, threshold=10.0, bins=7, name=None):
        super().__init__(name=name)
        self.threshold = threshold
        self.bins = bins

    def call(self, y_true, y_pred):
        a, b = self.chroma_plane(y_pred)
        vivid = vividness(a, b, self.threshold)
        hues = hue_entropy(a, b, self.bins)
        return vivid * hues, {"vividness": vivid, "hue_entropy": hues}

    def get_config(self):
        config = {"threshold": self.threshold, "bins": self.bins}
        return {**super().get_config(), **config}
