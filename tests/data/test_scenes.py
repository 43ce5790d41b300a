"""The built-in scenes: what pictures, boxes, maps and captions say of each other."""

import itertools
import re

import keras
import numpy as np
import pytest

from keras_reward.data import Scenes, Vocabulary, scene_pictures, scenes
from keras_reward.data.scene_captions import (
    Group,
    Layout,
    named_digits,
    wordings,
)
from keras_reward.evaluation import cider

# fmt: off
DIGITS = ["zero", "one", "two", "three", "four",
          "five", "six", "seven", "eight", "nine"]
# fmt: on
NUMBERS = {"a": 1, "an": 1, "two": 2, "three": 3}
GROUP = r"(an?|two|three) (\w+)"
SPLIT = pytest.mark.parametrize("split", ["train", "test"])


@pytest.fixture(scope="module")
def many():
    """Scenes of both splits and two sizes."""
    return [
        scenes.make_scene(split, index, size)
        for split in ("train", "test")
        for size in (64, 96)
        for index in range(40)
    ]


# Determined by split and index.


@SPLIT
def test_a_scene_is_the_same_whenever_it_is_asked_for(split):
    first, again = (scenes.make_scene(split, 7) for _ in range(2))
    for name in ("image", "boxes", "labels", "panoptic"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    assert first.captions == again.captions


def test_scenes_of_another_index_or_split_differ():
    images = [scenes.make_scene("train", index).image.tobytes() for index in range(50)]
    assert len(set(images)) == len(images)
    train, test = (
        [scenes.make_scene(split, index).layout for index in range(50)]
        for split in ("train", "test")
    )
    assert sum(one == other for one, other in zip(train, test, strict=True)) < 10


def test_batches_are_consecutive_scenes_and_the_last_one_is_smaller():
    dataset = Scenes("test", 7, task="panoptic", batch_size=3, start=20)
    assert len(dataset) == 3
    batches = [dataset[i] for i in range(3)]
    assert [len(images) for images, _ in batches] == [3, 3, 1]
    images, maps = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    expected = [scenes.make_scene("test", 20 + i) for i in range(7)]
    np.testing.assert_array_equal(images, [scene.image for scene in expected])
    np.testing.assert_array_equal(maps, [scene.panoptic for scene in expected])


# Pictures, boxes and maps.


@pytest.mark.slow
def test_images_are_floats_from_0_to_1(many):
    for scene in many:
        assert scene.image.dtype == np.float32
        assert scene.image.min() >= 0.0
        assert scene.image.max() <= 1.0


def test_boxes_are_tight_around_the_visible_ink_of_the_map(many):
    for scene in many[::5]:
        for number, (box, label) in enumerate(
            zip(scene.boxes, scene.labels, strict=True), 1
        ):
            ink = [
                (x, y)
                for y, row in enumerate(scene.panoptic.tolist())
                for x, (_, instance) in enumerate(row)
                if instance == number
            ]
            (left, top), (right, bottom) = (
                [pick(values) for values in zip(*ink, strict=True)]
                for pick in (min, max)
            )
            assert box.tolist() == [left, top, right + 1, bottom + 1]
            assert {scene.panoptic[y, x, 0] for x, y in ink} == {label + 1}


def test_pixels_without_a_digit_are_of_the_two_photographs(many):
    for scene in many:
        classes, instances = scene.panoptic[..., 0], scene.panoptic[..., 1]
        assert instances.max() == len(scene.labels)
        rest = classes[instances == 0]
        assert set(rest.tolist()) == set(scenes.STUFF_CLASSES)


def test_maps_are_of_the_image_digits_are_light_and_photographs_dark(many):
    for scene in many:
        ink = scene.panoptic[..., 1] > 0
        brightest = scene.image.max(axis=-1)
        assert brightest[ink].min() > 0.5
        assert np.median(brightest[ink]) > 0.85
        assert np.median(brightest[~ink]) < 0.6


def test_only_the_colour_photograph_has_colours(many):
    saturation = {kind: [] for kind in scenes.STUFF_CLASSES}
    for scene in many:
        # Away from the light that digits cast around themselves.
        far = np.ones(scene.image.shape[:2], "bool")
        for left, top, right, bottom in scene.boxes.astype(int):
            far[max(0, top - 6) : bottom + 6, max(0, left - 6) : right + 6] = False
        spread = np.ptp(scene.image, axis=-1)
        for kind, values in saturation.items():
            values.extend(spread[far & (scene.panoptic[..., 0] == kind)])
    assert np.max(saturation[scenes.GREY_CLASS]) < 1e-6
    assert np.mean(saturation[scenes.COLOUR_CLASS]) > 0.05


def test_some_digits_overlap_and_none_is_hidden(many):
    overlapping = 0
    for scene in many:
        areas = [(scene.panoptic[..., 1] == n).sum() for n in range(1, 5)]
        assert min(areas[: len(scene.labels)]) >= 20
        for i, a in enumerate(scene.boxes):
            for b in scene.boxes[:i]:
                sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
                overlapping += bool((sides > 0).all())
    assert overlapping > 0.1 * len(many)


def test_train_and_test_share_no_digit_image_and_no_photograph():
    images = scene_pictures.load_digits().images
    train, test = (
        {images[number].tobytes() for number in scene_pictures.digit_numbers(split)}
        for split in ("train", "test")
    )
    assert not train & test
    assert len(train) + len(test) == len(images)
    drawn = {
        split: {
            image.tobytes()
            for digits in scene_pictures.load_digit_images(split)
            for image in digits
        }
        for split in ("train", "test")
    }
    assert not drawn["train"] & drawn["test"]
    names = [
        {name for group in scene_pictures.PHOTOGRAPHS[split].values() for name in group}
        for split in ("train", "test")
    ]
    assert not names[0] & names[1]


@SPLIT
def test_digit_images_are_those_of_their_class(split):
    digits = scene_pictures.load_digits()
    numbers = scene_pictures.digit_numbers(split)
    for digit, images in enumerate(scene_pictures.load_digit_images(split)):
        own = digits.images[numbers[digits.target[numbers] == digit]]
        assert len(images) == len(own) > 20
        for image, other in zip(images[:20], own[:20], strict=True):
            opacity = scene_pictures.enlarged(image, 24)
            one = opacity.reshape(8, 3, 8, 3).mean(axis=(1, 3))
            assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.9


# Captions, read here by other means than they were written by.


def read(caption):
    """Groups of digits `(number, digit)` and the phrases around them."""
    plural = {"sixes": 6, **{word + "s": i for i, word in enumerate(DIGITS)}}
    groups = []
    for number, noun in re.findall(GROUP, caption):
        if noun in ("picture", "photo"):
            continue
        number = NUMBERS[number]
        groups.append((number, DIGITS.index(noun) if number == 1 else plural[noun]))
    return groups


def centres(scene, digit):
    """Centres of the boxes of a digit `(n, 2)`: x, y."""
    boxes = scene.boxes[scene.labels == digit]
    return (boxes[:, :2] + boxes[:, 2:]) / 2.0


def test_captions_name_the_digits_and_their_number(many):
    for scene in many:
        assert len(set(scene.captions)) == 5
        for caption in scene.captions:
            named = sorted(d for number, d in read(caption) for _ in range(number))
            assert named == sorted(scene.labels.tolist()), caption


def test_captions_say_truly_where_digits_are_from_each_other(many):
    said = 0
    for scene in many:
        for caption in scene.captions:
            groups = read(caption)
            relation = re.search("above|below|left of|right of", caption)
            if not relation:
                continue
            # "A with B below it": B is what lies below.
            swapped = " with " in caption
            (_, here), (_, there) = groups[::-1] if swapped else groups
            here, there = centres(scene, here), centres(scene, there)
            distance = (there[:, None] - here).reshape(-1, 2)  # of all pairs
            x, y = distance.min(axis=0), distance.max(axis=0)
            true = {
                "above": x[1] > 4,
                "below": y[1] < -4,
                "left of": x[0] > 4,
                "right of": y[0] < -4,
            }
            assert true[relation[0]], caption
            said += 1
    assert said > 2 * len(many)


def test_captions_say_truly_where_digits_are_in_the_picture(many):
    places = {
        "at the top": lambda x, y: y < 0.45,
        "at the bottom": lambda x, y: y > 0.55,
        "on the left": lambda x, y: x < 0.45,
        "on the right": lambda x, y: x > 0.55,
    }
    said = set()
    for scene in many:
        for caption in scene.captions:
            place = re.search("|".join(places), caption)
            if place:
                x, y = centres(scene, scene.labels[0]).T / len(scene.image)
                assert places[place[0]](x, y).all(), caption
                said.add(place[0])
    assert said == set(places)


def test_the_grammar_by_hand():
    two = Layout((Group(1, 8), Group(2, 6)), "vertical", 0)
    assert wordings(two)[0] == ["an eight and two sixes"]
    assert "an eight above two sixes" in wordings(two)[1]
    assert "there is an eight above two sixes" in wordings(two)[2]
    assert "there are two sixes below an eight" in wordings(two)[3]
    assert "an eight with two sixes below it" in wordings(two)[4]
    one = Layout((Group(3, 2),), "horizontal", 1)
    assert wordings(one)[0] == ["three twos"]
    assert "on the right are three twos" in wordings(one)[3]


def test_no_two_people_word_a_caption_alike(many):
    for scene in many:
        ways = wordings(scene.layout)
        every = list(itertools.chain(*ways))
        assert len(set(every)) == len(every)
        for caption, own in zip(scene.captions, ways, strict=True):
            assert caption in own


def test_the_likeliest_caption_leaves_head_room():
    drawn = [scenes.make_scene("test", index) for index in range(300)]
    references = [scene.captions for scene in drawn]
    brief, better = (
        cider(references, [wordings(scene.layout)[way][0] for scene in drawn])["cider"]
        for way in (0, 1)
    )
    assert better > 1.3 * brief


def test_named_digits_by_hand():
    def named(**counts):
        return [counts.get(word, 0) for word in DIGITS]

    assert named_digits("a three above two sevens") == named(three=1, seven=2)
    assert named_digits("three twos with an eight below them") == named(two=3, eight=1)
    assert named_digits("a photo of two threes") == named(three=2)
    assert named_digits("threes and a sevens two") == named()
    assert named_digits("a one and a one") == named(one=2)


# As a data set.


def test_boxes_are_padded():
    images, targets = Scenes("train", 16, batch_size=16)[0]
    assert images.shape == (16, 64, 64, 3)
    assert targets["boxes"].shape == (16, 4, 4)
    assert targets["labels"].dtype == np.int32
    for index in range(16):
        scene = scenes.make_scene("train", index)
        n = len(scene.labels)
        np.testing.assert_array_equal(targets["boxes"][index, :n], scene.boxes)
        np.testing.assert_array_equal(targets["labels"][index, :n], scene.labels)
        assert (targets["labels"][index, n:] == -1).all()
        assert (targets["boxes"][index, n:] == 0).all()


def test_captions_are_text_or_token_ids():
    _, texts = Scenes("train", 4, task="captions")[0]
    assert texts == [scenes.make_scene("train", index).captions for index in range(4)]
    vocabulary = Vocabulary.from_captions(itertools.chain(*texts), 12)
    _, ids = Scenes("train", 4, task="captions", vocabulary=vocabulary)[0]
    assert ids.shape == (4, 5, 12)
    assert vocabulary.decode(ids) == texts


def test_fit_reads_transformed_batches():
    def how_many(images, targets):
        return images.mean(axis=(1, 2)), (targets["labels"] >= 0).sum(axis=1)

    dataset = Scenes("train", 24, batch_size=8, transform=how_many, workers=2)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    history = model.fit(dataset, epochs=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"split": "val"}, "`split` must be one of .*Received: split='val'"),
        ({"task": "masks"}, "`task` must be one of .*Received: task='masks'"),
        ({"count": 0}, "`count` must be .* 1. Received: count=0"),
        ({"batch_size": 2.5}, "`batch_size` must be .*Received: batch_size=2.5"),
        ({"start": -1}, "`start` must be .* 0. Received: start=-1"),
        ({"size": 16}, "`size` must be .* 32. Received: size=16"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Scenes(**{"split": "train", "count": 8, **arguments})


def test_batches_beyond_the_end_are_refused():
    with pytest.raises(IndexError, match=r"2 batches\. Received: batch number 2"):
        Scenes("train", 8, batch_size=4)[2]


def test_a_missing_package_and_photograph_are_named(monkeypatch):
    with pytest.raises(ImportError, match="pip install scikit-learn scikit-image"):
        scene_pictures.import_or_explain("keras_reward.no_such_module")
    monkeypatch.setitem(scene_pictures.PHOTOGRAPHS["test"], "grey", ("no_such.png",))
    with pytest.raises(FileNotFoundError, match=r"Received: no no_such\.png in"):
        scene_pictures.load_photographs.__wrapped__("test", 64)


def test_an_epoch_has_each_scene_once_in_its_own_order():
    options = {"task": "panoptic", "batch_size": 4, "start": 5, "size": 32}
    images = np.concatenate([x for x, _ in Scenes("train", 6, **options)])
    shuffled = Scenes("train", 6, shuffle=True, seed=3, **options)
    for epoch in (0, 2):
        shuffled.set_epoch(epoch)
        order = np.random.default_rng((3, epoch)).permutation(6)
        found = np.concatenate([x for x, _ in shuffled])
        np.testing.assert_array_equal(found, images[order])
    shuffled.on_epoch_end()
    order = np.random.default_rng((3, 3)).permutation(6)
    np.testing.assert_array_equal(shuffled[1][0], images[order[4:]])
