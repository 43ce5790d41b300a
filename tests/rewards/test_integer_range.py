"""Integers of all dtypes and sizes in all rewards that read some, and in evaluators."""

import keras
import numpy as np
import pytest
from keras import ops
from tiny import compiled, to_numpy

from keras_reward import (
    BoxCodec,
    CIDErReward,
    DiceReward,
    FunctionReward,
    LengthReward,
    MeanIoUReward,
    PanopticQualityReward,
    RecallReward,
    RepetitionReward,
    matched_iou,
)
from keras_reward.codecs import canonical_segments
from keras_reward.evaluation import cider, coco_detection, panoptic_quality
from keras_reward.models.uvim_tasks import PanopticTask

CROWD = 900_100_448_263  # as COCO numbers annotations of crowds
FAR = 2**32 + 5  # 5, if its upper half is cut off

# Two instances of one class: ids, dtype.
PAIRS = [
    ((1, 2), "int64"),
    ((CROWD, 900_100_259_690), "int64"),
    ((2**31 + 5, 3), "int64"),
    ((5, FAR), "int64"),
    ((2**31 + 5, 2**32 - 1), "uint32"),
    ((2**63 + 5, 5), "uint64"),
    ((128, 255), "uint8"),
    ((40_000, 65_535), "uint16"),
    ((5, 127), "int8"),
    ((300, 32_767), "int16"),
]


def halves(first, second, dtype="int64"):
    """A map of class 1, `(1, 4, 4, 2)`, with an instance in either half."""
    maps = np.ones((1, 4, 4, 2), dtype)
    maps[0, :2, :, 1], maps[0, 2:, :, 1] = first, second
    return maps


@pytest.mark.parametrize(("ids", "dtype"), PAIRS)
def test_instances_of_any_size_are_told_apart(ids, dtype):
    maps = halves(*ids, dtype)
    whole = np.where(maps == ids[1], np.array(ids[0], dtype), maps)
    reward = PanopticQualityReward()
    assert to_numpy(reward(maps, maps)).tolist() == [2.0]
    # Half of the one segment, and not more, is either of the two.
    assert to_numpy(reward(maps, whole)) == pytest.approx([-0.3])
    result = panoptic_quality(maps, maps)
    assert result["pq"] == 1.0
    assert result["per_class"][1]["tp"] == 2
    numbers = to_numpy(canonical_segments(maps, 5))[..., 1]
    np.testing.assert_array_equal(numbers, halves(1, 2)[..., 1])


def test_a_negative_id_of_any_size_is_a_crowd():
    y_true, y_pred = halves(-CROWD, CROWD), halves(CROWD, CROWD + 1)
    assert to_numpy(PanopticQualityReward()(y_true, y_pred)).tolist() == [1.0]
    assert panoptic_quality(y_true, y_pred)["per_class"][1] == {
        **{"pq": 1.0, "sq": 1.0, "rq": 1.0},
        **{"tp": 1, "fp": 0, "fn": 0},
    }


def dtype_held(dtype):
    """The dtype that a tensor made of such an array has."""
    tensor = ops.convert_to_tensor(np.zeros((1,), dtype))
    return keras.backend.standardize_dtype(tensor.dtype)


# Of tensors beyond int32 that a step may get. JAX has no int64; on NumPy all is seen.
STEPS = [
    (dtype, xla)
    for dtype in ("int64", "uint32")
    for xla in (False, True)
    if keras.config.backend() != "numpy" and dtype_held(dtype) == dtype
]


def step(reward, xla):
    """The rewards as a training step computes them: it sees no values."""
    return compiled(
        lambda y, y_pred: reward.evaluate(reward.prepare(y), y_pred)[0], xla
    )


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "xla"), STEPS)
def test_instances_are_told_apart_within_a_step(dtype, xla):
    score = step(PanopticQualityReward(max_segments=4), xla)
    far = FAR if dtype == "int64" else 2**31 + 5
    for ids in ((1, 2), (5, far), (far, 2**31)):
        maps = ops.convert_to_tensor(halves(*ids, dtype))
        assert to_numpy(score(maps, maps)).tolist() == [2.0]


def boxes(label, dtype="int64"):
    sides = np.array([[[0, 0, 4, 4]]], "float32")
    return {"boxes": sides, "labels": np.array([[label]], dtype)}


@pytest.mark.parametrize(("dtype", "xla"), STEPS)
def test_labels_beyond_int32_match_nothing_within_a_step(dtype, xla):
    score = step(RecallReward(), xla)
    far, near = (
        keras.tree.map_structure(ops.convert_to_tensor, boxes(label, dtype))
        for label in (2**31 + 5, 5)
    )
    assert to_numpy(score(near, near)).tolist() == [1.0]
    assert to_numpy(score(far, far)).tolist() == [0.0]
    assert to_numpy(score(far, near)).tolist() == [0.0]


@pytest.mark.parametrize("label", [255, 2**31 - 1])
def test_labels_up_to_int32_match(label):
    dtype = "uint8" if label == 255 else "uint32"
    y = boxes(label, dtype)
    assert to_numpy(RecallReward()(y, y)).tolist() == [1.0]


@pytest.mark.parametrize("reward", [MeanIoUReward, DiceReward])
def test_labels_of_pixels_beyond_int32_are_void_or_wrong(reward):
    score = reward(num_classes=8)
    y_true = np.array([[[5, 5, FAR, 2**31 + 5]]])
    y_pred = np.array([[[5, 5, 5, 5]]])
    assert to_numpy(score(y_true, y_pred)).tolist() == [1.0]  # two are void
    assert to_numpy(score(y_pred, np.array([[[FAR] * 4]]))).tolist() == [0.0]
    for dtype, xla in STEPS:
        y_true = np.array([[[5, 5, 2**31 + 5, 2**31]]], dtype)
        tensors = ops.convert_to_tensor(y_true), ops.convert_to_tensor(y_pred)
        assert to_numpy(step(score, xla)(*tensors)).tolist() == [1.0]


CAPTION = np.array([[5, 6, FAR, 7]])
REFUSED = {
    "label": (RecallReward(), boxes(FAR), boxes(5)),
    "predicted label": (RecallReward(), boxes(5), boxes(2**31, "uint32")),
    "class": (PanopticQualityReward(), halves(1, 2) * [FAR, 1], halves(1, 2)),
    "word": (LengthReward(), None, CAPTION),
    "repeated word": (RepetitionReward(), None, CAPTION),
    "part of a sum": (PanopticQualityReward() + LengthReward(), None, CAPTION),
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_ids_beyond_int32_are_refused(case):
    reward, y_true, y_pred = REFUSED[case]
    with pytest.raises(
        ValueError, match=r"int32.*Number them anew.*: (42949673|21474)"
    ):
        reward(y_true, y_pred)


def test_words_beyond_int32_are_refused_by_cider():
    reward = CIDErReward()
    with pytest.raises(ValueError, match="4294967301"):
        reward.adapt(CAPTION[None])
    reward.adapt(CAPTION[None] % 2**31)
    with pytest.raises(ValueError, match="4294967301 in `y_true`"):
        reward(CAPTION[None], CAPTION % 2**31)
    with pytest.raises(ValueError, match="4294967301 in `y_pred`"):
        reward(CAPTION[None] % 2**31, CAPTION)


def test_evaluators_tell_ids_of_any_size_apart():
    words = np.array([[[5, 6, 7, 8]], [[9, 10, 11, 12]]])
    expected = cider(words, words[:, 0])["cider"]
    assert cider(words + 2**32, words[:, 0] + 2**32)["cider"] == expected > 1
    assert cider(words + 2**32, words[:, 0])["cider"] == 0.0

    def found(label):
        return {**boxes(label), "scores": np.ones((1, 1))}

    assert coco_detection(boxes(FAR), found(FAR))["map"] == pytest.approx(1.0)
    assert coco_detection(boxes(FAR), found(5))["map"] == 0.0


def test_labels_of_a_uvim_task_beyond_int32_are_refused():
    with pytest.raises(ValueError, match=r"PanopticTask computes in int32.*4294967301"):
        PanopticTask(num_classes=3, max_segments=4).check_labels(halves(5, FAR))


def test_boxes_alone_are_read_without_cutting_labels():
    with pytest.raises(ValueError, match="4294967301 in `y_true`"):
        matched_iou(boxes(FAR), boxes(5))
    codec = BoxCodec(num_classes=3, image_size=64, max_boxes=2)
    for dtype in ("uint8", "uint64", "int64"):
        codec.encode(boxes(2, dtype), seed=0)
        with pytest.raises(ValueError, match="below 3"):
            codec.encode(boxes(np.iinfo(dtype).max, dtype), seed=0)


def test_a_part_of_a_sum_does_not_get_the_ids_of_another():
    """The panoptic reward numbers instances anew, which a function must not see."""

    def is_far(y_true, y_pred):
        far = ops.cast(y_true[..., 1] == FAR, "float32")
        return ops.cast(ops.max(far, axis=(1, 2)), "float32")

    maps = halves(5, FAR)
    total = PanopticQualityReward() + FunctionReward(is_far)
    if keras.config.backend() in ("jax", "numpy"):
        with pytest.raises(ValueError, match=r"at most 32 bits.*4294967301"):
            total(maps, maps)
    else:
        np.testing.assert_array_equal(to_numpy(total(maps, maps)), [3.0])
    alike = PanopticQualityReward() + PanopticQualityReward(name="again")
    np.testing.assert_array_equal(to_numpy(alike(maps, maps)), [4.0])
