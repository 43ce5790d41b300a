"""The examples run from the first stage to the last, with a few steps of each."""

import importlib
import importlib.util
import json
import pathlib
import sys
import tarfile

import keras
import numpy as np
import pytest
from coco_folders import CATEGORIES, box, image_entry, noise
from PIL import Image

from keras_reward.data import Vocabulary

pytestmark = pytest.mark.slow

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"
MOST_LINES = {
    "image_captioning": 350,
    "object_detection": 380,
    "colorization": 450,
    "colorization_uvim": 450,
    "panoptic_segmentation": 400,
    "edge_detection": 430,
    "semantic_segmentation": 400,
}


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
    example.REFERENCE_SCENES, example.UNLIMITED = 32, 1000
    example.STOPPING_IMAGES = example.TEST_IMAGES = 12
    return example


def detection():
    """The detection example with a small model and few steps."""
    example = load_example("object_detection")
    example.TINY.update(
        encoder={"patch_size": 8, "width": 8, "num_layers": 1, "num_heads": 2},
        decoder={"num_layers": 1, "mlp_dim": 8, "num_heads": 2},
        train_scenes=8,
        max_boxes=5,
        num_samples=2,
    )
    for stage in ("likelihood", "tuning"):  # two passes
        example.TINY[stage] |= {"batch": 4, "steps": 4, "warmup": 1}
    example.HELD_OUT_SCENES, example.BATCH, example.WATCHED_BATCHES = 24, 8, 1
    return example


def colorization(monkeypatch):
    """Both colorization examples with few squares, small models and few steps."""
    monkeypatch.syspath_prepend(EXAMPLES)
    for name in ("colorization", "colorization_uvim"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    example, uvim = map(importlib.import_module, ("colorization", "colorization_uvim"))
    example.TRAIN_SQUARES, example.HELD_OUT_SQUARES, example.BATCH = 24, 8, 8
    example.WIDTH, example.STEPS_PER_EPOCH, example.MOST_EPOCHS = 8, 2, 2
    uvim.GALLERY_ROWS = 2
    stage = {"rate": 0.03, "warmup": 1, "last": 0.1, "batch": 8, "steps": 2}
    stage["epochs"] = 2
    layers = {"num_layers": 1, "num_heads": 2}
    uvim.TINY.update(
        image_size=16,
        stage_one={
            "code_grid": 4,
            "num_codes": 8,
            "width": 8,
            "oracle_layers": 1,
            "base_layers": 1,
            "num_heads": 2,
        },
        encoder={"width": 8, **layers},
        decoder=layers,
        codes=stage,
        likelihood=stage,
        tuning=stage,
        num_samples=2,
    )
    return example, uvim


def panoptic():
    """The panoptic example with small models and few steps."""
    example = load_example("panoptic_segmentation")
    stage = {"rate": 0.03, "warmup": 1, "last": 0.0, "batch": 4, "steps": 4}
    blocks = {"width": 8, "num_layers": 1, "num_heads": 2}
    example.TINY.update(
        scenes={"train": 8, "held_out": 4, "test": 6},
        patch_size=8,
        stage_one={
            "code_grid": (2, 2),
            "num_codes": 8,
            "width": 8,
            "oracle_layers": 1,
            "base_layers": 1,
            "num_heads": 2,
        },
        encoder=blocks,
        decoder={"num_layers": 1, "num_heads": 2},
        codes=stage,
        likelihood=stage,
        tuning=stage,
        num_samples=2,
    )
    return example


def photo_folder(count):
    """Pictures in a folder `photos`, all but two in a tar; a grey one, and a text.

    Of one colour each, with noise: those of noise alone are grey when made smaller.
    """
    folder = pathlib.Path("photos")
    folder.mkdir()
    colors = np.random.default_rng(0).integers(0, 192, (count, 3)).astype("uint8")
    for i, color in enumerate(colors):
        Image.fromarray(color + noise(i) // 4).save(folder / f"{i:02}.png")
    with tarfile.open(folder / "more.tar", "w") as tar:
        for path in sorted(folder.glob("*.png"))[2:]:
            tar.add(path, path.name)
            path.unlink()
    Image.fromarray(noise(0)).convert("L").save(folder / "grey.png")
    (folder / "index.json").write_text("{}")


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


@pytest.mark.parametrize("name", MOST_LINES)
def test_an_example_can_be_read_in_one_sitting(name):
    lines = (EXAMPLES / f"{name}.py").read_text().splitlines()
    assert len(lines) < MOST_LINES[name]


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
    assert after["map"] == after["map, product score"]
    task = make_task(example)
    example.load_checkpoint("out/mle.keras", task)
    task.preset.max_boxes += 1
    with pytest.raises(SystemExit, match="same --model, --data"):
        example.load_checkpoint("out/mle.keras", task)


def test_boxes_of_a_coco_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    coco_folder("train2017", images=10)
    coco_folder("val2017", images=17)
    task = make_task(detection(), data="coco:coco")
    assert len(task.watched[0]) == 8 and list(task.test_batches) == [1, 2]
    data, epochs = task.training("tuning")
    assert (len(data), epochs) == (3, 2)  # for 4 steps


def make_task(example, data="scenes"):
    given = {"data": data, "reward": "recall", "seed": 0, "model": "sequence"}
    arguments = example.argparse.Namespace(**given)
    return example.Task(arguments, example.types.SimpleNamespace(**example.TINY))


@pytest.mark.parametrize("preset", ["TINY", "PAPER"])
def test_images_and_model_of_a_preset_are_of_one_size(preset):
    example = detection()
    example.HELD_OUT_SCENES, example.BATCH = 2, 1
    settings = getattr(example, preset)
    given = {"data": "scenes", "reward": "recall", "seed": 0, "model": "sequence"}
    arguments = example.argparse.Namespace(**given)
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


def test_colors_by_cells(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photo_folder(count=6)
    example, _ = colorization(monkeypatch)
    monkeypatch.setattr(sys, "argv", ["example", "--photos", "photos"])
    example.main()
    output = pathlib.Path("outputs/colorization")
    names = {path.name for path in output.iterdir()}
    assert names == {"gallery.png", "results.json", "reward.png", "tuned.keras"}
    results = json.loads((output / "results.json").read_text())
    assert results["metric"] in results["before"].keys() & results["after"].keys()
    assert "tuning" in results["seconds"]


def test_colors_by_uvim(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photo_folder(count=9)  # 6 to train on, 1 to watch, 2 held out
    example, uvim = colorization(monkeypatch)
    flags = ("--model", "uvim", "--photos", "photos")
    results = run(example, monkeypatch, *flags)
    assert pathlib.Path("out/gallery.png").exists()
    before, after, ceiling = (results[k] for k in ("before", "after", "ceiling"))
    assert results["metric"] in before and before.keys() == after.keys()
    assert {"codes", "likelihood", "tuning"} <= set(results["seconds"])
    assert results["truth"]["color error"] == 0.0
    assert results["truth"]["mirror agreement"] == 1.0
    assert ceiling["color error"] > 0.0
    assert 0.0 <= results["after"]["decided by place"] <= 1.0
    assert results["code_usage"]["num_codes"] == 8
    assert 1.0 <= results["code_usage"]["perplexity"] <= 8.0
    assert results["different_codes"].keys() == {"before", "after"}
    for stage, curve in {
        "codes": "val_color_error",
        "likelihood": "val_loss",
        "tuning": "val_reward",
    }.items():
        assert len(results["curves"][stage][curve]) == 2

    old = untuned_model()

    # A saved model starts from the third stage, at the size that it was made for.
    arguments = uvim.types.SimpleNamespace(stages="out", checkpoint=None, seed=0)
    preset = uvim.types.SimpleNamespace(**uvim.TINY)
    task = uvim.ColorizationTask(preset.color_output, uvim.RANGE, preset.smoothing)
    assert same_weights(uvim.load(arguments, preset, task, uvim.CHECKPOINTS), old)
    preset.image_size = 32
    with pytest.raises(SystemExit, match=r"for 32 pixels, .* UViM for 16"):
        uvim.load(arguments, preset, task, uvim.CHECKPOINTS)


def test_different_codes_are_those_of_greedy_ones(monkeypatch):
    _, uvim = colorization(monkeypatch)

    class Writer:
        def generate(self, images, temperature):
            assert images.shape == (3, 8, 8, 3) and temperature == 0
            return np.array([[1, 2], [2, 1], [1, 2]])

    model = uvim.types.SimpleNamespace(language_model=Writer())
    assert uvim.different_codes(model, np.zeros((3, 8, 8, 3), "float32")) == 2


def test_place_share_is_that_of_the_average_picture(monkeypatch):
    _, uvim = colorization(monkeypatch)
    rng = np.random.default_rng(0)
    photo, others = rng.random((1, 4, 4, 3)), rng.random((400, 4, 4, 3))
    assert np.isclose(uvim.place_share(np.repeat(photo, 3, axis=0)), 1.0)
    assert uvim.place_share(np.full((3, 4, 4, 3), 0.5)) == 0.0

    # One of two pictures is coloured: the average has half the colours, a quarter of
    # their square, of which the two have a half on average.
    grey = np.full((1, 4, 4, 3), 0.5)
    assert np.isclose(uvim.place_share(np.concatenate([photo, grey])), 0.5, atol=1e-3)
    assert uvim.place_share(others) < 0.1


def untuned_model():
    """The model before tuning, which changed the language model alone."""
    old, new = (
        keras.models.load_model(f"out/{name}.keras") for name in ("mle", "tuned")
    )
    assert same_weights(old.stage_one, new.stage_one)
    assert not same_weights(old.language_model, new.language_model)
    return old


def same_weights(model, other):
    pairs = zip(model.get_weights(), other.get_weights(), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


def test_panoptic_segmentation_on_scenes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    example = panoptic()
    results = run(example, monkeypatch)
    assert pathlib.Path("out/maps.png").exists()
    assert results["metric"] == "pq"
    assert results["before"].keys() == results["after"].keys()
    assert {"codes", "likelihood", "tuning"} <= set(results["seconds"])
    ceiling = "pq of the oracle's codes"
    assert results["before"][ceiling] == results["after"][ceiling]
    for stage, curve in {
        "codes": "val_loss",
        "likelihood": "val_loss",
        "tuning": "val_pq",
    }.items():
        assert len(results["curves"][stage][curve]) == 2

    old = untuned_model()

    # A saved model starts from the third stage, at the size that it was made for.
    arguments, task = panoptic_task(example)
    names = example.CHECKPOINTS
    assert same_weights(example.load(arguments, task.preset, task.labels, names), old)
    other = example.PanopticTask(12, task.preset.max_segments + 1)
    with pytest.raises(SystemExit, match="same data and --preset"):
        example.load(arguments, task.preset, other, names)


def panoptic_task(example):
    arguments = {"data": "scenes", "seed": 0, "stages": "out", "checkpoint": None}
    arguments = example.argparse.Namespace(**arguments)
    return arguments, example.Task(
        arguments, example.types.SimpleNamespace(**example.TINY)
    )


def test_training_scenes_alone_are_recoloured_and_no_held_out_one_is_in_the_table():
    example = panoptic()
    _, task = panoptic_task(example)
    (kept, labels), drawn = task.scenes, example.Scenes("train", 8, size=32)[0][0]
    assert kept.shape == drawn.shape and labels.shape == (8, 32, 32, 2)
    assert not np.isclose(kept, 2.0 * drawn - 1.0, atol=0.05).all(axis=(1, 2, 3)).any()
    held_out, tested = task.held_out[0][0], task.test[0][0]
    clean = example.Scenes("test", 6, size=32)[0][0]
    np.testing.assert_allclose(tested, 2.0 * clean - 1.0, atol=1e-6)
    assert not np.all(held_out[:, None] == tested[None], axis=(2, 3, 4)).any()


@pytest.mark.parametrize("keep", [True, False])
def test_panoptic_scenes_are_kept_or_drawn_again(keep):
    example = panoptic()
    _, task = panoptic_task(example)
    task.preset.keep_scenes = keep
    data, steps = task.training({"batch": 4, "steps": 5})
    assert (steps, data["epochs"]) == (2, 3)
    assert ("y" in data) == keep
    images = data["x"][:4] if keep else data["x"][0][0]
    assert images.shape == (4, 32, 32, 3)


def test_recoloured_scenes_are_as_grey_as_before():
    example = panoptic()
    images = np.random.default_rng(0).random((4, 8, 8, 3)).astype("float32")
    images[:, :4] = images[:, :4, :, :1]
    recoloured = example.recolour(images, np.random.default_rng(1))
    assert recoloured.dtype == "float32" and recoloured.shape == images.shape
    assert recoloured.min() >= 0.0 and recoloured.max() <= 1.0
    is_grey = np.ptp(recoloured, axis=-1) < 1e-6
    assert is_grey[:, :4].all() and not is_grey[:, 4:].all()
    assert not np.allclose(recoloured, images, atol=0.05)


def test_labels_of_the_first_stage_have_more_colour(monkeypatch):
    _, uvim = colorization(monkeypatch)
    pair = np.array([[0.5, 0.6, 0.5], [0.3, 0.3, 0.3]], "float32")
    colours = np.broadcast_to(pair, (200, 1, 2, 3))
    rng = np.random.default_rng(0)
    images, labels = uvim.saturated((1.0, 4.0), rng, "grey images", colours)
    assert images == "grey images" and labels.dtype == "float32"
    np.testing.assert_allclose(labels[:, :, 1], 0.3, atol=1e-4)  # grey stays
    factors = (labels[:, 0, 0, 1] - labels[:, 0, 0, 0]) / 0.1
    assert 1.0 <= factors.min() < 1.1 and 3.6 < factors.max() <= 4.001
    assert 1.7 < np.median(factors) < 2.3  # half of them below the middle logarithm
    _, same = uvim.saturated((1.0, 1.0), rng, images, colours)
    np.testing.assert_allclose(same, colours, atol=1e-6)
    _, clipped = uvim.saturated((99.0, 99.0), rng, images, colours)
    assert clipped.min() == 0.0 and clipped.max() == 1.0


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--data", "scens"], "Expected --data scenes or"),
        (["--stages", "x"], "no x/mle.keras"),
        (["--stages", "x", "--checkpoint", "x"], "Received: both"),
        (["--checkpoint", "x"], "expected --preset paper"),
    ],
)
def test_wrong_arguments_of_the_panoptic_example(
    arguments, message, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=message):
        run(panoptic(), monkeypatch, *arguments)


def test_squares_differ_and_lie_within_the_photographs(monkeypatch):
    _, uvim = colorization(monkeypatch)
    preset = uvim.types.SimpleNamespace(**{**uvim.TINY, "image_size": 8})
    ramp = np.arange(0, 256, 8, dtype="uint8")[:, None, None] + np.zeros(
        (32, 48, 3), "uint8"
    )
    schedule = {"batch": 4, "steps": 3}
    squares = uvim.Squares([Image.fromarray(ramp)], preset, schedule, seed=0)
    assert len(squares) == 3
    images, colours = squares[0]
    assert images.shape == colours.shape == (4, 8, 8, 3)
    # Brightness grows downwards by 8 a pixel, from pixel to pixel of the square by the
    # scale: from half of 32 pixels to all of them.
    growth = np.diff(colours[..., 0].mean(axis=2), axis=1).mean(axis=1) * 255
    assert np.all(growth >= 8 * 2 * 0.99) and np.all(growth <= 8 * 4 * 1.01)
    assert images.min() >= -1.0 and images.max() <= 1.0 and images.min() < 0.0
    assert not np.array_equal(squares[0][1], colours)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--stages", "x"], "are for --model uvim"),
        (["--model", "uvim", "--stages", "x"], "no x/mle.keras"),
        (["--model", "uvim", "--stages", "x", "--checkpoint", "x"], "Received: both"),
        (["--model", "uvim", "--checkpoint", "x"], "expected --preset paper"),
        (
            ["--model", "uvim", "--preset", "paper", "--checkpoint", "x"],
            "color_stageI_params.npz and .*Received: no x/color_stageI",
        ),
        (["--model", "uvim", "--photos", "x"], "folder or tar of photographs"),
    ],
)
def test_arguments_that_do_not_fit(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    example, _ = colorization(monkeypatch)
    monkeypatch.setattr(sys, "argv", ["example", *arguments])
    with pytest.raises(SystemExit, match=message):
        example.main()


def test_too_few_photographs_to_watch_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photo_folder(count=2)
    example, _ = colorization(monkeypatch)
    flags = ["example", "--model", "uvim", "--photos", "photos"]
    monkeypatch.setattr(sys, "argv", flags)
    with pytest.raises(SystemExit, match="Received: 1"):
        example.main()
