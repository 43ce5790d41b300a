"""N-grams: counting them, hashing them, finding them in the table of a corpus."""

import collections

import numpy as np
import pytest
from captions import END, random_captions, words_of
from keras import ops
from tiny import compiled, to_numpy

from keras_reward import CIDErReward
from keras_reward.rewards import ngrams


def plain_counts(caption, other, n):
    """How often the n-gram at each position of a list occurs in another."""
    found = collections.Counter(
        tuple(other[j : j + n]) for j in range(len(other) - n + 1)
    )
    return [found[tuple(caption[i : i + n])] for i in range(len(caption) - n + 1)]


@pytest.mark.parametrize("width", [2, 31, 32, 70])
def test_matches_are_counted_in_captions_of_any_length(width):
    generator = np.random.default_rng(width)
    ids = generator.integers(0, 3, (6, 9)).astype("int32")
    others = generator.integers(0, 3, (6, width)).astype("int32")
    lengths = generator.integers(0, width + 1, 6).astype("int32")
    lengths[0] = width
    counts = ngrams.count_matches(
        *map(ops.convert_to_tensor, (ids, others, lengths)), 4
    )
    for n, count in enumerate(map(to_numpy, counts), start=1):
        for row in range(6):
            other = others[row, : lengths[row]].tolist()
            expected = plain_counts(ids[row].tolist(), other, n)
            assert count[row, : 10 - n].tolist() == expected


def test_hashes_are_those_of_numpy():
    generator = np.random.default_rng(0)
    pairs = generator.integers(-(2**31), 2**31, (2, 1000)).astype("int32")
    pairs[:, :4] = [[-1, 0, 2**31 - 1, -(2**31)], [-(2**31), -1, 2**31 - 1, 0]]
    expected = ngrams.bucket_of(np, *pairs, 2**20)
    result = to_numpy(ngrams.bucket_of(ops, *map(ops.convert_to_tensor, pairs), 2**20))
    np.testing.assert_array_equal(result, expected)
    assert expected.min() >= 0 and len(np.unique(expected)) > 990


def find(table, parents, words):
    columns, directory, probes = table

    @compiled
    def look_up(parents, words):
        tables = [ops.convert_to_tensor(table) for table in (*columns, directory)]
        return ngrams.look_up(tables[:3], tables[3], probes, parents, words)

    query = (np.array(q, "int32") for q in (parents, words))
    return to_numpy(look_up(*map(ops.convert_to_tensor, query))).tolist()


def test_pairs_in_the_same_bucket_are_told_apart():
    """Of 8 buckets, every one holds many of these pairs; only two are stored."""
    words = np.arange(-100, 100, dtype="int32")
    parents = np.full(200, 3, "int32")
    buckets = ngrams.bucket_of(np, parents, words, 8)
    clash = words[buckets == buckets[0]][:3]
    stored = np.array([*clash[:2], 5000, 5001], "int32")  # four entries: 8 buckets
    table = ngrams.build_table(np.full(4, 3, "int32"), stored)
    assert len(table[1]) == 8 and table[2] >= 2
    assert find(table, [3, 3, 3], clash) == [1, 2, ngrams.UNKNOWN]
    assert find(table, parents, words) == [
        {clash[0]: 1, clash[1]: 2}.get(word, ngrams.UNKNOWN) for word in words
    ]
    others = np.arange(-1000, 1000)
    others = others[others != 3]
    assert set(find(table, others, np.full(len(others), clash[0]))) == {ngrams.UNKNOWN}


def test_ngrams_of_a_corpus_are_found_with_their_frequencies():
    """All n-grams over a vocabulary, against a plain count."""
    corpus = random_captions(0, images=300, references=5, tokens=16)
    reward = CIDErReward(end_id=END, count_end_token=False)
    reward.adapt(corpus)
    images = [
        {
            tuple(words[i : i + n])
            for words in (words_of(caption).split() for caption in image)
            for n in range(1, 5)
            for i in range(len(words) - n + 1)
        }
        for image in corpus
    ]
    frequency = collections.Counter(ngram for image in images for ngram in image)
    *columns, directory, idf = (ops.convert_to_tensor(v) for v in reward.variables)
    assert idf.shape[0] == 1 + sum(count > 1 for count in frequency.values())
    generator = np.random.default_rng(0)
    quads = np.array([g for g in frequency if len(g) == 4], "int32")
    quads = np.concatenate([quads, generator.integers(-3, 70, (3000, 4))])
    numbers = ngrams.look_up_ngrams(
        columns,
        directory,
        reward._probes,
        ops.convert_to_tensor(quads.astype("int32")),
        4,
    )
    for n, number in enumerate(map(to_numpy, numbers), start=1):
        expected = [frequency[tuple(map(str, quad[:n]))] for quad in quads]
        expected = np.log(len(corpus)) - np.log(np.maximum(expected, 1))
        result = to_numpy(idf)[number[:, 0]]
        np.testing.assert_allclose(result, expected, rtol=1e-6)
        assert (number[:, 0] == ngrams.UNKNOWN).any()
