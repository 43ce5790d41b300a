"""CIDEr-D: by hand, against pycocoevalcap, and what must not change it."""

import json
import math

import keras
import numpy as np
import pytest
from captions import END, PAD, random_captions, words_of
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from keras import ops
from pycocoevalcap.cider.cider_scorer import CiderScorer
from tiny import compiled, to_numpy

from keras_reward.rewards.captioning import CIDErReward
from keras_reward.rewards.sequences import LengthReward


def padded(captions, width):
    """Lists of ids as an array."""
    rows = [[*caption, *[PAD] * (width - len(caption))] for caption in captions]
    return np.array(rows, "int32")


def scores(reward, references, candidates):
    """Rewards by the compiled reward, which JAX compiles faster than single ops."""
    return to_numpy(compiled(reward)(references, candidates))


class Corpus(list):
    """References whose length is that of the corpus; pycocoevalcap reads it there."""

    documents = 0

    def __len__(self):
        return self.documents


def pycoco_cider(corpus, references, candidates):
    """CIDEr-D by pycocoevalcap with the document frequencies of a corpus."""
    scorer = CiderScorer()
    for image in corpus:
        scorer += ("", [words_of(caption) for caption in image if caption[0] != PAD])
    scorer.compute_doc_freq()
    frequencies = scorer.document_frequency
    scorer = CiderScorer()
    scorer.document_frequency = frequencies
    scorer.crefs = Corpus()
    scorer.crefs.documents = len(corpus)
    for image, candidate in zip(references, candidates, strict=True):
        present = [words_of(caption) for caption in image if caption[0] != PAD]
        scorer += (words_of(candidate), present)
    return np.array(scorer.compute_cider())


def candidates_like(references, seed, tokens):
    """Captions `(images, tokens)`: the first reference with some words replaced."""
    generator = np.random.default_rng(seed)
    width = min(tokens, references.shape[-1])
    ids = np.full((len(references), tokens), PAD, "int32")
    ids[:, :width] = references[:, 0, :width]
    other = generator.random(ids.shape) < 0.2
    return np.where(other, generator.integers(1, 70, ids.shape), ids).astype("int32")


@pytest.fixture(scope="module")
def corpus():
    return random_captions(0, images=300, references=5, tokens=16)


# Worked out by hand. No word of the references is in another image, so that all have
# the same idf, which cancels; the end token is in every image and has idf 0.

HAND_CORPUS = [[[5, 6, 7, 8, END]], [[20, END]], [[21, END]]]
WHOLE = [5, 6, 7, 8, END]
HAND = {
    # name: (references, candidate, plain score, score with the end token)
    "equal": ([WHOLE], WHOLE, 10.0, 10.0),
    # Bigrams 3 / sqrt(3 * 4), trigrams 2 / sqrt(2 * 3), 4-grams 1 / sqrt(1 * 2), and
    # one bigram short: exp(-1 / 72).
    "breaks off": ([WHOLE], [5, 6, 7, 8, PAD], 10.0, 8.35719),
    "empty": ([WHOLE], [END, PAD, PAD, PAD, PAD], 0.0, 0.0),
    "empty by padding": ([WHOLE], [PAD, 5, 6, 7, 8], 0.0, 0.0),
    "unknown words": ([WHOLE], [90, 91, 92, -7, END], 0.0, 0.0),
    # Words 2 / sqrt(2 * 4), bigrams 1 / sqrt(1 * 3), then none; two bigrams short.
    # With the end token: bigrams 1 / sqrt(2 * 4), no common trigram.
    "first two": ([WHOLE], [5, 6, END, 7, 8], 3.03761, 2.50835),
    # Clipped: min(4, 1) / (4 * 2). With the end token the bigram count is right too.
    "one word": ([WHOLE], [5, 5, 5, 5, END], 0.3125, 0.3125),
    "two references": ([WHOLE, [20, END]], WHOLE, 5.0, 5.0),
    "empty reference": ([WHOLE, [END]], WHOLE, 5.0, 5.0),
    "absent reference": ([WHOLE, [PAD]], WHOLE, 10.0, 10.0),
    "no reference": ([[PAD], [PAD]], WHOLE, 0.0, 0.0),
}


@pytest.mark.parametrize("count_end_token", [False, True])
def test_scores_worked_out_by_hand(count_end_token):
    reward = CIDErReward(end_id=END, count_end_token=count_end_token)
    reward.adapt(np.stack([padded(image, 5) for image in HAND_CORPUS]))
    references = [[*case[0], [PAD]][:2] for case in HAND.values()]
    references = np.stack([padded(image, 5) for image in references])
    candidates = np.array([case[1] for case in HAND.values()])
    expected = [case[3 if count_end_token else 2] for case in HAND.values()]
    result = scores(reward, references, candidates)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)
    assert result.dtype == "float32"


def test_rare_words_weigh_more():
    # idf of 5 is log 4/2, of 6 and of an unknown word log 4: twice as much. The words
    # 5 6 and 5 9 have vectors (1, 2, 0) and (1, 0, 2): cosine 1/5. No bigram in common.
    images = [[[5, 6]], [[5, 7]], [[8, 7]], [[8, 8]]]
    reward = CIDErReward()
    reward.adapt(np.array(images))
    result = scores(reward, np.array([[[5, 6]]]), np.array([[5, 9]]))
    np.testing.assert_allclose(result, [10 / 4 / 5], rtol=1e-5)


def test_captions_shorter_than_four_tokens():
    reward = CIDErReward()
    reward.adapt(np.array([[[5, 6, 7, 8]], [[9, 10, 11, 12]]]))
    # sqrt(3)/2, 2/sqrt(6), 1/sqrt(2) and no 4-gram; one bigram short.
    result = scores(reward, np.array([[[5, 6, 7, 8]]]), np.array([[5, 6, 7]]))
    np.testing.assert_allclose(result, [5.89167], rtol=1e-5)
    result = scores(reward, np.array([[[5]]]), np.array([[5]]))
    np.testing.assert_allclose(result, [2.5], rtol=1e-5)  # one order of four


def test_a_corpus_of_one_image_weighs_nothing_and_warns():
    reward = CIDErReward()
    with pytest.warns(UserWarning, match="'cider'.*one image.*all training images"):
        reward.adapt(np.array([[[5, 6, 7, 8]]]))
    assert scores(reward, np.array([[[5, 6, 7, 8]]]), np.array([[5, 6, 7, 8]])) == [0]


@pytest.mark.slow
@pytest.mark.parametrize(("count", "tokens", "width"), [(2000, 18, 16), (150, 20, 75)])
def test_equals_pycocoevalcap(corpus, count, tokens, width):
    references = random_captions(1, count, 5, width)
    candidates = candidates_like(references, 2, tokens)
    expected = pycoco_cider(corpus, references, candidates)
    assert (expected > 1.0).mean() > 0.1 and (expected == 0.0).any()
    reward = CIDErReward(end_id=END, count_end_token=False)
    reward.adapt(corpus)
    result = scores(reward, references, candidates)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)


def test_scoring_the_end_token_makes_it_a_word(corpus):
    """As if the end token were any other id, with which references always end."""
    references = random_captions(3, 100, 4, 9)
    candidates = candidates_like(references, 4, 11)

    def with_word(ids, always):
        ids = np.pad(ids, [(0, 0)] * (ids.ndim - 1) + [(0, 2)])
        for caption in ids.reshape(-1, ids.shape[-1]):
            n = len(words_of(caption).split())
            ended = caption[n] == END
            present = caption[0] != PAD
            caption[n:] = PAD
            caption[n] = 99 if ended or (always and present) else PAD
        return ids

    reward = CIDErReward(end_id=END)
    reward.adapt(corpus)
    expected = pycoco_cider(
        with_word(corpus, True),
        with_word(references, True),
        with_word(candidates, False),
    )
    result = scores(reward, references, candidates)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)
    unended = np.where(references == END, PAD, references)
    unended[references[..., 0] == END, 0] = END  # still an empty reference
    again = scores(reward, unended, candidates)
    np.testing.assert_allclose(again, result, rtol=1e-6)


@pytest.mark.slow
def test_padding_may_be_the_end_token(corpus):
    def same(ids):
        return np.where(ids == PAD, END, ids)

    references = random_captions(3, 100, 4, 9)
    references[references[..., 0] == END] = PAD  # absent in both forms
    corpus = np.where(corpus[..., :1] == END, PAD, corpus)
    candidates = candidates_like(references, 4, 11)
    results = []
    for count_end_token in (True, False):
        one = CIDErReward(END, PAD, count_end_token)
        one.adapt(corpus)
        two = CIDErReward(END, END, count_end_token)
        two.adapt(same(corpus))
        # Every candidate ends, in the one form with END and in the other with padding.
        ended = np.pad(candidates, ((0, 0), (0, 1)))
        n = [len(words_of(caption).split()) for caption in ended]
        ended[np.arange(len(ended)), n] = END
        results.append(scores(one, references, ended))
        again = scores(two, same(references), same(ended))
        np.testing.assert_allclose(again, results[-1], rtol=1e-6)
    assert (results[0] != results[1]).mean() > 0.5


def test_references_are_prepared_once_for_all_samples(corpus):
    reward = CIDErReward(end_id=END)
    reward.adapt(corpus)
    references = random_captions(1, 6, 5, 9)
    candidates = candidates_like(np.repeat(references, 2, axis=0), 2, 11)

    def score_prepared(references, candidates):
        prepared = keras.tree.map_structure(
            lambda tensor: ops.repeat(tensor, 2, axis=0), reward.prepare(references)
        )
        return reward.evaluate(prepared, candidates)[0]

    result = to_numpy(compiled(score_prepared)(references, candidates))
    expected = scores(reward, np.repeat(references, 2, axis=0), candidates)
    np.testing.assert_allclose(result, expected, rtol=1e-6)


# What changes nothing.

IDS = st.integers(-1, 6)
references_of = arrays("int32", (4, 3, 6), elements=IDS)
candidates_of = arrays("int32", (4, 7), elements=IDS)


@pytest.fixture(scope="module")
def small():
    """A reward adapted to short captions of few words, eager and compiled."""
    reward = CIDErReward(end_id=END)
    generator = np.random.default_rng(0)
    reward.adapt(generator.integers(-1, 7, (40, 3, 6)))
    return reward, compiled(reward), compiled(reward, xla=True)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(references_of, candidates_of, st.permutations(range(3)))
def test_permuting_references_changes_nothing(small, references, candidates, order):
    _, score, _ = small
    expected = to_numpy(score(references, candidates))
    result = to_numpy(score(references[:, order], candidates))
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(references_of, candidates_of)
def test_padding_changes_nothing(small, references, candidates):
    _, score, _ = small
    expected = to_numpy(score(references, candidates))
    references = np.pad(references, ((0, 0), (0, 1), (0, 3)))
    result = to_numpy(score(references, np.pad(candidates, ((0, 0), (0, 2)))))
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(references_of, candidates_of, st.integers(0, 6), IDS, IDS)
def test_what_follows_the_end_changes_nothing(
    small, references, candidates, at, word, other
):
    _, score, _ = small
    candidates[:, at] = references[:, :, min(at, 5)] = END
    expected = to_numpy(score(references, candidates))
    candidates[:, at + 1 :] = word
    references[:, :, min(at, 5) + 1 :] = other
    result = to_numpy(score(references, candidates))
    np.testing.assert_allclose(result, expected, rtol=1e-6, atol=1e-7)


any_int = st.integers(-(2**31), 2**31 - 1) | IDS


@pytest.mark.slow
@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    arrays("int32", (4, 3, 6), elements=any_int),
    arrays("int32", (4, 7), elements=any_int),
)
def test_finite_and_the_same_compiled_for_any_ids(small, references, candidates):
    reward, score, through_xla = small
    eager = to_numpy(reward(references, candidates))
    assert np.isfinite(eager).all()
    assert (eager >= 0.0).all() and (eager <= 10.0 + 1e-4).all()
    for function in (score, through_xla):
        result = to_numpy(function(references, candidates))
        np.testing.assert_allclose(result, eager, rtol=1e-5, atol=1e-5)


def test_any_integer_dtype_serves(small):
    reward, _, _ = small
    references = random_captions(1, 4, 3, 6, vocabulary=5)
    candidates = candidates_like(references, 2, 7)
    expected = scores(reward, references, candidates)
    for dtype in ("int64", "uint8", "int16"):
        result = scores(reward, references.astype(dtype), candidates.astype(dtype))
        np.testing.assert_array_equal(result, expected)


def test_traces_for_an_unknown_number_of_rows(small):
    class Score(keras.Operation):
        def call(self, references, candidates):
            return small[0].evaluate(small[0].prepare(references), candidates)[0]

    references = keras.KerasTensor((None, 3, 6), "int32")
    candidates = keras.KerasTensor((None, 7), "int32")
    result = Score().compute_output_spec(references, candidates)
    assert tuple(result.shape) == (None,)
    assert result.dtype == "float32"


# Adapting.


def same_variables(one, two):
    assert len(one.variables) == len(two.variables) == 5
    return all(
        a.shape == b.shape and (to_numpy(a) == to_numpy(b)).all()
        for a, b in zip(one.variables, two.variables, strict=True)
    )


class Batches(keras.utils.PyDataset):
    """Batches `(x, y)`, the second of other shapes than the first."""

    def __init__(self, corpus):
        super().__init__()
        narrow = corpus[100:]
        narrow = np.pad(narrow, ((0, 0), (0, 2), (0, 5)))
        self.batches = [corpus[:100], narrow]

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return np.zeros(1), self.batches[index].astype("int64")


def test_adapting_in_batches_is_adapting_at_once(corpus):
    once = CIDErReward(end_id=END)
    once.adapt(corpus)
    for batches in (
        [corpus[:7], corpus[7:]],
        (ops.convert_to_tensor(half) for half in np.split(corpus, 2)),
        Batches(corpus),
    ):
        reward = CIDErReward(end_id=END)
        reward.adapt(batches)
        assert same_variables(reward, once)


def test_adapting_again_forgets(corpus):
    once, twice = CIDErReward(end_id=END), CIDErReward(end_id=END)
    once.adapt(corpus[:100])
    twice.adapt(corpus)
    assert not same_variables(once, twice)
    twice.adapt(corpus[:100])
    assert same_variables(once, twice)


def test_images_without_captions_are_no_documents(corpus):
    once, padded_corpus = CIDErReward(end_id=END), CIDErReward(end_id=END)
    once.adapt(corpus)
    padded_corpus.adapt(np.concatenate([np.zeros_like(corpus[:9]), corpus]))
    assert same_variables(once, padded_corpus)


def test_tables_are_variables_that_a_compiled_step_can_be_given(corpus):
    reward = CIDErReward(end_id=END)
    assert reward.variables == []
    reward.adapt(corpus)
    assert not any(variable.trainable for variable in reward.variables)
    *_, idf = reward.variables
    references = random_captions(1, 4, 3, 6)

    @compiled
    def score(idf_values, references, candidates):
        with keras.StatelessScope(state_mapping=[(idf, idf_values)]):
            return reward(references, candidates)

    values = np.array(to_numpy(idf))
    result = to_numpy(score(values, references, references[:, 0]))
    assert (result > 1.0).any()
    again = to_numpy(score(2.0 * values, references, references[:, 0]))
    np.testing.assert_allclose(again, result, rtol=1e-5)  # a cosine
    assert not to_numpy(score(0.0 * values, references, references[:, 0])).any()


def test_survives_serialisation_with_its_variables(corpus):
    reward = CIDErReward(end_id=END, pad_id=PAD, count_end_token=False, name="mine")
    reward.adapt(corpus)
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(reward)))
    copy = keras.saving.deserialize_keras_object(config)
    assert copy.get_config() == reward.get_config()
    for variable, value in zip(copy.variables, reward.variables, strict=True):
        variable.assign(value)
    references = random_captions(1, 6, 5, 9)
    candidates = candidates_like(references, 2, 11)
    expected = scores(reward, references, candidates)
    assert expected.any()
    np.testing.assert_array_equal(scores(copy, references, candidates), expected)


def test_survives_serialisation_before_it_is_adapted():
    config = keras.saving.serialize_keras_object(CIDErReward(end_id=END))
    copy = keras.saving.deserialize_keras_object(config)
    assert (copy.name, copy.end_id, copy.variables) == ("cider", END, [])


# Errors.


def test_using_it_before_adapt_says_so():
    reward = CIDErReward(end_id=END)
    references, candidates = np.ones((2, 3, 4), "int32"), np.ones((2, 4), "int32")
    for use in (
        lambda: reward(references, candidates),
        lambda: reward.prepare(references),
    ):
        with pytest.raises(ValueError, match=r"'cider'.*`reward.adapt\(references\)`"):
            use()


@pytest.mark.parametrize(
    ("references", "candidates", "message"),
    [
        (np.ones((4, 3, 6), "float32"), np.ones((4, 7), "int32"), "float32"),
        (np.ones((4, 3, 6), "int32"), np.ones((4, 7), "float32"), "float32"),
        (np.ones((4, 3, 6), "bool"), np.ones((4, 7), "int32"), "bool"),
        (np.ones((4, 7), "int32"), np.ones((4, 7), "int32"), r"shape \(4, 7\)"),
        (np.ones((4, 3, 6), "int32"), np.ones((4, 1, 7), "int32"), r"\(4, 1, 7\)"),
    ],
)
def test_wrong_ids_are_refused_by_name(small, references, candidates, message):
    with pytest.raises(ValueError, match=f"'cider' needs .* ids.*Received.*{message}"):
        small[0](references, candidates)


def test_adapting_to_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one caption"):
        CIDErReward().adapt(np.zeros((3, 2, 4), "int32"))
    with pytest.raises(ValueError, match="at least one caption"):
        CIDErReward().adapt([])
    with pytest.raises(ValueError, match=r"references.*Received: shape \(3, 4\)"):
        CIDErReward().adapt(np.ones((3, 4), "int32"))


# Two images: the first has two references, of different lengths. Worked out by hand:
# the end token is in both images and weighs nothing; each other word is in one, so that
# all weigh the same. The first caption equals the first reference, and shares 5, 6 and
# 56 with the second. An n-gram with an end weighs as much as one without: it is rare.
FORMS = np.array([[[5, 6, 7, 1], [5, 6, 1, 0]], [[2, 3, 4, 1], [0, 0, 0, 0]]])
RAGGED = [[[5, 6, 7, 1], [5, 6, 1]], [[2, 3, 4, 1]]]
OWN = np.array([[5, 6, 7, 1], [2, 3, 4, 1]])


def forms_by_hand():
    """CIDEr-D of `OWN`: 10 / (orders * references) * sum of clipped cosines."""
    words = 2 / math.sqrt(3 * 2)
    bigrams = 1 / math.sqrt(3 * 2)
    second = (words + bigrams) * math.exp(-1 / 72)
    return [10 / 4 * (4 + second) / 2, 10.0]


@pytest.mark.parametrize(
    "references",
    [
        FORMS,
        np.where(FORMS == 0, -100, FORMS),
        np.where(FORMS == 0, -1, FORMS),
        RAGGED,
        np.array([np.array(r, object) for r in RAGGED], object),
    ],
    ids=["zeros", "-100", "-1", "lists", "objects"],
)
def test_padding_by_negative_ids_and_ragged_lists(references):
    for corpus in (references, [references, references], iter([(None, references)])):
        reward = CIDErReward(end_id=1)
        reward.adapt(corpus)
        result = to_numpy(reward(references, OWN))
        np.testing.assert_allclose(result, forms_by_hand(), rtol=1e-5)
    total = CIDErReward(end_id=1) + LengthReward(2, 9, end_id=1)
    total.rewards[0].adapt(references)
    result = to_numpy(total(references, OWN.tolist()))
    np.testing.assert_allclose(result, forms_by_hand(), rtol=1e-5)


def test_ragged_lists_of_anything_but_integers_are_refused():
    with pytest.raises(ValueError, match=r"Pad lists.*\(2, 2\)"):
        CIDErReward()([[1.5, 2.0], [3.5]], OWN)


def test_negative_ids_end_captions_too():
    result = to_numpy(
        LengthReward(2, 2)(None, np.array([[5, 6, -100, 7], [5, -1, 0, 0]]))
    )
    np.testing.assert_array_equal(result, [0.0, -1.0])


@pytest.mark.parametrize("shape", [(2, 0, 4), (2, 3, 0), (2, 0, 0)])
def test_a_batch_without_references_earns_nothing(shape):
    """Images that have none are padded to the most that an image of the batch has."""
    reward = CIDErReward(end_id=END)
    reward.adapt(np.array([[[5, 6, END]], [[5, 7, END]]]))
    candidates = np.array([[5, 6, END], [5, 7, END]])
    assert scores(reward, np.zeros(shape, "int32"), candidates).tolist() == [0, 0]
