"""The examples run from the first stage to the last, with a few steps of each."""

import importlib.util
import json
import pathlib
import sys

import numpy as np
import pytest
from coco_folders import CATEGORIES, box, image_entry, noise
from PIL import Image

from keras_reward.data import Vocabulary

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"
MOST_LINES = 350


def load_example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def captioning():
    """The captioning example with a small model and few steps."""
    example = load_example("image_captioning")
    stage = example.Stage(batch_size=4, rate=1e-3, warm_up=1, steps=2, epochs=2)
    blocks = {"num_layers": 1, "num_heads": 2, "mlp_dim": 8}
    example.PRESETS["tiny"] = {
        "image_size": 32,
        "encoder": {"patch_size": 8, "width": 8, **blocks},
        "decoder": blocks,
        "max_length": 20,
        "likelihood": stage,
        "tuning": stage,
    }
    example.REFERENCE_SCENES = 32
    example.STOPPING_IMAGES = example.TEST_IMAGES = 12
    return example


def detection():
    """The detection example with a small model and few steps."""
    example = load_example("object_detection")
    example.TINY.update(
        encoder={"patch_size": 8, "width": 8, "num_layers": 1, "num_heads": 2},
        decoder={"num_layers": 1, "mlp_dim": 8, "num_heads": 2},
        max_boxes=5,
        epochs={"likelihood": 2, "tuning": 2},
        num_samples=2,
    )
    for stage in ("likelihood", "tuning"):
        example.TINY[stage] = {**example.TINY[stage], "batch": 4, "steps": 2}
    example.HELD_OUT_SCENES, example.BATCH, example.WATCHED_BATCHES = 24, 8, 1
    return example


def run(example, monkeypatch, *arguments):
    """What an example writes to results.json."""
    monkeypatch.setattr(sys, "argv", ["example", *arguments, "--output", "out"])
    example.main()
    assert {"mle.keras", "tuned.keras", "curves.png"} <= {
        path.name for path in pathlib.Path("out").iterdir()
    }
    return json.loads(pathlib.Path("out/results.json").read_text())


def coco_folder(split, images):
    """Pictures with two captions and a person each, in a folder `coco`."""
    folder = pathlib.Path("coco")
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    (folder / split).mkdir()
    boxes, captions = [], []
    for image_id in range(1, images + 1):
        Image.fromarray(noise(image_id)).save(folder / split / f"{image_id}.png")
        boxes.append(box(image_id, image_id, [4, 4, 12, 20], category_id=1))
        captions += [
            {"id": 2 * image_id + i, "image_id": image_id, "caption": text}
            for i, text in enumerate(("a person", f"one person number {image_id}"))
        ]
    entries = [image_entry(image_id) for image_id in range(1, images + 1)]
    for kind, annotations in {"instances": boxes, "captions": captions}.items():
        data = {"images": entries, "annotations": annotations}
        path = folder / "annotations" / f"{kind}_{split}.json"
        path.write_text(json.dumps({**data, "categories": CATEGORIES}))


@pytest.mark.parametrize("name", ["image_captioning", "object_detection"])
def test_an_example_can_be_read_in_one_sitting(name):
    lines = (EXAMPLES / f"{name}.py").read_text().splitlines()
    assert len(lines) < MOST_LINES


def test_captioning_on_scenes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    example = captioning()
    results = run(example, monkeypatch)
    assert results["before"].keys() == results["after"].keys()
    assert "CIDEr-D" in results["before"]
    assert {"likelihood", "tuning"} <= set(results["seconds"])
    assert len(results["curves"]["likelihood"]["val_loss"]) == 2
    assert len(results["curves"]["tuning"]["val_reward"]) == 2
    words = json.loads(pathlib.Path("out/words.json").read_text())
    example.load_checkpoint("out/mle.keras", Vocabulary(words, 20))
    with pytest.raises(SystemExit, match="same --data"):
        example.load_checkpoint("out/mle.keras", Vocabulary([*words, "new"], 20))


def test_captions_of_a_coco_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    coco_folder("train2017", images=13)
    coco_folder("val2017", images=6)
    example = captioning()
    preset = example.argparse.Namespace(**example.PRESETS["tiny"])
    data = example.load_data("coco:coco", preset, seed=0)
    assert len(data.stopping[0]) == len(data.test[0]) == 3
    x, y, weights = data.likelihood[0]
    assert x["images"].shape == (4, 32, 32, 3)
    assert y.shape == weights.shape == (4, data.vocabulary.max_length)


def test_an_epoch_is_at_most_a_pass_over_the_data():
    stage = captioning().Stage(batch_size=4, rate=1.0, warm_up=0, steps=50, epochs=8)
    assert stage.fit_to(range(401)) == (50, 8)
    # Keras ends an epoch early where the data end: no pass is cut in two.
    assert stage.fit_to(range(51)) == (51, 8)
    assert stage.fit_to(range(10)) == (10, 40)


def test_detection_on_scenes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    example = detection()
    results = run(example, monkeypatch, "--reward", "map")
    assert results["metric"] == "map"
    assert {"sampled reward", "boxes an image", "ar_100"} <= set(results["before"])
    assert len(results["curves"]["val_loss"]) == len(results["curves"]["reward"]) == 2
    after = results["after"]
    assert after["map"] == after["map, confidence score"]
    task = make_task(example)
    example.load_checkpoint("out/mle.keras", task)
    task.preset.max_boxes += 1
    with pytest.raises(SystemExit, match="same --data"):
        example.load_checkpoint("out/mle.keras", task)


def test_boxes_of_a_coco_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    coco_folder("train2017", images=10)
    coco_folder("val2017", images=17)
    task = make_task(detection(), data="coco:coco")
    assert len(task.watched[0]) == 8 and list(task.test_batches) == [1, 2]
    data, steps, epochs = task.training("tuning")
    assert (len(data), steps, epochs) == (3, 3, 2)  # for 4 steps


def make_task(example, data="scenes"):
    arguments = example.argparse.Namespace(data=data, reward="recall", seed=0)
    return example.Task(arguments, example.types.SimpleNamespace(**example.TINY))


@pytest.mark.parametrize("preset", ["TINY", "PAPER"])
def test_images_and_model_of_a_preset_are_of_one_size(preset):
    example = detection()
    example.HELD_OUT_SCENES, example.BATCH = 2, 1
    settings = getattr(example, preset)
    arguments = example.argparse.Namespace(data="scenes", reward="recall", seed=0)
    task = example.Task(arguments, example.types.SimpleNamespace(**settings))
    side = settings["image_size"]
    assert task.watched[0].shape == (1, side, side, 3)
    assert task.codec().max_length == 6 * settings["max_boxes"]


def test_held_out_images_are_not_those_of_the_table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    task = make_task(detection())
    tested = np.concatenate([task.test[i][0] for i in task.test_batches])
    same = np.all(task.watched[0][:, None] == tested[None], axis=(2, 3, 4))
    assert len(task.watched[0]) == 8 and len(tested) == 16
    assert not same.any()


def test_other_data_are_refused(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for example in (captioning(), detection()):
        with pytest.raises(SystemExit, match="Expected --data scenes or"):
            run(example, monkeypatch, "--data", "scens")
