"""Boundaries of the regions of a mask, and what one pixel decides about them.

A pixel is a boundary pixel if its label differs from that of its right or its lower
neighbour. So a pixel decides about itself, its left and its upper neighbour, and
nothing else. Of these three positions are the lists of masks here, in this order.
"""

import functools
import itertools
import math
import operator

from keras import ops

from keras_reward.forms.integers import SMALLEST
from keras_reward.rewards.neighbors import moved, padded, window

DECIDED = ((0, 0), (0, -1), (-1, 0))  # rows down and columns to the right
# Labels that no pixel and no choice has.
NO_LABEL, ANOTHER_LABEL = SMALLEST, SMALLEST + 1


def steps(labels):
    """Whether the label changes to the right, and downwards: two masks."""
    exists = ops.ones_like(labels) > 0
    return [
        moved(exists, *place) & (moved(labels, *place) != labels)
        for place in ((0, 1), (1, 0))
    ]


def found_alone(boundary, finders, now, tolerance):
    """True pixels that no other position than those decided at a pixel finds.

    Args:
        boundary: mask of the true boundary pixels.
        finders: how many predicted pixels find each of them.
        now: whether each of the positions in `DECIDED` is a predicted pixel, masks.
        tolerance: distance in pixels.

    Returns:
        Dict: for each pattern of positions within reach, the number of true pixels that
        exactly these would find, and that none of the others finds. int32.
    """
    radius = int(tolerance) + 1
    # One more than the finders, 0 where there is no true boundary. Small integers are
    # compared many at once; from 4 finders on, all numbers are the same.
    marks = ops.where(boundary, ops.minimum(finders, 4) + 1, 0)
    marks = padded(ops.cast(marks, "int8"), radius)
    alone = {}
    for down, right in itertools.product(range(-radius, radius), repeat=2):
        reach = tuple(math.hypot(down - y, right - x) <= tolerance for y, x in DECIDED)
        if not any(reach):
            continue
        own = sum(
            ops.cast(is_on, "int8")
            for is_on, reaches in zip(now, reach, strict=True)
            if reaches
        )
        is_alone = window(marks, radius, down, right) == own + 1
        alone[reach] = alone.get(reach, 0) + ops.cast(is_alone, "int32")
    return alone


def numbers_with(masks, is_near, alone):
    """Numbers of pixels that positions add: near, predicted, and true ones found.

    Args:
        masks: which of the positions in `DECIDED` become predicted boundary pixels.
        is_near: whether each of them is near a true boundary pixel.
        alone: what `found_alone` returned.

    Returns:
        Three times `(rows, height, width)` int32.
    """
    numbers = [ops.cast(mask, "int32") for mask in masks]
    near = [ops.cast(a & b, "int32") for a, b in zip(masks, is_near, strict=True)]
    found = []
    for reach, number in alone.items():
        finders = [mask for mask, reaches in zip(masks, reach, strict=True) if reaches]
        found.append(ops.where(functools.reduce(operator.or_, finders), number, 0))
    return sum(near), sum(numbers), sum(found)


def of_each_label(labels, counts, choices, worth):
    """What each label is worth at each pixel.

    Args:
        labels: `(rows, height, width)`.
        counts: mask of the positions that count.
        choices: labels, `(choices,)` or `(rows, height, width, choices)`.
        worth: takes three masks, which of the positions in `DECIDED` are boundary
            pixels, and returns `(rows, height, width)`.

    Returns:
        `(rows, height, width, choices)`.
    """
    exists = ops.ones_like(labels) > 0
    has_right, has_below = moved(exists, 0, 1), moved(exists, 1, 0)
    right, below = moved(labels, 0, 1), moved(labels, 1, 0)
    steps_right, steps_down = steps(labels)
    # For each position the one label, if any, with which it is no boundary.
    agrees = (right == below) | ~(has_right & has_below)
    inner = [ops.where(agrees, ops.where(has_right, right, below), NO_LABEL)]
    for place, step in ((DECIDED[1], steps_down), (DECIDED[2], steps_right)):
        inner.append(ops.where(moved(step, *place), NO_LABEL, moved(labels, *place)))
    may_be = [moved(counts, *place) for place in DECIDED]
    may_be[0] = may_be[0] & (has_right | has_below)

    def of_label(label):
        return worth([a & (label != b) for a, b in zip(may_be, inner, strict=True)])

    # All labels but these three are worth the same. In a loop, since XLA would count
    # anew for each of them.
    others = ops.full_like(labels, ANOTHER_LABEL)
    worths = ops.map(of_label, ops.stack([others, *inner]))[..., None]
    result = worths[0]
    for number, label in enumerate(inner, start=1):
        result = ops.where(label[..., None] == choices, worths[number], result)
    return result
