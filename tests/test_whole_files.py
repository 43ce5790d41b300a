"""Files that are written whole or not at all."""

import errno
import io
import os

import pytest

from keras_reward.whole_files import append_lines, whole_file, whole_files


def fill(path, text):
    with whole_file(path) as new:
        new.write_text(text)


def test_a_new_file_appears_at_the_end(tmp_path):
    path = tmp_path / "a.json"
    with whole_file(path) as new:
        new.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize(
    "name", ["m.keras", "m.weights.h5", "run.3.keras", ".npz", "plain", "a b.c.d.e"]
)
def test_it_has_the_endings_that_writers_look_at(tmp_path, name):
    with whole_file(str(tmp_path / name)) as new:
        assert new.parent == tmp_path
        endings = [e for e in (".keras", ".weights.h5", ".npz", ".d.e") if e in name]
        assert new.name.endswith(tuple(endings) or ("",))
        assert new.suffix or "." not in name
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file_alone(tmp_path, error):
    path = tmp_path / "a.txt"
    fill(path, "old")
    with pytest.raises(error), whole_file(path) as new:
        new.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_that_is_full_only_at_the_end_is_noticed(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    fill(path, "old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        fill(path, "new")
    assert caught.value.__notes__ == [f"Raised while writing {path}, left as it was."]
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_links_and_permissions_stay(tmp_path):
    path, link = tmp_path / "a.txt", tmp_path / "link.txt"
    fill(path, "old")
    usual = path.stat().st_mode
    (tmp_path / "plain").write_text("")
    assert usual == (tmp_path / "plain").stat().st_mode
    path.chmod(0o640)
    link.symlink_to(path)
    fill(link, "new")
    assert link.is_symlink()
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o640


def test_what_is_no_path_of_a_file_is_written_to_directly():
    buffer = io.BytesIO()
    with whole_file(buffer) as new:
        assert new is buffer
    with whole_file(os.devnull) as new:
        new.write_text("gone")
    assert not os.path.isfile(os.devnull)


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        fill(tmp_path / "none" / "a.txt", "")
    assert str(tmp_path / "none" / "a.txt") in caught.value.__notes__[0]


def test_several_files_take_their_places_together(tmp_path):
    folder = tmp_path / "deep" / "folder"
    for text in ("old", "new"):
        with whole_files(folder) as new:
            (new / "inner").mkdir()
            (new / "inner" / "b").write_text(text)
            (new / "a").write_text(text)
        assert (folder / "a").read_text() == (folder / "inner" / "b").read_text()
    (folder / "other").write_text("kept")
    with pytest.raises(ValueError, match="no"), whole_files(folder) as new:
        (new / "a").write_text("half")
        raise ValueError("no")
    assert (folder / "a").read_text() == "new"
    assert sorted(os.listdir(folder)) == ["a", "inner", "other"]
    with pytest.raises(ValueError, match="no"), whole_files(tmp_path / "none") as new:
        raise ValueError("no")
    assert not (tmp_path / "none").exists()


def test_lines_are_added_all_or_none(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    append_lines(path, ["1", "2"])
    path.write_text(path.read_text() + "cut o")  # by a killed process
    append_lines(path, ["3"])
    assert path.read_text() == "1\n2\ncut o\n3\n"

    class Full(io.FileIO):
        def write(self, data):
            if len(data) <= 4:
                full()
            return super().write(data[:4])  # a part fits

    monkeypatch.setattr("builtins.open", lambda path, mode, buffering: Full(path, "a+"))
    with pytest.raises(OSError, match="No space left"):
        append_lines(path, ["4444", "5555"])
    monkeypatch.undo()
    assert path.read_text() == "1\n2\ncut o\n3\n"
