"""Checkpoints on disk: whole or not there, and known if they are broken."""

import errno
import json
import os
import zlib

import keras  # names bfloat16 for NumPy  # noqa: F401
import numpy as np
import pytest

from keras_reward.callbacks import checkpoint_files as files
from keras_reward.callbacks.background import Background

ARRAYS = [
    np.arange(6, dtype="float32").reshape(2, 3),
    np.array(7, "uint32"),
    np.zeros((0, 4), "int64"),
    np.array([1.5, -2.0], "bfloat16"),
    np.array([[True], [False]]),
    np.arange(12.0).reshape(3, 4).T,  # not contiguous
]


def names(folder):
    return sorted(os.listdir(folder))


def write_three(folder):
    return [files.write(folder, step, [np.array(step)], {}) for step in (5, 20, 100)]


def test_what_is_written_is_read(tmp_path):
    about = {"text": "ä", "numbers": [1, 2.5, None, float("inf")]}
    path = files.write(tmp_path, 120, ARRAYS, about)
    assert path.name == "step_00000120" and names(tmp_path) == ["step_00000120"]
    arrays, found = files.read(path)
    assert found == about
    for array, expected in zip(arrays, ARRAYS, strict=True):
        assert array.dtype == expected.dtype and array.shape == expected.shape
        assert array.tobytes() == expected.tobytes()


def test_the_format_is_bytes_and_a_list_of_places(tmp_path):
    path = files.write(tmp_path, 1, ARRAYS[:2], {})
    checksum, text = (path / "manifest.json").read_bytes().splitlines()
    assert int(checksum, 16) == zlib.crc32(text)
    second = json.loads(text)["arrays"][1]
    data = (path / "arrays_0.bin").read_bytes()
    assert data == ARRAYS[0].tobytes() + ARRAYS[1].tobytes()
    expected = {"dtype": "uint32", "shape": [], "file": "arrays_0.bin", "offset": 24}
    assert second == {**expected, "checksum": zlib.crc32(ARRAYS[1].tobytes())}


def test_the_newest_is_taken_and_the_oldest_are_deleted(tmp_path):
    write_three(tmp_path)
    assert files.newest_readable(tmp_path)[0].name == "step_00000100"
    files.discard_old(tmp_path, 2)
    assert names(tmp_path) == ["step_00000020", "step_00000100"]
    assert files.newest_readable(tmp_path / "none") is None


def cut(path):
    (path / "arrays_0.bin").write_bytes(b"\0\0\0")


def flip(path):
    data = bytearray((path / "arrays_0.bin").read_bytes())
    data[0] ^= 1
    (path / "arrays_0.bin").write_bytes(data)


def change_manifest(path):
    text = (path / "manifest.json").read_bytes()
    (path / "manifest.json").write_bytes(text.replace(b"100", b"101"))


def cut_manifest(path):
    (path / "manifest.json").write_bytes(b"")


def lose_manifest(path):
    (path / "manifest.json").unlink()


def lose_arrays(path):
    (path / "arrays_0.bin").unlink()


BREAK = [cut, flip, change_manifest, cut_manifest, lose_manifest, lose_arrays]


@pytest.mark.parametrize("damage", BREAK)
def test_a_broken_one_is_skipped_with_a_warning(tmp_path, damage):
    newest = write_three(tmp_path)[-1]
    damage(newest)
    with pytest.warns(UserWarning, match=r"broken and was skipped.*step_00000100"):
        path, arrays, _ = files.newest_readable(tmp_path)
    assert path.name == "step_00000020" and arrays[0] == 20
    # It does not count as the newest one any more.
    assert names(tmp_path)[-1] == "step_00000100.broken"
    files.discard_old(tmp_path, 1)
    assert files.newest_readable(tmp_path)[1][0] == 20


def test_none_that_can_be_read_is_an_error(tmp_path):
    for path in write_three(tmp_path):
        cut(path)
    with pytest.raises(ValueError, match=r"None of the checkpoints.*too short"):
        files.newest_readable(tmp_path)
    assert len(names(tmp_path)) == 3


def test_one_of_a_later_version_is_an_error(tmp_path, monkeypatch):
    write_three(tmp_path)
    monkeypatch.setattr(files, "FORMAT", 0)
    with pytest.raises(ValueError, match="later version of keras_reward"):
        files.newest_readable(tmp_path)


@pytest.mark.parametrize("entry", [{"file": "../secret"}, {"dtype": "object"}])
def test_a_manifest_reads_nothing_else(tmp_path, entry):
    (tmp_path / "secret").write_bytes(bytes(64))
    path = files.write(tmp_path, 1, [np.zeros(8)], {})
    _, text = (path / "manifest.json").read_bytes().splitlines()
    manifest = json.loads(text)
    manifest["arrays"][0] |= {**entry, "checksum": zlib.crc32(bytes(64))}
    (path / "manifest.json").write_bytes(files.as_json(manifest))
    with pytest.raises(files.BrokenCheckpointError):
        files.read(path)


@pytest.mark.parametrize("failing", ["manifest.json", "arrays_0.bin"])
def test_a_full_disk_leaves_the_others(tmp_path, monkeypatch, failing):
    write_three(tmp_path)
    before = names(tmp_path)
    write_synced = files.write_synced

    def full(path, chunks):
        if path.name == failing:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        write_synced(path, chunks)

    monkeypatch.setattr(files, "write_synced", full)
    with pytest.raises(OSError, match="No space"):
        files.write(tmp_path, 101, ARRAYS, {})
    assert names(tmp_path) == before


@pytest.mark.parametrize("left", [".writing_step_00000101_7", ".deleting_step_1_7"])
def test_what_a_killed_process_leaves_is_not_read(tmp_path, left):
    write_three(tmp_path)
    (tmp_path / left).mkdir()
    (tmp_path / left / "arrays_0.bin").write_bytes(b"half")
    assert files.newest_readable(tmp_path)[1][0] == 100
    files.discard_old(tmp_path, 3)
    assert left not in names(tmp_path) and len(names(tmp_path)) == 3


def test_a_broken_one_of_the_same_step_is_replaced(tmp_path):
    cut(write_three(tmp_path)[1])
    files.write(tmp_path, 20, [np.array(21)], {})
    assert files.read(tmp_path / "step_00000020")[0][0] == 21


def test_work_in_the_background_tells_its_failure_once():
    done, background = [], Background()
    assert background.start(done.append, 1) is None
    assert background.wait() is None and done == [1]
    background.start(done.index, 2)
    assert isinstance(background.start(done.append, 3), ValueError)
    assert background.wait() is None and background.failure() is None
    assert done == [1, 3]
