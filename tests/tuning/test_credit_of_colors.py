"""Credit by parts for colorizers, whose cells paint blocks of an image."""

import keras
import numpy as np
import pytest
from backends import trains
from tiny import randomize

from keras_reward import (
    CategoricalPolicy,
    ColorfulnessReward,
    ColorPalette,
    PSNRReward,
    RewardTuning,
)

PHOTOS = np.random.default_rng(0).uniform(0.2, 0.8, (16, 6, 8, 1)).astype("float32")


def colorizer(palette):
    """Grey images `(6, 8, 1)` to logits of the colours of 3 x 2 cells, mostly grey."""
    layers = [
        keras.Input((6, 8, 1)),
        keras.layers.Conv2D(palette.num_colors, (2, 4), strides=(2, 4)),
    ]
    model = randomize(keras.Sequential(layers), scale=0.1)
    kernel, bias = model.get_weights()
    bias[0] = 4.0
    model.set_weights([kernel, bias])
    return model


def tuner(interpolation, reward=None, **arguments):
    palette = ColorPalette(40.0, interpolation=interpolation)
    return RewardTuning(
        colorizer(palette),
        reward=reward or ColorfulnessReward(),
        policy=CategoricalPolicy(codec=palette),
        seed=0,
        **arguments,
    )


@trains
@pytest.mark.slow
@pytest.mark.chance
def test_a_colorizer_whose_cells_paint_blocks_is_tuned_by_parts(capsys):
    tuned = tuner("nearest", num_samples=1)
    tuned.compile(keras.optimizers.Adam(0.1))
    history = tuned.fit(PHOTOS, batch_size=16, epochs=8, verbose=2).history
    assert "Credit by parts" in capsys.readouterr().out
    assert history["reward"][0] < 0.5
    assert history["reward"][-1] > 1.0
    assert all(np.isfinite(values).all() for values in history.values())


@trains
@pytest.mark.slow
def test_a_colorizer_that_interpolates_is_tuned_by_outputs(capsys):
    tuned = tuner("bilinear", num_samples=2)
    tuned.compile(keras.optimizers.Adam(0.1))
    tuned.fit(PHOTOS, batch_size=16, verbose=2)
    assert "Credit by outputs" in capsys.readouterr().out
    with pytest.raises(ValueError, match="'parts', but the codec ColorPalette has no"):
        tuner("bilinear", credit="parts")


def test_rewards_of_pictures_that_do_not_count_pixels_fall_back():
    assert tuner("nearest").by_parts
    assert not tuner("nearest", ColorfulnessReward() * PSNRReward()).by_parts
    assert tuner("nearest", ColorfulnessReward() + 0.0 * PSNRReward()).by_parts
