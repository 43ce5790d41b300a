"""The new names of renamed arguments of `RewardTuning`."""

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
