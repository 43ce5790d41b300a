"""The compiled JAX step lowers for accelerators, without the host in it."""

import re

import jax
import keras
import pytest
from jax_steps import step_arguments
from tiny import randomize

from keras_reward import (
    CategoricalPolicy,
    ColorfulnessReward,
    ColorPalette,
    Entropy,
    GaussianPolicy,
    RewardTuning,
    StandardizedBaseline,
)


def colorizer_step(policy, channels, **arguments):
    """A tuner's train step and the shapes of its arguments."""
    model = keras.Sequential(
        [keras.Input((8, 8, 1)), keras.layers.Conv2D(channels, 4, strides=4)]
    )
    tuned = RewardTuning(
        randomize(model), reward=ColorfulnessReward(), policy=policy, **arguments
    )
    tuned.compile(keras.optimizers.Adam(1e-3))
    return tuned.train_step, step_arguments(tuned, jax.numpy.zeros((4, 8, 8, 1)))


def paint(inputs, samples):
    """Regression outputs as an image."""
    return keras.ops.sigmoid(samples[..., None] * keras.ops.ones((3,)))[:, :, :, :, 0]


PALETTE = ColorPalette(spacing=40.0)
CASES = {
    "categorical": (CategoricalPolicy(codec=PALETTE), PALETTE.num_colors, {}),
    "greedy": (
        CategoricalPolicy(codec=PALETTE),
        PALETTE.num_colors,
        {"baseline": "greedy", "update": "first", "terms": [Entropy(0.1)]},
    ),
    "gaussian": (
        GaussianPolicy(codec=paint, learn_stddev=True),
        1,
        {"baseline": StandardizedBaseline("moving_average")},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_step_lowers_for_tpu_and_cuda_without_host_callback(case):
    policy, channels, arguments = CASES[case]
    step, inputs = colorizer_step(policy, channels, **arguments)
    exported = jax.export.export(jax.jit(step), platforms=["cpu", "cuda", "tpu"])(
        *inputs
    )
    assert exported.platforms == ("cpu", "cuda", "tpu")
    calls = set(re.findall(r"custom_call @(\w+)", exported.mlir_module()))
    assert not [name for name in calls if "callback" in name]


def test_a_host_callback_would_be_refused():
    def host(x):
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return jax.pure_callback(lambda y: y, shape, x)

    with pytest.raises(NotImplementedError, match="host_callback"):
        jax.export.export(jax.jit(host), platforms=["cpu"])(jax.numpy.ones(3))
