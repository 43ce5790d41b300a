"""Rewards for length and repetition."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tiny import compiled, to_numpy

from keras_reward.rewards.sequences import LengthReward, RepetitionReward

PAD, END = 0, 1

CAPTIONS = {
    "empty": [END, 5, 6, 7, 8, 9],
    "padding alone": [PAD, PAD, PAD, PAD, PAD, PAD],
    "one word": [5, END, PAD, PAD, PAD, PAD],
    "two": [5, 6, END, END, 5, 6],
    "twice the same": [5, 5, END, PAD, PAD, PAD],
    "three and padding": [5, 6, 5, PAD, 6, END],
    "full": [5, 6, 5, 6, 5, 6],
    "full and ended": [7, 7, 7, 7, 7, END],
}
LENGTHS = [0, 0, 1, 2, 2, 3, 6, 5]


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ((0, None), [0, 0, 0, 0, 0, 0, 0, 0]),
        ((2, None), [-2, -2, -1, 0, 0, 0, 0, 0]),
        ((0, 3), [0, 0, 0, 0, 0, 0, -3, -2]),
        ((2, 4), [-2, -2, -1, 0, 0, 0, -2, -1]),
        ((3, 3), [-3, -3, -2, -1, -1, 0, -3, -2]),
    ],
)
def test_length_counts_the_words_outside_the_range(bounds, expected):
    reward = LengthReward(*bounds, end_id=END)
    result = to_numpy(reward(None, np.array(list(CAPTIONS.values()))))
    np.testing.assert_array_equal(result, np.array(expected, "float32"))


def test_without_an_end_token_padding_alone_ends():
    reward = LengthReward(6, 6)
    result = to_numpy(reward(None, np.array([[5, END, 6, PAD, 7, 8]])))
    np.testing.assert_array_equal(result, [-3.0])


@pytest.mark.parametrize(
    ("ngram", "expected"),
    [
        # distinct / all - 1; the last two: 56 56 56 and 77777
        (1, [0, 0, 0, 0, -1 / 2, -1 / 3, -4 / 6, -4 / 5]),
        (2, [0, 0, 0, 0, 0, 0, -3 / 5, -3 / 4]),
        (3, [0, 0, 0, 0, 0, 0, -2 / 4, -2 / 3]),
        (6, [0, 0, 0, 0, 0, 0, 0, 0]),
        (16, [0, 0, 0, 0, 0, 0, 0, 0]),
    ],
)
def test_repetition_is_the_share_of_repeated_ngrams(ngram, expected):
    reward = RepetitionReward(ngram, end_id=END)
    score = compiled(lambda ids: reward(None, ids))
    result = to_numpy(score(np.array(list(CAPTIONS.values()))))
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-7)


def plain_repetition(ids, n):
    """The share in plain Python, negative."""
    words = []
    for token in ids:
        if token in (PAD, END):
            break
        words.append(token)
    found = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return len(set(found)) / len(found) - 1.0 if found else 0.0


@pytest.mark.parametrize("width", [31, 80])
def test_repetition_in_long_sequences(width):
    generator = np.random.default_rng(0)
    ids = np.minimum(generator.geometric(0.3, (30, width)) + 1, 6)
    ids[np.arange(30), generator.integers(0, 2 * width, 30) % width] = END
    ids[:5] += 1
    reward = RepetitionReward(4, end_id=END)
    result = to_numpy(compiled(lambda ids: reward(None, ids))(ids))
    expected = [plain_repetition(row, 4) for row in ids.tolist()]
    assert min(expected) < -0.05
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


IDS = st.integers(0, 4) | st.integers(-(2**31), 2**31 - 1)
REWARDS = [LengthReward(2, 4, end_id=END), RepetitionReward(2, end_id=END)]
COMPILED = [compiled(lambda ids, r=reward: r(None, ids)) for reward in REWARDS]


@pytest.mark.slow
@settings(max_examples=25, deadline=None, derandomize=True)
@given(arrays("int32", (4, 7), elements=IDS), st.integers(0, 6), IDS)
def test_only_what_precedes_the_end_matters(ids, at, word):
    ids[:, at] = END
    other = ids.copy()
    other[:, at + 1 :] = word
    for reward, score in zip(REWARDS, COMPILED, strict=True):
        result = to_numpy(score(ids))
        assert np.isfinite(result).all() and (result <= 0.0).all()
        np.testing.assert_array_equal(to_numpy(score(other)), result)
        np.testing.assert_array_equal(
            to_numpy(score(np.pad(ids, ((0, 0), (0, 2))))), result
        )
        np.testing.assert_allclose(to_numpy(reward(None, ids)), result, rtol=1e-6)


def test_traces_for_an_unknown_number_of_rows():
    class Score(keras.Operation):
        def __init__(self, reward):
            super().__init__()
            self.reward = reward

        def call(self, ids):
            return self.reward.evaluate(None, ids)[0]

    for reward in REWARDS:
        result = Score(reward).compute_output_spec(
            keras.KerasTensor((None, 7), "int32")
        )
        assert tuple(result.shape) == (None,)


@pytest.mark.parametrize(
    "reward", [LengthReward(2, 4, 1, 3), RepetitionReward(2, 1, 3)]
)
def test_survives_serialisation(reward):
    config = keras.saving.serialize_keras_object(reward)
    copy = keras.saving.deserialize_keras_object(config)
    assert copy.get_config() == reward.get_config()


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="min_length=5, max_length=4"):
        LengthReward(5, 4)
    for ngram in (0, 17, 1.5):
        with pytest.raises(ValueError, match=f"ngram={ngram}"):
            RepetitionReward(ngram)


@pytest.mark.parametrize("ids", [np.ones((2, 3), "float32"), np.ones(3, "int32")])
@pytest.mark.parametrize("reward", REWARDS)
def test_wrong_ids_are_refused_by_name(reward, ids):
    with pytest.raises(ValueError, match=f"'{reward.name}' needs .*{ids.dtype}"):
        reward(None, ids)
