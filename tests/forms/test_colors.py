"""Colours and colour rewards against scikit-image and NumPy."""

import keras
import numpy as np
import pytest
import skimage.color
import skimage.data
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tiny import compiled, to_numpy

from keras_reward import (
    CategoricalPolicy,
    ColorfulnessReward,
    ColorPalette,
    HueEntropyReward,
    VividnessReward,
)
from keras_reward.forms import colors
from keras_reward.rewards.color_reward import shares
from keras_reward.rewards.colorfulness import beyond_hues, hue_entropy


def rgb_grid(points=33):
    axis = np.linspace(0.0, 1.0, points, dtype="float32")
    return np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1)


@pytest.fixture(scope="module")
def pictures():
    """Crops of photographs, `(n, 128, 128, 3)` float32 in [0, 1]."""
    photos = [skimage.data.astronaut(), skimage.data.coffee(), skimage.data.chelsea()]
    crops = [photo[i : i + 128, i : i + 128] for photo in photos for i in (0, 100, 170)]
    return np.stack(crops).astype("float32") / 255.0


def numpy_colorfulness(images):
    """Vivid fraction and hue entropy by angles and histograms, in float64."""
    lab = skimage.color.rgb2lab(images.astype("float64"))
    a, b = lab[..., 1], lab[..., 2]
    vivid = (np.sqrt(a**2 + b**2) > 10).mean((1, 2))
    entropies = []
    for angles in np.arctan2(b, a):
        counts, _ = np.histogram(angles, bins=7, range=(-np.pi, np.pi))
        p = counts[counts > 0] / counts.sum()
        entropies.append(-(p * np.log(p)).sum())
    return vivid, np.array(entropies)


def test_lab_is_that_of_scikit_image():
    grid = rgb_grid()
    expected = skimage.color.rgb2lab(grid.astype("float64"))
    np.testing.assert_allclose(to_numpy(colors.rgb_to_lab(grid)), expected, atol=1e-2)


def test_white_is_not_exactly_grey():
    white = to_numpy(colors.rgb_to_lab(np.ones((1, 3), "float32")))[0]
    np.testing.assert_allclose(white, [100.0, -0.0025, 0.0047], atol=1e-3)


def test_lab_and_back():
    grid = rgb_grid(17)
    lab = to_numpy(colors.rgb_to_lab(grid))
    back = to_numpy(colors.lab_to_rgb(lab[..., 0], lab[..., 1], lab[..., 2]))
    np.testing.assert_allclose(back, grid, atol=1e-4)


def test_colours_outside_the_gamut_keep_lightness_and_hue():
    generator = np.random.default_rng(0)
    lightness = generator.uniform(5, 95, 2000).astype("float32")
    a, b = generator.uniform(-150, 150, (2, 2000)).astype("float32")
    rgb = to_numpy(colors.lab_to_rgb(lightness, a, b))
    assert rgb.min() >= 0.0
    assert rgb.max() <= 1.0
    lab = skimage.color.rgb2lab(rgb.astype("float64"))
    np.testing.assert_allclose(lab[:, 0], lightness, atol=0.15)
    chroma = np.hypot(lab[:, 1], lab[:, 2])
    turned = np.angle(
        np.exp(1j * (np.arctan2(lab[:, 2], lab[:, 1]) - np.arctan2(b, a)))
    )
    assert np.abs(turned)[chroma > 5].max() < 0.05
    assert (chroma <= np.hypot(a, b) + 0.1).all()
    # Chroma is as large as fits: one more step of the bisection does not.
    more = (chroma / np.hypot(a, b) + 1.2 * 2.0**-7).astype("float32")
    planes = colors.lab_to_linear(lightness, more * a, more * b)
    linear = np.stack([to_numpy(plane) for plane in planes])
    outside = (linear < -1e-4).any(0) | (linear > 1.0001).any(0)
    assert (more < 1.0).mean() > 0.5
    assert outside[more < 1.0].mean() > 0.99


def test_gray_image_has_the_lightness_of_the_picture(pictures):
    gray = to_numpy(colors.to_gray(pictures))
    assert gray.shape == (*pictures.shape[:3], 1)
    expected = skimage.color.rgb2lab(pictures)[..., 0]
    np.testing.assert_allclose(to_numpy(colors.lightness_of(gray)), expected, atol=0.02)
    np.testing.assert_allclose(
        to_numpy(colors.lightness_of(np.repeat(gray, 3, -1))), expected, atol=0.02
    )


def test_colour_rewards_are_those_of_numpy(pictures):
    vivid, entropy = numpy_colorfulness(pictures)
    result = to_numpy(VividnessReward()(None, pictures))
    np.testing.assert_allclose(result, vivid, atol=1e-3)
    result = to_numpy(HueEntropyReward()(None, pictures))
    np.testing.assert_allclose(result, entropy, atol=2e-3)
    result = to_numpy(ColorfulnessReward()(None, pictures))
    np.testing.assert_allclose(result, vivid * entropy, atol=2e-3)
    product = to_numpy((VividnessReward() * HueEntropyReward())(None, pictures))
    np.testing.assert_allclose(result, product, rtol=1e-5, atol=1e-6)


def test_hue_bins_are_those_of_the_angle():
    """Every direction, on a fine circle: which bin it counts in."""
    angle = np.linspace(-np.pi, np.pi, 7001)[:-1] + 1e-4
    a, b = (10 * f(angle).astype("float32")[:, None, None] for f in (np.cos, np.sin))
    # Pairs of a direction and pure red: the entropy is 0 if they share a bin.
    a, b = (
        np.concatenate([p, np.full_like(p, q)], 1) for p, q in ((a, 10.0), (b, 0.0))
    )
    bins = np.floor((angle + np.pi) / (2 * np.pi / 7)).astype(int)
    same = to_numpy(hue_entropy(shares(beyond_hues(a, b, 7)))) < 1e-6
    np.testing.assert_array_equal(same, bins == 3)


def painted(colours):
    """Each (a, b) at many lightnesses that sRGB shows it at: `(colours, 1, 64, 3)`."""
    a, b = np.array(colours, "float64").T[:, :, None, None]
    lightness = np.linspace(55, 75, 64)[None, None]
    lab = np.stack(np.broadcast_arrays(lightness, a, b), -1)
    return skimage.color.lab2rgb(lab).astype("float32")


def circle(angles, chroma):
    return chroma * np.stack([np.cos(angles), np.sin(angles)], -1)


EIGHT_HUES = np.arange(8) * np.pi / 4


@pytest.mark.parametrize("bins", [2, 4, 7, 8])
def test_one_hue_on_a_boundary_is_in_one_bin(bins):
    """Palettes have colours with b = 0 or a = b, where bins can meet."""
    images = painted([*circle(EIGHT_HUES, 5.0), *circle(EIGHT_HUES, 20.0)])
    for score in (HueEntropyReward(bins), compiled(HueEntropyReward(bins), xla=True)):
        entropy = to_numpy(score(None, images))
        np.testing.assert_allclose(entropy, 0.0, atol=1e-6)


@pytest.mark.parametrize("bins", [4, 7])
def test_a_hue_on_a_boundary_is_in_the_bin_below(bins):
    """Beside a hue a little below the boundary it earns nothing, above it ln 2."""
    angles = -np.pi + 2 * np.pi * np.arange(1, bins + 1) / bins
    images = [painted(circle(angles + turn, 15.0)) for turn in (0.0, -0.02, 0.02)]
    for near, expected in ((1, 0.0), (2, np.log(2))):
        both = np.concatenate([images[0], images[near]], axis=2)
        entropy = to_numpy(HueEntropyReward(bins)(None, both))
        np.testing.assert_allclose(entropy, expected, atol=1e-5)


@pytest.mark.parametrize("bins", [7, 8])
def test_painted_grey_is_in_the_bin_of_black(bins):
    grey = painted([(0.0, 0.0)])
    images = np.concatenate([grey, np.zeros_like(grey)], axis=1)
    for score in (HueEntropyReward(bins), compiled(HueEntropyReward(bins), xla=True)):
        np.testing.assert_allclose(to_numpy(score(None, images)), 0.0, atol=1e-6)


def test_greys_of_a_black_and_white_photograph_have_one_hue():
    """That of white, which is not exactly grey; only black is."""
    levels = np.arange(1, 256, dtype="float32")[None, None, :, None] / 255.0
    images = np.repeat(levels, 3, axis=-1)
    _, expected = numpy_colorfulness(images)
    assert expected.tolist() == [0.0]
    for score in (HueEntropyReward(), compiled(HueEntropyReward(), xla=True)):
        np.testing.assert_allclose(to_numpy(score(None, images)), 0.0, atol=1e-6)


def test_a_chroma_of_the_threshold_is_not_above_it():
    images = painted([*circle(EIGHT_HUES, 10.0), (6, 8), (-8, 6)])
    for threshold, expected in ((10.0, 0.0), (9.99, 1.0)):
        reward = VividnessReward(threshold)
        for score in (reward, compiled(reward, xla=True)):
            np.testing.assert_array_equal(to_numpy(score(None, images)), expected)


@pytest.mark.parametrize("width", [1, 7, 31, 32, 1023, 1100])
def test_flags_are_counted_exactly_in_images_of_any_width(width):
    generator = np.random.default_rng(width)
    flags = [generator.random((2, 3, width)) < p for p in (0.0, 0.1, 0.5, 0.9, 1.0)]
    counted = shares([keras.ops.convert_to_tensor(flag) for flag in flags])
    for flag, share in zip(flags, counted, strict=True):
        np.testing.assert_allclose(to_numpy(share), flag.mean((1, 2)), rtol=1e-6)


def test_black_counts_in_the_bin_of_angle_zero():
    images = np.zeros((1, 2, 2, 3), "float32")
    images[0, 0, 0] = [1.0, 0.3, 0.4]  # a red of angle 0.24, in the middle bin
    assert float(to_numpy(HueEntropyReward()(None, images))[0]) == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("pixels", "vivid", "entropy"),
    [
        ([[1, 0, 0], [1, 0, 0]], 1.0, 0.0),
        ([[1, 0, 0], [0, 0, 1]], 1.0, np.log(2)),
        ([[1, 0, 0], [0, 0, 0]], 0.5, None),
        ([[0, 0, 0], [0, 0, 0]], 0.0, 0.0),
        ([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 1, 1]], 1.0, np.log(4)),
    ],
)
def test_colour_rewards_of_pure_colours(pixels, vivid, entropy):
    images = np.array(pixels, "float32")[None, None]
    assert float(to_numpy(VividnessReward()(None, images))[0]) == pytest.approx(vivid)
    if entropy is not None:
        result = float(to_numpy(HueEntropyReward()(None, images))[0])
        assert result == pytest.approx(entropy, abs=1e-6)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    images=arrays("float32", (2, 4, 4, 3), elements=st.floats(-2, 3, width=32)),
    order=st.permutations(range(16)),
)
def test_rewards_near_the_range_are_finite_and_blind_to_place(images, order):
    moved = images.reshape(2, 16, 3)[:, list(order)].reshape(images.shape)
    scores, again = map(to_numpy, map(COMPILED, (images, moved)))
    assert np.isfinite(scores).all()
    np.testing.assert_allclose(again, scores, atol=1e-6)


COMPILED = compiled(lambda images: ColorfulnessReward()(None, images))

REWARDS = [VividnessReward(), HueEntropyReward(), ColorfulnessReward()]


@pytest.mark.parametrize("reward", REWARDS, ids=repr)
def test_images_that_cannot_be_in_the_range_have_no_reward(reward, pictures):
    images = pictures[:6, :16, :16].copy()
    images[1] *= 255.0
    images[2, 3, 4, 1] = np.nan
    images[3] = images[3] * 1.5 - 0.2  # clipped, as a screen does
    images[4, 0, 0] = np.inf
    images[5] -= 2.2
    result, components = compiled(lambda x: reward.evaluate(None, x))(images)
    expected = to_numpy(reward(None, np.clip(images, 0.0, 1.0)))
    expected[[1, 2, 4, 5]] = np.nan
    for values in (result, *components.values()):
        values = to_numpy(values)
        np.testing.assert_array_equal(np.isnan(values), np.isnan(expected))
    np.testing.assert_allclose(to_numpy(result), expected, rtol=1e-6)


@pytest.mark.parametrize("reward", [*REWARDS, VividnessReward() + 1.0], ids=repr)
def test_a_call_by_hand_says_which_range_is_expected(reward, pictures):
    images = pictures[:2, :8, :8]
    message = r"'.*' needs images with values in \[0, 1\].*by 255.*from 0 to 255"
    images = (images - images.min()) / np.ptp(images)
    with pytest.raises(ValueError, match=message):
        reward(None, 255.0 * images)
    assert np.isnan(to_numpy(reward(None, np.nan * images))).all()


def test_grey_images_far_outside_the_range_are_refused_or_nan(pictures):
    palette = ColorPalette()
    large = 255.0 * pictures[:2, :8, :8]
    for function in (colors.to_gray, colors.rgb_to_lab, palette.encode):
        with pytest.raises(ValueError, match=r"\[0, 1\].*Divide.*Received: values"):
            function(large)
    with pytest.raises(ValueError, match="from nan to nan"):
        palette.encode(large * np.nan)
    with pytest.raises(ValueError, match="ColorPalette"):
        CategoricalPolicy(codec=palette).check_inputs(large)
    lightness = to_numpy(compiled(colors.lightness_of)(large))
    np.testing.assert_array_equal(np.isnan(lightness), (large > 3).any(-1))
    bins = np.zeros((2, 1, 4, 4), "int32")
    painted = to_numpy(compiled(palette.decode)(large[..., :1], bins))
    assert np.isnan(painted[:, 0, ..., 0][large[..., 0] > 3]).all()


@pytest.mark.parametrize("xla", [False, True])
@pytest.mark.parametrize(
    "reward", [VividnessReward(), HueEntropyReward(), ColorfulnessReward()], ids=repr
)
def test_compiled_equals_eager(reward, xla, pictures):
    score = compiled(lambda images: reward(None, images), xla)
    np.testing.assert_allclose(
        to_numpy(score(pictures)), to_numpy(reward(None, pictures)), atol=1e-5
    )


def test_palette_is_in_gamut_with_grey_first():
    palette = ColorPalette(spacing=20.0)
    assert palette.colors.shape == (palette.num_colors, 2)
    np.testing.assert_array_equal(palette.colors[0], [0.0, 0.0])
    assert len(np.unique(palette.colors, axis=0)) == palette.num_colors
    lightness = np.arange(1.0, 100.0)[:, None]
    planes = np.broadcast_arrays(lightness, *palette.colors.T[:, None, :])
    lab = np.stack(planes, -1)
    with pytest.warns(UserWarning):  # of negative values, where out of gamut
        back = skimage.color.rgb2lab(skimage.color.lab2rgb(lab))
    shown = np.abs(back - lab).max(-1) < 0.5
    assert shown.any(0).all()


def test_bins_are_the_nearest_colours(pictures):
    palette = ColorPalette(spacing=15.0)
    bins = to_numpy(palette.encode(pictures, grid=(8, 8)))
    lab = skimage.color.rgb2lab(pictures)[..., 1:]
    cells = lab.reshape(len(lab), 8, 16, 8, 16, 2).mean((2, 4))
    distance = np.linalg.norm(cells[..., None, :] - palette.colors, axis=-1)
    chosen = np.take_along_axis(distance, bins[..., None], -1)[..., 0]
    np.testing.assert_allclose(chosen, distance.min(-1), atol=0.02)


@pytest.mark.slow
def test_painting_keeps_lightness_and_finds_the_colours_again(pictures):
    palette = ColorPalette(spacing=15.0)
    gray = to_numpy(colors.to_gray(pictures))
    bins = to_numpy(palette.encode(pictures, grid=(32, 32)))
    painted = to_numpy(palette.decode(gray, np.stack([bins, 0 * bins], 1)))
    assert painted.shape == (len(pictures), 2, 128, 128, 3)
    lab = skimage.color.rgb2lab(painted.astype("float64"))
    lightness = skimage.color.rgb2lab(pictures.astype("float64"))[..., 0]
    for n in range(2):
        assert np.abs(lab[:, n, ..., 0] - lightness).mean() < 0.1
    assert np.abs(lab[:, 1, ..., 1:]).max() < 1.0  # bin 0 is grey
    error = np.abs(lab[:, 0] - skimage.color.rgb2lab(pictures)).mean((0, 1, 2))
    assert (error[1:] < 8.0).all()  # half a bin, and what cells leave out


def test_palette_refuses_cells_that_do_not_fit():
    with pytest.raises(ValueError, match=r"images of 10x10 pixels, grid=\(4, 4\)"):
        ColorPalette().encode(np.zeros((1, 10, 10, 3), "float32"), grid=(4, 4))
    with pytest.raises(ValueError, match="spacing=0"):
        ColorPalette(spacing=0)


def test_palette_survives_serialisation():
    config = keras.saving.serialize_keras_object(ColorPalette(spacing=25.0))
    copy = keras.saving.deserialize_keras_object(config)
    np.testing.assert_array_equal(copy.colors, ColorPalette(spacing=25.0).colors)


@pytest.mark.parametrize(
    "images", [np.zeros((2, 4, 4), "float32"), np.zeros((2, 4, 4, 1), "float32")]
)
def test_wrong_images_are_refused_by_name(images):
    with pytest.raises(ValueError, match=r"'colorfulness' needs float RGB.*\(2, 4, 4"):
        ColorfulnessReward()(None, images)


def test_integer_images_are_refused():
    with pytest.raises(ValueError, match="uint8"):
        ColorfulnessReward()(None, np.zeros((2, 4, 4, 3), "uint8"))


def ridge_filter(plane, guide, radius, epsilon):
    """The guided filter, window by window, as linear regressions."""
    height, width = plane.shape
    slopes, offsets = np.zeros((2, height, width))
    windows = {
        (i, j): np.s_[
            max(i - radius, 0) : i + radius + 1, max(j - radius, 0) : j + radius + 1
        ]
        for i in range(height)
        for j in range(width)
    }
    for (i, j), window in windows.items():
        inputs = guide[window].ravel()
        # The penalty of the slope is one more row.
        rows = np.append(np.stack([inputs, np.ones_like(inputs)], 1), [[0, 0]], 0)
        rows[-1, 0] = np.sqrt(epsilon * inputs.size)
        target = np.append(plane[window].ravel(), 0.0)
        slopes[i, j], offsets[i, j] = np.linalg.lstsq(rows, target, rcond=None)[0]
    result = np.zeros((height, width))
    for place, window in windows.items():
        result[place] = slopes[window].mean() * guide[place] + offsets[window].mean()
    return result


@pytest.mark.parametrize("radius", [1, 3, 9])
def test_guided_filter_is_a_regression_in_each_window(radius):
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(2, 6, 7, 2)).astype("float32")
    guide = rng.random((2, 6, 7, 1)).astype("float32")
    apply = compiled(lambda x, y: colors.guided_filter(x, y, radius, epsilon=0.01))
    found = to_numpy(apply(maps, guide))
    for i in range(2):
        for channel in range(2):
            expected = ridge_filter(
                maps[i, :, :, channel].astype("float64"),
                guide[i, :, :, 0].astype("float64"),
                radius,
                0.01,
            )
            np.testing.assert_allclose(found[i, :, :, channel], expected, atol=1e-4)


def test_guided_filter_keeps_what_follows_the_guide():
    """Colours on two sides of an edge stay apart; those within a side become one."""
    guide = np.zeros((1, 8, 8, 1), "float32")
    guide[:, :, 4:] = 1.0
    checks = np.indices((8, 8)).sum(0).reshape(1, 8, 8, 1) % 2
    maps = 10.0 * guide + checks - 0.5
    smooth = to_numpy(colors.guided_filter(maps, guide, radius=3))
    np.testing.assert_allclose(smooth, 10.0 * guide, atol=0.15)
    np.testing.assert_allclose(
        to_numpy(colors.guided_filter(maps, guide, radius=0)), maps, atol=1e-6
    )
