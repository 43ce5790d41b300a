"""How likely samples are: what a policy says of them."""

from typing import Any, NamedTuple

from keras import ops

from keras_reward import objective


class Likelihood(NamedTuple):
    """How likely samples `(batch, n, ...)` are, all in float32 and in nats.

    A sample has positions that are drawn on their own, such as tokens or pixels: the
    axes behind `(batch, n)`. A policy that knows no more than whole samples has none.

    Attributes:
        log_prob: `(batch, n)`, log-probability of whole samples: the sum over the
            positions that count.
        entropy: `(batch,)`, mean entropy of the positions of each input.
        position_log_probs: `(batch, n, ...)`, log-probability of each position, 0
            where a position does not count.
        counted: `(batch, n, ...)` bool, which positions count: not those behind the
            end of a sequence.
        choice_log_probs: `(choices, batch, n, ...)`, log-probabilities of other choices
            in the places of those that were drawn. Of none by default: `(0, ...)`.
    """

    log_prob: Any
    entropy: Any
    position_log_probs: Any
    counted: Any
    choice_log_probs: Any


def of_positions(log_probs, entropy, counted=None):
    """A `Likelihood` from that of positions.

    Args:
        log_probs: `(1 + choices, batch, n, ...)`, of the samples, and after them of
            other choices.
        entropy: `(batch,)`.
        counted: `(batch, n, ...)` bool. Default: all positions count.
    """
    own = log_probs[0]
    if counted is None:
        counted = ops.ones_like(own, dtype="bool")
    else:
        # Not a product: what does not count may have log-probability -inf.
        own = ops.where(counted, own, 0.0)
    return Likelihood(
        objective.sequence_log_prob(own), entropy, own, counted, log_probs[1:]
    )
