"""The base class of rewards that depend on how many pixels have which colours."""

import numpy as np
from keras import ops

from keras_reward.forms.colors import (
    are_readable,
    check_range,
    check_whole_cells,
    rgb_to_lab,
)
from keras_reward.nests import is_float, map_leaves, with_last_sizes
from keras_reward.rewards.checks import refuse_empty
from keras_reward.rewards.reward import Reward

# Chroma over (L + 16): painted grey stays below, 1.7e-6, and the greys of 8-bit images,
# whose hue is that of white, above, 2.2e-6.
GREY = 2e-6


class ColorReward(Reward):
    """Base class of rewards that are computed from the (a, b) plane of images.

    Images are clipped to [0, 1], as a screen does. An image has no reward, NaN, if a
    value is NaN or further than 2 outside: it may be in 0 to 255. `reward(...)`, which
    sees the values, raises an error for such images; in `fit` they count in the metric
    `no_reward`.
    """

    def call(self, y_true, y_pred):
        a, b = self.chroma_plane(y_pred)
        *counted, readable = shares([*self.flags(a, b), a == a])
        values = self.of_shares(*counted)
        return map_leaves(
            lambda value: ops.where(readable == 1.0, value, np.nan), values
        )

    def alternatives(self, y_true, y_pred, choices):
        """The reward of each image if one part alone had taken another choice.

        The reward depends on counts of pixels. Those of a changed image are those of
        the image, less those of the part's own block of pixels, plus those of the block
        as the other choice paints it.

        Args:
            y_true: not used.
            y_pred: images, `(rows, H, W, 3)`.
            choices: decoded choices whose `positions` are rows and columns of a grid.
                The part in cell (i, j) paints that block of the image and nothing else.

        Returns:
            `(rows, grid rows, grid columns, choices)` float32. NaN where the changed
            image has no reward.

        Raises:
            ValueError: if parts do not paint blocks of the images, by the sizes.
        """
        del y_true
        planes = self.chroma_plane(y_pred)
        grid = self.grid_of(choices, planes[0])
        own = self.counts(planes, grid)
        others = [ops.sum(count, axis=(1, 2), keepdims=True) - count for count in own]
        pixels = pixels_of(planes[0])

        def reward_with(images):
            """As if each part alone had painted its block of these images."""
            new = self.counts(self.chroma_plane(images), grid)
            *counted, readable = (
                (rest + count) / pixels for rest, count in zip(others, new, strict=True)
            )
            value = self.of_shares(*counted)
            value = value[0] if isinstance(value, tuple) else value
            return ops.where(readable == 1.0, value, np.nan)

        return choices.map(reward_with)

    def grid_of(self, choices, plane):
        """Rows and columns of the blocks of `(rows, H, W)` that parts paint."""
        grid = getattr(choices, "positions", None)
        if grid is None or len(grid) != 2:
            received = "choices that are not decoded"
            if grid is not None:
                received = f"parts of shape {tuple(grid)}"
            raise ValueError(
                f"Reward {self.name!r} can credit parts that paint blocks of an image, "
                "in a grid of rows and columns. Give the policy such a codec, as "
                '`ColorPalette(interpolation="nearest")`, or pass `credit="output"`. '
                f"Received: {received}"
            )
        check_whole_cells(ops.shape(plane)[1:], grid)
        return grid

    def counts(self, planes, grid):
        """Pixels of each block with each of the `flags`, and those that can be read.

        Args:
            planes: a and b, `(rows, H, W)`.
            grid: rows and columns of blocks.

        Returns:
            A list of `(rows, grid rows, grid columns)` float32.
        """
        return counts([*self.flags(*planes), planes[0] == planes[0]], grid)

    def flags(self, a, b):
        """List of bools `(rows, H, W)` whose shares the reward is made of.

        Args:
            a, b: Lab coordinates, `(rows, H, W)`.
        """
        raise NotImplementedError

    def of_shares(self, *shares):
        """What `call` returns for readable images, from the shares of the `flags`."""
        raise NotImplementedError

    def check_values(self, y_true, y_pred):
        del y_true
        check_range(f"Reward {self.name!r}", y_pred)

    def chroma_plane(self, images):
        """The Lab coordinates a and b of RGB images: two `(rows, H, W)` tensors.

        What is grey but for rounding is exactly 0. Pixels that cannot be read are NaN.
        """
        shape = tuple(getattr(images, "shape", ()))
        if len(shape) != 4 or shape[-1] not in (None, 3) or not is_float(images):
            dtype = getattr(images, "dtype", type(images).__name__)
            raise ValueError(
                f"Reward {self.name!r} needs float RGB images in [0, 1]. "
                "Expected: shape (rows, height, width, 3). "
                f"Received: shape {shape}, dtype {dtype}. If the policy's samples are "
                "not images, give it a `codec` that turns them into images."
            )
        refuse_empty(self.name, "y_pred", shape)
        images = ops.cast(with_last_sizes(images, (3,)), "float32")
        images = ops.where(are_readable(images), ops.clip(images, 0.0, 1.0), np.nan)
        lightness, a, b = rgb_to_lab(images, stack=False)
        rounding = ops.square(GREY * (lightness + 16.0))
        is_grey = ops.square(a) + ops.square(b) < rounding
        return ops.where(is_grey, 0.0, a), ops.where(is_grey, 0.0, b)


def shares(flags):
    """Share of the pixels at which each flag is set.

    Args:
        flags: list of bools `(rows, H, W)`.

    Returns:
        A list of `(rows,)` float32.
    """
    pixels = pixels_of(flags[0])
    return [count[:, 0, 0] / pixels for count in counts(flags, (1, 1))]


def pixels_of(plane):
    """Number of pixels of `(rows, H, W)`: a float, or a tensor while unknown."""
    _, height, width = ops.shape(plane)
    return ops.cast(height * width, "float32")


def counts(flags, grid):
    """How many pixels of each block of an image have each flag.

    Several flags are counted in one sum over the width, each in its own bits of an
    integer, so that the pixels are read fewer times.

    Args:
        flags: list of bools `(rows, H, W)`.
        grid: rows and columns of equal blocks.

    Returns:
        A list of `(rows, grid rows, grid columns)` float32.
    """
    _, height, width = ops.shape(flags[0])
    blocks = (-1, grid[0], height // grid[0], grid[1], width // grid[1])
    bits = (blocks[4] if isinstance(blocks[4], int) else LARGEST_WIDTH).bit_length()
    together = max(1, 31 // bits)
    counted = []
    for start in range(0, len(flags), together):
        group = flags[start : start + together]
        packed = sum(
            ops.cast(flag, "int32") * 2 ** (bits * place)
            for place, flag in enumerate(group)
        )
        packed = ops.sum(ops.reshape(packed, blocks), axis=4)
        packed = ops.cast(packed, "int32")  # int64 on PyTorch
        for place in range(len(group)):
            count = ops.right_shift(packed, bits * place)
            counted.append(ops.bitwise_and(count, 2**bits - 1))
    return [ops.sum(ops.cast(count, "float32"), axis=2) for count in counted]


LARGEST_WIDTH = 2**15 - 1  # of images whose width is unknown while tracing
