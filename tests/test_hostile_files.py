"""Saved files that were made to run code, or to claim sizes that no memory has."""

import io
import json
import os
import pickle
import zipfile

import keras
import numpy as np
import pytest
from tiny import classifier

import keras_reward as kr
from keras_reward.codecs import BoxCodec, ColorPalette
from keras_reward.models import (
    PanopticTask,
    VisionEncoderDecoder,
    VisionTransformer,
)
from keras_reward.models.quantization import VectorQuantizer
from keras_reward.rewards import get

RUN = "import os; os.mkdir('ran')"


@keras.saving.register_keras_serializable(package="hostile")
def harmless(y_true, y_pred):
    return keras.ops.cast(y_pred, "float32")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The members of a tuner's file, by name."""
    tuned = kr.RewardTuning(classifier(), harmless, seed=0)
    tuned.compile(optimizer="sgd")
    path = tmp_path_factory.mktemp("saved") / "tuned.keras"
    tuned.save(path)
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def with_config(saved, place, value):
    """The members of a file in whose config a value is another."""
    config = json.loads(saved["config.json"])
    inner = config
    *path, last = place
    for key in path:
        inner = inner[key]
    inner[last] = value
    return {**saved, "config.json": json.dumps(config).encode()}


def write(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def function(module, name):
    return {
        **{"module": module, "class_name": "function", "config": name},
        "registered_name": name,
    }


def instance(module, kind, **config):
    return {
        **{"module": module, "class_name": kind, "config": config},
        "registered_name": None,
    }


def marshalled():
    """A lambda as Keras writes it, whose code leaves a folder."""
    code = keras.src.utils.python_utils.func_dump(lambda *_: os.mkdir("ran"))
    value = {"code": code[0], "defaults": None, "closure": None}
    return {"class_name": "__lambda__", "config": value}


def lambda_layer():
    return instance("keras.layers", "Lambda", name="evil", function=marshalled())


class Evil:
    def __reduce__(self):
        return (exec, (RUN,))


def pickled_h5():
    import h5py

    file = io.BytesIO()
    with h5py.File(file, "w") as store:
        store["layers/a/vars/0"] = np.void(pickle.dumps(Evil()))
    return file.getvalue()


REWARD, MODEL = ("config", "reward"), ("config", "model")
FUNCTION = (*REWARD, "config", "function")
OTHERS = {  # what takes the place of a value in the config
    "function of os": (FUNCTION, function("os", "system")),
    "function of builtins": (FUNCTION, function("builtins", "exec")),
    "function of subprocess": (FUNCTION, function("subprocess", "getoutput")),
    "function of this package's imports": (
        FUNCTION,
        function("keras_reward.evaluation.report", "os"),
    ),
    "function with dots": (
        FUNCTION,
        function("keras_reward.rewards", "host.time.sleep"),
    ),
    "lambda as a function": (FUNCTION, marshalled()),
    "lambda as a reward": (REWARD, marshalled()),
    "reward of a class of subprocess": (
        REWARD,
        instance("subprocess", "Popen", args=RUN),
    ),
    "reward that is a lambda layer": (REWARD, lambda_layer()),
    "reward on the host": (
        REWARD,
        {
            **instance("keras_reward.rewards.host", "HostReward"),
            "config": {"function": function("os", "mkdir"), "name": "ran"},
            "registered_name": "keras_reward>HostReward",
        },
    ),
    "model of a reward": (
        REWARD,
        {
            **instance("keras_reward.rewards.model", "ModelReward"),
            "config": {"model": lambda_layer(), "save_model": True},
            "registered_name": "keras_reward>ModelReward",
        },
    ),
    "reward of text": (REWARD, "__import__('os').mkdir('ran')"),
    "policy": (("config", "policy"), function("os", "system")),
    "codec": (
        ("config", "policy", "config", "codec"),
        instance("subprocess", "Popen", args=RUN),
    ),
    "baseline": (
        ("config", "baseline"),
        {
            **instance("keras_reward.baselines", "FunctionBaseline"),
            "config": {"function": marshalled(), "name": "b"},
            "registered_name": "keras_reward>FunctionBaseline",
        },
    ),
    "term": (("config", "terms"), [instance("os", "_wrap_close")]),
    "inputs": (("config", "model_state", "inputs"), function("os", "getcwd")),
    "model": (MODEL, lambda_layer()),
    "layer of the model": ((*MODEL, "config", "layers", 1), lambda_layer()),
    "activation": (
        (*MODEL, "config", "layers", 1, "config", "activation"),
        marshalled(),
    ),
    "optimizer": (
        ("compile_config", "optimizer"),
        instance("subprocess", "Popen", args=RUN),
    ),
}
MEMBERS = {  # what takes the place of a file in the zip file
    "pickle for weights": {"model.weights.h5": pickle.dumps(Evil())},
    "pickle in weights": {"model.weights.h5": pickled_h5()},
    "pickle for the config": {"config.json": pickle.dumps(Evil())},
    "names that lead out": {"../ran": b"", "/ran": b"", "assets/../../ran": b""},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", [*OTHERS, *MEMBERS])
def test_a_crafted_file_runs_nothing(case, saved, tmp_path, monkeypatch):
    """Keras's safe mode refuses code; nothing of ours goes around it."""
    monkeypatch.chdir(tmp_path)
    members = {**saved, **MEMBERS.get(case, {})}
    if case in OTHERS:
        members = with_config(saved, *OTHERS[case])
    path = write(tmp_path / "evil.keras", members)
    loaded = None
    try:
        loaded = keras.saving.load_model(path)
        loaded.predict(np.zeros((1, 3), "float32"), verbose=0)
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        assert len(str(error)) > 10
    # Only what does not change what is run may load.
    assert loaded is None or case in ("names that lead out", "pickle in weights")
    assert os.listdir(tmp_path) == ["evil.keras"]
    assert not (tmp_path.parent / "ran").exists()
    assert not os.path.exists("/ran")


def test_the_file_that_was_changed_loads(saved, tmp_path):
    loaded = keras.saving.load_model(write(tmp_path / "good.keras", saved))
    assert loaded.predict(np.zeros((2, 3), "float32"), verbose=0).shape == (2,)


# Sizes.


def adapted():
    reward = kr.CIDErReward(end_id=1)
    reward.adapt(np.random.default_rng(0).integers(0, 6, (20, 2, 6)).astype("int32"))
    return reward


def test_a_table_of_its_own_sizes_is_made():
    config = adapted().get_config()
    again = kr.CIDErReward.from_config(config)
    assert [v.shape[0] for v in again.variables] == config["table_sizes"]


@pytest.mark.parametrize(
    "change",
    [
        {"table_sizes": 1e15},
        {"table_sizes": [1e15] * 5},
        {"table_sizes": [10**15] * 5},
        {"table_sizes": [2**40, 2**40, 2**40, 2**42, 2**40]},
        {"table_sizes": [-1] * 5},
        {"table_sizes": [True] * 5},
        {"table_sizes": "12345"},
        {"table_sizes": []},
        {"table_sizes": {}},
        {"probes": 10**9},
        {"probes": 0},
        {"probes": None},
        {"probes": 1.0},
    ],
)
def test_a_table_of_impossible_sizes_is_refused(change):
    config = {**adapted().get_config(), **change}
    with pytest.raises(ValueError, match="A table of n-grams has up to"):
        kr.CIDErReward.from_config(config)
    serialized = keras.saving.serialize_keras_object(adapted())
    with pytest.raises((TypeError, ValueError), match="A table of n-grams"):
        get({**serialized, "config": config})


VIT = {"image_shape": (8, 8, 3), "patch_size": 4, "width": 8, "num_heads": 2}


def decoder(**sizes):
    encoder = VisionTransformer(**VIT, num_layers=0)
    VisionEncoderDecoder(
        encoder, **{"vocabulary_size": 5, "max_length": 4, "num_heads": 2, **sizes}
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda size: kr.HueEntropyReward(bins=size),
        lambda size: kr.ColorfulnessReward(bins=size),
        lambda size: kr.MeanIoUReward(size),
        lambda size: kr.BoundaryReward(size),
        lambda size: kr.PanopticQualityReward(max_segments=size),
        lambda size: kr.PanopticQualityReward(stuff_classes=[1, size]),
        lambda size: BoxCodec(num_classes=size, image_size=8),
        lambda size: BoxCodec(num_classes=2, image_size=8, max_boxes=size),
        lambda size: BoxCodec(num_classes=2, image_size=8, num_buckets=size),
        lambda size: ColorPalette(1.0 / size),
        lambda size: ColorPalette(size),
        lambda size: VectorQuantizer(size),
        lambda size: PanopticTask(num_classes=size, max_segments=2),
        lambda size: VisionTransformer(**{**VIT, "width": size}, num_layers=1),
        lambda size: VisionTransformer(**VIT, num_layers=size),
        lambda size: VisionTransformer(**VIT, num_layers=1, mlp_dim=size),
        lambda size: VisionTransformer(
            **{**VIT, "image_shape": (size, size, 3)}, num_layers=1
        ),
        lambda size: decoder(vocabulary_size=size),
        lambda size: decoder(max_length=size),
        lambda size: decoder(num_layers=size),
    ],
)
@pytest.mark.parametrize("size", [1e15, 10**15, float("nan")])
def test_absurd_sizes_are_refused(make, size):
    with pytest.raises(ValueError, match="Received"):
        make(size)


@pytest.mark.parametrize(
    ("adapters", "message"),
    [([[1, 10**12, 1.0]], "lora_rank"), ([[10**9, 1, 1.0]], "adapters")],
)
def test_absurd_adapters_are_refused(saved, tmp_path, adapters, message):
    members = with_config(saved, ("config", "model_state", "adapters"), adapters)
    with pytest.raises((TypeError, ValueError), match=message):
        keras.saving.load_model(write(tmp_path / "a.keras", members))


def test_a_config_without_a_part_says_which():
    with pytest.raises(ValueError, match=r"must have 'rewards'\. .*Received"):
        kr.SumReward.from_config({"weights": [1.0]})
