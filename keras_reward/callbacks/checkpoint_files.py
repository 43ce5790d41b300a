"""How a checkpoint lies on disk: whole, checked, and recognised if it is broken.

A folder `step_00000120` has a file with the bytes of all arrays, one after the other,
and `manifest.json`, which says of each array its dtype, its shape, in which file it is
and where, and its checksum. So a file for each of several processes would need no other
format. A folder has its name only when all of it is on disk.
"""

import json
import math
import os
import pathlib
import re
import shutil
import warnings
import zlib

import numpy as np

FORMAT = 1  # goes up when an older reader would misread a newer checkpoint
MANIFEST, ARRAYS = "manifest.json", "arrays_0.bin"
WHOLE = re.compile(r"step_(\d+)")
# What a killed writer leaves behind; nothing reads it.
PARTIAL, DISCARDED = ".writing_", ".deleting_"


class BrokenCheckpointError(Exception):
    """A checkpoint that is not what was written."""


def write(folder, step, arrays, about):
    """Writes a checkpoint, so that it is whole or not there.

    Args:
        folder: of all checkpoints; it exists.
        step: int, number of steps of the run so far.
        arrays: list of NumPy arrays.
        about: what JSON can hold.

    Returns:
        The path of the checkpoint.
    """
    path = pathlib.Path(folder) / f"step_{step:08d}"
    partial = path.with_name(f"{PARTIAL}{path.name}_{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        entries = write_arrays(partial / ARRAYS, arrays)
        manifest = {"format": FORMAT, "step": step, "about": about, "arrays": entries}
        write_synced(partial / MANIFEST, [as_json(manifest)])
        sync_folder(partial)
        if path.exists():  # one that could not be read
            discard(path)
        partial.rename(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    sync_folder(folder)
    return path


def write_arrays(path, arrays):
    """Writes the bytes of arrays to one file, and returns their manifest entries."""
    entries, chunks, offset = [], [], 0
    for array in arrays:
        data = bytes_of(array)
        entries.append(
            {
                "dtype": array.dtype.name,
                "shape": list(array.shape),
                "file": path.name,
                "offset": offset,
                "checksum": zlib.crc32(data),
            }
        )
        chunks.append(data)
        offset += data.nbytes
    write_synced(path, chunks)
    return entries


def bytes_of(array):
    """The bytes of an array, as an array of uint8 that shares its memory if it can."""
    return np.ascontiguousarray(array).reshape(-1).view("uint8")


def as_json(manifest):
    """A manifest as bytes: a line with its checksum, and a line of JSON."""
    text = json.dumps(manifest).encode()
    return b"%08x\n%s\n" % (zlib.crc32(text), text)


def write_synced(path, chunks):
    """Writes a new file, and returns when it is on disk."""
    with open(path, "xb") as file:
        for chunk in chunks:
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder):
    """Returns when the names in a folder are on disk, where folders can be synced."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(path):
    """Reads and checks a checkpoint.

    Args:
        path: of the checkpoint.

    Returns:
        The arrays and `about`, as passed to `write`.

    Raises:
        BrokenCheckpointError: if it is not what was written.
        ValueError: if a later version of the library has written it.
    """
    try:
        manifest = read_manifest(path / MANIFEST)
    except (OSError, ValueError) as error:
        raise BrokenCheckpointError(f"{MANIFEST}: {error}") from error
    if manifest["format"] > FORMAT:
        raise ValueError(
            "This checkpoint was written by a later version of keras_reward. Install "
            f"that one, or use another folder. Received: {path}, format "
            f"{manifest['format']}, of which this version reads {FORMAT}"
        )
    try:
        files = {plain_name(entry["file"]) for entry in manifest["arrays"]}
        files = {name: np.fromfile(path / name, "uint8") for name in files}
    except OSError as error:
        raise BrokenCheckpointError(str(error)) from error
    arrays = [array_in(files[entry["file"]], entry) for entry in manifest["arrays"]]
    return arrays, manifest["about"]


def read_manifest(path):
    """The manifest; a ValueError says that it is broken."""
    checksum, _, text = path.read_bytes().partition(b"\n")
    if int(checksum, 16) != zlib.crc32(text.removesuffix(b"\n")):
        raise ValueError("its checksum is wrong")
    return json.loads(text)


def plain_name(name):
    """The name of a file in the folder itself."""
    if name != os.path.basename(name):
        raise BrokenCheckpointError(f"{name!r} is not a file of the checkpoint")
    return name


def array_in(data, entry):
    """The array of a manifest entry, from the bytes of its file."""
    # Keras brings the names of others than NumPy's, such as bfloat16.
    dtype, shape = np.dtype(entry["dtype"]), tuple(entry["shape"])
    size = dtype.itemsize * math.prod(shape)
    part = data[entry["offset"] :][:size]
    if len(part) != size or dtype.hasobject:
        raise BrokenCheckpointError(f"{entry['file']} is too short")
    if zlib.crc32(part) != entry["checksum"]:
        raise BrokenCheckpointError(f"{entry['file']} has a wrong checksum")
    return part.copy().view(dtype).reshape(shape)  # copied so that it is aligned


def newest_readable(folder):
    """The newest checkpoint of a folder that can be read.

    Newer ones that cannot are renamed, so that they do not count any more, with a
    warning.

    Args:
        folder: of all checkpoints; need not exist.

    Returns:
        Its path, arrays and `about`; None if the folder has no checkpoints.

    Raises:
        ValueError: if it has some, and none can be read.
    """
    paths = checkpoints_in(folder)
    problems = []
    for path in paths:
        try:
            arrays, about = read(path)
        except BrokenCheckpointError as error:
            problems.append((path, f"{path}: {error}"))
            continue
        for broken, problem in problems:
            aside = broken.with_name(f"{broken.name}.broken")
            shutil.rmtree(aside, ignore_errors=True)
            broken.rename(aside)
            warnings.warn(
                "A checkpoint is broken and was skipped; an older one takes its "
                f"place. It was renamed to {aside.name}. Received: {problem}",
                stacklevel=2,
            )
        return path, arrays, about
    if paths:
        raise ValueError(
            "None of the checkpoints in the folder can be read. To start anew, use "
            "another folder. Received: " + "; ".join(problem for _, problem in problems)
        )
    return None


def checkpoints_in(folder):
    """Paths of the checkpoints in a folder, newest first."""
    folder = pathlib.Path(folder)
    names = os.listdir(folder) if folder.is_dir() else []
    steps = {name: WHOLE.fullmatch(name) for name in names}
    steps = {name: int(match[1]) for name, match in steps.items() if match}
    return [folder / name for name in sorted(steps, key=steps.get, reverse=True)]


def discard_old(folder, keep):
    """Deletes all checkpoints but the newest ones, and what killed writers left."""
    for path in checkpoints_in(folder)[keep:]:
        discard(path)
    for path in pathlib.Path(folder).iterdir():
        if path.name.startswith((PARTIAL, DISCARDED)):
            shutil.rmtree(path, ignore_errors=True)


def discard(path):
    """Deletes a checkpoint, so that no half of it is left under its name."""
    aside = path.with_name(f"{DISCARDED}{path.name}_{os.getpid()}")
    path.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)
