"""Closeness to a reference model: divergence and gradient against exact sums."""

import itertools
import zipfile

import h5py
import keras
import numpy as np
import pytest
from chance import largest_deviation
from gradients import differentiate
from keras import ops
from scipy import special
from sequences import InNumPy, SequenceModel, images
from tiny import classifier, inputs, randomize, to_numpy, weights_of

from keras_reward import (
    KL,
    AutoregressivePolicy,
    BernoulliPolicy,
    CategoricalPolicy,
    GaussianPolicy,
    Reward,
    RewardTuning,
)
from keras_reward.terms import kl
from keras_reward.terms.lora_base import adapters_off
from keras_reward.terms.reference_model import copy_model

STEPS, COPIES = 40, 150
X = images(2)


@keras.saving.register_keras_serializable(package="keras_reward_tests")
class Nothing(Reward):
    """The same for all, so that only the divergence has a gradient."""

    def call(self, y_true, y_pred):
        return ops.zeros_like(keras.tree.flatten(y_pred)[0][:, 0], dtype="float32")


def tuner(model, rate=1.0, reference="copy", weight=1.0, save=False, **arguments):
    terms = [] if reference is None else [KL(reference, weight, save)]
    defaults = {"reward": Nothing(), "num_samples": 3, "terms": terms}
    tuned = RewardTuning(model, seed=0, **{**defaults, **arguments})
    tuned.compile(keras.optimizers.SGD(rate))
    return tuned


def test_the_estimate_is_unbiased_and_of_lower_variance():
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.4, 0.25, 0.35])
    ratios = np.log(p / q)
    estimates = to_numpy(kl.kl_estimate(ratios[None, :, None]))[0]
    np.testing.assert_allclose(p @ estimates, p @ ratios, rtol=1e-5)
    assert (estimates >= 0).all()
    spread = lambda values: p @ (values - p @ values) ** 2  # noqa: E731
    assert spread(estimates) < 0.1 * spread(ratios)


def test_weights_by_hand():
    k3 = lambda d: np.exp(-d) - 1 + d  # noqa: E731
    ratios = np.array([[[0.1, -0.2, 0.3], [0.0, 0.4, 0.0]]], "float32")
    first = np.array([0.1 + k3(-0.2) + k3(0.3), -0.2 + k3(0.3), 0.3])
    second = np.array([k3(0.4), 0.4, 0.0])
    ordered = to_numpy(kl.kl_weights(ratios, ordered=True))[0]
    np.testing.assert_allclose(ordered, [first - second, second - first], atol=1e-6)
    free = to_numpy(kl.kl_weights(ratios))[0]
    np.testing.assert_allclose(free[0], ratios[0, 0] - ratios[0, 1], atol=1e-6)
    single = to_numpy(kl.kl_weights(ratios[:, :1]))
    np.testing.assert_allclose(single, ratios[:, :1])


def moves(tuned, start, x):
    """What steps of rate 1 from the same weights subtract: `(STEPS, weights)`."""
    estimates, divergences = [], []
    for _ in range(STEPS):
        tuned.model.set_weights(start)
        tuned.reset_metrics()
        logs = tuned.train_on_batch(x, return_dict=True)
        pairs = zip(weights_of(tuned.model), start, strict=True)
        estimates.append(np.concatenate([(b - a).ravel() for a, b in pairs]))
        divergences.append(float(logs["kl"]))
    return np.array(estimates, "float64"), np.array(divergences)


def check_mean(estimates, exact):
    """The mean of independent estimates is the exact value, within their error."""
    error = estimates.std(0, ddof=1) / np.sqrt(len(estimates))
    # The estimates' own deviation misses what is so rare that it was never drawn.
    error = np.maximum(error, 1e-3 * np.abs(exact).max())
    deviation = np.abs(estimates.mean(0) - exact) / error
    bound = largest_deviation(np.size(exact), freedom=len(estimates) - 1)
    assert np.max(deviation) < bound, deviation
    assert np.abs(exact / error).max() > 15.0  # power


SLOTS = np.array([[1, 1, 1], [1, 1, 0], [0, 1, 1]], "bool")


@pytest.mark.chance
@pytest.mark.parametrize("setting", [{}, {"temperature": 0.7, "slot_mask": SLOTS}])
def test_a_step_descends_the_divergence_of_sequences(setting):
    setting = dict(setting)
    slots = setting.pop("slot_mask", None)
    model = SequenceModel(vocabulary_size=3, max_length=3)
    other = SequenceModel(vocabulary_size=3, max_length=3, seed=5)
    policy = AutoregressivePolicy(slot_mask=slots)
    tuned = tuner(model, policy=policy, reference=other, **setting)
    temperature = tuned.temperature
    ours, theirs = (InNumPy(m, temperature, slots) for m in (model, other))
    start = [w.astype("float64") for w in model.get_weights()]

    def divergence(weights):
        ours.embedding, ours.positions, ours.encoder, ours.head = weights
        total = 0.0
        with np.errstate(divide="ignore", invalid="ignore"):
            for x, tokens in itertools.product(X, ours.sequences()):
                p = sum(ours.token_log_probs(x, tokens))
                q = sum(theirs.token_log_probs(x, tokens))
                total += np.exp(p) * (p - q) if np.isfinite(p) else 0.0
        return total / len(X)

    exact = differentiate(divergence, start)
    estimates, divergences = moves(tuned, start, np.repeat(X, COPIES, 0))
    check_mean(estimates, exact)
    check_mean(divergences, divergence(start))


@pytest.mark.chance
def test_a_step_descends_the_divergence_of_independent_positions():
    model, other = (
        classifier(positions=2, classes=3),
        classifier(positions=2, classes=3),
    )
    randomize(other, seed=7)
    tuned = tuner(model, reference=other, num_samples=2)
    x = inputs(2)
    start = [w.astype("float64") for w in weights_of(model)]

    def log_probs(weights):
        logits = (x.astype("float64") @ weights[0] + weights[1]).reshape(2, 2, 3)
        return special.log_softmax(logits, axis=-1)

    theirs = log_probs(weights_of(other))

    def divergence(weights):
        ours = log_probs(weights)
        return (np.exp(ours) * (ours - theirs)).sum() / len(x)

    exact = differentiate(divergence, start)
    estimates, divergences = moves(tuned, start, np.repeat(x, COPIES, 0))
    check_mean(estimates, exact)
    check_mean(divergences, divergence(start))


def test_normal_distributions_have_their_closed_form():
    def model(seed):
        return randomize(
            keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]), seed
        )

    ours, theirs = model(0), model(0)
    theirs.set_weights([w + 0.1 for w in theirs.get_weights()])
    policy = GaussianPolicy(stddev=0.7, learn_stddev=True)
    tuned = tuner(ours, reference=theirs, policy=policy, weight=0.0, rate=0.0)
    policy.log_stddev.assign(np.log(0.6))  # the reference keeps 0.7
    x = inputs(4)
    logs = tuned.train_on_batch(np.repeat(x, 2000, 0), return_dict=True)
    means = [to_numpy(m(x)).astype("float64") for m in (ours, theirs)]
    squares = (means[0] - means[1]) ** 2
    exact = np.log(0.7 / 0.6) + (0.6**2 + squares) / (2 * 0.7**2) - 0.5
    assert float(logs["kl"]) == pytest.approx(exact.sum(-1).mean(), rel=0.05)


@pytest.mark.slow
def test_at_the_reference_nothing_moves():
    for model, policy in (
        (SequenceModel(), "auto"),
        (classifier(positions=4), "auto"),
        (classifier(), BernoulliPolicy()),
    ):
        tuned = tuner(model, policy=policy)
        before = weights_of(model)
        x = X if isinstance(model, SequenceModel) else inputs(8)
        logs = tuned.train_on_batch(x, return_dict=True)
        assert float(logs["kl"]) == pytest.approx(0.0, abs=1e-6)
        for a, b in zip(before, weights_of(model), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)


def value(y_true, y_pred):
    return ops.mean(ops.cast(y_pred, "float32"), axis=-1)


def fit(tuned, epochs=2):
    history = tuned.fit(
        inputs(16), batch_size=8, epochs=epochs, shuffle=False, verbose=0
    )
    return history.history


@pytest.mark.chance
def test_weight_0_only_watches():
    watched = tuner(classifier(positions=4), reward=value, weight=0.0)
    alone = tuner(classifier(positions=4), reward=value, reference=None)
    history, plain = fit(watched), fit(alone)
    assert history["kl"][1] > history["kl"][0] > 0 and "kl" not in plain
    for a, b in zip(weights_of(watched.model), weights_of(alone.model), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert len(watched.weights) == len(alone.weights)
    assert "kl" not in watched.evaluate(inputs(4), verbose=0, return_dict=True)


@pytest.mark.chance
def test_a_weight_keeps_the_model_close():
    far = fit(tuner(classifier(positions=4), reward=value, weight=0.0), 6)
    near = fit(tuner(classifier(positions=4), reward=value, weight=2.0), 6)
    assert near["kl"][-1] < 0.5 * far["kl"][-1]


@pytest.mark.slow
def test_the_reference_is_no_constant_of_the_compiled_step():
    other = classifier(positions=4)
    tuned = tuner(classifier(positions=4), rate=0.0, reference=other)
    first = float(tuned.train_on_batch(inputs(16), return_dict=True)["kl"])
    other.set_weights(
        [
            w + 0.5 * (i + 1)
            for i, w in enumerate(
                randomize(classifier(positions=4), seed=3).get_weights()
            )
        ]
    )
    tuned.reset_metrics()
    second = float(tuned.train_on_batch(inputs(16), return_dict=True)["kl"])
    assert first == pytest.approx(0.0, abs=1e-6) and second > 0.1
    replaced = randomize(classifier(positions=4), seed=3)
    tuned.terms[0].set_reference_model(replaced)
    tuned.reset_metrics()
    third = float(tuned.train_on_batch(inputs(16), return_dict=True)["kl"])
    assert abs(third - second) > 0.01


# LoRA.


def adapted(positions=4):
    """A classifier whose adapters are not 0, and what it was before it had them."""
    base = classifier(positions=positions)
    model = classifier(positions=positions)
    model.layers[0].enable_lora(rank=2)
    generator = np.random.default_rng(4)
    for name in ("lora_kernel_a", "lora_kernel_b"):
        weight = getattr(model.layers[0], name)
        weight.assign(generator.normal(0.0, 0.5, weight.shape))
    return model, base


def test_the_base_of_adapters_is_the_model_without_them():
    model, base = adapted()
    with adapters_off(model):
        np.testing.assert_allclose(to_numpy(model(inputs())), to_numpy(base(inputs())))
    assert np.abs(to_numpy(model(inputs())) - to_numpy(base(inputs()))).max() > 0.1
    runs = []
    for reference in ("lora_base", base):
        model, _ = adapted()
        tuned = tuner(model, reward=value, reference=reference, rate=0.1)
        runs.append((fit(tuned), weights_of(model)))
        assert model.layers[0].lora_enabled
    np.testing.assert_allclose(runs[0][0]["kl"], runs[1][0]["kl"], rtol=1e-4)
    for a, b in zip(runs[0][1], runs[1][1], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    tuned = tuner(model, reference="lora_base")
    assert [v.shape for v in tuned.terms[0].frozen_variables] == [
        (20,)
    ]  # the bias alone


# Files.


def saved_sizes(path):
    """Number of floats in the weights of a .keras file."""
    with zipfile.ZipFile(path) as archive, archive.open("model.weights.h5") as file:
        sizes = []
        h5py.File(file).visititems(
            lambda name, item: (
                sizes.append(item.size) if isinstance(item, h5py.Dataset) else None
            )
        )
    return sum(sizes)


@keras.saving.register_keras_serializable(package="keras_reward_tests")
class Value(Reward):
    def call(self, y_true, y_pred):
        return value(y_true, y_pred)


def start(**arguments):
    return tuner(classifier(positions=4), reward=Value(), rate=0.5, **arguments)


@pytest.mark.slow
@pytest.mark.parametrize("save", [False, True])
def test_a_loaded_run_goes_on_as_the_uninterrupted_one(tmp_path, save):
    whole = start(save=save)
    fit(whole, 1)
    whole.save(tmp_path / "tuned.keras")
    size = sum(weight.size for weight in classifier(positions=4).get_weights())
    plain = start(reference=None)
    fit(plain, 1)
    plain.save(tmp_path / "plain.keras")
    extra = saved_sizes(tmp_path / "tuned.keras") - saved_sizes(
        tmp_path / "plain.keras"
    )
    assert extra == size * save
    loaded = keras.models.load_model(tmp_path / "tuned.keras")
    if not save:
        with pytest.raises(ValueError, match="set_reference_model"):
            fit(loaded, 1)
        loaded.terms[0].set_reference_model(classifier(positions=4))
    np.testing.assert_allclose(fit(loaded, 2)["kl"], fit(whole, 2)["kl"], rtol=1e-5)
    for a, b in zip(weights_of(loaded.model), weights_of(whole.model), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


@pytest.mark.slow
def test_the_base_of_adapters_is_there_after_loading(tmp_path):
    model, _ = adapted()
    whole = tuner(model, reward=Value(), reference="lora_base", rate=0.1)
    fit(whole, 1)
    whole.save(tmp_path / "tuned.keras")
    loaded = keras.models.load_model(tmp_path / "tuned.keras")
    assert loaded.model.layers[0].lora_enabled
    loaded.save(tmp_path / "again.keras")  # before it was trained
    again = keras.models.load_model(tmp_path / "again.keras")
    whole = fit(whole, 2)["kl"], weights_of(whole.model)
    for other in (loaded, again):
        np.testing.assert_allclose(fit(other, 2)["kl"], whole[0], rtol=1e-4)
        for a, b in zip(weights_of(other.model), whole[1], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_weights_that_are_loaded_do_not_change_the_reference(tmp_path):
    tuned = start()
    fit(tuned, 2)
    tuned.save_weights(tmp_path / "tuned.weights.h5")
    other = start()
    kept = weights_of(other.terms[0].reference_model.model)
    other.load_weights(tmp_path / "tuned.weights.h5")
    for a, b in zip(
        kept, weights_of(other.terms[0].reference_model.model), strict=True
    ):
        np.testing.assert_array_equal(a, b)


# Copies and arguments.


def test_a_copy_has_the_weights_and_policy_of_its_own():
    model = classifier(positions=4)
    twin = copy_model(model)
    before = weights_of(twin)
    model.set_weights([w + 1.0 for w in model.get_weights()])
    for a, b in zip(before, weights_of(twin), strict=True):
        np.testing.assert_array_equal(a, b)
    policy = CategoricalPolicy(codec=lambda x, samples: samples)  # not in any file
    tuned = tuner(classifier(positions=4), reward=value, policy=policy)
    assert tuned.terms[0].reference_model.policy is not policy
    assert (
        tuned.terms[0].reference_model.policy.model
        is tuned.terms[0].reference_model.model
    )
    fit(tuned, 1)


class Unbuilt(keras.Model):
    pass


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weight": -1.0}, "must be a number, at least 0"),
        ({"reference": "base"}, r"one of \('copy', 'lora_base'\)"),
        ({"reference": Unbuilt()}, "a built keras.Model"),
        ({"reference": "lora_base"}, "enable_lora"),
    ],
)
def test_arguments_that_make_no_sense(arguments, message):
    with pytest.raises(ValueError, match=message):
        tuner(classifier(), **arguments)


def test_the_tuned_model_is_no_reference():
    model = classifier()
    with pytest.raises(ValueError, match="not the tuned one itself"):
        tuner(model, reference=model)


def test_models_that_cannot_be_copied():
    model = keras.Sequential([keras.layers.Dense(3)])
    with pytest.raises(ValueError, match="has none yet"):
        tuner(model)


def test_a_term_belongs_to_one_tuning():
    term = KL("copy")
    tuner(classifier(), terms=[term])
    with pytest.raises(ValueError, match="belongs to another RewardTuning"):
        tuner(classifier(), terms=[term])
