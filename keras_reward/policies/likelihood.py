"""The likelihood of samples, as policies return it."""

import math
from typing import Any, NamedTuple

from keras import ops

from keras_reward import objective
from keras_reward.valid_inputs import where_valid


class Likelihood(NamedTuple):
    """The likelihood of samples `(batch, n, ...)`, in float32 and in nats.

    The axes after `(batch, n)` are the positions of a sample, such as tokens or pixels.
    A policy that only knows the probability of whole samples has none. If samples are
    a nest, the positions of its parts are side by side in one axis, in the order of
    `keras.tree.flatten`: see `of_parts`.

    Attributes:
        log_prob: `(batch, n)`, log-probability of whole samples: the sum over the
            positions that count.
        entropy: `(batch,)`, mean entropy of the positions of each input.
        position_log_probs: `(batch, n, ...)`, log-probability of each position, 0
            where a position does not count.
        counted: `(batch, n, ...)` bool, which positions count: not those after the end
            of a sequence.
        choice_log_probs: `(choices, batch, n, ...)`, log-probability of each of the
            `choices` at each position. Shape `(0, ...)` without `choices`.

    Example:

    ```python
    import keras
    import numpy as np
    from keras_reward import CategoricalPolicy

    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(5)])
    policy = CategoricalPolicy().bind(model)
    context = policy.encode(np.zeros((2, 8), "float32"))
    likelihood = policy.likelihood(context, np.array([[0, 1, 2], [3, 4, 0]]))
    likelihood.log_prob  # (2, 3), each -log 5 where all logits are equal
    likelihood.entropy   # (2,), each log 5
    ```
    """

    log_prob: Any
    entropy: Any
    position_log_probs: Any
    counted: Any
    choice_log_probs: Any

    def of_valid(self, valid):
        """The same, but 0 and without gradient for inputs that are not valid.

        Args:
            valid: `(batch,)` bool, or None: all are.
        """
        return self._replace(
            log_prob=where_valid(valid, self.log_prob),
            entropy=where_valid(valid, self.entropy),
            position_log_probs=where_valid(valid, self.position_log_probs),
            choice_log_probs=where_valid(valid, self.choice_log_probs, axis=1),
        )


def of_parts(parts):
    """Makes the `Likelihood` of samples with independent parts from those of the parts.

    Args:
        parts: list of `Likelihood`, each with the same choices, batch and n.

    Returns:
        A `Likelihood`: log-probabilities are added, and positions are side by side,
        `(batch, n, positions)`. The entropy is the mean over all positions.
    """
    sizes = [math.prod(ops.shape(part.position_log_probs)[2:]) for part in parts]
    weights = [ops.cast(size, "float32") for size in sizes]
    entropy = sum(p.entropy * w for p, w in zip(parts, weights, strict=True))

    def joined(name, lead):
        tensors = []
        for part, size in zip(parts, sizes, strict=True):
            tensor = getattr(part, name)
            shape = (*ops.shape(tensor)[:lead], size)
            tensors.append(ops.reshape(tensor, shape))
        return ops.concatenate(tensors, axis=-1)

    return Likelihood(
        sum(part.log_prob for part in parts),
        entropy / sum(weights),
        joined("position_log_probs", 2),
        joined("counted", 2),
        joined("choice_log_probs", 3),
    )


def of_positions(log_probs, entropy, counted=None):
    """Makes a `Likelihood` from the log-probabilities of positions.

    Args:
        log_probs: `(1 + choices, batch, n, ...)`, those of the samples, followed by
            those of other choices.
        entropy: `(batch,)`.
        counted: `(batch, n, ...)` bool. Default: all positions count.
    """
    own = log_probs[0]
    if counted is None:
        counted = ops.ones_like(own, dtype="bool")
    else:
        # Not a product: a position that does not count may have log-probability -inf.
        own = ops.where(counted, own, 0.0)
    return Likelihood(
        objective.sequence_log_prob(own), entropy, own, counted, log_probs[1:]
    )
