"""Files that are written whole or not at all.

Writing over a file in place destroys it at once: if the process is killed, or the disk
is full, the old file is gone and the new one is not there. So a new file is written
beside the old one, brought to the disk, and then takes its place in one step. What a
killed process leaves behind is a file named `.partial-...`, which may be deleted.
"""

import contextlib
import os
import pathlib
import secrets
import shutil

PREFIX = ".partial-"


@contextlib.contextmanager
def whole_file(path):
    """Gives a path to write to, whose file takes the place of `path` at the end.

    If writing fails, the new file is removed, and the old one stays as it was. A link
    stays a link: the file that it points to is replaced. What is not a path of a
    regular file, such as an open file, is given back to be written to directly.

    Args:
        path: str or `os.PathLike`. Its folder must exist.

    Returns:
        A context manager. It gives a `pathlib.Path` in the same folder with the same
        endings.

    Example:

    ```python
    from keras_reward.whole_files import whole_file

    with whole_file("results.json") as new:
        new.write_text("{}")
    ```
    """
    if not isinstance(path, (str, os.PathLike)):
        yield path
        return
    place = pathlib.Path(os.path.realpath(path))
    if place.exists() and not place.is_file():  # a device or a pipe
        yield place
        return
    with _noted(path):
        new = beside(place)
        # Unlike `tempfile`, with the permissions that any new file gets.
        os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        try:
            yield new
            if place.exists():
                shutil.copymode(place, new)
            to_disk(new)
            os.replace(new, place)
        except BaseException:
            new.unlink(missing_ok=True)
            raise
        folder_to_disk(place.parent)


@contextlib.contextmanager
def whole_files(folder):
    """Gives a new folder, whose files take their places in `folder` at the end.

    For writers of several files. Each file is whole, the old or the new one. They take
    their places one after the other, those with the shortest names last, so a process
    that is killed at that moment may leave new files beside old ones.

    Args:
        folder: str or `os.PathLike`, made if it does not exist.
    """
    place = pathlib.Path(os.path.realpath(folder))
    is_new = not place.exists()
    with _noted(folder):
        new = place / f"{PREFIX}{secrets.token_hex(8)}"
        new.mkdir(parents=True)
        try:
            yield new
            files = [path for path in new.rglob("*") if path.is_file()]
            for path in files:
                to_disk(path)
            for inner in [path for path in new.rglob("*") if path.is_dir()]:
                (place / inner.relative_to(new)).mkdir(parents=True, exist_ok=True)
            for path in sorted(files, key=lambda path: (-len(path.name), path.name)):
                os.replace(path, place / path.relative_to(new))
            is_new = False
        finally:
            shutil.rmtree(new, ignore_errors=True)
            if is_new:
                shutil.rmtree(place, ignore_errors=True)
        folder_to_disk(place)


def append_lines(path, lines):
    """Adds lines to a text file, all of them or none.

    If the last line was cut off by a killed process, the new ones begin after it.

    Args:
        path: str or `os.PathLike`, made if it does not exist.
        lines: list of str, without line breaks.
    """
    added = "".join(f"{line}\n" for line in lines).encode()
    with open(path, "ab+", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(size - 1)
            added = added if file.read(1) == b"\n" else b"\n" + added
        try:
            while added:  # a disk that is nearly full takes a part
                added = added[file.write(added) :]
        except BaseException:
            file.truncate(size)
            raise


def beside(place):
    """A path in the same folder that no file has yet, with the same endings."""
    endings = "".join(f".{part}" for part in place.name.split(".")[1:][-2:])
    return place.with_name(f"{PREFIX}{secrets.token_hex(8)}{endings}")


def to_disk(path):
    """Waits until a file's contents are on the disk; raises if they cannot be."""
    # Not read-only: Windows could not flush it.
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def folder_to_disk(folder):
    """Waits until a folder knows its new files, where the system can wait for that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def _noted(path):
    """Adds to an error that what was there is there still."""
    try:
        yield
    except OSError as error:
        error.add_note(f"Raised while writing {os.fspath(path)}, left as it was.")
        raise
