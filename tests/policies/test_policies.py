"""Policies: shapes, distributions, samples from given numbers."""

import keras
import numpy as np
import pytest
import scipy.special
import scipy.stats
from chance import counts_within_chance, largest_deviation
from keras import ops
from tiny import classifier, inputs, randomize, to_numpy

from keras_reward import BernoulliPolicy, CategoricalPolicy, GaussianPolicy, policies
from keras_reward.categorical import draw_categorical, draw_tokens
from keras_reward.nests import repeat_rows


def image_model(channels):
    """`(batch, 4, 6, 3)` to `(batch, 2, 3, channels)`."""
    model = keras.Sequential(
        [keras.Input((4, 6, 3)), keras.layers.Conv2D(channels, 2, strides=2)]
    )
    return randomize(model)


def images(batch=2):
    return np.random.default_rng(0).random((batch, 4, 6, 3)).astype("float32")


DRAWS = pytest.mark.parametrize("draw", [draw_categorical, draw_tokens])


@DRAWS
@pytest.mark.parametrize("classes", [2, 3, 7, 64, 100])
def test_sampling_inverts_the_cumulative_distribution(classes, draw):
    generator = np.random.default_rng(classes)
    logits = generator.normal(0, 2, (5, classes)).astype("float32")
    uniform = generator.random((5, 1000)).astype("float32")
    cumulative = scipy.special.softmax(logits.astype("float64"), -1).cumsum(-1)
    expected = np.stack(
        [
            np.searchsorted(c, u, "right")
            for c, u in zip(cumulative, uniform, strict=True)
        ]
    )
    # A number within rounding of a boundary may fall on either side of it.
    gap = np.abs(cumulative[:, None, :-1] - uniform[..., None]).min(-1)
    clear = gap > 1e-5
    samples = to_numpy(draw(logits, uniform))
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(samples[clear], expected[clear])


@DRAWS
@pytest.mark.parametrize("others", [1, 40])
def test_impossible_classes_are_never_drawn(draw, others):
    logits = np.array([[-1e9, 0.0, -1e9, 1.0, *[-1e9] * others]], "float32")
    uniform = np.array([[0.0, 0.2, 0.9, 1.0 - 2.0**-24]], "float32")
    samples = to_numpy(draw(logits, uniform))
    assert set(samples.ravel()) <= {1, 3}
    assert samples[0, 0] == 1
    assert samples[0, -1] == 3


def test_no_number_draws_a_forbidden_token():
    """Half of 300 classes forbidden; numbers on and beside all boundaries."""
    generator = np.random.default_rng(0)
    logits = generator.normal(0, 2, (20, 300)).astype("float32")
    forbidden = generator.random(logits.shape) < 0.5
    logits[forbidden] = -1e30
    boundaries = scipy.special.softmax(logits, -1).cumsum(-1)
    near = [np.nextafter(boundaries, side, dtype="float32") for side in (0, 1)]
    uniform = np.concatenate([boundaries, *near], -1).clip(0, 1 - 2**-24)
    samples = to_numpy(draw_tokens(logits, uniform.astype("float32")))
    assert not np.take_along_axis(forbidden, samples, -1).any()


@DRAWS
def test_the_last_class_is_drawn(draw):
    samples = to_numpy(draw(np.zeros((1, 3), "float32"), [[0.99]]))
    assert samples[0, 0] == 2


SHAPES = {
    "categorical": (lambda: CategoricalPolicy(), 5, (2, 3)),
    "bernoulli": (lambda: BernoulliPolicy(), 5, (2, 3, 5)),
    "gaussian": (lambda: GaussianPolicy(), 5, (2, 3, 5)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_shapes_of_the_protocol(name):
    make, channels, sample_shape = SHAPES[name]
    policy = make().bind(image_model(channels))
    context = policy.encode(images(4))
    samples = policy.sample(context, 6, seed=0)
    assert tuple(samples.shape) == (4, 6, *sample_shape)
    result = policy.likelihood(context, samples, choices=[samples, samples])
    shape = (4, 6, *sample_shape)
    assert [tuple(values.shape) for values in result] == [
        (4, 6), (4,), shape, shape, (2, *shape)
    ]  # fmt: skip
    assert tuple(policy.log_prob(context, samples).shape) == (4, 6)
    assert tuple(policy.mode(context).shape) == (4, *sample_shape)
    assert tuple(policy.decode(images(4), samples).shape) == (24, *sample_shape)
    assert policies.get(name, image_model(channels)).__class__ is type(policy)


def test_samples_of_an_input_are_adjacent_rows():
    policy = CategoricalPolicy().bind(classifier())
    samples = np.arange(6).reshape(2, 3)
    np.testing.assert_array_equal(to_numpy(policy.decode(None, samples)), np.arange(6))
    rows = to_numpy(repeat_rows(np.array([[1, 2], [3, 4]]), 2))
    np.testing.assert_array_equal(rows, [[1, 2], [1, 2], [3, 4], [3, 4]])


@pytest.mark.chance
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_bernoulli_is_that_of_scipy(temperature):
    policy = BernoulliPolicy().bind(classifier(), temperature)
    x = inputs(4)
    context = policy.encode(x)
    logits = to_numpy(policy.model(x)).astype("float64") / temperature
    p = scipy.special.expit(logits)
    samples = np.random.default_rng(0).integers(0, 2, (4, 3, 5))
    expected = scipy.stats.bernoulli.logpmf(samples, p[:, None]).sum(-1)
    result = to_numpy(policy.log_prob(context, samples))
    np.testing.assert_allclose(result, expected, rtol=1e-4)
    entropy = scipy.stats.bernoulli.entropy(p).mean(-1)
    result = to_numpy(policy.likelihood(context, samples).entropy)
    np.testing.assert_allclose(result, entropy, rtol=1e-4)
    counts = to_numpy(policy.sample(context, 20_000, seed=1)).sum(1)
    assert counts_within_chance(counts, 20_000, p)


@pytest.mark.chance
@pytest.mark.parametrize("temperature", [1.0, 0.25])
def test_gaussian_is_that_of_scipy(temperature):
    policy = GaussianPolicy(stddev=0.5).bind(classifier(), temperature)
    x = inputs(4)
    context = policy.encode(x)
    mean = to_numpy(policy.model(x)).astype("float64")
    normal = scipy.stats.norm(mean[:, None], 0.5 * np.sqrt(temperature))
    samples = np.random.default_rng(0).normal(size=(4, 3, 5)).astype("float32")
    expected = normal.logpdf(samples).sum(-1)
    np.testing.assert_allclose(
        to_numpy(policy.log_prob(context, samples)), expected, rtol=1e-4
    )
    np.testing.assert_allclose(
        to_numpy(policy.likelihood(context, samples).entropy),
        normal.entropy().mean((1, 2)),
        rtol=1e-4,
    )
    drawn = to_numpy(policy.sample(context, 20_000, seed=1))
    stddev = normal.std()[:, 0]
    bound = largest_deviation(2 * mean.size) * stddev / np.sqrt(20_000)
    assert (np.abs(drawn.mean(1) - mean) < bound).all()
    assert (np.abs(drawn.std(1) - stddev) < bound / np.sqrt(2)).all()
    np.testing.assert_allclose(to_numpy(policy.mode(context)), mean, rtol=1e-5)


def test_mode_is_the_most_likely_sample():
    policy = CategoricalPolicy().bind(classifier(classes=4, positions=2))
    context = policy.encode(inputs(3))
    every = np.stack(np.meshgrid(range(4), range(4), indexing="ij"), -1).reshape(-1, 2)
    log_prob = to_numpy(policy.log_prob(context, np.tile(every, (3, 1, 1))))
    np.testing.assert_allclose(np.exp(log_prob).sum(1), 1.0, rtol=1e-5)
    best = every[log_prob.argmax(1)]
    np.testing.assert_array_equal(to_numpy(policy.mode(context)), best)


class Offset:
    """A codec: adds the input's first feature."""

    def decode(self, inputs, samples):
        return ops.cast(samples, "float32") + inputs[:, None, 0]


def test_codec_may_be_an_object_or_a_function():
    x = inputs(2)
    samples = np.array([[0, 1, 2], [3, 4, 0]])
    expected = (samples + x[:, :1]).ravel()
    for codec in (Offset(), Offset().decode):
        policy = CategoricalPolicy(codec=codec).bind(classifier())
        np.testing.assert_allclose(to_numpy(policy.decode(x, samples)), expected)


def test_codec_may_return_a_nest():
    def boxes(inputs, samples):
        return {"labels": samples, "boxes": ops.stack([samples] * 4, -1)}

    policy = CategoricalPolicy(codec=boxes).bind(classifier())
    outputs = policy.decode(inputs(2), np.zeros((2, 3, 7), "int32"))
    assert tuple(outputs["boxes"].shape) == (6, 7, 4)
    assert tuple(outputs["labels"].shape) == (6, 7)


@pytest.mark.parametrize("name", SHAPES)
def test_policies_survive_serialisation(name):
    make, _, _ = SHAPES[name]
    config = keras.saving.serialize_keras_object(make())
    copy = keras.saving.deserialize_keras_object(config)
    assert type(copy) is type(make())
    assert keras.saving.serialize_keras_object(copy) == config
