"""TensorFlow's ragged tensors as references: in a call, in `adapt`, in `fit`."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from tiny import classifier, inputs, to_numpy

from keras_reward import CIDErReward, MaximumLikelihood, Reward, RewardTuning, nests
from keras_reward.evaluation import cider

RAGGED = [[[3, 4, 1], [3, 1]], [[2, 4, 4, 1]]]
PADDED = np.array([[[3, 4, 1, 0], [3, 1, 0, 0]], [[2, 4, 4, 1], [0, 0, 0, 0]]])
CAPTIONS = np.array([[3, 4, 1, 0], [2, 4, 1, 0]])


def adapted(references=PADDED):
    reward = CIDErReward(end_id=1)
    reward.adapt(references)
    return reward


def test_ragged_references_score_as_padded_ones():
    ragged = tf.ragged.constant(RAGGED)
    expected = to_numpy(adapted()(PADDED, CAPTIONS))
    assert expected.min() > 0
    batches = tf.data.Dataset.from_tensor_slices((CAPTIONS, ragged)).batch(1)
    for reward in (adapted(ragged), adapted(batches)):
        np.testing.assert_array_equal(to_numpy(reward(ragged, CAPTIONS)), expected)
    expected = cider(PADDED, CAPTIONS, end_id=1)["per_image"]
    result = cider(ragged, tf.ragged.constant([[3, 4, 1], [2, 4, 1]]), end_id=1)
    np.testing.assert_array_equal(result["per_image"], expected)


def test_strings_in_tensors_score_as_strings():
    words, said = [["a dog runs", "a cat"], ["a red car"]], ["a dog", "red car"]
    expected = cider(words, said)["per_image"]
    result = cider(tf.ragged.constant(words), tf.constant(said))["per_image"]
    np.testing.assert_array_equal(result, expected)
    result = cider(tf.ragged.constant(words).to_tensor(), tf.constant(said))
    np.testing.assert_array_equal(result["per_image"], expected)


@pytest.mark.slow
def test_fit_and_evaluate_take_ragged_references():
    x = inputs(2)
    results = []
    for y in (PADDED, tf.ragged.constant(RAGGED, "int32")):
        tuned = RewardTuning(classifier(positions=4), adapted(), seed=0)
        tuned.compile(keras.optimizers.SGD(0.1))
        history = tuned.fit(x, y, epochs=2, verbose=0, validation_data=(x, y)).history
        results.append([*history.values(), tuned.evaluate(x, y, verbose=0)])
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_a_step_pads_ragged_targets_of_a_dataset():
    """Ids of one caption for each input, in batches of unknown length."""

    class FirstMinusLast(Reward):
        def prepare(self, y_true):
            return keras.ops.cast(y_true[:, 0] - y_true[:, -1], "float32")

        def call(self, y_true, y_pred):
            return y_true

    y = tf.ragged.constant([[3, 4], [5], [6, 7, 8]])
    data = tf.data.Dataset.from_tensor_slices((inputs(3), y)).batch(3)
    tuned = RewardTuning(classifier(positions=4), FirstMinusLast(), seed=0)
    tuned.compile("sgd")
    # The ends are padded with -1: (3 + 1 + 5 + 1 + 6 - 8) / 3.
    expected = pytest.approx((4 + 6 - 2) / 3)
    assert tuned.fit(data, verbose=0).history["reward"] == [expected]
    assert tuned.evaluate(data, verbose=0, return_dict=True)["reward"] == expected


def test_other_ragged_targets_are_refused():
    tuned = RewardTuning(classifier(), lambda y, p: y, terms=[MaximumLikelihood()])
    tuned.compile("sgd")
    with pytest.raises(ValueError, match=r"no padding.*`to_tensor`.*ragged.*float32"):
        tuned.fit(inputs(2), tf.ragged.constant([[0.5], [1.0, 2.0]]), verbose=0)


def test_ragged_tensors_are_padded_with_what_is_no_token():
    ragged = tf.ragged.constant([[[5, 6], [7]], [[8]]], dtype="int64")
    expected = [[[5, 6], [7, -1]], [[8, -1], [-1, -1]]]
    for read in (nests.to_numpy, nests.to_arrays):
        np.testing.assert_array_equal(read({"y": ragged})["y"], expected)
