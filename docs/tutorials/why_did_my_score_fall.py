# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Why did my score fall?
#
# Tuning starts from a model that works, so there is something to lose. Three ways to
# lose it, how each looks in the logs and plots, and what to do: a learning rate that is
# too high, dropout, and a reward that the model exploits.

# %%
import os
import warnings

import keras
import numpy as np
from keras import ops

from keras_reward import FunctionReward, RewardTuning
from keras_reward.callbacks import RewardGuard, SampleLogger

SMALL = "KERAS_REWARD_SMALL" in os.environ  # a few steps, to see that all of it runs
IMAGES = 64 if SMALL else 512
MLE_EPOCHS, EPOCHS = (8, 3) if SMALL else (15, 10)
RATE = 3e-3

# %% [markdown]
# ## A model that works
#
# Find the disc in a noisy image. A small network, trained as usual to say of every
# pixel whether it belongs to the disc.


# %%
def discs(count, seed):
    """Images `(count, 16, 16, 1)` and masks `(count, 16, 16, 1)`."""
    generator = np.random.default_rng(seed)
    row, column = np.mgrid[:16, :16]
    centers = generator.uniform(4, 12, (count, 2, 1, 1))
    radius = generator.uniform(2, 4, (count, 1, 1))
    distance = np.hypot(row - centers[:, 0], column - centers[:, 1])
    masks = (distance < radius)[..., None].astype("float32")
    images = masks + generator.normal(0, 0.7, masks.shape)
    return images.astype("float32"), masks


def trained_model(dropout=0.0):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((16, 16, 1)),
            keras.layers.Conv2D(16, 5, padding="same", activation="relu"),
            keras.layers.Dropout(dropout),
            keras.layers.Conv2D(1, 5, padding="same"),
        ]
    )
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-2), loss)
    model.fit(images, masks, epochs=MLE_EPOCHS, verbose=0)
    return model


images, masks = discs(IMAGES, seed=0)
held_out = discs(64, seed=1)
model = trained_model()
weights = model.get_weights()

# %% [markdown]
# ## Too high a learning rate
#
# The most common one. Tuning takes a rate 10 to 1000 times lower than training did; a
# model whose answers were good is undone by a few large steps, and samples of a ruined
# model cannot lead back.
#
# First a rate that works, then one a hundred times higher.


# %%
def dice(y_true, y_pred):
    """Twice the overlap over the sum of both areas: 1 for equal masks."""
    said = ops.cast(y_pred, "float32")
    overlap = ops.sum(y_true * said, axis=(1, 2, 3))
    return (
        2.0
        * overlap
        / (ops.sum(y_true, axis=(1, 2, 3)) + ops.sum(said, axis=(1, 2, 3)))
    )


def tune(rate, reward=dice, callbacks=(), epochs=EPOCHS, **arguments):
    """Tunes a fresh copy of the trained weights."""
    model.set_weights(weights)
    keras.utils.set_random_seed(0)  # the order of the images
    tuned = RewardTuning(
        model,
        reward=reward,
        policy="bernoulli",
        num_samples=4,
        seed=0,
        **arguments,
    )
    tuned.compile(keras.optimizers.Adam(rate))
    history = tuned.fit(
        images,
        masks,
        epochs=epochs,
        validation_data=held_out,
        callbacks=list(callbacks),
        verbose=0,
    )
    return tuned, history.history


good, history = tune(RATE)
print("rate as it should be:", np.round(history["val_reward"], 3))
_, history = tune(100 * RATE)
print("a hundred times that:", np.round(history["val_reward"], 3))

# %% [markdown]
# How it looks: `val_reward` falls at once, often together with `entropy`; `no_signal`
# rises, since a model that answers the same each time has samples that all earn the
# same. Nothing in the *loss* shows it: its value says nothing.
#
# `RewardGuard` measures before the first step and then every few steps, and when the
# reward falls it stops, puts the best weights back, and says so.

# %%
guard = RewardGuard(validation_data=held_out, every_steps=2)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    guarded, _ = tune(100 * RATE, callbacks=[guard])
print(guard.fired.message if guard.fired else "the guard found nothing")
rescued = guarded.evaluate(*held_out, verbose=0, return_dict=True)["reward"]
print(f"held-out reward: {rescued:.3f}, the best that was seen {guard.best_value:.3f}")
if guard.fired:
    assert rescued > 0.99 * guard.best_value

# %% [markdown]
# What to do: lower the rate by ten; warm it up
# (`keras.optimizers.schedules.CosineDecay(0.0, ..., warmup_target=rate)`).
#
# ## Dropout
#
# A sample is drawn from one distribution and must be scored under the same. With
# dropout on, each pass of the network is another distribution: sample in one pass,
# score in another, and the ratio of the two probabilities, which should be 1, is
# anything. Here is that ratio for a network with dropout, over two passes, and over
# one and the same.

# %%
thinned = trained_model(dropout=0.5)
noisy = RewardTuning(thinned, reward=dice, policy="bernoulli", seed=0)


def ratio(first, second):
    """Spread of p(sample) between two passes: 5 % and 95 % quantiles."""
    samples = noisy.policy.sample(first, 4, seed=0)
    logs = [noisy.policy.log_prob(context, samples) for context in (second, first)]
    values = ops.convert_to_numpy(ops.stop_gradient(ops.exp(logs[0] - logs[1])))
    return np.round(np.quantile(values, (0.05, 0.95)), 3)


passes = [noisy.policy.encode(images[:32], training=True) for _ in range(2)]
fixed = [noisy.policy.encode(images[:32], training=False) for _ in range(2)]
print("dropout on, two passes: ", ratio(*passes))
print("dropout on, one pass:   ", ratio(passes[0], passes[0]))
print("dropout off, two passes:", ratio(*fixed))

# %% [markdown]
# The library samples and scores from one pass, so this cannot happen, whatever you set.
# And it runs the model with `training=False`, so that what is tuned is what is used:
# with `model_training=True` a thinned network would be tuned, whose samples earn less.

# %% [markdown]
# ## A reward that is exploited
#
# The reward went up, and the pictures are worse. Ask for *recall*, the share of the
# disc that was found, and the model learns to say yes everywhere: that finds all of
# it.


# %%
def recall(y_true, y_pred):
    found = ops.sum(y_true * ops.cast(y_pred, "float32"), axis=(1, 2, 3))
    return found / ops.maximum(ops.sum(y_true, axis=(1, 2, 3)), 1.0)


def precision(y_true, y_pred):
    said = ops.cast(y_pred, "float32")
    right = ops.sum(y_true * said, axis=(1, 2, 3))
    return right / ops.maximum(ops.sum(said, axis=(1, 2, 3)), 1.0)


# A term of weight 0 has no influence, and is logged: a monitor.
watched = FunctionReward(recall, name="recall") + 0.0 * FunctionReward(
    precision, name="precision"
)
hacking = 3 * RATE if SMALL else RATE / 3  # slow enough to watch
logger = SampleLogger("samples", *[part[:2] for part in held_out], every_epochs=EPOCHS)
_, history = tune(hacking, watched, [logger])
print("val_reward   ", np.round(history["val_reward"], 2))
print("val_precision", np.round(history["val_precision"], 2))

# %% [markdown]
# `val_reward` rises, `val_precision` falls. The pictures in `samples/` show what
# happened: the mask has grown over the image. Two numbers that should rise together and
# do not: `progression` draws them, and gives their rank correlation.

# %%
from keras_reward.evaluation import plot_progression, progression

result = progression(history, metric="val_precision")
print(f"rank correlation: {result.rank_correlation:.2f}")
plot_progression(result, "progression.png")

# %% [markdown]
# The guard can watch a monitor, too. It stops at the first sign, with the best weights
# from before.

# %%
guard = RewardGuard(
    ("val_reward", "val_precision"), validation_data=held_out, every_steps=2
)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    tune(hacking, watched, [guard])
print(guard.fired.message if guard.fired else "the guard found nothing")

# %% [markdown]
# What to do: reward what you want. The overlap above asks for recall and precision at
# once. Where no such reward exists, stay close to the model that tuning starts from:
# `kl_weight` with a `reference` charges for moving away.

# %%
_, history = tune(hacking, watched, kl_weight=0.01, reference="copy")
print("recall, kept near", np.round(history["val_reward"], 2))
print("    its precision", np.round(history["val_precision"], 2))
print("    kl, nats     ", np.round(history["kl"], 1))

# %% [markdown]
# ## A list to go through
#
# | what you see | what it may be |
# | --- | --- |
# | `val_reward` falls from the first epoch | the learning rate; warm up |
# | `reward` rises, `val_reward` does not | good by noise: lower `temperature` |
# | `no_signal` near 1 | the reward is too coarse, or the policy certain: more samples |
# | `entropy` falls to 0 | the learning rate; `entropy_weight` |
# | `val_reward` rises, outputs are worse | the reward: monitors, samples, another |
# | `loss` is 0 | [nothing](../metrics.md) |
