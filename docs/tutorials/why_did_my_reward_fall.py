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
# # Why did my reward fall?
#
# Tuning starts from a model that works, so there is something to lose. This notebook
# shows three ways to lose it, how each looks in logs and plots, and what to do: a
# learning rate that is too high, dropout, and a reward that the model exploits.

# %%
import os
import warnings

import keras
import numpy as np
from keras import ops

from keras_reward import KL, FunctionReward, RewardTuning
from keras_reward.callbacks import RewardGuard, SampleLogger

SMALL = "KERAS_REWARD_SMALL" in os.environ  # a few steps, for tests
IMAGES = 64 if SMALL else 512
MLE_EPOCHS, EPOCHS = (8, 3) if SMALL else (15, 10)
RATE = 3e-3

# %% [markdown]
# ## A model that works
#
# The task is to find a disc in a noisy image. A small network, trained as usual, tells
# for every pixel whether it belongs to the disc.


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
# This is the most common cause. Tuning needs a learning rate 10 to 1000 times lower
# than training. A few large steps ruin a good model, and it cannot recover from its own
# bad samples.
#
# First a rate that works, then one a hundred times higher.


# %%
def dice(y_true, y_pred):
    """Twice the overlap over the sum of both areas: 1 for equal masks."""
    predicted = ops.cast(y_pred, "float32")
    overlap = ops.sum(y_true * predicted, axis=(1, 2, 3))
    return (
        2.0
        * overlap
        / (ops.sum(y_true, axis=(1, 2, 3)) + ops.sum(predicted, axis=(1, 2, 3)))
    )


def tune(rate, reward=dice, callbacks=(), epochs=EPOCHS, **arguments):
    """Tunes the model, starting from the trained weights."""
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
print("a good learning rate: ", np.round(history["val_reward"], 3))
_, history = tune(100 * RATE)
print("a hundred times higher:", np.round(history["val_reward"], 3))

# %% [markdown]
# How it looks: `val_reward` falls at once, often together with `entropy`. `no_signal`
# rises, because a model that always gives the same answer has samples that all earn the
# same. The value of the *loss* does not show it.
#
# `RewardGuard` measures before the first step and then every few steps. When the reward
# falls, it stops training, restores the best weights, and warns.

# %%
guard = RewardGuard(validation_data=held_out, every_steps=2)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    guarded, _ = tune(100 * RATE, callbacks=[guard])
print(guard.fired.message if guard.fired else "the guard found nothing")
rescued = guarded.evaluate(*held_out, verbose=0, return_dict=True)["reward"]
print(f"held-out reward: {rescued:.3f}, the best so far: {guard.best_value:.3f}")
if guard.fired:
    assert rescued > 0.99 * guard.best_value

# %% [markdown]
# What to do: divide the learning rate by ten, or warm it up
# (`keras.optimizers.schedules.CosineDecay(0.0, ..., warmup_target=rate)`).
#
# ## Dropout
#
# The log-probability of a sample must come from the distribution that it was drawn
# from. With dropout, each forward pass is another distribution. If samples are drawn in
# one pass and their probability is computed in another, the ratio of the two
# probabilities is far from 1. Here is this ratio for a network with dropout, for two
# passes and for one.

# %%
thinned = trained_model(dropout=0.5)
noisy = RewardTuning(thinned, reward=dice, policy="bernoulli", seed=0)


def ratio(first, second):
    """5 % and 95 % quantiles of p(sample) in one pass over p(sample) in another."""
    samples = noisy.policy.sample(first, 4, seed=0)
    log_probs = [
        noisy.policy.likelihood(context, samples).log_prob
        for context in (second, first)
    ]
    values = ops.stop_gradient(ops.exp(log_probs[0] - log_probs[1]))
    values = ops.convert_to_numpy(values)
    return np.round(np.quantile(values, (0.05, 0.95)), 3)


passes = [noisy.policy.encode(images[:32], training=True) for _ in range(2)]
fixed = [noisy.policy.encode(images[:32], training=False) for _ in range(2)]
print("dropout on, two passes: ", ratio(*passes))
print("dropout on, one pass:   ", ratio(passes[0], passes[0]))
print("dropout off, two passes:", ratio(*fixed))

# %% [markdown]
# The library draws samples and computes their likelihood in one pass, so this cannot
# happen. It also runs the model with `training=False`, so the model that is tuned is
# the one that is used. With `model_training=True` it would tune a network with dropout,
# whose samples earn less.

# %% [markdown]
# ## A reward that is exploited
#
# The reward went up, but the outputs are worse. If the reward is *recall*, the share of
# the disc that was found, the model learns to answer yes everywhere, which finds all of
# it.


# %%
def recall(y_true, y_pred):
    found = ops.sum(y_true * ops.cast(y_pred, "float32"), axis=(1, 2, 3))
    return found / ops.maximum(ops.sum(y_true, axis=(1, 2, 3)), 1.0)


def precision(y_true, y_pred):
    predicted = ops.cast(y_pred, "float32")
    correct = ops.sum(y_true * predicted, axis=(1, 2, 3))
    return correct / ops.maximum(ops.sum(predicted, axis=(1, 2, 3)), 1.0)


# A reward of weight 0 is a monitor: logged, without influence.
watched = FunctionReward(recall, name="recall") + 0.0 * FunctionReward(
    precision, name="precision"
)
hacking = 3 * RATE if SMALL else RATE / 3  # slow enough to watch
logger = SampleLogger("samples", *[part[:2] for part in held_out], every_epochs=EPOCHS)
_, history = tune(hacking, watched, [logger])
print("val_reward   ", np.round(history["val_reward"], 2))
print("val_precision", np.round(history["val_precision"], 2))

# %% [markdown]
# `val_reward` rises and `val_precision` falls. The pictures in `samples/` show what
# happened: the mask has grown over the image. The two should rise together but do not.
# `progression` draws both and returns their rank correlation.

# %%
from keras_reward.evaluation import plot_progression, progression

result = progression(history, metric="val_precision")
print(f"rank correlation: {result.rank_correlation:.2f}")
plot_progression(result, "progression.png")

# %% [markdown]
# The guard can also watch a monitor. It stops at the first sign and restores the best
# weights.

# %%
guard = RewardGuard(
    ("val_reward", "val_precision"), validation_data=held_out, every_steps=2
)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    tune(hacking, watched, [guard])
print(guard.fired.message if guard.fired else "the guard found nothing")

# %% [markdown]
# What to do: reward what you want. The overlap above asks for both recall and
# precision. If there is no such reward, stay close to the model that tuning starts
# from: the term `KL` adds the divergence from it to the loss.

# %%
_, history = tune(hacking, watched, terms=[KL("copy", 0.01)])
print("recall with KL", np.round(history["val_reward"], 2))
print("its precision ", np.round(history["val_precision"], 2))
print("kl, in nats   ", np.round(history["kl"], 1))

# %% [markdown]
# ## Checklist
#
# | what you see | possible cause and remedy |
# | --- | --- |
# | `val_reward` falls from the first epoch | learning rate too high: lower, warm up |
# | `reward` rises, `val_reward` does not | good by noise: lower `temperature` |
# | `no_signal` near 1 | reward too coarse or policy too certain: draw more samples |
# | `entropy` falls to 0 | learning rate too high: lower it, or add the term `Entropy` |
# | `val_reward` rises, outputs are worse | reward exploited: change it, add monitors |
# | `loss` is 0 | [no problem](../metrics.md) |
