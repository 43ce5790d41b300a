"""Files in COCO's formats that were made to do harm."""

import json
import os
import zlib

import numpy as np
import pytest
from coco_folders import HEIGHT, WIDTH, box, image_entry, noise, quietly, write
from PIL import Image

from keras_reward.data.coco import CocoBoxes, CocoCaptions
from keras_reward.data.coco_files import read_categories
from keras_reward.data.coco_masks import run_lengths
from keras_reward.data.coco_panoptic import CocoPanoptic
from keras_reward.data.image_files import MAX_PIXELS

SIZE = (8, 8)


def with_images(folder, *entries, annotations=None):
    """A folder with image 1, a picture beside it, and a JSON file of these entries."""
    found = [box(1, 1, [1, 1, 5, 5])] if annotations is None else annotations
    images, path = write(folder, found, {1: noise(1)})
    Image.fromarray(noise(2)).save(folder / "secret.png")
    data = json.loads((folder / "file.json").read_text())
    data["images"] = [image_entry(1), *entries]
    (folder / "file.json").write_text(json.dumps(data))
    return images, path


def named(name, image_id=2):
    return {**image_entry(image_id), "file_name": name}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("../secret.png", "image outside its folder"),
        ("deep/../../secret.png", "image outside its folder"),
        ("{folder}/secret.png", "image outside its folder"),
        ("link.png", "image outside its folder"),
        ("out/secret.png", "image outside its folder"),
        ("..", "image outside its folder"),
        ("fifo", "missing image"),
        ("", "image outside its folder"),
        ("a" * 100_000, "missing image"),
        ("1.png\0", "missing image"),
        ("\ud800.png", "missing image"),
        ("\x1b[31m.png", "missing image"),
        ("inside.png", None),
        ("../images/1.png", None),
    ],
)
def test_only_files_in_the_folder_are_read(tmp_path, name, kind):
    name = name.format(folder=tmp_path)
    images, annotations = with_images(tmp_path, named(name))
    os.symlink("../secret.png", tmp_path / "images" / "link.png")
    os.symlink("..", tmp_path / "images" / "out")
    os.symlink("1.png", tmp_path / "images" / "inside.png")
    os.mkfifo(tmp_path / "images" / "fifo")
    dataset = quietly(CocoBoxes, images, annotations, SIZE)
    found = {key: value for key, value in dataset.problems.items() if "box" not in key}
    if kind is None:
        assert not found and len(dataset.items) == 2
        return
    assert list(found) == [kind] and len(dataset.items) == 1
    (message,) = found[kind]
    assert message.startswith(f"{images}/") and len(message) < 500
    assert message.isprintable()


def test_a_folder_that_is_a_link_itself_is_read(tmp_path):
    _, annotations = with_images(tmp_path)
    os.symlink("images", tmp_path / "linked")
    assert len(quietly(CocoBoxes, tmp_path / "linked", annotations, SIZE).items) == 1


def test_a_link_that_comes_later_is_not_followed(tmp_path):
    images, annotations = with_images(tmp_path)
    dataset = quietly(CocoBoxes, images, annotations, SIZE)
    (tmp_path / "images" / "1.png").unlink()
    os.symlink("../secret.png", tmp_path / "images" / "1.png")
    with pytest.raises(ValueError, match=r"1\.png: it is not in the folder"):
        quietly(lambda: dataset[0])


def panoptic_folder(folder, name="1.png", **segment):
    """One image whose map is all of segment 9, of category 17."""
    segment = {"id": 9, "category_id": 17, **segment}
    found = [{"image_id": 1, "file_name": name, "segments_info": [segment]}]
    images, annotations = with_images(folder, annotations=found)
    (folder / "maps").mkdir()
    ids = np.zeros((HEIGHT, WIDTH, 3), "uint8")
    ids[..., 0] = 9
    for path in ("maps/1.png", "map.png"):
        Image.fromarray(ids).save(folder / path)
    os.symlink("../map.png", folder / "maps" / "link.png")
    return images, annotations, str(folder / "maps")


@pytest.mark.parametrize("name", ["../map.png", "link.png"])
def test_only_maps_in_the_folder_are_read(tmp_path, name):
    folder = panoptic_folder(tmp_path, name)
    with pytest.raises(ValueError, match=r"map outside its folder: 1 \(.*maps/"):
        CocoPanoptic(*folder, SIZE)


@pytest.mark.parametrize(
    ("segment", "kind"),
    [
        ({"id": 0}, "segment with an impossible id"),
        ({"id": -9}, "segment with an impossible id"),
        ({"id": 2**24}, "segment with an impossible id"),
        ({"id": 10**30}, "segment with an impossible id"),
        ({"id": True}, "malformed annotation"),
        ({"id": "9"}, "malformed annotation"),
        ({"iscrowd": "0"}, "malformed annotation"),
        ({"iscrowd": 2}, "malformed annotation"),
        ({"category_id": [17]}, "malformed annotation"),
        ({"category_id": 2**70}, "malformed annotation"),
    ],
)
def test_impossible_segments_are_counted(tmp_path, segment, kind):
    folder = panoptic_folder(tmp_path, **segment)
    if kind == "malformed annotation":  # there is no other image
        with pytest.raises(
            ValueError, match=r"malformed annotation: 1 \(.* of image 1"
        ):
            CocoPanoptic(*folder, SIZE)
        return
    dataset = quietly(CocoPanoptic, *folder, SIZE)
    assert list(dataset.problems) == [kind]
    assert not quietly(lambda: dataset[0])[1].any()  # all void


def test_a_segment_that_is_listed_twice_keeps_its_first_class(tmp_path):
    folder = panoptic_folder(tmp_path)
    path = tmp_path / "file.json"
    data = json.loads(path.read_text())
    data["annotations"][0]["segments_info"].append({"id": 9, "category_id": 1})
    path.write_text(json.dumps(data))
    dataset = quietly(CocoPanoptic, *folder, SIZE)
    assert list(dataset.problems) == ["duplicate segment id"]
    assert (dataset[0][1][..., 0] == dataset.class_names.index("cat") + 1).all()


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"bbox": ["1", "1", "5", "5"]}, "malformed annotation"),
        ({"bbox": "1155"}, "malformed annotation"),
        ({"bbox": {"0": 1}}, "malformed annotation"),
        ({"bbox": [True, 1, 5, 5]}, "malformed annotation"),
        ({"bbox": [1, 1, 10**400, 5]}, "malformed annotation"),
        ({"bbox": [1, 1, 5, 5, 5]}, "malformed annotation"),
        ({"bbox": [1, 1, 1e308, 1e308]}, "box over the edge of its image"),
        ({"area": 10**400}, "malformed annotation"),
        ({"area": "nan"}, "malformed annotation"),
        ({"area": 1e38}, "impossible area"),
        ({"iscrowd": "0"}, "malformed annotation"),
        ({"iscrowd": "false"}, "malformed annotation"),
        ({"iscrowd": 0.5}, "malformed annotation"),
        ({"iscrowd": [0]}, "malformed annotation"),
        ({"iscrowd": 1, "is_crowd": 0}, "malformed annotation"),
        ({"category_id": True}, "annotation of an unknown category"),
        ({"category_id": 2**64}, "annotation of an unknown category"),
        ({"image_id": True}, "malformed annotation"),
        ({"image_id": 2**63}, "malformed annotation"),
        ({"image_id": -1}, "annotation of an unknown image"),
        ({"image_id": 1.0}, "malformed annotation"),
    ],
)
def test_impossible_values_of_a_box_are_counted(tmp_path, change, kind):
    found = [{**box(1, 1, [1, 1, 5, 5]), **change}, box(2, 1, [1, 2, 3, 4])]
    folder = with_images(tmp_path, annotations=found)
    dataset = quietly(CocoBoxes, *folder, (HEIGHT, WIDTH), max_boxes=2)
    assert kind in dataset.problems
    targets = dataset[0][1]
    assert not targets["is_crowd"].any()
    assert np.isfinite(targets["area"]).all() and np.isfinite(targets["boxes"]).all()
    assert targets["area"].max() <= HEIGHT * WIDTH


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"height": 10**12, "width": 10**12}, "image of more than"),
        ({"height": 10**400}, "image of more than"),
        ({"height": True}, "malformed image entry"),
        ({"height": 30.0}, "malformed image entry"),
        ({"width": -40}, "malformed image entry"),
        ({"width": "40"}, "malformed image entry"),
        ({"id": True}, "malformed image entry"),
        ({"id": 2**63}, "malformed image entry"),
        ({"id": [1]}, "malformed image entry"),
        ({"file_name": None}, "malformed image entry"),
        ({"file_name": "\ud800\x07", "width": None}, "malformed image entry"),
    ],
)
def test_impossible_images_are_counted(tmp_path, change, kind):
    folder = with_images(tmp_path, {**image_entry(2), **change})
    dataset = quietly(CocoBoxes, *folder, SIZE)
    (found,) = [key for key in dataset.problems if "box" not in key]
    assert found.startswith(kind) and len(dataset.items) == 1
    assert dataset.problems[found][0].isprintable()


def black_png(width, height):
    """A PNG of black pixels, which is a thousandth of their size."""

    def chunk(kind, data):
        tag = kind + data
        return len(data).to_bytes(4, "big") + tag + zlib.crc32(tag).to_bytes(4, "big")

    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    packer = zlib.compressobj(9)
    row = bytes(1 + 3 * width)
    data = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(*part)
        for part in (
            (b"IHDR", size + bytes([8, 2, 0, 0, 0])),
            (b"IDAT", data),
            (b"IEND", b""),
        )
    )


@pytest.mark.parametrize("maps", [False, True])
def test_a_picture_of_too_many_pixels_is_not_decoded(tmp_path, maps, monkeypatch):
    """Its header is enough: here of 90 million pixels, with data for ten of them."""
    head, tail = black_png(10, 1)[:16], black_png(10, 1)[16:]
    size = (9_500).to_bytes(4, "big") + (9_500).to_bytes(4, "big")
    header = b"IHDR" + size + tail[8:13]
    bomb = head[:12] + header + zlib.crc32(header).to_bytes(4, "big") + tail[17:]
    assert MAX_PIXELS < 9_500**2
    place = tmp_path / ("maps" if maps else "images") / "1.png"
    if maps:
        reader, folder = CocoPanoptic, panoptic_folder(tmp_path)
    else:
        reader, folder = CocoBoxes, with_images(tmp_path)
    place.write_bytes(bomb)
    decoded = []
    if not maps:  # whose images are decoded before them
        monkeypatch.setattr(Image.Image, "convert", lambda *_: decoded.append(1))
    message = r"1\.png: 9500 x 9500 pixels, more than 89478485 in all"
    with pytest.raises(ValueError, match=message):
        quietly(reader, *folder, SIZE, check_images=True)
    assert not decoded


def test_a_picture_that_another_program_would_read_is_refused(tmp_path):
    folder = with_images(tmp_path)
    Image.fromarray(noise(1)).save(tmp_path / "images" / "1.png", format="EPS")
    with pytest.raises(ValueError, match=r"1\.png: EPS files are not read"):
        quietly(CocoBoxes, *folder, SIZE, check_images=True)


def test_lists_that_are_nested_too_deeply_are_an_error(tmp_path):
    folder = with_images(tmp_path)
    deep = "[" * 100_000 + "]" * 100_000
    text = f'{{"images": {deep}, "annotations": []}}'
    (tmp_path / "file.json").write_text(text)
    with pytest.raises(ValueError, match=r"file\.json is not in COCO's.*too deeply"):
        CocoBoxes(*folder, SIZE)


class Counted(str):
    """A name that counts how often it is compared."""

    comparisons = 0
    __hash__ = str.__hash__

    def __eq__(self, other):
        Counted.comparisons += 1
        return str.__eq__(self, other)


def test_many_categories_are_not_compared_with_each_other(tmp_path):
    count = 2_000
    data = {"categories": [{"id": i, "name": Counted(f"c{i}")} for i in range(count)]}
    Counted.comparisons = 0
    assert len(read_categories(data, "file.json")) == count
    assert Counted.comparisons < 10 * count
    folder = with_images(tmp_path)
    data = json.loads((tmp_path / "file.json").read_text())
    data["categories"] = [{"id": i, "name": f"c{i}"} for i in range(count)]
    (tmp_path / "file.json").write_text(json.dumps(data))
    assert len(quietly(CocoBoxes, *folder, SIZE).class_names) == count
    with pytest.raises(ValueError, match=r"c19, and 1980 more\. Received"):
        CocoBoxes(*folder, SIZE, categories=["dog"])


@pytest.mark.parametrize("value", ["0", 2, None, [1]])
def test_things_are_told_by_0_and_1(value):
    data = {"categories": [{"id": 1, "name": "cat", "isthing": value}]}
    with pytest.raises(ValueError, match=r"file\.json must have .*`isthing` is 0 or 1"):
        read_categories(data, "file.json")


def test_a_caption_that_cannot_be_written_is_counted(tmp_path):
    found = [{"id": i, "image_id": 1, "caption": c} for i, c in enumerate(TEXTS)]
    dataset = quietly(CocoCaptions, *with_images(tmp_path, annotations=found), SIZE)
    assert dataset.problems["malformed annotation"] == ["annotation 1 of image 1"]
    assert dataset[0][1] == [[TEXTS[0]]]


TEXTS = ["a <cat>\x00\x1b[31m", "a \ud800 cat"]

# Masks.

IMAGE = {"height": 4, "width": 5}


def rle(counts, size=(4, 5)):
    return {"counts": counts, "size": list(size)}


@pytest.mark.parametrize(
    "segmentation",
    [
        [[1e30, 1e30, -1e30, 1e30, 5, 5]],  # ends the process in pycocotools
        [[float("nan")] * 8],
        [[float("inf"), 0, 1, 1, 2, 2]],
        [[10**400, 0, 1, 1, 2, 2]],
        [[0, 0, 10.5, 1, 2, 2]],  # further outside than the image is wide
        [[1, 2]],
        [[1, 2, 3, 4]],  # a box to pycocotools
        [[1, 2, 3, 4, 5]],
        ["abcdef"],
        [["1"] * 6],
        [[1, 1, 2, 2, 3, 1], None],
        [],
        [1, 1, 2, 2, 3, 1],
        [[0, 0, 5, 4] * 500_000],  # an outline of 5 million pixels
        None,
        "text",
        {},
        rle([-5, 25]),
        rle([10**9] * 50),
        rle([10, 9]),
        rle([10, 11]),
        rle([]),
        rle([2**32 + 20]),
        rle([10**400]),
        rle(["20"]),
        rle([20.0]),
        rle([True] * 20),
        rle(None),
        rle(""),
        rle("P" * 4_000),
        rle("\x7f" * 1_000),
        rle("é"),
        rle("\ud800"),
        rle("o"),  # more follows, but there is no more
        rle("o" * 12 + "0"),
        rle([20], (20, 1)),
        rle([20], (4.0, 5)),
        rle([20], (4, 5, 1)),
        rle([20], (True, 20)),
        {**rle([20]), "size": "45"},
    ],
)
def test_segmentations_that_fit_no_image_are_refused(segmentation):
    pytest.importorskip("pycocotools")
    with pytest.raises((KeyError, TypeError, ValueError)):
        run_lengths(segmentation, IMAGE)


def test_segmentations_are_decoded_as_pycocotools_does():
    """Random masks: compressed, uncompressed, and polygons."""
    tools = pytest.importorskip("pycocotools.mask")
    generator = np.random.default_rng(0)
    for _ in range(50):
        height, width = generator.integers(1, 40, 2).tolist()
        share = generator.random()
        mask = np.asfortranarray(generator.random((height, width)) < share, "uint8")
        packed = tools.encode(mask)
        columns = mask.ravel(order="F")
        changes = np.flatnonzero(np.diff(columns)) + 1
        ends = [0, *changes.tolist(), len(columns)]
        counts = np.diff([0, *ends] if columns[0] else ends).tolist()
        image = {"height": height, "width": width}
        for given in (counts, packed["counts"].decode()):
            found = run_lengths(rle(given, (height, width)), image)
            assert found == packed
        polygon = generator.uniform(-1, 2, (5, 2)) * [width, height]
        polygons = [polygon.ravel().tolist()]
        expected = tools.merge(tools.frPyObjects(polygons, height, width))
        assert run_lengths(polygons, image) == expected


def test_a_segmentation_that_is_refused_is_counted(tmp_path):
    pytest.importorskip("pycocotools")
    evil = [[1e30, 1e30, -1e30, 1e30, 5, 5]]
    found = [box(1, 1, [1, 1, 5, 5], segmentation=evil)]
    folder = with_images(tmp_path, annotations=found)
    dataset = quietly(CocoBoxes, *folder, SIZE, masks=True)
    assert dataset.problems["malformed annotation"] == ["annotation 1 of image 1"]
    assert not dataset[0][1]["masks"].any()
