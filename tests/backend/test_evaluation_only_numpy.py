"""A backend on which Keras does not train: greedy outputs and their rewards."""

import keras
import numpy as np
import pytest
from sequences import SequenceModel
from tiny import classifier, inputs, randomize, to_numpy, weights_of

from keras_reward import HostReward, RewardTuning
from keras_reward.models import VisionEncoderDecoder, VisionTransformer

TARGETS = np.arange(16) % 5


def matches(y_true, y_pred):
    return keras.ops.cast(keras.ops.equal(y_true, y_pred), "float32")


def tuner(reward=matches):
    tuned = RewardTuning(classifier(), reward=reward, seed=0)
    tuned.compile(keras.optimizers.SGD(0.5))
    return tuned


def likeliest():
    """The classifier's greedy classes, in NumPy."""
    kernel, bias = weights_of(classifier())
    return np.argmax(inputs() @ kernel + bias, axis=-1)


@pytest.mark.parametrize("method", ["fit", "train_on_batch"])
def test_training_says_which_backends_can(method):
    message = r"trains on the Keras backends jax.*Received: .* == 'numpy'"
    with pytest.raises(NotImplementedError, match=message):
        getattr(tuner(), method)(inputs(), TARGETS)
    with pytest.raises(NotImplementedError, match=message):
        getattr(RewardTuning(reward=matches)(classifier()), method)(inputs(), TARGETS)


def test_predictions_are_greedy():
    np.testing.assert_array_equal(tuner().predict(inputs(), verbose=0), likeliest())


@pytest.mark.parametrize(
    "wrap", [lambda function: function, HostReward], ids=["ops", "host"]
)
def test_evaluation_is_the_mean_reward(wrap):
    tuned = tuner(wrap(matches))
    expected = np.mean(likeliest() == TARGETS)
    for batch_size in (16, 8):
        logs = tuned.evaluate(
            inputs(), TARGETS, batch_size, verbose=0, return_dict=True
        )
        np.testing.assert_allclose(logs["reward"], expected)
    logs = tuned.test_on_batch(inputs(), TARGETS, return_dict=True)
    np.testing.assert_allclose(logs["reward"], expected)


def caption_model():
    encoder = VisionTransformer(
        (8, 8, 3), patch_size=4, width=8, num_layers=1, num_heads=2
    )
    model = VisionEncoderDecoder(encoder, 7, 5, num_layers=2, num_heads=2, mlp_dim=12)
    images = np.random.default_rng(0).normal(size=(3, 8, 8, 3)).astype("float32")
    return randomize(model), images


def additive_model():
    return SequenceModel(), inputs(4)


@pytest.mark.parametrize("make", [caption_model, additive_model])
def test_greedy_tokens_are_the_likeliest_of_a_pass_over_all(make):
    model, x = make()
    tuned = RewardTuning(model, reward=lambda y, tokens: tokens[:, 0] * 1.0)
    tuned.compile(keras.optimizers.SGD(0.5))
    tokens = tuned.predict(x, verbose=0)
    before = np.insert(tokens[:, :-1], 0, model.start_id, axis=1).astype("int32")
    context = model.encode(x)
    hidden = model.hidden_states(context, before[:, None])
    expected = np.argmax(to_numpy(model.logits(hidden))[:, 0], axis=-1)
    ended = np.cumsum(before[:, 1:] == model.end_id, axis=1) > 0
    expected[:, 1:][ended] = model.pad_id
    np.testing.assert_array_equal(tokens, expected)
    # Tokens may agree by chance; what they are chosen by does not.
    cache = model.start_cache(context, 1)
    for position, token in enumerate(before.T):
        step, cache = model.next_hidden(context, cache, token[:, None], position)
        np.testing.assert_allclose(step[:, 0], hidden[:, 0, position], atol=1e-5)
