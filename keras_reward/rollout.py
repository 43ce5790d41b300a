"""A rollout, which holds samples and their rewards, and the update that uses it."""

from typing import Any, NamedTuple

from keras import ops

from keras_reward.nests import may_be_equal, merge_rows, split_rows, take_rows


class Rollout(NamedTuple):
    """Samples, their rewards and their advantages, without gradient.

    `n` is the number of samples whose likelihood an update changes: `num_samples`, or
    1 with `update="first"`.

    Attributes:
        samples: `(batch, n, ...)`.
        outputs: what the samples decode to, a nest of `(batch * n, ...)`.
        advantages: `(batch, n)`, or one for each position, `(batch, n, ...)`.
        rewards: `(batch, num_samples)` of all samples, NaN where there is no reward.
        components: dict of `(batch, num_samples)` by the name of the component.
    """

    samples: Any
    outputs: Any
    advantages: Any
    rewards: Any
    components: dict


class Update(NamedTuple):
    """What the terms of the loss get.

    Attributes:
        policy: the `Policy` of the tuned model.
        x: the model's inputs, `(batch, ...)`.
        y: targets, `(batch, ...)`, or None.
        context: what `policy.encode(x)` returned.
        rollout: a `Rollout`.
        likelihood: the `Likelihood` of its samples under the current model, with
            gradient. Its `choice_log_probs` are those of the term's own `choices`.
        sample_weight: `(batch,)`, the weight of each input, or None.
        no_gradient: calls a function without gradient, as
            `no_gradient(function, *args)`.
    """

    policy: Any
    x: Any
    y: Any
    context: Any
    rollout: Rollout
    likelihood: Any
    sample_weight: Any
    no_gradient: Any


def first_samples(outputs, total, count):
    """The outputs of the first samples of each input.

    Args:
        outputs: nest of `(batch * total, ...)`.
        total: number of samples of each input.
        count: how many to take.

    Returns:
        Nest of `(batch * count, ...)`.
    """
    if count == total:
        return outputs
    first = (slice(None), slice(count))
    return merge_rows(take_rows(split_rows(outputs, total), first))


def check_advantages(name, advantages, rewards, samples):
    """Advantages in float32, 0 where they are not finite.

    Args:
        name: the baseline's name, for the message.
        advantages: what the baseline returned.
        rewards: `(batch, samples)`.
        samples: `(batch, samples, ...)`, with the axes of positions.

    Raises:
        ValueError: unless the shape is that of the rewards or of the samples.
    """
    advantages = ops.convert_to_tensor(advantages)
    shape = tuple(advantages.shape)
    expected = [tuple(rewards.shape), tuple(samples.shape)]
    if not any(may_be_equal(shape, one) for one in expected):
        raise ValueError(
            f"Baseline {name!r} must return an advantage for each sample, or for each "
            f"position of each sample. Expected: shape {expected[0]} or {expected[1]}. "
            f"Received: shape {shape}"
        )
    advantages = ops.cast(advantages, "float32")
    return ops.where(ops.isfinite(advantages), advantages, 0.0)
