"""Canonical numbers of segments, and maps of logits, against plain loops."""

import numpy as np
import pytest
from tiny import compiled, to_numpy

from keras_reward.codecs import canonical_segments, panoptic_from_logits


def some_maps(batch=4, height=9, width=7, seed=0):
    """Blocks of a few classes and instances, void and odd ids among them."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 4, (batch, 3, 3, 2))
    coarse[..., 1] = np.array([0, 5, -2, 2**31 - 1])[coarse[..., 1]]
    coarse[0, 0, 0] = [-1, 3]
    return coarse.repeat(3, 1)[:, :height].repeat(3, 2)[:, :, :width].astype("int32")


def numbered(labels):
    """Segments of one map by their centres, as UViM's publication orders them."""
    keys = {tuple(s) for s in labels.reshape(-1, 2).tolist() if s[0] > 0}

    def place(key):
        y, x = np.nonzero((labels == key).all(-1))
        first = y[0] * labels.shape[1] + x[0]
        return np.float32(y.mean()) * len(labels) + np.float32(x.mean()), first

    result = np.zeros_like(labels)
    for number, key in enumerate(sorted(keys, key=place), start=1):
        result[(labels == key).all(-1)] = [key[0], number]
    return result


def test_segments_are_numbered_from_top_to_bottom():
    maps = some_maps()
    result = to_numpy(compiled(lambda m: canonical_segments(m, 12))(maps))
    np.testing.assert_array_equal(result, list(map(numbered, maps)))
    assert result[..., 1].max() > 4


@pytest.mark.slow
def test_names_of_instances_do_not_matter():
    maps = some_maps()
    renamed = maps * [1, 3] + [0, 7]
    np.testing.assert_array_equal(
        to_numpy(canonical_segments(maps, 12)),
        to_numpy(canonical_segments(renamed.astype("int32"), 12)),
    )


@pytest.mark.slow
def test_one_centre_for_two_segments_is_settled_in_reading_order():
    labels = np.full((1, 3, 3, 2), 2, "int32")
    labels[0, 1, 1] = [1, 1]  # a dot in a ring
    result = to_numpy(canonical_segments(labels, 4))[0, ..., 1]
    np.testing.assert_array_equal(result, [[1, 1, 1], [1, 2, 1], [1, 1, 1]])


@pytest.mark.slow
def test_segments_beyond_have_a_class_and_no_number():
    labels = np.array([[[[1, 1], [1, 2], [2, 1], [0, 0]]]])
    result = to_numpy(canonical_segments(labels, 2))[0, 0]
    np.testing.assert_array_equal(result, [[1, 1], [1, 2], [2, -1], [0, 0]])


def expected_map(semantics, instances, min_fraction, stuff):
    chosen = instances.argmax(-1)
    result = np.zeros((*chosen.shape, 2), int)
    for number in np.unique(chosen):
        mask = chosen == number
        label = semantics[mask].sum(0).argmax()
        if label and mask.mean() > min_fraction:
            result[mask] = [label, 0 if label in stuff else number]
    return result


def test_maps_of_logits():
    """One class an instance; tiny ones, and those of class void, become void."""
    generator = np.random.default_rng(0)
    semantics = generator.normal(size=(3, 6, 5, 4)).astype("float32")
    instances = generator.normal(size=(3, 6, 5, 6)).astype("float32")
    for min_fraction, stuff in ((0.0, ()), (0.15, (2,))):
        decode = compiled(
            lambda s, i, f=min_fraction, c=stuff: panoptic_from_logits(s, i, f, c)
        )
        expected = [
            expected_map(s, i, min_fraction, stuff)
            for s, i in zip(semantics, instances, strict=True)
        ]
        result = to_numpy(decode(semantics, instances))
        np.testing.assert_array_equal(result, expected)
        assert len(np.unique(result[..., 1])) > 2


@pytest.mark.slow
def test_a_canonical_map_survives_its_own_logits():
    maps = some_maps()
    canonical = to_numpy(canonical_segments(maps, 12))
    semantics = np.eye(4, dtype="float32")[canonical[..., 0]]
    instances = np.eye(13, dtype="float32")[canonical[..., 1]]
    result = to_numpy(panoptic_from_logits(semantics, instances))
    np.testing.assert_array_equal(result, canonical)
