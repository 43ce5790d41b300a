"""The objective against NumPy, SciPy and Keras's own losses."""

import keras
import numpy as np
import scipy.special
from tiny import to_numpy

from keras_reward import objective


def random_logits(*shape, seed=0):
    return np.random.default_rng(seed).normal(0, 3, shape).astype("float32")


def test_log_prob_gathers_from_the_log_softmax():
    logits = random_logits(2, 3, 5)
    indices = np.random.default_rng(1).integers(0, 5, (2, 3, 4))
    expected = np.take_along_axis(scipy.special.log_softmax(logits, -1), indices, -1)
    result = objective.categorical_log_prob(logits, indices)
    np.testing.assert_allclose(to_numpy(result), expected, rtol=1e-5, atol=1e-5)


def test_log_prob_of_large_logits_is_finite():
    result = objective.categorical_log_prob(np.array([[1e4, -1e4]], "float32"), [[1]])
    np.testing.assert_allclose(to_numpy(result), [[-2e4]])


def test_log_prob_of_half_precision_logits_is_float32():
    logits = keras.ops.cast(random_logits(2, 5), "bfloat16")
    result = objective.categorical_log_prob(logits, [[0], [1]])
    assert keras.backend.standardize_dtype(result.dtype) == "float32"


def test_entropy_is_that_of_scipy():
    logits = random_logits(4, 6)
    expected = scipy.special.entr(scipy.special.softmax(logits, -1)).sum(-1)
    result = objective.categorical_entropy(logits)
    np.testing.assert_allclose(to_numpy(result), expected, rtol=1e-4)


def test_ground_truth_with_weight_one_is_maximum_likelihood():
    """The symmetry that the library rests on."""
    logits, labels = random_logits(8, 5), np.arange(8) % 5
    log_probs = objective.categorical_log_prob(logits, labels[:, None])
    loss = objective.weighted_likelihood_loss(log_probs, np.ones((8, 1)))
    crossentropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    expected = float(crossentropy(labels, logits))
    np.testing.assert_allclose(float(loss), expected, rtol=1e-5)


def test_loss_sums_tokens_and_averages_inputs_and_samples():
    log_probs = -np.arange(1, 13, dtype="float32").reshape(2, 2, 3)
    weights = np.array([[1.0, -1.0], [0.5, 2.0]], "float32")
    # Sums over tokens: -6, -15, -24, -33.
    expected = -(1.0 * -6 - 1.0 * -15 + 0.5 * -24 + 2.0 * -33) / 4
    loss = objective.weighted_likelihood_loss(log_probs, weights)
    np.testing.assert_allclose(float(loss), expected)


def test_masked_tokens_do_not_count_even_where_impossible():
    log_probs = np.array([[[-1.0, -2.0, -np.inf]]], "float32")
    mask = np.array([[[True, True, False]]])
    loss = objective.weighted_likelihood_loss(log_probs, [[2.0]], mask=mask)
    assert float(loss) == 6.0


def test_token_weights_that_are_equal_are_the_sequence_weight():
    log_probs = random_logits(2, 3, 4)
    weights = random_logits(2, 3, seed=1)
    mask = np.random.default_rng(2).random((2, 3, 4)) < 0.5
    per_token = np.repeat(weights[..., None], 4, -1)
    np.testing.assert_allclose(
        float(objective.weighted_likelihood_loss(log_probs, per_token, mask)),
        float(objective.weighted_likelihood_loss(log_probs, weights, mask)),
        rtol=1e-5,
    )


def test_a_weight_for_each_leaf_of_a_nest_is_their_mean():
    """As Keras makes it from one weight, if the targets are a nest."""
    weight, like = np.array([1.0, 3.0]), np.zeros((2, 4))
    same = objective.input_weights({"a": weight, "b": [weight, weight]}, like)
    np.testing.assert_allclose(to_numpy(same), weight)
    other = objective.input_weights((weight, 3 * weight[:, None]), like)
    np.testing.assert_allclose(to_numpy(other), [2.0, 6.0])


def test_sample_weight_weighs_inputs():
    log_probs = np.array([[-1.0], [-2.0]], "float32")
    loss = objective.weighted_likelihood_loss(
        log_probs, [[1.0], [1.0]], sample_weight=np.array([3.0, 0.5])
    )
    assert float(loss) == (3.0 * 1.0 + 0.5 * 2.0) / 2


def test_gains_are_over_what_was_drawn_and_0_where_that_is_unknown():
    nan = np.nan
    worth = np.array([[[0.5, 0.75, nan], [nan, nan, nan], [1.0, nan, 2.0]]])
    drawn = np.array([[[1, 0, 1]]])
    gained = objective.gains_over_drawn(worth[:, None].astype("float32"), drawn)
    expected = [[-0.25, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    np.testing.assert_allclose(to_numpy(gained)[0, 0], expected)
