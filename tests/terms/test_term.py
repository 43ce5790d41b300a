"""Terms of the loss: what they are given, how they log, what a file keeps of them."""

import keras
import numpy as np
import pytest
from keras import ops
from tiny import classifier, inputs, to_numpy, weights_of

from keras_reward import Entropy, MaximumLikelihood, RewardTuning, Term
from keras_reward.terms.update import Update


def value(y_true, y_pred):
    return ops.cast(y_pred, "float32")


def tuner(terms, **arguments):
    tuned = RewardTuning(
        classifier(), value, num_samples=3, terms=terms, seed=0, **arguments
    )
    tuned.compile(keras.optimizers.Adam(0.05))
    return tuned


@keras.saving.register_keras_serializable(package="keras_reward_tests")
class Critic(Term):
    """Learns the reward of an input, with weights of its own; logs two numbers."""

    log_names = ("critic_loss", "critic_mean")

    def __init__(self, weight=1.0, name=None, **kwargs):
        super().__init__(weight, name=name, **kwargs)
        self.dense = keras.layers.Dense(1)
        self.dense.build((None, 3))

    def loss(self, update):
        predicted = self.dense(update.x)
        error = ops.mean(ops.square(predicted - update.rollout.rewards))
        return error, {"critic_loss": error, "critic_mean": ops.mean(predicted)}


@pytest.mark.slow
def test_a_term_is_given_the_whole_update():
    seen = []

    class Spy(Term):
        def loss(self, update):
            assert isinstance(update, Update)
            seen.append(update)
            return 0.0 * ops.sum(update.likelihood.log_prob)

    tuned = tuner([Spy()])
    tuned.compile("sgd", run_eagerly=True)
    x, y = inputs(4), np.arange(4)
    tuned.train_on_batch(x, y, sample_weight=np.array([1.0, 0.0, 2.0, 1.0]))
    (update,) = seen
    rollout = update.rollout
    assert update.policy is tuned.policy
    np.testing.assert_array_equal(to_numpy(update.x), x)
    np.testing.assert_array_equal(to_numpy(update.y), y)
    np.testing.assert_array_equal(to_numpy(update.sample_weight), [1.0, 0.0, 2.0, 1.0])
    assert rollout.samples.shape == update.likelihood.log_prob.shape == (4, 3)
    np.testing.assert_array_equal(
        to_numpy(rollout.outputs), to_numpy(rollout.samples).reshape(-1)
    )
    np.testing.assert_array_equal(to_numpy(rollout.rewards), to_numpy(rollout.samples))


def test_outputs_of_the_first_samples_go_with_update_first():
    seen = []

    class Spy(Term):
        def loss(self, update):
            seen.append(update.rollout)
            return 0.0 * ops.sum(update.likelihood.log_prob)

    tuned = tuner([Spy()], update="first", baseline="greedy")
    tuned.compile("sgd", run_eagerly=True)
    tuned.train_on_batch(inputs(4))
    (rollout,) = seen
    assert tuple(rollout.rewards.shape) == (4, 3)
    assert tuple(rollout.samples.shape) == tuple(rollout.advantages.shape) == (4, 1)
    np.testing.assert_array_equal(
        to_numpy(rollout.outputs), to_numpy(rollout.samples)[:, 0]
    )


def test_outputs_are_decoded_once_a_step():
    calls = []

    def decode(x, samples):
        calls.append(samples.shape)
        return samples

    class Outputs(Term):
        def loss(self, update):
            return 0.0 * ops.mean(ops.cast(update.rollout.outputs, "float32"))

    from keras_reward import CategoricalPolicy

    tuned = tuner([Outputs()], policy=CategoricalPolicy(codec=decode))
    tuned.compile("sgd", run_eagerly=True)
    tuned.train_on_batch(inputs(4))
    assert len(calls) == 1


@pytest.mark.chance
def test_weights_of_a_term_are_trained_logged_and_saved(tmp_path):
    tuned = tuner([Critic()])
    history = tuned.fit(inputs(64), epochs=20, verbose=0).history
    assert history["critic_loss"][-1] < 0.5 * history["critic_loss"][0]
    assert "critic_mean" in history and "critic" not in history
    assert "critic_loss" not in tuned.evaluate(inputs(), verbose=0, return_dict=True)
    tuned.save_weights(tmp_path / "tuned.weights.h5")
    other = tuner([Critic()])
    other.load_weights(tmp_path / "tuned.weights.h5")
    for a, b in zip(weights_of(tuned), weights_of(other), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_term_of_weight_zero_only_logs():
    runs = []
    for terms in ([], [MaximumLikelihood(0.0), Entropy(0.0)]):
        tuned = tuner(terms)
        tuned.fit(inputs(), np.zeros(16, "int32"), shuffle=False, epochs=2, verbose=0)
        runs.append(weights_of(tuned.model))
    for a, b in zip(*runs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    assert "mle_loss" in tuned.history.history


@pytest.mark.slow
def test_terms_add_up():
    """The loss of a step is the sum of what it is with one term at a time."""
    x, y = inputs(8), np.zeros(8, "int32")
    losses = []
    for terms in ([], [Entropy(0.5)], [MaximumLikelihood(0.3)], None):
        terms = [Entropy(0.5), MaximumLikelihood(0.3)] if terms is None else terms
        losses.append(
            float(tuner(terms).train_on_batch(x, y, return_dict=True)["loss"])
        )
    nothing, entropy, likelihood, both = losses
    assert both == pytest.approx(entropy + likelihood - nothing, abs=1e-5)


def test_maximum_likelihood_of_classes_ascends_its_gradient():
    """Of a linear softmax: the features times what is expected less what is true."""

    def nothing(y_true, y_pred):
        return 0.0 * ops.cast(y_pred, "float32")

    tuned = RewardTuning(classifier(), nothing, terms=[MaximumLikelihood(0.5)])
    tuned.compile(keras.optimizers.SGD(1.0))
    x, y = inputs(6), np.array([0, 1, 2, 3, 4, 0])
    kernel, bias = weights_of(tuned.model)
    logits = x.astype("float64") @ kernel + bias
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = 0.5 * x.T @ (np.eye(5)[y] - p) / 6
    tuned.train_on_batch(x, y)
    moved = weights_of(tuned.model)[0] - kernel
    np.testing.assert_allclose(moved, expected, atol=1e-6)


class TwoNumbers(Term):
    def loss(self, update):
        return update.likelihood.entropy


class OtherName(Term):
    def loss(self, update):
        return ops.mean(update.likelihood.entropy), {"another": 1.0}


class Nothing(Term):
    pass


CASES = {
    "negative weight": (lambda: Entropy(-1.0), "at least 0. Received: weight=-1.0"),
    "not finite": (lambda: Entropy(float("nan")), "at least 0. Received: weight=nan"),
    "no list": (lambda: tuner(Entropy(0.1)), "must be a list of terms.*Received"),
    "a class": (lambda: tuner([Entropy]), "must be a list of terms.*Received"),
    "not a scalar": (
        lambda: tuner([TwoNumbers()]).train_on_batch(inputs(4)),
        r"'two_numbers' must return a scalar loss.*shape \(\d+,\)",
    ),
    "same name twice": (
        lambda: tuner([MaximumLikelihood(), MaximumLikelihood()]),
        "of one another. Rename them. Received: \\['mle_loss'\\]",
    ),
    "old name": (
        lambda: RewardTuning(classifier(), value, entropy_weight=0.1),
        r"`entropy_weight` is now `terms=\[Entropy\(weight\)\]`.*entropy_weight",
    ),
    "old name, no model": (
        lambda: RewardTuning(reward=value, scale_advantages=True),
        '`scale_advantages` is now `baseline="standardized"`',
    ),
    "old config": (
        lambda: RewardTuning.from_config(
            {**tuner([]).get_config(), "kl_weight": 0.1, "reference": "copy"}
        ),
        r"earlier form.*`kl_weight` is now `terms=\[KL.*Received: kl_weight, reference",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_message(case):
    function, message = CASES[case]
    with pytest.raises(ValueError, match=message):
        function()


def test_a_term_without_a_loss_says_so():
    with pytest.raises(NotImplementedError, match="Nothing must implement `loss"):
        tuner([Nothing()]).train_on_batch(inputs(4))
