"""Boxes as tokens: worked out by hand, round trips, and sequences of any tokens."""

import json

import hypothesis.extra.numpy as hnp
import keras
import numpy as np
import pytest
from chance import counts_within_chance
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import compiled, to_numpy

from keras_reward.codecs.boxes import BoxCodec
from keras_reward.forms.boxes import BOX_FORMATS

NAN = float("nan")
quick = settings(max_examples=25, deadline=None, derandomize=True)

# 65 buckets in 64 pixels: bucket b is at b pixels. 2 special ids, so that bucket b is
# token b + 2; class c is token c + 67, "wrong" is 70 and "right" 71.
SMALL = {"num_classes": 3, "image_size": 64, "max_boxes": 3, "num_buckets": 65}
codec = BoxCodec(**SMALL)
endless = BoxCodec(**SMALL, end_id=None)  # class tokens 66 to 68, "nothing" 69
WRONG, RIGHT, END, PAD = 70, 71, 1, 0
BOX = [18, 10, 42, 26, 69, RIGHT]  # y 16 to 40, x 8 to 24, class 2
BOX_XYXY = [8, 16, 24, 40]
OTHER = [2, 2, 66, 66, 67, WRONG]  # the whole image, class 0


def truth(*boxes, **more):
    """Targets of one image from `(left, top, right, bottom, label)` tuples."""
    values = np.array(boxes, "float32").reshape(1, -1, 5)
    return {"boxes": values[..., :4], "labels": values[..., 4].astype("int32"), **more}


def padded(*parts):
    """One sequence as samples `(1, 1, 18)`."""
    tokens = [token for part in parts for token in np.ravel(part)]
    return np.array(tokens + [PAD] * (18 - len(tokens)), "int32")[None, None]


def decode(tokens, token_probs=None, codec=codec):
    decoded = codec.decode(None, tokens, token_probs)
    return {name: to_numpy(value) for name, value in decoded.items()}


def labels_of(*parts):
    return decode(padded(*parts))["labels"][0, 0].tolist()


def test_vocabulary_has_special_ids_buckets_classes_and_confidences():
    assert (codec.vocabulary_size, codec.max_length) == (72, 18)
    assert (codec.wrong_id, codec.right_id) == (WRONG, RIGHT)
    assert (endless.wrong_id, endless.right_id, endless.vocabulary_size) == (70, 71, 72)
    paper = BoxCodec(num_classes=80, image_size=1280)
    assert (paper.max_length, paper.vocabulary_size) == (600, 2 + 1000 + 80 + 2)


def test_box_is_written_as_worked_out_by_hand():
    tokens, weights = codec.encode(truth((*BOX_XYXY, 2)), seed=0)
    assert tokens.dtype == "int32" and weights.dtype == "float32"
    assert tokens[0, :5].tolist() == BOX[:5]
    assert tokens[0, 5] in (WRONG, RIGHT)
    assert tokens[0, 6:].tolist() == [END] + 11 * [PAD]
    assert weights[0].tolist() == [1, 1, 1, 1, 1, 0, 1] + 11 * [0]


def test_box_is_read_as_worked_out_by_hand():
    decoded = decode(padded(BOX, OTHER, END))
    expected = [BOX_XYXY, [0, 0, 64, 64], [0, 0, 0, 0]]
    np.testing.assert_array_equal(decoded["boxes"][0, 0], expected)
    assert decoded["labels"].tolist() == [[[2, 0, -1]]]
    assert decoded["labels"].dtype == "int32" and decoded["boxes"].dtype == "float32"
    assert "scores" not in decoded


def test_full_sequence_has_no_end():
    tokens, weights = codec.encode(truth(*3 * [(*BOX_XYXY, 2)]), seed=0)
    assert END not in tokens and PAD not in tokens
    assert weights.sum() == 15
    assert labels_of(*tokens) == [2, 2, 2]


MALFORMED = {
    "nothing but padding": ([], [-1, -1, -1]),
    "end at once": ([END, *BOX[1:], *BOX], [-1, -1, -1]),
    "end in a box": ([*BOX, *OTHER[:3], END, *OTHER[4:], *BOX], [2, -1, -1]),
    "end as confidence": ([*BOX[:5], END, *BOX], [-1, -1, -1]),
    "box cut short": ([*BOX, *OTHER[:4]], [2, -1, -1]),
    "padding as a box": ([*[PAD] * 6, *BOX], [-1, 2, -1]),
    "class in place of a coordinate": ([67, *BOX[1:], *BOX], [-1, 2, -1]),
    "confidence in place of a coordinate": ([*BOX[:3], RIGHT, *BOX[4:], *BOX], [-1, 2]),
    "coordinate in place of a class": ([*BOX[:4], 66, RIGHT, *BOX], [-1, 2]),
    "confidence in place of a class": ([*BOX[:4], WRONG, RIGHT, *BOX], [-1, 2]),
    "class in place of a confidence": ([*BOX[:5], 69, *BOX], [-1, 2]),
    "start in place of a coordinate": ([BOX[0], 0, *BOX[2:], *BOX], [-1, 2]),
    "no height": ([18, 10, 18, *BOX[3:], *BOX], [-1, 2]),
    "no width": ([18, 10, 42, 10, *BOX[4:], *BOX], [-1, 2]),
    "inverted": ([42, 10, 18, *BOX[3:], *BOX], [-1, 2]),
    "inverted sideways": ([18, 26, 42, 10, *BOX[4:], *BOX], [-1, 2]),
    "beyond the vocabulary": ([18, 10, 42, 26, 69, 72, *BOX], [-1, 2]),
    "negative ids": ([-5, *BOX[1:], *BOX], [-1, 2]),
    "no class at all": ([*BOX[:4], -3, RIGHT, *BOX], [-1, 2]),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_boxes_become_padding(case):
    tokens, expected = MALFORMED[case]
    assert labels_of(tokens) == [*expected, -1][:3]


sides = hnp.arrays("float32", (4, 4), elements=st.floats(0, 0.75, width=32))
HEIGHT, WIDTH, BUCKETS = 48, 96, 33


def in_format(layout, top, left, bottom, right):
    """Boxes of a format, of edges as shares of an image of HEIGHT by WIDTH pixels."""
    if not layout.startswith("rel_"):
        top, left = top * HEIGHT, left * WIDTH
        bottom, right = bottom * HEIGHT, right * WIDTH
    x, y = (left + right) / 2, (top + bottom) / 2
    width, height = right - left, bottom - top
    boxes = {
        "xyxy": (left, top, right, bottom),
        "yxyx": (top, left, bottom, right),
        "xywh": (left, top, width, height),
        "center_xywh": (x, y, width, height),
        "center_yxhw": (y, x, height, width),
    }
    return np.stack(boxes[layout.removeprefix("rel_")], axis=-1).astype("float32")


@pytest.mark.slow
@quick
@given(sides, st.sampled_from(BOX_FORMATS), st.sampled_from([1, None]))
def test_round_trip_is_within_half_a_bucket(sides, layout, end_id):
    """Half a bucket for an edge or a centre, a whole one for a length: two edges."""
    codec = BoxCodec(4, (HEIGHT, WIDTH), 4, BUCKETS, layout, end_id=end_id)
    top, left, height, width = sides.T
    edges = (top, left, top + 0.05 + height / 4, left + 0.05 + width / 4)
    boxes = in_format(layout, *edges)
    targets = {"boxes": boxes[None], "labels": np.arange(4)[None]}
    decoded = decode(codec.encode(targets, seed=0)[0][:, None], codec=codec)
    labels = decoded["labels"][0, 0]
    assert sorted(labels) == [0, 1, 2, 3]
    read = decoded["boxes"][0, 0][np.argsort(labels)]
    for i, name in enumerate(layout.removeprefix("rel_").split("_")[-1]):
        unit = 1 if "rel" in layout else {"x": WIDTH, "w": WIDTH}.get(name, HEIGHT)
        tolerance = unit / (BUCKETS - 1) * (0.5 if name in "xy" else 1.0) + 1e-4
        assert np.abs(read[:, i] - boxes[:, i]).max() <= tolerance


def test_whole_pixels_are_exact_with_a_bucket_at_each_edge():
    boxes = [(0, 0, 64, 64, 0), (63, 0, 64, 1, 1), (17, 5, 23, 60, 2)]
    decoded = decode(codec.encode(truth(*boxes), seed=1)[0][:, None])
    order = np.argsort(decoded["labels"][0, 0])
    read = decoded["boxes"][0, 0][order]
    np.testing.assert_array_equal(read, [box[:4] for box in boxes])


@pytest.mark.parametrize("end_id", [1, None])
def test_any_tokens_decode_to_valid_boxes(end_id):
    codec = BoxCodec(**SMALL, end_id=end_id)
    decoder = compiled(lambda s, p: codec.decode(None, s, p))

    @quick
    @given(
        hnp.arrays(
            "int32",
            (2, 3, codec.max_length),
            elements=st.integers(-3, codec.vocabulary_size + 2),
        ),
        st.booleans(),
    )
    def check(tokens, in_slots):
        if in_slots:  # of the right kind, so that boxes occur
            allowed = [np.flatnonzero(slot) for slot in codec.slot_mask]
            picks = [a[t % len(a)] for a, t in zip(allowed, tokens.T, strict=True)]
            tokens = np.stack(picks, axis=-1).swapaxes(0, 1).astype("int32")
        probs = np.random.default_rng(0).random(tokens.shape, "float32")
        decoded = {k: to_numpy(v) for k, v in decoder(tokens, probs).items()}
        for image, sample in np.ndindex(2, 3):
            row = {name: value[image, sample] for name, value in decoded.items()}
            expected = read_plainly(tokens[image, sample], probs[image, sample], codec)
            for name in ("boxes", "labels", "scores"):
                values = np.array([box[name] for box in expected])
                np.testing.assert_allclose(row[name], values, rtol=0, atol=1e-5)

    check()


def read_plainly(tokens, probs, codec):
    """The boxes of one sequence, as a list, one token after the other."""
    padding = {"boxes": [0, 0, 0, 0], "labels": -1, "scores": 0}
    boxes, ended = [], False
    for start in range(0, len(tokens), 6):
        six = [int(token) for token in tokens[start : start + 6]]
        ended = ended or (codec.end_id is not None and codec.end_id in six)
        y0, x0, y1, x1 = (token - codec.first_bucket for token in six[:4])
        label = six[4] - codec.first_class
        good = all(0 <= bucket < 65 for bucket in (y0, x0, y1, x1))
        good = good and y0 < y1 and x0 < x1 and 0 <= label < 3
        if ended or not good or six[5] not in (codec.wrong_id, codec.right_id):
            boxes.append(padding)
            continue
        right = probs[start + 5] if six[5] == codec.right_id else 1 - probs[start + 5]
        boxes.append({"boxes": [x0, y0, x1, y1], "labels": label, "scores": right})
    return boxes


def test_scores_are_the_probability_of_right_of_the_class_or_their_product():
    tokens = padded(BOX, OTHER, END)
    probs = np.linspace(0.05, 0.9, 18, dtype="float32")[None, None]
    for score, expected in {
        "confidence": [probs[0, 0, 5], 1 - probs[0, 0, 11], 0],
        "class": [probs[0, 0, 4], probs[0, 0, 10], 0],
        "product": [
            probs[0, 0, 4] * probs[0, 0, 5],
            probs[0, 0, 10] * (1 - probs[0, 0, 11]),
            0,
        ],
    }.items():
        decoded = decode(tokens, probs, BoxCodec(**SMALL, score=score))
        np.testing.assert_allclose(decoded["scores"][0, 0], expected, atol=1e-6)
    assert "scores" not in decode(tokens, probs, BoxCodec(**SMALL, score=None))
    assert [BoxCodec(**SMALL, score=s).uses_token_probs for s in ("class", None)] == [
        True,
        False,
    ]


@pytest.mark.parametrize("codec", [codec, endless], ids=["end", "endless"])
def test_ground_truth_keeps_to_the_slot_mask(codec):
    boxes = truth((*BOX_XYXY, 2), (0, 0, 64, 64, 0))
    tokens, weights = codec.encode(boxes, seed=0)
    allowed = np.take_along_axis(codec.slot_mask, tokens[0][:, None], axis=1)[:, 0]
    assert codec.slot_mask.shape == (18, codec.vocabulary_size)
    assert allowed[weights[0] > 0].all()
    assert allowed[(tokens[0] >= codec.first_bucket)].all()


def test_slot_mask_forbids_just_what_would_spoil_a_box():
    for position in range(6):
        for token in range(codec.vocabulary_size):
            tokens = [2, 2, 66, 66, 67, RIGHT]
            tokens[position] = token
            allowed = codec.slot_mask[6 + position, token]
            if position < 4 and 2 <= token < 67:
                assert allowed
                continue
            is_end = position == 0 and token == END
            assert allowed == (labels_of(BOX, tokens)[1] >= 0 or is_end)


def test_position_mask_leaves_out_confidences():
    expected = 3 * [True, True, True, True, True, False]
    assert codec.position_mask.tolist() == expected


@pytest.mark.chance
def test_order_is_random_and_all_boxes_are_there():
    boxes = truth((0, 0, 9, 9, 0), (9, 9, 20, 20, 1), (30, 30, 40, 40, 2))
    orders = {tuple(decode_labels(codec.encode(boxes, seed=s)[0])) for s in range(60)}
    assert len(orders) == 6 and {tuple(sorted(o)) for o in orders} == {(0, 1, 2)}


def decode_labels(tokens):
    return decode(tokens[:, None])["labels"][0, 0].tolist()


@pytest.mark.chance
def test_boxes_beyond_the_most_are_left_out_at_random():
    boxes = truth(*[(i, i, i + 9, i + 9, i % 3) for i in range(5)])
    seen = set()
    for seed in range(20):
        decoded = decode(codec.encode(boxes, seed=seed)[0][:, None])
        assert (decoded["labels"] >= 0).all()
        seen |= set(decoded["boxes"][0, 0, :, 0])
    assert seen == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("crowd", ["is_crowd", "iscrowd"])
def test_unusable_boxes_are_left_out(crowd):
    boxes = truth(
        (*BOX_XYXY, 2),
        (0, 0, 9, 9, -1),
        (5, 5, 5, 9, 1),
        (9, 9, 5, 5, 1),
        (NAN, 0, 9, 9, 1),
        (-20, 0, -5, 9, 1),
        (0, 70, 9, 99, 1),
        (0, 0, 64, 64, 0),
        **{crowd: np.array([7 * [False] + [True]])},
    )
    assert decode_labels(codec.encode(boxes, seed=0)[0]) == [2, -1, -1]


def test_boxes_are_cut_at_the_edges_and_thin_ones_widened():
    boxes = truth((-5, 50, 10, 99, 0), (30, 30, 30.2, 40, 1), (63.9, 0, 64, 64, 2))
    decoded = decode(codec.encode(boxes, seed=0)[0][:, None])
    read = decoded["boxes"][0, 0][np.argsort(decoded["labels"][0, 0])]
    expected = [[0, 50, 10, 64], [30, 30, 31, 40], [63, 0, 64, 64]]
    np.testing.assert_array_equal(read, expected)


@pytest.mark.chance
def test_confidences_are_drawn_at_random_without_weight():
    many = BoxCodec(3, 64, max_boxes=100, num_buckets=65)
    tokens, weights = many.encode(truth(*100 * [(*BOX_XYXY, 0)]), seed=0)
    drawn = tokens[0, 5::6]
    assert set(drawn) == {WRONG, RIGHT}
    assert counts_within_chance([(drawn == RIGHT).sum()], 100, 0.5)
    assert weights[0, 5::6].sum() == 0 and weights.sum() == 500


@pytest.mark.chance
def test_same_seed_same_tokens():
    boxes = truth((0, 0, 9, 9, 0), (9, 9, 20, 20, 1), (30, 30, 40, 40, 2))
    first, second = (codec.encode(boxes, seed=5)[0] for _ in range(2))
    np.testing.assert_array_equal(first, second)
    generator = np.random.default_rng(5)
    several = {tuple(codec.encode(boxes, generator)[0][0]) for _ in range(9)}
    assert len(several) > 1


def test_without_end_token_what_is_left_over_is_nothing():
    tokens, weights = endless.encode(truth((*BOX_XYXY, 2)), seed=0)
    assert (tokens >= endless.first_bucket).all()
    assert tokens[0, 4::6].tolist() == [68, 69, 69]
    assert weights[0, 6:].tolist() == 2 * [0, 0, 0, 0, 1, 0]
    assert decode(tokens[:, None], codec=endless)["labels"].tolist() == [[[2, -1, -1]]]
    sides = tokens[0].reshape(3, 6)[:, :4]
    assert (sides[:, :2] <= sides[:, 2:]).all()


@pytest.mark.parametrize("boxes", [(), [(*BOX_XYXY, -1)]], ids=["none", "padding"])
def test_image_without_boxes_is_an_end_or_nothing_but_nothing(boxes):
    probs = np.full((1, 1, 18), 0.7, "float32")
    for each, written, expected in (
        (codec, slice(None), [[END] + 17 * [PAD], [1] + 17 * [0]]),
        (endless, slice(4, None, 6), [3 * [69], 3 * [0, 0, 0, 0, 1, 0]]),
    ):
        tokens, weights = each.encode(truth(*boxes), seed=0)
        assert [tokens[0, written].tolist(), weights[0].tolist()] == expected
        decoded = decode(tokens[:, None], probs, each)
        assert decoded["labels"].tolist() == [[[-1, -1, -1]]]
        assert not decoded["boxes"].any() and not decoded["scores"].any()


def test_preprocess_shifts():
    images = np.zeros((1, 64, 64, 3), "float32")
    x, y, weights = codec.preprocess(images, truth((*BOX_XYXY, 2)), seed=0)
    tokens, expected = codec.encode(truth((*BOX_XYXY, 2)), seed=0)
    np.testing.assert_array_equal(y, tokens)
    np.testing.assert_array_equal(weights, expected)
    assert x["images"] is images
    assert x["token_ids"].tolist() == [[0, *tokens[0, :-1]]]


def test_unknown_label_is_an_error():
    with pytest.raises(ValueError, match=r"below 3.*Received: 3"):
        codec.encode(truth((*BOX_XYXY, 3)))


@pytest.mark.parametrize(
    "argument, message",
    [
        ({"num_classes": 0}, "num_classes=0"),
        ({"max_boxes": 0}, "max_boxes=0"),
        ({"num_buckets": 1}, "num_buckets=1"),
        ({"score": "area"}, "'area'"),
        ({"end_id": 0}, "end_id=0"),
        ({"bounding_box_format": "corners"}, "'corners'"),
    ],
)
def test_wrong_arguments_are_named(argument, message):
    with pytest.raises(ValueError, match=f"Received: .*{message}"):
        BoxCodec(**{**SMALL, **argument})


def test_wrong_length_is_an_error():
    with pytest.raises(ValueError, match=r"18 tokens.*Received: shape .1, 1, 17"):
        codec.decode(None, np.zeros((1, 1, 17), "int32"))


def test_serializes():
    given = BoxCodec(4, (32, 64), 5, 9, "rel_xywh", "class", 3, None, 2)
    config = keras.saving.serialize_keras_object(given)
    copy = keras.saving.deserialize_keras_object(json.loads(json.dumps(config)))
    assert isinstance(copy, BoxCodec)
    assert json.dumps(copy.get_config()) == json.dumps(given.get_config())
    assert (copy.first_bucket, copy.unit) == (4, (1.0, 1.0))


def test_traces_with_an_unknown_batch():
    samples = keras.KerasTensor((None, 2, 18), "int32")
    probs = keras.KerasTensor((None, 2, 18), "float32")
    spec = Decode().compute_output_spec(samples, probs)
    assert {name: value.shape for name, value in spec.items()} == {
        "boxes": (None, 2, 3, 4),
        "labels": (None, 2, 3),
        "scores": (None, 2, 3),
    }


class Decode(keras.Operation):
    def call(self, samples, token_probs):
        return codec.decode(None, samples, token_probs)
