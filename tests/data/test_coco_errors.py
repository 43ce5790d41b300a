"""What the readers of COCO's formats do about files that are wrong or missing."""

import functools
import json
import sys
import warnings

import keras
import numpy as np
import pytest
from coco_folders import (
    HEIGHT,
    WIDTH,
    box,
    brightness,
    image_entry,
    noise,
    numbered_folder,
    numbers,
    quietly,
    write,
)
from PIL import Image

from keras_reward.data.coco import CocoBoxes, CocoCaptions
from keras_reward.data.coco_files import coco_files
from keras_reward.data.coco_panoptic import CocoPanoptic


@pytest.mark.parametrize(
    ("bbox", "kind", "kept"),
    [
        ([50, 5, 10, 10], "box outside its image", None),
        ([5, -20, 10, 10], "box outside its image", None),
        ([5, 5, 0, 10], "box without area", None),
        ([5, 5, 10, -1], "box without area", None),
        ([5, 5, float("nan"), 10], "box without area", None),
        ([5, 5, 10], "malformed annotation", None),
        (None, "malformed annotation", None),
        ([30, 5, 20, 10], "box over the edge of its image", [30, 5, 40, 15]),
        ([-0.4, 5, 10.4, 10], None, [0, 5, 10, 15]),  # rounding is no fault
    ],
)
def test_bad_boxes_are_left_out_and_counted(tmp_path, bbox, kind, kept):
    found = [box(1, 1, bbox), box(2, 1, [1, 2, 3, 4])]
    folder = write(tmp_path, found, {1: noise(1)})
    dataset = quietly(CocoBoxes, *folder, (HEIGHT, WIDTH), max_boxes=2)
    problems = {} if kind is None else {kind: ["annotation 1 of image 1"]}
    assert dict(dataset.problems) == problems
    expected = [] if kept is None else [kept]
    expected = [*expected, [1, 2, 4, 6], [0] * 4][:2]
    np.testing.assert_array_equal(dataset[0][1]["boxes"][0], expected)


def test_annotations_that_fit_nothing_are_left_out_and_counted(tmp_path):
    found = [
        box(1, 8, [1, 1, 5, 5]),
        box(2, 1, [1, 1, 5, 5], 99),
        box(3, 1, [1, 1, 5, 5], [17]),
        {"id": 4},
        "nothing",
        box(6, 1, [1, 1, 5, 5], segmentation=[[1, 1]]),
        box(7, 1, [1, 1, 5, 5], segmentation={"size": [1, 1], "counts": [1]}),
    ]
    folder = write(tmp_path, found, {1: noise(1)})
    dataset = quietly(CocoBoxes, *folder, (8, 8), masks=True)
    assert dict(dataset.problems) == {
        "annotation of an unknown image": ["annotation 1 of image 8"],
        "annotation of an unknown category": [
            "annotation 2 of image 1",
            "annotation 3 of image 1",
        ],
        "malformed annotation": [
            "number 3",
            "number 4",
            "annotation 6 of image 1",
            "annotation 7 of image 1",
        ],
        "image without boxes": ["image 1"],
    }
    _, targets = dataset[0]
    assert (targets["labels"] == -1).all() and not targets["masks"].any()


def test_images_that_are_not_there_are_left_out_and_counted(tmp_path):
    images, annotations = numbered_folder(tmp_path, 3)
    data = json.loads((tmp_path / "file.json").read_text())
    data["images"] += [{"id": 7}, {**image_entry(8), "width": 0}]
    (tmp_path / "file.json").write_text(json.dumps(data))
    (tmp_path / "images" / "1.png").unlink()
    with pytest.warns(UserWarning, match=r"2 images can be used.*1.png"):
        dataset = CocoBoxes(images, annotations, (4, 4))
    assert dataset.problems["missing image"] == [f"{images}/1.png"]
    assert len(dataset.problems["malformed image entry"]) == 2
    assert numbers(dataset) == [0, 2]


def test_of_images_with_one_id_the_first_is_kept(tmp_path):
    images, annotations = numbered_folder(tmp_path, 3)
    data = json.loads((tmp_path / "file.json").read_text())
    data["images"].append({**image_entry(2, 4, 4), "id": 1})
    (tmp_path / "file.json").write_text(json.dumps(data))
    with pytest.warns(UserWarning, match="3 images can be used. duplicate image id: 1"):
        dataset = CocoBoxes(images, annotations, (4, 4))
    assert dict(dataset.problems) == {"duplicate image id": ["image 1: 2.png"]}
    assert numbers(dataset) == [0, 1, 2]


@pytest.mark.parametrize("area", [-1, float("nan"), float("inf")])
def test_the_area_of_the_box_takes_the_place_of_an_impossible_one(tmp_path, area):
    found = [box(1, 1, [5, 5, 10, 8], area=area), box(2, 1, [5, 5, 10, 8], area=0)]
    folder = write(tmp_path, found, {1: noise(1)})
    dataset = quietly(CocoBoxes, *folder, (HEIGHT, WIDTH), max_boxes=2)
    assert dict(dataset.problems) == {"impossible area": ["annotation 1 of image 1"]}
    np.testing.assert_array_equal(dataset[0][1]["area"], [[80, 0]])
    np.testing.assert_array_equal(dataset[0][1]["labels"], [[1, 1]])


def break_images(folder, *image_ids):
    for image_id in image_ids:
        path = folder / "images" / f"{image_id}.png"
        path.write_bytes(path.read_bytes()[:-30])


def test_broken_images_are_replaced_with_a_warning(tmp_path):
    images, annotations = numbered_folder(tmp_path, 5)
    break_images(tmp_path, 1, 4)
    dataset = CocoBoxes(images, annotations, (4, 4), batch_size=5)
    with pytest.warns(UserWarning, match="Another one takes its place") as caught:
        assert numbers(dataset) == [0, 2, 2, 3, 0]
    reported = [str(warning.message) for warning in caught]
    assert len(reported) == len(dataset.problems["broken image"]) == 2
    assert f"{images}/1.png" in reported[0] and f"{images}/4.png" in reported[1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # each is reported once
        assert numbers(dataset) == [0, 2, 2, 3, 0]


def test_an_empty_file_is_reported_once(tmp_path):
    """Pillow says something else of such a file each time that it is opened."""
    images, annotations = numbered_folder(tmp_path, 3)
    (tmp_path / "images" / "1.png").write_bytes(b"")
    dataset = CocoBoxes(images, annotations, (4, 4))
    with pytest.warns(UserWarning, match=r"1\.png: no image"):
        assert numbers(dataset) == [0, 2, 2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert numbers(dataset) == [0, 2, 2]
    assert len(dataset.problems["broken image"]) == 1


def test_broken_images_are_left_out_where_all_are_checked(tmp_path):
    images, annotations = numbered_folder(tmp_path, 5)
    break_images(tmp_path, 1, 4)
    dataset = quietly(CocoBoxes, images, annotations, (4, 4), check_images=True)
    assert [text.split(":")[0] for text in dataset.problems["broken image"]] == [
        f"{images}/1.png",
        f"{images}/4.png",
    ]
    assert numbers(dataset) == [0, 2, 3]


def test_broken_images_do_not_end_training_with_workers(tmp_path):
    images, annotations = numbered_folder(tmp_path, 6)
    break_images(tmp_path, 0, 3)
    dataset = CocoBoxes(
        *(images, annotations, (4, 4)),
        **{"batch_size": 2, "workers": 2},
        transform=brightness,
    )
    model = keras.Sequential([keras.Input((1,)), keras.layers.Identity()])
    got = 255 * model.predict(dataset, verbose=0)[:, 0]
    np.testing.assert_allclose(got, [1, 1, 2, 4, 4, 5], rtol=1e-5)


def test_worker_processes_put_the_same_images_in_place_of_broken_ones(
    tmp_path, capfd, monkeypatch
):
    """They warn of each of them; what is counted is what was found at the start."""
    show = lambda message, *_: print(message, file=sys.stderr)  # noqa: E731
    monkeypatch.setattr(warnings, "showwarning", show)  # pytest's keeps it in a worker
    images, annotations = numbered_folder(tmp_path, 9)
    break_images(tmp_path, 4, 5, 7)  # TensorFlow reads two batches without workers
    (tmp_path / "images" / "8.png").unlink()
    broken = [f"{images}/{image_id}.png" for image_id in (4, 5, 7)]
    model = keras.Sequential([keras.Input((1,)), keras.layers.Identity()])

    def read(**options):
        """Two epochs, the broken images that are counted, and those warned of."""
        dataset = quietly(
            *(CocoBoxes, images, annotations, (4, 4)),
            **{"batch_size": 2, "transform": brightness, **options},
        )
        capfd.readouterr()
        epochs = [255 * model.predict(dataset, verbose=0)[:, 0] for _ in range(2)]
        written = capfd.readouterr().err
        warned = [path for path in broken if f"broken image: {path}" in written]
        assert dataset.problems["missing image"] == [f"{images}/8.png"]
        counted = [text.split(":")[0] for text in dataset.problems["broken image"]]
        return np.round(epochs).tolist(), sorted(counted), warned

    processes = {"workers": 2, "use_multiprocessing": True}
    epochs = 2 * [[0, 1, 2, 3, 6, 6, 6, 0]]
    assert read() == (epochs, broken, broken)
    assert read(**processes) == (epochs, [], broken)
    epochs = 2 * [[0, 1, 2, 3, 6]]
    assert read(check_images=True) == (epochs, broken, [])
    assert read(check_images=True, **processes) == (epochs, broken, [])


def test_an_image_of_another_shape_than_annotated_is_broken(tmp_path):
    images, annotations = numbered_folder(tmp_path, 2)
    Image.fromarray(noise(0, 4, 8)).save(tmp_path / "images" / "0.png")
    # Of the same shape, smaller: boxes still follow.
    Image.fromarray(np.full((2, 2, 3), 1, "uint8")).save(tmp_path / "images" / "1.png")
    dataset = quietly(CocoBoxes, images, annotations, (4, 4), check_images=True)
    (reported,) = dataset.problems["broken image"]
    assert "0.png: 8 x 4 pixels, but its annotations are for 4 x 4" in reported
    np.testing.assert_array_equal(dataset[0][1]["boxes"][0, 0], [0, 0, 2, 2])


def test_no_usable_image_is_an_error(tmp_path):
    images, annotations = numbered_folder(tmp_path, 2)
    break_images(tmp_path, 0, 1)
    with pytest.raises(ValueError, match=r"None of the 2 images .*1\.png"):
        quietly(CocoBoxes, images, annotations, (4, 4))[0]
    with pytest.raises(ValueError, match=r"0 usable .*broken image: 2 \(.*0\.png"):
        CocoBoxes(images, annotations, (4, 4), check_images=True)
    with pytest.raises(ValueError, match=r"0 usable .*image without captions: 2"):
        (tmp_path / "file.json").write_text(
            json.dumps({"images": [image_entry(0), image_entry(1)], "annotations": []})
        )
        CocoCaptions(images, annotations, (4, 4))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"images": [{"id": 1, "file_na', r"file\.json is not valid JSON.*line 1"),
        ("", r"file\.json is not valid JSON"),
        ("[]", r"file\.json is not in COCO's format.*Received: list"),
        ('{"images": []}', r"not in COCO's format.*Received: \['images'\]"),
        (
            '{"images": [], "annotations": []}',
            r"file\.json must have a list `categories`.*Received: None",
        ),
    ],
)
def test_files_that_are_not_cocos_are_errors(tmp_path, text, message):
    images, annotations = numbered_folder(tmp_path, 2)
    (tmp_path / "file.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        CocoBoxes(images, annotations, (4, 4))


CAT, DOG = {"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        ([CAT, ["dog"]], r"string `name`. Received: \['dog'\]"),
        ([CAT, {"id": 2}], r"string `name`. Received: {'id': 2}"),
        ([CAT, {"id": 2, "name": 3}], r"string `name`. Received: .*'name': 3"),
        ([CAT, {"id": 2, "name": ["dog"]}], r"string `name`. Received: .*\['dog'\]"),
        ([CAT, {"name": "dog"}], r"integer `id`.*Received: {'name': 'dog'}"),
        ({"1": "cat"}, r"a list `categories`.*Received: {'1': 'cat'}"),
        ([CAT, DOG, {**DOG, "id": 1}], "a different `id` each. Received: 1, 1$"),
        ([CAT, DOG, {**DOG, "id": 3}], "different `name` each. Received: 'dog', 'dog'"),
        ([CAT], "names of those in .*file.json: cat. Received: categories=.*'dog'"),
    ],
)
def test_categories_that_cannot_be_used_are_errors_with_the_path(
    tmp_path, categories, message
):
    images, annotations = numbered_folder(tmp_path, 1)
    data = json.loads((tmp_path / "file.json").read_text())
    (tmp_path / "file.json").write_text(json.dumps({**data, "categories": categories}))
    for reader in (CocoBoxes, functools.partial(CocoPanoptic, maps=images)):
        with pytest.raises(ValueError, match=message) as caught:
            reader(images, annotations, image_size=(4, 4), categories=["dog"])
        assert annotations in str(caught.value)


def test_missing_files_are_errors_with_their_path(tmp_path):
    images, annotations = numbered_folder(tmp_path, 2)
    with pytest.raises(FileNotFoundError, match=r"other\.json"):
        CocoBoxes(images, tmp_path / "other.json", (4, 4))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        CocoBoxes(tmp_path / "nowhere", annotations, (4, 4))


@pytest.mark.parametrize(
    ("module", "package"), [("PIL", "pillow"), ("pycocotools", "pycocotools")]
)
def test_missing_packages_are_named(tmp_path, monkeypatch, module, package):
    found = [box(1, 1, [1, 1, 5, 5], segmentation=[[1, 1, 5, 5, 1, 5]])]
    folder = write(tmp_path, found, {1: noise(1)})
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=f"pip install {package}"):
        CocoBoxes(*folder, (4, 4), masks=True)


# --- where files are ---


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_both_layouts_are_found(tmp_path):
    standard, flat = tmp_path / "standard", tmp_path / "flat"
    for kind in ("instances", "captions", "panoptic"):
        touch(standard, f"annotations/{kind}_val2017.json")
        touch(flat, f"{kind}_eval.json")
    touch(standard, "val2017/1.jpg", "annotations/panoptic_val2017/1.png")
    touch(flat, "boxes_eval.json", "images_eval.tar", "panoptic_eval.tar")

    def found(folder, split, kind):
        paths = coco_files(folder, split, kind)
        return {part: path[len(str(folder)) + 1 :] for part, path in paths.items()}

    for split in ("val2017", "eval"):
        assert found(standard, split, "boxes") == {
            "annotations": "annotations/instances_val2017.json",
            "images": "val2017",
        }
        assert found(standard, split, "panoptic") == {
            "annotations": "annotations/panoptic_val2017.json",
            "images": "val2017",
            "maps": "annotations/panoptic_val2017",
        }
    assert found(flat, "eval", "boxes")["annotations"] == "boxes_eval.json"
    assert found(flat, "eval", "instances")["annotations"] == "instances_eval.json"
    assert found(flat, "eval", "panoptic") == {
        "annotations": "panoptic_eval.json",
        "images": "images_eval.tar",
        "maps": "panoptic_eval.tar",
    }
    with pytest.raises(FileNotFoundError, match=r"standard.*captions_train2017\.json"):
        coco_files(standard, "train", "captions")
    with pytest.raises(ValueError, match="`kind` must be one of 'boxes'"):
        coco_files(standard, "eval", "keypoints")
