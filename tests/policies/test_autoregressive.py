"""Sequences as policies, against enumeration and a NumPy model that has no cache."""

import keras
import numpy as np
import pytest
import scipy.stats
from chance import FALSE_ALARM
from keras import ops
from sequences import InNumPy, SequenceModel, cut, images
from tiny import compiled, to_numpy

from keras_reward import (
    CategoricalPolicy,
    Entropy,
    MaximumLikelihood,
    RewardTuning,
    policies,
)
from keras_reward.policies.autoregressive import AutoregressivePolicy

BATCH, SAMPLES = 3, 5
GENERATOR = np.random.default_rng(0)
NOISE = GENERATOR.random((BATCH, SAMPLES, 3)).astype("float32")
# Token 0 is forbidden everywhere, token 2 between others at position 1; position 2
# allows a single one.
SLOTS = np.array([[0, 1, 1, 1], [0, 1, 0, 1], [0, 0, 1, 0]], "bool")


def slots_of(x):
    """A mask for each input: inputs with a positive first feature may not end early."""
    positive = ops.convert_to_tensor(x)[:, :1, None] > 0
    end = ops.convert_to_tensor(np.arange(4) == 1)
    early = ops.convert_to_tensor(np.arange(3) < 2)[:, None]
    return ops.logical_not(ops.logical_and(positive, ops.logical_and(end, early)))


def masks_of(slot_mask, x):
    """One mask `(T, vocabulary)` for each input, or None for each."""
    if callable(slot_mask):
        return to_numpy(slot_mask(x))
    return [slot_mask] * len(x)


SETTINGS = {
    "plain": {},
    "sharp": {"temperature": 0.5},
    "chunks": {"logits_chunk": 2},
    "slots": {"slot_mask": SLOTS, "temperature": 1.5},
    "slots of inputs": {"slot_mask": slots_of, "logits_chunk": 1},
}


def make(temperature=1.0, model=None, **arguments):
    policy = AutoregressivePolicy(**arguments)
    return policy.bind(model or SequenceModel(), temperature)


def setting(name):
    """Policy, its model in NumPy, inputs, and the mask of each input."""
    arguments = SETTINGS[name]
    policy = make(**arguments)
    x = images(BATCH)
    in_numpy = InNumPy(policy.model, policy.temperature)
    return policy, in_numpy, x, masks_of(arguments.get("slot_mask"), x)


@pytest.mark.parametrize("name", SETTINGS)
def test_samples_of_given_numbers_are_those_of_numpy(name):
    policy, in_numpy, x, masks = setting(name)
    samples = to_numpy(policy.sample(policy.encode(x), SAMPLES, noise=NOISE))
    assert samples.dtype == "int32"
    for row, image in enumerate(x):
        in_numpy.allowed = masks[row]
        expected = [in_numpy.padded(in_numpy.sample(image, u)) for u in NOISE[row]]
        np.testing.assert_array_equal(samples[row], expected)


@pytest.mark.parametrize("name", SETTINGS)
def test_likelihoods_are_those_of_numpy(name):
    policy, in_numpy, x, masks = setting(name)
    context = policy.encode(x)
    samples = to_numpy(policy.sample(context, SAMPLES, noise=NOISE))
    by_token = np.zeros(samples.shape)
    entropies = np.zeros((BATCH, SAMPLES))
    for row, column in np.ndindex(BATCH, SAMPLES):
        tokens = cut(samples[row, column], end_id=1)
        known = x[row], tokens, masks[row]
        by_token[row, column, : len(tokens)] = in_numpy.token_log_probs(*known)
        entropies[row, column] = in_numpy.entropy(*known)
    result = policy.likelihood(context, samples)
    for value, expected in (
        (result.position_log_probs, by_token),
        (result.log_prob, by_token.sum(-1)),
        (policy.log_prob(context, samples), by_token.sum(-1)),
        (result.entropy, entropies.mean(1)),
    ):
        np.testing.assert_allclose(to_numpy(value), expected, atol=1e-5)
    counted = to_numpy(policy.mask(context, samples))
    np.testing.assert_array_equal(to_numpy(result.counted), counted)
    assert tuple(result.choice_log_probs.shape) == (0, *samples.shape)


@pytest.mark.parametrize("name", SETTINGS)
def test_probabilities_of_all_sequences_sum_to_one(name):
    policy, in_numpy, x, _ = setting(name)
    every = np.array([in_numpy.padded(tokens) for tokens in in_numpy.sequences()])
    log_probs = policy.log_prob(policy.encode(x), np.tile(every, (BATCH, 1, 1)))
    np.testing.assert_allclose(np.exp(to_numpy(log_probs)).sum(1), 1.0, rtol=1e-5)


@pytest.mark.parametrize("name", SETTINGS)
def test_greedy_output_is_that_of_numpy(name):
    policy, in_numpy, x, masks = setting(name)
    mode = to_numpy(policy.mode(policy.encode(x)))
    for row, image in enumerate(x):
        in_numpy.allowed = masks[row]
        expected = in_numpy.padded(in_numpy.greedy(image))
        np.testing.assert_array_equal(mode[row], expected)


def eager_loop(condition, body, loop_vars):
    """In place of `ops.while_loop`: a loop whose steps have values to look at."""
    while condition(*loop_vars):
        loop_vars = body(*loop_vars)
    return loop_vars


class Recording(AutoregressivePolicy):
    """Adds up, while it samples, the log-probability of what it draws."""

    def sample(self, context, num_samples, seed=None, noise=None):
        self.steps = []
        return super().sample(context, num_samples, seed, noise)

    def token_logits(self, hidden, allowed=None):
        logits = super().token_logits(hidden, allowed)
        if len(logits.shape) == 3:  # one position, in the sampling loop
            self.steps.append(to_numpy(logits).astype("float64"))
        return logits

    def drawn_log_prob(self, samples):
        total = np.zeros(samples.shape)
        for t, logits in enumerate(self.steps):
            log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
            picked = np.take_along_axis(log_p, samples[..., t : t + 1], -1)
            total[..., t] = picked[..., 0]
        return np.where(to_numpy(self.mask(None, samples)), total, 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_cached_sampling_and_the_likelihood_agree_token_by_token(name, monkeypatch):
    """The ratio of the two probabilities is 1."""
    monkeypatch.setattr("keras.ops.while_loop", eager_loop)
    arguments = dict(SETTINGS[name])
    temperature = arguments.pop("temperature", 1.0)
    policy = Recording(**arguments).bind(SequenceModel(), temperature)
    context = policy.encode(images(BATCH))
    samples = to_numpy(policy.sample(context, SAMPLES, noise=NOISE))
    likelihood = to_numpy(policy.likelihood(context, samples).position_log_probs)
    drawn = policy.drawn_log_prob(samples)
    np.testing.assert_allclose(likelihood, drawn, atol=1e-5)
    np.testing.assert_allclose(np.exp((likelihood - drawn).sum(-1)), 1.0, atol=1e-5)


@pytest.mark.chance
@pytest.mark.parametrize("name", ["plain", "slots"])
def test_sequences_are_drawn_as_often_as_their_probability_says(name):
    policy, in_numpy, x, masks = setting(name)
    draws = 20_000
    samples = to_numpy(policy.sample(policy.encode(x[:1]), draws, seed=3))[0]
    in_numpy.allowed = masks[0]
    drawn, counts = np.unique(samples, axis=0, return_counts=True)
    counts = {tuple(s): c for s, c in zip(drawn, counts, strict=True)}
    squares, possible = 0.0, 0
    for tokens in in_numpy.sequences():
        with np.errstate(divide="ignore"):
            p = np.exp(sum(in_numpy.token_log_probs(x[0], tokens)))
        count = counts.pop(tuple(in_numpy.padded(tokens)), 0)
        if p == 0:
            assert count == 0
            continue
        possible += 1
        squares += (count - draws * p) ** 2 / (draws * p)
    assert not counts  # nothing else was drawn
    assert squares < scipy.stats.chi2.isf(FALSE_ALARM, possible - 1)


def test_forbidden_tokens_are_not_drawn_by_any_number():
    """Numbers at, below and above every boundary of the distribution."""
    in_numpy = InNumPy(SequenceModel(), allowed=SLOTS)
    x = images(1)
    boundaries = np.exp(in_numpy.log_softmax(x[0], [])).cumsum().astype("float32")
    near = [np.nextafter(boundaries, side, dtype="float32") for side in (0, 1)]
    numbers = np.concatenate([[0.0, 1 - 2**-24], boundaries, *near])
    numbers = np.minimum(numbers, 1 - 2**-24).astype("float32")
    noise = np.stack(np.meshgrid(*[numbers] * 3), -1).reshape(1, -1, 3)
    policy = make(slot_mask=SLOTS)
    samples = to_numpy(policy.sample(policy.encode(x), noise.shape[1], noise=noise))
    mask = to_numpy(policy.mask(None, samples))
    for t in range(3):
        drawn = samples[0, :, t][mask[0, :, t]]
        assert SLOTS[t, drawn].all()


class GivenNoise(AutoregressivePolicy):
    """Samples from the same numbers always: XLA has others for the same seed."""

    def sample(self, context, num_samples, seed=None, noise=None):
        noise = np.random.default_rng(5).random((4, num_samples, 5)).astype("float32")
        return super().sample(context, num_samples, noise=noise)


def gradient_of_tuning(logits_chunk, x, entropy_weight, **arguments):
    """How one step of SGD moves the weights, and what it logs."""
    model = SequenceModel(vocabulary_size=4, max_length=5)
    policy = GivenNoise(logits_chunk=logits_chunk)
    tuned = RewardTuning(
        model,
        reward=lambda y_true, y_pred: ops.cast(ops.sum(y_pred == 2, -1), "float32"),
        policy=policy,
        num_samples=4,
        seed=0,
        terms=[Entropy(entropy_weight)],
    )
    tuned.compile(keras.optimizers.SGD(1.0), **arguments)
    before = model.get_weights()
    logs = tuned.train_on_batch(x, return_dict=True)
    moved = [a - b for a, b in zip(model.get_weights(), before, strict=True)]
    return moved, {name: float(value) for name, value in logs.items()}


@pytest.mark.slow
@pytest.mark.parametrize("entropy_weight", [0.0, 0.5])
def test_logits_in_chunks_have_the_same_gradient(entropy_weight):
    x = images(4)
    moved, logs = gradient_of_tuning(None, x, entropy_weight)
    assert max(np.abs(m).max() for m in moved) > 0.01
    for chunk in (1, 2, 5):
        chunked, chunked_logs = gradient_of_tuning(chunk, x, entropy_weight)
        for a, b in zip(chunked, moved, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)
        assert chunked_logs == pytest.approx(logs, abs=1e-5)


@pytest.mark.slow
def test_compiled_step_equals_the_eager_one():
    x = images(4)
    eager, eager_logs = gradient_of_tuning(2, x, 0.1, run_eagerly=True)
    modes = [{"jit_compile": True}, {"jit_compile": False}]
    for mode in modes[: 1 if keras.config.backend() == "torch" else 2]:
        if keras.config.backend() == "torch":
            mode = {}
        moved, logs = gradient_of_tuning(2, x, 0.1, **mode)
        for a, b in zip(moved, eager, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)
        assert logs == pytest.approx(eager_logs, abs=1e-5)


def test_compiled_sampling_equals_the_eager_one():
    policy = make(slot_mask=slots_of)
    x = images(BATCH)

    def draw(x, noise):
        context = policy.encode(x)
        samples = policy.sample(context, SAMPLES, noise=noise)
        return samples, policy.mode(context), policy.likelihood(context, samples)

    for xla in (False, True):
        results = compiled(draw, xla=xla)(ops.convert_to_tensor(x), NOISE)
        for a, b in zip(
            keras.tree.flatten(results), keras.tree.flatten(draw(x, NOISE)), strict=True
        ):
            np.testing.assert_allclose(to_numpy(a), to_numpy(b), atol=1e-5)


@pytest.mark.slow
def test_rows_do_not_depend_on_their_batch_mates():
    policy = make()
    x = images(BATCH)
    context = policy.encode(x)
    samples = to_numpy(policy.sample(context, SAMPLES, noise=NOISE))
    log_probs, entropy = map(to_numpy, policy.likelihood(context, samples)[:2])
    lengths = to_numpy(policy.mask(None, samples)).sum(-1)
    assert len(np.unique(lengths)) > 1  # some end before others
    for row in range(BATCH):
        alone = policy.encode(x[row : row + 1])
        drawn = policy.sample(alone, SAMPLES, noise=NOISE[row : row + 1])
        np.testing.assert_array_equal(to_numpy(drawn)[0], samples[row])
        own, spread = map(to_numpy, policy.likelihood(alone, drawn)[:2])
        np.testing.assert_allclose(own[0], log_probs[row], atol=1e-5)
        np.testing.assert_allclose(spread[0], entropy[row], atol=1e-5)
        for column in range(SAMPLES):
            noise = NOISE[row : row + 1, column : column + 1]
            drawn = to_numpy(policy.sample(alone, 1, noise=noise))
            np.testing.assert_array_equal(drawn[0, 0], samples[row, column])


@pytest.mark.slow
def test_padding_after_the_end_changes_nothing():
    """The same sequences in a longer array, whose model has more positions."""
    short, long = SequenceModel(max_length=3), SequenceModel(max_length=6)
    weights = short.get_weights()
    tail = np.ones((3, weights[1].shape[1]))
    longer = [np.concatenate([weights[1], tail]) if i == 1 else w
              for i, w in enumerate(weights)]  # fmt: skip
    long.set_weights(longer)
    x = images(1)
    samples = np.array([[[2, 3, 1], [1, 0, 0], [3, 1, 0]]])
    padded = np.pad(samples, ((0, 0), (0, 0), (0, 3)))
    results = [
        policy.likelihood(policy.encode(x), ids)[:2]
        for policy, ids in ((make(model=short), samples), (make(model=long), padded))
    ]
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(to_numpy(a), to_numpy(b), atol=1e-5)


@pytest.mark.parametrize("end_id", [None, 1])
def test_a_sequence_that_never_ends_has_all_its_tokens(end_id):
    never = np.ones((3, 4), "bool")
    never[:, 1] = False
    slot_mask = None if end_id is None else never
    policy = make(model=SequenceModel(end_id=end_id), slot_mask=slot_mask)
    context = policy.encode(images(1))
    samples = policy.sample(context, 20, seed=0)
    assert to_numpy(policy.mask(None, samples)).all()
    likelihood = policy.likelihood(context, samples)
    assert (to_numpy(likelihood.position_log_probs) < 0).all()


@pytest.mark.slow
def test_a_sequence_that_ends_at_once_is_its_end_token():
    at_once = np.ones((3, 4), "bool")
    at_once[0] = np.arange(4) == 1
    policy = make(slot_mask=at_once)
    context = policy.encode(images(2))
    samples = policy.sample(context, 2, seed=0)
    np.testing.assert_array_equal(to_numpy(samples), np.tile([1, 0, 0], (2, 2, 1)))
    np.testing.assert_array_equal(
        to_numpy(policy.mask(None, samples)), np.tile([True, False, False], (2, 2, 1))
    )
    log_probs, entropy = policy.likelihood(context, samples)[:2]
    np.testing.assert_allclose(to_numpy(log_probs), 0.0)  # there was no choice
    np.testing.assert_allclose(to_numpy(entropy), 0.0, atol=1e-6)
    np.testing.assert_array_equal(to_numpy(policy.mode(context))[0], [1, 0, 0])


@pytest.mark.slow
@pytest.mark.parametrize("end_id", [None, 0])
def test_a_vocabulary_of_one(end_id):
    model = SequenceModel(vocabulary_size=1, end_id=end_id)
    policy = make(model=model)
    context = policy.encode(images(2))
    samples = policy.sample(context, 4, seed=0)
    np.testing.assert_array_equal(to_numpy(samples), np.zeros((2, 4, 3)))
    for value in policy.likelihood(context, samples)[:3]:
        np.testing.assert_allclose(to_numpy(value), 0.0, atol=1e-6)
    length = 3 if end_id is None else 1  # the padding is the end token here
    assert (to_numpy(policy.mask(None, samples)).sum(-1) == length).all()


@pytest.mark.chance
def test_end_and_padding_may_be_the_same_token():
    policy = make(model=SequenceModel(end_id=0))
    context = policy.encode(images(2))
    samples = to_numpy(policy.sample(context, 50, seed=0))
    mask = to_numpy(policy.mask(None, samples))
    lengths = [len(cut(tokens, 0)) for tokens in samples.reshape(-1, 3)]
    np.testing.assert_array_equal(mask.sum(-1).ravel(), lengths)
    assert len(set(lengths)) > 1


@pytest.mark.slow
def test_sampling_stops_when_every_row_has_ended(monkeypatch):
    positions = []
    model = SequenceModel(max_length=8)
    step = model.next_hidden

    def counted(context, cache, token_ids, position):
        positions.append(int(position))
        return step(context, cache, token_ids, position)

    monkeypatch.setattr("keras.ops.while_loop", eager_loop)
    model.next_hidden = counted
    allowed = np.ones((8, 4), "bool")
    allowed[3] = np.arange(4) == 1  # the fourth token is the end token
    policy = make(model=model, slot_mask=allowed)
    samples = policy.sample(policy.encode(images(2)), 2, seed=0)
    longest = to_numpy(policy.mask(None, samples)).sum(-1).max()
    assert longest == 4
    assert positions == [0, 1, 2, 3]


def test_context_is_held_once_per_image():
    policy = make(slot_mask=slots_of)
    context = policy.encode(images(BATCH))
    assert {leaf.shape[0] for leaf in keras.tree.flatten(context)} == {BATCH}


@pytest.mark.slow
def test_one_encoder_pass_a_step():
    model = SequenceModel()
    tuned = RewardTuning(
        model,
        reward=lambda y_true, y_pred: ops.cast(y_pred[:, 0], "float32"),
        num_samples=4,
        baseline="greedy",
        terms=[MaximumLikelihood(0.1)],
    )
    tuned.compile("sgd", run_eagerly=True)
    for calls in (2, 3):  # the first time, the two ways to read a sequence are compared
        tuned.train_on_batch(images(2), np.array([[2, 3, 1], [2, 1, 0]]))
        assert model.encoder_calls == calls


def test_inputs_may_be_a_dict():
    policy = make()
    x = images(2)
    contexts = [policy.encode(x), policy.encode({"images": x, "name": x})]
    for a, b in zip(*map(keras.tree.flatten, contexts), strict=True):
        np.testing.assert_array_equal(to_numpy(a), to_numpy(b))


def test_auto_finds_sequence_models():
    model = SequenceModel()
    policy = policies.get("auto", model, temperature=0.5)
    assert type(policy) is AutoregressivePolicy
    assert policy.model is model
    assert policy.temperature == 0.5
    dense = keras.Sequential([keras.Input((3,)), keras.layers.Dense(5)])
    assert type(policies.get("auto", dense)) is CategoricalPolicy


@keras.saving.register_keras_serializable(package="keras_reward_tests")
def everything(x):
    return np.ones((len(x), 3, 4), "bool")


@pytest.mark.parametrize("slot_mask", [None, SLOTS, everything])
def test_policy_survives_serialisation(slot_mask):
    policy = AutoregressivePolicy(logits_chunk=2, slot_mask=slot_mask)
    config = keras.saving.serialize_keras_object(policy)
    copy = keras.saving.deserialize_keras_object(config)
    assert keras.saving.serialize_keras_object(copy) == config
    assert copy.logits_chunk == 2
    if slot_mask is SLOTS:
        np.testing.assert_array_equal(copy.slot_mask, SLOTS)
    else:
        assert copy.slot_mask is slot_mask


NO_TOKEN = np.array([[1, 1, 1, 1], [0, 0, 0, 0], [1, 1, 1, 1]], "bool")


def nothing_at_1(x):
    """A tensor, for each input but the first, that allows nothing at a position."""
    later = ops.cumsum(ops.ones_like(x[:, 0]))[:, None, None] > 1
    allowed = ops.ones((1, 3, 4), "bool")
    none = ops.convert_to_tensor(NO_TOKEN)[None]
    return ops.where(later, none, allowed)


def tuned_with(slot_mask):
    tuned = RewardTuning(
        SequenceModel(),
        reward=lambda y_true, y_pred: ops.cast(y_pred[:, 0], "float32"),
        policy=AutoregressivePolicy(slot_mask=slot_mask),
    )
    tuned.compile("sgd")
    return tuned


ERRORS = {
    "no sequence model": (
        lambda: AutoregressivePolicy().bind(
            keras.Sequential([keras.Input((3,)), keras.layers.Dense(5)])
        ),
        "without encode, hidden_states, logits.*vocabulary_size.*pad_id",
    ),
    "logits_chunk": (lambda: make(logits_chunk=0), "positive int.*logits_chunk=0"),
    "shape": (
        lambda: make(slot_mask=np.ones((4, 3))),
        r"shape \(3, 4\)\. Received: shape \(4, 3\)",
    ),
    "shape of a function's": (
        lambda: make(slot_mask=lambda x: np.ones((3, 4))).encode(images(2)),
        r"shape \(batch, 3, 4\)\. Received: shape \(3, 4\)",
    ),
    "position without tokens": (
        lambda: make(slot_mask=NO_TOKEN),
        "at least one token.*none at position 1",
    ),
    "position without tokens, of a function's tensor": (
        lambda: make(slot_mask=nothing_at_1).encode(images(2)),
        "at least one token.*none at position 1",
    ),
    "position without tokens, before a loop": (
        lambda: tuned_with(nothing_at_1).fit(images(2), verbose=0),
        "at least one token.*none at position 1",
    ),
    "position without tokens, predict": (
        lambda: tuned_with(nothing_at_1).predict(ops.convert_to_tensor(images(2))),
        "at least one token.*none at position 1",
    ),
    "top_k": (lambda: make(top_k=5), "whole distribution"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_message(case):
    cause, message = ERRORS[case]
    with pytest.raises(ValueError, match=message):
        cause()


class Pairs:
    """A codec with masks of its own, which looks at probabilities."""

    slot_mask, position_mask = SLOTS, np.array([True, False, True])
    uses_token_probs = True

    def decode(self, inputs, samples, token_probs=None):
        if token_probs is None:
            return samples
        return {"tokens": samples, "token_probs": token_probs}


@pytest.mark.slow
def test_positions_that_do_not_count_are_left_out():
    """Of log-probability, entropy and likelihood; they are sampled as ever."""
    plain, masked = (make(slot_mask=SLOTS, position_mask=m) for m in (None, [1, 0, 1]))
    x = images(BATCH)
    context = plain.encode(x)
    samples = plain.sample(context, SAMPLES, noise=NOISE)
    by_codec = make(model=plain.model, codec=Pairs())
    for policy in (masked, by_codec):
        same = policy.sample(context, SAMPLES, noise=NOISE)
        np.testing.assert_array_equal(to_numpy(same), to_numpy(samples))
        by_token = to_numpy(plain.likelihood(context, samples).position_log_probs)
        log_probs = to_numpy(policy.log_prob(context, samples))
        np.testing.assert_allclose(log_probs, by_token[..., [0, 2]].sum(-1), atol=1e-5)
    # Position 2 allows one token, so its entropy is 0: the mean is half of the first.
    never_ending = np.full((BATCH, 1, 3), 3)
    alone = make(slot_mask=SLOTS, position_mask=[1, 0, 0])
    first, both = (
        to_numpy(policy.likelihood(context, never_ending).entropy)
        for policy in (alone, masked)
    )
    np.testing.assert_allclose(both, first / 2, atol=1e-6)
    targets = np.full((BATCH, 3), 3)
    targets[:, 2] = 2
    by_token = plain.likelihood(context, targets[:, None]).position_log_probs
    by_token = to_numpy(by_token)[:, 0]
    likelihood = to_numpy(masked.target_log_prob(context, targets))
    np.testing.assert_allclose(likelihood, by_token[:, [0, 2]].sum(-1), atol=1e-5)


def test_predictions_come_with_probabilities_where_the_codec_uses_them():
    tuned = RewardTuning(
        SequenceModel(),
        reward=lambda y, z: ops.cast(z[:, 0], "float32"),
        policy=AutoregressivePolicy(codec=Pairs()),
    )
    x = images(BATCH)
    outputs = keras.tree.map_structure(to_numpy, tuned(x))
    context = tuned.policy.encode(x)
    greedy = to_numpy(tuned.policy.mode(context))
    np.testing.assert_array_equal(outputs["tokens"], greedy)
    in_numpy = InNumPy(tuned.model, allowed=SLOTS)
    for image, tokens, probs in zip(x, greedy, outputs["token_probs"], strict=True):
        tokens = cut(tokens, end_id=1)
        expected = np.exp(in_numpy.token_log_probs(image, tokens))
        np.testing.assert_allclose(probs[: len(tokens)], expected, rtol=1e-4)


@pytest.mark.parametrize("mask", [[True, True], [False, False, False]])
def test_a_position_mask_must_fit(mask):
    with pytest.raises(ValueError, match=r"shape \(3,\), with at least one"):
        make(position_mask=mask)
