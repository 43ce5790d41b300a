"""The training step: equal on every backend, compiled or not, resumed or not."""

import keras
import numpy as np
import pytest
from chance import counts_within_chance
from keras import ops
from tiny import classifier, inputs, to_numpy, two_layers, weights_of

from keras_reward import (
    CategoricalPolicy,
    Entropy,
    GaussianPolicy,
    Reward,
    RewardTuning,
)

BACKEND = keras.config.backend()
# How `fit` may run a step. XLA is what Keras chooses for TensorFlow on a GPU.
MODES = [{"run_eagerly": True}, {"run_eagerly": False}]
if BACKEND == "tensorflow":
    MODES.append({"jit_compile": True})


def match(y_true, y_pred):
    """Share of positions that agree with the target."""
    return ops.mean(ops.cast(y_pred == y_true, "float32"), axis=-1)


def data(batch=16, positions=4, classes=5):
    targets = np.random.default_rng(1).integers(0, classes, (batch, positions))
    return inputs(batch), targets.astype("int32")


class GivenNoise(CategoricalPolicy):
    """Takes its random numbers from the data: `x = {"features", "noise"}`."""

    def encode(self, x, training=False):
        self.given = x["noise"]
        return super().encode(x["features"], training=training)

    def noise(self, context, num_samples, seed):
        return self.given


def noise(batch, samples, positions, seed=2):
    shape = (batch, samples, positions)
    return np.random.default_rng(seed).random(shape).astype("float32")


def numpy_training(kernel, bias, x, y, uniform, learning_rate, steps):
    """The same training in float64 NumPy: SGD, leave-one-out, all samples."""
    kernel, bias = kernel.astype("float64"), bias.astype("float64")
    batch, samples, positions = uniform.shape
    losses = []
    for _ in range(steps):
        logits = (x @ kernel + bias).reshape(batch, positions, -1)
        p = np.exp(logits - logits.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        cumulative = np.cumsum(p, -1)[:, None]
        drawn = (cumulative <= uniform[..., None]).sum(-1)
        rewards = (drawn == y[:, None]).mean(-1)
        others = (rewards.sum(1, keepdims=True) - rewards) / (samples - 1)
        advantage = rewards - others
        one_hot = np.eye(p.shape[-1])[drawn]
        log_prob = (one_hot * np.log(p[:, None])).sum((-1, -2))
        losses.append(-(advantage * log_prob).mean())
        by_logit = -(advantage[..., None, None] * (one_hot - p[:, None])).sum(1)
        by_logit = by_logit.reshape(batch, -1) / (batch * samples)
        kernel -= learning_rate * x.T @ by_logit
        bias -= learning_rate * by_logit.sum(0)
    return losses, drawn, kernel, bias


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_three_steps_equal_numpy_given_the_same_noise(mode):
    """One reference for every backend, so all of them agree."""
    x, y = data()
    uniform = noise(16, 3, 4)
    model = classifier(positions=4)
    kernel, bias = weights_of(model)
    tuned = RewardTuning(model, reward=match, policy=GivenNoise(), num_samples=3)
    tuned.compile(keras.optimizers.SGD(0.5), **mode)
    losses = []
    for _ in range(3):
        tuned.reset_metrics()
        logs = tuned.train_on_batch(
            {"features": x, "noise": uniform}, y, return_dict=True
        )
        losses.append(float(logs["loss"]))
    expected, drawn, kernel, bias = numpy_training(kernel, bias, x, y, uniform, 0.5, 3)
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    np.testing.assert_allclose(weights_of(model)[0], kernel, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(weights_of(model)[1], bias, rtol=1e-4, atol=1e-5)
    assert 0.05 < (drawn == y[:, None]).mean() < 0.95  # not a degenerate case


@pytest.mark.slow
@pytest.mark.parametrize("baseline", ["leave_one_out", "greedy", "moving_average"])
def test_compiled_equals_eager(baseline):
    # With the same numbers: under XLA, TensorFlow's generator draws others.
    features, y = data()
    x = {"features": features, "noise": noise(16, 3, 4)}
    results = []
    for mode in MODES:
        tuned = RewardTuning(
            classifier(positions=4),
            reward=match,
            policy=GivenNoise(),
            baseline=baseline,
            num_samples=3,
            terms=[Entropy(0.01)],
        )
        tuned.compile(keras.optimizers.Adam(0.05), **mode)
        history = tuned.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
        results.append((history.history, weights_of(tuned)))
    reference, reference_weights = results[0]
    for history, weights in results[1:]:
        for name, values in reference.items():
            np.testing.assert_allclose(
                history[name], values, rtol=1e-4, atol=1e-5, err_msg=name
            )
        for a, b in zip(weights, reference_weights, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_run():
    runs = []
    for mode in ({"run_eagerly": True}, {"run_eagerly": False}, {}):
        tuned = RewardTuning(classifier(positions=4), reward=match, seed=3)
        tuned.compile(keras.optimizers.Adam(0.05), **mode)
        tuned.fit(*data(), batch_size=8, epochs=2, shuffle=False, verbose=0)
        runs.append(weights_of(tuned.model))
    for run in runs[1:]:
        for a, b in zip(run, runs[0], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_a_run_that_is_saved_and_continued_equals_the_uninterrupted_one(tmp_path):
    x, y = data()

    def fit(tuned, epochs):
        tuned.fit(x, y, batch_size=4, epochs=epochs, shuffle=False, verbose=0)

    def start():
        tuned = RewardTuning(
            classifier(positions=4), reward=Match(), baseline="moving_average", seed=3
        )
        tuned.compile(keras.optimizers.Adam(0.05))
        return tuned

    whole = start()
    fit(whole, 3)
    first = start()
    fit(first, 1)
    first.save(tmp_path / "tuned.keras")
    resumed = keras.models.load_model(tmp_path / "tuned.keras")
    assert isinstance(resumed, RewardTuning)
    assert int(resumed.optimizer.iterations) == 4
    fit(resumed, 2)
    for a, b in zip(weights_of(resumed), weights_of(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    np.testing.assert_array_equal(
        to_numpy(resumed.seed_generator.state), to_numpy(whole.seed_generator.state)
    )


@keras.saving.register_keras_serializable(package="keras_reward_tests")
class Match(Reward):
    """`match`, registered."""

    def call(self, y_true, y_pred):
        return match(y_true, y_pred)


def test_accumulation_over_two_batches_equals_one_batch_of_both():
    x, y = data(batch=8)
    batch = {"features": x, "noise": noise(8, 3, 4)}
    weights = []
    for size, accumulate in ((8, None), (4, 2)):
        model = classifier(positions=4)
        tuned = RewardTuning(model, reward=match, policy=GivenNoise(), num_samples=3)
        tuned.compile(
            keras.optimizers.Adam(0.05, gradient_accumulation_steps=accumulate)
        )
        tuned.fit(batch, y, batch_size=size, epochs=3, shuffle=False, verbose=0)
        weights.append(weights_of(model))
    for a, b in zip(*weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


class Recorded(CategoricalPolicy):
    """Keeps the probability of samples as drawn and as in the loss, in eager steps."""

    def sample(self, context, num_samples, seed=None, noise=None):
        samples = super().sample(context, num_samples, seed=seed, noise=noise)
        self.sampled_from = self.probabilities(context, samples)
        return samples

    def likelihood(self, context, samples, **arguments):
        result = super().likelihood(context, samples, **arguments)
        self.probability = ops.exp(result.log_prob)
        return result

    def probabilities(self, context, samples):
        """From the full softmax, in float64: another way than `likelihood` takes."""
        logits = to_numpy(context).astype("float64")
        p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        index = np.moveaxis(to_numpy(samples), 1, -1)
        return np.take_along_axis(p, index, -1).prod(1)


@pytest.mark.slow
@pytest.mark.parametrize("model_training", [False, True])
def test_probabilities_of_samples_and_loss_agree(model_training):
    """Ratio 1 with dropout in the model and a temperature."""
    model = two_layers(dropout=0.5)
    policy = Recorded()
    tuned = RewardTuning(
        model,
        reward=match,
        policy=policy,
        num_samples=4,
        temperature=0.7,
        model_training=model_training,
        seed=0,
    )
    x, y = data()
    tuned.compile("sgd")
    tuned.rollout_and_loss((x, y), lambda f, *args: f(*args))
    ratio = to_numpy(policy.probability) / policy.sampled_from
    np.testing.assert_allclose(ratio, 1.0, rtol=1e-5)


@pytest.mark.chance
def test_samples_follow_the_likelihood():
    """The sampler against the likelihood, by counting."""
    model = classifier(classes=4)
    policy = CategoricalPolicy().bind(model, temperature=0.7)
    context = policy.encode(inputs(2))
    draws = 40_000
    samples = to_numpy(policy.sample(context, draws, seed=5))
    for row in range(2):
        every = np.tile(np.arange(4), (2, 1))
        likelihood = policy.likelihood(context, every)
        p = np.exp(to_numpy(likelihood.position_log_probs))
        counts = np.bincount(samples[row], minlength=4)
        assert counts_within_chance(counts, draws, p[row])


@pytest.mark.chance
@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("policy", ["categorical", "gaussian"])
def test_mixed_precision_trains_without_nan(dtype, policy):
    keras.config.set_dtype_policy(dtype)
    try:
        model = two_layers()
    finally:
        keras.config.set_dtype_policy("float32")
    if policy == "gaussian":
        policy = GaussianPolicy(stddev=0.3)

        def reward(y_true, y_pred):
            return -ops.mean(ops.square(y_pred - 1.0), axis=(1, 2))
    else:
        reward = match
    tuned = RewardTuning(model, reward=reward, policy=policy, num_samples=4, seed=0)
    tuned.compile(keras.optimizers.Adam(0.02))
    if dtype == "mixed_float16":
        assert isinstance(tuned.optimizer, keras.optimizers.LossScaleOptimizer)
    x, y = data(batch=64)
    before = tuned.evaluate(x, y, verbose=0, return_dict=True)["reward"]
    history = tuned.fit(x, y, epochs=40, verbose=0).history
    for name, values in history.items():
        assert np.isfinite(values).all(), name
    assert tuned.evaluate(x, y, verbose=0, return_dict=True)["reward"] > before


def first_feature(y_true, y_pred, inputs):
    return ops.cast(inputs[:, 0], "float32")


def test_the_average_of_a_model_in_half_precision_follows_the_rewards():
    """In steps of 0.1 of what is left, less than bfloat16 knows at 100: 0.5."""
    model = classifier(dtype="bfloat16")
    tuned = RewardTuning(model, first_feature, baseline="moving_average", seed=0)
    tuned.compile(keras.optimizers.SGD(0.0))
    x = np.full((21, 3), 101.0, "float32")
    x[0] = 100.0
    tuned.fit(x, batch_size=1, shuffle=False, verbose=0)
    average = float(to_numpy(tuned.baseline.average))
    assert average == pytest.approx(101.0 - 0.9**20, abs=1e-4)


def test_frozen_layers_stay_as_they_are():
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(8, trainable=False),
            keras.layers.Dense(20),
            keras.layers.Reshape((4, 5)),
        ]
    )
    before = weights_of(model)
    tuned = RewardTuning(model, reward=match, num_samples=4, seed=0)
    tuned.compile(keras.optimizers.SGD(1.0))
    tuned.fit(*data(), epochs=1, verbose=0)
    after = weights_of(model)
    np.testing.assert_array_equal(before[0], after[0])
    assert np.abs(before[2] - after[2]).max() > 0


@pytest.mark.slow
def test_one_forward_pass_a_step():
    class Counting(keras.layers.Layer):
        calls = 0

        def call(self, x):
            Counting.calls += 1
            return x

    model = keras.Sequential(
        [
            keras.Input((3,)),
            Counting(),
            keras.layers.Dense(20),
            keras.layers.Reshape((4, 5)),
        ]
    )
    tuned = RewardTuning(model, reward=match, baseline="greedy", num_samples=4)
    tuned.compile("sgd", run_eagerly=True)
    x, y = data()
    tuned.train_on_batch(x, y)
    before = Counting.calls
    tuned.train_on_batch(x, y)
    assert Counting.calls == before + 1


def test_metrics_within_the_model_are_updated():
    class Meter(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.seen = keras.metrics.Mean(name="seen")

        def call(self, x):
            self.seen.update_state(x)
            return x

    meter = Meter()
    model = keras.Sequential([keras.Input((3,)), meter, keras.layers.Dense(5)])
    reward = lambda y_true, y_pred: ops.cast(y_pred, "float32")  # noqa: E731
    tuned = RewardTuning(model, reward=reward)
    tuned.compile("sgd")
    x = np.repeat([[2.0], [4.0]], 3, axis=1).astype("float32")
    tuned.fit(x, batch_size=1, shuffle=False, verbose=0)
    assert float(to_numpy(meter.seen.result())) == 3.0


def test_a_step_is_traced_once():
    """Tracing takes most of the first step. What runs eagerly runs once a step."""
    calls = []

    def reward(y_true, y_pred):
        calls.append(y_pred)
        return ops.cast(y_pred, "float32")

    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(5)])
    tuned = RewardTuning(model, reward=reward)
    tuned.compile("adam")  # with variables that a step would create
    tuned.train_on_batch(np.ones((2, 3), "float32"))
    assert len(calls) == 1


@pytest.mark.slow
def test_sampling_draws_one_number_per_position():
    """One random number for each draw, none for each class."""
    shapes = []
    policy = CategoricalPolicy()
    original = policy.noise

    def spy(context, num_samples, seed):
        result = original(context, num_samples, seed)
        shapes.append(tuple(result.shape))
        return result

    policy.noise = spy
    tuned = RewardTuning(
        classifier(positions=4), reward=match, policy=policy, num_samples=3
    )
    tuned.compile("sgd", run_eagerly=True)
    tuned.train_on_batch(*data())
    assert shapes == [(16, 3, 4)]
