"""Whether parts of an output get credit of their own, or outputs as a whole."""

from keras_reward import baselines

CREDITS = ("auto", "output", "parts")


def check_credit(credit):
    """Raises for an unknown `credit`."""
    if credit not in CREDITS:
        raise ValueError(
            f"`credit` must be one of {CREDITS}. Received: credit={credit!r}"
        )


def check_samples(num_samples, baseline):
    """Raises if a baseline needs more samples of each input."""
    baseline = baselines.get(baseline)
    if num_samples < baseline.min_samples:
        raise ValueError(
            f"A {type(baseline).__name__} compares the samples of an input: "
            f"`num_samples` must be at least {baseline.min_samples}. For a single "
            'sample, use `baseline="greedy"` or `"moving_average"`, or, where parts '
            "are drawn independently, a reward with `alternatives`. "
            f"Received: num_samples={num_samples}"
        )


def missing_for_parts(reward, policy):
    """What is missing so that parts can get credit of their own.

    Args:
        reward: a `Reward`.
        policy: a `Policy`.

    Returns:
        A list of sentences' parts; empty if nothing is missing.
    """
    reason = policy.without_parts()
    missing = [] if reason is None else [reason]
    names = (
        reward.without_gains()
        if policy.ordered
        else reward.without_credit(policy.has_choices)
    )
    if names:
        rewards = ", ".join(map(repr, names))
        if policy.ordered:
            missing.append(f"no `gains` in reward {rewards}")
        elif policy.has_choices:
            missing.append(f"no `alternatives` in reward {rewards}")
        else:
            missing.append(f"reward {rewards} is not a `MapReward`, which")
    return missing


def is_by_parts(credit, reward, policy):
    """Whether parts get credit of their own, from the argument `credit`.

    Raises:
        ValueError: if `credit` is "parts" and that is not possible.
    """
    if credit == "output":
        return False
    missing = missing_for_parts(reward, policy)
    if missing and credit == "parts":
        raise ValueError(
            "Parts of an output can get credit of their own if the policy draws and "
            "decodes them independently, or one after the other with a codec that says "
            "which is which, and the reward says what each was worth. Use "
            '`credit="output"`, or give it what is missing. '
            f"Received: credit='parts', but {'; '.join(missing)}"
        )
    return not missing


def needs_baseline(by_parts, reward, policy):
    """Whether what earns credit is compared with the same of other samples."""
    has_part_rewards = reward.has_part_rewards or policy.has_part_rewards
    return not by_parts or policy.ordered or has_part_rewards


def described(by_parts, reward, policy):
    """A line for the log: what gets credit, and why."""
    if by_parts and policy.ordered:
        return (
            "Credit by parts: each token gets what its part of the output and the "
            "later ones add to the reward."
        )
    if by_parts:
        own = reward.without_alternatives() or policy.has_part_rewards
        how = "" if own else ", without a baseline"
        return f"Credit by parts: each part of an output gets its own{how}."
    why = "; ".join(missing_for_parts(reward, policy)) or "as asked for"
    return f"Credit by outputs: one reward for the whole of each ({why})."
