"""Dataset-level CIDEr-D: against pycocoevalcap, from ids and from text."""

import math

import keras
import numpy as np
import pytest
from pycocoevalcap.cider.cider import Cider as CocoCider
from tiny import compiled, to_numpy

from keras_reward.evaluation.cider import Cider, cider
from keras_reward.rewards.captioning import CIDErReward

PAD, END = 0, 1


def random_ids(seed, *shape):
    """Ids of frequent and rare words, ended and padded; the first word is a word."""
    generator = np.random.default_rng(seed)
    ids = np.minimum(generator.zipf(1.4, shape), 60) + 1
    ids += ids == END
    lengths = generator.integers(1, shape[-1] + 1, shape[:-1])[..., None]
    position = np.arange(shape[-1])
    ids = np.where(position < lengths, ids, PAD)
    return np.where(position == lengths, END, ids)


def as_text(ids):
    return " ".join(str(token) for token in ids if token not in (PAD, END))


def coco_cider(references, candidates):
    """pycocoevalcap's score, of text."""
    truth = dict(enumerate(references))
    result = {i: [candidate] for i, candidate in enumerate(candidates)}
    return CocoCider().compute_score(truth, result)


@pytest.fixture(scope="module")
def data():
    references = random_ids(0, 80, 4, 12)
    references[::3, 2:] = PAD  # absent
    candidates = references[:, 0].copy()
    other = np.random.default_rng(1).random(candidates.shape) < 0.2
    candidates = np.where(other, random_ids(2, 80, 12), candidates)
    for row in candidates:
        row[np.argmax(np.isin([*row, END], [PAD, END])) :] = END
    return references, candidates


def texts(references, candidates):
    present = [[as_text(r) for r in image if r[0] != PAD] for image in references]
    return present, [as_text(caption) for caption in candidates]


def test_equals_pycocoevalcap_on_ids_and_on_text(data):
    mean, per_image = coco_cider(*texts(*data))
    assert mean > 0.5
    for result in (cider(*data, end_id=END), cider(*texts(*data))):
        assert set(result) == {"cider", "per_image"}
        assert result["cider"] == pytest.approx(mean, rel=1e-6)
        np.testing.assert_allclose(result["per_image"], per_image, rtol=1e-6, atol=1e-9)


def test_batches_of_any_shape_and_a_reset(data):
    expected = cider(*data, end_id=END)
    metric = Cider(end_id=END)
    metric.update_state(data[0][:5], data[1][:5])
    metric.reset_state()
    references = keras.ops.convert_to_tensor(data[0][:30])
    metric.update_state(references, keras.ops.convert_to_tensor(data[1][:30]))
    wide = np.pad(data[0][30:], ((0, 0), (0, 1), (0, 3)))
    metric.update_state(wide, np.pad(data[1][30:], ((0, 0), (0, 2))))
    result = metric.result()
    assert result["cider"] == pytest.approx(expected["cider"], rel=1e-12)
    np.testing.assert_allclose(result["per_image"], expected["per_image"], rtol=1e-12)


@pytest.mark.parametrize("count_end_token", [False, True])
def test_with_the_training_corpus_it_is_the_reward(data, count_end_token):
    corpus = random_ids(3, 200, 4, 10)
    reward = CIDErReward(end_id=END, count_end_token=count_end_token)
    reward.adapt(corpus)
    result = cider(*data, end_id=END, count_end_token=count_end_token, corpus=corpus)
    rewards = to_numpy(compiled(reward)(*data))
    np.testing.assert_allclose(result["per_image"], rewards, rtol=1e-4, atol=1e-5)
    assert result["cider"] != pytest.approx(cider(*data, end_id=END)["cider"], rel=1e-3)


def test_worked_out_by_hand():
    # All words of an image are its own, but "a": idf 0 there, log 2 elsewhere.
    references = [["a dog runs", "a cat"], ["a red car stops"]]
    result = cider(references, ["a dog runs", "red car"])
    # "a dog runs": 3 orders of 4 with its equal; nothing in common with "a cat".
    # "red car": words 2 / sqrt(2 * 3), bigrams 1 / sqrt(1 * 3), two bigrams short.
    second = (2 / math.sqrt(6) + 1 / math.sqrt(3)) / 4 * math.exp(-4 / 72)
    np.testing.assert_allclose(result["per_image"], [10 * 3 / 4 / 2, 10 * second])
    assert result["cider"] == pytest.approx((3.75 + 10 * second) / 2)


def test_images_without_references_are_not_scored():
    references = [["a dog runs"], [], ["a red car"]]
    result = cider(references, ["a dog runs", "a dog", "a red car"])
    np.testing.assert_allclose(result["per_image"], [7.5, np.nan, 7.5])
    assert result["cider"] == pytest.approx(7.5)
    assert math.isnan(Cider().result()["cider"])


def test_empty_captions_and_references():
    references = np.array([[[5, 6, END], [END, PAD, PAD], [PAD, PAD, PAD]]] * 2)
    references[1] += 2 * (references[1] > END)
    candidates = np.array([[5, 6, END], [END, PAD, PAD]])
    result = cider(references, candidates, end_id=END)
    np.testing.assert_allclose(
        result["per_image"], [2.5, 0.0]
    )  # 2 orders, 2 references


def test_wrong_captions_are_refused():
    with pytest.raises(ValueError, match="float64"):
        cider(np.zeros((2, 3, 4)), np.zeros((2, 4), "int32"))
    with pytest.raises(ValueError, match=r"captions.*\(2, 1, 4\)"):
        cider(np.zeros((2, 3, 4), "int32"), np.zeros((2, 1, 4), "int32"))
    with pytest.raises(ValueError, match="references of 2 and captions of 1"):
        cider([["a"], ["b"]], ["a"])


# As worked out by hand above; "a" is in both images.
WORDS = [["a dog runs", "a cat"], ["a red car stops"]]
SAID = ["a dog runs", "red car"]
PADDED = [["a dog runs", "a cat"], ["a red car stops", ""]]
BY_HAND = [3.75, 10 * (2 / math.sqrt(6) + 1 / math.sqrt(3)) / 4 * math.exp(-4 / 72)]


@pytest.mark.parametrize(
    ("references", "captions"),
    [
        (WORDS, np.array(SAID)),
        (WORDS, [caption.encode() for caption in SAID]),
        (np.array(PADDED), np.array(SAID, object)),
        (np.array(PADDED).astype("S"), np.array(SAID).astype("S")),
        (np.array(PADDED, object), tuple(SAID)),
        ([np.array(image) for image in WORDS], SAID),
        (np.array([np.array(i, object) for i in WORDS], object), SAID),
    ],
)
def test_strings_in_any_container(references, captions):
    result = cider(references, captions)["per_image"]
    np.testing.assert_allclose(result, BY_HAND, rtol=1e-6)


@pytest.mark.parametrize(
    ("references", "captions"),
    [
        ([[[2, 3, 4], [2, 5]], [[2, 6, 7, 8]]], [[2, 3, 4], [6, 7]]),
        ([[[], [2, 3, 4], [2, 5]], [[2, 6, 7, 8]]], [np.array([2, 3, 4]), [6, 7]]),
        (
            [[[2, 3, 4, -100], [2, 5, -100, 9]], [[2, 6, 7, 8], [-100] * 4]],
            np.array([[2, 3, 4], [6, 7, -100]]),
        ),
    ],
    ids=["ragged", "empty", "-100"],
)
def test_ids_in_ragged_lists_and_with_negative_padding(references, captions):
    result = cider(references, captions)["per_image"]
    np.testing.assert_allclose(result, BY_HAND, rtol=1e-6)


def test_an_empty_string_is_a_caption_but_no_reference():
    result = cider(np.array(PADDED), np.array(["", "red car"]))["per_image"]
    np.testing.assert_allclose(result, [0.0, BY_HAND[1]], rtol=1e-6)


def test_one_image_has_no_score_and_warns():
    with pytest.warns(UserWarning, match="one image is 0"):
        assert cider(WORDS[:1], SAID[:1])["cider"] == 0.0
