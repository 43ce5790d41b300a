"""TensorFlow, with every size unknown while tracing: only the rank is known.

A size is unknown where it differs from batch to batch, as after `padded_batch`.
"""

import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from every_part import PARTS, SEQUENCES, sequence_part
from tiny import to_numpy

import keras_reward as kr
from keras_reward.nests import map_leaves, to_tensor

# The number of classes stays known: that of logits.
CLASSES = {
    "categorical policy": 4,
    "categorical_likelihood": 5,
    **dict.fromkeys(
        ("painted", "painted in blocks", "colours by parts"), 1
    ),  # channels
    "to_gray": 3,
}


def of_unknown_sizes(function, arguments, last=None):
    """A function of tensors that was traced for arguments of any size.

    Args:
        function: takes and returns nests of tensors.
        arguments: tuple of nests of arrays, of the ranks and dtypes.
        last: the size of the last axis of the first argument, if it is known.
    """

    def spec(array):
        return tf.TensorSpec([None] * array.ndim, array.dtype)

    specs = list(map_leaves(spec, tuple(arguments)))
    if last is not None:
        first = specs[0]
        specs[0] = tf.TensorSpec([*first.shape[:-1], last], first.dtype)
    return tf.function(function, input_signature=specs)


def check_unknown_sizes(part, last=None):
    function, *arguments = part
    given = [each for each in arguments if each is not None]

    def of_given(*given):
        given = iter(given)
        return function(*(a if a is None else next(given) for a in arguments))

    given = to_tensor(map_leaves(np.asarray, given))
    expected = keras.tree.flatten(of_given(*given))
    traced = of_unknown_sizes(of_given, map_leaves(np.array, given), last)
    for found, value in zip(keras.tree.flatten(traced(*given)), expected, strict=True):
        assert found.shape == value.shape
        np.testing.assert_allclose(to_numpy(found), to_numpy(value), 1e-5, 1e-5)


@pytest.mark.parametrize("name", PARTS)
def test_results_are_those_of_known_sizes(name):
    check_unknown_sizes(PARTS[name], CLASSES.get(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", SEQUENCES)
def test_sequences_are_those_of_known_sizes(name):
    check_unknown_sizes(sequence_part(name))


def test_the_number_of_classes_must_be_known():
    part = PARTS["categorical policy"]
    with pytest.raises(ValueError, match=r"number of classes.*\(None, None, None,"):
        check_unknown_sizes(part)


def test_longer_references_than_the_model_writes_fail():
    """They would be refused while tracing, if their length were known."""
    function, images, samples, _ = sequence_part("chunks")
    traced = of_unknown_sizes(function, (images, samples, samples))
    traced(images, samples, samples)
    with pytest.raises(tf.errors.InvalidArgumentError, match="non-negative"):
        traced(images, samples, np.pad(samples, [(0, 0), (0, 0), (0, 1)]))


def test_another_number_of_coordinates_fails():
    box = {"boxes": np.zeros((2, 3, 4), "float32"), "labels": np.zeros((2, 3), "int32")}
    traced = of_unknown_sizes(kr.matched_iou, (box, box))
    traced(box, box)
    with pytest.raises(tf.errors.InvalidArgumentError, match="reshape"):
        traced(box, {**box, "boxes": np.zeros((2, 3, 5), "float32")})


def test_a_prompt_must_have_a_known_length():
    policy = kr.CausalLMPolicy()
    keys = {"keys": ("token_ids", "padding_mask"), "other_keys": ()}
    task = types.SimpleNamespace(**keys, check=lambda x: None)
    policy._untracked(task=task, model=keras.Sequential())
    unknown = keras.KerasTensor((None, None), "int32")
    with pytest.raises(ValueError, match=r"`sequence_length`.*\(None, None\)"):
        policy.check_inputs({"token_ids": unknown, "padding_mask": unknown})
