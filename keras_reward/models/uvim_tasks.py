"""Tasks of UViM models: colours, or panoptic maps.

A task defines the inputs and targets of the networks for given labels, and how their
logits become what a reward sees. All maps are `(batch, height, width, ...)`.
"""

import keras
import numpy as np
from keras import ops

from keras_reward import objective
from keras_reward.codecs.panoptic import (
    canonical_segments,
    panoptic_from_logits,
)
from keras_reward.forms.colors import (
    guided_filter,
    lab_to_rgb,
    lightness_of,
    rgb_to_lab,
)
from keras_reward.forms.integers import refuse_beyond_int32
from keras_reward.models.sizes import check_sizes

AB_SCALE = 110.0  # Lab's a and b of sRGB colours are in [-1, 1] if divided by it
COLOR_OUTPUTS = ("ab", "rgb")


@keras.saving.register_keras_serializable(package="keras_reward")
class ColorizationTask:
    """Colours of grey images.

    Labels are colour images `(batch, height, width, 3)`, float RGB in [0, 1]. The input
    images are the same in grey, for example from `to_gray`, with one channel or three.
    The networks predict the (a, b) of CIE Lab for each pixel, trained by squared error.
    The output image has these colours and the lightness of the input image. Colours
    that a screen cannot show become paler, see `lab_to_rgb`.

    Args:
        output: `"ab"` (default); or `"rgb"`, as published: the networks predict all
            three channels, in [-1, 1], and the lightness of the input image is not
            used.
        value_range: values of black and white in the input images. Default (0, 1).
            Labels and outputs are always in [0, 1].
        smoothing: post-processing with `output="ab"`: radius in pixels of a guided
            filter (He, Sun and Tang 2010) that smooths the colours except across edges
            of the grey image. Default 0: none, as published. With half a patch, the
            edges of patches vanish.

    Example:

    ```python
    import numpy as np
    from keras_reward.codecs import to_gray
    from keras_reward.models import ColorizationTask

    task = ColorizationTask()
    photos = np.random.default_rng(0).random((2, 8, 8, 3)).astype("float32")
    targets = task.targets(photos)                    # {"color": (2, 8, 8, 2)}
    painted = task.outputs(to_gray(photos), targets)  # the photos, (2, 8, 8, 3)
    ```
    """

    def __init__(self, output="ab", value_range=(0, 1), smoothing=0):
        if output not in COLOR_OUTPUTS:
            raise ValueError(
                f"`output` must be one of {COLOR_OUTPUTS}. Received: output={output!r}"
            )
        low, high = value_range
        if not low < high:
            raise ValueError(
                "`value_range` must be the value of black and a larger one of white. "
                f"Received: value_range={value_range}"
            )
        if smoothing < 0 or (smoothing and output != "ab"):
            raise ValueError(
                "`smoothing` must be a radius in pixels, at least 0, and 0 unless "
                f'`output="ab"`. Received: smoothing={smoothing}, output={output!r}'
            )
        self.output = output
        self.value_range = (low, high)
        self.smoothing = smoothing

    @property
    def heads(self):
        """Channels that the networks read and write for each pixel, by name."""
        return {"color": 2 if self.output == "ab" else 3}

    label_channels = 3

    def check_labels(self, labels):
        """Raises unless labels, a NumPy array, are float RGB in [0, 1]."""
        if labels.dtype.kind != "f" or not (labels.min() >= 0 and labels.max() <= 1):
            raise ValueError(
                "The labels of ColorizationTask are colour images, float in [0, 1]. "
                f"Received: {labels.dtype} from {labels.min()} to {labels.max()}"
            )

    def targets(self, labels):
        """The targets of the networks: `{"color": (batch, height, width, c)}`."""
        if self.output == "rgb":
            return {"color": 2.0 * ops.cast(labels, "float32") - 1.0}
        _, a, b = rgb_to_lab(labels, stack=False)
        return {"color": ops.stack([a, b], axis=-1) / AB_SCALE}

    def features(self, targets):
        """The inputs of the oracle: the targets."""
        return targets

    def losses(self, targets, logits):
        """Mean squared error `(batch,)`, by name."""
        error = ops.square(logits["color"] - targets["color"])
        return {"color": ops.mean(error, axis=(1, 2, 3))}

    def outputs(self, images, logits):
        """RGB images `(batch, height, width, 3)` in [0, 1].

        Args:
            images: the input images, in `value_range`.
            logits: dict of `"color"`, the output of the networks.
        """
        color = logits["color"]
        if self.output == "rgb":
            return ops.clip(0.5 * color + 0.5, 0.0, 1.0)
        low, high = self.value_range
        images = (ops.cast(images, "float32") - low) / (high - low)
        lightness = lightness_of(images)
        if self.smoothing:
            guide = ops.expand_dims(lightness / 100.0, axis=-1)
            color = guided_filter(color, guide, self.smoothing)
        return lab_to_rgb(lightness, AB_SCALE * color[..., 0], AB_SCALE * color[..., 1])

    def get_config(self):
        return {
            "output": self.output,
            "value_range": list(self.value_range),
            "smoothing": self.smoothing,
        }

    @classmethod
    def from_config(cls, config):
        return cls(**config)


@keras.saving.register_keras_serializable(package="keras_reward")
class PanopticTask:
    """Panoptic maps of images.

    Labels are int maps of class and instance `(batch, height, width, 2)`, as for
    panoptic rewards: class 0, or a negative one, is void. For each pixel, the networks
    predict the class and the number of its segment, in the canonical order of
    `canonical_segments`, trained by cross-entropy. Stuff has segments as things have,
    as published. Outputs are maps like the labels.

    Args:
        num_classes: number of classes without void. Labels are from 1 to `num_classes`.
        max_segments: maximum number of segments in a map. For further ones, only the
            class is learned.
        min_fraction: post-processing: a predicted segment that covers this fraction of
            the map or less becomes void. Default 0.0. UViM's publication mentions
            0.03 ** 2.
        stuff_classes: classes with instance 0 in outputs. Default: none.

    Example:

    ```python
    import numpy as np
    from keras_reward.models import PanopticTask

    task = PanopticTask(num_classes=3, max_segments=5)
    labels = np.array([[[[2, 8], [2, 8], [1, 0], [0, 0]]]])    # 1x4 pixels
    targets = task.targets(labels)
    targets["instances"]                                       # [[[1, 1, 2, 0]]]
    task.outputs(None, task.features(targets))                 # numbered labels
    ```

    Reference: Kolesnikov et al. 2022, "UViM: A Unified Modeling Approach for Vision
    with Learned Guiding Codes", and its published code.
    """

    label_channels = 2

    def __init__(self, num_classes, max_segments, min_fraction=0.0, stuff_classes=()):
        if num_classes < 1 or max_segments < 1:
            raise ValueError(
                "PanopticTask needs at least one class and one segment. Received: "
                f"num_classes={num_classes}, max_segments={max_segments}"
            )
        check_sizes(num_classes=num_classes, max_segments=max_segments)
        if not 0 <= min_fraction < 1:
            raise ValueError(
                "`min_fraction` must be from 0 to 1, 1 excluded. "
                f"Received: min_fraction={min_fraction}"
            )
        outside = [c for c in stuff_classes if not 1 <= c <= num_classes]
        if outside:
            raise ValueError(
                f"`stuff_classes` must be from 1 to {num_classes}. "
                f"Received: {outside[0]}"
            )
        self.num_classes = num_classes
        self.max_segments = max_segments
        self.min_fraction = min_fraction
        self.stuff_classes = tuple(stuff_classes)

    @property
    def heads(self):
        """Channels that the networks read and write for each pixel, by name."""
        return {"semantics": self.num_classes + 1, "instances": self.max_segments + 1}

    def check_labels(self, labels):
        """Raises unless labels, a NumPy array, are ints of known classes."""
        if labels.dtype.kind not in "iu":
            raise ValueError(
                "The labels of PanopticTask are int maps of class and instance. "
                f"Received: {labels.dtype}"
            )
        refuse_beyond_int32("PanopticTask", "labels", labels, "classes and instances")
        largest = labels[..., 0].max(initial=0)
        if largest > self.num_classes:
            raise ValueError(
                f"Classes must be from 0 to {self.num_classes}, 0 for void. "
                f"Received: class {largest}"
            )

    def targets(self, labels):
        """Classes and numbers of segments, `(batch, height, width)` int32 each."""
        maps = canonical_segments(labels, self.max_segments)
        return {"semantics": maps[..., 0], "instances": maps[..., 1]}

    def features(self, targets):
        """The inputs of the oracle: the targets as one-hot vectors."""
        return {
            name: ops.one_hot(targets[name], channels, dtype="float32")
            for name, channels in self.heads.items()
        }

    def losses(self, targets, logits):
        """Mean cross-entropy `(batch,)` in nats, by name; unnumbered pixels add 0."""
        losses = {}
        for name, channels in self.heads.items():
            known = ops.logical_and(targets[name] >= 0, targets[name] < channels)
            index = ops.where(known, targets[name], 0)[..., None]
            log_prob = objective.categorical_log_prob(logits[name], index)[..., 0]
            losses[name] = -ops.mean(ops.where(known, log_prob, 0.0), axis=(1, 2))
        return losses

    def outputs(self, images, logits):
        """Maps of class and instance, `(batch, height, width, 2)` int32.

        Args:
            images: not used.
            logits: dict of `"semantics"` and `"instances"`.
        """
        return panoptic_from_logits(
            logits["semantics"],
            logits["instances"],
            self.min_fraction,
            self.stuff_classes,
        )

    def get_config(self):
        return {
            "num_classes": self.num_classes,
            "max_segments": self.max_segments,
            "min_fraction": self.min_fraction,
            "stuff_classes": list(self.stuff_classes),
        }

    @classmethod
    def from_config(cls, config):
        return cls(**config)


def check_shape(task, labels, image_shape):
    """Raises unless labels have the pixels of the images and the task's channels.

    Args:
        task: a task.
        labels: a tensor or an array.
        image_shape: `(height, width, channels)` of the model's images.
    """
    expected = (*image_shape[:2], task.label_channels)
    shape = tuple(getattr(labels, "shape", ()))
    if len(shape) != 4 or shape[1:] != expected:
        raise ValueError(
            f"The labels of {type(task).__name__} must have shape (batch, "
            f"{', '.join(map(str, expected))}), as many pixels as the images. "
            f"Received: {type(labels).__name__ if not shape else f'shape {shape}'}"
        )


def is_host(data):
    """Whether `data` is a NumPy array, whose values can be checked."""
    return isinstance(data, np.ndarray)
