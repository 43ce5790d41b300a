"""What each box was worth, against the reward of outputs with other boxes."""

import functools

import keras
import numpy as np
import pytest
from keras import ops
from tiny import compiled, to_numpy

from keras_reward import (
    FunctionReward,
    MeanAveragePrecisionReward,
    RecallReward,
    Reward,
    SumReward,
)

ROWS, TRUTHS, BOXES = 24, 3, 5
REWARDS = {
    "recall": RecallReward(),
    "false positives": RecallReward((0.3, 0.5), 0.2, false_positive_penalty=0.4),
    "map": MeanAveragePrecisionReward(),
    "weights": MeanAveragePrecisionReward(
        class_counts=[9, 1], duplicate_penalty=0.7, false_positive_penalty=0.1
    ),
    "as published": MeanAveragePrecisionReward(
        as_published=True, image_size=8, class_counts=[9, 1]
    ),
    "sum": 0.5 * RecallReward(name="one")
    - 2.0 * MeanAveragePrecisionReward(name="two")
    + 3.0,
    "product": (RecallReward(name="one") + 0.5)
    * MeanAveragePrecisionReward(name="two", false_positive_penalty=0.2),
}


class Choices:
    """The form of `DecodedChoices`, of outputs that are given."""

    def __init__(self, outputs, positions):
        self.outputs, self.positions = outputs, positions

    def __len__(self):
        return len(self.outputs)

    def map(self, function):
        return ops.stack([function(output) for output in self.outputs], axis=-1)


def scenes(seed=0):
    """Few places, so that boxes tie, repeat and meet thresholds: truth and candidates.

    Among them padding, an empty box and one with NaN; in one row no truth.
    """
    generator = np.random.default_rng(seed)

    def boxes(count):
        corner = generator.integers(0, 2, (ROWS, count, 2))
        side = generator.integers(3, 6, (ROWS, count, 2))
        return np.concatenate([corner, corner + side], -1).astype("float32")

    truth = {"boxes": boxes(TRUTHS), "labels": generator.integers(0, 2, (ROWS, TRUTHS))}
    shown = {"boxes": boxes(BOXES), "labels": generator.integers(0, 2, (ROWS, BOXES))}
    truth["labels"][0] = -1
    truth["labels"][1, 1:] = -1
    shown["labels"][2:4, 1] = -1
    shown["boxes"][4:6, 0] = np.nan
    shown["boxes"][6:8, 2, 2:] = 0.0
    shown["boxes"][8:12, :3] = truth["boxes"][8:12, :1]
    shown["labels"][8:12, :3] = truth["labels"][8:12, :1]
    return truth, shown


def hidden(output, mask):
    return {**output, "labels": np.where(mask, output["labels"], -1)}


def by_flipping(reward, truth, shown, mask):
    """Hides and shows one candidate after the other, and asks for the reward."""
    worth = np.empty((*mask.shape, 2))
    for box in range(mask.shape[1]):
        for choice in (0, 1):
            changed = mask.copy()
            changed[:, box] = choice
            worth[:, box, choice] = to_numpy(reward(truth, hidden(shown, changed)))
    return worth


def evaluate(reward, truth, shown, mask):
    """The rewards, and what `alternatives` and `gains` say, compiled."""

    def function(truth, shown, sample):
        nothing = {**shown, "labels": 0 * shown["labels"] - 1}
        prepared = reward.prepare(truth)
        choices = Choices([nothing, shown], (sample["labels"].shape[1],))
        return (
            reward.evaluate(prepared, sample)[0],
            reward.alternatives(prepared, sample, choices),
            reward.gains(prepared, sample),
        )

    results = compiled(function)(truth, shown, hidden(shown, mask))
    return [to_numpy(result) for result in results]


@functools.cache
def evaluated(name):
    truth, shown = scenes()
    mask = np.random.default_rng(1).random((ROWS, BOXES)) < 0.7
    return truth, shown, mask, *evaluate(REWARDS[name], truth, shown, mask)


@pytest.mark.parametrize("name", REWARDS)
def test_hiding_or_showing_a_box_is_worth_what_the_reward_says(name):
    truth, shown, mask, earned, result, _ = evaluated(name)
    expected = by_flipping(REWARDS[name], truth, shown, mask)
    np.testing.assert_allclose(result, expected, atol=2e-6)
    drawn = np.take_along_axis(result, mask[..., None].astype(int), -1)[..., 0]
    np.testing.assert_allclose(drawn, earned[:, None] + 0 * drawn, atol=2e-6)
    np.testing.assert_array_equal(*result[shown["labels"] < 0].T)
    steps = result[..., 1] - result[..., 0]
    assert (steps > 0).sum() > 10
    assert (steps < 0).sum() > 10


@pytest.mark.parametrize("name", REWARDS)
def test_gains_are_what_the_first_boxes_earn_more(name):
    truth, shown, mask, earned, _, gains = evaluated(name)
    number = np.arange(BOXES)
    expected = [
        to_numpy(REWARDS[name](truth, hidden(shown, mask & (number < k))))
        for k in range(1, BOXES + 1)
    ]
    np.testing.assert_allclose(gains.cumsum(1), np.stack(expected, 1), atol=3e-6)
    np.testing.assert_allclose(gains.sum(1), earned, atol=3e-6)


def test_gains_by_hand():
    """A match, a false positive, a tighter box for the same truth, padding, a match."""
    truth = {
        "boxes": np.array([[[0, 0, 4, 4], [10, 10, 14, 14]]], "float32"),
        "labels": np.array([[0, 1]]),
    }
    boxes = [[0, 0, 4, 3], [20, 20, 30, 30], [0, 0, 4, 4], [0, 0, 9, 9]]
    boxes = np.array([[*boxes, [10, 10, 14, 14]]], "float32")
    shown = {"boxes": boxes, "labels": np.array([[0, 0, 0, -1, 1]])}
    reward = MeanAveragePrecisionReward(
        (0.5, 0.8), class_counts=[1, 3], class_smoothing=0, false_positive_penalty=0.2
    )
    # Weights 1.5 and 0.5. The first is above 0.5 alone; then the third is the match at
    # both, so that the first is a duplicate at one.
    expected = [
        1.5 * (0.5 - 0.2 * 0.5),
        -1.5 * 0.2,
        1.5 * (0.5 - 0.3 * 0.5),
        0.0,
        0.5,
    ]
    prepared = reward.prepare(truth)
    result = to_numpy(reward.gains(prepared, shown))
    np.testing.assert_allclose(result, [expected], atol=1e-6)
    components = reward.evaluate(prepared, shown)[1]
    assert {name: float(value[0]) for name, value in components.items()} == {
        "matches": 2.0,
        "duplicates": 0.5,
        "false_positives": 1.5,
    }


def test_any_number_of_choices():
    """A part that is hidden, of one class or of the other."""
    truth, shown = scenes(7)
    reward = REWARDS["weights"]
    outputs = [{**shown, "labels": 0 * shown["labels"] + c} for c in (-1, 0, 1)]
    prepared = reward.prepare(truth)
    choices = Choices(outputs, (BOXES,))
    result = to_numpy(reward.alternatives(prepared, shown, choices))
    for box in range(BOXES):
        for choice, output in enumerate(outputs):
            labels = shown["labels"].copy()
            labels[:, box] = output["labels"][:, box]
            expected = to_numpy(reward(truth, {**shown, "labels": labels}))
            np.testing.assert_allclose(result[:, box, choice], expected, atol=2e-6)


@pytest.mark.parametrize("truths, boxes", [(0, 3), (2, 0), (0, 0)])
def test_without_boxes(truths, boxes):
    truth, shown = (
        {"boxes": np.zeros((2, n, 4), "float32"), "labels": np.zeros((2, n), "int32")}
        for n in (truths, boxes)
    )
    reward = RecallReward(false_positive_penalty=0.5)
    earned, result, gains = evaluate(reward, truth, shown, np.ones((2, boxes), "bool"))
    np.testing.assert_allclose(earned, [-0.5 * boxes] * 2)
    np.testing.assert_allclose(gains, np.full((2, boxes), -0.5))
    assert result.shape == (2, boxes, 2)


def test_parts_that_are_not_boxes_are_refused():
    truth, shown = scenes()
    reward = RecallReward()
    prepared = reward.prepare(truth)
    for choices in (Choices([shown] * 2, (2, 3)), ops.arange(2)):
        with pytest.raises(ValueError, match=r"one box each.*5 boxes in a row"):
            reward.alternatives(prepared, shown, choices)


def test_false_positives_cost_what_is_asked():
    truth, shown = scenes()
    plain = to_numpy(RecallReward()(truth, shown))
    reward = RecallReward(false_positive_penalty=0.25)
    result, logged = reward.evaluate(reward.prepare(truth), shown)
    wrong = to_numpy(logged["false_positives"])
    counted = to_numpy(logged["matches"]) + to_numpy(logged["duplicates"]) + wrong
    np.testing.assert_allclose(counted, (shown["labels"] >= 0).sum(1))
    np.testing.assert_allclose(to_numpy(result), plain - 0.25 * wrong, atol=1e-6)
    assert RecallReward().component_names == ("matches", "duplicates")
    copy = RecallReward.from_config(reward.get_config())
    assert copy.get_config() == reward.get_config()
    for wrong in (-0.1, float("nan")):
        with pytest.raises(ValueError, match=r"at least 0\. Received: false_positive"):
            RecallReward(false_positive_penalty=wrong)


class HalfRecall(RecallReward):
    def call(self, y_true, y_pred):
        reward, components = super().call(y_true, y_pred)
        return 0.5 * reward, components


class HalfTotal(RecallReward):
    def total(self, *compared):
        reward, components = super().total(*compared)
        return 0.5 * reward, components


class OtherSum(SumReward):
    def merge(self, values):
        return super().merge(values) ** 2


@FunctionReward
def count(y_true, y_pred):
    return ops.sum(ops.cast(y_pred["labels"] >= 0, "float32"), axis=1)


def test_which_rewards_say_what_boxes_add():
    recall = RecallReward()
    for reward in (*REWARDS.values(), recall + 0.0 * count):
        assert reward.without_gains() == []
        assert reward.without_alternatives() == []
    lacking = {"half_recall": HalfRecall(), "half_total": HalfTotal()}
    lacking["count"] = recall - 0.1 * count
    lacking["other_sum"] = OtherSum([recall])
    for name, reward in lacking.items():
        assert reward.without_gains() == reward.without_alternatives() == [name]
    with pytest.raises(NotImplementedError, match=r"'half_count'.*no method `gains"):
        FunctionOfBoxes(name="half_count").gains(None, None)


class FunctionOfBoxes(Reward):
    def call(self, y_true, y_pred):
        return count.call(y_true, y_pred)


def test_serialized_rewards_keep_the_penalty():
    reward = MeanAveragePrecisionReward(false_positive_penalty=0.3)
    config = keras.saving.serialize_keras_object(reward)
    copy = keras.saving.deserialize_keras_object(config)
    assert copy.false_positive_penalty == 0.3
