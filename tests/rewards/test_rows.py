"""What every reward refuses: other rows, no pixels, values that are no numbers."""

import every_part
import fuzz_rewards
import keras
import numpy as np
import pytest
from tiny import to_numpy

import keras_reward as kr
from keras_reward import advantages
from keras_reward.rewards.credit import Credit

COMPARING = sorted(n for n, (_, y, _) in fuzz_rewards.REWARDS.items() if y is not None)


def with_rows(nest, rows):
    def take(leaf):
        return np.concatenate([leaf] * 3)[:rows]

    return keras.tree.map_structure(take, nest)


@pytest.mark.parametrize("name", COMPARING)
def test_one_target_is_not_broadcast_over_outputs(name):
    make, y_true, y_pred = fuzz_rewards.REWARDS[name]
    reward = make()
    assert len(reward(with_rows(y_true, 3), with_rows(y_pred, 3))) == 3
    for rows, others in ((1, 3), (3, 1), (2, 3)):
        message = rf"Expected: {others} rows\. Received"
        with pytest.raises(ValueError, match=message) as e:
            reward(with_rows(y_true, rows), with_rows(y_pred, others))
        assert f"{rows} rows in `y_true`" in str(e.value) or name == "matched_iou"


def test_rows_are_checked_where_a_step_calls_it_too():
    reward = kr.MeanIoUReward(4)
    y_true, y_pred = every_part.labels(1, 5, 7), every_part.labels(3, 5, 7, seed=1)
    prepared = reward.prepare(y_true)
    choices = keras.ops.arange(4, dtype="int32")
    for call in (
        lambda: reward.evaluate(prepared, y_pred),
        lambda: reward.evaluate_parts(prepared, y_pred, None, choices, (5, 7)),
        lambda: (reward + 1.0).evaluate_parts(
            [prepared], y_pred, None, choices, (5, 7)
        ),
        lambda: kr.MapReward(fuzz_rewards.smooth).evaluate_parts(
            y_true, y_pred, None, None, (5, 7)
        ),
    ):
        with pytest.raises(ValueError, match=r"Expected: 3 rows\. Received: 1"):
            call()
    boxes = with_rows(every_part.BOXES, 1)
    recall = kr.RecallReward()
    with pytest.raises(ValueError, match=r"Expected: 2 rows\. Received: 1"):
        recall.evaluate_gains(recall.prepare(boxes), every_part.MORE_BOXES, None)


def test_inputs_and_parts_of_outputs_have_the_same_rows():
    def first(y_true, y_pred, inputs):
        return keras.ops.cast(inputs[:, 0], "float32")

    outputs = np.ones((3, 2), "float32")
    with pytest.raises(ValueError, match="Received: 1 rows in `inputs`"):
        kr.FunctionReward(first)(None, outputs, outputs[:1])
    boxes = {**every_part.MORE_BOXES, "scores": np.ones((1, 5), "float32")}
    message = r"Received: 1 rows in `y_pred`.*shape \(1, 5\)"
    with pytest.raises(ValueError, match=message):
        kr.RecallReward()(every_part.BOXES, boxes)


def test_greedy_rewards_are_not_broadcast():
    message = r"Expected: shape \(3,\). Received: shape \(1,"
    with pytest.raises(ValueError, match=message):
        advantages.greedy(np.ones((3, 2), "float32"), np.ones(1, "float32"))


PIXELS = [
    *("vividness", "hue_entropy", "colorfulness", "psnr", "mean_iou", "boundary"),
    *("dice of one-hot", "boundary of masks", "panoptic", "model", "map", "product"),
]


@pytest.mark.parametrize("name", PIXELS)
@pytest.mark.parametrize("axis", [1, 2])
def test_a_mean_over_no_pixels_is_refused(name, axis):
    make, y_true, y_pred = fuzz_rewards.REWARDS[name]
    none = [
        None if each is None else np.take(each, [], axis=axis)
        for each in (y_true, y_pred)
    ]
    with pytest.raises(ValueError, match="at least one value in each row"):
        make()(*none)


def test_zero_rows_and_captions_without_tokens_are_refused():
    message = "one or more rows.*Received.*shape .0, 4, 4, 3"
    with pytest.raises(ValueError, match=message):
        kr.VividnessReward()(None, np.zeros((0, 4, 4, 3), "float32"))
    with pytest.raises(ValueError, match=r"at least one token.*shape \(2, 0\)"):
        kr.LengthReward()(None, np.zeros((2, 0), "int32"))


OUTPUTS = {"boxes": np.zeros((1, 2, 4), "float32"), "labels": np.zeros((1, 2), "int32")}


@pytest.mark.parametrize(
    ("leaf", "received"),
    [
        (None, "Received: NoneType"),
        ("text", "Received: str 'text'"),
        (b"text", "Received: bytes"),
        (object(), "Received: object"),
        (3, "Received: int 3"),
        (np.array(["a", "b"]), r"Received: shape \(2,\), dtype <U1"),
        (np.array([None, 1]), r"Received: shape \(2,\), dtype object"),
        (np.zeros((1, 2), "complex64"), "dtype complex64"),
        (np.zeros((1, 2), "datetime64[s]"), "dtype datetime64"),
    ],
)
def test_what_is_no_array_of_numbers_is_refused(leaf, received):
    with pytest.raises(ValueError, match=received):
        kr.RecallReward()(OUTPUTS, {**OUTPUTS, "labels": leaf})
    if leaf is None:
        received = "Received: y_pred of None"
    for reward in (kr.VividnessReward(), kr.CIDErReward(), kr.PSNRReward()):
        with pytest.raises(ValueError, match=f"Reward {reward.name!r} .*{received}"):
            reward(None, leaf)


def test_keys_without_an_order_are_refused():
    with pytest.raises(ValueError, match="keys 1, 'a'"):
        kr.PSNRReward()({1: np.zeros(2), "a": np.zeros(2)}, np.zeros((2, 3)))


# Sizes.


def earns(*values, name="earns"):
    rewards = keras.ops.convert_to_tensor(np.array(values, "float32"))
    return kr.FunctionReward(lambda y_true, y_pred: rewards, name=name)


@pytest.mark.parametrize("value", [2e12, -2e12, 3e38, -3e38, np.inf, -np.inf, np.nan])
def test_a_reward_beyond_the_limit_counts_as_none(value):
    outputs = np.zeros((3, 1), "float32")
    found = to_numpy(earns(1.0, value, 1e12)(None, outputs))
    np.testing.assert_array_equal(found, np.float32([1.0, np.nan, 1e12]))
    added = earns(1.0, 0.0, 1.0) + earns(1.0, value, 0.0, name="other")
    found, components = added.evaluate([None, None], outputs)
    np.testing.assert_array_equal(to_numpy(found), [2.0, np.nan, 1.0])
    assert np.isnan(to_numpy(components["other"])[1])
    rewards = np.float32([[1.0, value, 3.0], [1.0, 2.0, 4.5]])
    for function in (advantages.leave_one_out, advantages.mean):
        found = to_numpy(function(rewards))
        without = to_numpy(function(np.float32([[1.0, 3.0]])))
        np.testing.assert_array_equal(found[0], [without[0, 0], 0.0, without[0, 1]])


def test_sums_and_products_beyond_the_limit_count_as_none():
    outputs = np.zeros((2, 1), "float32")
    one, other = earns(1e12, 1.0), earns(1e12, 2.0, name="other")
    for combined in (one + other, one * other, 1e30 * one + 0.0 * other):
        assert np.isnan(to_numpy(combined(None, outputs))[0])
    np.testing.assert_array_equal(to_numpy((one + other)(None, outputs))[1], 3.0)


def test_parts_beyond_the_limit_count_as_none():
    """Also where they cancel in the whole, or are beyond only once multiplied."""

    def places(y_true, y_pred):
        huge = keras.ops.cast(y_pred, "float32") * 3e38
        return keras.ops.where(y_pred > 0, huge, 0.0)

    maps = np.array([[[1, -1, 0]]])
    given = None, maps, None, None, (1, 3)
    _, _, credit = kr.MapReward(places, reduction="sum").evaluate_parts(*given)
    assert np.isnan(to_numpy(credit.part_rewards)).all()

    class Parts(kr.FunctionReward):
        def evaluate_parts(self, y_true, y_pred, inputs, choices, positions):
            worth = keras.ops.convert_to_tensor(np.float32([[[1e9, 2.0]]]))
            return self.evaluate(y_true, y_pred)[0], {}, Credit(worth, None)

        def without_alternatives(self):
            return []

    part = Parts(lambda y_true, y_pred: keras.ops.ones(1))
    product = kr.ProductReward([part, Parts(part.function, name="other")])
    given = [None, None], np.zeros((1, 1)), None, None, (1,)
    alternatives = product.evaluate_parts(*given)[-1].alternatives
    np.testing.assert_array_equal(to_numpy(alternatives), [[[np.nan, 4.0]]])
