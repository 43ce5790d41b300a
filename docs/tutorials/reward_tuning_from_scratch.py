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
# # Reward tuning from scratch
#
# A model can be tuned for anything that can be *measured*, even if the measure has no
# derivative. The idea in one sentence: make the model's own outputs more or less
# likely, depending on how good they were.
#
# This notebook implements it in NumPy, on a problem small enough to see everything.
# Then it does the same with `keras_reward`, and the numbers are equal.
#
# The method is Reinforce (Williams 1992), for vision models as in Pinto et al. 2023,
# [Tuning computer vision models with task rewards](https://arxiv.org/abs/2302.08242).

# %%
import os

import keras
import numpy as np

SMALL = "KERAS_REWARD_SMALL" in os.environ  # a few steps, for tests
STEPS = 20 if SMALL else 200
BATCH, SAMPLES, RATE = 128, 4, 1.0

# %% [markdown]
# ## The problem
#
# An input is a point in the plane. The model answers with one of five directions. The
# reward is how well the direction fits the point, rounded to quarters: a staircase,
# flat almost everywhere, so its derivative is 0 or does not exist.

# %%
angles = 2 * np.pi * np.arange(5) / 5
directions = np.stack([np.cos(angles), np.sin(angles)], axis=-1)  # (5, 2)
x = np.random.default_rng(0).normal(size=(BATCH, 2)).astype("float32")


def reward(x, actions):
    """How well directions (batch, n) fit points (batch, 2): from -1 to 1."""
    unit = x / np.linalg.norm(x, axis=-1, keepdims=True)
    fit = np.einsum("bnd,bd->bn", directions[actions], unit)
    return np.round(4 * fit) / 4


# %% [markdown]
# The model is linear: five logits from two coordinates. It has not learned anything
# yet, so at first it is about as good as chance.

# %%
kernel = 0.1 * np.random.default_rng(1).normal(size=(2, 5))
bias = np.zeros(5)
start = kernel.astype("float32"), bias.astype("float32")


def probabilities(x):
    logits = x @ kernel + bias
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def greedy_reward(x):
    return reward(x, probabilities(x).argmax(axis=-1)[:, None]).mean()


print(f"greedy reward at the start: {greedy_reward(x):.3f}")

# %% [markdown]
# ## The method
#
# Each step does five things.
#
# 1. **Sample** a few answers for each input from the model itself. One uniform random
#    number, put through the inverse of the cumulative distribution, gives one answer.
# 2. **Reward** them. The reward is evaluated but never differentiated.
# 3. **Compare** each with the others of the same input: the mean of the other rewards
#    is its *baseline*, and the difference its *advantage*. Above 0 means better than
#    the other samples.
# 4. **Differentiate** `- mean(advantage * log p(answer))`. For a softmax the derivative
#    of `log p(answer)` with respect to the logits is `one_hot(answer) - p`.
# 5. **Update**, here by plain gradient descent.
#
# On average this is exactly the gradient of the expected reward, staircase or not. The
# baseline does not change the average, because it does not depend on the sample it is
# subtracted from, and it removes most of the noise.

# %%
random_numbers = keras.random.SeedGenerator(0)


def step(x):
    """One step of reward tuning; returns the mean reward of the samples."""
    global kernel, bias
    p = probabilities(x)

    uniform = keras.random.uniform((BATCH, SAMPLES), seed=random_numbers)
    uniform = keras.ops.convert_to_numpy(uniform)
    cumulative = np.cumsum(p, axis=-1)[:, None]
    samples = (cumulative <= uniform[..., None]).sum(axis=-1)  # (batch, samples)

    rewards = reward(x, samples)

    others = (rewards.sum(axis=1, keepdims=True) - rewards) / (SAMPLES - 1)
    advantages = rewards - others

    one_hot = np.eye(5)[samples]
    by_logits = -(advantages[..., None] * (one_hot - p[:, None])).sum(axis=1)
    by_logits /= BATCH * SAMPLES

    kernel = kernel - RATE * x.T @ by_logits
    bias = bias - RATE * by_logits.sum(axis=0)
    return rewards.mean()


scratch = [step(x) for _ in range(STEPS)]
print(f"greedy reward at the end:   {greedy_reward(x):.3f}")

# %% [markdown]
# That is the whole method. Compare it with maximum likelihood, where the answers come
# from people and every advantage is 1. The two stages of training differ only in whose
# answers become more likely, and by how much.
#
# ## The same with the library
#
# The model can be any Keras model and the reward any function. `RewardTuning` does the
# five steps, on JAX, TensorFlow or PyTorch. A reward with an argument `inputs` gets the
# model's inputs.

# %%
from keras import ops

from keras_reward import RewardTuning

model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(5)])
model.set_weights(start)


def fits(y_true, y_pred, inputs):
    """The same reward, one row for each sample."""
    chosen = ops.take(ops.convert_to_tensor(directions, "float32"), y_pred, axis=0)
    unit = inputs / ops.norm(inputs, axis=-1, keepdims=True)
    return ops.round(4 * ops.sum(chosen * unit, axis=-1)) / 4


tuned = RewardTuning(model, reward=fits, num_samples=SAMPLES, seed=0)
tuned.compile(keras.optimizers.SGD(RATE))
history = tuned.fit(x, batch_size=BATCH, epochs=STEPS, shuffle=False, verbose=0).history

# %% [markdown]
# One epoch is one step here, because the batch holds all points. Both versions draw the
# same random numbers, so they get the same samples in every step and end with the same
# weights.

# %%
for number in (0, STEPS // 2, STEPS - 1):
    by_hand, library = scratch[number], history["reward"][number]
    print(f"step {number:3}: {by_hand:.4f} in NumPy, {library:.4f} with the library")
np.testing.assert_allclose(scratch, history["reward"], atol=1e-3)
np.testing.assert_allclose(kernel, model.get_weights()[0], atol=1e-3)
print("equal")

# %% [markdown]
# ## Where to go from here
#
# - `fit` logs more than the reward: [what the metrics mean](../metrics.md), and why the
#   loss stays near 0.
# - [How reward tuning works](../how_it_works.md) has the same five steps with the names
#   used in the code.
# - "Make it colourful" tunes a model of images.
