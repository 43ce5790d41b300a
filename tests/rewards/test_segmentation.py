"""Mean IoU, Dice and PSNR against Keras, scikit-image and hand-worked numbers."""

import warnings

import keras
import numpy as np
import pytest
import skimage.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from keras import ops
from tiny import compiled, to_numpy

from keras_reward.rewards.psnr import PSNRReward
from keras_reward.rewards.segmentation import DiceReward, MeanIoUReward

FAST = settings(max_examples=25, deadline=None, derandomize=True)


def plain_overlap(y_true, y_pred, classes, ignore_class=None):
    """`(mean IoU, mean Dice)` of an image, pixel by pixel."""
    pairs = [
        (int(true), int(pred))
        for true, pred in zip(y_true.flat, y_pred.flat, strict=True)
        if 0 <= true < classes and true != ignore_class
    ]
    iou, dice = [], []
    for label in range(classes):
        both = sum(true == label == pred for true, pred in pairs)
        either = sum(label in pair for pair in pairs)
        if either:
            iou.append(both / either)
            dice.append(2 * both / (either + both))
    return (np.mean(iou), np.mean(dice)) if iou else (0.0, 0.0)


# name: ground truth, prediction, mean IoU, mean Dice; three classes, 255 is void
CASES = {
    "perfect": ([0, 0, 1, 2], [0, 0, 1, 2], 1.0, 1.0),
    # Class 0: 1 of 2. Class 1: 1 of 2.
    "one pixel wrong": ([0, 0, 1, 255], [0, 1, 1, 1], 1 / 2, 2 / 3),
    # Class 0: 3 of 4. Class 2 is only predicted: 0.
    "a class too many": ([0, 0, 0, 0], [0, 0, 0, 2], 3 / 8, 3 / 7),
    # Class 2 is missed: 0. Class 0: 3 of 4.
    "a class missed": ([0, 0, 0, 2], [0, 0, 0, 0], 3 / 8, 3 / 7),
    "all wrong": ([0, 0, 1, 1], [1, 1, 0, 0], 0.0, 0.0),
    "all void": ([255, 255, -1, 255], [0, 1, 2, 0], 0.0, 0.0),
    # Class 0: 2 of 4. Wrong labels belong to no class, but take pixels from one.
    "unknown labels": ([0, 0, 0, 0], [0, 0, 3, -1], 1 / 2, 2 / 3),
    "nothing but unknown": ([0, 0, 1, 1], [7, -7, 255, 3], 0.0, 0.0),
    "void is not looked at": ([0, 0, 255, -1], [0, 0, 1, 9], 1.0, 1.0),
}


@pytest.mark.parametrize("name", CASES)
def test_hand_worked_cases(name):
    y_true, y_pred, iou, dice = CASES[name]
    y_true, y_pred = np.array([[y_true]]), np.array([[y_pred]])
    result = [
        to_numpy(reward(y_true, y_pred))[0]
        for reward in (MeanIoUReward(3), DiceReward(3))
    ]
    np.testing.assert_allclose(result, [iou, dice], atol=1e-6)
    np.testing.assert_allclose(plain_overlap(y_true, y_pred, 3), [iou, dice], atol=1e-6)


# name: ground truth, prediction, mean IoU, mean Dice over the classes of the truth
WITHOUT_ABSENT = {
    "a class too many": ([0, 0, 0, 0], [0, 0, 0, 2], 3 / 4, 6 / 7),
    # Class 2 is missed: 0. Class 0: 3 of 4.
    "a class missed": ([0, 0, 0, 2], [0, 0, 0, 0], 3 / 8, 3 / 7),
    # Class 0: 1 of 3, since the pixel of class 1 goes to it. Class 1: 0.
    "one for another": ([0, 0, 1, 255], [0, 2, 0, 1], 1 / 6, 1 / 4),
    "all wrong": ([0, 0, 0, 0], [1, 2, 1, 2], 0.0, 0.0),
    "all void": ([255, 255, -1, 255], [0, 1, 2, 0], 0.0, 0.0),
}


@pytest.mark.parametrize("name", WITHOUT_ABSENT)
def test_classes_of_the_truth_alone(name):
    y_true, y_pred, *expected = WITHOUT_ABSENT[name]
    result = [
        to_numpy(reward(np.array([[y_true]]), np.array([[y_pred]])))[0]
        for reward in (
            MeanIoUReward(3, ignore_absent=True),
            DiceReward(3, ignore_absent=True),
        )
    ]
    np.testing.assert_allclose(result, expected, atol=1e-6)


def test_binary_masks_have_no_absent_class_to_ignore():
    with pytest.raises(ValueError, match=r"binary masks.*num_classes=1"):
        DiceReward(1, ignore_absent=True)


def random_labels(seed=0, classes=5):
    """Ground truth with void, and predictions with half of the pixels right."""
    generator = np.random.default_rng(seed)
    y_true = generator.integers(-1, classes, (8, 6, 7)).astype("int32")
    other = generator.integers(0, classes, y_true.shape)
    is_other = (generator.random(y_true.shape) < 0.5) | (y_true < 0)
    return y_true, np.where(is_other, other, y_true).astype("int32")


@pytest.mark.slow
@pytest.mark.parametrize("ignore_class", [-1, 0, 3])
def test_mean_iou_is_that_of_keras(ignore_class):
    y_true, y_pred = random_labels()
    y_true = np.where(y_true < 0, ignore_class, y_true)
    metric = keras.metrics.MeanIoU(5, ignore_class=ignore_class)
    expected = []
    for true, pred in zip(y_true, y_pred, strict=True):
        metric.reset_state()
        metric.update_state(true, pred)
        expected.append(float(to_numpy(metric.result())))
    reward = MeanIoUReward(5, ignore_class=ignore_class)
    np.testing.assert_allclose(to_numpy(reward(y_true, y_pred)), expected, atol=1e-5)


@pytest.mark.slow
@FAST
@given(
    hnp.arrays("int32", (2, 2, 3, 4), elements=st.integers(-2, 5)), st.integers(-1, 4)
)
def test_any_labels_are_scored_as_pixel_by_pixel(both, ignore_class):
    expected = [
        plain_overlap(*pair, 3, ignore_class) for pair in zip(*both, strict=True)
    ]
    iou = MeanIoUReward(3, ignore_class)(*both)
    dice = DiceReward(3, ignore_class)(*both)
    result = np.stack([to_numpy(iou), to_numpy(dice)], -1)
    np.testing.assert_allclose(result, expected, atol=1e-6)


@FAST
@given(
    hnp.arrays("int32", (2, 2, 3, 4), elements=st.integers(-2, 5)),
    st.permutations(range(12)),
)
def test_moving_pixels_and_adding_void_changes_nothing(both, order):
    moved = both.reshape(2, 2, 12)[:, :, list(order)].reshape(both.shape)
    padded = np.pad(moved, ((0, 0), (0, 0), (1, 0), (0, 2)), constant_values=9)
    for reward in (MeanIoUReward(3), DiceReward(3)):
        np.testing.assert_allclose(
            to_numpy(reward(*padded)), to_numpy(reward(*both)), atol=1e-6
        )


def test_targets_of_every_form():
    y_true, y_pred = random_labels(1)
    one_hot = (y_true[..., None] == np.arange(5)).astype("float32")  # void: zeros
    expected = [plain_overlap(*pair, 5)[1] for pair in zip(y_true, y_pred, strict=True)]
    for targets in (y_true, y_true[..., None], one_hot, one_hot.astype("int32")):
        for outputs in (y_pred, y_pred[..., None], y_pred.astype("uint8")):
            result = to_numpy(DiceReward(5)(targets, outputs))
            np.testing.assert_allclose(result, expected, atol=1e-6)


@pytest.mark.parametrize("reward", [MeanIoUReward(5, 2), DiceReward(5, 2)])
def test_compiled_equals_eager(reward):
    data = [ops.convert_to_tensor(each) for each in random_labels(2)]
    expected = to_numpy(reward(*data))
    for xla in (False, True):
        result = to_numpy(compiled(reward, xla)(*data))
        np.testing.assert_allclose(result, expected, atol=1e-6)


def test_targets_are_prepared_once_for_all_samples():
    y_true, y_pred = random_labels(3)
    reward = MeanIoUReward(5)
    prepared = reward.prepare(ops.convert_to_tensor(y_true[:4]))
    repeated = keras.tree.map_structure(lambda t: ops.repeat(t, 2, axis=0), prepared)
    total, _ = reward.evaluate(repeated, ops.convert_to_tensor(y_pred))
    pairs = zip(y_true[:4].repeat(2, 0), y_pred, strict=True)
    expected = [plain_overlap(*pair, 5)[0] for pair in pairs]
    np.testing.assert_allclose(to_numpy(total), expected, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "reward",
    [
        MeanIoUReward(5, ignore_class=2, name="mine"),
        DiceReward(num_classes=4, ignore_absent=True),
        PSNRReward(max_val=2.0, max_psnr=50.0, name="db"),
    ],
)
def test_rewards_survive_serialisation(reward):
    config = keras.saving.serialize_keras_object(reward)
    assert config["registered_name"] == f"keras_reward>{type(reward).__name__}"
    copy = keras.saving.deserialize_keras_object(config)
    assert copy.get_config() == reward.get_config()
    assert copy.name == reward.name
    data = random_labels(4)
    np.testing.assert_array_equal(to_numpy(copy(*data)), to_numpy(reward(*data)))


@pytest.mark.parametrize("reward_class", [MeanIoUReward, DiceReward])
def test_targets_of_whole_floats_and_of_bools_are_labels(reward_class):
    y_true, y_pred = random_labels(5, classes=2)
    expected = to_numpy(reward_class(2)(y_true, y_pred))
    for dtype in ("float32", "float16"):
        for targets in (y_true, y_true[..., None]):
            result = compiled(reward_class(2))(targets.astype(dtype), y_pred)
            np.testing.assert_array_equal(to_numpy(result), expected)
    mask, one_hot = y_true > 0, np.eye(2, dtype="float32")[1 * (y_true > 0)]
    expected = to_numpy(reward_class(2)(mask.astype("int32"), y_pred))
    for targets in (mask, one_hot):
        result = to_numpy(reward_class(2)(targets, y_pred > 0))
        np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("wrong", [0.5, np.nan, 1.0001])
def test_targets_that_are_no_labels_have_no_reward_in_a_step(wrong):
    y_true, y_pred = random_labels(6, classes=2)
    expected = to_numpy(DiceReward(2)(y_true, y_pred))
    expected[3] = np.nan
    y_true = y_true.astype("float32")
    y_true[3, 2, 1] = wrong
    reward = DiceReward(2)
    step = compiled(lambda t, p: reward.evaluate(reward.prepare(t), p)[0])
    np.testing.assert_array_equal(to_numpy(step(y_true, y_pred)), expected)
    with pytest.raises(ValueError, match=r"'dice' needs whole numbers.*Received"):
        reward(y_true, y_pred)


def test_one_hot_targets_of_nan_have_no_reward():
    y_true = np.eye(3, dtype="float32")[np.zeros((2, 4, 4), int)]
    y_true[1, 0, 0] = np.nan
    result = to_numpy(DiceReward(3)(y_true, np.zeros((2, 4, 4), "int32")))
    np.testing.assert_array_equal(result, [1.0, np.nan])


# Binary masks: ground truth, prediction, IoU and Dice of the foreground.
FOREGROUND = [
    ([0, 0, 1, 1], [0, 1, 1, 1], 2 / 3, 4 / 5),
    ([0, 0, 0, 0], [0, 1, 0, 0], 0.0, 0.0),
    ([0, 0, 0, 0], [0, 0, 0, 0], 1.0, 1.0),
    ([0, 0, 1, 0], [0, 0, 0, 0], 0.0, 0.0),
    ([0, 255, 1, 1], [0, 1, 1, 0], 1 / 2, 2 / 3),
    ([255, -1, 255, 255], [0, 1, 1, 0], 0.0, 0.0),
]


def test_one_class_is_the_foreground_of_a_binary_mask():
    y_true, y_pred = (np.array([c[i] for c in FOREGROUND])[:, None] for i in (0, 1))
    for place, reward in ((2, MeanIoUReward(1)), (3, DiceReward(1))):
        expected = [case[place] for case in FOREGROUND]
        for targets in (y_true, y_true[..., None].astype("float32")):
            result = to_numpy(compiled(reward)(targets, y_pred))
            np.testing.assert_allclose(result, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("y_true", "y_pred", "message"),
    [
        (np.zeros((2, 4)), np.zeros((2, 4, 4), int), r"`y_true`.*shape \(2, 4\)"),
        (np.full((2, 4, 4), 0.5), np.zeros((2, 4, 4), int), "whole.*0.5 to 0.5"),
        (np.zeros((2, 4, 4, 2)), np.zeros((2, 4, 4), int), "`y_true`, or one-hot.*flo"),
        (np.zeros((2, 4, 4), int), np.zeros((2, 4, 4)), "`y_pred`.*float"),
        (np.zeros((2, 4, 4), int), np.zeros((2, 4, 4, 3), int), r"\(2, 4, 4, 3\)"),
        (np.zeros((2, 4, 4), int), np.zeros((2, 4, 5), int), r"same size.*\(4, 5\)"),
    ],
)
def test_wrong_maps_are_refused(y_true, y_pred, message):
    with pytest.raises(ValueError, match=f"'mean_io_u'.*{message}"):
        MeanIoUReward(3)(y_true, y_pred)


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="num_classes=0"):
        DiceReward(0)
    with pytest.raises(ValueError, match="max_val=0"):
        PSNRReward(max_val=0)


@pytest.mark.parametrize("shape", [(4, 6, 5, 3), (4, 7), (4,)])
@pytest.mark.parametrize("max_val", [1.0, 255.0])
def test_psnr_is_that_of_scikit_image(shape, max_val):
    generator = np.random.default_rng(0)
    y_true, y_pred = (max_val * generator.random((2, *shape))).astype("float32")
    expected = [
        skimage.metrics.peak_signal_noise_ratio(
            np.array(true), np.array(pred), data_range=max_val
        )
        for true, pred in zip(y_true, y_pred, strict=True)
    ]
    result = to_numpy(PSNRReward(max_val)(y_true, y_pred))
    np.testing.assert_allclose(result, expected, rtol=1e-5)


def test_psnr_of_equal_and_of_extreme_outputs_is_finite():
    extreme = np.array([[0.0], [0.1], [1e30], [3e38]], "float32")
    result = to_numpy(PSNRReward()(-extreme, extreme))
    np.testing.assert_allclose(result, [100, 13.9794, -180, -180], rtol=1e-5)
    result = to_numpy(PSNRReward(max_psnr=40.0)(extreme, extreme))
    np.testing.assert_allclose(result, [40.0] * 4, rtol=1e-6)


def test_psnr_of_nan_is_no_reward():
    images = np.array([[0.0, 0.5], [np.nan, 0.5]], "float32")
    result = to_numpy(compiled(PSNRReward())(images, images))
    np.testing.assert_allclose(result, [100.0, np.nan], rtol=1e-6)


def test_psnr_of_integer_images():
    images = np.array([[0, 255], [10, 20]], "uint8")
    result = to_numpy(PSNRReward(max_val=255)(images, images[:, ::-1]))
    np.testing.assert_allclose(result, [0.0, 20 * np.log10(25.5)], atol=1e-4)


def test_psnr_compiled_equals_eager():
    data = np.random.default_rng(1).random((2, 4, 3, 3)).astype("float32")
    expected = to_numpy(PSNRReward()(*data))
    result = to_numpy(compiled(PSNRReward(), xla=True)(*data))
    np.testing.assert_allclose(result, expected, rtol=1e-5)


def test_psnr_does_not_broadcast():
    with pytest.raises(ValueError, match=r"'psnr'.*\(2, 3\).*\(2, 1\)"):
        PSNRReward()(np.zeros((2, 3)), np.zeros((2, 1)))


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_masks_of_0_and_255_are_warned_of(dtype):
    mask = np.zeros((1, 2, 2), "int32")
    mask[0, 0] = 255
    for num_classes in (1, 2):
        reward = DiceReward(num_classes)
        with pytest.warns(UserWarning, match="divide them by 255"):
            reward(mask.astype(dtype), mask // 255)
        void = np.where(mask, [[1, 255]], 0)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            reward(void.astype(dtype), mask // 255)
