"""What each part of an output was worth."""

from typing import Any, NamedTuple

import numpy as np
from keras import ops


class Credit(NamedTuple):
    """What each part of an output was worth, in float32. At least one is not None.

    Attributes:
        alternatives: `(rows, *positions, choices)`: the reward if this part alone had
            taken this choice. None if the reward does not say it.
        part_rewards: `(rows, *positions)`: what of the reward depends on this part.
    """

    alternatives: Any
    part_rewards: Any


def number_of(choices):
    """The number of choices, from what `alternatives` are given."""
    return choices.shape[0] if hasattr(choices, "shape") else len(choices)


def positions_of(y_pred, choices):
    """The shape of the parts of an output, from what `alternatives` are given.

    None stands for a size that is unknown while tracing.
    """
    sizes = choices.positions if hasattr(choices, "positions") else y_pred.shape[1:]
    return tuple(size if isinstance(size, int) else None for size in sizes)


def weighted_sum(credits, weights, offset=0.0):
    """The `Credit` of a weighted sum of rewards, from those of the rewards."""
    totals = []
    for values in zip(*credits, strict=True):
        pairs = [(w, v) for w, v in zip(weights, values, strict=True) if v is not None]
        totals.append(sum(w * v for w, v in pairs) + offset if pairs else None)
    return Credit(*totals)


def reward_to_go(gains, rewards, parts):
    """What the part of each token and the later ones add to the reward.

    A token has no influence on earlier parts, so that leaving them out of its credit
    does not bias the gradient (Sutton et al. 1999, "Policy gradient methods for
    reinforcement learning with function approximation").

    Args:
        gains: `(rows, M)`, see `Reward.gains`.
        rewards: `(rows,)`.
        parts: NumPy ints `(T,)`, the part that each token belongs to.

    Returns:
        A `Credit` with `part_rewards` `(rows, T)`, NaN for a row without a reward.
    """
    known, needed = gains.shape[1], int(parts.max()) + 1
    if known not in (None, needed):
        raise ValueError(
            "`gains` of the reward must have a number for each part that the codec's "
            f"`part_of_token` names. Expected: {needed} parts. Received: {known}"
        )
    later = ops.flip(ops.cumsum(ops.flip(gains, axis=1), axis=1), axis=1)
    later = ops.where(ops.isfinite(rewards)[:, None], later, np.nan)
    return Credit(None, ops.take(later, parts.astype("int32"), axis=1))
