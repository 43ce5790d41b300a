"""Reads arrays from the checkpoint files of google-research/big_vision."""

import re
import zipfile

import numpy as np

PREFIXES = ("params/", "opt/target/")  # of the weights in files with an optimizer
OLD_NAMES = {
    r"^Encoder/": "encoder/",
    r"^Decoder/": "decoder/",
    r"^Transformer/posembed_input/pos_embedding$": "pos_embedding",
    r"^Transformer/pos_embedding$": "pos_embedding",
}


def read_arrays(path):
    """Float32 arrays of a checkpoint, by the names that `unify` gives them.

    Args:
        path: an `.npz` file, with or without an optimizer.

    Raises:
        ValueError: if it is not such a file, or contains pickled objects.
    """
    return unify(read(path))


def read(path):
    """Arrays by their names, without the optimizer's arrays and without prefixes."""
    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise ValueError("a single array")
        with file:
            arrays = {name: file[name] for name in file.files}
    except (ValueError, zipfile.BadZipFile) as error:
        raise ValueError(
            "A checkpoint must be an .npz file of plain arrays; pickled objects are "
            f"not loaded. Received: {str(path)!r} ({error})"
        ) from error
    for prefix in PREFIXES:
        if any(name.startswith(prefix) for name in arrays):
            return {
                name.removeprefix(prefix): as_float(array)
                for name, array in arrays.items()
                if name.startswith((prefix, "state/"))
            }
    return {name: as_float(array) for name, array in arrays.items()}


def as_float(array):
    """An array in float32; NumPy files store bfloat16 as two untyped bytes."""
    if array.dtype.kind == "V" and array.dtype.itemsize == 2:
        return (array.view("uint16").astype("uint32") << 16).view("float32")
    return array.astype("float32")


def unify(arrays):
    """The same arrays with the names of current models, one array per layer."""
    for old, new in OLD_NAMES.items():
        arrays = {re.sub(old, new, name): array for name, array in arrays.items()}
    arrays = renumber(arrays)
    result = {}
    for name, array in arrays.items():
        parent, stacked, rest = name.partition("encoderblock/")
        if stacked:
            for layer, part in enumerate(array):
                result[f"{parent}encoderblock_{layer}/{rest}"] = part
        else:
            result[name] = array
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

    def renamed(match):
        block, kind, number = match.groups()
        place = sorted(numbers[block, kind]).index(int(number))
        return f"{block}{kind}_{place}"

    return {pattern.sub(renamed, name): array for name, array in arrays.items()}
