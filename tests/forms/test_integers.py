"""Integers beyond int32: which are told apart, and what becomes of the others."""

import keras
import numpy as np
import pytest
from keras import ops
from tiny import compiled, to_numpy

from keras_reward.forms.integers import as_int32, maps_as_int32, narrow_maps
from keras_reward.nests import to_tensor

CROWD = 900_100_448_263  # as COCO numbers annotations of crowds
IDS = {
    "int64": [0, 1, 5, 2**32 + 5, CROWD, CROWD + 2**32, -1, -CROWD, 2**31, 2**63 - 1],
    "uint32": [0, 1, 5, 2**31 - 1, 2**31, 2**31 + 5, 2**32 - 1],
    "uint64": [0, 1, 5, 2**32 + 5, 2**31, CROWD],
    "int32": [0, 1, -1, 2**31 - 1, -(2**31)],
    "uint8": [0, 1, 128, 255],
}


def dtype_held(dtype):
    """The dtype that a tensor made of such an array has."""
    if (keras.config.backend(), dtype) == ("torch", "uint64"):
        return None  # Keras refuses it
    tensor = ops.convert_to_tensor(np.zeros((1,), dtype))
    return keras.backend.standardize_dtype(tensor.dtype)


def maps_with(ids, dtype, seed=0, rows=3):
    instances = np.random.default_rng(seed).choice(
        np.array(ids, dtype), (rows, 5, 8), replace=True
    )
    return np.stack([np.ones_like(instances), instances], -1)


def check_numbers(before, after):
    """Equal ids have equal numbers, others others, of the same sign."""
    assert after.dtype == "int32"
    np.testing.assert_array_equal(after[..., 0], before[..., 0])
    for old, new in zip(before[..., 1], after[..., 1], strict=True):
        pairs = set(zip(old.ravel().tolist(), new.ravel().tolist(), strict=True))
        assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})
        assert all((a > 0) - (a < 0) == (b > 0) - (b < 0) for a, b in pairs)


@pytest.mark.parametrize("dtype", ["int64", "uint32", "uint64"])
def test_instances_are_numbered_anew_on_the_host(dtype):
    maps = maps_with(IDS[dtype], dtype)
    check_numbers(maps, narrow_maps("A test", "maps", maps))
    small = maps_with([1, 2, 2**31 - 1], dtype)
    assert narrow_maps("A test", "maps", small) is small


@pytest.mark.parametrize("xla", [False, True])
@pytest.mark.parametrize("dtype", [d for d in IDS if dtype_held(d) == d])
def test_instances_are_numbered_anew_within_a_step(dtype, xla):
    number = compiled(maps_as_int32, xla)
    for ids in (IDS[dtype], [0, 1, 2]):
        maps = maps_with(ids, dtype)
        check_numbers(maps, to_numpy(number(ops.convert_to_tensor(maps))))


@pytest.mark.parametrize("dtype", [d for d in IDS if dtype_held(d) == d])
def test_other_integers_beyond_int32_are_replaced(dtype):
    values = np.array(IDS[dtype], dtype)
    fits = [-(2**31) <= value < 2**31 for value in IDS[dtype]]
    expected = [i if fit else -7 for i, fit in zip(IDS[dtype], fits, strict=True)]
    result = compiled(lambda x: as_int32(x, -7))(ops.convert_to_tensor(values))
    assert to_numpy(result).tolist() == expected
    assert to_numpy(result).dtype == "int32"


def test_classes_beyond_int32_are_refused():
    maps = maps_with([1, 2], "int64")
    maps[1, 2, 3, 0] = 2**32 + 5
    with pytest.raises(ValueError, match=r"A test computes in int32.*4294967301 in `m"):
        narrow_maps("A test", "m", maps)


def test_no_tensor_drops_bits_of_an_integer():
    for dtype, ids in IDS.items():
        if dtype_held(dtype) is None:
            continue
        values = np.array(ids, dtype)
        if dtype_held(dtype) in (dtype, "int64"):
            assert to_numpy(to_tensor({"a": values})["a"]).tolist() == ids
        else:
            with pytest.raises(ValueError, match=f"at most 32 bits.*dtype {dtype}"):
                to_tensor({"a": values})
