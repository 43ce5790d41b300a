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
# # Make it colourful
#
# A colorizer gets a grey photograph and picks a colour for every cell of a coarse grid.
# Trained to imitate, it is timid: a shirt may have any colour, and the most likely
# guess is a greyish brown. Reward tuning asks for what we want: vivid pictures with
# many hues (Pinto et al. 2023, section 4.3).

# %%
import os

import keras
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_sample_image

from keras_reward.codecs import ColorPalette, to_gray

SMALL = "KERAS_REWARD_SMALL" in os.environ  # a few steps, for tests
CROPS = 16 if SMALL else 512
MLE_EPOCHS, TUNING_EPOCHS = (1, 1) if SMALL else (60, 40)
POOL = 8 if SMALL else 128
keras.utils.set_random_seed(0)

# %% [markdown]
# ## Pictures
#
# Crops of two photographs that come with scikit-learn; nothing is downloaded. The
# flower is for training, the temple is held out.


# %%
def crops(picture, count, seed):
    """Squares of 32 pixels, `(count, 32, 32, 3)` in [0, 1]."""
    generator = np.random.default_rng(seed)
    height, width, _ = picture.shape
    corners = generator.integers(0, (height - 128, width - 128), (count, 2))
    tiles = [picture[i : i + 128 : 4, j : j + 128 : 4] for i, j in corners]
    return np.stack(tiles).astype("float32") / 255


photos = crops(load_sample_image("flower.jpg"), CROPS, seed=0)
held_out = crops(load_sample_image("china.jpg"), 6 if SMALL else 32, seed=1)
gray, held_out_gray = (
    keras.ops.convert_to_numpy(to_gray(images)) for images in (photos, held_out)
)

# %% [markdown]
# ## Stage 1: imitate
#
# For each of 8 x 8 cells the model returns logits over the colours of a palette. The
# palette converts photographs to colour indices for training, and indices back to
# photographs.

# %%
palette = ColorPalette(spacing=20.0)
colors = keras.ops.convert_to_numpy(palette.encode(photos, grid=(8, 8)))

colorizer = keras.Sequential(
    [
        keras.Input((None, None, 1)),
        keras.layers.Conv2D(32, 5, strides=2, padding="same", activation="relu"),
        keras.layers.Conv2D(64, 5, strides=2, padding="same", activation="relu"),
        keras.layers.Conv2D(palette.num_colors, 3, padding="same"),
    ]
)
colorizer.compile(
    keras.optimizers.Adam(1e-3),
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
)
colorizer.fit(gray, colors, epochs=MLE_EPOCHS, verbose=0)

# %% [markdown]
# ## Stage 2: ask for colour
#
# `ColorfulnessReward` is the share of vivid pixels times the entropy of their hues. It
# takes images; the policy's codec, the palette, turns samples into images.
#
# The temperature matters here. Cells are drawn independently, so at temperature 1 a
# sample is colourful by noise alone, and the greedy picture does not need to change.
# Samples at a lower temperature are closer to the greedy picture.

# %%
from keras_reward import CategoricalPolicy, ColorfulnessReward, RewardTuning

tuned = RewardTuning(
    colorizer,
    reward=ColorfulnessReward(),
    policy=CategoricalPolicy(codec=palette),
    num_samples=8,
    temperature=0.3,
    seed=0,
)
tuned.compile(keras.optimizers.Adam(3e-4))

# %% [markdown]
# Before tuning: what do the samples earn, and what does the model paint?

# %%
from keras_reward.evaluation import findings, plot, reward_distribution

data = (held_out_gray, None)
before = reward_distribution(tuned, data, num_samples=POOL, verbose=0)
painted_before = tuned.predict(held_out_gray, verbose=0)

history = tuned.fit(
    gray, epochs=TUNING_EPOCHS, validation_data=(held_out_gray,), verbose=0
).history
for name in ("val_reward", "val_vividness", "val_hue_entropy"):
    print(f"{name:16} {history[name][0]:.3f} -> {history[name][-1]:.3f}")

# %% [markdown]
# ## Look
#
# Numbers first: the distribution of rewards over samples, before and after tuning. On
# the left the rewards of samples, in the middle the best of N, on the right the most
# likely of N. If the right curve before tuning stays below the one after, drawing many
# samples and taking the most likely one does not replace tuning.

# %%
after = reward_distribution(tuned, data, num_samples=POOL, verbose=0)
found = findings(before, after)
print(
    f"the level that 5 % of samples reach before: {found['level']:.2f}; "
    f"samples that reach it after: {found['share_above']:.0%}"
)
plot(before, after, path="colorfulness.png")

# %% [markdown]
# Then the pictures. They are the test that counts: a reward can be earned in ways that
# nobody intended, and only a person sees that.

# %%
painted_after = tuned.predict(held_out_gray, verbose=0)
figure, axes = plt.subplots(3, 6, figsize=(12, 6))
for row, images in zip(axes, (held_out, painted_before, painted_after), strict=True):
    for panel, picture in zip(row, images, strict=False):
        panel.imshow(picture)
        panel.axis("off")
for row, name in zip(axes, ("photograph", "imitation", "tuned"), strict=True):
    row[0].set_title(name)
figure.savefig("gallery.png")

# %% [markdown]
# ## Did it cheat?
#
# A network that knows where a pixel is can paint the same rainbow on every picture and
# earn the full reward. Zero padding gives away the position. To test this, colour a
# picture and its mirror image. If colours follow the content, they are mirrored too.


# %%
def mirror_agreement(model):
    """Share of cells whose colour is the same in the mirror image."""
    straight = np.argmax(model.predict(held_out_gray, verbose=0), axis=-1)
    mirrored = np.argmax(model.predict(held_out_gray[:, :, ::-1], verbose=0), axis=-1)
    return np.mean(straight == mirrored[:, :, ::-1])


print(f"mirror agreement: {mirror_agreement(colorizer):.0%}")

# %% [markdown]
# `examples/colorization.py` is the full version, with reflect padding, a network
# without positions, more photographs, and a table over seeds. "Why did my reward fall?"
# shows what else can go wrong.
