"""The objective: weighted log-probabilities of outputs.

Maximum likelihood and reward tuning ascend the same quantity,

    mean over the batch of  weight * log P(output | x; theta),

and differ only in the outputs and their weights: the ground truth with weight 1, or
the model's own samples with their advantages as weights
(Pinto et al. 2023, "Tuning computer vision models with task rewards", section 3).
"""

import keras
from keras import ops

from keras_reward.nests import (
    leaves_of,
    may_be_equal,
    merge_rows,
    samples_per_input,
    split_rows,
    to_tensor,
)


def categorical_log_prob(logits, indices):
    """Log-probability of each index under a softmax, in float32.

    Gathers before subtracting the log-sum-exp, so that the log-probabilities of the
    other classes are never stored.

    Args:
        logits: `(..., classes)`.
        indices: `(..., n)` int, any number of draws from each distribution.

    Returns:
        `(..., n)`: `logits[index] - logsumexp(logits)`, in nats.

    Example:

    ```python
    import numpy as np
    from keras_reward import objective

    logits = np.zeros((1, 4), "float32")
    objective.categorical_log_prob(logits, np.array([[2]]))  # [[-1.386]], -log 4
    ```
    """
    logits = ops.cast(logits, "float32")
    indices = ops.convert_to_tensor(indices)
    picked = ops.take_along_axis(logits, indices, axis=-1)
    return picked - ops.logsumexp(logits, axis=-1, keepdims=True)


def categorical_entropy(logits):
    """Entropy of a softmax distribution: `logsumexp(l) - sum(p * l)`, in nats.

    Args:
        logits: `(..., classes)`.

    Returns:
        `(...)`, between 0 and log(classes).
    """
    logits = ops.cast(logits, "float32")
    logits = logits - ops.stop_gradient(ops.max(logits, axis=-1, keepdims=True))
    weights = ops.exp(logits)
    total = ops.sum(weights, axis=-1)
    return ops.log(total) - ops.sum(weights * logits, axis=-1) / total


def categorical_likelihood(logits, indices, entropy_gradient=False):
    """Log-probabilities and entropies of softmax distributions in one pass.

    As `categorical_log_prob` and `categorical_entropy` together, but the exponential of
    the logits is computed only once.

    Args:
        logits: `(..., classes)`.
        indices: `(..., n)` int, any number of draws from each distribution.
        entropy_gradient: whether a gradient flows through the entropy. Default False.

    Returns:
        Float32, in nats: log-probabilities of the indices `(..., n)` and entropies
        `(...)`.
    """
    held = (lambda tensor: tensor) if entropy_gradient else ops.stop_gradient
    logits = ops.cast(logits, "float32")
    logits = logits - ops.stop_gradient(ops.max(logits, axis=-1, keepdims=True))
    weights = ops.exp(logits)
    total = ops.sum(weights, axis=-1)
    log_total = ops.log(total)
    indices = ops.convert_to_tensor(indices)
    picked = ops.take_along_axis(logits, indices, axis=-1)
    mean = ops.sum(held(weights) * held(logits), axis=-1) / held(total)
    return picked - ops.expand_dims(log_total, -1), held(log_total) - mean


def sequence_log_prob(token_log_probs, mask=None):
    """Log-probability of whole outputs: the sum over their tokens.

    Args:
        token_log_probs: `(batch, samples, ...)`, any number of token axes.
        mask: shaped like `token_log_probs`, True or 1 for the tokens that belong to
            the output. Default: all tokens.

    Returns:
        `(batch, samples)`.
    """
    if mask is not None:
        mask = ops.cast(mask, "bool")
        # Not a product: a masked token may have log-probability -inf.
        token_log_probs = ops.where(mask, token_log_probs, 0.0)
    axes = tuple(range(2, len(token_log_probs.shape)))
    return ops.sum(token_log_probs, axis=axes) if axes else token_log_probs


def weighted_likelihood_loss(log_probs, weights, mask=None, sample_weight=None):
    """Minus the mean of `weight * log P(output)`.

    With the ground truth and weights of 1, this is the negative log-likelihood. With
    the model's samples and their advantages, its gradient is the Reinforce estimate
    (Pinto et al. 2023, algorithm 2): per sequence if `log_probs` and `weights` are
    `(batch, samples)`, per token if both have token axes, so that each token has an
    advantage of its own.

    Args:
        log_probs: `(batch, samples)` or `(batch, samples, ...)` with token axes.
        weights: `(batch, samples)`, or the shape of `log_probs`. No gradient flows into
            them.
        mask: shaped like `log_probs`, which tokens belong to the output. Default: all.
        sample_weight: `(batch,)`, the weight of each input. Default: 1.

    Returns:
        Scalar: summed over tokens, averaged over inputs and samples.

    Example:

    ```python
    import numpy as np
    from keras_reward import objective

    log_probs = np.array([[-1.0, -2.0]], "float32")
    objective.weighted_likelihood_loss(log_probs, [[0.5, -0.5]])  # -0.25
    ```
    """
    log_probs = ops.cast(log_probs, "float32")
    weights = ops.stop_gradient(ops.cast(weights, "float32"))
    token_axes = len(log_probs.shape) - len(weights.shape)
    for _ in range(token_axes):
        weights = ops.expand_dims(weights, -1)
    outputs = sequence_log_prob(weights * log_probs, mask)
    if sample_weight is not None:
        outputs = outputs * ops.cast(sample_weight, "float32")[:, None]
    return -ops.mean(outputs)


def reward_loss(likelihood, advantages, sample_weight=None):
    """The loss of an update: minus the mean of `advantage * log_prob` of samples.

    Args:
        likelihood: a `Likelihood` of samples `(batch, n, ...)`.
        advantages: `(batch, n)`, or one for each position, with the shape of
            `position_log_probs`. Positions that do not count are ignored.
        sample_weight: `(batch,)`, the weight of each input. Default: 1.

    Returns:
        Scalar, see `weighted_likelihood_loss`.
    """
    log_probs = likelihood.log_prob
    if len(advantages.shape) > 2:
        log_probs = likelihood.position_log_probs
        shapes = tuple(log_probs.shape), tuple(advantages.shape)
        if not may_be_equal(*shapes):
            raise ValueError(
                "Advantages of positions need the log-probability of each position, in "
                "`position_log_probs` of the policy's likelihood. Give that its "
                "positions, or each sample one advantage. Received: log-probabilities "
                f"of shape {shapes[0]}, advantages of shape {shapes[1]}"
            )
    return weighted_likelihood_loss(log_probs, advantages, None, sample_weight)


def gains_over_drawn(alternatives, samples):
    """How much more each choice would have earned than the one that was drawn.

    Args:
        alternatives: `(batch, n, *positions, choices)`, the reward if this position
            alone had taken this choice.
        samples: `(batch, n, *positions)` int, the choices that were drawn.

    Returns:
        `(batch, n, *positions, choices)`; 0 for choices without a finite reward.
    """
    n = samples_per_input(samples)
    # In rows, as rewards return them: then XLA writes the result where they were.
    alternatives, samples = merge_rows(to_tensor((alternatives, samples)))
    drawn = ops.expand_dims(ops.cast(samples, "int32"), -1)
    gained = alternatives - ops.take_along_axis(alternatives, drawn, axis=-1)
    return split_rows(ops.where(ops.isfinite(gained), gained, 0.0), n)


def parts_loss(probabilities, gained, sample_weight=None):
    """The loss of an update in which each part gets credit of its own.

    Minus the mean over inputs and samples of the sum over positions i and choices c of
    `p_i(c) * gained_i(c)`. If positions are independent, its gradient is an unbiased
    estimate of that of minus the expected reward, for any number of samples and without
    a baseline: the expectation over each position's own choice is exact (Titsias and
    Lázaro-Gredilla 2015, "Local expectation gradients for black box variational
    inference"; the counterfactual baseline of Foerster et al. 2018 for one agent).

    Args:
        probabilities: `(batch, *positions, choices)`, with gradient.
        gained: `(batch, n, *positions, choices)`, what `gains_over_drawn` returned. No
            gradient flows into it.
        sample_weight: `(batch,)`, the weight of each input. Default: 1.

    Returns:
        Scalar: summed over positions, averaged over inputs and samples.

    Example:

    ```python
    import numpy as np
    from keras_reward import objective

    alternatives = np.array([[[0.0, 1.0]]], "float32")  # choice 1 would have earned 1
    gained = objective.gains_over_drawn(alternatives, np.array([[0]]))
    objective.parts_loss(np.array([[0.75, 0.25]], "float32"), gained)  # -0.25
    ```
    """
    gained = ops.mean(ops.stop_gradient(gained), axis=1)  # p does not depend on n
    if sample_weight is not None:
        # Not after the sum: XLA would keep the products for the gradient.
        shape = [-1] + [1] * (len(gained.shape) - 1)
        gained = gained * ops.reshape(ops.cast(sample_weight, "float32"), shape)
    products = ops.cast(probabilities, "float32") * gained
    products = ops.reshape(products, (ops.shape(products)[0], -1))
    return -ops.mean(ops.sum(products, axis=-1))


def input_weights(sample_weight, like):
    """`sample_weight` as `(batch,)` float32, or None.

    Args:
        sample_weight: `(batch,)` or `(batch, 1)`, one number for each input, or None.
            For a `y` that is a nest, Keras makes a nest of it, the same for each leaf.
            A reward is of all of them: if they differ, their mean counts.
        like: a tensor with the batch in its first axis, for the message.
    """
    if sample_weight is None:
        return None
    if keras.tree.is_nested(sample_weight):
        weights = [input_weights(leaf, like) for leaf in leaves_of(sample_weight)]
        return sum(weights) / len(weights) if weights else None
    shape = tuple(sample_weight.shape)
    if len(shape) > 2 or (len(shape) == 2 and shape[1] != 1):
        raise ValueError(
            "`sample_weight` must have one number for each input. "
            f"Expected: shape ({like.shape[0] or 'batch'},). Received: shape {shape}"
        )
    return ops.cast(ops.reshape(sample_weight, (-1,)), "float32")
