"""How much memory a compiled step by parts needs, by JAX's compiler."""

import keras
import numpy as np
import pytest
from jax_steps import planned

from keras_reward import BoundaryReward, MeanIoUReward, RewardTuning

pytestmark = pytest.mark.slow

SIZE, CLASSES, BATCH = 64, 21, 4


def one_convolution():
    layers = [keras.Input((SIZE, SIZE, 3)), keras.layers.Conv2D(CLASSES, 1)]
    return keras.Sequential(layers)


def bytes_needed(model, **compilation):
    model.compile(keras.optimizers.SGD(0.1), **compilation)
    shape = (BATCH, SIZE, SIZE)
    return planned(model, (np.zeros((*shape, 3), "float32"), np.zeros(shape, "int32")))


@pytest.mark.parametrize(
    "reward", [MeanIoUReward(CLASSES), BoundaryReward(1, masks=True)]
)
def test_a_step_by_parts_needs_little_more_than_one_of_maximum_likelihood(reward):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    likelihood = bytes_needed(one_convolution(), loss=loss)
    tuned = RewardTuning(one_convolution(), reward, num_samples=1, credit="parts")
    parts = bytes_needed(tuned)
    assert likelihood > 4 * BATCH * SIZE * SIZE * CLASSES  # the logits, in float32
    assert parts < 1.1 * likelihood, parts / likelihood
