"""The sample logger: what it writes, and that it leaves the training alone."""

import io
import json
import sys
import types

import keras
import numpy as np
import pytest
from detectors import features, tiny_detector
from keras import ops
from PIL import Image
from tiny import classifier, inputs, randomize, weights_of

from keras_reward import GaussianPolicy, RecallReward, RewardTuning
from keras_reward.callbacks import SampleLogger, sample_logger
from keras_reward.callbacks.sample_logger import draw_sheet_of, images_below
from keras_reward.forms.pictures import input_images, output_images

X = inputs(8)


def value(y_true, y_pred):
    return ops.mean(ops.cast(y_pred, "float32"), axis=-1)


def fit(logger, **arguments):
    tuned = RewardTuning(
        classifier(positions=4), reward=value, num_samples=3, seed=0, **arguments
    )
    tuned.compile(keras.optimizers.SGD(0.5))
    callbacks = [] if logger is None else [logger]
    tuned.fit(X, batch_size=2, epochs=2, callbacks=callbacks, shuffle=False, verbose=0)
    return tuned


def read(folder):
    lines = (folder / "samples.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_records_say_what_was_written_and_earned(tmp_path):
    tuned = fit(SampleLogger(tmp_path, X[:3], num_samples=2, describe=lambda o: o))
    records = read(tmp_path)
    assert [(r["epoch"], r["step"]) for r in records[::3]] == [(-1, 0), (0, 4), (1, 8)]
    assert [r["input"] for r in records] == [0, 1, 2] * 3
    for record in records:
        for one in (record["greedy"], *record["samples"]):
            assert one["reward"] == pytest.approx(np.mean(one["output"]), rel=1e-5)
            assert one["text"] == str(np.array(one["output"]))
        assert len(record["samples"]) == 2
    greedy = tuned.predict(X[:3], verbose=0)
    np.testing.assert_array_equal([r["greedy"]["output"] for r in records[-3:]], greedy)
    kernel, bias = weights_of(tuned.model)
    logits = (X[:3] @ kernel + bias).reshape(3, 4, 5)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    for row, record in zip(log_p, records[-3:], strict=True):
        for one in record["samples"]:
            expected = row[np.arange(4), one["output"]].sum()
            assert one["log_prob"] == pytest.approx(expected, rel=1e-4)


def test_every_so_many_steps_and_the_training_goes_its_way(tmp_path):
    watched = fit(SampleLogger(tmp_path, X[:1], every_steps=3))
    assert [record["step"] for record in read(tmp_path)] == [0, 3, 6]
    for a, b in zip(weights_of(watched), weights_of(fit(None)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_weights_within_an_epoch_are_those_of_the_step(tmp_path):
    """A learning rate of 0 changes nothing; a large one changes the first step's."""
    fit(SampleLogger(tmp_path, X[:4], every_steps=1, num_samples=1))
    outputs = [json.dumps(r["greedy"]["output"]) for r in read(tmp_path)]
    moments = [tuple(outputs[i : i + 4]) for i in range(0, len(outputs), 4)]
    assert len(moments) == 9 and len(set(moments)) > 2


def colorizer(codec=None, channels=3):
    layers = [keras.Input((8, 8, 3)), keras.layers.Conv2D(channels, 1)]
    return randomize(keras.Sequential(layers)), GaussianPolicy(codec=codec)


PHOTOS = np.random.default_rng(0).random((4, 8, 8, 3)).astype("float32")


@pytest.mark.slow
def test_pictures_of_images(tmp_path):
    model, policy = colorizer()
    reward = lambda y_true, y_pred: ops.mean(y_pred, axis=(1, 2, 3))  # noqa: E731
    tuned = RewardTuning(model, reward=reward, policy=policy, seed=0)
    tuned.compile(keras.optimizers.SGD(0.01))
    logger = SampleLogger(tmp_path, PHOTOS[:2], num_samples=3, every_epochs=2)
    tuned.fit(PHOTOS, epochs=3, callbacks=[logger], verbose=0)
    names = sorted(path.name for path in tmp_path.glob("*.png"))
    assert names == ["samples_000000.png", "samples_000002.png"]
    picture = np.asarray(Image.open(tmp_path / names[0]))
    assert picture.shape[1] > 2 * picture.shape[0] * 5 / 6  # 5 columns, 2 rows
    assert len(np.unique(picture.reshape(-1, picture.shape[-1]), axis=0)) > 50


def test_boxes_are_drawn_where_they_are():
    images = np.zeros((1, 40, 40, 3), "uint8")
    outputs = {
        "boxes": np.array([[[5.0, 10.0, 20.0, 30.0], [0, 0, 39, 39]]]),
        "labels": np.array([[1, -1]]),
    }
    drawn = output_images(outputs, images)[0].any(-1)
    assert drawn[10, 6:20].all() and drawn[11:30, 5].all()
    assert not drawn[35:].any()  # padding is no box
    assert output_images(outputs, None) is None


class Resizes:
    """In the place of a tuner: its preprocessor doubles images and normalises them."""

    def preprocessed(self, x):
        return (np.repeat(np.repeat(x / 100.0 - 2.0, 2, 1), 2, 2), None, None)


def test_outputs_lie_on_the_images_that_the_model_gets():
    raw = np.arange(2 * 3 * 4 * 3, dtype="uint8").reshape(2, 3, 4, 3)
    seen = images_below(Resizes(), raw)
    assert seen.shape == (2, 6, 8, 3) and (seen.min(), seen.max()) == (0, 255)
    assert (np.diff(seen[0, ::2, ::2].ravel().astype("int32")) > 0).all()
    tuned = RewardTuning(tiny_detector(), RecallReward())
    np.testing.assert_array_equal(images_below(tuned, raw), raw)
    assert images_below(tuned, np.zeros((2, 5))) is None


def test_boxes_are_in_the_format_of_the_detector(tmp_path, monkeypatch):
    formats = []

    def draw(outputs, images, bounding_box_format):
        formats.append(bounding_box_format)

    monkeypatch.setattr(sample_logger, "output_images", draw)
    tuned = RewardTuning(tiny_detector(), RecallReward(), seed=0)
    for form in (None, "xywh"):
        for own in ("xyxy", "yxyx"):
            tuned.model.bounding_box_format = own
            logger = SampleLogger(tmp_path, features(1), bounding_box_format=form)
            logger.set_model(tuned)
            draw_sheet_of(logger, {"outputs": None}, {"outputs": None})
    assert formats[::2] == ["xyxy", "yxyx", "xywh", "xywh"]


def test_masks_are_drawn_over_images():
    images = np.full((1, 4, 4, 3), 100, "uint8")
    masks = np.zeros((1, 4, 4), "int32")
    masks[0, 0], masks[0, 1] = 1, 2
    drawn = output_images(masks, images)[0]
    np.testing.assert_array_equal(drawn[2:], 100)  # background
    assert (drawn[0] != 100).any() and (drawn[1] != 100).any()
    assert (drawn[0, 0] != drawn[1, 0]).any()
    panoptic = np.stack([masks, np.ones_like(masks)], -1)
    np.testing.assert_array_equal(output_images(panoptic, images)[0], drawn)
    assert output_images(masks, np.zeros((1, 8, 8, 3), "uint8")).shape == (1, 4, 4, 3)


def test_what_is_no_picture():
    assert output_images(np.zeros((2, 5), "int32"), None) is None
    assert input_images(np.zeros((2, 5), "float32")) is None
    drawn = input_images({"images": PHOTOS, "a": X})
    assert drawn.dtype == "uint8"
    # Models with their own preprocessing take floats in 0 to 255.
    np.testing.assert_array_equal(input_images(PHOTOS.astype("float32") * 255.0), drawn)


@pytest.mark.slow
def test_captions_are_written_under_their_image(tmp_path):
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(12),
            keras.layers.Reshape((3, 4)),
        ]
    )
    tuned = RewardTuning(randomize(model), reward=value, seed=0)
    tuned.compile(keras.optimizers.SGD(0.1))
    describe = lambda rows: ["$ " + " ".join(map(str, row)) for row in rows]  # noqa: E731
    logger = SampleLogger(tmp_path, PHOTOS[:2], describe=describe)
    tuned.fit(PHOTOS, callbacks=[logger], verbose=0)
    assert len(list(tmp_path.glob("*.png"))) == 2
    assert read(tmp_path)[0]["greedy"]["text"].startswith("$ ")


def test_rewards_that_are_no_numbers_are_null(tmp_path):
    def nothing(y_true, y_pred):
        return ops.full_like(y_pred[:, 0], float("nan"), dtype="float32")

    tuned = RewardTuning(classifier(positions=4), reward=nothing, seed=0)
    tuned.compile(keras.optimizers.SGD(0.1))
    with pytest.warns(UserWarning):
        tuned.fit(X, callbacks=[SampleLogger(tmp_path, X[:1])], verbose=0)
    assert read(tmp_path)[0]["samples"][0]["reward"] is None


@pytest.mark.slow
def test_tensorboard_reads_what_was_written(tmp_path):
    from tensorboard.backend.event_processing import event_accumulator

    model, policy = colorizer()
    reward = lambda y_true, y_pred: ops.mean(y_pred, axis=(1, 2, 3))  # noqa: E731
    tuned = RewardTuning(model, reward=reward, policy=policy, seed=0)
    tuned.compile(keras.optimizers.SGD(0.01))
    board = tmp_path / "board"
    logger = SampleLogger(tmp_path, PHOTOS[:2], tensorboard=board)
    tuned.fit(PHOTOS, epochs=2, callbacks=[logger], verbose=0)
    events = event_accumulator.EventAccumulator(str(board)).Reload()
    image = events.Images("samples")[-1]
    assert image.step == 2
    stored = np.asarray(Image.open(io.BytesIO(image.encoded_image_string)))
    png = np.asarray(Image.open(tmp_path / "samples_000002.png"))
    np.testing.assert_array_equal(stored, png)
    assert stored.shape[:2] == (image.height, image.width)
    text = events.Tensors("samples/records")[0].tensor_proto.string_val
    assert json.loads(text[0])["step"] == 0 and len(text) == 2
    scalars = [event.value for event in events.Scalars("samples/greedy")]
    expected = [r["greedy"]["reward"] for r in read(tmp_path)]
    np.testing.assert_allclose(
        scalars, np.reshape(expected, (-1, 2)).mean(1), rtol=1e-5
    )


def test_weights_and_biases_get_a_table(tmp_path, monkeypatch):
    logged = []
    module = types.ModuleType("wandb")
    module.run, module.log = None, logged.append
    module.Table = lambda columns, data: {"columns": columns, "data": data}
    module.Image = lambda picture: picture.size
    monkeypatch.setitem(sys.modules, "wandb", module)
    with pytest.raises(ValueError, match=r"wandb\.init"):
        SampleLogger(tmp_path, X[:2], wandb=True)
    module.run = object()
    fit(SampleLogger(tmp_path, X[:2], num_samples=3, wandb=True))
    assert [entry["samples/step"] for entry in logged] == [0, 4, 8]
    assert len(logged[0]["samples/table"]["data"]) == 2 * (1 + 3)
    first = read(tmp_path)[0]["greedy"]["reward"]
    assert logged[0]["samples/table"]["data"][0][2] == first


def test_arguments_that_make_no_sense():
    with pytest.raises(ValueError, match="not both"):
        SampleLogger("folder", X, every_epochs=1, every_steps=1)
    for name in ("num_samples", "every_epochs", "every_steps"):
        with pytest.raises(ValueError, match=f"`{name}` must be a positive int"):
            SampleLogger("folder", X, **{name: 0})
