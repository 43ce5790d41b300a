"""Checkpoints of big_vision: outputs of its own models, files of all kinds, errors."""

import pathlib

import numpy as np
import pytest
from tiny import compiled, to_numpy, weights_of

from keras_reward.models import (
    ColorizationTask,
    PanopticTask,
    UViMStageOne,
    VisionEncoderDecoder,
    VisionTransformer,
    load_big_vision,
)
from keras_reward.models.big_vision import resize_positions

DATA = np.load(pathlib.Path(__file__).parent / "big_vision.npz")
SIZES = {"width": 16, "num_heads": 2, "mlp_dim": 24}


def weights(case, prefix="params/"):
    """The weights of a case, under the names of a file with an optimizer's prefix."""
    found = {}
    for name in DATA.files:
        which, colon, rest = name.partition(":")
        if colon and which == case:
            is_state = rest.startswith("state/")
            found[rest if is_state else prefix + rest] = DATA[name]
    return found


def save(tmp_path, arrays):
    path = tmp_path / "checkpoint.npz"
    np.savez(path, **arrays)
    return path


def encoder(size=16, **arguments):
    shape = (size, size, 3)
    return VisionTransformer(shape, 4, num_layers=2, **{**SIZES, **arguments})


def language_model(**arguments):
    arguments = {"num_layers": 2, "num_heads": 2, "mlp_dim": 24, **arguments}
    return VisionEncoderDecoder(encoder(), 9, 4, end_id=None, **arguments)


def stage_one(task, **arguments):
    sizes = {"oracle_layers": 1, "base_layers": 2, "code_dim": 12, **SIZES}
    return UViMStageOne(task, (16, 16, 3), 4, (2, 2), 6, **sizes, **arguments)


def images():
    return DATA["vit=images"]


def assert_close(found, expected):
    np.testing.assert_allclose(to_numpy(found), expected, atol=1e-4, rtol=1e-5)


# The arithmetic is big_vision's.


@pytest.mark.parametrize("prefix", ["", "params/", "opt/target/"])
def test_encoder(tmp_path, prefix):
    arrays = weights("vit", prefix)
    if prefix:
        arrays["opt/state/count" if prefix == "params/" else "chrono/x"] = np.ones(1)
    model = load_big_vision(save(tmp_path, arrays), encoder())
    assert_close(compiled(lambda x: model(x))(images()), DATA["vit=encoded"])


def same_weights(tmp_path, arrays):
    """Whether a file says the same as the one that is known to be read well."""
    expected = load_big_vision(save(tmp_path, weights("vit")), encoder())
    model = load_big_vision(save(tmp_path, arrays), encoder())
    for a, b in zip(weights_of(model), weights_of(expected), strict=True):
        np.testing.assert_array_equal(a, b)


def test_layers_stacked_by_scan(tmp_path):
    apart = weights("vit")
    rest = {k: v for k, v in apart.items() if "encoderblock_" not in k}
    same_weights(tmp_path, {**rest, **weights("vit_scan")})


def test_names_and_positions_of_older_files(tmp_path):
    """Modules of a block counted together, positions of a class token before others."""
    places = {
        "LayerNorm_1": "LayerNorm_2",
        "MultiHeadDotProductAttention_0": "MultiHeadDotProductAttention_1",
        "MlpBlock_0": "MlpBlock_3",
    }
    arrays = {}
    for name, array in weights("vit", "").items():
        for new, old in places.items():
            name = name.replace(new, old)
        if name == "pos_embedding":
            name = "Transformer/posembed_input/pos_embedding"
            array = np.concatenate([np.ones((1, 1, 16)), array], axis=1)
        arrays[name] = array
    arrays["cls"] = np.ones((1, 1, 16))
    same_weights(tmp_path, arrays)


def test_bfloat16_without_its_name(tmp_path):
    name = "params/embedding/bias"
    values = np.float32([0.5, -1.25, 3.0, 0.0] * 4)
    two_bytes = (values.view("uint32") >> 16).astype("uint16").view("V2")
    path = save(tmp_path, {**weights("vit"), name: two_bytes})
    model = load_big_vision(path, encoder())
    bias = model.get_layer("patch_embedding").bias
    np.testing.assert_array_equal(to_numpy(bias), values)


def test_positions_are_resized_for_larger_images(tmp_path):
    model = load_big_vision(save(tmp_path, weights("vit")), encoder(24))
    found = compiled(lambda x: model(x))(DATA["vit_big=images"])
    assert_close(found, DATA["vit_big=encoded"])


def test_positions_keep_their_corners():
    table = np.arange(4.0).reshape(4, 1)  # [[0, 1], [2, 3]]
    found = resize_positions(table, (3, 3)).reshape(3, 3)
    np.testing.assert_allclose(found, [[0, 0.5, 1], [1, 1.5, 2], [2, 2.5, 3]])


@pytest.mark.parametrize("positions", ["learn", "sincos2d"])
def test_language_model(tmp_path, positions):
    """With biases that are 0, and without biases."""
    case = f"vtt_{positions}"
    path = save(tmp_path, weights(case))
    model = language_model(attention_bias=positions == "learn")
    load_big_vision(path, model, positions)
    text = DATA[f"{case}=text"]
    inputs = np.concatenate([np.zeros((2, 1), "int32"), text[:, :-1]], axis=1)
    call = compiled(lambda x, t: model({"images": x, "token_ids": t}))
    assert_close(call(images(), inputs.astype("int32")), DATA[f"{case}=logits"])
    # Two attentions of four maps in each of two blocks.
    biases = [w for w in model.weights if "decoder" in w.path and "bias" in w.path]
    assert len([w for w in biases if "attention" in w.path]) == (
        16 if model.attention_bias else 0
    )
    assert type(model).from_config(model.get_config()).count_params() == (
        model.count_params()
    )


@pytest.mark.parametrize("kind", ["color", "panoptic"])
def test_first_stage(tmp_path, kind):
    case = f"stage_{kind}"
    if kind == "color":
        task, labels = ColorizationTask("rgb", (-1, 1)), DATA[f"{case}=labels"]
        labels = labels.astype("float32")
        targets = task.targets(labels)
    else:
        task, labels = PanopticTask(3, 2), DATA[f"{case}=labels"].astype("int32")
        # Random numbers of instances, not canonical ones.
        targets = {"semantics": labels[..., 0], "instances": labels[..., 1]}
    model = load_big_vision(save(tmp_path, weights(case)), stage_one(task))
    call = compiled(lambda x, t: model({"images": x, "targets": t}))
    found = call(images(), targets)
    np.testing.assert_array_equal(to_numpy(found["codes"]), DATA[f"{case}=code"])
    for name, logits in found["logits"].items():
        assert_close(logits, DATA[f"{case}=logits_{name}"])


# Errors.


def test_all_that_does_not_fit_is_listed_and_nothing_is_loaded(tmp_path):
    arrays = weights("vit")
    arrays["params/embedding/bias"] = np.zeros(17)
    arrays["params/Transformer/encoderblock_2/extra"] = np.zeros(3)
    arrays["params/pos_embedding"] = np.zeros((1, 7, 16))
    del arrays["params/Transformer/encoder_norm/scale"]
    model = encoder()
    before = weights_of(model)
    with pytest.raises(ValueError, match=r"nothing was loaded\. Received 4") as error:
        load_big_vision(save(tmp_path, arrays), model)
    lines = str(error.value).splitlines()[1:]
    assert sorted(lines) == [
        "left over: Transformer/encoderblock_2/extra (3,)",
        "missing: Transformer/encoder_norm/scale",
        "shape: embedding/bias is (17,), not (16,)",
        "shape: pos_embedding is (1, 7, 16), not those of a square grid",
    ]
    for a, b in zip(weights_of(model), before, strict=True):
        np.testing.assert_array_equal(a, b)


def failing(case, tmp_path):
    """What is called with a case's wrong argument, and what the message says."""
    good = save(tmp_path, weights("vit"))
    text = tmp_path / "text.npz"
    text.write_text("no arrays")
    single = tmp_path / "single.npy"
    np.save(single, np.zeros(3))
    pickled = tmp_path / "pickled.npz"
    np.savez(pickled, x=np.array([{}], dtype=object))
    tasks = ColorizationTask("rgb")
    return {
        "text": ((text, encoder()), "npz file of plain arrays.*text.npz"),
        "single": ((single, encoder()), "a single array"),
        "pickle": ((pickled, encoder()), "pickled objects are not loaded"),
        "model": ((good, "vit"), "Received: str"),
        "stem": ((good, encoder(stem="conv")), "stem='conv'"),
        "positions": ((good, encoder(), "none"), "positions='none'"),
        "more": ((good, encoder(), "sincos2d"), "left over: pos_embedding"),
        "other": ((good, stage_one(tasks)), "missing: state/dictionary"),
    }[case]


CASES = ["text", "single", "pickle", "model", "stem", "positions", "more", "other"]


@pytest.mark.parametrize("case", CASES)
def test_message(case, tmp_path):
    arguments, message = failing(case, tmp_path)
    with pytest.raises(ValueError, match=message):
        load_big_vision(*arguments)
