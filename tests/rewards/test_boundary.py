"""The boundary reward against hand-worked numbers and a brute force of SciPy's."""

import warnings

import keras
import numpy as np
import pytest
from keras import ops
from scipy.ndimage import distance_transform_edt
from tiny import compiled, to_numpy

from keras_reward import BoundaryReward
from keras_reward.rewards.neighbors import disc_sum

# ground truth, prediction, tolerance, F
MAPS = {
    "perfect": ([[0, 1, 0]], [[0, 1, 0]], 0, 1.0),
    "a pixel off, none allowed": ([[0, 1, 0]], [[0, 0, 1]], 0, 0.0),
    "a pixel off, one allowed": ([[0, 1, 0]], [[0, 0, 1]], 1, 1.0),
    # P: 1 of 2. R: 1 of 1.
    "one too many": ([[0, 1, 0, 0, 0]], [[0, 0, 1, 0, 1]], 1, 2 / 3),
    # P: 1 of 1. R: 2 of 3.
    "a gap": ([[1, 1, 0, 0, 1]], [[1, 0, 0, 0, 0]], 1, 4 / 5),
    "no boundary at all": ([[0, 0]], [[0, 0]], 2, 1.0),
    "none predicted": ([[0, 1]], [[0, 0]], 2, 0.0),
    "none true": ([[0, 0]], [[0, 1]], 2, 0.0),
    "the diagonal is not within 1": ([[1, 0], [0, 0]], [[0, 0], [0, 1]], 1, 0.0),
    "the diagonal is within its length": (
        [[1, 0], [0, 0]],
        [[0, 0], [0, 1]],
        np.sqrt(2),
        1.0,
    ),
    "void does not count": ([[1, 0, 255, -1]], [[1, 0, 1, 1]], 0, 1.0),
    "nor finds": ([[1, 255, 0]], [[0, 1, 0]], 1, 0.0),
    "all void": ([[255, -1]], [[0, 0]], 1, 0.0),
}
# As masks: the boundary is left of, and above, where the label changes.
MASKS = {
    "perfect": ([[0, 0, 2, 2]], [[0, 0, 2, 2]], 0, 1.0),
    "other classes": ([[0, 0, 2, 2]], [[5, 5, 1, 1]], 0, 1.0),
    "a pixel later": ([[0, 0, 2, 2]], [[0, 0, 0, 2]], 0, 0.0),
    "a pixel later, one allowed": ([[0, 0, 2, 2]], [[0, 0, 0, 2]], 1, 1.0),
    # True: above the change, two pixels. Predicted: one of these.
    "half of an edge": ([[0, 0], [1, 1]], [[0, 0], [1, 0]], 0, 0.5),
    "one region": ([[3, 3], [3, 3]], [[1, 1], [1, 1]], 0, 1.0),
    "one pixel": ([[3]], [[1]], 0, 1.0),
    # The boundaries of the void pixel do not count, nor what is predicted there.
    "void": ([[0, 0, 255, 2]], [[0, 1, 0, 1]], 0, 0.0),
    "void to the right": ([[0, 0, 0, 255]], [[0, 0, 1, 0]], 0, 0.0),
    "void alone": ([[0, 0, 255]], [[0, 0, 1]], 0, 1.0),
    "all void": ([[255, -1]], [[0, 0]], 1, 0.0),
}
CASES = [(False, name) for name in MAPS] + [(True, name) for name in MASKS]


@pytest.mark.parametrize(("masks", "name"), CASES)
def test_hand_worked_cases(masks, name):
    y_true, y_pred, tolerance, expected = (MASKS if masks else MAPS)[name]
    y_true, y_pred = np.array([y_true]), np.array([y_pred])
    reward = BoundaryReward(tolerance, masks)
    for targets in (y_true, y_true[..., None].astype("float32")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of 255 without 1
            result = to_numpy(reward(targets, y_pred))
        np.testing.assert_allclose(result, [expected], atol=1e-6)
    by_force = plain_rewards(y_true, y_pred, tolerance, masks)
    np.testing.assert_allclose(by_force, [expected], atol=1e-6)


def plain_boundary(labels):
    boundary = np.zeros(labels.shape, bool)
    boundary[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    boundary[:-1] |= labels[:-1] != labels[1:]
    return boundary


def plain_reward(y_true, y_pred, tolerance, masks, ignore_class=None):
    """F of an image, by the distance to the nearest boundary pixel."""
    is_void = (y_true < 0) | (y_true == 255 if masks else y_true > 1)
    is_void |= y_true == ignore_class
    if is_void.all():
        return 0.0
    left_out = is_void.copy()
    if masks:
        left_out[:, :-1] |= is_void[:, 1:]
        left_out[:-1] |= is_void[1:]
        true, pred = plain_boundary(y_true), plain_boundary(y_pred)
    else:
        true, pred = y_true == 1, y_pred == 1
    true, pred = true & ~left_out, pred & ~left_out
    if not true.any() or not pred.any():
        return float(true.any() == pred.any())
    precision = np.mean(distance_transform_edt(~true)[pred] <= tolerance + 1e-9)
    recall = np.mean(distance_transform_edt(~pred)[true] <= tolerance + 1e-9)
    return 2 * precision * recall / max(precision + recall, 1e-9)


def plain_rewards(y_true, y_pred, *settings):
    return [plain_reward(*pair, *settings) for pair in zip(y_true, y_pred, strict=True)]


def plain_alternatives(y_true, y_pred, classes, *settings):
    worth = np.zeros((*y_pred.shape, classes))
    for place in np.ndindex(*y_pred.shape[1:]):
        for choice in range(classes):
            changed = y_pred.copy()
            changed[(slice(None), *place)] = choice
            worth[(slice(None), *place, choice)] = plain_rewards(
                y_true, changed, *settings
            )
    return worth


def random_maps(shape, classes, masks, seed):
    """Ground truth with void, and predictions that are mostly right, int32."""
    generator = np.random.default_rng(seed)
    y_true = generator.integers(0, classes, shape)
    y_pred = generator.integers(0, classes, shape)
    if masks:
        y_true = np.sort(y_true, axis=2)
        y_pred = np.where(generator.random(shape) < 0.3, y_pred, y_true)
    else:
        y_true, y_pred = (generator.random((2, *shape)) < 0.3).astype(int)
    is_void = generator.random(shape) < 0.1
    is_void[0] = False
    y_true = np.where(is_void, generator.choice([255, -1], shape), y_true)
    return y_true.astype("int32"), y_pred.astype("int32")


KINDS = {"maps": (2, False), "binary masks": (2, True), "masks": (4, True)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tolerance", [0, 1, 1.5, 2, 3, np.sqrt(13)])
def test_it_is_the_f_measure_by_distances(kind, tolerance):
    classes, masks = KINDS[kind]
    data = random_maps((8, 9, 8), classes, masks, seed=1)
    for ignore_class in (None, 0):
        reward = BoundaryReward(tolerance, masks, ignore_class)
        expected = plain_rewards(*data, tolerance, masks, ignore_class)
        np.testing.assert_allclose(to_numpy(reward(*data)), expected, atol=1e-6)


def check_alternatives(kind, tolerance, size, ignore_class=None, seed=2):
    classes, masks = KINDS[kind]
    y_true, y_pred = random_maps((3, *size), classes, masks, seed)
    reward = BoundaryReward(tolerance, masks, ignore_class)
    prepared = reward.prepare(ops.convert_to_tensor(y_true))
    choices = ops.arange(classes, dtype="int32")
    result = reward.alternatives(prepared, ops.convert_to_tensor(y_pred), choices)
    settings = tolerance, masks, ignore_class
    expected = plain_alternatives(y_true, y_pred, classes, *settings)
    np.testing.assert_allclose(to_numpy(result), expected, atol=1e-6)
    drawn = np.take_along_axis(to_numpy(result), y_pred[..., None], axis=-1)[..., 0]
    now = to_numpy(reward.evaluate(prepared, ops.convert_to_tensor(y_pred))[0])
    np.testing.assert_allclose(drawn, np.broadcast_to(now[:, None, None], drawn.shape))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tolerance", [0, 1, 1.5, 2, 3])
def test_alternatives_are_the_rewards_after_one_change(kind, tolerance):
    check_alternatives(kind, tolerance, (5, 6))
    check_alternatives(kind, tolerance, (5, 4), ignore_class=1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(1, 7), (6, 1), (1, 1), (2, 2)])
def test_alternatives_at_borders(kind, size):
    for tolerance in (0, 1, 2.5):
        for seed in range(3):
            check_alternatives(kind, tolerance, size, seed=seed)


@pytest.mark.parametrize("kind", KINDS)
def test_alternatives_of_maps_with_a_channel(kind):
    classes, masks = KINDS[kind]
    y_true, y_pred = map(
        ops.convert_to_tensor, random_maps((2, 5, 4), classes, masks, 3)
    )
    reward = BoundaryReward(1, masks)
    choices = ops.arange(classes, dtype="int32")
    expected = reward.alternatives(reward.prepare(y_true), y_pred, choices)
    result = reward.alternatives(
        reward.prepare(y_true[..., None]), y_pred[..., None], choices
    )
    assert tuple(result.shape) == (2, 5, 4, 1, classes)
    np.testing.assert_array_equal(to_numpy(result)[:, :, :, 0], to_numpy(expected))


@pytest.mark.parametrize("kind", KINDS)
def test_alternatives_of_decoded_choices(kind):
    classes, masks = KINDS[kind]
    y_true, y_pred = map(
        ops.convert_to_tensor, random_maps((2, 5, 4), classes, masks, 8)
    )
    reward, order = BoundaryReward(1, masks), list(range(classes))[::-1]

    class Choices:
        """A codec that decodes to the classes in reverse, and to one twice."""

        def map(self, function):
            maps = [ops.full_like(y_pred, label) for label in [*order, order[0]]]
            return ops.stack([function(labels) for labels in maps], axis=-1)

    prepared = reward.prepare(y_true)
    plain = reward.alternatives(prepared, y_pred, ops.arange(classes, dtype="int32"))
    result = to_numpy(reward.alternatives(prepared, y_pred, Choices()))
    expected = to_numpy(plain)[..., [*order, order[0]]]
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_compiled_equals_eager(kind):
    classes, masks = KINDS[kind]
    data = [ops.convert_to_tensor(d) for d in random_maps((4, 6, 7), classes, masks, 4)]
    reward = BoundaryReward(1.5, masks)
    choices = ops.arange(classes, dtype="int32")

    def alternatives(y_true, y_pred):
        return reward.alternatives(reward.prepare(y_true), y_pred, choices)

    for function in (reward, alternatives):
        expected = to_numpy(function(*data))
        for xla in (False, True):
            result = to_numpy(compiled(function, xla)(*data))
            np.testing.assert_allclose(result, expected, atol=1e-6)


def test_sums_over_a_disc_are_exact_for_many_pixels():
    result = to_numpy(disc_sum(ops.ones((1, 41, 41), "bool"), 20))
    steps = np.arange(-20, 21)
    assert result[0, 20, 20] == (np.hypot(steps, steps[:, None]) <= 20).sum() == 1257


def test_a_float_that_is_not_a_label_is_no_reward():
    y_true, y_pred = random_maps((3, 4, 4), 2, False, 5)
    reward = BoundaryReward(1)
    expected = to_numpy(reward(y_true, y_pred))
    expected[1] = np.nan
    y_true = y_true.astype("float32")
    y_true[1, 2, 3] = 0.5
    with pytest.raises(ValueError, match=r"whole numbers.*Received"):
        reward(y_true, y_pred)
    choices = ops.arange(2, dtype="int32")

    def both(y_true, y_pred):
        prepared = reward.prepare(y_true)
        rewards, _ = reward.evaluate(prepared, y_pred)
        return rewards, reward.alternatives(prepared, y_pred, choices)

    rewards, worth = map(to_numpy, compiled(both)(y_true, y_pred))
    np.testing.assert_array_equal(rewards, expected)
    assert np.isnan(worth[1]).all()
    assert np.isfinite(worth[[0, 2]]).all()


def test_a_map_of_other_labels_than_0_and_1_is_no_reward():
    y_true, y_pred = random_maps((3, 4, 4), 2, False, 6)
    y_pred[2, 0, 0] = 2
    reward = BoundaryReward(1)
    with pytest.raises(ValueError, match=r"of 0 and 1 as `y_pred`.*masks=True.*0 to 2"):
        reward(y_true, y_pred)
    prepared, y_pred = map(ops.convert_to_tensor, (y_true, y_pred))
    prepared = reward.prepare(prepared)
    rewards = to_numpy(reward.evaluate(prepared, y_pred)[0])
    np.testing.assert_array_equal(np.isnan(rewards), [False, False, True])
    with pytest.raises(ValueError, match=r"masks=True.*Received: 3 choices"):
        reward.alternatives(prepared, y_pred, ops.arange(3, dtype="int32"))


@pytest.mark.parametrize(
    ("y_true", "y_pred", "message"),
    [
        (np.zeros((2, 4)), np.zeros((2, 4, 4), int), r"`y_true`\..*shape \(2, 4\)"),
        (np.zeros((2, 4, 4), int), np.zeros((2, 4, 4)), "`y_pred`.*float"),
        (np.zeros((2, 4, 4), int), np.zeros((2, 4, 5), int), r"same size.*\(4, 5\)"),
    ],
)
def test_wrong_maps_are_refused(y_true, y_pred, message):
    with pytest.raises(ValueError, match=f"'boundary'.*{message}"):
        BoundaryReward(1)(y_true, y_pred)


@pytest.mark.parametrize("tolerance", [-1, np.nan, np.inf])
def test_wrong_tolerances_are_refused(tolerance):
    with pytest.raises(ValueError, match=r"`tolerance` must be.*Received: tolerance="):
        BoundaryReward(tolerance)


@pytest.mark.parametrize("masks", [False, True])
def test_masks_of_0_and_255_are_warned_of(masks):
    y_pred = np.array([[[0, 0, 1, 1]]])
    with pytest.warns(UserWarning, match="divide them by 255"):
        BoundaryReward(1, masks)(255 * y_pred, y_pred)


def test_it_survives_serialisation():
    reward = BoundaryReward(1.5, masks=True, ignore_class=3, name="edges")
    config = keras.saving.serialize_keras_object(reward)
    assert config["registered_name"] == "keras_reward>BoundaryReward"
    copy = keras.saving.deserialize_keras_object(config)
    assert copy.get_config() == reward.get_config()
    data = random_maps((3, 5, 5), 4, True, 7)
    np.testing.assert_array_equal(to_numpy(copy(*data)), to_numpy(reward(*data)))
