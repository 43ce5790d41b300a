"""What the readers of COCO's formats read, on small folders made here."""

import json
import warnings

import numpy as np
import pytest
from coco_folders import (
    HEIGHT,
    WIDTH,
    box,
    boxes_folder,
    caption,
    noise,
    quietly,
    write,
)
from PIL import Image

from keras_reward.data.coco import CocoBoxes, CocoCaptions
from keras_reward.data.coco_panoptic import CocoPanoptic
from keras_reward.data.vocabulary import Vocabulary
from keras_reward.evaluation import CocoDetection, PanopticQuality

# --- boxes ---


def test_boxes_are_those_of_pycocotools(tmp_path):
    from pycocotools.coco import COCO

    images, annotations = boxes_folder(tmp_path)
    dataset = quietly(CocoBoxes, images, annotations, (HEIGHT, WIDTH), batch_size=3)
    coco = COCO(annotations)
    names = [c["name"] for c in coco.loadCats(sorted(coco.getCatIds()))]
    assert dataset.class_names == tuple(names)
    seen = 0
    for pixels, targets in dataset:
        for row in range(len(pixels)):
            image_id = dataset.items[seen].image_id
            path = f"{images}/{coco.imgs[image_id]['file_name']}"
            expected = np.asarray(Image.open(path)) / np.float32(255)
            np.testing.assert_array_equal(pixels[row], expected)
            found = coco.loadAnns(coco.getAnnIds(image_id))
            valid = targets["labels"][row] >= 0
            assert valid.sum() == len(found)
            for i, annotation in enumerate(found):
                left, top, width, height = annotation["bbox"]
                np.testing.assert_allclose(
                    targets["boxes"][row, i],
                    [left, top, left + width, top + height],
                    rtol=1e-6,
                )
                label = targets["labels"][row, i]
                assert names[label] == coco.cats[annotation["category_id"]]["name"]
                assert targets["is_crowd"][row, i] == annotation["iscrowd"]
                np.testing.assert_allclose(
                    targets["area"][row, i], annotation["area"], rtol=1e-6
                )
            assert not targets["boxes"][row, ~valid].any()
            seen += 1
    assert seen == len(coco.imgs)


def test_shapes_and_dtypes_are_static(tmp_path):
    images, annotations = boxes_folder(tmp_path)
    dataset = quietly(
        CocoBoxes, images, annotations, (16, 24), max_boxes=5, batch_size=3
    )
    for (pixels, targets), rows in zip(dataset, (3, 3, 1), strict=True):
        assert (pixels.shape, pixels.dtype) == ((rows, 16, 24, 3), "float32")
        assert pixels.min() >= 0.0 and pixels.max() <= 1.0
        described = {k: (v.shape[1:], str(v.dtype)) for k, v in targets.items()}
        assert described == {
            "boxes": ((5, 4), "float32"),
            "labels": ((5,), "int32"),
            "is_crowd": ((5,), "bool"),
            "area": ((5,), "float32"),
        }


def test_stretched_boxes_by_hand(tmp_path):
    found = [box(1, 1, [10, 3, 20, 9], area=100)]
    folder = write(tmp_path, found, {1: noise(1)})
    _, targets = CocoBoxes(*folder, image_size=(60, 10))[0]  # height x 2, width / 4
    np.testing.assert_allclose(targets["boxes"][0, 0], [2.5, 6, 7.5, 24])
    assert targets["area"][0, 0] == 50


def test_smaller_pictures_are_averages(tmp_path):
    chequers = np.indices((8, 8)).sum(0) % 2 * np.uint8(255)
    folder = write(tmp_path, [], {1: np.stack([chequers] * 3, -1).astype("uint8")})
    images, _ = quietly(CocoBoxes, *folder, image_size=(2, 2))[0]
    np.testing.assert_allclose(images, 0.5, atol=0.1)


@pytest.mark.parametrize(
    ("image_size", "expected"),
    [
        # Scale 1/2: 15 x 20 pixels, 2 free rows above and 3 below.
        ((20, 20), [5, 2 + 1.5, 15, 2 + 6]),
        # Scale 2: 60 x 80, 10 free columns at each side.
        ((60, 100), [10 + 20, 6, 10 + 60, 24]),
    ],
)
def test_boxes_of_a_padded_image_by_hand(tmp_path, image_size, expected):
    folder = write(tmp_path, [box(1, 1, [10, 3, 20, 9])], {1: 255 + 0 * noise(1)})
    dataset = CocoBoxes(*folder, image_size=image_size, pad_to_aspect_ratio=True)
    pixels, targets = dataset[0]
    np.testing.assert_allclose(targets["boxes"][0, 0], expected)
    scale = min(image_size[0] / HEIGHT, image_size[1] / WIDTH)
    assert (pixels[0] == 1).sum() == 3 * HEIGHT * WIDTH * scale**2
    assert ((pixels == 1) | (pixels == 0)).all()


@pytest.mark.parametrize("pad", [False, True])
def test_boxes_masks_and_maps_follow_the_picture(tmp_path, pad):
    pixels = np.zeros((HEIGHT, WIDTH, 3), "uint8")
    pixels[6:18, 12:28] = 255
    polygon = [[12, 6, 28, 6, 28, 18, 12, 18]]
    found = [box(1, 1, [12, 6, 16, 12], segmentation=polygon)]
    (tmp_path / "maps").mkdir()
    ids = pixels // 255 * np.array([7, 0, 0], "uint8")
    Image.fromarray(ids).save(tmp_path / "maps" / "1.png")
    options = {"image_size": (45, 50), "pad_to_aspect_ratio": pad}
    images, targets = CocoBoxes(
        *write(tmp_path, found, {1: pixels}), masks=True, **options
    )[0]
    inside = images[0, :, :, 0] > 0.5
    rows, columns = np.nonzero(inside)
    tight = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    np.testing.assert_allclose(targets["boxes"][0, 0], tight, atol=0.51)
    np.testing.assert_array_equal(targets["masks"][0, 0], inside)
    assert not targets["masks"][0, 1:].any()

    segments = [{"id": 7, "category_id": 17}]
    found = [{"image_id": 1, "file_name": "1.png", "segments_info": segments}]
    folder = write(tmp_path, found, {1: pixels})
    _, maps = CocoPanoptic(*folder, tmp_path / "maps", **options)[0]
    np.testing.assert_array_equal(maps[0, :, :, 0], 2 * inside)


def test_masks_are_those_of_pycocotools(tmp_path):
    from pycocotools import mask
    from pycocotools.coco import COCO

    disk = np.hypot(*np.mgrid[-15:15, -20:20]) < 9
    compressed = mask.encode(np.asfortranarray(disk, "uint8"))
    compressed["counts"] = compressed["counts"].decode()
    runs = {"size": [HEIGHT, WIDTH], "counts": [40, 10, 1150]}
    polygons = [[1, 1, 20, 2, 9, 15], [30, 20, 38, 20, 38, 28]]
    found = [
        box(i, 1, [1, 1, 20, 20], segmentation=segmentation)
        for i, segmentation in enumerate((compressed, runs, polygons), start=1)
    ]
    folder = write(tmp_path, found, {1: noise(1)})
    _, targets = CocoBoxes(*folder, (HEIGHT, WIDTH), masks=True, max_boxes=3)[0]
    assert targets["masks"].dtype == "uint8"
    coco = COCO(folder[1])
    for i in range(3):
        expected = coco.annToMask(coco.anns[i + 1])
        assert expected.any()
        np.testing.assert_array_equal(targets["masks"][0, i], expected)


def test_classes_can_be_chosen(tmp_path):
    found = [
        box(1, 1, [1, 1, 5, 5], 17),
        box(2, 1, [2, 2, 5, 5], 1),
        box(3, 1, [3, 3, 5, 5], 90),
        box(4, 2, [4, 4, 5, 5], 1),
    ]
    folder = write(tmp_path, found, {1: noise(1), 2: noise(2)})
    options = {"image_size": (HEIGHT, WIDTH), "max_boxes": 3}
    everything = CocoBoxes(*folder, **options)
    assert everything.class_names == ("person", "cat", "toothbrush", "sky")
    np.testing.assert_array_equal(everything[0][1]["labels"], [[1, 0, 2], [0, -1, -1]])
    chosen = quietly(CocoBoxes, *folder, categories=["toothbrush", "cat"], **options)
    np.testing.assert_array_equal(chosen[0][1]["labels"], [[1, 0, -1], [-1, -1, -1]])
    assert chosen.problems["image without boxes"] == ["image 2"]
    chosen = quietly(
        CocoBoxes, *folder, categories=["cat"], keep_empty=False, **options
    )
    assert [item.image_id for item in chosen.items] == [1]
    for wrong in (["dog"], "cat", ["cat", "cat"]):
        with pytest.raises(ValueError, match=r"person, cat.*Received: categories="):
            CocoBoxes(*folder, categories=wrong, **options)


@pytest.mark.parametrize("key", ["iscrowd", "is_crowd"])
def test_crowds_are_kept_with_their_flag_or_left_out(tmp_path, key):
    found = [
        box(1, 1, [1, 1, 20, 5], **{key: 1}),
        box(2, 1, [2, 2, 5, 5], **{key: 0}),
        box(3, 1, [3, 3, 5, 5]),
    ]
    folder = write(tmp_path, found, {1: noise(1)})
    _, targets = CocoBoxes(*folder, (HEIGHT, WIDTH), max_boxes=4)[0]
    np.testing.assert_array_equal(targets["is_crowd"], [[True, False, False, False]])
    np.testing.assert_array_equal(targets["labels"], [[1, 1, 1, -1]])
    _, targets = CocoBoxes(*folder, (HEIGHT, WIDTH), keep_crowds=False)[0]
    np.testing.assert_array_equal(targets["boxes"][0, :3, 0], [2, 3, 0])
    with pytest.warns(UserWarning, match=r"more than max_boxes boxes: 1 \(image 1: 3"):
        dataset = CocoBoxes(*folder, (HEIGHT, WIDTH), max_boxes=2)
    np.testing.assert_array_equal(dataset[0][1]["boxes"][0, :, 0], [2, 3])


def test_the_truth_as_prediction_is_perfect_officially(tmp_path):
    images, annotations = boxes_folder(tmp_path)
    evaluation = CocoDetection()
    for _, targets in quietly(CocoBoxes, images, annotations, (50, 50), batch_size=4):
        scores = np.where(targets["is_crowd"], 0.1, 0.9)
        prediction = {k: targets[k] for k in ("boxes", "labels")}
        evaluation.update_state(targets, {**prediction, "scores": scores})
    result = evaluation.result()
    assert result["map"] == result["ar_100"] == 1.0


# --- captions ---


def test_captions_become_token_ids(tmp_path):
    found = [
        caption(1, 1, "A cat. "),
        caption(2, 2, "A dog"),
        caption(3, 1, "the cat"),
    ]
    folder = write(tmp_path, found, {1: noise(1), 2: noise(2)})
    dataset = CocoCaptions(*folder, image_size=(8, 8), max_captions=3)
    assert dataset[0][1] == dataset.captions == [["A cat.", "the cat"], ["A dog"]]
    dataset.vocabulary = Vocabulary(["a", "cat", "dog", "the"], max_length=4)
    images, ids = dataset[0]
    assert images.shape == (2, 8, 8, 3)
    assert ids.dtype == "int32"
    np.testing.assert_array_equal(
        ids,
        [
            [[3, 4, 1, 0], [6, 4, 1, 0], [0, 0, 0, 0]],
            [[3, 5, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]],
        ],
    )


def test_captions_are_those_of_pycocotools(tmp_path):
    from pycocotools.coco import COCO

    found = [caption(i, 1 + i % 3, f"caption {i}") for i in range(12)]
    folder = write(tmp_path, found, {i: noise(i) for i in (3, 1, 2)})
    coco = COCO(folder[1])
    dataset = CocoCaptions(*folder, image_size=(8, 8), batch_size=2)
    assert [item.image_id for item in dataset.items] == list(coco.imgs)
    assert dataset.captions == [
        [a["caption"] for a in coco.imgToAnns[image_id]] for image_id in coco.imgs
    ]
    assert [len(texts) for _, texts in dataset] == [2, 1]


def test_useless_captions_are_counted_and_left_out(tmp_path):
    found = [
        caption(1, 1, "a cat"),
        caption(2, 1, "two cats"),
        caption(3, 1, " ."),
        caption(4, 2, ""),
        caption(5, 2, None),
        caption(6, 9, "nowhere"),
    ]
    folder = write(tmp_path, found, {1: noise(1), 2: noise(2)})
    with pytest.warns(UserWarning, match="1 images can be used") as caught:
        dataset = CocoCaptions(*folder, image_size=(8, 8), max_captions=1)
    assert dict(dataset.problems) == {
        "caption without words": ["annotation 3 of image 1", "annotation 4 of image 2"],
        "malformed annotation": ["annotation 5 of image 2"],
        "annotation of an unknown image": ["annotation 6 of image 9"],
        "image with more than max_captions captions": ["image 1: 2"],
        "image without captions": ["image 2"],
    }
    for kind, which in dataset.problems.items():
        assert f"{kind}: {len(which)} ({which[0]}" in str(caught[0].message)
    assert caught[0].filename == __file__
    assert dataset.captions == [["a cat"]]


# --- panoptic maps ---


def panoptic_folder(folder, ids, segments):
    """One image with a map of ids."""
    ids = np.array(ids)
    (folder / "maps").mkdir(exist_ok=True)
    rgb = np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype("uint8")
    Image.fromarray(rgb).save(folder / "maps" / "1.png")
    about = {"image_id": 1, "file_name": "1.png", "segments_info": segments}
    return (*write(folder, [about], {1: noise(1, *ids.shape)}), str(folder / "maps"))


SEGMENTS = [
    {"id": 5, "category_id": 17},
    {"id": 5 + 256, "category_id": 17},
    {"id": 3 + 65536, "category_id": 1, "iscrowd": 1},
    {"id": 200, "category_id": 187, "iscrowd": 0},
]
IDS = [[5, 5, 261, 0], [65539, 200, 200, 0]]


def test_panoptic_map_by_hand(tmp_path):
    dataset = CocoPanoptic(*panoptic_folder(tmp_path, IDS, SEGMENTS), (2, 4))
    assert dataset.class_names == ("person", "cat", "toothbrush", "sky")
    assert dataset.stuff_classes == (4,)
    images, maps = dataset[0]
    assert images.shape == (1, 2, 4, 3)
    assert maps.dtype == "int32"
    expected = [
        [[2, 1], [2, 1], [2, 2], [0, 0]],
        [[1, -3], [4, 0], [4, 0], [0, 0]],
    ]
    np.testing.assert_array_equal(maps, [expected])

    quality = PanopticQuality(dataset.stuff_classes)
    quality.update_state(maps, maps)
    result = quality.result()
    assert result["pq"] == 1.0
    assert set(result["per_class"]) == {2, 4}  # the crowd is not scored

    padded = CocoPanoptic(
        *panoptic_folder(tmp_path, IDS, SEGMENTS), (8, 8), pad_to_aspect_ratio=True
    )
    twice = np.repeat(np.repeat([expected], 2, 1), 2, 2)
    np.testing.assert_array_equal(
        padded[0][1], np.pad(twice, [(0, 0), (2, 2), (0, 0), (0, 0)])
    )


def test_unwanted_and_unknown_segments_become_void(tmp_path):
    segments = [*SEGMENTS[1:], {"id": 5, "category_id": 99}]
    folder = panoptic_folder(tmp_path, IDS, segments)
    dataset = quietly(CocoPanoptic, *folder, (2, 4), categories=["sky", "cat"])
    assert dataset.problems["segment of an unknown category"] == [
        "segment 5 in annotation 0 of image 1"
    ]
    expected = [[0, 0, 2, 0], [0, 1, 1, 0]]
    np.testing.assert_array_equal(dataset[0][1][0, :, :, 0], expected)
    assert dataset.stuff_classes == (1,)

    dataset = CocoPanoptic(*panoptic_folder(tmp_path, IDS, SEGMENTS[1:]), (2, 4))
    with pytest.warns(UserWarning, match=r"not in the JSON file: .*1.png: \[5\]"):
        _, maps = dataset[0]
    assert maps[0, 0, 0].tolist() == [0, 0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # reported once
        dataset[0]


def test_images_without_usable_maps_are_left_out(tmp_path):
    images, annotations, maps = panoptic_folder(tmp_path, IDS, SEGMENTS)
    data = json.loads((tmp_path / "file.json").read_text())
    data["images"] += [{**data["images"][0], "id": i} for i in (2, 3, 4)]
    first = data["annotations"][0]
    data["annotations"] += [
        {**first, "image_id": 2, "file_name": "2.png"},
        {**first, "image_id": 3, "segments_info": [{"id": 1}]},
    ]
    (tmp_path / "file.json").write_text(json.dumps(data))
    dataset = quietly(CocoPanoptic, images, annotations, maps, (2, 4))
    assert dict(dataset.problems) == {
        "missing map": [f"{maps}/2.png"],
        "malformed annotation": ["annotation 2 of image 3"],
        "image without a map": ["image 2", "image 3", "image 4"],
    }
    assert [item.image_id for item in dataset.items] == [1]
