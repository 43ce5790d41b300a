"""Reads arrays from the checkpoint files of google-research/big_vision.

A file of a megabyte can hold gigabytes of zeros, and claim any shape. So names, shapes,
types and sizes are read first, and values only of arrays that a model has room for.
"""

import math
import re
import struct
import tokenize
import warnings
import zipfile
import zlib
from typing import Any, NamedTuple

import numpy as np

PREFIXES = ("params/", "opt/target/")  # of the weights in files with an optimizer
OLD_NAMES = {
    r"^Encoder/": "encoder/",
    r"^Decoder/": "decoder/",
    r"^Transformer/posembed_input/pos_embedding$": "pos_embedding",
    r"^Transformer/pos_embedding$": "pos_embedding",
}
MAX_LAYERS = 1024  # that scan has stacked in one array
MAX_HEADER = 10_000  # bytes, as NumPy allows
MAGIC = np.lib.format.MAGIC_PREFIX
COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
# What reading a broken or unusual zip file may raise.
BROKEN = (
    *(EOFError, KeyError, MemoryError, OSError, OverflowError, RuntimeError),
    *(SyntaxError, TypeError, ValueError, struct.error, tokenize.TokenError),
    *(zipfile.BadZipFile, zlib.error),
)


class Stored(NamedTuple):
    """An array in a file, of which only the header has been read.

    Attributes:
        member: name of the file in the zip file.
        shape: tuple of ints.
        dtype: NumPy's.
        layer: the index in an array of all layers, None if the array is one.
    """

    member: str
    shape: tuple
    dtype: Any
    layer: Any = None

    def of_layer(self, layer):
        return self._replace(shape=self.shape[1:], layer=layer)


class Checkpoint:
    """The arrays of a checkpoint by the names that `unify` gives them.

    Args:
        path: an `.npz` file, with or without an optimizer.

    Attributes:
        stored: dict of a `Stored` by name, without the optimizer's arrays and without
            prefixes.

    Raises:
        ValueError: if it is not such a file, or contains pickled objects.
    """

    def __init__(self, path):
        self.path = path
        with open(path, "rb") as file:  # outside of `try`: there may be no such file
            try:
                if file.read(len(MAGIC)) == MAGIC:
                    raise ValueError("a single array")
                with zipfile.ZipFile(file) as archive:
                    self.stored = unify(headers(archive))
            except BROKEN as error:
                raise self.broken(error) from error

    def read(self, names):
        """Float32 arrays of the given names, a dict."""
        arrays, members = {}, {}
        for name in names:
            members.setdefault(self.stored[name].member, []).append(name)
        try:
            with zipfile.ZipFile(self.path) as archive:
                for member, own in members.items():
                    values = as_float(read_member(archive, member))
                    if not np.isfinite(values).all():
                        raise ValueError(f"{ascii(member)[:200]} has NaN or infinities")
                    for name in own:
                        layer = self.stored[name].layer
                        arrays[name] = values if layer is None else values[layer]
        except BROKEN as error:
            raise self.broken(error) from error
        return arrays

    def broken(self, error):
        """The error to raise for what was found in the file."""
        text = str(error).strip() or type(error).__name__
        return ValueError(
            "A checkpoint must be an .npz file of plain arrays; pickled objects are "
            f"not loaded. Received: {str(self.path)!r} ({text[:300]})"
        )


def headers(archive):
    """A `Stored` for each array of weights in a zip file, by name without prefix."""
    names = [name.removesuffix(".npy") for name in archive.namelist()]
    if len(set(names)) < len(names):
        raise ValueError("two arrays of one name")
    prefix = next((p for p in PREFIXES if any(n.startswith(p) for n in names)), "")
    kept = (prefix, "state/") if prefix else ("",)
    return {
        name.removeprefix(prefix): read_header(archive, member)
        for name, member in zip(names, archive.namelist(), strict=True)
        if name.startswith(kept)
    }


def read_header(archive, member):
    """A `Stored`, from the first bytes of a file in a zip file."""
    name = ascii(member[:200])
    if archive.getinfo(member).compress_type not in COMPRESSIONS:
        raise ValueError(f"{name} is compressed in a way that NumPy does not use")
    try:
        with archive.open(member) as file:
            read = HEADERS[np.lib.format.read_magic(file)]
            shape, _, dtype = read(file, max_header_size=MAX_HEADER)
            start = file.tell()
    except BROKEN as error:
        raise ValueError(f"{name} has no header that can be read") from error
    if dtype.hasobject:
        raise ValueError(f"{name} is of Python objects")
    if dtype.kind not in "fiub" and (dtype.kind, dtype.itemsize) != ("V", 2):
        raise ValueError(f"{name} is not of numbers, but of {dtype}")
    claimed = math.prod(shape) * dtype.itemsize
    held = archive.getinfo(member).file_size - start
    if any(size < 0 for size in shape) or claimed != held:
        raise ValueError(f"{name} claims {claimed} bytes of values, and has {held}")
    return Stored(member, tuple(map(int, shape)), dtype)


def read_member(archive, member):
    """The array in a file of a zip file, whose header has been checked."""
    with archive.open(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def as_float(array):
    """An array in float32; NumPy files store bfloat16 as two untyped bytes."""
    if array.dtype.kind == "V" and array.dtype.itemsize == 2:
        return (array.view("uint16").astype("uint32") << 16).view("float32")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # too large becomes infinite
        return array.astype("float32")


def unify(arrays):
    """The same `Stored` with the names of current models, one per layer."""
    for old, new in OLD_NAMES.items():
        arrays = {re.sub(old, new, name): array for name, array in arrays.items()}
    arrays = renumber(arrays)
    result = {}
    for name, array in arrays.items():
        parent, stacked, rest = name.partition("encoderblock/")
        if not stacked:
            result[name] = array
            continue
        if not array.shape or array.shape[0] > MAX_LAYERS:
            raise ValueError(
                f"{name[:200]!a} is not of up to {MAX_LAYERS} layers, but of "
                f"shape {array.shape}"
            )
        for layer in range(array.shape[0]):
            result[f"{parent}encoderblock_{layer}/{rest}"] = array.of_layer(layer)
    return result


def renumber(arrays):
    """Renumbers the modules of each kind in each block.

    Early Flax numbered all modules of a block together: `LayerNorm_0`,
    `MultiHeadDotProductAttention_1`, `LayerNorm_2`, `MlpBlock_3`.
    """
    pattern = re.compile(r"^(.*encoderblock_\d+/)([A-Za-z]+)_(\d+)(?=/)")
    numbers = {}
    for match in filter(None, map(pattern.match, arrays)):
        block, kind, number = match.groups()
        numbers.setdefault((block, kind), set()).add(int(number))
    ranks = {
        (*key, number): place
        for key, found in numbers.items()
        for place, number in enumerate(sorted(found))
    }

    def renamed(match):
        block, kind, number = match.groups()
        return f"{block}{kind}_{ranks[block, kind, int(number)]}"

    return {pattern.sub(renamed, name): array for name, array in arrays.items()}
