"""Credit of tokens that write one part after the other: each from its own part on."""

import itertools

import keras
import numpy as np
import pytest
from gradients import differentiate
from keras import ops
from sequences import InNumPy, SequenceModel, images
from tiny import to_numpy, weights_of

from keras_reward import (
    AutoregressivePolicy,
    BoxCodec,
    FunctionReward,
    MeanAveragePrecisionReward,
    RecallReward,
    Reward,
    RewardTuning,
)

TABLE = np.array([[0, 0, 4, 4], [0, 0, 4, 3], [9, 9, 12, 12], [5, 5, 6, 9]], "float32")
X = images(2)
WEIGHTS = np.array([0.8, 1.2])  # of the inputs
Y = {
    "boxes": np.array([TABLE[[0, 2]], TABLE[[3, 1]]]),
    "labels": np.array([[0, 0], [0, -1]], "int32"),
}


class TwoTokens:
    """Boxes of two tokens, 0 or 2, which name one of four. 1 is the end."""

    part_of_token = np.array([0, 0, 1, 1])

    def decode(self, inputs, samples):
        shape = (*ops.shape(samples)[:2], 2, 2)
        ended = ops.cumsum(ops.cast(samples == 1, "int32"), axis=-1)
        valid = ops.reshape(ended, shape)[..., 1] == 0
        tokens = ops.reshape(samples, shape)
        chosen = tokens[..., 0] + tokens[..., 1] // 2
        boxes = ops.take(ops.convert_to_tensor(TABLE), chosen, axis=0)
        return {"boxes": boxes, "labels": ops.where(valid, 0, -1)}


class Given(AutoregressivePolicy):
    """Takes its samples from the data: `x = {"images", "samples"}`."""

    def encode(self, x, training=False):
        self.samples = x["samples"]
        return super().encode(x, training)

    def sample(self, context, num_samples, seed=None, noise=None):
        return self.samples


def tiny_model():
    return SequenceModel(vocabulary_size=3, max_length=4)


def tuner(reward, num_samples=2, codec=None, **arguments):
    policy = Given(codec=TwoTokens() if codec is None else codec)
    return RewardTuning(tiny_model(), reward, policy, num_samples, **arguments)


REWARDS = {
    "recall": RecallReward(false_positive_penalty=0.25),
    "sum and offset": MeanAveragePrecisionReward(name="map")
    - 0.5 * RecallReward((0.8,), name="tight")
    + 0.3,
    "product": (RecallReward(name="one") + 0.5)
    * (MeanAveragePrecisionReward(name="two", false_positive_penalty=0.2) - 2.0),
}
SETTINGS = {
    "leave one out": {"num_samples": 2},
    "one sample, no baseline": {"num_samples": 1, "baseline": None},
    "first": {"num_samples": 2, "update": "first"},
}


def every_sequence():
    """All sequences, as lists that end, and padded `(sequences, 4)`."""
    in_numpy = InNumPy(tiny_model())
    sequences = in_numpy.sequences()
    padded = [in_numpy.padded(tokens) for tokens in sequences]
    return sequences, np.array(padded, "int32")


def rewards_of(reward, padded):
    """`(inputs, sequences)`, from the rewards themselves."""
    rows = {k: v[:, 0] for k, v in TwoTokens().decode(None, padded[:, None]).items()}
    truths = [
        {k: np.repeat(v[i : i + 1], len(padded), 0) for k, v in Y.items()}
        for i in range(len(X))
    ]
    return np.array([to_numpy(reward(truth, rows)) for truth in truths], "float64")


def chances(weights, in_numpy, sequences):
    """`(inputs, sequences)`."""
    in_numpy.embedding, in_numpy.positions, in_numpy.encoder, in_numpy.head = weights
    return np.array(
        [[np.exp(sum(in_numpy.token_log_probs(x, s))) for s in sequences] for x in X]
    )


def exact_gradient(reward):
    sequences, padded = every_sequence()
    in_numpy, earned = InNumPy(tiny_model()), rewards_of(reward, padded)

    def expected(weights):
        mean = (chances(weights, in_numpy, sequences) * earned).sum(1)
        return (WEIGHTS * mean).mean()

    start = [w.astype("float64") for w in tiny_model().get_weights()]
    return differentiate(expected, start, step=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", REWARDS)
def test_a_step_ascends_the_expected_reward(name):
    """A batch of all draws, weighted by their probability, moves by the exact mean."""
    reward, (sequences, padded) = REWARDS[name], every_sequence()
    exact = exact_gradient(reward)
    assert np.abs(exact).max() > 0.05
    for setting in SETTINGS.values() if name == "recall" else [{"num_samples": 2}]:
        n = setting["num_samples"]
        tuned = tuner(reward, **setting)
        assert tuned.by_parts
        in_numpy = InNumPy(tuned.model)
        start = [w.astype("float64") for w in tuned.model.get_weights()]
        chance = chances(start, in_numpy, sequences)
        draws = np.array(list(itertools.product(range(len(padded)), repeat=n)))
        count, rows = len(draws), len(draws) * len(X)
        x = {
            "images": np.repeat(X, count, 0),
            "samples": np.tile(padded[draws], (len(X), 1, 1)),
        }
        y = {key: np.repeat(value, count, 0) for key, value in Y.items()}
        weights = WEIGHTS[:, None] * chance[:, draws].prod(-1)
        weights = weights.ravel() * rows / len(X)
        tuned.compile(keras.optimizers.SGD(1.0))
        before = weights_of(tuned.model)
        tuned.train_on_batch(x, y, sample_weight=weights.astype("float32"))
        moved = zip(weights_of(tuned.model), before, strict=True)
        moved = np.concatenate([(new - old).ravel() for new, old in moved])
        np.testing.assert_allclose(moved, exact, atol=1e-5)


SAMPLES = np.array(
    [
        [[0, 0, 0, 2], [0, 0, 2, 0]],  # a match and a duplicate; two matches
        [[1, 0, 0, 0], [2, 2, 1, 0]],  # nothing; a match, and the end
    ],
    "int32",
)


def advantages(reward, **arguments):
    tuned = tuner(reward, **arguments)
    x = {"images": X, "samples": SAMPLES}
    context = tuned.policy.encode({k: ops.convert_to_tensor(v) for k, v in x.items()})
    y = {key: ops.convert_to_tensor(value) for key, value in Y.items()}
    return to_numpy(tuned.rollout(context, x, y).advantages)


def test_a_token_is_credited_with_its_part_and_later_ones():
    """Gains: [1, -0.3] and [1, 1]; none and [1, 0]."""
    found = advantages(RecallReward(duplicate_penalty=0.3))
    first = np.array([0.7 - 2.0, 0.7 - 2.0, -0.3 - 1.0, -0.3 - 1.0])
    second = np.array([-1.0, -1.0, 0.0, 0.0])
    expected = [[first, -first], [second, -second]]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    alone = advantages(RecallReward(), baseline=None)
    np.testing.assert_allclose(alone[0, 1], [2.0, 2.0, 1.0, 1.0], atol=1e-6)
    whole = advantages(RecallReward(), credit="output")
    np.testing.assert_allclose(whole, [[-1.3, 1.3], [-1.0, 1.0]], atol=1e-6)


class NoReward(Reward):
    """The number of boxes on the right; no reward for the last row."""

    def call(self, y_true, y_pred):
        count = ops.sum(self.gains(y_true, y_pred), axis=1)
        return ops.where(ops.arange(ops.shape(count)[0]) == 3, np.nan, count)

    def gains(self, y_true, y_pred):
        right = y_pred["boxes"][..., 2] > 5.0
        return ops.cast(ops.logical_and(right, y_pred["labels"] >= 0), "float32")


def test_a_sample_without_reward_has_no_credit():
    found = advantages(NoReward())
    np.testing.assert_allclose(found[0], [[-1] * 4, [1] * 4])
    np.testing.assert_array_equal(found[1], 0.0)


# Which it is

CODEC = BoxCodec(num_classes=1, image_size=4, max_boxes=2, num_buckets=3)


class SortedBoxes(BoxCodec):
    def decode(self, inputs, samples, token_probs=None):
        decoded = super().decode(inputs, samples, token_probs)
        return {key: ops.flip(value, axis=2) for key, value in decoded.items()}


class OwnDecode(AutoregressivePolicy):
    def decode(self, x, samples, context=None, **details):
        return super().decode(x, samples, context, **details)


@FunctionReward
def count(y_true, y_pred):
    return ops.sum(ops.cast(y_pred["labels"] >= 0, "float32"), axis=1)


def detector(reward, codec=CODEC, policy=AutoregressivePolicy, **arguments):
    model = SequenceModel(CODEC.vocabulary_size, CODEC.max_length)
    return RewardTuning(model, reward, policy(codec=codec), **arguments)


SORTED = SortedBoxes(**CODEC.get_config())
REFUSED = {
    "reward": ((count,), "no `gains` in reward 'count'"),
    "summand": ((RecallReward() - 0.1 * count,), "no `gains` in reward 'count'"),
    "codec": ((RecallReward(), SORTED), "codec SortedBoxes has no `part_of_token`"),
    "no codec": ((RecallReward(), None), "there is no codec that says which part"),
    "policy": ((RecallReward(), CODEC, OwnDecode), "OwnDecode decodes in a way"),
}


def test_a_reward_of_other_boxes_is_refused():
    other = RecallReward(bounding_box_format="xywh")
    for reward in (other, count - 0.5 * other):
        with pytest.raises(ValueError, match=r"'recall'.*'xyxy'.*Received.*'xywh'"):
            detector(reward)


def test_auto_credits_tokens_where_both_can():
    assert CODEC.part_of_token.tolist() == [0] * 6 + [1] * 6
    tuned = detector(RecallReward() + 0.0 * count)
    assert tuned.by_parts and tuned.uses_baseline
    assert not detector(RecallReward(), credit="output").by_parts
    with pytest.raises(ValueError, match="num_samples=1"):
        detector(RecallReward(), num_samples=1)


@pytest.mark.parametrize("name", REFUSED)
def test_parts_are_refused_with_what_is_missing(name):
    given, message = REFUSED[name]
    assert not detector(*given).by_parts
    with pytest.raises(ValueError, match=f"credit='parts', but.*{message}"):
        detector(*given, credit="parts")


class Parts(TwoTokens):
    def __init__(self, *parts):
        self.part_of_token = np.array(parts)


@pytest.mark.parametrize("parts", [(0, 0, 1), (0, 1, 0, 1), (-1, 0, 1, 1), (0.5,) * 4])
def test_parts_that_do_not_follow_one_another_are_refused(parts):
    with pytest.raises(ValueError, match=r"`part_of_token` of a codec.*shape \(4,\)"):
        tuner(RecallReward(), codec=Parts(*parts))


class OneNumber(RecallReward):
    def call(self, y_true, y_pred):
        return super().call(y_true, y_pred)

    def gains(self, y_true, y_pred):
        return super().call(y_true, y_pred)[0]


def test_gains_of_another_form_are_refused():
    for reward, codec, message in (
        (RecallReward(), Parts(0, 1, 2, 2), "Expected: 3 parts. Received: 2"),
        (OneNumber(), None, r"`gains` of reward 'one_number'.*shape \(4,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            advantages(reward, codec=codec)


@pytest.mark.slow
def test_the_log_says_which_it_is_and_fit_runs(capsys):
    x = images(6)
    boxes = np.tile(np.array([0, 0, 4, 4], "float32"), (6, 1, 1))
    y = {"boxes": boxes, "labels": np.zeros((6, 1), "int32")}
    lines = {"auto": "each token gets what its part", "output": "(as asked for)"}
    for credit, line in lines.items():
        tuned = detector(RecallReward(), credit=credit, seed=0)
        tuned.compile(keras.optimizers.Adam(0.01))
        history = tuned.fit(x, y, batch_size=4, epochs=1, verbose=2).history
        assert capsys.readouterr().out.count(line) == 1
        assert np.isfinite(history["loss"]).all()
    config = detector(RecallReward()).get_config()
    assert config["credit"] == "auto"
