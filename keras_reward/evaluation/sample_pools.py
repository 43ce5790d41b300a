"""Estimates from a pool of n samples for a choice among N <= n of them.

The estimate is the mean over all subsets of N of the n samples. It is unbiased for N
new samples, and does not depend on the order of the pool.
"""

import numpy as np


def mean_of_chosen(values):
    """Mean value of the chosen one of N random samples, for N = 1 ... n.

    The sample of rank i (from 1) of n is the chosen one of N with probability
    `C(i - 1, N - 1) / C(n, N)`, and `sum_i C(i - 1, N - 1) / C(n, N) * value_i` is
    unbiased for N independent samples, since it is a U-statistic (Hoeffding 1948; for
    the best of N, Chen et al. 2021, "Evaluating Large Language Models Trained on Code",
    section 2.1, is the case of values 0 and 1).

    Args:
        values: `(n,)`, ordered by preference, with the preferred sample last. For the
            mean of such arrays over examples, the result is the mean of their results.

    Returns:
        `(n,)` float64, at index N - 1 the mean of the choice among N.

    Example:

    ```python
    from keras_reward.evaluation.sample_pools import mean_of_chosen

    mean_of_chosen([0.0, 3.0, 6.0])  # [3.0, 5.0, 6.0]
    ```
    """
    values = np.asarray(values, "float64")
    n = len(values)
    rank = np.arange(1, n + 1)
    weights = np.full(n, 1.0 / n)  # for N = 1
    result = np.empty(n)
    for size in range(1, n + 1):
        result[size - 1] = weights @ values
        if size < n:
            # From C(i - 1, N - 1) / C(n, N) to that of N + 1.
            weights *= np.maximum(rank - size, 0) / size * (size + 1) / (n - size)
    return result


def by_reward(rewards):
    """Rewards `(examples, n)`, sorted in each example."""
    return np.sort(np.asarray(rewards, "float64"), axis=1)


def by_likelihood(rewards, log_probs):
    """Rewards `(examples, n)`, sorted by likelihood in each example.

    The choice among equally likely samples is random, so each gets their mean reward.

    Args:
        rewards: `(examples, n)`.
        log_probs: `(examples, n)`, log-probabilities of the samples.
    """
    rewards = np.asarray(rewards, "float64")
    order = np.argsort(log_probs, axis=1, kind="stable")
    rewards = np.take_along_axis(rewards, order, axis=1)
    log_probs = np.take_along_axis(np.asarray(log_probs), order, axis=1)
    for row, likelihood in zip(rewards, log_probs, strict=True):
        starts = np.flatnonzero(np.diff(likelihood, prepend=-np.inf) != 0)
        sizes = np.diff(starts, append=len(row))
        row[:] = np.repeat(np.add.reduceat(row, starts) / sizes, sizes)
    return rewards
