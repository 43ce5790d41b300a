"""Drawing from categorical distributions with one uniform number per draw."""

from keras import ops

# The largest float32 below 1: keeps `uniform * total` below the total, so that a
# class of probability 0 behind the last possible one is never drawn.
BELOW_ONE = 1.0 - 2.0**-23


def sample_categorical(logits, uniform):
    """Inverts the cumulative distribution at given uniform numbers.

    Given the same numbers, every backend draws the same classes. One number per draw
    replaces one Gumbel number per class, and a binary search in the cumulative sums
    replaces comparing with all of them: nothing of shape (draws, classes) is made.

    Args:
        logits: `(..., classes)` float32.
        uniform: `(..., n)` in [0, 1), one number per draw from each distribution.

    Returns:
        `(..., n)` int32 class indices: the first class whose cumulative probability
        exceeds the number.

    Example:

    ```python
    import numpy as np
    from keras_reward.policies.sampling import sample_categorical

    logits = np.log(np.array([[0.5, 0.25, 0.25]], "float32"))
    sample_categorical(logits, np.array([[0.4, 0.6, 0.9]], "float32"))  # [[0, 1, 2]]
    ```
    """
    logits, uniform = ops.convert_to_tensor(logits), ops.convert_to_tensor(uniform)
    classes = logits.shape[-1]
    weights = ops.exp(logits - ops.max(logits, axis=-1, keepdims=True))
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
