"""How fast `ColorfulnessReward` is beside scikit-image's conversion to Lab alone.

512 x 512 pixels, a batch of 8, float32.
"""

import jax
import numpy as np
from skimage.color import rgb2lab
from timing import in_turns

from keras_reward import ColorfulnessReward

BATCH, SIZE, GOAL, ROUNDS = 8, 512, 2.0, 9


def measure():
    """Rows of (name, reference's name, seconds an item, the reference's, goal)."""
    images = np.random.default_rng(0).random((BATCH, SIZE, SIZE, 3), "float32")
    reward = ColorfulnessReward()
    evaluate = jax.jit(lambda y_pred: reward.evaluate(None, y_pred)[0])
    on_device = jax.device_put(images)
    ours, theirs = in_turns(
        [lambda: evaluate(on_device).block_until_ready(), lambda: rgb2lab(images)],
        ROUNDS,
    )
    name = f"colorfulness, {SIZE} x {SIZE}"
    return [(name, "scikit-image's rgb2lab", ours / BATCH, theirs / BATCH, GOAL)]
