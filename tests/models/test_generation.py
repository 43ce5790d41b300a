"""Sampling, greedy decoding and beam search over a sequence model."""

import itertools
import re

import keras
import numpy as np
import pytest
from chance import counts_within_chance
from keras import ops
from test_models import LENGTH, sequence_model, shared_model, some_images
from tiny import compiled, to_numpy

from keras_reward.models import generation

pytestmark = pytest.mark.slow

START, END, PAD = 0, 1, 0


class TableModel(keras.Model):
    """A sequence model that is a table: P(token | image, position, tokens before).

    An input is the index of its table. The tokens before count by their sum, modulo the
    vocabulary, and are kept in the cache alone.
    """

    start_id, pad_id = START, PAD

    def __init__(self, tables, end_id=END):
        super().__init__()
        # Probabilities (images, positions, sums, tokens).
        self.tables = np.asarray(tables, "float32")
        self.max_length, self.vocabulary_size = self.tables.shape[1:3]
        self.end_id = end_id
        self.built = True

    def encode(self, x, training=False):
        return ops.take(ops.convert_to_tensor(self.tables), x, axis=0)

    def start_cache(self, context, n):
        rows = ops.shape(context)[0] * n
        return {"seen": ops.zeros((rows, self.max_length), dtype="int32")}

    def next_hidden(self, context, cache, token_ids, position):
        rows = ops.reshape(token_ids, (-1, 1))
        seen = ops.slice_update(cache["seen"], (0, position), rows)
        n, words = token_ids.shape[1], self.vocabulary_size
        sums = ops.reshape(ops.sum(seen, axis=1), (-1, n, 1)) % words
        now = ops.take(context, position, axis=1)
        hidden = ops.take_along_axis(now, ops.cast(sums, "int32"), axis=1)
        return hidden, {"seen": seen}

    def logits(self, hidden):
        return ops.log(hidden)


def random_tables(images=2, length=4, words=3, seed=0):
    shape = (images, length, words, words)
    tables = np.random.default_rng(seed).uniform(0.05, 1.0, shape)
    return tables / tables.sum(-1, keepdims=True)


def all_sequences(length, words, end_id=END):
    """Every sequence there is: cut after the first end token, then padded."""
    sequences = set()
    for ids in itertools.product(range(words), repeat=length):
        stop = ids.index(end_id) + 1 if end_id in ids else length
        sequences.add(ids[:stop] + (PAD,) * (length - stop))
    return sorted(sequences)


def log_prob(table, ids, end_id=END):
    """Log-probability of one sequence under one table."""
    total, seen = 0.0, START
    for row, token in zip(table, ids, strict=True):
        total += np.log(row[seen % len(row), token])
        seen += token
        if token == end_id:
            break
    return total


def eager(function, model, x, *args, **kwargs):
    """`function(model, context, ...)` as NumPy arrays."""
    result = function(model, model.encode(x), *args, **kwargs)
    return keras.tree.map_structure(to_numpy, result)


INPUTS = np.array([0, 1], "int32")


# Greedy.


def test_greedy_takes_the_likeliest_token_each_time():
    tables = random_tables(length=5)
    model = TableModel(tables)
    expected = np.full((2, 5), PAD)
    for row, table in enumerate(tables):
        seen = START
        for position in range(5):
            token = table[position, seen % 3].argmax()
            expected[row, position] = token
            seen += token
            if token == END:
                break
    ids = generation.generate(model, INPUTS, temperature=0)
    assert ids.dtype == np.int32
    np.testing.assert_array_equal(ids, expected)


# Sampling.


def test_every_backend_draws_the_tokens_of_the_same_numbers():
    """Inverted here by searching the cumulative sums, in NumPy."""
    tables, model = random_tables(), TableModel(random_tables())
    ids = generation.generate(model, INPUTS, num_samples=3, seed=5)
    uniform = np.random.default_rng(5).random((2, 3, 4), dtype="float32")
    expected = np.full((2, 3, 4), PAD)
    for image, sample in np.ndindex(2, 3):
        seen = START
        for position in range(4):
            row = tables[image, position, seen % 3]
            token = np.searchsorted(
                row.cumsum(), uniform[image, sample, position], "right"
            )
            expected[image, sample, position] = token
            seen += token
            if token == END:
                break
    np.testing.assert_array_equal(ids, expected)


@pytest.mark.chance
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_sequences_come_as_often_as_they_are_probable(temperature):
    tables = random_tables(length=2)
    draws = 4000
    ids = generation.generate(
        TableModel(tables), INPUTS, draws, temperature=temperature, seed=0
    )
    sharp = tables ** (1 / temperature)
    sharp /= sharp.sum(-1, keepdims=True)
    sequences = all_sequences(2, 3)
    for image in INPUTS:
        p = np.exp([log_prob(sharp[image], ids) for ids in sequences])
        np.testing.assert_allclose(p.sum(), 1.0)
        counts = [(ids[image] == s).all(-1).sum() for s in sequences]
        assert counts_within_chance(counts, draws, p)


@pytest.mark.chance
def test_a_seed_repeats_and_none_does_not():
    model = TableModel(random_tables(length=8))
    draw = [
        generation.generate(model, INPUTS, 4, seed=s) for s in (1, 1, 2, None, None)
    ]
    np.testing.assert_array_equal(draw[0], draw[1])
    for a, b in itertools.combinations(draw[1:], 2):
        assert (a != b).any()


# The end.


def ending_tables(ends, length=6):
    """Tables whose sequence ends, for certain, with as many tokens as `ends` says."""
    tables = np.zeros((len(ends), length, 3, 3))
    tables[..., 2] = 1.0
    for table, end in zip(tables, ends, strict=True):
        table[end - 1 : end] = np.eye(3)[END]
    return np.clip(tables, 1e-30, 1.0)


@pytest.mark.parametrize("settings", [{}, {"temperature": 0}, {"beam_width": 2}])
def test_padding_stands_after_the_end(settings):
    model = TableModel(ending_tables([1, 3, 6, 7]))
    ids = generation.generate(model, np.arange(4, dtype="int32"), **settings)
    np.testing.assert_array_equal(
        ids,
        [
            [END] + [PAD] * 5,
            [2, 2, END, PAD, PAD, PAD],
            [2] * 5 + [END],
            [2] * 6,  # never ends
        ],
    )


@pytest.mark.parametrize(
    ("ends", "steps"), [([1, 1], 1), ([1, 3], 3), ([6, 2], 6), ([7, 1], 6)]
)
def test_it_stops_when_every_row_has_ended(ends, steps):
    model = TableModel(ending_tables(ends))
    noise = np.random.default_rng(0).random((2, 3, 6)).astype("float32")
    for options in ({}, {"noise": noise}):
        assert eager(generation.sample, model, INPUTS, 3, **options)[1] == steps
    assert eager(generation.beam_search, model, INPUTS, 2)[2] == steps


def test_without_an_end_token_nothing_ends():
    tables = ending_tables([1, 3])
    ids = generation.generate(TableModel(tables, end_id=None), INPUTS, temperature=0)
    np.testing.assert_array_equal(ids, [[1, 2, 2, 2, 2, 2], [2, 2, 1, 2, 2, 2]])


def test_a_row_does_not_depend_on_its_batch_mates():
    """One mate ends at once; with the other, all steps are taken."""
    tables = np.concatenate([random_tables(1, 6), ending_tables([1, 7])])
    model = TableModel(tables)
    for settings in ({"num_samples": 3, "seed": 1}, {"beam_width": 3}):
        first, second = (
            generation.generate(model, np.array([0, mate], "int32"), **settings)[0]
            for mate in (1, 2)
        )
        np.testing.assert_array_equal(first, second)


# Beam search.


def test_a_beam_of_one_is_greedy():
    tables = random_tables(images=16, length=6, words=5)
    model, x = TableModel(tables), np.arange(16, dtype="int32")
    np.testing.assert_array_equal(
        generation.generate(model, x, beam_width=1),
        generation.generate(model, x, temperature=0),
    )


def test_a_wide_beam_finds_the_likeliest_sequence():
    """Of a vocabulary of 3 and 4 tokens, all 31 sequences are known."""
    tables = random_tables(images=8)
    x = np.arange(8, dtype="int32")
    ids, scores, _ = eager(generation.beam_search, TableModel(tables), x, 16)
    sequences = all_sequences(4, 3)
    assert len(sequences) == 31
    for image in x:
        exact = [log_prob(tables[image], ids) for ids in sequences]
        np.testing.assert_array_equal(ids[image], sequences[np.argmax(exact)])
        np.testing.assert_allclose(scores[image], max(exact), atol=1e-5)
    found = generation.generate(TableModel(tables), x, beam_width=16)
    np.testing.assert_array_equal(found, ids)


def test_a_beam_finds_what_greedy_decoding_misses():
    """0.6 * 0.5 * 0.9 by the likeliest first token, 0.4 * 1 * 1 by the other one.

    The other one's sequence overtakes, and must take its cache along.
    """
    first = [[0.6, 0.0, 0.4]] * 3
    second = [[0.5, 0.3, 0.2], [0.0, 0.0, 1.0], [0.0, 0.0, 1.0]]
    third = [[0.9, 0.0, 0.1], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    table = np.array([first, second, third]) + 1e-30
    model, x = TableModel(table[None]), np.zeros(1, "int32")
    greedy = generation.generate(model, x, temperature=0)
    np.testing.assert_array_equal(greedy, [[0, 0, 0]])
    beam = generation.generate(model, x, beam_width=2)
    np.testing.assert_array_equal(beam, [[2, 2, 2]])
    scores = eager(generation.beam_search, model, x, 2)[1]
    np.testing.assert_allclose(np.exp(scores), [0.4], atol=1e-5)


def test_a_finished_sequence_is_kept_while_others_grow():
    """Ending at once has 0.45; what begins with 2 has 0.55 and falls to 0.55 * 0.6."""
    first, later = [0.0, 0.45, 0.55], [0.0, 0.4, 0.6]
    table = np.array([[first] * 3, [later] * 3, [later] * 3]) + 1e-30
    ids, scores, steps = eager(
        generation.beam_search, TableModel(table[None]), np.zeros(1, "int32"), 2
    )
    np.testing.assert_array_equal(ids, [[END, PAD, PAD]])
    np.testing.assert_allclose(np.exp(scores), [0.45], atol=1e-5)
    assert steps == 2  # nothing can overtake it then


# The vision encoder-decoder.


def teacher_forced_log_probs(model, x, ids):
    """Log-probability of each sequence `(batch, n, T)`, in one pass and NumPy."""
    starts = np.full((*ids.shape[:2], 1), model.start_id)
    inputs = np.concatenate([starts, ids[..., :-1]], axis=-1).astype("int32")
    hidden = compiled(lambda x, i: model.hidden_states(model.encode(x), i))(x, inputs)
    logits = np.float64(to_numpy(model.logits(hidden)))
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    tokens = np.take_along_axis(log_probs, ids[..., None], axis=-1)[..., 0]
    ended = np.cumsum(ids == model.end_id, axis=-1) - (ids == model.end_id)
    return (tokens * (ended == 0)).sum(-1)


def test_a_wide_beam_finds_the_likeliest_sequence_of_a_real_model():
    model, images = sequence_model(words=3, length=4, seed=3), some_images()
    sequences = np.array(all_sequences(4, 3), "int32")
    exact = teacher_forced_log_probs(model, images, np.stack([sequences] * 2))
    np.testing.assert_allclose(np.exp(exact).sum(-1), 1.0, atol=1e-4)
    search = compiled(lambda x: generation.beam_search(model, model.encode(x), 27)[:2])
    ids, scores = map(to_numpy, search(images))
    np.testing.assert_array_equal(ids, sequences[exact.argmax(-1)])
    np.testing.assert_allclose(scores, exact.max(-1), atol=1e-4)


def test_samples_have_shapes_and_ids_as_documented():
    model, images = shared_model(), some_images()
    one = model.generate(images, seed=0)
    assert one.shape == (2, LENGTH)
    assert one.dtype == np.int32
    several = model.generate({"images": images}, num_samples=3, seed=0)
    assert several.shape == (2, 3, LENGTH)
    again = model.generate({"images": images}, num_samples=3, seed=0)
    np.testing.assert_array_equal(several, again)


@pytest.mark.parametrize(
    ("images", "shape"),
    [
        ([[0.5, 0.5]], r"\(1, 2\)"),
        ([np.zeros((8, 8, 3)), np.zeros((4, 8, 3))], r"\(2,\)"),
        ({"images": [np.zeros((4, 8, 3))]}, r"\(1, 4, 8, 3\)"),
        (0.5, r"\(\)"),
    ],
)
def test_images_of_the_wrong_shape_are_refused(images, shape):
    with pytest.raises(ValueError, match=rf"Resize yours.*images of shape {shape}"):
        shared_model().generate(images)


def test_images_may_come_in_a_list():
    images = some_images()
    expected = shared_model().generate(images, temperature=0)
    ids = shared_model().generate(list(images), temperature=0)
    np.testing.assert_array_equal(ids, expected)


def test_a_temperature_is_a_number_that_a_compiled_function_is_given():
    model = TableModel(random_tables())
    for temperature in (0.5, 0.7, 1.0, 2.0):
        generation.generate(model, INPUTS, 3, temperature)
    assert len(model._compiled_functions) == 1
    cold = generation.generate(model, INPUTS, 50, temperature=1e-4)
    greedy = generation.generate(model, INPUTS, temperature=0)
    np.testing.assert_array_equal(cold, np.repeat(greedy[:, None], 50, axis=1))


def test_compiled_equals_eager():
    model, images = shared_model(), some_images()
    noise = np.random.default_rng(0).random((2, 3, LENGTH), dtype="float32")
    ids, _ = eager(generation.sample, model, images, 3, noise=noise)
    expected = model.generate(images, num_samples=3, seed=0)
    np.testing.assert_array_equal(ids, expected)


def test_generation_sees_new_weights_and_adds_none():
    model, images = sequence_model(), some_images()
    weights = len(model.weights)
    before = model.generate(images, temperature=0)
    other = (before[0, 0] + 1) % 5 + 2  # neither the one it was, nor the end
    model.head.bias.assign(100.0 * np.eye(model.vocabulary_size)[other])
    after = model.generate(images, temperature=0)
    assert (after == other).all()
    assert len(model.weights) == weights


@pytest.mark.parametrize("settings", [{}, {"temperature": 0}, {"beam_width": 2}])
def test_one_token_and_a_vocabulary_of_one(settings):
    model = sequence_model(words=1, length=1, end_id=None)
    ids = model.generate(some_images(), **settings)
    np.testing.assert_array_equal(ids, [[0], [0]])


def test_mixed_precision_generates():
    model = sequence_model(dtype="mixed_bfloat16")
    assert model.generate(some_images()).shape == (2, LENGTH)
    assert model.generate(some_images(), beam_width=2).shape == (2, LENGTH)


CASES = {
    "no samples": ({"num_samples": 0}, "whole number from 1. Received: num_samples=0"),
    "negative temperature": ({"temperature": -1.0}, "at least 0.*temperature=-1.0"),
    "no temperature": ({"temperature": float("nan")}, "at least 0.*temperature=nan"),
    "no beam": ({"beam_width": 0}, "whole number from 1, or None.*beam_width=0"),
    "samples of a beam": (
        {"beam_width": 2, "num_samples": 3},
        "returns one sequence.*num_samples=3",
    ),
    "temperature of a beam": (
        {"beam_width": 2, "temperature": 0.5},
        "returns one sequence.*temperature=0.5",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_errors_say_what_to_do(case):
    settings, message = CASES[case]
    with pytest.raises(ValueError) as error:
        generation.generate(shared_model(), some_images(), **settings)
    assert re.search(message, str(error.value), re.DOTALL)


def test_adapters_that_come_later_are_used():
    model, images = sequence_model(), some_images()
    before = model.generate(images, temperature=0)[:, 0]
    model.head.enable_lora(rank=2)
    generator = np.random.default_rng(0)
    for name in ("lora_kernel_a", "lora_kernel_b"):
        adapter = getattr(model.head, name)
        adapter.assign(generator.normal(size=adapter.shape))
    x = {"images": images, "token_ids": np.full((len(images), 1), model.start_id)}
    first = to_numpy(model(x))[:, 0].argmax(-1)
    assert (first != before).any()
    np.testing.assert_array_equal(model.generate(images, temperature=0)[:, 0], first)
