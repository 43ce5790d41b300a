"""Training steps on sequences: the gradient against enumeration, and how steps add up.

As in test_gradient.py: the expected reward and its gradient follow from summing over
all sequences, in float64 NumPy, and the library's estimate is read off real steps.
"""

import keras
import numpy as np
import pytest
from chance import largest_deviation
from gradients import differentiate
from keras import ops
from sequences import InNumPy, SequenceModel, images
from tiny import to_numpy, weights_of

from keras_reward import (
    CategoricalPolicy,
    CIDErReward,
    MaximumLikelihood,
    Policy,
    Reward,
    RewardTuning,
    Term,
)
from keras_reward.models import CaptionPreprocessor
from keras_reward.policies.autoregressive import AutoregressivePolicy

pytestmark = pytest.mark.slow

SEED = 1234
STEPS = 40  # independent estimates of the gradient
COPIES = 150  # of each input in a batch
X = images(2)
SLOTS = np.array([[1, 1, 1], [1, 1, 0], [0, 1, 1]], "bool")
TABLES = np.random.default_rng(1).normal(0.5, 1.0, (2, 27))  # by the ids as digits


def tiny_model():
    return SequenceModel(vocabulary_size=3, max_length=3)


def table_reward(y_true, y_pred):
    """Looks up the reward of the sequence that was drawn, in a table for each input."""
    index = ops.sum(y_pred * ops.convert_to_tensor([9, 3, 1], "int32"), axis=-1)
    return ops.sum(y_true * ops.one_hot(index, 27), axis=-1)


def log_prob_of(weights, in_numpy, x, tokens):
    """Log-probability of a sequence under the model in NumPy with other weights."""
    in_numpy.embedding, in_numpy.positions, in_numpy.encoder, in_numpy.head = weights
    return sum(in_numpy.token_log_probs(x, tokens))


def expected_reward(weights, in_numpy):
    """The mean over inputs of the reward's expectation, over all sequences."""
    total = 0.0
    for x, table in zip(X, TABLES, strict=True):
        for tokens in in_numpy.sequences():
            with np.errstate(divide="ignore"):
                p = np.exp(log_prob_of(weights, in_numpy, x, tokens))
            total += p * table[np.dot(in_numpy.padded(tokens), [9, 3, 1])]
    return total / len(X)


def float64_weights(model):
    assert [w.path.split("/")[-1] for w in model.weights][:2] == [
        "embedding",
        "positions",
    ]
    return [w.astype("float64") for w in model.get_weights()]


def moved_by(tuned, x, *targets):
    """How one step of SGD with learning rate 1 moves the weights, as one vector."""
    before = weights_of(tuned.model)
    tuned.train_on_batch(x, *targets)
    pairs = zip(weights_of(tuned.model), before, strict=True)
    return np.concatenate([(a - b).ravel() for a, b in pairs])


SETTINGS = {
    "leave one out": {},
    "greedy, first": {"baseline": "greedy", "update": "first"},
    "sharp, chunks": {"temperature": 0.7, "logits_chunk": 1},
    "slots": {"slot_mask": SLOTS},
}


@pytest.mark.chance
@pytest.mark.parametrize("name", SETTINGS)
def test_step_ascends_the_expected_reward(name):
    arguments = dict(SETTINGS[name])
    names = ("logits_chunk", "slot_mask")
    policy = {k: arguments.pop(k) for k in names if k in arguments}
    model = tiny_model()
    tuned = RewardTuning(
        model,
        reward=table_reward,
        policy=AutoregressivePolicy(**policy),
        num_samples=3,
        seed=SEED,
        **arguments,
    )
    tuned.compile(keras.optimizers.SGD(1.0))
    in_numpy = InNumPy(model, tuned.temperature, policy.get("slot_mask"))
    start = float64_weights(model)
    exact = differentiate(lambda w: expected_reward(w, in_numpy), start)
    x = np.repeat(X, COPIES, 0)
    tables = np.repeat(TABLES, COPIES, 0).astype("float32")
    estimates = []
    for _ in range(STEPS):
        model.set_weights(start)
        estimates.append(moved_by(tuned, x, tables))
    estimates = np.array(estimates, "float64")
    error = estimates.std(0, ddof=1) / np.sqrt(STEPS)
    deviation = np.abs(estimates.mean(0) - exact) / np.maximum(error, 1e-6)
    assert deviation.max() < largest_deviation(exact.size, freedom=STEPS - 1), deviation
    # Power: a wrong sign, a factor of 2, or no gradient at all would be found.
    assert np.abs(exact / np.maximum(error, 1e-6)).max() > 20.0


class GivenNoise(AutoregressivePolicy):
    """Samples from the same numbers in every step."""

    numbers = np.random.default_rng(7).random((2, 4, 3)).astype("float32")

    def sample(self, context, num_samples, seed=None, noise=None):
        return super().sample(context, num_samples, noise=self.numbers)


MODES = [{"run_eagerly": True}, {"run_eagerly": False}]
if keras.config.backend() == "tensorflow":
    MODES.append({"jit_compile": True})


@pytest.mark.parametrize("mode", MODES)
def test_a_step_equals_numpy_given_the_same_noise(mode):
    """Samples, leave-one-out advantages and the gradient of mean(A * log p)."""
    model = tiny_model()
    tuned = RewardTuning(
        model, table_reward, GivenNoise(logits_chunk=2), num_samples=4, temperature=0.7
    )
    tuned.compile(keras.optimizers.SGD(1.0), **mode)
    in_numpy = InNumPy(model, temperature=0.7)
    drawn = [
        [in_numpy.sample(x, uniform) for uniform in numbers]
        for x, numbers in zip(X, GivenNoise.numbers, strict=True)
    ]
    rewards = np.array(
        [
            [table[np.dot(in_numpy.padded(tokens), [9, 3, 1])] for tokens in group]
            for table, group in zip(TABLES, drawn, strict=True)
        ]
    )
    advantages = rewards - (rewards.sum(1, keepdims=True) - rewards) / 3

    def objective(weights):
        log_probs = [
            [log_prob_of(weights, in_numpy, x, tokens) for tokens in group]
            for x, group in zip(X, drawn, strict=True)
        ]
        return (advantages * log_probs).mean()

    start = float64_weights(model)
    exact = differentiate(objective, start)
    before = weights_of(model)
    logs = tuned.train_on_batch(X, TABLES.astype("float32"), return_dict=True)
    pairs = zip(weights_of(model), before, strict=True)
    moved = np.concatenate([(a - b).ravel() for a, b in pairs])
    np.testing.assert_allclose(moved, exact, atol=1e-5)
    assert np.abs(exact).max() > 0.05
    assert float(logs["loss"]) == pytest.approx(-objective(start), abs=1e-5)
    assert float(logs["reward"]) == pytest.approx(rewards.mean(), abs=1e-5)


def nothing(y_true, y_pred):
    return 0.0 * ops.cast(y_pred[:, 0], "float32")


# Two references; one, and one that is absent; in ids with the end token 1.
REFERENCES = np.array([[[2, 2, 1], [2, 1, 0]], [[1, 0, 0], [0, 0, 0]]])


def mean_log_likelihood(weights, in_numpy, targets):
    """The mean over inputs and over their references, cut at the end token."""
    total = 0.0
    for x, references in zip(X, targets, strict=True):
        values = [log_prob_of(weights, in_numpy, x, tokens) for tokens in references]
        total += np.mean(values)
    return total / len(targets)


def test_maximum_likelihood_adds_the_gradient_of_the_likelihood():
    model = tiny_model()
    tuned = RewardTuning(model, reward=nothing, terms=[MaximumLikelihood(0.5)], seed=0)
    tuned.compile(keras.optimizers.SGD(1.0))
    in_numpy = InNumPy(model)
    targets = [[[2, 2, 1], [2, 1]], [[1]]]
    start = float64_weights(model)
    likelihood = lambda w: mean_log_likelihood(w, in_numpy, targets)  # noqa: E731
    exact = 0.5 * differentiate(likelihood, start)
    before = weights_of(model)
    logs = tuned.train_on_batch(X, REFERENCES, return_dict=True)
    pairs = zip(weights_of(model), before, strict=True)
    moved = np.concatenate([(a - b).ravel() for a, b in pairs])
    np.testing.assert_allclose(moved, exact, atol=1e-5)
    assert float(logs["mle_loss"]) == pytest.approx(-likelihood(start), abs=1e-5)
    assert float(logs["loss"]) == pytest.approx(-0.5 * likelihood(start), abs=1e-5)
    logs = tuned.evaluate(X, REFERENCES, verbose=0, return_dict=True)
    assert "mle_loss" not in logs


# The likelihood is that of the distribution that is sampled.
LIKELIHOODS = {
    "temperature": {"temperature": 0.6},
    "chunks": {"logits_chunk": 2, "temperature": 1.7},
    "slots": {"slot_mask": SLOTS},
    "slots of inputs": {"slot_mask": lambda x: np.stack([SLOTS] * 2)},
}


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_maximum_likelihood_weighs_inputs_under_the_distribution_that_is_sampled(name):
    arguments = dict(LIKELIHOODS[name])
    temperature = arguments.pop("temperature", 1.0)
    model = tiny_model()
    policy = AutoregressivePolicy(**arguments)
    terms = [MaximumLikelihood(0.5)]
    tuned = RewardTuning(model, nothing, policy, terms=terms, temperature=temperature)
    tuned.compile(keras.optimizers.SGD(1.0))
    allowed = SLOTS if "slot_mask" in arguments else None
    in_numpy = InNumPy(model, temperature, allowed)
    sequences, weights_of_inputs = [[2, 1], [0, 0, 2]], np.array([0.5, 3.0], "float32")

    def likelihood(weights):
        log_probs = [
            log_prob_of(weights, in_numpy, x, tokens)
            for x, tokens in zip(X, sequences, strict=True)
        ]
        return np.mean(weights_of_inputs * log_probs)

    start = float64_weights(model)
    exact = 0.5 * differentiate(likelihood, start)
    y = np.array([in_numpy.padded(tokens) for tokens in sequences])
    before = weights_of(model)
    logs = tuned.train_on_batch(X, y, sample_weight=weights_of_inputs, return_dict=True)
    pairs = zip(weights_of(model), before, strict=True)
    moved = np.concatenate([(a - b).ravel() for a, b in pairs])
    np.testing.assert_allclose(moved, exact, atol=1e-5)
    assert float(logs["mle_loss"]) == pytest.approx(-likelihood(start), abs=1e-5)


def test_one_reference_may_come_without_an_axis_of_its_own():
    policy = AutoregressivePolicy().bind(tiny_model())
    context = policy.encode(X)
    one = to_numpy(policy.target_log_prob(context, REFERENCES[:, 0]))
    same = to_numpy(policy.target_log_prob(context, REFERENCES[:, :1]))
    scored = to_numpy(policy.log_prob(context, REFERENCES[:, :1]))[:, 0]
    np.testing.assert_allclose(one, same)
    np.testing.assert_allclose(one, scored, atol=1e-6)


def test_targets_that_break_off_are_scored_without_an_end():
    """[2, 2] was not ended: only its two tokens count. Shorter arrays do."""
    model = tiny_model()
    policy = AutoregressivePolicy().bind(model)
    context = policy.encode(X)
    targets = np.array([[2, 2], [2, 0]])
    expected = [
        sum(InNumPy(model).token_log_probs(x, tokens))
        for x, tokens in zip(X, [[2, 2], [2]], strict=True)
    ]
    result = to_numpy(policy.target_log_prob(context, targets))
    np.testing.assert_allclose(result, expected, atol=1e-5)


def test_targets_that_cannot_be_written_are_left_out():
    """Forbidden by the slot mask, or outside the vocabulary."""
    model = tiny_model()
    policy = AutoregressivePolicy(slot_mask=SLOTS).bind(model)
    targets = np.array([[2, 2, 1], [7, 1, 0]])  # token 2 is forbidden at position 1
    result = to_numpy(policy.target_log_prob(policy.encode(X), targets))
    in_numpy = InNumPy(model, allowed=SLOTS)
    first = [in_numpy.log_softmax(X[0], tokens)[t] for tokens, t in
             (([], 2), ([2, 2], 1))]  # fmt: skip
    second = in_numpy.log_softmax(X[1], [0])[1]
    np.testing.assert_allclose(result, [sum(first), second], atol=1e-5)


@keras.saving.register_keras_serializable(package="keras_reward_tests")
class FirstToken(Term):
    """Minus the likelihood of token 2 in the first place, whatever the samples."""

    def choices(self, policy, samples):
        return [ops.full_like(samples, 2)]

    def loss(self, update):
        outputs = update.rollout.outputs
        assert tuple(update.y.shape)[1:] == (2, 3) and tuple(outputs.shape)[1:] == (3,)
        return -ops.mean(update.likelihood.choice_log_probs[0, ..., 0])


def test_a_term_of_ones_own_adds_its_gradient():
    """Log-probabilities of other tokens than the sampled ones, in the same pass."""
    model = tiny_model()
    tuned = RewardTuning(model, reward=nothing, terms=[FirstToken(0.25)], seed=0)
    tuned.compile(keras.optimizers.SGD(1.0))
    in_numpy = InNumPy(model)

    def likelihood(weights):
        return np.mean([log_prob_of(weights, in_numpy, x, [2]) for x in X])

    start = float64_weights(model)
    exact = 0.25 * differentiate(likelihood, start)
    before = weights_of(model)
    logs = tuned.train_on_batch(X, REFERENCES, return_dict=True)
    pairs = zip(weights_of(model), before, strict=True)
    moved = np.concatenate([(a - b).ravel() for a, b in pairs])
    np.testing.assert_allclose(moved, exact, atol=1e-5)
    assert float(logs["first_token"]) == pytest.approx(-likelihood(start), abs=1e-5)
    assert "first_token" not in tuned.evaluate(
        X, REFERENCES, verbose=0, return_dict=True
    )
    with keras.saving.custom_object_scope({"nothing": nothing}):
        restored = RewardTuning.from_config(tuned.get_config())
    assert isinstance(restored.terms[0], FirstToken)
    assert restored.terms[0].weight == 0.25


def test_maximum_likelihood_of_class_indices():
    """A factorised policy: cross-entropy, without what is not labelled."""
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(8), keras.layers.Reshape((2, 4))]
    )
    tuned = RewardTuning(model, reward=nothing, terms=[MaximumLikelihood(2.0)], seed=0)
    tuned.compile(keras.optimizers.SGD(0.0))
    y = np.array([[0, 3], [-1, 2]])
    logits = to_numpy(model(X)).astype("float64")
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = -(log_p[0, 0, 0] + log_p[0, 1, 3] + log_p[1, 1, 2]) / 2
    logs = tuned.train_on_batch(X, y, return_dict=True)
    assert float(logs["mle_loss"]) == pytest.approx(expected, abs=1e-5)
    assert float(logs["loss"]) == pytest.approx(2.0 * expected, abs=1e-5)


def dense():
    layers = [keras.layers.Dense(4), keras.layers.Reshape((1, 4))]
    return keras.Sequential([keras.Input((3,)), *layers])


class NoLikelihood(CategoricalPolicy):
    target_log_prob = Policy.target_log_prob


ERRORS = {
    "none": (tiny_model, None, "integer token ids.*NoneType"),
    "floats": (tiny_model, np.ones((2, 3), "float32"), "integer token ids.*float32"),
    "too long": (tiny_model, np.ones((2, 4), "int32"), "at most 3 tokens.*4"),
    "axes": (tiny_model, np.ones((2, 1, 1, 3), "int32"), r"shape \(2, 1, 1, 3\)"),
    "shape": (dense, np.ones((2, 3), "int32"), r"shape \(batch, 1\).*\(2, 3\)"),
    "float classes": (dense, np.ones((2, 1), "float32"), "class indices.*float32"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_message_for_targets_without_a_likelihood(case):
    make, y, message = ERRORS[case]
    tuned = RewardTuning(make(), reward=nothing, terms=[MaximumLikelihood(1.0)])
    tuned.compile("sgd", run_eagerly=True)
    with pytest.raises(ValueError, match=message):
        tuned.rollout_and_loss((X, y), lambda f, *args: f(*args))


# Token ids, and how many of them count: all but the padding at the end.
COUNTED = {
    1: [([2, 0, 1], 3), ([0, 0, 1], 3), ([2, 1, 0], 2), ([1, 0, 0], 1), ([2, 0, 2], 3),
        ([2, 2, 0], 2), ([0, 2, 0], 2), ([0, 0, 0], 0), ([0, 2], 2), ([2, 0], 1)],
    # Sequences that do not end have three tokens: shorter arrays alone are padded.
    None: [([2, 0, 1], 3), ([2, 0, 0], 3), ([0, 0, 0], 3), ([2, 0], 1), ([0, 2], 2)],
    # Where padding ends a sequence, the first one is its end.
    0: [([2, 0, 0], 2), ([0, 0, 0], 1), ([2, 1, 2], 3), ([2, 2], 2), ([2, 0], 2)],
}  # fmt: skip


@pytest.mark.parametrize("end_id", COUNTED)
def test_padding_counts_where_it_is_a_token(end_id):
    model = SequenceModel(vocabulary_size=3, end_id=end_id)
    policy, in_numpy = AutoregressivePolicy().bind(model), InNumPy(model)
    context = policy.encode(X[:1])
    for tokens, count in COUNTED[end_id]:
        expected = sum(in_numpy.token_log_probs(X[0], tokens[:count]))
        result = to_numpy(policy.target_log_prob(context, np.array([tokens])))
        np.testing.assert_allclose(result, [expected], atol=1e-5, err_msg=str(tokens))


@pytest.mark.parametrize("end_id", [1, None])
def test_negative_ids_at_the_end_of_references_are_padding(end_id):
    model = SequenceModel(vocabulary_size=3, end_id=end_id)
    policy, in_numpy = AutoregressivePolicy().bind(model), InNumPy(model)
    references = np.array([[[2, 1, -100], [2, -100, -100], [-100] * 3]])
    policy.check_targets(references)
    result = to_numpy(policy.target_log_prob(policy.encode(X[:1]), references))
    expected = [sum(in_numpy.token_log_probs(X[0], t)) for t in ([2, 1], [2])]
    np.testing.assert_allclose(result, [np.mean(expected)], atol=1e-5)
    with pytest.raises(ValueError, match=r"Negative ids.*at the end"):
        policy.check_targets(np.array([[-100, 2, 1]]))


@pytest.mark.parametrize(
    ("end_id", "sequences"),
    [(1, [[2], [], [2, 2, 2], [2, 2, 2, 2]]), (None, [[0, 2, 0], [2, 0, 0], [0] * 3])],
)
def test_what_counts_is_what_maximum_likelihood_was_taught(end_id, sequences):
    """By the weights that the preprocessor gives the same sequences."""
    preprocessor = CaptionPreprocessor(3, 3, end_id=end_id, truncate=True)
    _, y, weights = preprocessor(X[[0] * len(sequences)], sequences)
    model = SequenceModel(vocabulary_size=3, end_id=end_id)
    policy = AutoregressivePolicy().bind(model)
    context = policy.encode(X[[0] * len(sequences)])
    every = [InNumPy(model).token_log_probs(X[0], tokens) for tokens in y]
    result = to_numpy(policy.target_log_prob(context, y))
    np.testing.assert_allclose(result, (every * weights).sum(-1), atol=1e-5)


def test_a_sequence_as_reference_is_as_likely_as_it_is_as_a_sample():
    for end_id in (1, None):
        model = SequenceModel(vocabulary_size=3, end_id=end_id)
        policy = AutoregressivePolicy().bind(model)
        context = policy.encode(X)
        samples = to_numpy(policy.sample(context, 40, seed=0))
        # One that breaks off may end in what looks like padding.
        known = np.isin(samples[..., -1], [0, 1, 2] if end_id is None else [1, 2])
        known |= (samples == end_id).any(-1)
        scored = to_numpy(policy.log_prob(context, samples))
        for image in range(len(X)):
            several = samples[image][known[image]]
            again = policy.encode(np.repeat(X[image : image + 1], len(several), 0))
            target = to_numpy(policy.target_log_prob(again, several))
            expected = scored[image][known[image]]
            np.testing.assert_allclose(target, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [(-1, "Negative ids in `y`"), (4, "at least 0 and below 3.*y between 0 and 4")],
)
def test_fit_finds_target_ids_outside_the_vocabulary(wrong, message):
    tuned = RewardTuning(tiny_model(), reward=nothing, terms=[MaximumLikelihood(1.0)])
    tuned.compile("sgd")
    y = np.array([[2, 1, 0], [2, wrong, 0]])
    with pytest.raises(ValueError, match=message):
        tuned.fit(X, y, verbose=0)


def test_policy_without_a_likelihood_says_so():
    terms = [MaximumLikelihood(1.0)]
    with pytest.raises(ValueError, match="`target_log_prob"):
        RewardTuning(dense(), nothing, policy=NoLikelihood(), terms=terms)


@keras.saving.register_keras_serializable(package="keras_reward_tests")
class CountTwos(Reward):
    def call(self, y_true, y_pred):
        return ops.sum(ops.cast(y_pred == 2, "float32"), axis=-1)


def tuner(**arguments):
    tuned = RewardTuning(
        SequenceModel(), reward=CountTwos(), num_samples=4, seed=0, **arguments
    )
    tuned.compile(keras.optimizers.Adam(0.05))
    return tuned


def test_a_run_that_is_saved_and_continued_equals_the_uninterrupted_one(tmp_path):
    policy = {"logits_chunk": 2, "slot_mask": np.ones((3, 4), "bool")}
    arguments = {"temperature": 0.8}
    x, y = images(16), np.tile([2, 1, 0], (16, 1))

    def fit(tuned):
        tuned.fit(x, y, batch_size=8, shuffle=False, verbose=0)

    def start():
        terms = [MaximumLikelihood(0.1)]
        return tuner(policy=AutoregressivePolicy(**policy), terms=terms, **arguments)

    whole = start()
    fit(whole)
    fit(whole)
    first = start()
    fit(first)
    first.save(tmp_path / "tuned.keras")
    second = keras.models.load_model(tmp_path / "tuned.keras")
    assert second.terms[0].weight == 0.1
    fit(second)
    for a, b in zip(weights_of(second), weights_of(whole), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.chance
def test_tuning_raises_the_reward():
    tuned = tuner()
    x = images(64)
    before = tuned.evaluate(x, verbose=0, return_dict=True)["reward"]
    tuned.fit(x, epochs=25, verbose=0)
    assert tuned.evaluate(x, verbose=0, return_dict=True)["reward"] > before + 0.5
    assert tuned.predict(x, verbose=0).shape == (64, 3)


@pytest.mark.chance
def test_tuning_for_cider():
    """The reward of captions, on the samples as they are written."""
    references = np.tile([[[2, 3, 1]], [[3, 2, 1]]], (8, 1, 1))
    x = np.tile(images(2), (8, 1))
    reward = CIDErReward(end_id=1)
    reward.adapt(references)
    tuned = RewardTuning(SequenceModel(), reward, num_samples=8, seed=0)
    tuned.compile(keras.optimizers.Adam(0.05))
    history = tuned.fit(x, references, epochs=25, verbose=0).history["reward"]
    assert np.mean(history[-3:]) > np.mean(history[:3]) + 0.5
