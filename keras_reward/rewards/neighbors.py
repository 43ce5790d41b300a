"""Pixels and their neighbours, in maps `(rows, height, width)`.

Beyond the border of a map is False or 0.
"""

import math

from keras import ops


def count(mask):
    """Number of true pixels of each row, `(rows,)` int32."""
    return ops.sum(ops.cast(mask, "int32"), axis=(1, 2))


def padded(maps, width):
    return ops.pad(maps, ((0, 0), (width, width), (width, width)))


def window(maps, width, down, right):
    """Of padded maps: at each pixel, the value `down` rows and `right` columns on."""

    def part(step):
        return slice(width + step, (step - width) or None)

    return maps[:, part(down), part(right)]


def moved(maps, down, right):
    """At each pixel, the value `down` rows and `right` columns on, each at most 1."""
    return window(padded(maps, 1), 1, down, right)


def disc_sum(mask, tolerance):
    """How many pixels of a mask lie within a distance of each pixel, int32.

    Sums of shifted integers: exact, and much faster on CPUs than a convolution.
    """
    radius = int(tolerance)
    shifted = padded(ops.cast(mask, "int32"), radius)
    # Sums over a part of a row, from the narrowest to the widest.
    sums = [shifted[:, :, radius : -radius or None]]
    for step in range(1, radius + 1):
        sides = (
            shifted[:, :, radius + s : (s - radius) or None] for s in (-step, step)
        )
        sums.append(sums[-1] + next(sides) + next(sides))
    result = 0
    for down in range(-radius, radius + 1):
        half = max(s for s in range(radius + 1) if math.hypot(down, s) <= tolerance)
        result = result + sums[half][:, radius + down : (down - radius) or None]
    return result
