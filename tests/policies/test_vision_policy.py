"""AutoregressivePolicy on the vision encoder-decoder, with its cache of attention.

What test_autoregressive.py shows of a model of a few lines, shown of the real one.
"""

import functools

import keras
import numpy as np
import pytest
from keras import ops
from tiny import compiled, randomize, to_numpy, weights_of

from keras_reward import Entropy, MaximumLikelihood, Reward, RewardTuning
from keras_reward.models import VisionEncoderDecoder, VisionTransformer
from keras_reward.policies.autoregressive import AutoregressivePolicy

pytestmark = pytest.mark.slow

BATCH, SAMPLES, LENGTH, WORDS, SIZE = 3, 4, 3, 5, 8
GENERATOR = np.random.default_rng(0)
IMAGES = GENERATOR.normal(size=(BATCH, SIZE, SIZE, 3)).astype("float32")
NOISE = GENERATOR.random((BATCH, SAMPLES, LENGTH)).astype("float32")
REFERENCES = np.array([[2, 1, 0], [3, 0, 4], [1, 0, 0]])
TEMPERATURE = 1.3


def vision_model():
    sizes = {"num_layers": 1, "num_heads": 2, "mlp_dim": 8}
    encoder = VisionTransformer((SIZE, SIZE, 3), patch_size=4, width=8, **sizes)
    return randomize(VisionEncoderDecoder(encoder, WORDS, LENGTH, **sizes))


@functools.cache
def setting():
    """A policy, and a compiled function of images and uniform numbers."""
    model = vision_model()
    policy = AutoregressivePolicy().bind(model, TEMPERATURE)

    def run(x, noise):
        context = policy.encode(x)
        samples = policy.sample(context, SAMPLES, noise=noise)
        cache = model.start_cache(context["model"], SAMPLES)
        token, cached = ops.full_like(samples[..., 0], model.start_id), []
        for t in range(LENGTH):
            position = ops.convert_to_tensor(t, "int32")
            hidden, cache = model.next_hidden(context["model"], cache, token, position)
            cached.append(policy.token_logits(hidden))
            token = samples[..., t]
        likelihood = policy.likelihood(context, samples)
        return {
            "samples": samples,
            "mask": policy.mask(context, samples),
            "cached": ops.stack(cached, axis=2),
            "position_log_probs": likelihood.position_log_probs,
            "log_prob": likelihood.log_prob,
            "entropy": likelihood.entropy,
            "mode": policy.mode(context),
        }

    call = compiled(run)
    return policy, lambda *args: keras.tree.map_structure(
        to_numpy, call(*map(ops.convert_to_tensor, args))
    )


def test_cached_sampling_and_the_likelihood_agree_token_by_token():
    """And each token is the one that its number selects among the probabilities."""
    _, run = setting()
    results = run(IMAGES, NOISE)
    samples, mask = results["samples"], results["mask"]
    logits = results["cached"].astype("float64")
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = np.take_along_axis(log_p, samples[..., None], -1)[..., 0]
    np.testing.assert_allclose(
        results["position_log_probs"], np.where(mask, expected, 0.0), atol=1e-5
    )
    total = (expected * mask).sum(-1)
    np.testing.assert_allclose(results["log_prob"], total, atol=1e-5)
    upper = np.exp(log_p).cumsum(-1)
    upper = np.take_along_axis(upper, samples[..., None], -1)[..., 0]
    inside = (upper - np.exp(expected) - 1e-5 <= NOISE) & (upper + 1e-5 >= NOISE)
    assert inside[mask].all()
    assert 5 < mask.sum() < mask.size  # some end before others


def test_rows_do_not_depend_on_their_batch_mates():
    _, run = setting()
    results = run(IMAGES, NOISE)
    images, noise = np.flip(IMAGES, 2).copy(), np.flip(NOISE, 2).copy()
    images[1], noise[1] = IMAGES[1], NOISE[1]
    others = run(images, noise)
    assert (others["samples"][0] != results["samples"][0]).any()
    for name in ("samples", "mode"):
        np.testing.assert_array_equal(others[name][1], results[name][1])
    for name in ("position_log_probs", "log_prob", "entropy"):
        np.testing.assert_allclose(others[name][1], results[name][1], atol=1e-5)


def test_context_is_held_once_per_image():
    policy, _ = setting()
    leaves = keras.tree.flatten(policy.encode(IMAGES))
    assert len(leaves) == 2  # keys and values of one decoder block
    assert {leaf.shape[0] for leaf in leaves} == {BATCH}


@keras.saving.register_keras_serializable(package="keras_reward_tests")
class ShareOfTwos(Reward):
    def call(self, y_true, y_pred):
        return ops.mean(ops.cast(y_pred == 2, "float32"), axis=-1)


class GivenNoise(AutoregressivePolicy):
    """Samples from the same numbers in every step."""

    def sample(self, context, num_samples, seed=None, noise=None):
        return super().sample(context, num_samples, noise=NOISE)


encoded = {}  # shapes of what the encoder was given in each step below


@functools.cache
def step(logits_chunk, eager=False):
    """How one step of SGD moves the weights, and what it logs."""
    model = vision_model()
    tuned = RewardTuning(
        model,
        ShareOfTwos(),
        GivenNoise(logits_chunk=logits_chunk),
        num_samples=SAMPLES,
        baseline="greedy",
        terms=[Entropy(0.1), MaximumLikelihood(0.1)],
    )
    tuned.compile(keras.optimizers.SGD(1.0), run_eagerly=eager)
    before = weights_of(model)
    shapes = encoded[logits_chunk, eager] = []
    call = model.encoder.call

    def counted(images, *args, **kwargs):
        shapes.append(tuple(images.shape))
        return call(images, *args, **kwargs)

    model.encoder.call = counted
    logs = tuned.train_on_batch(IMAGES, REFERENCES, return_dict=True)
    moved = [a - b for a, b in zip(weights_of(model), before, strict=True)]
    return moved, {name: float(value) for name, value in logs.items()}


def assert_equal_steps(first, second):
    for a, b in zip(first[0], second[0], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert first[1] == pytest.approx(second[1], abs=1e-5)


def test_scoring_in_chunks_has_the_same_values_and_gradient():
    moved, _ = whole = step(None)
    assert max(np.abs(m).max() for m in moved) > 0.01
    assert_equal_steps(step(2), whole)


def test_compiled_step_equals_the_eager_one():
    assert_equal_steps(step(2), step(2, eager=True))


def test_one_encoder_pass_a_step():
    """In an eager step, with a greedy baseline and the likelihood of references."""
    step(2, eager=True)
    assert encoded[2, True] == [(BATCH, SIZE, SIZE, 3)]


def test_a_continued_run_equals_the_uninterrupted_one(tmp_path):
    def fit(tuned):
        tuned.fit(IMAGES, REFERENCES, shuffle=False, verbose=0)

    tuned = RewardTuning(
        vision_model(),
        ShareOfTwos(),
        num_samples=SAMPLES,
        terms=[MaximumLikelihood(0.1)],
        seed=0,
    )
    tuned.compile(keras.optimizers.Adam(0.01))
    fit(tuned)
    tuned.save(tmp_path / "tuned.keras")
    fit(tuned)
    resumed = keras.models.load_model(tmp_path / "tuned.keras")
    fit(resumed)
    for a, b in zip(weights_of(resumed), weights_of(tuned), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    # What is tuned is the model itself.
    np.testing.assert_array_equal(
        resumed.predict(IMAGES, verbose=0),
        resumed.model.generate(IMAGES, temperature=0),
    )
