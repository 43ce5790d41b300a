"""UViM's first stage: its networks against NumPy, its losses, its fit, its errors."""

import functools

import keras
import numpy as np
import pytest
from chance import counts_within_chance
from keras import ops
from tiny import compiled, to_numpy, weights_of
from uvim_models import (
    CLASSES,
    CODES,
    PATCH,
    SEGMENTS,
    SIZE,
    Networks,
    gray,
    maps,
    panoptic_task,
    photos,
    stage_one,
)

from keras_reward.codecs import canonical_segments, rgb_to_lab
from keras_reward.forms.colors import guided_filter, lightness_of
from keras_reward.models import ColorizationTask, PanopticTask, UViMStageOne
from keras_reward.models.uvim_networks import CodeDropout, Pixels, resize_matrix
from keras_reward.models.vision_transformer import Patches

pytestmark = pytest.mark.slow


@functools.cache
def color_model():
    """The model of tests that leave it as it is."""
    return stage_one()


@functools.cache
def panoptic_model():
    return stage_one(panoptic_task(), channels=3)


@functools.cache
def color_results():
    """What `call` returns of photographs, compiled."""
    inputs = {"images": gray(photos()), "labels": photos()}
    return color_model().predict(inputs, verbose=0)


@functools.cache
def panoptic_results():
    inputs = {"images": photos(), "labels": maps()}
    return panoptic_model().predict(inputs, verbose=0)


# The networks. Every backend is compared with the same NumPy, so all of them agree.


def test_color_networks_are_those_of_a_transcription_in_numpy():
    model, labels = color_model(), photos()
    images = gray(labels)
    result = color_results()
    in_numpy = Networks(model)
    lab = np.stack(rgb_to_lab(labels, stack=False), -1)[..., 1:] / 110.0
    for i in range(len(images)):
        code = in_numpy.code(images[i], {"color": lab[i]})
        np.testing.assert_array_equal(result["codes"][i], code)
        expected = in_numpy.logits(images[i], code, ["color"])["color"]
        np.testing.assert_allclose(result["logits"]["color"][i], expected, atol=1e-4)
    assert len(np.unique(result["codes"])) > 1


def test_panoptic_networks_are_those_of_a_transcription_in_numpy():
    model, images, labels = panoptic_model(), photos(), maps()
    result = panoptic_results()
    in_numpy = Networks(model)
    canonical = to_numpy(canonical_segments(labels, SEGMENTS))
    sizes = {"semantics": CLASSES + 1, "instances": SEGMENTS + 1}
    for i in range(len(images)):
        features = {
            name: np.eye(size)[canonical[i, ..., k]]
            for k, (name, size) in enumerate(sizes.items())
        }
        code = in_numpy.code(images[i], features)
        np.testing.assert_array_equal(result["codes"][i], code)
        expected = in_numpy.logits(images[i], code, sizes)
        for name in sizes:
            found = result["logits"][name][i]
            np.testing.assert_allclose(found, expected[name], atol=1e-4)


def test_resizing_is_linear_and_averages_where_it_shrinks():
    half = [[0.75, 0.75, 0.25, 0.0], [0.0, 0.25, 0.75, 0.75]]
    np.testing.assert_allclose(resize_matrix(4, 2), np.array(half) / 1.75)
    double = [[1.0, 0.0], [0.75, 0.25], [0.25, 0.75], [0.0, 1.0]]
    np.testing.assert_allclose(resize_matrix(2, 4), double)
    np.testing.assert_allclose(resize_matrix(3, 3), np.eye(3))


def test_grids_of_codes_and_of_patches_may_differ():
    model = stage_one(code_grid=(1, 3))
    labels = photos(2)
    codes = model.codes(gray(labels), labels)
    assert codes.shape == (2, 3) and model.code_length == 3
    assert model.reconstruct(gray(labels), labels).shape == (2, SIZE, SIZE, 3)


def test_pixels_undo_patches():
    images = photos(2)
    tokens = Patches(PATCH)(images)
    result = Pixels((SIZE // PATCH, SIZE // PATCH), PATCH)(tokens)
    np.testing.assert_array_equal(to_numpy(result), images)


def test_an_oracle_may_be_blind_to_the_image():
    """Then the same labels have the same codes, whatever the image."""
    labels = photos(3)
    blind = stage_one(oracle_sees_image=False)
    images = gray(photos(3, seed=1))
    codes = blind.codes(gray(labels), labels)
    np.testing.assert_array_equal(blind.codes(images, labels), codes)
    assert "images" not in [x.name for x in blind.oracle.inputs]


# Code dropout.


def kept(mode, batch=3000, n=3, training=True):
    layer = CodeDropout(mode, seed=0)
    result = to_numpy(layer(np.ones((batch, n, 2), "float32"), training=training))
    assert (result[..., 0] == result[..., 1]).all()
    return result[..., 0]


@pytest.mark.chance
def test_code_dropout_keeps_any_number_as_often():
    for mode in ("random", "ordered"):
        numbers = np.bincount(kept(mode).sum(1).astype(int), minlength=4)
        assert counts_within_chance(numbers, 3000, 0.25)
    assert counts_within_chance(kept("random").sum(0), 3000, 0.5)
    assert counts_within_chance(kept("ordered").sum(0), 3000, [0.75, 0.5, 0.25])


def test_code_dropout_is_of_training_alone():
    assert kept("random", training=False).all() and kept(None).all()


# The tasks.


def test_losses_are_those_of_numpy():
    model, images, labels = panoptic_model(), photos(), maps()
    logits = panoptic_results()["logits"]
    canonical = to_numpy(canonical_segments(labels, SEGMENTS))
    expected = 0.0
    for k, name in enumerate(("semantics", "instances")):
        values = np.float64(logits[name])
        values = values - np.log(np.exp(values).sum(-1, keepdims=True))
        index = canonical[..., k, None]
        expected -= np.take_along_axis(values, index, -1).mean(axis=(1, 2, 3))
    weights = np.array([1.0, 0.0, 2.0, 0.5], "float32")
    model.compile("sgd")
    logs = model.test_on_batch(images, labels, weights, return_dict=True)
    assert logs["loss"] == pytest.approx((expected * weights).mean(), rel=1e-5)


def test_segments_beyond_and_unknown_classes_cost_nothing():
    task = PanopticTask(num_classes=2, max_segments=1)
    labels = np.array([[[[1, 1], [2, 1], [0, 0], [9, 1]]]])
    targets = compiled(task.targets)(labels)
    np.testing.assert_array_equal(to_numpy(targets["instances"]), [[[1, -1, 0, -1]]])
    logits = {"semantics": np.zeros((1, 1, 4, 3)), "instances": np.zeros((1, 1, 4, 2))}
    losses = task.losses(targets, logits)
    assert float(losses["semantics"][0]) == pytest.approx(0.75 * np.log(3))
    assert float(losses["instances"][0]) == pytest.approx(0.5 * np.log(2))


def test_true_colours_give_the_photograph_back():
    labels = photos()
    for task, images in (
        (ColorizationTask(), gray(labels)),
        (ColorizationTask(value_range=(-1, 1)), 2.0 * gray(labels) - 1.0),
        (ColorizationTask(output="rgb"), gray(labels)),
    ):
        painted = to_numpy(task.outputs(images, task.targets(labels)))
        np.testing.assert_allclose(painted, labels, atol=0.02)


def test_smoothing_evens_out_colours_and_leaves_the_lightness():
    labels, images = photos(), gray(photos())
    logits = ColorizationTask().targets(labels)
    smooth = to_numpy(ColorizationTask(smoothing=2).outputs(images, logits))
    guide = ops.expand_dims(lightness_of(images) / 100.0, -1)
    filtered = guided_filter(logits["color"], guide, radius=2)
    expected = ColorizationTask().outputs(images, {"color": filtered})
    np.testing.assert_allclose(smooth, to_numpy(expected), atol=1e-5)
    assert np.abs(smooth - labels).max() > 0.1
    lightness, _, _ = rgb_to_lab(smooth, stack=False)
    np.testing.assert_allclose(
        to_numpy(lightness), 100 * to_numpy(guide)[..., 0], atol=1
    )


def test_colour_error_is_the_mean_square():
    task, labels = ColorizationTask(), photos()
    targets = task.targets(labels)
    wrong = {"color": targets["color"] + 0.5}
    np.testing.assert_allclose(
        to_numpy(task.losses(targets, wrong)["color"]), 0.25, 1e-5
    )


# Fit.


@pytest.mark.chance
def test_fit_learns_to_write_the_label_and_counts_codes():
    keras.utils.set_random_seed(0)
    model = stage_one(random=False, code_dropout=None, momentum=0.9)
    labels = photos(8)
    labels[:] = labels[:, :1, :1]  # one colour each: a code can say it
    images = np.full((8, SIZE, SIZE, 1), 0.5, "float32")
    model.compile(keras.optimizers.Adam(1e-2))
    logs = model.evaluate(images, labels, verbose=0, return_dict=True)
    history = model.fit(images, labels, epochs=40, verbose=0).history
    assert set(history) == {"loss", "perplexity", "dead_codes"} == set(logs)
    assert history["loss"][-1] < 0.6 * logs["loss"]
    # 32 codes of 8 images, in one batch: what evaluate counts is what they are.
    codes = model.codes(images, labels)
    logs = model.evaluate(images, labels, verbose=0, return_dict=True)
    shares = np.bincount(codes.ravel(), minlength=CODES) / codes.size
    expected = np.exp(-(shares[shares > 0] * np.log(shares[shares > 0])).sum())
    assert logs["perplexity"] == pytest.approx(expected, rel=1e-4)
    assert logs["dead_codes"] == (shares == 0).sum()


def test_evaluation_leaves_the_dictionary_alone():
    model, labels = color_model(), photos()
    before = weights_of(model)
    model.compile("sgd")
    model.evaluate(gray(labels), labels, verbose=0)
    for a, b in zip(weights_of(model), before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_frozen_dictionary_stays_and_the_networks_learn():
    model, labels = stage_one(), photos()
    model.quantizer.trainable = False
    before, base = weights_of(model.quantizer), weights_of(model.base)
    model.compile("sgd")
    model.train_on_batch(gray(labels), labels)
    for a, b in zip(weights_of(model.quantizer), before, strict=True):
        np.testing.assert_array_equal(a, b)
    assert any(
        (a != b).any() for a, b in zip(weights_of(model.base), base, strict=True)
    )


def test_pairs_are_the_codes_shifted_by_one_in_value_and_in_place():
    model, labels = color_model(), photos()
    codes = model.codes(gray(labels), labels)
    x, y = model.code_pairs(gray(labels), labels)
    np.testing.assert_array_equal(y, codes + 1)
    np.testing.assert_array_equal(x["token_ids"][:, 1:], y[:, :-1])
    np.testing.assert_array_equal(x["token_ids"][:, 0], 0)
    assert y.max() < model.vocabulary_size == CODES + 1


def test_the_outputs_of_its_own_codes_are_the_reconstruction():
    model, labels = color_model(), photos()
    codes = color_results()["codes"]
    outputs = to_numpy(compiled(model.decode_codes)(gray(labels), codes[:, None]))
    expected = model.reconstruct(gray(labels), labels)
    np.testing.assert_allclose(outputs, expected, atol=1e-5)


def test_saving_keeps_everything(tmp_path):
    model, labels = color_model(), photos()
    model.compile("sgd")
    model.save(tmp_path / "stage_one.keras")
    again = keras.models.load_model(tmp_path / "stage_one.keras")
    assert again.get_config() == model.get_config()
    result = again.predict({"images": gray(labels), "labels": labels}, verbose=0)
    np.testing.assert_array_equal(result["codes"], color_results()["codes"])
    expected = color_results()["logits"]["color"]
    np.testing.assert_allclose(result["logits"]["color"], expected, atol=1e-6)
    logs = again.train_on_batch(gray(labels), labels, return_dict=True)
    assert np.isfinite(logs["loss"])


def test_tasks_are_made_again_from_their_configuration():
    for task in (
        ColorizationTask("rgb", (-1, 1)),
        ColorizationTask(smoothing=3),
        PanopticTask(3, 4, min_fraction=0.1, stuff_classes=(2,)),
    ):
        again = type(task).from_config(task.get_config())
        assert again.get_config() == task.get_config()


# Errors.


def fit(model, images, labels, **compiled_with):
    model.compile("sgd", **compiled_with)
    model.fit(images, labels, verbose=0)


ERRORS = {
    "grid": (lambda: stage_one(code_grid=(2,)), r"code_grid=\(2,\)"),
    "dropout": (lambda: stage_one(code_dropout="some"), "code_dropout='some'"),
    "codes": (lambda: stage_one(num_codes=0), "num_codes=0"),
    "patch": (
        lambda: UViMStageOne(ColorizationTask(), (9, 8, 1), 4, (2, 2), 4),
        "patch_size=4",
    ),
    "output": (lambda: ColorizationTask("lab"), "output='lab'"),
    "range": (lambda: ColorizationTask(value_range=(1, 0)), r"value_range=\(1, 0\)"),
    "smoothing": (lambda: ColorizationTask(smoothing=-1), "smoothing=-1"),
    "smooth rgb": (lambda: ColorizationTask("rgb", smoothing=2), "output='rgb'"),
    "segments": (lambda: PanopticTask(3, 0), "max_segments=0"),
    "fraction": (lambda: PanopticTask(3, 1, min_fraction=1.0), "min_fraction=1.0"),
    "stuff": (lambda: PanopticTask(3, 1, stuff_classes=(4,)), "Received: 4"),
    "loss": (
        lambda: fit(stage_one(), gray(photos()), photos(), loss="mse"),
        "without loss",
    ),
    "metrics": (
        lambda: fit(stage_one(), gray(photos()), photos(), metrics=["mse"]),
        "metrics",
    ),
    "no labels": (lambda: fit(color_model(), gray(photos()), None), "NoneType"),
    "label shape": (
        lambda: fit(color_model(), gray(photos()), gray(photos())),
        r"\(batch, 8, 8, 3\).*shape \(4, 8, 8, 1\)",
    ),
    "label range": (
        lambda: fit(color_model(), gray(photos()), 255 * photos()),
        r"float in \[0, 1\]",
    ),
    "labels of nan": (
        lambda: fit(color_model(), gray(photos()), np.nan * photos()),
        r"float in \[0, 1\].*from nan to nan",
    ),
    "class": (lambda: fit(panoptic_model(), photos(), maps() + 9), "class 1[0-9]"),
    "float map": (
        lambda: panoptic_model().codes(photos(), maps().astype("float32")),
        "Received: float32",
    ),
    "image shape": (
        lambda: color_model().codes(photos(), photos()),
        r"\(batch, 8, 8, 1\).*shape \(4, 8, 8, 3\)",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_message(case):
    call, message = ERRORS[case]
    # Keras 3.12 puts what `call` says into a RuntimeError of its own.
    with pytest.raises((ValueError, RuntimeError), match=message):
        call()


def test_computes_in_half_precision_with_codes_and_logits_in_full():
    model, labels = stage_one(dtype="mixed_bfloat16"), photos()
    inputs = {"images": gray(labels), "labels": labels}
    result = compiled(lambda x: model(x))(inputs)
    assert ops.dtype(result["logits"]["color"]) == "float32"
    assert ops.dtype(result["codes"]) == "int32"
    agreement = to_numpy(result["codes"]) == color_results()["codes"]
    assert agreement.mean() > 0.8
