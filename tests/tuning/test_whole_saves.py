"""No save loses what was saved before."""

import builtins
import errno
import io
import os

import h5py
import keras
import numpy as np
import pytest
from backends import trains
from keras import ops
from tiny import classifier, inputs, weights_of

from keras_reward import RewardTuning


@keras.saving.register_keras_serializable(package="keras_reward_tests")
def class_three(y_true, y_pred):
    return ops.cast(y_pred == 3, "float32")


def tuner(units=5):
    tuned = RewardTuning(classifier(units), reward=class_three, seed=0)
    tuned.compile(keras.optimizers.SGD(0.5))
    return tuned


SAVES = {
    "model.keras": RewardTuning.save,
    "model.weights.h5": RewardTuning.save_weights,
    "folder": lambda tuned, path: tuned.save(path, zipped=False),
    "shards.weights.json": lambda tuned, path: tuned.save_weights(
        path, max_shard_size=1e-7
    ),
}


def loaded(path):
    """The weights of the model in a file or folder."""
    if path.name.endswith((".h5", ".json")):
        tuned = tuner()
        tuned.load_weights(path)
        return weights_of(tuned.model)
    return weights_of(keras.saving.load_model(path).model)


def files_in(folder):
    """The contents of all files in a folder, by path."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Failing:
    """Counts the writes to a folder, and lets the one of a number fail."""

    def __init__(self, folder, monkeypatch, error):
        self.writes, self.failing, self.error = 0, None, error
        self.folder = str(folder)
        for owner, name in [(builtins, "open"), (io, "open")]:
            monkeypatch.setattr(owner, name, self.opened(getattr(owner, name)))
        for owner, name in [
            (os, "fsync"),
            (os, "replace"),
            (h5py.Group, "__setitem__"),
        ]:
            monkeypatch.setattr(owner, name, self.counted(getattr(owner, name)))

    def count(self):
        self.writes += 1
        if self.writes == self.failing:
            raise self.error

    def counted(self, function):
        def call(*args, **kwargs):
            self.count()
            return function(*args, **kwargs)

        return call

    def opened(self, function):
        def call(path, mode="r", *args, **kwargs):
            file = function(path, mode, *args, **kwargs)
            if set(mode) & set("wa+") and str(path).startswith(self.folder):
                file.write = self.counted(file.write)
            return file

        return call


@trains
@pytest.mark.parametrize("name", SAVES)
@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()], ids=repr
)
def test_the_old_file_loads_after_a_save_that_fails_anywhere(
    tmp_path, monkeypatch, name, error
):
    tuned, path = tuner(), tmp_path / name
    SAVES[name](tuned, path)
    before, files = weights_of(tuned.model), files_in(tmp_path)
    tuned.fit(inputs(), verbose=0)
    failing = Failing(tmp_path, monkeypatch, error)
    probe = tmp_path.parent / f"{tmp_path.name}-{name}"
    probe.mkdir()
    SAVES[name](tuned, probe / name)
    number = failing.writes
    # The last of all is that the folder is brought to the disk. Before, the files take
    # their places one after the other, and before that nothing has changed.
    points = np.unique(np.linspace(1, number - len(files), 20).astype(int))
    for failing.failing in points:
        failing.writes = 0
        with pytest.raises(type(error)):
            SAVES[name](tuned, path)
        assert files_in(tmp_path) == files
    failing.failing = None
    for one, other in zip(before, loaded(path), strict=True):
        np.testing.assert_array_equal(one, other)
    SAVES[name](tuned, path)  # and when there is room again, it is saved
    assert files_in(tmp_path).keys() == files.keys()
    for one, other in zip(weights_of(tuned.model), loaded(path), strict=True):
        np.testing.assert_array_equal(one, other)


@trains
def test_model_checkpoint_keeps_the_last_one(tmp_path, monkeypatch):
    path = tmp_path / "best.keras"
    callbacks = [keras.callbacks.ModelCheckpoint(path)]
    tuned = tuner()
    tuned.fit(inputs(), callbacks=callbacks, verbose=0)
    before = weights_of(tuned.model)
    failing = Failing(tmp_path, monkeypatch, OSError(errno.ENOSPC, "No space left"))
    failing.failing = 2
    with pytest.raises(OSError, match="No space left"):
        tuned.fit(inputs(), callbacks=callbacks, verbose=0)
    for one, other in zip(before, loaded(path), strict=True):
        np.testing.assert_array_equal(one, other)
    weights_of(tuned.model)  # can be read


def test_paths_and_arguments_are_those_of_keras(tmp_path, monkeypatch):
    tuned, path = tuner(), tmp_path / "model.keras"
    tuned.save(str(path))
    first = path.read_bytes()
    monkeypatch.setattr(builtins, "input", lambda text: asked.append(text) or "n")
    asked = []
    tuned.save(path, overwrite=False)
    assert str(path) in asked[0]
    assert path.read_bytes() == first
    tuned.save_weights(filepath=str(tmp_path / "w.weights.h5"), overwrite=False)
    monkeypatch.setattr(builtins, "input", lambda text: "y")
    tuned.save(path, overwrite=False)
    assert len(asked) == 1
    monkeypatch.chdir(tmp_path)
    tuned.save("here.keras")
    names = ["here.keras", "model.keras", "w.weights.h5"]
    assert sorted(os.listdir(tmp_path)) == names
    wrong = {
        "model.zip": tuned.save,
        "model.h5": tuned.save_weights,
        "folder.keras": lambda path: tuned.save(path, zipped=False),
    }
    for name, method in wrong.items():
        with pytest.raises(ValueError, match=name):
            method(name)
    assert sorted(os.listdir(tmp_path)) == names
