"""Checkpoint files that are broken, or were made to do harm."""

import io
import os
import pickle
import tracemalloc
import zipfile

import numpy as np
import pytest
from test_big_vision import encoder, save, weights, weights_of

from keras_reward.models import load_big_vision

NAME = "params/embedding/bias"  # (16,)


class Evil:
    """Leaves a file where it is unpickled."""

    def __reduce__(self):
        return (os.mkdir, ("unpickled",))


def header(shape, descr="<f4", more=""):
    file = io.BytesIO()
    described = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, described)
    return file.getvalue().replace(b" \n", more.encode() + b" \n")


def zipped(path, members, compression=zipfile.ZIP_DEFLATED):
    """An `.npz` file of bytes by name, beside those of a good one."""
    good = io.BytesIO()
    np.savez(good, **{n: a for n, a in weights("vit").items() if n != NAME})
    path.write_bytes(good.getvalue())
    with zipfile.ZipFile(path, "a", compression) as archive:
        for name, content in members:
            archive.writestr(f"{name}.npy", content)
    return path


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def changed(path, place, value):
    content = bytearray(path.read_bytes())
    content[place] ^= value
    path.write_bytes(content)
    return path


def broken_files(folder):
    """Path and what its message says, by what is wrong."""
    good = save(folder, weights("vit")).read_bytes()
    path = folder / "file.npz"

    def written(content):
        path.write_bytes(content)
        return path

    def of_bias(content, **options):
        return zipped(path, [(NAME, content)], **options)

    bias = np.zeros(16, "float32")
    return {
        "empty": lambda: (written(b""), "not a zip file"),
        "cut off": lambda: (written(good[:-300]), "not a zip file"),
        "pickle": lambda: (written(pickle.dumps(Evil())), "not a zip file"),
        "one array": lambda: (written(npy(bias)), "a single array"),
        "objects": lambda: (
            save(folder, {**weights("vit"), NAME: np.array([Evil()])}),
            "embedding/bias.npy' is of Python objects",
        ),
        "strings": lambda: (
            of_bias(npy(np.array(["a"] * 16))),
            "embedding/bias.npy' is not of numbers, but of <U1",
        ),
        "complex": lambda: (of_bias(npy(bias + 1j)), "not of numbers"),
        "dates": lambda: (of_bias(npy(bias.astype("M8[s]"))), "not of numbers"),
        "records": lambda: (of_bias(header((16,), [("a", "<f4")])), "not of numbers"),
        "no header": lambda: (of_bias(b"text"), "no header that"),
        "nothing": lambda: (of_bias(b""), "no header that"),
        "another version": lambda: (of_bias(b"\x93NUMPY\x09\x00"), "no header"),
        "a long header": lambda: (
            of_bias(b"\x93NUMPY\x02\x00\xff\xff\xff\x00" + b"(" * 2**24),
            "no header that",
        ),
        "a nested header": lambda: (
            of_bias(b"\x93NUMPY\x01\x00\x00\x20" + b"(" * 2**13),
            "no header that",
        ),
        "more than it has": lambda: (
            of_bias(header((10**13,)) + b"abc"),
            "claims 40000000000000 bytes of values, and has 3",
        ),
        "less than it has": lambda: (of_bias(header((1,)) + bytes(64)), "has 64"),
        "a negative shape": lambda: (of_bias(header((-16,)) + bytes(64)), "and has 64"),
        "a shape of two signs": lambda: (
            of_bias(header((-4, -4)) + bytes(64)),
            "and has 64",
        ),
        "beyond 64 bits": lambda: (of_bias(header((2**70, 2**70)) + b"0"), "has 1 *"),
        "NaN": lambda: (of_bias(npy(bias + np.nan)), "has NaN or infinities"),
        "too large": lambda: (
            of_bias(npy(np.full(16, 1e39))),
            "has NaN or infinities",
        ),
        "twice": lambda: (
            zipped(path, [(NAME, npy(bias)), (NAME, npy(bias + 1))]),
            "two arrays of one name",
        ),
        "an odd compression": lambda: (
            of_bias(npy(bias), compression=zipfile.ZIP_BZIP2),
            "compressed in a way",
        ),
        "many layers": lambda: (
            zipped(
                path,
                [
                    (NAME, npy(bias)),
                    ("params/Transformer/encoderblock/x", npy(np.zeros((10**6, 1)))),
                ],
            ),
            "not of up to 1024 layers",
        ),
    }


KINDS = (
    *("empty", "cut off", "pickle", "one array", "objects", "strings", "complex"),
    *("dates", "records", "no header", "nothing", "another version", "a long header"),
    *("a nested header", "more than it has", "less than it has", "a negative shape"),
    *("a shape of two signs", "beyond 64 bits", "NaN", "too large", "twice"),
    *("an odd compression", "many layers"),
)


@pytest.fixture(scope="module")
def model():
    return encoder()


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_broken_file_is_one_error(kind, tmp_path, monkeypatch, model):
    monkeypatch.chdir(tmp_path)
    path, message = broken_files(tmp_path)[kind]()
    before = weights_of(model)
    with pytest.raises(ValueError, match=message) as caught:
        load_big_vision(path, model)
    text = str(caught.value)
    assert text.startswith("A checkpoint must be an .npz file of plain arrays")
    assert str(path) in text and len(text) < 1000
    assert not (tmp_path / "unpickled").exists()
    for a, b in zip(weights_of(model), before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_any_flipped_byte_is_an_error_or_does_not_matter(tmp_path, model):
    """Zip files have a sum of each array; only what it leaves out may differ."""
    good = save(tmp_path, weights("vit"))
    expected = weights_of(load_big_vision(good, model))
    content = good.read_bytes()
    path = tmp_path / "flipped.npz"
    failed = 0
    for place in np.random.default_rng(0).integers(0, len(content), 40):
        path.write_bytes(content)
        try:
            load_big_vision(changed(path, place, 1 << (place % 8)), model)
        except ValueError as error:
            failed += 1
            assert str(path) in str(error)
        for a, b in zip(weights_of(model), expected, strict=True):
            np.testing.assert_array_equal(a, b)
    assert failed > 20


def bomb(path, name, shape):
    """A file of zeros, a thousandth of their size."""
    zeros = bytes(4 * int(np.prod(shape)))
    return zipped(path, [(NAME, npy(np.zeros(16))), (name, header(shape) + zeros)])


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("params/x", (2**24,), r"left over: x \(16777216,\)"),
        ("params/pos_embedding/x", (2**24,), r"left over: pos_embedding/x"),
        ("opt/mu", (2**24,), None),
        ("state/x", (2**24,), "left over: state/x"),
    ],
)
def test_what_the_model_has_no_room_for_is_not_read(
    tmp_path, name, shape, message, model
):
    path = bomb(tmp_path / "bomb.npz", name, shape)
    assert os.path.getsize(path) < 500_000
    tracemalloc.start()
    try:
        if message is None:  # of an optimizer, as in honest files
            load_big_vision(path, model)
        else:
            with pytest.raises(ValueError, match=message):
                load_big_vision(path, model)
        assert tracemalloc.get_traced_memory()[1] < 2**23  # 64 MiB if it were read
    finally:
        tracemalloc.stop()


def test_a_grid_of_too_many_positions_is_not_read(tmp_path, model):
    arrays = weights("vit")
    del arrays["params/pos_embedding"]
    zeros = np.broadcast_to(np.zeros((), "float32"), (1, 1024**2, 16))
    path = save(tmp_path, {**arrays, "params/pos_embedding": zeros[:, :100]})
    load_big_vision(path, model)  # a grid of 10 x 10
    path = save(tmp_path, {**arrays, "params/pos_embedding": zeros[:, : 257**2]})
    with pytest.raises(ValueError, match="not of 1 to 65536 positions"):
        load_big_vision(path, model)


def test_a_message_lists_no_more_than_can_be_read(tmp_path, model):
    arrays = {f"params/{i}\x1b": np.zeros(1) for i in range(300)}
    path = save(tmp_path, {**weights("vit"), **arrays})
    with pytest.raises(ValueError, match="Received 300 that do not") as caught:
        load_big_vision(path, model)
    lines = str(caught.value).splitlines()
    assert len(lines) == 102 and lines[-1] == "and 200 more"
    assert all(line.isprintable() for line in lines)


def test_a_file_that_is_not_there_is_said_to_be(tmp_path, model):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_big_vision(tmp_path / "nowhere.npz", model)
    with pytest.raises(OSError, match=str(tmp_path)):
        load_big_vision(tmp_path, model)
