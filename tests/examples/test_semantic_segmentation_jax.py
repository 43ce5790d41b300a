"""The example of semantic segmentation, with a few steps of each stage."""

import argparse
import json
import pathlib
import sys
import types

import keras
import numpy as np
import pytest
from coco_folders import noise
from PIL import Image
from test_examples_jax import load_example, run, same_weights


@pytest.fixture
def example():
    """The example with few small pictures, a small model and few steps."""
    example = load_example("semantic_segmentation")
    example.FOLDER_SIZE = 32
    for settings in example.TINY.values():
        settings |= {
            "scenes": {"train": 8, "validation": 4, "test": 6},
            "widths": (4, 4, 4),
            "batch": 4,
            "image_size": 32,
        }
        for stage in ("likelihood", "tuning"):
            settings[stage] |= {"epochs": 2, "warmup": 1}
    return example


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def arguments(**changed):
    given = {"data": "scenes", "classes": "binary", "reward": "iou", "seed": 0}
    return argparse.Namespace(**{**given, "credit": "auto", **changed})


def make_task(example, **changed):
    args = arguments(**changed)
    return example.Task(args, types.SimpleNamespace(**example.TINY[args.classes]))


def write_folder(labels):
    """Pictures of noise in `data/images`, and masks in `data/masks`."""
    for name in ("images", "masks"):
        pathlib.Path("data", name).mkdir(parents=True)
    for i, mask in enumerate(labels):
        Image.fromarray(noise(i)).save(f"data/images/{i}.jpg")
        Image.fromarray(np.asarray(mask, "uint8")).save(f"data/masks/{i}.png")


@pytest.mark.slow
@pytest.mark.parametrize("classes, reward", [("binary", "iou"), ("all", "boundary")])
def test_scenes_by_parts(example, monkeypatch, classes, reward):
    flags = ("--classes", classes, "--reward", reward, "--credit", "parts")
    results = run(example, monkeypatch, *flags)
    before, after = results["before"], results["after"]
    assert results["metric"] == reward and before.keys() == after.keys()
    assert {"reward, greedy", "reward, sampled"} <= before.keys()
    assert before[f"{reward}, best offsets"] > 0.0
    assert pathlib.Path("out/maps.png").exists()
    for stage, curve in {"likelihood": "val_loss", "tuning": "val_reward"}.items():
        assert len(results["curves"][stage][curve]) == 2
    models = [
        keras.models.load_model(f"out/{name}.keras", compile=False)
        for name in ("mle", "tuned")
    ]
    assert not same_weights(*models)
    if classes == "all":
        return
    flags += ("--mle-checkpoint", "out/mle.keras")
    again = run(example, monkeypatch, *flags)
    assert again["before"] == before
    assert "likelihood" not in again["curves"]


@pytest.mark.slow
def test_a_folder_and_a_model_of_keras_hub(example, monkeypatch):
    rng = np.random.default_rng(0)
    write_folder([rng.choice([0, 1, 2, 255], (20, 30)) for _ in range(10)])
    example.TINY["all"]["batch"] = 2
    flags = ("--data", "data", "--classes", "all", "--model", "hub")
    results = run(example, monkeypatch, *flags)
    model = keras.models.load_model("out/tuned.keras", compile=False)
    size = example.FOLDER_SIZE
    assert model.output_shape == (None, size, size, 3)
    assert 0.0 < results["after"]["iou"] < 1.0


def test_pictures_of_a_folder_are_in_one_part_each(example):
    write_folder([np.full((8, 8), i % 3) for i in range(10)])
    parts = example.read_folder(pathlib.Path("data"), 16)
    assert [len(images) for images, _ in parts] == [6, 2, 2]
    labels = [part[:, 0, 0, 0].tolist() for _, part in parts]
    # Pictures 0 and 5 are for the table, 1 and 6 decide.
    assert labels == [[2, 0, 1, 1, 2, 0], [1, 0], [0, 2]]
    assert parts[0][0].shape == (6, 16, 16, 3) and parts[0][0].max() <= 1.0


def test_binary_is_something_or_nothing_and_keeps_void(example):
    labels = np.array([0, 2, 9, 10, 11, 255])
    assert example.as_binary(labels, "data").tolist() == [0, 1, 1, 1, 1, 255]
    assert example.as_binary(labels, "scenes").tolist() == [1, 1, 1, 0, 0, 255]


def test_training_scenes_alone_are_new_in_every_epoch(example):
    task = make_task(example)
    data = task.training()
    data.order = np.arange(8)
    first, again = data[0], data[0]
    assert not np.allclose(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    np.testing.assert_array_equal(first[1], task.train[1][:4])
    other = make_task(example, seed=1)
    np.testing.assert_array_equal(task.test[0], other.test[0])
    assert not np.array_equal(task.train[0], other.train[0])


def test_void_pixels_have_no_likelihood(example):
    logits = np.array([[[[2.0], [-1.0], [5.0]]]], "float32")
    labels = np.array([[[[1], [1], [255]]]])
    loss = example.negative_log_likelihood(labels, logits)
    expected = np.log1p(np.exp([-2.0, 1.0])).mean()
    np.testing.assert_allclose(np.asarray(loss), [expected], rtol=1e-5)
    classes = np.log(np.array([[[[0.5, 0.2, 0.3], [0.1, 0.1, 0.8], [1, 1, 1]]]]))
    labels = np.array([[[[1], [2], [255]]]])
    loss = example.negative_log_likelihood(labels, classes.astype("float32"))
    expected = -np.log([0.2, 0.8]).mean()
    np.testing.assert_allclose(np.asarray(loss), [expected], rtol=1e-5)


def test_best_offsets_are_those_of_the_best_threshold(example):
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, (4, 16, 16, 1))
    # Logits that are right from -1.5 on, and so earn everything at that threshold.
    logits = np.where(truth, 1.0, -4.0) + rng.uniform(-2, 2, truth.shape) - 0.25
    logits = example.two_channels(logits.astype("float32"))
    reward = example.MeanIoUReward(1)
    offsets = example.best_offsets(logits, truth, reward)
    assert offsets[0] == 0.0 and offsets[1] in example.OFFSETS
    moved = example.greedy_maps(logits + offsets)
    assert example.mean(reward, truth, moved) == 1.0
    assert example.mean(reward, truth, example.greedy_maps(logits)) < 0.9


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda: pathlib.Path("data/images/1.jpg").unlink(), "alone: 1"),
        (lambda: [p.unlink() for p in pathlib.Path("data").glob("*/[2-9].*")], "2 im"),
        (lambda: Image.fromarray(noise(0)).save("data/masks/1.png"), "of mode RGB"),
        (
            lambda: Image.fromarray(np.full((8, 8), 255, "uint8")).save(
                "data/masks/1.png"
            ),
            "divide",
        ),
    ],
)
def test_folders_that_do_not_fit(example, change, message):
    write_folder([np.zeros((8, 8)) for i in range(10)])
    change()
    with pytest.raises(SystemExit, match=message):
        make_task(example, data="data")


def test_models_that_do_not_fit(example):
    task = make_task(example)
    with pytest.raises(SystemExit, match="Expected unet, hub or"):
        example.build_model("vnet", task)
    size = task.size
    image = keras.Input((size, size, 3))
    for channels, activation, message in (
        (2, None, rf"logits of shape \(None, {size}, {size}, 2\)"),
        (1, "sigmoid", "probabilities of shape"),
    ):
        output = keras.layers.Conv2D(channels, 1, activation=activation)(image)
        keras.Model(image, output).save("other.keras")
        with pytest.raises(SystemExit, match=message):
            example.load_model("other.keras", task)


def test_soft_losses_of_certain_maps_are_one_minus_the_rewards(example, monkeypatch):
    monkeypatch.setitem(sys.modules, "semantic_segmentation", example)
    path = pathlib.Path(__file__).parents[2] / "benchmarks"
    monkeypatch.syspath_prepend(path)
    import segmentation as benchmark

    rng = np.random.default_rng(0)
    for classes in (1, 3):
        number = max(2, classes)
        truth = rng.integers(0, number, (3, 6, 6, 1))
        truth[:, 0] = 255
        drawn = rng.integers(0, number, (3, 6, 6))
        logits = 200.0 * np.eye(number, dtype="float32")[drawn] - 100.0
        logits = logits[..., 1:] if classes == 1 else logits
        for name, reward in (
            ("iou", example.MeanIoUReward(classes)),
            ("dice", example.DiceReward(classes)),
        ):
            loss = benchmark.SOFT[name](truth, logits)
            expected = 1.0 - np.asarray(reward(truth, drawn))
            np.testing.assert_allclose(np.asarray(loss), expected, atol=1e-5)


def test_results_are_written_as_numbers(example, monkeypatch):
    task = make_task(example)
    model = example.build_model("unet", task)
    column, maps = example.measure(model, task)
    json.dumps(column)
    assert maps["greedy"].shape == maps["sample"].shape == task.test[1].shape[:3]
