"""Panoptic reward: hand-worked cases, the rules in plain Python, properties."""

import functools

import keras
import numpy as np
import panoptic_in_numpy as in_numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from keras import ops
from tiny import compiled, to_numpy

from keras_reward.rewards.panoptic import PanopticQualityReward

BIG = 2**31 - 1
FAST = settings(max_examples=25, deadline=None, derandomize=True)


def maps(*rows):
    """Maps `(rows, 1, width, 2)` from lists of (class, instance)."""
    return np.array([[row] for row in rows], "int32")


DEFAULT = PanopticQualityReward()
SMALL = PanopticQualityReward(max_segments=4)


def parts_of(reward, y_true, y_pred):
    """`(rows, 4)`: the reward, matched IoU, unmatched and dropped segments."""
    total, components = reward.evaluate(reward.prepare(y_true), y_pred)
    return ops.stack(
        [total, *(components[name] for name in reward.component_names)], axis=-1
    )


@functools.cache  # so that each reward compiles once for each shape
def compiled_components(reward):
    return compiled(functools.partial(parts_of, reward))


def scores(reward, y_true, y_pred):
    """`parts_of`, compiled, as NumPy."""
    tensors = (ops.convert_to_tensor(each) for each in (y_true, y_pred))
    return to_numpy(compiled_components(reward)(*tensors))


def expected_scores(y_true, y_pred, **kwargs):
    pairs = zip(y_true, y_pred, strict=True)
    return np.array([in_numpy.reward(*pair, **kwargs) for pair in pairs])


VOID = (0, 0)
A, B, C = (1, 1), (1, 2), (2, 1)  # two instances of class 1, one of class 2

# name: ground truth, prediction, matched IoU, unmatched predicted segments
CASES = {
    "perfect": ([A] * 4 + [C] * 4, [A] * 4 + [C] * 4, 2.0, 0),
    "no prediction": ([A] * 4 + [C] * 4, [VOID] * 8, 0.0, 0),
    # All void: whatever is predicted lies on void, and is forgiven.
    "no ground truth": ([VOID] * 8, [A] * 4 + [C] * 4, 0.0, 0),
    "both empty": ([VOID] * 8, [VOID] * 8, 0.0, 0),
    # 5 of 8 pixels match; the other name is unmatched.
    "split segment": ([A] * 8, [A] * 5 + [B] * 3, 5 / 8, 1),
    "split in equal halves": ([A] * 8, [A] * 4 + [B] * 4, 0.0, 2),
    # 5 of 8 for the first; the merged prediction cannot match both.
    "merged segments": ([A] * 5 + [B] * 3, [A] * 8, 5 / 8, 0),
    "single pixels": ([A, B, C] + [VOID] * 5, [B, A, C] + [VOID] * 5, 3.0, 0),
    "single pixel wrong": ([A] * 7 + [C], [A] * 7 + [B], 1.0, 1),
    # 4 pixels shared, 8 in the union: not over 0.5.
    "exactly half": ([A] * 4 + [C] * 4, [A] * 8, 0.0, 1),
    # The same with one pixel of void: 4 of 7.
    "void leaves the union": ([A] * 4 + [C] * 3 + [VOID], [A] * 8, 4 / 7, 0),
    # 3 of 5 pixels on void.
    "mostly on void": ([C] * 5 + [VOID] * 3, [C] * 3 + [A] * 5, 3 / 5, 0),
    # 2 of 4 pixels on void: not more than half.
    "half on void": ([C] * 6 + [VOID] * 2, [C] * 4 + [A] * 4, 4 / 6, 1),
    "wrong class": ([A] * 4 + [C] * 4, [A] * 4 + [(3, 1)] * 4, 1.0, 1),
    "unknown class": ([A] * 4 + [C] * 4, [A] * 4 + [(BIG, 7)] * 4, 1.0, 1),
    # A negative class is void in the ground truth, a wrong class in a prediction.
    "negative class predicted": ([A] * 4 + [C] * 4, [A] * 4 + [(-1, 0)] * 4, 1.0, 1),
    "negative class is void": ([A] * 4 + [(-1, 5)] * 4, [A] * 4 + [C] * 4, 1.0, 0),
    "void with instances": ([A] * 4 + [(0, 7)] * 4, [A] * 4 + [(0, 9)] * 4, 1.0, 0),
    "negative instance predicted": ([A] * 8, [(1, -5)] * 8, 1.0, 0),
    # A crowd is not matched. Mostly on it and of its class: forgiven. 2 of 4: not.
    "crowd": ([(1, -1)] * 6 + [B] * 2, [A] * 6 + [B] * 2, 1.0, 0),
    "half on crowd": ([(1, -1)] * 2 + [C] * 6, [A] * 4 + [C] * 4, 4 / 6, 1),
    "crowd and void": (
        [(1, -1)] * 2 + [VOID] + [C] * 5,
        [A] * 5 + [C] * 3,
        3 / 5,
        0,
    ),
    "crowd of another class": ([(2, -1)] * 8, [A] * 8, 0.0, 1),
    "huge ids": (
        [(1, BIG)] * 3 + [(1, BIG - 1)] * 3 + [(BIG, 1)] * 2,
        [(1, 5)] * 3 + [(1, BIG)] * 3 + [(BIG, BIG)] * 2,
        3.0,
        0,
    ),
    # Class and instance are not confused, nor added up.
    "swapped ids": ([(1, 2)] * 4 + [(2, 1)] * 4, [(2, 1)] * 4 + [(1, 2)] * 4, 0.0, 2),
    # A segment may lie apart.
    "in two pieces": ([A, C, A, C, A, C, A, C], [A, C, A, C, A, C, A, C], 2.0, 0),
}


@pytest.fixture(scope="module")
def case_scores():
    y_true, y_pred, _, _ = zip(*CASES.values(), strict=True)
    result = scores(PanopticQualityReward(), maps(*y_true), maps(*y_pred))
    return dict(zip(CASES, result, strict=True))


@pytest.mark.parametrize("name", CASES)
def test_hand_worked_cases(case_scores, name):
    y_true, y_pred, matched_iou, unmatched = CASES[name]
    expected = [matched_iou - 0.3 * unmatched, matched_iou, unmatched, 0]
    np.testing.assert_allclose(case_scores[name], expected, atol=1e-6)
    plain = in_numpy.reward(np.array([y_true]), np.array([y_pred]))
    np.testing.assert_allclose(plain, expected, atol=1e-6)


def test_instances_of_stuff_are_ignored():
    y_true = maps([(4, 1)] * 4 + [(4, -1)] * 2 + [A] * 2)
    y_pred = maps([(4, 9)] * 3 + [(4, 8)] * 3 + [A] * 2)
    result = scores(PanopticQualityReward(stuff_classes=[4, 9]), y_true, y_pred)
    np.testing.assert_allclose(result, [[2.0, 2.0, 0, 0]])
    # As things: 3 of 4 match; the other has 2 of 3 pixels on the crowd, so is forgiven.
    result = scores(PanopticQualityReward(stuff_classes=[9]), y_true, y_pred)
    np.testing.assert_allclose(result, [[1.75, 1.75, 0, 0]])


def test_what_overflows_is_reported_and_earns_nothing():
    full = maps([(1, i) for i in range(1, 9)])
    reward = PanopticQualityReward(max_segments=5)
    # Prediction: 5 of 8 match, and 3 are dropped: unmatched. Ground truth: the 3
    # dropped ones become void, so what lies there is forgiven.
    few = full.copy()
    few[:, :, 5:] = 0
    result = scores(reward, few, full)
    np.testing.assert_allclose(result, [[5 - 0.9, 5, 3, 3]], rtol=1e-6)
    np.testing.assert_allclose(scores(reward, full, few), [[5, 5, 0, 3]])
    result = scores(reward, full, full)
    np.testing.assert_allclose(result, [[5 - 0.9, 5, 3, 6]], rtol=1e-6)
    one = maps([(1, 1)] * 5 + [(1, 2)] * 3)
    np.testing.assert_allclose(scores(reward, full, one), [[-0.3, 0, 1, 3]], rtol=1e-6)


def test_more_segments_than_can_be_counted():
    """The count stops at 32 times `max_segments`; the first segments still match."""
    y_true = np.full((2, 8, 16, 2), 1, "int32")
    y_true[..., 1] = np.arange(128).reshape(8, 16)
    result = scores(PanopticQualityReward(max_segments=2), y_true, y_true)
    np.testing.assert_allclose(result[:, 2:], [[62, 2 * 62]] * 2)
    assert (result[:, 1] <= 2).all()


def test_segments_that_share_a_slot_are_told_apart():
    """20 segments in a table of 32 slots collide; one id of the two is the same."""
    y_true = np.ones((2, 4, 5, 2), "int32")
    y_true[0, ..., 0] = y_true[1, ..., 1] = 1 + np.arange(20).reshape(4, 5)
    result = scores(PanopticQualityReward(max_segments=1), y_true, y_true)
    np.testing.assert_allclose(result, [[1 - 5.7, 1, 19, 38]] * 2, rtol=1e-6)


def random_maps(seed, rows=24, height=6, width=10):
    """Blocks of few classes and instances, and predictions that differ somewhat."""
    generator = np.random.default_rng(seed)
    classes = generator.integers(-1, 4, (rows, height // 2, width // 5))
    instances = generator.integers(-1, 3, classes.shape)
    y_true = np.stack([classes, instances * 70_000_003 % BIG], -1)
    y_true[..., 1] = np.where(instances < 0, -1, y_true[..., 1])
    y_true = y_true.repeat(2, 1).repeat(5, 2)
    moved = np.roll(y_true, 1, axis=1)
    is_moved = generator.random((rows, height, width, 1)) < 0.3
    return y_true.astype("int32"), np.where(is_moved, moved, y_true).astype("int32")


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"stuff_classes": (1, 3)},
        {"max_segments": 3, "stuff_classes": (2,)},
        {"max_segments": 1},
    ],
)
def test_reward_is_that_of_the_rules_in_plain_python(kwargs):
    y_true, y_pred = random_maps(0)
    expected = expected_scores(y_true, y_pred, **kwargs)
    assert len(np.unique(expected[:, 1])) > 5
    result = scores(PanopticQualityReward(**kwargs), y_true, y_pred)
    np.testing.assert_allclose(result, expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("xla", [False, True])
def test_compiled_equals_eager(xla):
    reward = PanopticQualityReward(max_segments=3, stuff_classes=(2,))
    data = [ops.convert_to_tensor(each) for each in random_maps(1)]
    eager = to_numpy(parts_of(reward, *data))
    score = compiled(functools.partial(parts_of, reward), xla)
    np.testing.assert_allclose(to_numpy(score(*data)), eager, atol=1e-6)


@pytest.mark.slow
def test_targets_are_prepared_once_for_all_samples():
    y_true, y_pred = random_maps(2)
    reward = PanopticQualityReward()
    prepared = reward.prepare(ops.convert_to_tensor(y_true[:12]))
    repeated = keras.tree.map_structure(lambda t: ops.repeat(t, 2, axis=0), prepared)
    total, _ = reward.evaluate(repeated, ops.convert_to_tensor(y_pred))
    expected = expected_scores(y_true[:12].repeat(2, 0), y_pred)
    np.testing.assert_allclose(to_numpy(total), expected[:, 0], atol=1e-5)


small_maps = hnp.arrays("int32", (2, 2, 4, 4, 2), elements=st.integers(-2, 3))


@FAST
@given(small_maps)
def test_any_small_map_is_scored_as_by_the_rules(both):
    result = scores(DEFAULT, *both)
    np.testing.assert_allclose(result, expected_scores(*both), atol=1e-5)


@FAST
@given(small_maps, st.randoms(use_true_random=False))
def test_renaming_instances_changes_nothing(both, random):
    renamed = both.copy()
    for argument, first in ((0, 0), (1, -2)):  # a sign means something in the truth
        names = random.sample(range(BIG), 4 - first)
        for name, instance in zip(names, range(first, 4), strict=True):
            is_instance = both[argument, ..., 1] == instance
            renamed[argument, ..., 1][is_instance] = name
    np.testing.assert_allclose(
        scores(DEFAULT, *renamed), scores(DEFAULT, *both), atol=1e-6
    )


@FAST
@given(small_maps, st.permutations(range(16)))
def test_moving_pixels_together_changes_nothing(both, order):
    moved = both.reshape(2, 2, 16, 2)[:, :, list(order)].reshape(both.shape)
    np.testing.assert_allclose(
        scores(DEFAULT, *moved), scores(DEFAULT, *both), atol=1e-6
    )


@FAST
@given(small_maps)
def test_a_border_of_void_changes_nothing(both):
    padded = np.pad(both, ((0, 0), (0, 0), (2, 1), (0, 3), (0, 0)))
    np.testing.assert_allclose(
        scores(DEFAULT, *padded), scores(DEFAULT, *both), atol=1e-6
    )


@FAST
@given(
    hnp.arrays("int32", (2, 2, 4, 4, 2), elements=st.integers(-(2**31), BIG)),
    st.integers(0, 1),
)
def test_rewards_of_any_ids_are_finite_and_alone_as_in_a_batch(both, row):
    together = scores(SMALL, *both)
    assert np.isfinite(together).all()
    twice = both[:, [row, row]]
    np.testing.assert_allclose(scores(SMALL, *twice), together[[row, row]])
    np.testing.assert_allclose(
        together, expected_scores(*both, max_segments=4), atol=1e-5
    )


@pytest.mark.parametrize("dtype", ["uint8", "int64", "int32"])
def test_any_integer_dtype_is_read(dtype):
    y_true, y_pred = maps([A] * 4 + [C] * 4), maps([A] * 5 + [C] * 3)
    result = scores(PanopticQualityReward(), y_true.astype(dtype), y_pred.astype(dtype))
    np.testing.assert_allclose(result, [[1.55, 1.55, 0, 0]], rtol=1e-6)


def test_more_ranks_than_bytes_can_tell():
    """With 300 segments the prepared map needs more than 8 bits."""
    y_true = np.ones((1, 10, 30, 2), "int32")
    y_true[0, ..., 1] = np.arange(300).reshape(10, 30)
    result = scores(PanopticQualityReward(max_segments=300), y_true, y_true)
    np.testing.assert_allclose(result, [[300, 300, 0, 0]])


def test_reward_survives_serialisation():
    reward = PanopticQualityReward(
        max_segments=3, unmatched_penalty=0.7, stuff_classes=[2], name="mine"
    )
    config = keras.saving.serialize_keras_object(reward)
    assert config["registered_name"] == "keras_reward>PanopticQualityReward"
    copy = keras.saving.deserialize_keras_object(config)
    assert copy.get_config() == reward.get_config()
    assert copy.name == "mine"
    y_true, y_pred = random_maps(3)
    expected = expected_scores(
        y_true, y_pred, max_segments=3, penalty=0.7, stuff_classes=[2]
    )
    np.testing.assert_allclose(scores(copy, y_true, y_pred), expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("y_true", "y_pred", "message"),
    [
        ((2, 4, 4), (2, 4, 4, 2), r"`y_true`.*Received: shape \(2, 4, 4\)"),
        ((2, 4, 4, 2), (2, 4, 4, 3), r"`y_pred`.*Received: shape \(2, 4, 4, 3\)"),
        ((2, 4, 4, 2), (2, 4, 5, 2), r"same size.*\(4, 4\) pixels.*\(4, 5\)"),
        ((2, 5000, 5000, 2), (2, 5000, 5000, 2), r"16777216.*\(2, 5000, 5000, 2\)"),
    ],
)
def test_wrong_shapes_are_refused(y_true, y_pred, message):
    # A view of one number, so that the large one takes no memory.
    y_true, y_pred = (
        np.broadcast_to(np.zeros((), "int8"), shape) for shape in (y_true, y_pred)
    )
    with pytest.raises(ValueError, match=f"(?s)'panoptic_quality'.*{message}"):
        PanopticQualityReward().prepare(y_true)
        PanopticQualityReward()(y_true, y_pred)


@pytest.mark.parametrize("dtype", ["float32", "bool"])
def test_only_integers_are_maps(dtype):
    integers, others = np.zeros((1, 2, 2, 2), "int32"), np.zeros((1, 2, 2, 2), dtype)
    with pytest.raises(ValueError, match=f"`y_true`.*{dtype}"):
        PanopticQualityReward()(others, integers)
    with pytest.raises(ValueError, match=f"`y_pred`.*{dtype}"):
        PanopticQualityReward()(integers, others)


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="max_segments=0"):
        PanopticQualityReward(max_segments=0)
    with pytest.raises(ValueError, match="stuff_classes=0"):
        PanopticQualityReward(stuff_classes=[3, 0])
