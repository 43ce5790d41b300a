"""What a training step logs."""

import keras
from keras import ops

from keras_reward import advantages
from keras_reward.valid_inputs import as_weights, where_valid

# Metrics of samples, which a single greedy output does not have.
TRAINING_ONLY = ("reward_std", "entropy", "no_signal")


def make_trackers(component_names, num_samples, term_names):
    """A running mean for each metric except `loss`, by name, in float32.

    In half precision, which `keras.config.set_floatx` may ask for, a sum over many
    samples would stop growing.

    Args:
        component_names: names of the reward's components.
        num_samples: number of samples of each input.
        term_names: names of what the terms of the loss log.
    """
    names = ["reward", *component_names, *TRAINING_ONLY, *term_names]
    names += ["no_reward", "invalid_inputs"]
    taken = sorted({name for name in names if names.count(name) > 1 or name == "loss"})
    if taken:
        raise ValueError(
            "The reward, its components and the terms of the loss must not log under "
            "the names of RewardTuning's own metrics, or of one another. Rename them. "
            f"Received: {taken}"
        )
    # A single sample has nothing to differ from.
    absent = {"reward_std", "no_signal"} if num_samples == 1 else set()
    names = [name for name in names if name not in absent]
    return {name: keras.metrics.Mean(name, dtype="float32") for name in names}


def record_samples(trackers, rollout, likelihood):
    """Updates the metrics of samples.

    Args:
        trackers: what `make_trackers` returned.
        rollout: a `Rollout`.
        likelihood: the `Likelihood` of its samples.
    """
    values = {"entropy": likelihood.entropy}
    if "reward_std" in trackers:
        values["reward_std"] = advantages.reward_std(rollout.rewards)
        values["no_signal"] = no_signal(rollout)
    for name, value in values.items():
        trackers[name].update_state(value, sample_weight=as_weights(rollout.valid))
    record_rewards(trackers, rollout.rewards, rollout.components)
    record_invalid(trackers, rollout.valid)


def of_valid(valid, rewards, components):
    """Rewards and components that are NaN for inputs that are not valid.

    Args:
        valid: `(batch,)` bool, or None: all are.
        rewards: `(batch, ...)`.
        components: dict of tensors of the same shape.
    """
    nan = float("nan")
    components = {k: where_valid(valid, v, nan) for k, v in components.items()}
    return where_valid(valid, rewards, nan), components


def record_invalid(trackers, valid):
    """Updates `invalid_inputs` with those of a batch, None if it has no floats."""
    if valid is not None:
        trackers["invalid_inputs"].update_state(ops.logical_not(valid))


def no_signal(rollout):
    """Which inputs of a `Rollout` give no gradient: `(batch,)` bools."""
    if rollout.alternatives is None and len(rollout.advantages.shape) == 2:
        return advantages.no_signal(rollout.rewards)
    given = [rollout.advantages, rollout.alternatives]
    still = [
        ops.all(ops.reshape(each == 0.0, (ops.shape(each)[0], -1)), axis=1)
        for each in given
        if each is not None
    ]
    return ops.all(ops.stack(still), axis=0)


def record_rewards(trackers, rewards, components):
    """Updates `reward`, its components and `no_reward`; all values have one shape."""
    for name, values in {"reward": rewards, **components}.items():
        values, finite = advantages.split_finite(values)
        trackers[name].update_state(values, sample_weight=finite)
    _, finite = advantages.split_finite(rewards)
    trackers["no_reward"].update_state(ops.logical_not(finite))


def record_losses(trackers, losses, batch):
    """Updates the means of losses with those of a batch, weighted by the batch size."""
    for name, loss in losses.items():
        trackers[name].update_state(loss, sample_weight=batch)
