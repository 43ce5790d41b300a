"""What a training step logs."""

import keras
from keras import ops

from keras_reward import advantages

# Metrics of a training step that a single greedy output does not have.
TRAINING_ONLY = ("reward_std", "entropy", "no_signal")


def make_trackers(part_names, num_samples, loss_names):
    """A running mean for each metric but `loss`, by name.

    Args:
        part_names: those of the reward.
        num_samples: number of samples of each input.
        loss_names: of the parts of the loss that are logged apart.
    """
    names = ["reward", *part_names, *TRAINING_ONLY, *loss_names, "unscored"]
    taken = sorted({name for name in names if names.count(name) > 1 or name == "loss"})
    if taken:
        raise ValueError(
            "The reward, its parts and an auxiliary loss log under names of "
            f"RewardTuning's own metrics. Rename them. Received: {taken}"
        )
    # One sample does not differ from itself.
    absent = {"reward_std", "no_signal"} if num_samples == 1 else set()
    return {n: keras.metrics.Mean(name=n) for n in names if n not in absent}


def record_samples(trackers, scores, parts, entropy):
    """Updates what is known of samples.

    Args:
        trackers: what `make_trackers` returned.
        scores: `(batch, num_samples)`, NaN where unscored.
        parts: dict of `(batch, num_samples)`.
        entropy: `(batch,)`.
    """
    trackers["entropy"].update_state(ops.stop_gradient(entropy))
    if "reward_std" in trackers:
        trackers["reward_std"].update_state(advantages.reward_std(scores))
        trackers["no_signal"].update_state(advantages.no_signal(scores))
    record_rewards(trackers, scores, parts)


def record_rewards(trackers, scores, parts):
    """Updates `reward`, its parts and `unscored` by scores of any one shape."""
    for name, values in {"reward": scores, **parts}.items():
        values, scored = advantages.split_scored(values)
        trackers[name].update_state(values, sample_weight=scored)
    _, scored = advantages.split_scored(scores)
    trackers["unscored"].update_state(ops.logical_not(scored))


def record_loss(tracker, loss, batch):
    """Updates the mean of a loss by that of a batch, weighted by its size."""
    tracker.update_state(ops.stop_gradient(loss), sample_weight=batch)
