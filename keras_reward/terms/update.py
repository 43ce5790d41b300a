"""What a rollout holds, and what the terms of the loss get to update the model."""

from typing import Any, NamedTuple


class Rollout(NamedTuple):
    """Samples, their rewards and their advantages, without gradient.

    `n` is the number of samples whose likelihood an update changes: `num_samples`, or
    1 with `update="first"`.

    Attributes:
        samples: nest of `(batch, n, ...)`.
        outputs: what the samples decode to, a nest of `(batch * n, ...)`.
        advantages: `(batch, n)`, or one for each position, `(batch, n, ...)`, as in
            `Likelihood`. None if only `alternatives` count.
        rewards: `(batch, num_samples)` of all samples, NaN where there is no reward.
        components: dict of `(batch, num_samples)` by the name of the component.
        alternatives: `(batch, n, *positions, choices)`, how much more each choice would
            have earned than the one that was drawn, 0 where that is not known. None
            unless parts get credit of their own, see `Reward.alternatives`.
        valid: `(batch,)` bool, False for inputs with NaN or infinities. Their rewards
            are NaN, and the model got zeros in their place. None if inputs have no
            floats.
    """

    samples: Any
    outputs: Any
    advantages: Any
    rewards: Any
    components: dict
    alternatives: Any = None
    valid: Any = None


class Update(NamedTuple):
    """What the terms of the loss get.

    Attributes:
        policy: the `Policy` of the tuned model.
        x: the model's inputs, `(batch, ...)`, zeros where they are not valid.
        y: targets, `(batch, ...)`, or None.
        context: what `policy.encode(x)` returned.
        rollout: a `Rollout`.
        likelihood: the `Likelihood` of its samples under the current model, with
            gradient. Its `choice_log_probs` are those of the term's own `choices`. 0
            without gradient for inputs that are not valid.
        sample_weight: `(batch,)`, the weight of each input, or None. 0 for inputs that
            are not valid.
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
