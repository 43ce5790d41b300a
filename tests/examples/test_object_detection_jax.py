"""The example of object detection with KerasHub's RetinaNet, in a few steps."""

import argparse
import pathlib
import types

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from test_examples_jax import coco_folder, detection, load_example, run, same_weights

pytestmark = [pytest.mark.slow, pytest.mark.hub]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def example(monkeypatch):
    """The example with few small images and few steps."""
    example, few = detection(), {"batch": 4, "steps": 4, "warmup": 1}
    settings = example.detectors.PRESETS["retinanet"]
    small = {stage: settings[stage] | few for stage in ("likelihood", "tuning")}
    small |= {"train_scenes": 8, "image_size": 32}
    monkeypatch.setitem(example.detectors.PRESETS, "retinanet", settings | small)
    return example


@pytest.fixture(scope="module")
def detectors():
    return load_example("shared_detectors")


def make_task(example, **changed):
    given = {"data": "scenes", "reward": "recall", "seed": 0, "model": "retinanet"}
    args = argparse.Namespace(**{**given, "preset": "tiny", **changed})
    return example.Task(args, types.SimpleNamespace(**example.settings_of(args)))


def test_a_detector_on_scenes(example, monkeypatch):
    results = run(example, monkeypatch, "--model", "retinanet", "--reward", "map")
    before, after = results["before"], results["after"]
    assert results["metric"] == "map" and before.keys() == after.keys()
    assert {"ar_100", "f1", "best threshold", "boxes an image"} <= before.keys()
    assert len(results["curves"]["val_loss"]) == len(results["curves"]["val_map"]) == 2
    assert pathlib.Path("out/boxes.png").exists()
    task = make_task(example)
    models = [example.load_checkpoint(f"out/{n}.keras", task) for n in ("mle", "tuned")]
    assert not same_weights(*models)
    task.class_names = ("person",)
    with pytest.raises(SystemExit, match="same --model"):
        example.load_checkpoint("out/mle.keras", task)
    task = make_task(example, model="sequence")
    with pytest.raises(SystemExit, match="same --model"):
        example.load_checkpoint("out/mle.keras", task)


def test_a_detector_on_a_coco_folder(example, monkeypatch):
    coco_folder("train2017", images=10)
    coco_folder("val2017", images=17)
    flags = ("--model", "retinanet", "--data", "coco:coco")
    results = run(example, monkeypatch, *flags)
    assert results["metric"] == "ar_100"
    assert results["after"]["objects an image"] == 1.0


def test_only_sequences_have_published_sizes(example, monkeypatch):
    with pytest.raises(SystemExit, match="--preset paper with --model sequence"):
        run(example, monkeypatch, "--model", "retinanet", "--preset", "paper")


def test_detectors_have_held_out_scenes_of_their_own(example):
    tasks = [make_task(example, model=name) for name in ("retinanet", "sequence")]
    images = [task.test[1][0] for task in tasks]
    assert images[0].shape == images[1].shape
    assert np.abs(images[0] - images[1]).max() > 0.1


def test_a_box_finds_an_object_of_its_label_once(detectors):
    truth = {
        "boxes": np.array(
            [[[0, 0, 10, 10], [20, 20, 30, 30], [0, 0, 0, 0]]], "float32"
        ),
        "labels": np.array([[3, 5, -1]]),
    }
    sides = [
        [0, 0, 10, 8],  # IoU 0.8
        [0, 0, 10, 10],  # found already
        [20, 20, 30, 30],  # of another label
        [20, 20, 25, 30],  # IoU 0.5
        [0, 0, 0, 0],  # padding
    ]
    boxes = {
        "boxes": np.array([sides], "float32"),
        "labels": np.array([[3, 3, 4, 5, -1]]),
        "scores": np.array([[0.9, 0.8, 0.7, 0.4, 0.0]]),
    }
    found = detectors.find(truth, boxes)
    np.testing.assert_array_equal(found, [[True, False, False, True, False]])
    f1 = detectors.F1()
    for _ in range(2):
        f1.update_state(truth, boxes)
    assert f1.at(0.5) == 2 * 1 / (3 + 2)
    assert f1.at(0.3) == 2 * 2 / (4 + 2)
    assert f1.at(0.95) == 0.0
    assert f1.at(f1.best_threshold()) == f1.at(0.3)  # the most


def losses_of_dfine():
    """The loss of the D-FINE for two images, and for each of them alone."""
    detectors = load_example("shared_detectors")
    keras.utils.set_random_seed(0)
    model = detectors.build_dfine(64, 10)
    x = np.random.default_rng(0).uniform(size=(2, 64, 64, 3)).astype("float32")
    boxes = [[[4, 4, 24, 30], [30, 8, 50, 60]], [[8, 30, 20, 60], [0] * 4]]
    y = np.array(boxes, "float32"), np.array([[3, 5], [7, -1]])
    predicted = model(keras.ops.convert_to_tensor(x))

    @jax.jit
    def loss(rows):
        one = keras.tree.map_structure(lambda values: values[rows], predicted)
        targets = {"boxes": jnp.asarray(y[0])[rows], "labels": jnp.asarray(y[1])[rows]}
        return model.compute_loss(jnp.asarray(x)[rows], targets, one)

    return [float(loss(jnp.array(rows))) for rows in ([0, 1], [0], [1])]


def test_the_loss_of_a_dfine_is_that_of_each_image(hub):
    both, *alone = hub(losses_of_dfine)
    assert abs(alone[0] - alone[1]) > 0.1
    np.testing.assert_allclose(both, sum(alone) / 2, rtol=1e-4)
