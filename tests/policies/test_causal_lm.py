"""KerasHub's language models as policies: small ones with random weights.

The checks run in the process that may import KerasHub (`hub` in conftest.py). Cached
sampling and the teacher-forced pass are compared with each other, with the task's own
call and with its own `generate`.
"""

import functools
import types

import keras
import numpy as np
import pytest
from keras import ops
from tiny import classifier, compiled, to_numpy, weights_of

from keras_reward import MaximumLikelihood, RewardTuning
from keras_reward.policies.causal_lm import CausalLMPolicy, end_tokens_of
from keras_reward.policies.keras_hub_tasks import TextTask, is_language_model

pytestmark = [pytest.mark.hub, pytest.mark.slow]

NAMES = ["gpt2", "pali_gemma", "gemma3", "bart"]
SAMPLES = 4


class Setting:
    """A model, its policy, inputs and what the policy makes of them."""

    def __init__(self, name):
        import hub_models

        self.model = hub_models.MODELS[name]()
        self.policy = CausalLMPolicy(end_token_ids=[hub_models.END]).bind(
            self.model, temperature=1.3
        )
        self.end, self.pad = hub_models.END, hub_models.PAD
        self.x = hub_models.prompts(name)
        self.ids, self.mask = self.policy.task.keys
        self.length = self.x[self.ids].shape[1]
        shape = (len(self.x[self.ids]), SAMPLES, self.length)
        self.noise = np.random.default_rng(3).random(shape, "float32")
        self.run = compiled(self.sample_and_more)
        self.results = self.numpy(self.x, self.noise)

    def sample_and_more(self, x, noise):
        policy = self.policy
        context = policy.encode(x)
        samples = policy.sample(context, SAMPLES, noise=noise)
        likelihood = policy.likelihood(context, samples)
        return {
            "samples": samples,
            "logits": policy.token_logits(*policy.states(context, samples)),
            "mask": policy.mask(context, samples),
            "position_log_probs": likelihood.position_log_probs,
            "mode": policy.mode(context),
            "context": context,
            "cache": policy.task.prefill(context),
        }

    def numpy(self, x, noise):
        x = keras.tree.map_structure(ops.convert_to_tensor, x)
        results = self.run(x, ops.convert_to_tensor(noise))
        return keras.tree.map_structure(to_numpy, results)

    def rows(self):
        """For each row its input's index, prompt length and generated tokens."""
        lengths = self.x[self.mask].sum(-1)
        for i, group in enumerate(self.results["samples"]):
            for n, row in enumerate(group):
                yield i, n, lengths[i], row[self.results["mask"][i, n]]

    def sequences(self):
        """Prompts with the samples behind them, `(rows, L)`."""
        token_ids = np.repeat(self.x[self.ids], SAMPLES, 0)
        for r, (_, _, length, answer) in enumerate(self.rows()):
            token_ids[r, length : length + len(answer)] = answer
        return token_ids


setting = functools.cache(Setting)


def log_softmax(logits, temperature=1.3):
    logits = to_numpy(logits).astype("float64") / temperature
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def check_samples_end_once_and_are_padded(name):
    s = setting(name)
    samples, mask = s.results["samples"], s.results["mask"]
    assert samples.shape == (3, SAMPLES, s.length - 1)
    ended = []
    for i, n, length, _ in s.rows():
        room = s.length - length
        row = list(samples[i, n])
        end = row.index(s.end) + 1 if s.end in row[:room] else room
        assert list(mask[i, n]) == [t < end for t in range(s.length - 1)]
        assert row[end:] == [s.pad] * (s.length - 1 - end)
        ended.append(s.end in row)
    assert any(ended) and not all(ended)


def check_tokens_are_drawn_from_what_is_scored(name):
    """Each token is the one that its uniform number selects among the scored
    probabilities: the ratio of sampled and scored probability is 1."""
    s = setting(name)
    tokens = 0
    for i, n, length, answer in s.rows():
        for t, token in enumerate(answer):
            probability = np.exp(log_softmax(s.results["logits"][i, n, t], 1.0))
            upper = probability[: token + 1].sum()
            uniform = s.noise[i, n, length + t]
            assert upper - probability[token] - 1e-5 <= uniform <= upper + 1e-5
            tokens += 1
    assert tokens > 30


def check_cache_and_forced_pass_agree(name):
    s = setting(name)
    task = s.policy.task
    rows, cache = keras.tree.map_structure(
        lambda array: ops.convert_to_tensor(np.repeat(array, SAMPLES, axis=0)),
        (s.results["context"], s.results["cache"]),
    )
    step = compiled(functools.partial(task.step, rows))
    token_ids = s.sequences()
    log_probs = np.zeros((*token_ids.shape, s.results["logits"].shape[-1]))
    for position in range(1, token_ids.shape[1]):
        logits, cache = step(
            cache,
            ops.convert_to_tensor(token_ids[:, position - 1 : position]),
            ops.convert_to_tensor(position - 1, "int32"),
        )
        log_probs[:, position] = log_softmax(logits)
    assert_token_log_probs(s, token_ids, log_probs)


def check_forced_pass_is_the_tasks_own_call(name):
    """Also shows that the generated part alone is scored, and from whole sequences."""
    s = setting(name)
    token_ids = s.sequences()
    inputs = {key: np.repeat(value, SAMPLES, 0) for key, value in s.x.items()}
    written = inputs[s.mask].copy()
    for r, (_, _, length, answer) in enumerate(s.rows()):
        written[r, length : length + len(answer)] = True
    if name == "pali_gemma":
        inputs["response_mask"] = written & ~inputs[s.mask]
    inputs.update({s.ids: token_ids, s.mask: written})
    log_probs = log_softmax(s.model.predict(inputs, verbose=0))
    log_probs = np.concatenate([0 * log_probs[:, :1], log_probs[:, :-1]], axis=1)
    assert_token_log_probs(s, token_ids, log_probs)


def assert_token_log_probs(s, token_ids, log_probs):
    """`log_probs` `(rows, L, vocabulary)`: of the token at each position."""
    expected = np.zeros((*s.results["samples"].shape,))
    for r, (i, n, length, answer) in enumerate(s.rows()):
        for t, token in enumerate(answer):
            expected[i, n, t] = log_probs[r, length + t, token]
    np.testing.assert_allclose(s.results["position_log_probs"], expected, atol=1e-5)
    # The distributions are far from uniform.
    assert expected.min() < -3.0


def check_greedy_is_the_tasks_own(name):
    """Prompt by prompt: in one batch, KerasHub's PaliGemma overwrites what it knows
    of the longer prompts."""
    s = setting(name)
    for i, greedy in enumerate(s.results["mode"]):
        x = {key: value[i : i + 1] for key, value in s.x.items()}
        result = s.model.generate(x, stop_token_ids=(s.end,))
        token_ids, mask = (to_numpy(result[key])[0] for key in (s.ids, s.mask))
        answer = token_ids[x[s.mask].sum() :][mask[x[s.mask].sum() :]]
        padded = np.full(s.length - 1, s.pad)
        padded[: len(answer)] = answer
        np.testing.assert_array_equal(greedy, padded)


def check_rows_do_not_depend_on_their_batch(name):
    import hub_models

    s = setting(name)
    other = hub_models.prompts(name, lengths=(4, 3, 2), seed=7)
    x = {key: value.copy() for key, value in other.items()}
    for key, value in x.items():
        value[1] = s.x[key][1]
    noise = np.random.default_rng(8).random(s.noise.shape, "float32")
    noise[1] = s.noise[1]
    results = s.numpy(x, noise)
    assert (results["samples"][0] != s.results["samples"][0]).any()
    np.testing.assert_array_equal(results["samples"][1], s.results["samples"][1])
    np.testing.assert_array_equal(results["mode"][1], s.results["mode"][1])
    np.testing.assert_allclose(
        results["position_log_probs"][1], s.results["position_log_probs"][1], atol=1e-5
    )


def value_and_gradients(function, variables):
    """On any backend: a function of arrays, the variables' values, that returns the
    scalar `function()` and its gradients, as NumPy."""
    if keras.config.backend() == "jax":
        import jax

        def stateless(values):
            with keras.StatelessScope(zip(variables, values, strict=True)):
                return function()

        return jax.jit(jax.value_and_grad(stateless))

    def differentiate(values):
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
        tensors = [variable.value for variable in variables]
        if keras.config.backend() == "tensorflow":
            import tensorflow as tf

            with tf.GradientTape() as tape:
                value = function()
            return value, tape.gradient(value, tensors)
        import torch

        value = function()
        return value, torch.autograd.grad(value, tensors)

    return differentiate


def check_gradient_is_that_of_finite_differences(name):
    s = setting(name)
    variables = s.model.trainable_variables
    x, samples = keras.tree.map_structure(
        ops.convert_to_tensor, (s.x, s.results["samples"])
    )
    generator = np.random.default_rng(4)
    start = [ops.convert_to_numpy(variable) for variable in variables]
    directions = [generator.normal(size=value.shape) for value in start]
    run = value_and_gradients(
        lambda: ops.sum(s.policy.log_prob(s.policy.encode(x), samples)), variables
    )

    def along(step):
        moved = zip(start, directions, strict=True)
        value, gradients = run([(v + step * d).astype("float32") for v, d in moved])
        return float(to_numpy(value)), [
            to_numpy(ops.convert_to_tensor(gradient)) for gradient in gradients
        ]

    measured = (along(1e-3)[0] - along(-1e-3)[0]) / 2e-3
    _, gradients = along(0.0)
    slope = sum((d * g).sum() for d, g in zip(directions, gradients, strict=True))
    assert abs(slope) > 1.0
    np.testing.assert_allclose(slope, measured, rtol=0.03)
    # Every part of the model has a gradient, what encodes images and texts included.
    assert all(np.abs(gradient).max() > 0.0 for gradient in gradients)


CHECKS = [
    check_samples_end_once_and_are_padded,
    check_tokens_are_drawn_from_what_is_scored,
    check_cache_and_forced_pass_agree,
    check_forced_pass_is_the_tasks_own_call,
    check_greedy_is_the_tasks_own,
    check_rows_do_not_depend_on_their_batch,
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
@pytest.mark.parametrize("name", NAMES)
def test_policy(hub, name, check):
    hub(check, name)


def check_likelihood_of_whole_samples():
    """Also in chunks of four positions."""
    s = setting("gpt2")
    samples, mask = s.results["samples"], s.results["mask"]
    chunked = CausalLMPolicy(end_token_ids=[s.end], logits_chunk=4).bind(s.model, 1.3)

    def likelihoods(x):
        context = s.policy.encode(x)
        return (
            *s.policy.likelihood(context, samples)[:2],
            s.policy.log_prob(context, samples),
            *chunked.likelihood(context, samples)[:2],
        )

    x = keras.tree.map_structure(ops.convert_to_tensor, s.x)
    results = map(to_numpy, compiled(likelihoods)(x))
    log_probs, entropy, alone, log_probs_of_chunks, of_chunks = results
    np.testing.assert_allclose(log_probs_of_chunks, log_probs, atol=1e-5)
    np.testing.assert_allclose(of_chunks, entropy, atol=1e-5)
    total = (s.results["position_log_probs"] * mask).sum(-1)
    np.testing.assert_allclose(log_probs, total, atol=1e-5)
    np.testing.assert_allclose(alone, total, atol=1e-5)
    log_p = log_softmax(s.results["logits"], 1.0)
    entropies = -(np.exp(log_p) * log_p).sum(-1) * mask
    expected = (entropies.sum(-1) / mask.sum(-1)).mean(-1)
    np.testing.assert_allclose(entropy, expected, atol=1e-5)


def check_likelihood_of_references():
    """Answers as references: padding and what stands behind the end do not count."""
    import hub_models

    s = setting("gpt2")
    samples, mask = s.results["samples"], s.results["mask"]
    references = samples.copy()
    references[0, 0] = hub_models.PAD  # absent
    counts = mask.copy()
    for place in np.ndindex(references.shape[:2]):
        row = list(references[place])
        while row and row[-1] == hub_models.PAD:
            row.pop()
        counts[place][len(row) :] = False
    # Within a sequence the id of padding is a token like others.
    assert (counts & (references == hub_models.PAD)).any()
    each = (s.results["position_log_probs"] * counts).sum(-1)
    expected = [each[0, 1:].mean(), *each[1:].mean(-1)]

    def score(x, references):
        context = s.policy.encode(x)
        several = s.policy.target_log_prob(context, references)
        return several, s.policy.target_log_prob(context, references[:, -1])

    x = keras.tree.map_structure(ops.convert_to_tensor, s.x)
    run = compiled(score)
    several, single = run(x, ops.convert_to_tensor(references))
    np.testing.assert_allclose(to_numpy(several), expected, atol=1e-5)
    np.testing.assert_allclose(to_numpy(single), each[:, -1], atol=1e-5)
    # An id that nobody checked is left out, and does not spoil the others.
    outside = np.zeros_like(references)
    outside[:, -1] = references[:, -1]
    outside[:, -1, 0] = hub_models.VOCABULARY
    several, single = map(to_numpy, run(x, ops.convert_to_tensor(outside)))
    assert np.isfinite(single).all()
    np.testing.assert_allclose(several, single, atol=1e-5)
    with pytest.raises(ValueError, match=r"at most .* tokens. Received: y of shape"):
        s.policy.target_log_prob(s.policy.encode(x), np.ones((3, 99), "int32"))


def test_references_are_scored(hub):
    hub(check_likelihood_of_references)


@pytest.mark.parametrize("name", ["pali_gemma", "bart"])
def test_gradient_is_that_of_finite_differences(hub, name):
    hub(check_gradient_is_that_of_finite_differences, name)


def test_whole_samples_are_scored(hub):
    hub(check_likelihood_of_whole_samples)


def share_of_7(y_true, y_pred):
    return ops.mean(ops.cast(y_pred == 7, "float32"), axis=-1)


def share_of_odd_tokens(y_true, y_pred):
    """Of those that were written: the end is odd, and what follows is 0."""
    written, odd = ops.cast(y_pred != 0, "float32"), ops.cast(y_pred % 2, "float32")
    return ops.sum(odd, axis=-1) / ops.maximum(ops.sum(written, axis=-1), 1.0)


def tuned_and_history(model, name, epochs):
    """Tunes for odd tokens on a few prompts, many times each."""
    import hub_models

    policy = CausalLMPolicy(end_token_ids=[hub_models.END], max_new_tokens=3)
    tuned = RewardTuning(model, share_of_odd_tokens, policy, num_samples=4, seed=0)
    tuned.compile(keras.optimizers.Adam(0.03))
    x = {key: np.concatenate([v] * 4) for key, v in prompts(name).items()}
    return tuned.fit(x, epochs=epochs, batch_size=12, verbose=0).history


def check_tuning_gains_reward(name):
    import hub_models

    rewards = tuned_and_history(hub_models.MODELS[name](), name, epochs=12)["reward"]
    assert 1.0 - np.mean(rewards[-3:]) < 0.5 * (1.0 - np.mean(rewards[:3]))


def check_lora_trains_its_adapters_alone():
    """The adapters, and the biases of their layers, which Keras leaves trainable."""
    import hub_models

    model = hub_models.pali_gemma()
    model.backbone.enable_lora(rank=2)
    before = {weight.path: to_numpy(weight).copy() for weight in model.weights}
    tuned_and_history(model, "pali_gemma", epochs=3)
    moved = {
        weight.path
        for weight in model.weights
        if (to_numpy(weight) != before[weight.path]).any()
    }
    trainable = {weight.path for weight in model.trainable_variables}
    adapters = {path for path in before if "lora_kernel" in path}
    assert len(adapters) == 12 and len(before) > 50
    assert adapters <= moved <= trainable
    assert all(path.endswith("proj/bias") for path in trainable - adapters)


def prompts(name):
    import hub_models

    return hub_models.prompts(name)


@pytest.mark.chance
@pytest.mark.parametrize("name", ["gpt2", "gemma3", "bart"])
def test_tuning_gains_reward(hub, name):
    hub(check_tuning_gains_reward, name)


def test_lora_trains_its_adapters_alone(hub):
    hub(check_lora_trains_its_adapters_alone)


def check_predict_returns_answers():
    import hub_models

    model = hub_models.gpt2()
    policy = CausalLMPolicy(end_token_ids=[hub_models.END])
    tuned = RewardTuning(model, share_of_7, policy)
    tuned.compile()
    x = prompts("gpt2")
    answers = tuned.predict(x, verbose=0)
    assert answers.shape == (3, hub_models.LENGTH - 1)
    np.testing.assert_array_equal(answers, setting("gpt2").results["mode"])
    reward = tuned.evaluate(x, verbose=0, return_dict=True)["reward"]
    np.testing.assert_allclose(reward, (answers == 7).mean(), atol=1e-6)


def test_predict_returns_answers(hub):
    hub(check_predict_returns_answers)


def check_errors():
    import hub_models

    text, images = (
        CausalLMPolicy(end_token_ids=[1]).bind(setting(name).model)
        for name in ("gpt2", "pali_gemma")
    )
    full = prompts("gpt2")
    full["padding_mask"][1] = True
    with pytest.raises(ValueError, match=r"no room is left.*sequence_length"):
        text.encode(full)
    tuned = RewardTuning(setting("gpt2").model, share_of_7, CausalLMPolicy(3, [1]))
    tuned.compile("sgd")
    with pytest.raises(ValueError, match="no room is left"):
        tuned.fit(full, verbose=0)
    empty = prompts("gpt2")
    empty["padding_mask"][1] = False
    with pytest.raises(ValueError, match="at least one token"):
        text.encode(empty)
    for wrong in (-1, hub_models.VOCABULARY):
        outside = prompts("gpt2")
        outside["token_ids"][0, 0] = wrong
        with pytest.raises(ValueError, match=f"below {hub_models.VOCABULARY}.*{wrong}"):
            text.encode(outside)
    with pytest.raises(ValueError, match=r"images.*generate_preprocess.*Missing"):
        images.encode(prompts("gpt2"))
    with pytest.raises(ValueError, match=r"takes a dict.*Received: ndarray"):
        text.encode(full["token_ids"])
    wide = prompts("pali_gemma")
    wide["images"] = np.zeros((3, 8, 16, 3), "float32")
    with pytest.raises(ValueError, match=r"8, 8, 3\).*Resize.*\(3, 8, 16, 3\)"):
        images.encode(wide)
    flat = prompts("gpt2")
    flat["token_ids"] = flat["token_ids"][0]
    with pytest.raises(ValueError, match=r"one shape \(batch, L\)"):
        text.encode(flat)
    with pytest.raises(ValueError, match=r"end_token_ids=.*preprocessor=None"):
        CausalLMPolicy().bind(setting("gpt2").model)


def test_errors_say_what_to_do(hub):
    hub(check_errors)


def check_recognition():
    for name in NAMES:
        assert is_language_model(setting(name).model)
        assert not is_language_model(setting(name).model.backbone)


def test_language_models_are_recognised(hub):
    hub(check_recognition)
    assert not is_language_model(classifier())
    with pytest.raises(ValueError, match=r"CausalLM tasks of text alone.*Sequential"):
        CausalLMPolicy().bind(classifier())


def test_answers_end_where_the_tasks_generate_stops():
    model = types.SimpleNamespace(backbone=None, name="model")
    tokenizer = types.SimpleNamespace(end_token_id=5, end_token2_id=6)
    assert end_tokens_of(tokenizer, TextTask(model), model) == (5, 6)
    tokenizer = types.SimpleNamespace(end_token_id=5, token_to_id={"<stop>": 9}.get)
    task = TextTask(model)
    task.end_tokens = ("<stop>",)
    assert end_tokens_of(tokenizer, task, model) == (5, 9)


class FakeTask:
    """What `bind` looks at, of a task of text alone."""

    name, backbone, preprocessor = "fake", None, None
    call_with_cache = None

    def _build_cache(self, token_ids):
        raise NotImplementedError


def test_a_refused_binding_leaves_the_policy_as_it_was():
    policy = CausalLMPolicy()
    with pytest.raises(ValueError, match="no tokenizer"):
        policy.bind(FakeTask())
    first, second = FakeTask(), FakeTask()
    first.preprocessor = second.preprocessor = types.SimpleNamespace(
        tokenizer=types.SimpleNamespace(end_token_id=5, pad_token_id=3)
    )
    policy.bind(first, temperature=0.5)
    second.preprocessor.tokenizer = types.SimpleNamespace(end_token_id=8)
    with pytest.raises(ValueError, match="belongs to another model"):
        policy.bind(second)
    assert policy.model is policy.task.model is first
    assert (policy.end_ids, policy.pad_id, policy.temperature) == ((5,), 3, 0.5)


def test_config_restores_the_policy():
    policy = CausalLMPolicy(max_new_tokens=7, end_token_ids=[1, 4], pad_token_id=3)
    restored = CausalLMPolicy.from_config(policy.get_config())
    assert restored.get_config() == policy.get_config()
    assert restored.end_token_ids == (1, 4)


@pytest.mark.parametrize("argument", [{"max_new_tokens": 0}, {"top_k": 5}])
def test_arguments_out_of_range_are_refused(argument):
    with pytest.raises(ValueError, match=next(iter(argument))):
        CausalLMPolicy(**argument)


def gpt2_with_a_tokenizer():
    """A task that reads and writes text, and some inputs."""
    import keras_hub
    from tiny import randomize

    tokenizer = keras_hub.models.GPT2Tokenizer(
        vocabulary={"<|endoftext|>": 0, "a": 1, "b": 2, "Ġ": 3, "ab": 4},
        merges=["a b"],
    )
    preprocessor = keras_hub.models.GPT2CausalLMPreprocessor(tokenizer, 12)
    backbone = keras_hub.models.GPT2Backbone(
        vocabulary_size=5,
        num_layers=1,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=16,
        max_sequence_length=12,
    )
    model = keras_hub.models.GPT2CausalLM(backbone, preprocessor)
    randomize(model, scale=0.1)
    return model, preprocessor.generate_preprocess(["ab a", "a"] * 8)


@keras.saving.register_keras_serializable(package="keras_reward_tests")
def share_of_b(y_true, y_pred):
    return ops.mean(ops.cast(y_pred == 2, "float32"), axis=-1)


def check_a_tasks_own_tokenizer_says_where_answers_end():
    """Text in, `policy="auto"`, text out: nothing about tokens is said by hand."""
    model, x = gpt2_with_a_tokenizer()
    x = {key: np.asarray(value) for key, value in x.items()}
    np.testing.assert_array_equal(x["token_ids"][0, :4], [0, 4, 3, 1])
    tuned = RewardTuning(model, share_of_b, num_samples=8, seed=0)
    assert tuned.policy.end_ids == (0,)
    tuned.compile(keras.optimizers.Adam(0.03))
    tuned.fit(x, epochs=10, verbose=0)
    answers = tuned.predict(x, verbose=0)
    mask = np.ones(answers.shape, "bool")
    texts = model.preprocessor.generate_postprocess(
        {"token_ids": answers, "padding_mask": mask}
    )
    assert all(text.count("b") > 5 for text in texts)


@pytest.mark.chance
def test_a_tasks_own_tokenizer_says_where_answers_end(hub):
    hub(check_a_tasks_own_tokenizer_says_where_answers_end)


def check_a_continued_run_equals_the_uninterrupted_one(folder):
    """With end tokens from the tokenizer, which is empty while the file is read."""

    def start():
        model, x = gpt2_with_a_tokenizer()
        tuned = RewardTuning(model, share_of_b, seed=0)
        tuned.compile(keras.optimizers.Adam(0.03))
        return tuned, {key: np.asarray(value) for key, value in x.items()}

    def fit(tuned, epochs):
        tuned.fit(x, epochs=epochs, batch_size=8, shuffle=False, verbose=0)

    whole, x = start()
    fit(whole, 2)
    first, _ = start()
    fit(first, 1)
    first.save(f"{folder}/tuned.keras")
    second = keras.models.load_model(f"{folder}/tuned.keras")
    assert second.policy.end_ids == first.policy.end_ids == (0,)
    assert second.policy.pad_id == first.policy.pad_id
    fit(second, 1)
    for a, b in zip(weights_of(second), weights_of(whole), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert second.model.generate("ab a") == whole.model.generate("ab a")


def test_a_continued_run_equals_the_uninterrupted_one(hub, tmp_path):
    hub(check_a_continued_run_equals_the_uninterrupted_one, str(tmp_path))


def check_inputs_are_looked_at_wherever_they_are_arrays(kind):
    """NumPy arrays or tensors, which is what a task's preprocessor returns."""
    import hub_models

    model = setting("gpt2").model
    terms = [MaximumLikelihood()]
    tuned = RewardTuning(model, share_of_7, CausalLMPolicy(3, [1]), terms=terms)
    tuned.compile("sgd")
    convert = {"arrays": np.asarray, "tensors": ops.convert_to_tensor}[kind]
    calls = (tuned.fit, tuned.evaluate, tuned.predict, tuned.train_on_batch)
    y = convert(np.array([[3, 1, 0]] * 3))

    def given(**changes):
        x = prompts("gpt2")
        for key, value in changes.items():
            x[key][1, 0] = value
        return keras.tree.map_structure(convert, x)

    for call in calls:
        x = given(token_ids=hub_models.VOCABULARY)
        with pytest.raises(ValueError, match=f"below {hub_models.VOCABULARY}"):
            call(x) if call == tuned.predict else call(x, y)
    empty = prompts("gpt2")
    empty["padding_mask"][1] = False
    with pytest.raises(ValueError, match="at least one token"):
        tuned.predict(keras.tree.map_structure(convert, empty))
    for call in (tuned.fit, tuned.train_on_batch):
        outside = convert(np.array([[3, 1, 0], [3, hub_models.VOCABULARY, 1]] * 3))
        with pytest.raises(ValueError, match="y between 0 and"):
            call(given(), outside[:3])
        with pytest.raises(ValueError, match=r"integer token ids.*y of dict"):
            call(given(), {"ids": y})
        with pytest.raises(ValueError, match="at most 3 tokens"):
            call(given(), convert(np.ones((3, 4), "int32")))


@pytest.mark.parametrize("kind", ["arrays", "tensors"])
def test_inputs_are_looked_at_wherever_they_are_arrays(hub, kind):
    hub(check_inputs_are_looked_at_wherever_they_are_arrays, kind)


def check_chunks_have_the_same_gradient():
    s = setting("gpt2")
    variables = s.model.trainable_variables
    x, samples = keras.tree.map_structure(
        ops.convert_to_tensor, (s.x, s.results["samples"])
    )
    start = [ops.convert_to_numpy(variable) for variable in variables]
    results = []
    for chunk in (None, 4):
        policy = CausalLMPolicy(end_token_ids=[s.end], logits_chunk=chunk)
        policy.bind(s.model, 1.3)
        value, gradients = value_and_gradients(
            lambda policy=policy: ops.mean(policy.log_prob(policy.encode(x), samples)),
            variables,
        )(start)
        gradients = [to_numpy(ops.convert_to_tensor(g)) for g in gradients]
        results.append([to_numpy(value), *gradients])
    assert max(np.abs(gradient).max() for gradient in results[0][1:]) > 0.1
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_chunks_have_the_same_gradient(hub):
    hub(check_chunks_have_the_same_gradient)


def check_answers_without_an_end_and_at_once():
    """No end token; and numbers that draw the end token first, in two rows."""
    s = setting("gpt2")
    endless = CausalLMPolicy(end_token_ids=[]).bind(s.model, 1.3)
    assert endless.end_ids == ()
    # The number that stands in the middle of the end token's share.
    share = np.exp(log_softmax(s.results["logits"][0, 0, 0], 1.0))
    noise = s.noise.copy()
    noise[0, 2:, s.x[s.mask][0].sum()] = share[: s.end].sum() + share[s.end] / 2

    def draw(x, noise):
        results = {}
        for name, policy in (("some", s.policy), ("none", endless)):
            context = policy.encode(x)
            samples = policy.sample(context, SAMPLES, noise=noise)
            log_probs = policy.likelihood(context, samples).position_log_probs
            mode = policy.mode(context)
            target = policy.target_log_prob(context, samples[:, 0])
            mask = policy.mask(context, samples)
            results[name] = samples, mask, log_probs, mode, target
        return results

    x = keras.tree.map_structure(ops.convert_to_tensor, s.x)
    results = keras.tree.map_structure(
        to_numpy, compiled(draw)(x, ops.convert_to_tensor(noise))
    )
    samples, mask, scores, _, _ = results["some"]
    at_once = [s.end] + [s.pad] * (s.length - 2)
    np.testing.assert_array_equal(samples[0, 2:], [at_once] * 2)
    np.testing.assert_array_equal(mask[0, 2:].sum(-1), [1, 1])
    np.testing.assert_allclose(scores[0, 2:, 0], np.log(share[s.end]), atol=1e-5)
    assert (scores[0, 2:, 1:] == 0.0).all()
    np.testing.assert_array_equal(samples[1:], s.results["samples"][1:])
    endless_samples, mask, scores, mode, target = results["none"]
    assert mode.shape == (3, s.length - 1)
    np.testing.assert_array_equal(endless_samples[0, 2:, 0], [s.end] * 2)
    assert (endless_samples == s.end).any()
    # Up to the last position, whatever is written on the way.
    rooms = s.length - s.x[s.mask].sum(-1)
    expected = np.arange(s.length - 1) < rooms[:, None, None]
    np.testing.assert_array_equal(mask, np.broadcast_to(expected, mask.shape))
    assert (scores[mask] < 0.0).all()
    # As a reference all of it counts, words that look like padding too.
    np.testing.assert_allclose(target, scores[:, 0].sum(-1), atol=1e-5)


def test_answers_without_an_end_and_at_once(hub):
    hub(check_answers_without_an_end_and_at_once)


def nothing(y_true, y_pred):
    return 0.0 * ops.cast(y_pred[:, 0], "float32")


def check_fit_adds_the_likelihood_of_references():
    """In the first epoch that of the model as it was; then it rises."""
    import hub_models

    s = setting("gpt2")
    model = hub_models.gpt2()
    policy = CausalLMPolicy(end_token_ids=[s.end], logits_chunk=4)
    terms = [MaximumLikelihood(0.5)]
    tuned = RewardTuning(model, nothing, policy, terms=terms, temperature=1.3)
    tuned.compile(keras.optimizers.Adam(0.005))
    samples, mask = s.results["samples"], s.results["mask"]
    all_log_probs = s.results["position_log_probs"].sum(-1)
    y, log_probs = [], []
    for i, group in enumerate(samples):
        # One that does not break off in what would be padding at its end.
        n = next(n for n, row in enumerate(group) if row[mask[i, n]][-1] != s.pad)
        y.append(group[n])
        log_probs.append(all_log_probs[i, n])
    likelihood = np.mean(log_probs)
    history = tuned.fit(s.x, np.stack(y), epochs=16, shuffle=False, verbose=0).history
    assert history["mle_loss"][0] == pytest.approx(-likelihood, abs=1e-4)
    assert history["loss"][0] == pytest.approx(-0.5 * likelihood, abs=1e-4)
    assert history["mle_loss"][-1] < 0.9 * history["mle_loss"][0]


@pytest.mark.chance
def test_fit_adds_the_likelihood_of_references(hub):
    hub(check_fit_adds_the_likelihood_of_references)


def check_images_and_prompts_are_read_once():
    """Once per input, for all samples, for samples and likelihood together."""
    s = setting("pali_gemma")
    encoder, build_cache = s.model.backbone.vit_encoder, s.model._build_cache
    call, shapes = encoder.call, {"images": [], "prompts": []}

    def counted_call(images, *args, **kwargs):
        shapes["images"].append(tuple(images.shape))
        return call(images, *args, **kwargs)

    def counted_cache(token_ids, *args, **kwargs):
        shapes["prompts"].append(tuple(token_ids.shape))
        return build_cache(token_ids, *args, **kwargs)

    def step(x, noise):
        context = s.policy.encode(x)
        samples = s.policy.sample(context, SAMPLES, noise=noise)
        return s.policy.likelihood(context, samples)

    encoder.call = counted_call
    object.__setattr__(s.model, "_build_cache", counted_cache)
    try:
        x = keras.tree.map_structure(ops.convert_to_tensor, s.x)
        compiled(step)(x, ops.convert_to_tensor(s.noise))
    finally:
        encoder.call = call
        object.__setattr__(s.model, "_build_cache", build_cache)
    assert shapes == {"images": [s.x["images"].shape], "prompts": [(3, s.length)]}


def test_images_and_prompts_are_read_once(hub):
    hub(check_images_and_prompts_are_read_once)
