"""Checks of the arguments of `RewardTuning`, and the new names of renamed ones."""

from keras_reward import baselines
from keras_reward.terms import Term

UPDATES = ("all", "first")
# Arguments of earlier versions of `RewardTuning`, and what replaces them.
RENAMED = {
    "entropy_weight": "terms=[Entropy(weight)]",
    "mle_weight": "terms=[MaximumLikelihood(weight)]",
    "auxiliary_loss": "terms=[ConfidenceLoss(weight)]",
    "kl_weight": "terms=[KL(reference_model, weight)]",
    "reference": "terms=[KL(reference_model, weight)]",
    "save_reference": "terms=[KL(reference_model, weight, save=True)]",
    "scale_advantages": 'baseline="standardized"',
}


def refuse_renamed(arguments, what):
    """Raises a ValueError that names the replacements of renamed arguments.

    Args:
        arguments: names of arguments.
        what: where they come from, for the message.
    """
    found = [name for name in RENAMED if name in arguments]
    if found:
        changes = "; ".join(f"`{name}` is now `{RENAMED[name]}`" for name in found)
        raise ValueError(
            f"{what} has arguments of an earlier form of RewardTuning: {changes}. "
            f"Received: {', '.join(found)}"
        )


def check_arguments(
    num_samples=2,
    baseline="leave_one_out",
    update="all",
    temperature=1.0,
    terms=(),
):
    """Raises a ValueError for arguments that `RewardTuning` cannot use."""
    if not isinstance(num_samples, int) or num_samples < 1:
        raise ValueError(
            "`num_samples` must be a positive int. "
            f"Received: num_samples={num_samples!r}"
        )
    baseline = baselines.get(baseline)
    if num_samples < baseline.min_samples:
        raise ValueError(
            f"A {type(baseline).__name__} compares the samples of an input: "
            f"`num_samples` must be at least {baseline.min_samples}. For a single "
            'sample, use `baseline="greedy"` or `"moving_average"`. '
            f"Received: num_samples={num_samples}"
        )
    if update not in UPDATES:
        raise ValueError(
            f"`update` must be one of {UPDATES}. Received: update={update!r}"
        )
    if not temperature > 0:
        raise ValueError(
            "`temperature` must be a positive number. "
            f"Received: temperature={temperature!r}"
        )
    if not isinstance(terms, (list, tuple)) or not all(
        isinstance(term, Term) for term in terms
    ):
        raise ValueError(
            "`terms` must be a list of terms, such as `[Entropy(0.01)]`. "
            f"Received: terms={terms!r}"
        )
