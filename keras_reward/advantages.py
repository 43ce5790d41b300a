"""From rewards to advantages: how much better than its baseline a sample did.

The baselines map rewards of shape `(batch, samples)` to advantages of the same shape,
float32. A group is the samples of one input. A reward that is not finite (NaN: "no
reward"), or beyond `LARGEST_REWARD`, gets advantage 0 and is left out of the baseline
of its group.

Unbiased means that the average of `advantage * grad(log_prob)` is the gradient of the
expected reward. A baseline is unbiased if it does not depend on the sample that it is
subtracted from (Williams 1992, "Simple statistical gradient-following algorithms").
"""

import numpy as np
from keras import ops

from keras_reward.nests import may_be_equal, position_shape

# float32 ends at 3.4e38. What is computed from rewards must stay below: the squares of
# differences, 4e24, summed over many samples, and those of gradients, which optimizers
# sum too: of an advantage of 2e12 at a million positions, 4e36.
LARGEST_REWARD = 1e12


def within_range(rewards):
    """Rewards in float32, NaN for those that do not count: infinite or too large."""
    rewards = ops.cast(rewards, "float32")
    return ops.where(ops.abs(rewards) <= LARGEST_REWARD, rewards, np.nan)


def split_finite(rewards):
    """Separates the rewards that count from those that do not.

    Args:
        rewards: `(batch, samples)`, may contain NaN, infinities and values beyond
            `LARGEST_REWARD`.

    Returns:
        `(values, finite)`: the rewards, with 0 where they do not count, and a boolean
        mask of those that do, both `(batch, samples)`.
    """
    rewards = ops.cast(rewards, "float32")
    finite = ops.abs(rewards) <= LARGEST_REWARD  # NaN is not
    return ops.where(finite, rewards, 0.0), finite


def leave_one_out(rewards):
    """Each reward minus the mean reward of the *other* samples of its input.

    `A_i = r_i - sum_{j != i} r_j / (n - 1)`, unbiased (Kool et al. 2019, "Buy 4
    REINFORCE samples, get a baseline for free!"). With two samples, this is the
    method of Pinto et al. 2023, section 3, applied to both. An input with a single
    finite reward has no baseline, so its advantage is 0.

    Args:
        rewards: `(batch, samples)`.

    Returns:
        Advantages, `(batch, samples)`. Exactly 0 where all rewards are equal.

    Example:

    ```python
    from keras_reward import advantages

    advantages.leave_one_out([[1.0, 2.0, 6.0]])  # [[-3.0, -1.5, 4.5]]
    ```
    """
    values, finite, count = _centered(rewards)
    others = ops.sum(values, axis=1, keepdims=True) - values
    advantages = values - others / ops.maximum(count - 1.0, 1.0)
    return ops.where(ops.logical_and(finite, count > 1.0), advantages, 0.0)


def mean(rewards):
    """Each reward minus the mean reward of all samples of its input, itself included.

    `A_i = r_i - mean(r)`. Equals the leave-one-out advantage times `(n - 1) / n`, so
    the gradient has the right direction but is too small by that factor.

    Args:
        rewards: `(batch, samples)`.

    Returns:
        Advantages, `(batch, samples)`. Exactly 0 where all rewards are equal.
    """
    values, finite, count = _centered(rewards)
    average = ops.sum(values, axis=1, keepdims=True) / ops.maximum(count, 1.0)
    return ops.where(finite, values - average, 0.0)


def greedy(rewards, greedy_rewards):
    """Each reward minus the reward of the greedy output of the same input.

    Self-critical training (Rennie et al. 2017, arXiv 1612.00563). Unbiased, since
    the greedy output does not depend on the samples.

    Args:
        rewards: `(batch, samples)`.
        greedy_rewards: `(batch,)`, the reward of each input's greedy output. Where
            it is not finite, the whole group gets advantage 0.

    Returns:
        Advantages, `(batch, samples)`.
    """
    values, finite = split_finite(rewards)
    baseline, has_baseline = split_finite(greedy_rewards)
    if not may_be_equal(tuple(baseline.shape), tuple(values.shape[:1])):
        raise ValueError(
            "`greedy_rewards` must have one number for each input. "
            f"Expected: shape {tuple(values.shape[:1])}. "
            f"Received: shape {tuple(baseline.shape)}"
        )
    finite = ops.logical_and(finite, has_baseline[:, None])
    return ops.where(finite, values - baseline[:, None], 0.0)


def moving_average(rewards, average):
    """Each reward minus an average of the rewards of *earlier* batches.

    Unbiased if the average does not contain the batch itself. Call `update_average`
    afterwards.

    Args:
        rewards: `(batch, samples)`.
        average: scalar, the average before this batch. NaN means "no batch yet" and
            leaves the rewards unchanged, as 0 does.

    Returns:
        Advantages, `(batch, samples)`.
    """
    values, finite = split_finite(rewards)
    average = ops.cast(average, "float32")
    average = ops.where(ops.isnan(average), 0.0, average)
    return ops.where(finite, values - average, 0.0)


def update_average(average, rewards, momentum=0.9):
    """The moving average after another batch.

    Args:
        average: scalar, the average before this batch. NaN means "no batch yet".
        rewards: `(batch, samples)`.
        momentum: weight of the past. With 0.9 the average looks back about ten batches.

    Returns:
        Scalar; unchanged if no reward of the batch is finite.
    """
    values, finite = split_finite(rewards)
    average = ops.cast(average, "float32")
    count = ops.sum(ops.cast(finite, "float32"))
    batch_mean = ops.sum(values) / ops.maximum(count, 1.0)
    moved = momentum * average + (1.0 - momentum) * batch_mean
    moved = ops.where(ops.isnan(average), batch_mean, moved)
    return ops.where(count > 0.0, moved, average)


def scale_by_std(advantages, rewards, epsilon=1e-6):
    """Advantages divided by the standard deviation of their group's rewards.

    Makes the step independent of the scale of the reward. The price is a biased
    gradient: inputs whose rewards differ little count as much as those whose rewards
    differ a lot (Liu et al. 2025, arXiv 2503.20783). Off by default.

    Args:
        advantages: `(batch, samples)` or `(batch, samples, ...)`.
        rewards: `(batch, samples)`, the rewards that they come from.
        epsilon: added to the deviation, in units of the reward.

    Returns:
        Advantages of the same shape; 0 where all rewards are equal.
    """
    deviation = reward_std(rewards) + epsilon
    axes = (1,) * (len(advantages.shape) - 1)
    return advantages / ops.reshape(deviation, (-1, *axes))


def reward_std(rewards):
    """Standard deviation of the finite rewards of each input (divisor `n - 1`).

    Args:
        rewards: `(batch, samples)`.

    Returns:
        `(batch,)`; 0 for inputs with fewer than two finite rewards.
    """
    values, finite, count = _centered(rewards)
    average = ops.sum(values, axis=1, keepdims=True) / ops.maximum(count, 1.0)
    squares = ops.where(finite, ops.square(values - average), 0.0)
    return ops.sqrt(ops.sum(squares, axis=1) / ops.maximum(count[:, 0] - 1.0, 1.0))


def no_signal(rewards):
    """Which inputs give no gradient, because all their samples have the same reward.

    Args:
        rewards: `(batch, samples)`.

    Returns:
        `(batch,)` boolean. Also True where no reward is finite.
    """
    values, _, _ = _centered(rewards)
    return ops.all(values == 0.0, axis=1)


def checked(name, advantages, rewards, samples):
    """Advantages in float32, 0 where they are not finite.

    Args:
        name: the baseline's name, for the message.
        advantages: what the baseline returned.
        rewards: `(batch, samples)`.
        samples: `(batch, samples, ...)`, with the axes of positions, or a nest of them.

    Raises:
        ValueError: unless the shape is that of the rewards or of the positions, see
            `nests.position_shape`.
    """
    advantages = ops.convert_to_tensor(advantages)
    shape = tuple(advantages.shape)
    expected = [tuple(rewards.shape), position_shape(samples)]
    if not any(may_be_equal(shape, one) for one in expected):
        raise ValueError(
            f"Baseline {name!r} must return an advantage for each sample, or for each "
            f"position of each sample. Expected: shape {expected[0]} or {expected[1]}. "
            f"Received: shape {shape}"
        )
    advantages = ops.cast(advantages, "float32")
    return ops.where(ops.isfinite(advantages), advantages, 0.0)


def _centered(rewards):
    """Rewards minus the best of their group, the mask of finite ones, and their number.

    The shift does not change differences within a group. It makes equal rewards exactly
    0, where a sum and a division would leave rounding errors. Rewards that are not
    finite become 0.
    """
    values, finite = split_finite(rewards)
    best = ops.max(ops.where(finite, values, -float("inf")), axis=1, keepdims=True)
    values = ops.where(finite, values - ops.where(ops.isfinite(best), best, 0.0), 0.0)
    count = ops.sum(ops.cast(finite, "float32"), axis=1, keepdims=True)
    return values, finite, count
