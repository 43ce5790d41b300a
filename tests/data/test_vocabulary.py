"""Words and token ids."""

import json

import numpy as np
import pytest
from keras import ops

from keras_reward.data import Vocabulary

CAPTIONS = ["A three, above two sevens.", "two sevens", "two fours above a three"]


@pytest.fixture
def vocabulary():
    return Vocabulary(["two", "sevens", "a", "dont"], max_length=4)


def test_ids_are_those_of_the_words_in_order(vocabulary):
    np.testing.assert_array_equal(
        vocabulary.encode(["two sevens", "a"]), [[3, 4, 1, 0], [5, 1, 0, 0]]
    )
    assert vocabulary.encode(["two"]).dtype == np.int32
    assert len(vocabulary) == 7


def test_words_are_found_whatever_their_case_and_punctuation(vocabulary):
    ids = vocabulary.encode(["  A, TWO!", "Don't\n'two'"])
    np.testing.assert_array_equal(ids, [[5, 3, 1, 0], [6, 3, 1, 0]])


def test_words_that_are_not_known_have_an_id_of_their_own(vocabulary):
    np.testing.assert_array_equal(vocabulary.encode(["two nines"]), [[3, 2, 1, 0]])


def test_long_captions_keep_their_end(vocabulary):
    ids = vocabulary.encode(["two two two two two", "two two two", ""])
    np.testing.assert_array_equal(ids, [[3, 3, 3, 1], [3, 3, 3, 1], [1, 0, 0, 0]])


def test_captions_of_several_images_are_padded_to_the_most(vocabulary):
    ids = vocabulary.encode([["two"], ["a", "two sevens"], []])
    np.testing.assert_array_equal(
        ids,
        [
            [[3, 1, 0, 0], [0, 0, 0, 0]],
            [[5, 1, 0, 0], [3, 4, 1, 0]],
            [[0, 0, 0, 0], [0, 0, 0, 0]],
        ],
    )


def test_decoding_returns_the_captions_up_to_their_end(vocabulary):
    ids = np.array([[3, 4, 1, 0], [5, 1, 3, 3], [2, 3, 99, 0]])
    captions = ["two sevens", "a", "<unknown> two <unknown>"]
    assert vocabulary.decode(ids) == captions
    assert vocabulary.decode(ops.convert_to_tensor(ids)) == captions
    assert vocabulary.decode(ids[0]) == "two sevens"
    assert vocabulary.decode(np.where(ids == 0, -100, ids)) == captions
    assert vocabulary.decode(ids[None]) == [captions]


def test_decoding_undoes_encoding():
    vocabulary = Vocabulary.from_captions(CAPTIONS, max_length=6)
    plain = ["a three above two sevens", "two sevens", "two fours above a three"]
    assert vocabulary.decode(vocabulary.encode(CAPTIONS)) == plain


def test_frequent_words_come_first_and_the_order_of_captions_does_not_matter():
    # two 3; a, above, sevens, three 2 each; fours 1.
    words = ["two", "a", "above", "sevens", "three", "fours"]
    assert Vocabulary.from_captions(CAPTIONS, 8).words == words
    assert Vocabulary.from_captions(CAPTIONS[::-1], 8).words == words
    assert Vocabulary.from_captions(CAPTIONS, 8, min_count=2).words == words[:-1]


def test_a_vocabulary_can_be_written_as_json(vocabulary):
    words = json.loads(json.dumps(vocabulary.words))
    again = Vocabulary(words, vocabulary.max_length)
    np.testing.assert_array_equal(again.encode(["a two"]), vocabulary.encode(["a two"]))


@pytest.mark.parametrize("words", [["two", "two"], ["Two"], ["two sevens"], ["don't"]])
def test_words_that_could_not_be_found_are_refused(words):
    with pytest.raises(ValueError, match=f"`words` must be.*Received: .*{words[0]}"):
        Vocabulary(words, 4)


def test_other_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="max_length=0"):
        Vocabulary(["two"], 0)
    with pytest.raises(ValueError, match=r"list of strings\. Received: 'two'"):
        Vocabulary(["two"], 4).encode("two")
