"""What each part of an output was worth."""

from typing import Any, NamedTuple


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
    sizes = getattr(choices, "positions", y_pred.shape[1:])
    return tuple(size if isinstance(size, int) else None for size in sizes)


def weighted_sum(credits, weights, offset=0.0):
    """The `Credit` of a weighted sum of rewards, from those of the rewards."""
    totals = []
    for values in zip(*credits, strict=True):
        pairs = [(w, v) for w, v in zip(weights, values, strict=True) if v is not None]
        totals.append(sum(w * v for w, v in pairs) + offset if pairs else None)
    return Credit(*totals)
