"""What each cell of a painted image was worth, by painting it otherwise."""

import functools

import keras
import numpy as np
import pytest
from tiny import compiled, to_numpy

from keras_reward import (
    CategoricalPolicy,
    ColorfulnessReward,
    ColorPalette,
    HueEntropyReward,
    VividnessReward,
)
from keras_reward.codecs import to_gray
from keras_reward.policies.choices import DecodedChoices

REWARDS = {
    "vividness": VividnessReward(),
    "hue entropy": HueEntropyReward(bins=5),
    "colorfulness": ColorfulnessReward(),
    "product": VividnessReward(threshold=30.0) * HueEntropyReward(),
    "sum": 0.5 * HueEntropyReward() - VividnessReward() + 2.0,
}
# Height, width, grid rows, grid columns, spacing of the palette.
SIZES = {
    "pixels": (3, 4, 3, 4, 60.0),
    "one cell": (5, 7, 1, 1, 40.0),
    "blocks of 40 x 3": (80, 6, 2, 2, 60.0),
}


@functools.lru_cache
def palette_of(spacing):
    return ColorPalette(spacing, interpolation="nearest")


def grey_inputs(rows, height, width, seed=0):
    """Grey images `(rows, height, width, 1)` of all lightnesses."""
    generator = np.random.default_rng(seed)
    grey = generator.random((rows, height, width, 1), "float32")
    grey[0, 0, 0], grey[-1, -1, -1] = 0.0, 1.0
    return grey


def alternatives(palette, inputs, samples, rewards):
    """By name: rewards `(rows,)` and alternatives `(rows, *grid, colours)`."""

    def evaluate(inputs, samples):
        policy = CategoricalPolicy(codec=palette)
        context = keras.ops.zeros((1, 1, 1, palette.num_colors))
        choices = DecodedChoices(policy, inputs, context, samples)
        images, found = policy.decode(inputs, samples), {}
        for name, reward in rewards.items():
            given = reward.prepare(None), images, None, choices, samples.shape[2:]
            earned, _, credit = reward.evaluate_parts(*given)
            found[name] = earned, credit.alternatives
        return found

    found = compiled(evaluate)(inputs, samples)
    return {name: tuple(map(to_numpy, pair)) for name, pair in found.items()}


def by_force(palette, inputs, samples, rewards):
    """Alternatives by name: each cell painted in each colour, the rewards called."""
    batch, n, rows, columns = samples.shape
    colors = palette.num_colors
    every = (batch, n, rows, columns, colors, rows, columns)
    changed = np.broadcast_to(samples[:, :, None, None, None], every).copy()
    for i, j in np.ndindex(rows, columns):
        changed[:, :, i, j, :, i, j] = np.arange(colors)
    changed = changed.reshape(batch, -1, rows, columns)

    def evaluate(inputs, samples):
        images = palette.decode(inputs, samples)
        images = keras.ops.reshape(images, (-1, *images.shape[2:]))
        return {
            name: reward.evaluate(reward.prepare(None), images)[0]
            for name, reward in rewards.items()
        }

    shape = (batch * n, rows, columns, colors)
    earned = compiled(evaluate)(inputs, changed)
    return {name: to_numpy(each).reshape(shape) for name, each in earned.items()}


def everywhere(rewards, like):
    """Rewards `(rows,)` in the shape of alternatives."""
    return np.broadcast_to(rewards[:, None, None, None], like.shape)


def check_alternatives(rewards, height, width, rows, columns, spacing):
    palette = palette_of(spacing)
    shape = (2, 3, rows, columns)
    samples = np.random.default_rng(1).integers(0, palette.num_colors, shape)
    samples[1, 2] = 0  # all grey
    inputs = grey_inputs(2, height, width)
    found = alternatives(palette, inputs, samples, rewards)
    expected = by_force(palette, inputs, samples, rewards)
    for name, (earned, worth) in found.items():
        assert worth.shape == (6, rows, columns, palette.num_colors)
        np.testing.assert_allclose(worth, expected[name], rtol=1e-5, atol=1e-6)
        drawn = samples.reshape(6, rows, columns, 1)
        drawn = np.take_along_axis(worth, drawn, -1)
        np.testing.assert_allclose(drawn, everywhere(earned, drawn), atol=1e-6)
        assert np.ptp(expected[name]) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("name", REWARDS)
def test_a_cell_is_worth_what_the_image_earns_if_it_is_painted_otherwise(name):
    check_alternatives({name: REWARDS[name]}, 6, 8, 3, 2, 60.0)


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_cells_may_be_of_any_size(size):
    check_alternatives({"colorfulness": ColorfulnessReward()}, *SIZES[size])


@pytest.mark.slow
def test_images_without_a_reward_have_no_alternatives():
    palette = palette_of(60.0)
    inputs = grey_inputs(3, 4, 6)
    inputs[1, 3, 0] = np.nan
    samples = np.ones((3, 1, 2, 3), "int32")
    reward = {"sum": REWARDS["sum"]}
    [(earned, worth)] = alternatives(palette, inputs, samples, reward).values()
    np.testing.assert_array_equal(np.isnan(earned), [False, True, False])
    assert np.isnan(worth[1]).all()
    assert np.isfinite(worth[[0, 2]]).all()


def test_cells_are_counted_by_their_blocks():
    """Red in the left half: by hand."""
    palette = palette_of(40.0)
    samples = np.zeros((1, 1, 2, 4), "int32")
    samples[..., :2] = red = int(palette.colors[:, 0].argmax())
    grey = np.full((1, 4, 8, 1), 0.5, "float32")
    reward = {"vividness": VividnessReward()}
    [(earned, worth)] = alternatives(palette, grey, samples, reward).values()
    np.testing.assert_allclose(earned, 0.5)
    np.testing.assert_allclose(worth[0, :, :2, 0], 0.5 - 1 / 8)
    np.testing.assert_allclose(worth[0, :, 2:, 0], 0.5)
    np.testing.assert_allclose(worth[0, :, :2, red], 0.5)
    np.testing.assert_allclose(worth[0, :, 2:, red], 0.5 + 1 / 8)


class Choices:
    """Images by choice, of parts in any arrangement."""

    def __init__(self, images, positions):
        self.images, self.positions = images, positions

    def map(self, function):
        return keras.ops.stack([function(image) for image in self.images], -1)


def test_parts_that_do_not_paint_blocks_are_refused():
    images = keras.ops.ones((2, 6, 8, 3))
    reward = ColorfulnessReward()
    for choices, received in (
        (keras.ops.arange(3), "choices that are not decoded"),
        (Choices([images], (3,)), r"parts of shape \(3,\)"),
        (Choices([images], (3, 2, 1)), r"parts of shape \(3, 2, 1\)"),
    ):
        with pytest.raises(ValueError, match=f"paint blocks.*nearest.*{received}"):
            reward.alternatives(None, images, choices)
    with pytest.raises(ValueError, match=r"Resize.*of 6x8 pixels, grid=\(4, 2\)"):
        reward.alternatives(None, images, Choices([images], (4, 2)))
    with pytest.raises(ValueError, match="needs float RGB images"):
        reward.alternatives(None, keras.ops.ones((2, 6, 8), "int32"), None)


# The palette whose cells paint blocks.


def test_each_cell_paints_its_block():
    inputs = grey_inputs(2, 6, 8)
    bins = np.random.default_rng(0).integers(0, 9, (2, 3, 3, 2))
    blocks = palette_of(40.0)
    pixels = bins.repeat(2, axis=2).repeat(4, axis=3)
    expected = to_numpy(blocks.decode(inputs, pixels))  # each pixel is a cell
    np.testing.assert_allclose(
        to_numpy(compiled(blocks.decode)(inputs, bins)), expected, atol=1e-6
    )
    # So it is with the default where each pixel is a cell.
    smooth = to_numpy(ColorPalette(40.0).decode(inputs, pixels))
    np.testing.assert_allclose(smooth, expected, atol=1e-6)
    assert (
        np.abs(to_numpy(ColorPalette(40.0).decode(inputs, bins)) - expected).max() > 0.1
    )


def test_painting_the_encoded_colours_of_flat_cells_gives_them_back():
    palette = palette_of(20.0)
    bins = np.arange(9).reshape(1, 1, 3, 3)
    grey = to_gray(np.full((1, 6, 6, 3), 0.5, "float32"))
    painted = palette.decode(grey, bins)[:, 0]
    np.testing.assert_array_equal(to_numpy(palette.encode(painted, (3, 3))), bins[:, 0])


def test_only_cells_with_blocks_of_their_own_are_independent():
    assert palette_of(40.0).independent_positions is True
    assert ColorPalette(40.0).independent_positions is False


def test_the_palette_of_blocks_refuses_images_of_other_sizes():
    bins = np.zeros((1, 1, 4, 2), "int32")
    message = r"whole number of cells.*\. .*\. Received: .*of 6x8 pixels, grid=\(4, 2\)"
    with pytest.raises(ValueError, match=message):
        palette_of(40.0).decode(grey_inputs(1, 6, 8), bins)
    with pytest.raises(ValueError, match=r'"nearest".*Received: interpolation=.cubic'):
        ColorPalette(interpolation="cubic")


def test_the_palette_of_blocks_is_saved_and_earlier_files_load():
    config = keras.saving.serialize_keras_object(palette_of(40.0))
    copy = keras.saving.deserialize_keras_object(config)
    assert copy.independent_positions
    del config["config"]["interpolation"]  # as files were written before
    earlier = keras.saving.deserialize_keras_object(config)
    assert not earlier.independent_positions
