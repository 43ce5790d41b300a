"""What a training step logs."""

import keras

# Metrics of a training step that a single greedy output does not have.
TRAINING_ONLY = ("reward_std", "entropy", "no_signal", "mle_loss")


def make_trackers(part_names, num_samples, mle):
    """A running mean for each metric but `loss`, by name.

    Args:
        part_names: those of the reward.
        num_samples: number of samples of each input.
        mle: whether the likelihood of the ground truth is part of the loss.
    """
    names = ["reward", *part_names, *TRAINING_ONLY, "unscored"]
    taken = sorted({name for name in names if names.count(name) > 1 or name == "loss"})
    if taken:
        raise ValueError(
            "The reward and its parts log under names of RewardTuning's own metrics. "
            f"Rename them. Received: {taken}"
        )
    absent = set() if mle else {"mle_loss"}
    if num_samples == 1:  # one sample does not differ from itself
        absent |= {"reward_std", "no_signal"}
    return {n: keras.metrics.Mean(name=n) for n in names if n not in absent}
