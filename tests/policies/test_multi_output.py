"""A policy for each of a model's outputs: samples, likelihoods, what is passed on."""

import keras
import numpy as np
import pytest
import scipy.special
import scipy.stats
from chance import counts_within_chance
from keras import ops
from tiny import inputs, randomize, to_numpy

from keras_reward import (
    AutoregressivePolicy,
    BernoulliPolicy,
    CategoricalPolicy,
    GaussianPolicy,
    MultiOutputPolicy,
    Policy,
    policies,
)
from keras_reward.nests import position_shape
from keras_reward.policies.likelihood import Likelihood, of_parts

STDDEV = 0.3


def heads():
    """Outputs by name: (2, 5) logits, one logit, two means, and the input itself."""
    x = keras.Input((3,))
    return x, {
        "colors": keras.layers.Reshape((2, 5))(keras.layers.Dense(10)(x)),
        "found": keras.layers.Dense(1)(x),
        "at": keras.layers.Dense(2)(x),
        "input": x,
    }


def dict_model():
    return randomize(keras.Model(*heads()))


def list_model():
    x, outputs = heads()
    return randomize(keras.Model(x, list(outputs.values())))


def some_policies(**more):
    return {
        "found": BernoulliPolicy(),
        "colors": CategoricalPolicy(),
        "at": GaussianPolicy(STDDEV),
        **more,
    }


def outputs_of(model, x):
    return {name: to_numpy(value) for name, value in model(x).items()}


def noises(batch, n, seed=0):
    generator = np.random.default_rng(seed)
    return {
        "colors": generator.random((batch, n, 2)).astype("float32"),
        "found": generator.random((batch, n, 1)).astype("float32"),
        "at": generator.normal(size=(batch, n, 2)).astype("float32"),
    }


def log_probs_in_numpy(model, x, samples, temperature=1.0):
    """Of each position: a dict of `(batch, n, positions)`."""
    outputs = outputs_of(model, x)
    colors = scipy.special.log_softmax(outputs["colors"] / temperature, -1)[:, None]
    colors = np.take_along_axis(colors, samples["colors"][..., None], -1)[..., 0]
    sign = 2 * samples["found"] - 1
    found = scipy.special.log_expit(sign * outputs["found"][:, None] / temperature)
    stddev = STDDEV * np.sqrt(temperature)
    at = scipy.stats.norm.logpdf(samples["at"], outputs["at"][:, None], stddev)
    return {"at": at, "colors": colors, "found": found}


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_samples_and_log_probabilities_are_those_of_each_output(temperature):
    model, x = dict_model(), inputs(4)
    policy = policies.get(some_policies(), model, temperature)
    assert isinstance(policy, MultiOutputPolicy)
    noise = noises(4, 3)
    context = policy.encode(x)
    samples = policy.sample(context, 3, noise=noise)
    assert set(samples) == set(noise)
    samples = {name: to_numpy(value) for name, value in samples.items()}
    for name, single in some_policies().items():
        single.bind(keras.Sequential([keras.layers.Identity()]), temperature)
        alone = single.read_output(ops.convert_to_tensor(outputs_of(model, x)[name]))
        alone = single.sample(alone, 3, noise=noise[name])
        np.testing.assert_array_equal(samples[name], to_numpy(alone))
    likelihood = policy.likelihood(context, samples)
    expected = log_probs_in_numpy(model, x, samples, temperature)
    total = sum(values.sum(-1) for values in expected.values())
    np.testing.assert_allclose(
        to_numpy(likelihood.log_prob), total, rtol=1e-5, atol=1e-6
    )
    # Positions are side by side in the order of `keras.tree.flatten`.
    side_by_side = np.concatenate([expected[name] for name in sorted(expected)], -1)
    assert position_shape(samples) == side_by_side.shape == (4, 3, 5)
    positions = to_numpy(likelihood.position_log_probs)
    np.testing.assert_allclose(positions, side_by_side, rtol=1e-5, atol=1e-6)
    assert to_numpy(likelihood.counted).all() and likelihood.counted.shape == (4, 3, 5)


def test_the_entropy_is_the_mean_over_all_positions():
    model, x = dict_model(), inputs(4)
    policy = MultiOutputPolicy(some_policies()).bind(model)
    context = policy.encode(x)
    samples = policy.sample(context, 2, seed=0)
    outputs = outputs_of(model, x)
    colors = scipy.stats.entropy(scipy.special.softmax(outputs["colors"], -1), axis=-1)
    found = scipy.stats.bernoulli(scipy.special.expit(outputs["found"])).entropy()
    at = np.full((4, 2), scipy.stats.norm(0, STDDEV).entropy())
    expected = np.concatenate([colors, found, at], -1).mean(-1)
    entropy = to_numpy(policy.likelihood(context, samples).entropy)
    np.testing.assert_allclose(entropy, expected, rtol=1e-5, atol=1e-6)


def test_other_choices_of_all_outputs_are_given_together():
    model, x = dict_model(), inputs(4)
    policy = MultiOutputPolicy(some_policies()).bind(model)
    context = policy.encode(x)
    samples = {k: to_numpy(v) for k, v in policy.sample(context, 3, seed=0).items()}
    other = {**samples, "found": 1 - samples["found"]}
    likelihood = policy.likelihood(context, samples, choices=[other, samples])
    given = to_numpy(likelihood.choice_log_probs)
    expected = log_probs_in_numpy(model, x, other)
    expected = np.concatenate([expected[name] for name in sorted(expected)], -1)
    np.testing.assert_allclose(given[0], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(given[1], to_numpy(likelihood.position_log_probs))
    assert policy.likelihood(context, samples).choice_log_probs.shape == (0, 4, 3, 5)


@pytest.mark.chance
@pytest.mark.parametrize("seed", [3, keras.random.SeedGenerator(3)], ids=["int", "own"])
def test_the_noise_of_outputs_is_independent(seed):
    """Two fair coins of the same model: all four outcomes are as likely."""
    x = keras.Input((1,))
    coin = keras.layers.Dense(1, kernel_initializer="zeros")(x)
    model = keras.Model(x, {"a": coin, "b": {"c": coin, "d": coin}})
    nested = {"a": "bernoulli", "b": {"c": "bernoulli", "d": "bernoulli"}}
    policy = MultiOutputPolicy(nested).bind(model)
    context = policy.encode(np.zeros((100, 1), "float32"))
    samples = policy.sample(context, 40, seed=seed)
    a, c, d = (to_numpy(s).ravel() for s in keras.tree.flatten(samples))
    counts = np.bincount(4 * a + 2 * c + d, minlength=8)
    assert counts_within_chance(counts, 4000, np.full(8, 1 / 8)), counts


def test_the_same_seed_draws_the_same_samples():
    policy = MultiOutputPolicy(some_policies()).bind(dict_model())
    context = policy.encode(inputs(4))
    first, second, other = (policy.sample(context, 3, seed=s) for s in (5, 5, 6))
    for name in first:
        np.testing.assert_array_equal(to_numpy(first[name]), to_numpy(second[name]))
        assert (to_numpy(first[name]) != to_numpy(other[name])).any()


def test_outputs_without_a_policy_are_passed_on_untouched():
    model, x = dict_model(), inputs(4)
    policy = MultiOutputPolicy({"found": "bernoulli"}).bind(model)
    context = policy.encode(x)
    samples = policy.sample(context, 3, seed=0)
    rows = policy.decode(x, samples, context)
    expected = outputs_of(model, x)
    assert set(rows) == set(expected)
    for name in ("colors", "at", "input"):
        repeated = np.repeat(expected[name], 3, 0)
        np.testing.assert_array_equal(to_numpy(rows[name]), repeated)
    np.testing.assert_array_equal(
        to_numpy(rows["found"]), to_numpy(samples["found"]).reshape(12, 1)
    )
    greedy = policy.greedy_outputs(x, context)
    np.testing.assert_array_equal(to_numpy(greedy["found"]), expected["found"] > 0)
    np.testing.assert_array_equal(to_numpy(greedy["at"]), expected["at"])


@pytest.mark.parametrize("kind", [list, tuple])
def test_lists_are_read_by_position(kind):
    model, x = list_model(), inputs(4)
    given = kind(["categorical", None, GaussianPolicy(STDDEV), None])
    policy = policies.get(given, model)
    context = policy.encode(x)
    samples = policy.sample(context, 3, seed=0)
    assert isinstance(samples, kind) and samples[1] is samples[3] is None
    assert position_shape(samples) == (4, 3, 4)
    assert policy.log_prob(context, samples).shape == (4, 3)
    rows = policy.decode(x, samples, context)
    assert isinstance(rows, list)  # as the model returns them
    assert [tuple(r.shape) for r in rows] == [(12, 2), (12, 1), (12, 2), (12, 3)]


def test_nests_are_read_at_any_depth():
    x, outputs = heads()
    nested = {"boxes": [outputs["at"], outputs["found"]], "colors": outputs["colors"]}
    model = randomize(keras.Model(x, nested))
    policy = policies.get({"boxes": ["gaussian", None], "colors": "categorical"}, model)
    assert policy.policies["boxes"].policies[0].output_path == ("boxes", 0)
    context = policy.encode(inputs(4))
    samples = policy.sample(context, 3, seed=0)
    assert tuple(samples["boxes"][0].shape) == (4, 3, 2)
    rows = policy.decode(inputs(4), samples, context)
    keras.tree.assert_same_structure(rows, nested)
    assert tuple(policy.log_prob(context, samples).shape) == (4, 3)


def test_each_output_has_its_codec():
    def double(inputs, samples):
        return 2 * samples

    codecs = {"at": GaussianPolicy(codec=double), "found": "bernoulli"}
    policy = MultiOutputPolicy(codecs).bind(dict_model())
    context = policy.encode(inputs(4))
    samples = policy.sample(context, 3, seed=0)
    rows = policy.decode(inputs(4), samples, context)
    doubled = 2 * to_numpy(samples["at"]).reshape(12, 2)
    np.testing.assert_array_equal(to_numpy(rows["at"]), doubled)


def test_likelihood_of_targets_by_name_ignores_others():
    model, x = dict_model(), inputs(4)
    policy = MultiOutputPolicy(some_policies(at=None)).bind(model)
    targets = {
        "colors": np.array([[0, 1], [2, 3], [4, 0], [-1, 1]]),  # one without a label
        "found": np.array([[0], [1], [1], [0]]),
        "input": "ignored",
    }
    samples = {"colors": targets["colors"][:, None], "found": targets["found"][:, None]}
    expected = log_probs_in_numpy(model, x, {**samples, "at": 0.0})
    labelled = np.where(samples["colors"] >= 0, expected["colors"], 0.0)
    expected = (labelled.sum(-1) + expected["found"].sum(-1))[:, 0]
    policy.check_targets(targets)
    log_prob = policy.target_log_prob(policy.encode(x), targets)
    np.testing.assert_allclose(to_numpy(log_prob), expected, rtol=1e-5, atol=1e-6)


def test_a_twin_has_the_same_settings_and_weights():
    learned = GaussianPolicy(STDDEV, learn_stddev=True)
    policy = MultiOutputPolicy(some_policies(at=learned)).bind(dict_model(), 0.5)
    learned.log_stddev.assign(-0.5)
    other = dict_model()
    twin = policy.twin(other)
    at = twin.policies["at"]
    assert at is not learned and at.output_path == ("at",)
    assert twin.model is at.model is other and at.temperature == 0.5
    assert float(to_numpy(at.log_stddev)) == -0.5
    assert policy.model is not other


def test_configs_keep_the_structure():
    for given in (
        {"b": [BernoulliPolicy(), None], "a": (GaussianPolicy(0.7), "gaussian")},
        ["categorical", None],
        (None, {"x": CategoricalPolicy(from_logits=False)}),
    ):
        policy = MultiOutputPolicy(given)
        config = keras.saving.serialize_keras_object(policy)
        again = keras.saving.deserialize_keras_object(config)
        assert keras.saving.serialize_keras_object(again) == config
        assert isinstance(again.policies, (dict, tuple, list))
    assert again.policies[1].policies["x"].from_logits is False


def test_parts_of_a_likelihood_may_lack_positions():
    whole = ops.array([[-1.0, -2.0]])
    positions = ops.array([[[-0.5, -1.0], [-0.25, 0.0]]])
    counted = ops.array([[[True, True], [True, False]]])
    total = ops.sum(positions, axis=-1)
    joint = of_parts(
        [
            Likelihood(whole, ops.array([0.3]), whole, whole < 0.0, whole[None]),
            Likelihood(total, ops.array([0.6]), positions, counted, positions[None]),
        ]
    )
    np.testing.assert_allclose(to_numpy(joint.log_prob), [[-2.5, -2.25]])
    np.testing.assert_allclose(to_numpy(joint.entropy), [(0.3 + 2 * 0.6) / 3], 1e-6)
    np.testing.assert_array_equal(
        to_numpy(joint.position_log_probs), [[[-1.0, -0.5, -1.0], [-2.0, -0.25, 0.0]]]
    )
    expected = [[[True, True, True], [True, True, False]]]
    np.testing.assert_array_equal(to_numpy(joint.counted), expected)
    assert tuple(joint.choice_log_probs.shape) == (1, 1, 2, 3)


# The context for what decodes samples.


def margin(inputs, samples, context):
    """The logit of each drawn class."""
    return ops.take_along_axis(context[:, None], samples[..., None], axis=-1)[..., 0]


class MarginCodec:
    def decode(self, inputs, samples, context):
        return margin(inputs, samples, context)


@pytest.mark.parametrize("codec", [margin, MarginCodec()], ids=["function", "object"])
def test_a_codec_may_take_the_context(codec):
    x, outputs = heads()
    policy = CategoricalPolicy(codec=codec)
    policy.bind(randomize(keras.Model(x, outputs["colors"])))
    context = policy.encode(inputs(4))
    samples = policy.sample(context, 3, seed=0)
    rows = to_numpy(policy.sampled_outputs(inputs(4), context, samples))
    logits = to_numpy(context)[:, None]
    picked = np.take_along_axis(logits, to_numpy(samples)[..., None], -1)[..., 0]
    np.testing.assert_array_equal(rows, picked.reshape(12, 2))
    greedy = to_numpy(policy.greedy_outputs(inputs(4), context))
    np.testing.assert_array_equal(greedy, to_numpy(context).max(-1))
    with pytest.raises(ValueError, match=r"takes the\s+context. Pass `decode\(x, s"):
        policy.decode(inputs(4), samples)


def test_the_codec_of_an_output_gets_the_context_of_that_output():
    policy = MultiOutputPolicy({"colors": CategoricalPolicy(codec=margin)})
    policy.bind(dict_model())
    context = policy.encode(inputs(4))
    greedy = policy.greedy_outputs(inputs(4), context)
    best = outputs_of(policy.model, inputs(4))["colors"].max(-1)
    np.testing.assert_array_equal(to_numpy(greedy["colors"]), best)


def test_a_decode_of_a_policy_without_context_is_called_as_before():
    class Plain(CategoricalPolicy):
        def decode(self, x, samples):
            return super().decode(x, samples)

    x, outputs = heads()
    policy = Plain().bind(randomize(keras.Model(x, outputs["colors"])))
    context = policy.encode(inputs(4))
    greedy = to_numpy(policy.greedy_outputs(inputs(4), context))
    np.testing.assert_array_equal(greedy, to_numpy(context).argmax(-1))


# What is refused.


def read(given, model=None):
    policies.get(given, model or dict_model()).encode(inputs(4))


def compare(targets, given=None):
    policy = MultiOutputPolicy(given or {"found": "bernoulli"}).bind(dict_model())
    policy.target_log_prob(policy.encode(inputs(4)), targets)


def one_tensor():
    x, outputs = heads()
    return keras.Model(x, outputs["colors"])


REFUSED = {
    "none at all": (lambda: MultiOutputPolicy({}), "At least one output must have"),
    "only None": (lambda: read([None, None]), "At least one.*Received: no policy"),
    "neither": (lambda: MultiOutputPolicy("gaussian"), "must be a dict, list or tuple"),
    "unknown name": (
        lambda: read({"found": "gausian"}),
        r"Pass one of 'categorical'.*Received: 'gausian' for output 'found'",
    ),
    "sequences": (
        lambda: read({"found": AutoregressivePolicy()}),
        "which policies of sequences do not.*Autoregressive.* for output 'found'",
    ),
    "sequences by name": (
        lambda: read({"found": "autoregressive"}),
        "must read that output alone",
    ),
    "one for two": (
        lambda: MultiOutputPolicy([p := GaussianPolicy(), {"a": p}]),
        "Make a new one for each. Received: the same policy for two outputs",
    ),
    "unknown output": (
        lambda: read({"fond": "bernoulli"}),
        r"Use the names of its outputs.*policies for \['fond'\], and outputs "
        r"\['at', 'colors', 'found', 'input'\] from model",
    ),
    "unknown output without policy": (
        lambda: read({"fond": None, "found": "bernoulli"}),
        r"policies for \['fond'\]",
    ),
    "too few": (
        lambda: read(["categorical"], list_model()),
        "Write None for an output without.*Received: 1 policies, and 4 outputs",
    ),
    "dict for a list": (
        lambda: read({"found": "bernoulli"}, list_model()),
        "A dict of policies reads a dict of outputs.*Received: a list of 4 from model",
    ),
    "list for a dict": (
        lambda: read(["bernoulli"]),
        r"A list of policies reads.*Received: a dict of \['at', 'colors'",
    ),
    "dict for one tensor": (
        lambda: read({"found": "bernoulli"}, one_tensor()),
        r"for one tensor one policy. Received: one \w+ of shape .*4, 2, 5.* from",
    ),
    "one for several": (
        lambda: read("categorical"),
        "CategoricalPolicy expects the model to return one tensor of floats",
    ),
    "wrong rank": (
        lambda: read({"flat": "categorical"}, flat_model()),
        r"Output 'flat': CategoricalPolicy expects .*Received: shape \(4,\)",
    ),
    "one class": (
        lambda: read({"found": "categorical"}),
        "Output 'found': CategoricalPolicy needs at least two classes",
    ),
    "no target": (
        lambda: compare({"at": np.zeros((4, 2))}),
        r"Missing: \['found'\]. Received: y is a dict of \['at'\]",
    ),
    "no targets": (lambda: compare(None), r"Missing: \['found'\]. .*y is None"),
    "targets of a list": (
        lambda: compare([np.zeros((4, 1))]),
        "Add what is missing.*y is a list of 1",
    ),
    "target of another shape": (
        lambda: compare({"found": np.zeros((4, 3))}),
        r"Output 'found': For its likelihood, BernoulliPolicy needs.*\(4, 3\)",
    ),
}


def flat_model():
    x, outputs = heads()
    return keras.Model(x, {"flat": ops.squeeze(outputs["found"], -1)})


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_right_is_refused(name):
    call, message = REFUSED[name]
    with pytest.raises(ValueError, match="(?s)" + message.replace(" ", r"\s+")):
        call()


def test_inputs_are_checked_by_each_policy():
    class Picky(BernoulliPolicy):
        def check_inputs(self, x):
            raise ValueError(f"of {len(x)} inputs")

    policy = policies.get({"at": "gaussian", "found": Picky()}, dict_model())
    with pytest.raises(ValueError, match="Output 'found': of 4 inputs"):
        policy.check_inputs(inputs(4))


def test_a_policy_is_of_one_model():
    given = {"found": BernoulliPolicy()}
    policies.get(given, dict_model())
    with pytest.raises(ValueError, match="belongs to another model already"):
        policies.get(given, dict_model())


def test_a_policy_of_ones_own_reads_an_output():
    class Halved(BernoulliPolicy):
        def parameters(self, output):
            return output / 2.0

    policy = policies.get({"found": Halved()}, dict_model())
    assert isinstance(policy.policies["found"], Policy)
    context = policy.encode(inputs(4))
    expected = outputs_of(policy.model, inputs(4))["found"] / 2
    np.testing.assert_allclose(to_numpy(context["found"]), expected, rtol=1e-6)
