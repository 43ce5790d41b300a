"""Drawing from categorical distributions with one uniform number per draw."""

import itertools
import math

from keras import ops

# Probabilities are whole multiples of 2^-30. Their sum fits in an int32, and they are
# finer than the uniform numbers, which have at most 24 bits.
UNITS = 2.0**30
# The largest float32 below 1: keeps `uniform * total` below the total, so that a
# class of probability 0 behind the last possible one is never drawn.
BELOW_ONE = 1.0 - 2.0**-23
# Up to so many classes, one sum after the other is faster than all cumulative sums and
# a search in them, and XLA keeps none in memory: 2 to 14 times on a CPU.
FEW_CLASSES = 32


def draw_categorical(logits, uniform):
    """Inverts the cumulative distribution at given uniform numbers.

    For independent positions, such as pixels. Given the same numbers, every backend
    draws the same classes. One number per draw replaces one Gumbel number per class.
    With more than `FEW_CLASSES`, a binary search in the cumulative sums replaces
    comparing with all of them: nothing of shape (draws, classes) is made. It is faster
    than `draw_tokens` where there are few classes, and the results of the colour
    example follow from its draws.

    Args:
        logits: `(..., classes)` float32.
        uniform: `(..., n)` in [0, 1), one number per draw from each distribution.

    Returns:
        `(..., n)` int32 class indices: the first class whose cumulative probability
        exceeds the number.

    Example:

    ```python
    import numpy as np
    from keras_reward.categorical import draw_categorical

    logits = np.log(np.array([[0.5, 0.25, 0.25]], "float32"))
    draw_categorical(logits, np.array([[0.4, 0.6, 0.9]], "float32"))  # [[0, 1, 2]]
    ```
    """
    logits, uniform = ops.convert_to_tensor(logits), ops.convert_to_tensor(uniform)
    classes = logits.shape[-1]
    weights = ops.exp(logits - ops.max(logits, axis=-1, keepdims=True))
    if classes <= FEW_CLASSES:
        sums = [weights[..., c : c + 1] for c in range(classes)]
        *sums, total = itertools.accumulate(sums)
        target = uniform * total * BELOW_ONE
        found = ops.zeros_like(target, dtype="int32")
        return sum((ops.cast(s <= target, "int32") for s in sums), start=found)
    cumulative = ops.cumsum(weights, axis=-1)
    target = uniform * cumulative[..., -1:] * BELOW_ONE
    # `found` counts the classes known to lie at or below the target. Each step asks
    # whether `step` more do too, by looking at the last one of them.
    found = ops.zeros_like(target, dtype="int32")
    step = 1 << (classes.bit_length() - 1)
    while step:
        last = found + (step - 1)
        value = ops.take_along_axis(cumulative, ops.minimum(last, classes - 1), axis=-1)
        below = ops.logical_and(last < classes - 1, value <= target)
        found = ops.where(below, found + step, found)
        step //= 2
    return found


def draw_tokens(logits, uniform):
    """Inverts the cumulative distribution at given uniform numbers.

    Given the same numbers, every backend draws the same classes. One number per draw
    replaces one Gumbel number per class. The cumulative sums are first computed over
    blocks of classes and then within the chosen block, so that neither a tensor of
    shape (draws, classes) nor all cumulative sums are needed.

    For tokens, of which there are many and some may be forbidden. Sums are of whole
    numbers. By rounding, floating-point sums, as in `draw_categorical`, may fall, or
    rise at a class of probability 0; with whole numbers, such a class is never drawn.

    Args:
        logits: `(..., classes)` float32.
        uniform: `(..., n)` in [0, 1), one number per draw from each distribution.

    Returns:
        `(..., n)` int32 class indices: the first class whose cumulative probability
        exceeds the number.

    Example:

    ```python
    import numpy as np
    from keras_reward.categorical import draw_tokens

    logits = np.log(np.array([[0.5, 0.25, 0.25]], "float32"))
    draw_tokens(logits, np.array([[0.4, 0.6, 0.9]], "float32"))  # [[0, 1, 2]]
    ```
    """
    logits, uniform = ops.convert_to_tensor(logits), ops.convert_to_tensor(uniform)
    classes = logits.shape[-1]
    blocks = in_blocks(probability_units(logits))
    cumulative = ops.cumsum(ops.sum(blocks, axis=-1), axis=-1)
    total = cumulative[..., -1:]
    target = ops.cast(uniform * ops.cast(total, "float32"), cumulative.dtype)
    target = ops.minimum(target, total - 1)
    block = ops.minimum(count_up_to(cumulative, target), blocks.shape[-2] - 1)
    before = ops.where(
        block > 0,
        ops.take_along_axis(cumulative, ops.maximum(block - 1, 0), axis=-1),
        0,
    )
    hit = ops.take_along_axis(blocks, ops.expand_dims(block, -1), axis=-2)
    rest = ops.expand_dims(target - before, -1)
    inside = count_up_to(ops.cumsum(hit, axis=-1), rest)[..., 0]
    # The bound only matters for NaN, which must not give an index out of range.
    return ops.minimum(block * blocks.shape[-1] + inside, classes - 1)


def probability_units(logits):
    """Softmax probabilities `(..., classes)` as int32 multiples of 1 / UNITS."""
    weights = ops.exp(logits - ops.max(logits, axis=-1, keepdims=True))
    scale = UNITS / ops.sum(weights, axis=-1, keepdims=True)
    return ops.cast(weights * scale + 0.5, "int32")


def in_blocks(units):
    """`(..., classes)` to `(..., blocks, size)`, padded with classes of probability 0.

    Both levels of the search are fast if both sizes are near the root of `classes`. The
    second one gathers, which is slower than comparing, so blocks are smaller.
    """
    classes = units.shape[-1]
    size = max(1, math.isqrt(classes) // 2)
    blocks = -(-classes // size)
    padding = [(0, 0)] * (len(units.shape) - 1) + [(0, blocks * size - classes)]
    lead = tuple(ops.shape(units)[:-1])
    return ops.reshape(ops.pad(units, padding), (*lead, blocks, size))


def count_up_to(cumulative, target):
    """Number of the sums `(..., m)` that are at most each target: `(..., n)` int32."""
    below = ops.expand_dims(cumulative, -2) <= ops.expand_dims(target, -1)
    return ops.sum(ops.cast(below, "int32"), axis=-1)


def likeliest(logits):
    """The index of the largest logit in the last axis, int32."""
    return ops.cast(ops.argmax(logits, axis=-1), "int32")
