"""Tuning models with several outputs, and policies whose samples are nests."""

import itertools
import json

import keras
import numpy as np
import pytest
from chance import largest_deviation
from keras import ops
from test_gradient import INPUTS, SEED, assert_mean_is, estimates, softmax
from tiny import inputs, randomize, to_numpy, weights_of

from keras_reward import (
    KL,
    BernoulliPolicy,
    CategoricalPolicy,
    ConfidenceLoss,
    Entropy,
    GaussianPolicy,
    Likelihood,
    MaximumLikelihood,
    ModelPolicy,
    MultiOutputPolicy,
    Policy,
    RewardTuning,
    Term,
)
from keras_reward.callbacks import RewardGuard, SampleLogger
from keras_reward.evaluation import reward_distribution
from keras_reward.policies.likelihood import of_parts

KERNEL = np.random.default_rng(0).normal(0, 0.7, (2, 4))
TABLES = np.random.default_rng(1).normal(0.5, 1.0, (2, 3, 2))
HEADS = {"classes": "categorical", "found": "bernoulli"}


def two_heads():
    """Three logits of classes, one of a yes or no, and an output without a policy."""
    x = keras.Input((2,))
    dense = keras.layers.Dense(4, use_bias=False)(x)
    outputs = {"classes": dense[:, :3], "found": dense[:, 3], "scale": dense[:, 0]}
    model = keras.Model(x, outputs)
    model.set_weights([KERNEL])
    return model


def joint_reward(y_true, y_pred):
    """Looks up class and yes or no together, times what the third output says."""
    first = ops.one_hot(y_pred["classes"], 3)
    second = ops.one_hot(y_pred["found"], 2)
    looked_up = ops.einsum("rij,ri,rj->r", y_true, first, second)
    return looked_up * (1.0 + ops.square(y_pred["scale"]))


def exact_gradient(weigh=(1.0, 1.0), temperature=1.0):
    """Gradient of E[R] in the kernel, over all six outcomes of the two heads.

    What the third output says is a constant.
    """
    gradient = np.zeros((2, 4))
    for x, table in zip(INPUTS, TABLES, strict=True):
        logits = x @ KERNEL
        p = softmax(logits[:3] / temperature)
        q = 1.0 / (1.0 + np.exp(-logits[3] / temperature))
        reward = table * (1.0 + logits[0] ** 2)
        by_logit = np.zeros(4)
        for i, found in itertools.product(range(3), range(2)):
            slope = np.append(weigh[0] * (np.eye(3)[i] - p), weigh[1] * (found - q))
            by_logit += p[i] * (q if found else 1 - q) * reward[i, found] * slope
        gradient += np.outer(x, by_logit) / temperature / len(INPUTS)
    return gradient.ravel()


@pytest.mark.chance
@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"baseline": "greedy", "update": "first"},
        {"temperature": 0.7},
        {"baseline": lambda r: r[..., None] * np.array([0.5, 1.5], "float32")},
    ],
    ids=["all", "first", "temperature", "positions"],
)
def test_step_ascends_the_expected_reward_of_both_heads(options):
    tuned = RewardTuning(
        two_heads(), joint_reward, HEADS, num_samples=3, seed=SEED, **options
    )
    weigh = (0.5, 1.5) if callable(options.get("baseline")) else (1.0, 1.0)
    exact = exact_gradient(weigh, options.get("temperature", 1.0))
    assert_mean_is(estimates(tuned, TABLES), exact)


# One step, looked at from within.


class Spy(Term):
    """Keeps what it is given; adds nothing."""

    def loss(self, update):
        self.__dict__["seen"] = update
        return 0.0 * ops.sum(update.likelihood.log_prob)


def zero(y_true, y_pred):
    return 0.0 * ops.cast(y_pred["found"], "float32")


def moved_by(terms, y=None, **arguments):
    """What a step with SGD and learning rate 1 adds to the kernel, and its logs."""
    model = two_heads()
    tuned = RewardTuning(model, zero, HEADS, terms=terms, seed=0, **arguments)
    tuned.compile(keras.optimizers.SGD(1.0), run_eagerly=True)
    x = INPUTS.astype("float32")
    logs = tuned.train_on_batch(x, y, return_dict=True)
    return weights_of(model)[0] - KERNEL, logs


def probabilities():
    logits = INPUTS @ KERNEL
    return softmax(logits[:, :3]), 1.0 / (1.0 + np.exp(-logits[:, 3:]))


def test_the_entropy_term_adds_the_gradient_of_the_mean_entropy():
    moved, logs = moved_by([Entropy(0.5)])
    p, q = probabilities()
    of_classes = -(p * np.log(p)).sum(-1, keepdims=True)
    of_found = -(q * np.log(q) + (1 - q) * np.log(1 - q))
    by_logit = np.concatenate(
        [-p * (np.log(p) + of_classes), -q * (1 - q) * np.log(q / (1 - q))], -1
    )
    expected = 0.5 * INPUTS.T @ by_logit / 2 / len(INPUTS)  # of two positions
    np.testing.assert_allclose(moved, expected, atol=1e-6)
    mean = (of_classes + of_found).mean() / 2
    np.testing.assert_allclose(float(logs["entropy"]), mean, rtol=1e-5)


def test_maximum_likelihood_adds_the_gradient_of_all_heads():
    y = {"classes": np.array([2, 0]), "found": np.array([1, 0]), "scale": np.zeros(2)}
    moved, logs = moved_by([MaximumLikelihood(0.5)], y)
    p, q = probabilities()
    picked = p[[0, 1], y["classes"]] * np.where(y["found"], q[:, 0], 1 - q[:, 0])
    np.testing.assert_allclose(float(logs["mle_loss"]), -np.log(picked).mean(), 1e-5)
    slope = np.concatenate([np.eye(3)[y["classes"]] - p, y["found"][:, None] - q], -1)
    expected = 0.5 * INPUTS.T @ slope / len(INPUTS)
    np.testing.assert_allclose(moved, expected, atol=1e-6)


def test_divergence_from_a_reference_model_is_that_of_all_heads():
    other = two_heads()
    shifted = KERNEL + np.random.default_rng(3).normal(0, 0.3, KERNEL.shape)
    other.set_weights([shifted])
    spy = Spy()
    _, logs = moved_by([KL(other), spy], num_samples=4)
    samples = keras.tree.map_structure(to_numpy, spy.seen.rollout.samples)
    ratios = []
    for kernel in (KERNEL, shifted):
        logits = INPUTS @ kernel
        p = np.log(softmax(logits[:, :3]))
        sign = 2 * samples["found"] - 1
        classes = np.take_along_axis(p, samples["classes"], 1)
        ratios.append([classes, -np.log1p(np.exp(-sign * logits[:, 3:]))])
    d = np.array(ratios[0]) - np.array(ratios[1])
    expected = (np.exp(-d) - 1 + d).sum(0).mean()
    np.testing.assert_allclose(float(logs["kl"]), expected, rtol=1e-4)
    assert expected > 0.01


@pytest.mark.chance
@pytest.mark.slow
def test_the_gradient_of_the_divergence_is_exact_over_both_heads():
    other = two_heads()
    shifted = KERNEL + np.random.default_rng(3).normal(0, 0.5, KERNEL.shape)
    other.set_weights([shifted])
    tuned = RewardTuning(
        two_heads(), zero, HEADS, num_samples=3, terms=[KL(other, 1.0)], seed=SEED
    )
    exact = np.zeros((2, 4))
    for x in INPUTS:
        logits, known = x @ KERNEL, x @ shifted
        p, r = softmax(logits[:3]), softmax(known[:3])
        q = 1 / (1 + np.exp(-logits[3]))
        ratio = np.log(p / r)
        by_logit = np.append(p * (ratio - p @ ratio), q * (1 - q))
        by_logit[3] *= logits[3] - known[3]
        exact -= np.outer(x, by_logit) / len(INPUTS)
    assert_mean_is(estimates(tuned, TABLES), exact.ravel())


def test_samples_of_an_input_see_the_same_output_without_policy():
    spy = Spy()
    moved_by([spy], num_samples=3, update="all", baseline="greedy")
    rollout = spy.seen.rollout
    scale = to_numpy(rollout.outputs["scale"])
    np.testing.assert_allclose(scale, np.repeat((INPUTS @ KERNEL)[:, 0], 3), rtol=1e-5)
    assert set(rollout.samples) == {"classes", "found"}
    for name, values in rollout.samples.items():
        assert tuple(values.shape) == (2, 3)
        rows = to_numpy(rollout.outputs[name])
        np.testing.assert_array_equal(rows, to_numpy(values).ravel())


def test_terms_that_need_one_output_say_so():
    with pytest.raises(ValueError, match=r"ConfidenceLoss needs .* policy whose codec"):
        moved_by([ConfidenceLoss()])


def test_positions_without_log_probabilities_have_no_advantages():
    tuned = RewardTuning(
        classes_and_places(),
        nearest,
        ClassesAndPlaces(whole=True),
        baseline=lambda rewards: ops.stack(3 * [rewards], axis=-1),
    )
    tuned.compile("sgd", run_eagerly=True)
    with pytest.raises(ValueError, match="need the log-probability of each position"):
        tuned.train_on_batch(inputs(4))


# `fit` and all around it.


def scene_model():
    """Two kinds of numbers, classes, and features without a policy."""
    x = keras.Input((3,))
    outputs = {
        "depth": keras.layers.Dense(4, name="depth")(x),
        "flow": keras.layers.Dense(2, name="flow")(x),
        "classes": keras.layers.Reshape((2, 5))(keras.layers.Dense(10)(x)),
        "features": x,
    }
    return randomize(keras.Model(x, outputs))


def scene_policies():
    return {
        "flow": GaussianPolicy(0.2, learn_stddev=True),
        "classes": "categorical",
        "depth": GaussianPolicy(0.1, learn_stddev=True),
    }


@keras.saving.register_keras_serializable(package="keras_reward_tests")
def scene_reward(y_true, y_pred):
    right = ops.mean(ops.cast(y_pred["classes"] == y_true["classes"], "float32"), -1)
    off = ops.mean(ops.abs(y_pred["depth"] - y_true["depth"]), axis=-1)
    still = ops.mean(ops.abs(y_pred["flow"] - y_pred["features"][:, :2]), axis=-1)
    return right - off - still


def scene_data(batch=16):
    generator = np.random.default_rng(1)
    y = {
        "classes": generator.integers(0, 5, (batch, 2)).astype("int32"),
        "depth": generator.normal(size=(batch, 4)).astype("float32"),
        "flow": generator.normal(size=(batch, 2)).astype("float32"),
    }
    return inputs(batch), y


def scene_tuner(**arguments):
    defaults = {"policy": scene_policies(), "num_samples": 3, "seed": 0}
    tuned = RewardTuning(scene_model(), scene_reward, **{**defaults, **arguments})
    tuned.compile(keras.optimizers.Adam(0.02))
    return tuned


@pytest.mark.slow
@pytest.mark.chance
def test_fit_raises_the_reward_and_predict_returns_all_outputs():
    x, y = scene_data()
    tuned = scene_tuner(
        baseline="greedy",
        terms=[KL("copy", 0.001), MaximumLikelihood(0.001), Entropy(0.001)],
    )
    before = tuned.evaluate(x, y, verbose=0, return_dict=True)["reward"]
    weight = np.ones(16)
    tuned.fit(x, y, sample_weight=weight, batch_size=8, epochs=30, verbose=0)
    after = tuned.evaluate(x, y, verbose=0, return_dict=True)["reward"]
    assert after > before + 0.3
    outputs = tuned.predict(x, verbose=0)
    expected = {k: to_numpy(v) for k, v in tuned.model(x).items()}
    classes = expected.pop("classes").argmax(-1)
    np.testing.assert_array_equal(outputs.pop("classes"), classes)
    assert set(outputs) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(outputs[name], values, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_weight_of_an_input_counts_once_for_all_outputs():
    """Keras hands over a weight for each leaf of `y`."""
    x, y = scene_data(4)
    weight = np.array([0.0, 2.0, 0.5, 1.0], "float32")
    tuned = scene_tuner()
    loss = tuned.evaluate(x, y, sample_weight=weight, verbose=0, return_dict=True)
    outputs = tuned.predict(x, verbose=0)
    rewards = to_numpy(scene_reward(y, outputs))
    np.testing.assert_allclose(loss["loss"], -(weight * rewards).mean(), rtol=1e-5)
    before = weights_of(tuned)
    tuned.fit(x, y, sample_weight=0 * weight, verbose=0)
    for a, b in zip(weights_of(tuned), before, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_a_saved_tuning_has_each_policy_where_it_was(tmp_path):
    tuned = scene_tuner()
    x, y = scene_data()
    tuned.fit(x, y, verbose=0)
    own = tuned.policy.policies
    own["depth"].log_stddev.assign(-3.0)
    own["flow"].log_stddev.assign(-1.0)
    tuned.save(tmp_path / "tuned.keras")
    tuned.save_weights(tmp_path / "tuned.weights.h5")
    loaded = keras.models.load_model(tmp_path / "tuned.keras")
    # Another order in the dict: what counts are the names.
    other = scene_tuner(policy=dict(reversed(scene_policies().items())))
    other.train_on_batch(x, y)
    other.load_weights(tmp_path / "tuned.weights.h5")
    for again in (loaded, other):
        own = again.policy.policies
        assert float(to_numpy(own["depth"].log_stddev)) == -3.0
        assert float(to_numpy(own["flow"].log_stddev)) == -1.0
    expected = tuned.train_on_batch(x, y)
    np.testing.assert_allclose(loaded.train_on_batch(x, y), expected, rtol=1e-5)


@pytest.mark.slow
def test_a_model_with_a_list_of_outputs_is_tuned():
    x = keras.Input((3,))
    heads = [keras.layers.Dense(5)(x), x, keras.layers.Dense(2)(x)]
    model = randomize(keras.Model(x, heads))

    def reward(y_true, y_pred):
        classes, features, numbers = y_pred
        fit = ops.mean(ops.abs(numbers - features[:, :2]), axis=-1)
        return ops.cast(classes == y_true[0], "float32") - fit

    tuned = RewardTuning(
        model,
        reward,
        ["categorical", None, "gaussian"],
        baseline="greedy",
        update="first",
        terms=[KL("copy"), MaximumLikelihood(0.1)],
        seed=0,
    )
    tuned.compile("sgd")
    y = [np.zeros(16, "int32"), np.zeros((16, 3)), np.zeros((16, 2), "float32")]
    history = tuned.fit(inputs(), y, batch_size=8, verbose=0).history
    assert np.isfinite(list(history.values())).all()
    outputs = tuned.predict(inputs(), verbose=0)
    np.testing.assert_array_equal(outputs[1], inputs())
    assert [o.shape for o in outputs] == [(16,), (16, 3), (16, 2)]


# A policy of one's own whose samples are a nest.


@keras.saving.register_keras_serializable(package="keras_reward_tests")
class ClassesAndPlaces(Policy):
    """Of a model's five numbers, three are logits of a class and two are a place.

    Samples are `{"class": (batch, n), "place": (batch, n, 2)}`.
    """

    def __init__(self, whole=False, **kwargs):
        super().__init__(**kwargs)
        self.whole = whole
        self.parts = {"class": CategoricalPolicy(), "place": GaussianPolicy(0.3)}

    def encode(self, x, training=False):
        output = self.model(x, training=training)
        return {"class": output[:, :3], "place": output[:, 3:]}

    def sample(self, context, num_samples, seed=None, noise=None):
        return {
            name: policy.sample(context[name], num_samples, seed=seed)
            for name, policy in self.parts.items()
        }

    def likelihood(self, context, samples, choices=(), entropy_gradient=False):
        joint = of_parts(
            [
                policy.likelihood(context[name], samples[name])
                for name, policy in self.parts.items()
            ]
        )
        if not self.whole:
            return joint
        whole = joint.log_prob
        counted = ops.ones_like(whole, dtype="bool")
        return Likelihood(whole, joint.entropy, whole, counted, whole[None][:0])

    def mode(self, context):
        parts = self.parts.items()
        return {name: policy.mode(context[name]) for name, policy in parts}

    def decode(self, x, samples, context):
        n = samples["class"].shape[1]
        logits = ops.repeat(context["class"], n, axis=0)
        return {**super().decode(x, samples), "logits": logits}

    def get_config(self):
        return {**super().get_config(), "whole": self.whole}


def classes_and_places():
    return randomize(keras.Sequential([keras.Input((3,)), keras.layers.Dense(5)]))


def nearest(y_true, y_pred):
    sure = 0.1 * ops.max(y_pred["logits"], axis=-1)
    off = ops.sum(ops.square(y_pred["place"]), axis=-1)
    return ops.cast(y_pred["class"], "float32") - off + 0.0 * sure


@pytest.mark.slow
@pytest.mark.chance
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(
    "options",
    [{}, {"baseline": "greedy", "update": "first"}, {"baseline": "moving_average"}],
    ids=["all", "first", "average"],
)
def test_a_policy_with_nested_samples_is_tuned(options, whole):
    tuned = RewardTuning(
        classes_and_places(),
        nearest,
        ClassesAndPlaces(whole),
        num_samples=4,
        terms=[KL("copy", 0.001), Entropy(0.0)],
        seed=0,
        **options,
    )
    tuned.compile(keras.optimizers.Adam(0.05))
    x = inputs()
    before = tuned.evaluate(x, verbose=0, return_dict=True)["reward"]
    history = tuned.fit(x, batch_size=8, epochs=20, verbose=0).history
    assert tuned.evaluate(x, verbose=0, return_dict=True)["reward"] > before + 0.5
    assert history["kl"][0] >= 0.0 and np.isfinite(list(history.values())).all()
    outputs = tuned.predict(x, verbose=0)
    expected = to_numpy(tuned.model(x))
    np.testing.assert_array_equal(outputs["class"], expected[:, :3].argmax(-1))
    np.testing.assert_allclose(outputs["logits"], expected[:, :3], 1e-4, 1e-5)


@pytest.mark.slow
def test_callbacks_and_evaluation_take_nested_samples(tmp_path):
    x = inputs(8)
    tuned = RewardTuning(
        classes_and_places(), nearest, ClassesAndPlaces(), num_samples=3, seed=0
    )
    tuned.compile(keras.optimizers.SGD(0.0))
    logger = SampleLogger(tmp_path, x[:2], num_samples=2)
    guard = RewardGuard(validation_data=(x, None))
    tuned.fit(x, callbacks=[logger, guard], verbose=0)
    lines = (tmp_path / "samples.jsonl").read_text().splitlines()
    one = json.loads(lines[0])["samples"][0]
    place = np.array(one["output"]["place"])
    expected = one["output"]["class"] - (place**2).sum()
    np.testing.assert_allclose(one["reward"], expected, rtol=1e-4)
    result = reward_distribution(tuned, (x, None), num_samples=6, verbose=0)
    assert result.rewards.shape == (8, 6) and np.isfinite(result.log_probs).all()


@pytest.mark.chance
def test_rewards_of_many_samples_have_the_mean_of_all_outcomes():
    tuned = RewardTuning(two_heads(), joint_reward, HEADS, seed=0)
    data = INPUTS.astype("float32"), TABLES.astype("float32")
    result = reward_distribution(tuned, data, num_samples=2000, verbose=0)
    p, q = probabilities()
    chance = p[:, :, None] * np.stack([1 - q, q], -1)
    rewards = TABLES * (1 + (INPUTS @ KERNEL)[:, 0] ** 2)[:, None, None]
    mean = (chance * rewards).sum((1, 2))
    error = result.rewards.std(1) / np.sqrt(2000)
    assert (np.abs(result.rewards.mean(1) - mean) / error).max() < largest_deviation(2)
    outcomes = np.log(chance).reshape(2, -1)
    nearest_outcome = np.abs(result.log_probs[..., None] - outcomes[:, None]).min(-1)
    assert nearest_outcome.max() < 1e-5


# A model that is its own policy, and takes the context when it decodes.


class Pair(keras.Model):
    """Two coins, one after another output; what it decodes to has their logits too."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(2)
        self.dense.build((None, 3))
        self.built = True
        self.coin = BernoulliPolicy()

    def encode(self, x, training=False):
        return self.dense(x)

    def sample(self, context, num_samples, seed=None):
        drawn = self.coin.sample(context, num_samples, seed=seed)
        return [drawn[..., 0], drawn[..., 1]]

    def likelihood(self, context, samples, choices=(), entropy_gradient=False):
        return self.coin.likelihood(context, ops.stack(samples, axis=-1))

    def mode(self, context):
        return [ops.cast(context[:, i] > 0, "int32") for i in range(2)]

    def decode(self, x, samples, context):
        logits = ops.repeat(context, samples[0].shape[1], axis=0)
        return {"pair": [ops.reshape(s, (-1,)) for s in samples], "logits": logits}


@pytest.mark.slow
@pytest.mark.chance
def test_a_model_that_is_its_own_policy_may_draw_a_nest_and_take_the_context():
    def equal(y_true, y_pred):
        first, second = y_pred["pair"]
        return ops.cast(first == second, "float32") + 0.0 * y_pred["logits"][:, 0]

    tuned = RewardTuning(randomize(Pair()), equal, num_samples=4, baseline="greedy")
    assert isinstance(tuned.policy, ModelPolicy)
    tuned.compile(keras.optimizers.Adam(0.1))
    tuned.fit(inputs(), epochs=20, verbose=0)
    outputs = tuned.predict(inputs(), verbose=0)
    np.testing.assert_array_equal(outputs["pair"][0], outputs["logits"][:, 0] > 0)
    assert (outputs["pair"][0] == outputs["pair"][1]).mean() > 0.8


def test_a_dict_of_policies_is_a_multi_output_policy():
    tuned = RewardTuning(two_heads(), joint_reward, HEADS)
    assert isinstance(tuned.policy, MultiOutputPolicy)
    unbound = RewardTuning(reward=joint_reward, policy=HEADS)
    assert isinstance(unbound(two_heads()).policy, MultiOutputPolicy)
