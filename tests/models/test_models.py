"""The vision encoder-decoder and its preprocessor."""

import functools
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import ops
from tiny import compiled, randomize, to_numpy, weights_of

from keras_reward.models import (
    CaptionPreprocessor,
    VisionEncoderDecoder,
    VisionTransformer,
)
from keras_reward.models.transformer import Dense

pytestmark = pytest.mark.slow

SIZE, WIDTH, WORDS, LENGTH = 8, 8, 7, 5


def tiny_encoder(**arguments):
    arguments = {"width": WIDTH, "num_layers": 1, "num_heads": 2, **arguments}
    return VisionTransformer((SIZE, SIZE, 3), patch_size=4, **arguments)


def sequence_model(encoder=None, words=WORDS, length=LENGTH, seed=0, **arguments):
    """A small model whose outputs differ clearly from token to token."""
    arguments = {"num_layers": 2, "num_heads": 2, "mlp_dim": 12, **arguments}
    model = VisionEncoderDecoder(encoder or tiny_encoder(), words, length, **arguments)
    return randomize(model, seed)


def some_images(batch=2, seed=0):
    shape = (batch, SIZE, SIZE, 3)
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def some_ids(*shape, words=WORDS, seed=0):
    return np.random.default_rng(seed).integers(0, words, shape).astype("int32")


def step_by_step(model, x, token_ids):
    """`hidden_states` one token at a time, through the cache."""
    context = model.encode(x)
    cache = model.start_cache(context, token_ids.shape[1])
    hidden = []
    for position in range(token_ids.shape[2]):
        position = ops.convert_to_tensor(position, "int32")
        token = ops.take(token_ids, position, axis=2)
        state, cache = model.next_hidden(context, cache, token, position)
        hidden.append(state)
    return ops.stack(hidden, axis=2)


def at_once(model, x, token_ids):
    return model.hidden_states(model.encode(x), token_ids)


@functools.cache
def shared_model():
    """The model of tests that leave it as it is."""
    return sequence_model()


@functools.cache
def fast(function):
    """`at_once` or `step_by_step` of the shared model, compiled once."""
    call = compiled(lambda x, ids: function(shared_model(), x, ids))
    return lambda x, ids: to_numpy(call(x, ids))


# The architecture, against a transcription in NumPy.


class Transcription:
    """One image and one sequence, with the model's weights by their paths."""

    def __init__(self, model):
        self.weights = {w.path: np.float64(to_numpy(w)) for w in model.weights}
        self.heads = model.num_heads

    def dense(self, x, name):
        return x @ self.weights[f"{name}/kernel"] + self.weights[f"{name}/bias"]

    def norm(self, x, name):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
        return x * self.weights[f"{name}/gamma"] + self.weights[f"{name}/beta"]

    def attention(self, x, memory, name, causal):
        q = self.dense(x, f"{name}/query")
        k, v = self.dense(memory, f"{name}/key"), self.dense(memory, f"{name}/value")
        found = []
        for q, k, v in zip(*(np.split(a, self.heads, -1) for a in (q, k, v))):  # noqa: B020, B905
            for i, query in enumerate(q):
                seen = i + 1 if causal else len(k)
                weights = np.exp(k[:seen] @ query / np.sqrt(len(query)))
                found.append(weights @ v[:seen] / weights.sum())
        found = np.reshape(found, (self.heads, len(x), -1))
        return self.dense(np.concatenate(found, -1), f"{name}/output")

    def mlp(self, x, name):
        h = self.dense(self.norm(x, f"{name}/mlp_norm"), f"{name}/mlp/up")
        h = h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3))) / 2
        return x + self.dense(h, f"{name}/mlp/down")

    def encode(self, image):
        rows = [image[i : i + 4, j : j + 4].ravel() for i in (0, 4) for j in (0, 4)]
        x = self.dense(np.array(rows), "patch_embedding")
        x = x + self.weights["encoder_positions/embeddings"]
        h = self.norm(x, "encoder_block_0/attention_norm")
        x = x + self.attention(h, h, "encoder_block_0/self_attention", causal=False)
        return self.norm(self.mlp(x, "encoder_block_0"), "encoder_norm")

    def logits(self, image, token_ids):
        memory = self.encode(image)
        x = self.weights["token_embedding/embeddings"][token_ids]
        x = x + self.weights["token_positions/embeddings"][: len(x)]
        for name in ("decoder_block_0", "decoder_block_1"):
            h = self.norm(x, f"{name}/attention_norm")
            x = x + self.attention(h, h, f"{name}/self_attention", causal=True)
            h = self.norm(x, f"{name}/cross_norm")
            x = x + self.attention(h, memory, f"{name}/cross_attention", causal=False)
            x = self.mlp(x, name)
        return self.dense(self.norm(x, "decoder_norm"), "logits")


def test_logits_are_those_of_a_transcription_in_numpy():
    model, images, token_ids = shared_model(), some_images(), some_ids(2, LENGTH)
    logits = model.predict({"images": images, "token_ids": token_ids}, verbose=0)
    in_numpy = Transcription(model)
    expected = list(map(in_numpy.logits, images, token_ids))
    np.testing.assert_allclose(logits, expected, atol=1e-5, rtol=1e-5)


def test_dense_multiplies_as_keras_does():
    plain, ours = keras.layers.Dense(4, "relu"), Dense(4, "relu")
    x = some_images()
    plain.build(x.shape)
    ours.build(x.shape)
    ours.set_weights(plain.get_weights())
    np.testing.assert_allclose(to_numpy(ours(x)), to_numpy(plain(x)), atol=1e-6)


# One step at a time and all at once.


def test_cached_steps_equal_the_pass_over_all_tokens():
    images, token_ids = some_images(), some_ids(2, 3, LENGTH)
    steps, passed = (f(images, token_ids) for f in map(fast, (step_by_step, at_once)))
    assert passed.shape == (2, 3, LENGTH, WIDTH)
    np.testing.assert_allclose(steps, passed, atol=1e-5)
    logits = [to_numpy(shared_model().logits(hidden)) for hidden in (steps, passed)]
    np.testing.assert_allclose(*logits, atol=1e-5)


def test_shorter_inputs_give_the_first_outputs():
    images, token_ids = some_images(), some_ids(2, 3, LENGTH)
    whole = fast(at_once)(images, token_ids)
    part = fast(at_once)(images, token_ids[..., :2])
    np.testing.assert_allclose(part, whole[:, :, :2], atol=1e-5)


def test_a_token_changes_nothing_before_it():
    images, token_ids = some_images(), some_ids(2, 3, LENGTH)
    before = fast(at_once)(images, token_ids)
    token_ids[..., 3] = (token_ids[..., 3] + 1) % WORDS
    after = fast(at_once)(images, token_ids)
    np.testing.assert_array_equal(after[:, :, :3], before[:, :, :3])
    assert np.abs(after - before)[:, :, 3:].max(axis=-1).min() > 0.01


def test_samples_of_an_image_are_as_on_a_repeated_image():
    images, token_ids = some_images(), some_ids(2, 3, LENGTH)
    shared = fast(at_once)(images, token_ids)
    repeated = fast(at_once)(np.repeat(images, 3, 0), token_ids.reshape(6, 1, LENGTH))
    np.testing.assert_allclose(shared.reshape(repeated.shape), repeated, atol=1e-5)


@pytest.mark.parametrize("function", [at_once, step_by_step])
def test_a_row_does_not_depend_on_its_batch_mates(function):
    images, token_ids = some_images(), some_ids(2, 3, LENGTH)
    rows = fast(function)(images, token_ids)
    other = np.concatenate([images[:1], some_images(1, seed=9)])
    other_ids = np.concatenate([token_ids[:1], some_ids(1, 3, LENGTH, seed=9)])
    again = fast(function)(other, other_ids)
    np.testing.assert_allclose(again[0], rows[0], atol=1e-6)
    assert np.abs(again[1] - rows[1]).max() > 0.1


def test_one_token_and_a_vocabulary_of_one():
    model = sequence_model(words=1, length=1, end_id=None)
    logits = model.predict(
        {"images": some_images(), "token_ids": np.zeros((2, 1), "int32")}, verbose=0
    )
    assert logits.shape == (2, 1, 1)
    hidden = [
        to_numpy(f(model, some_images(), some_ids(2, 3, 1, words=1)))
        for f in (at_once, step_by_step)
    ]
    np.testing.assert_allclose(*hidden, atol=1e-5)


def test_images_come_alone_or_in_a_dict():
    model, images = shared_model(), some_images()
    alone = model.encode(images)
    within = model.encode({"images": images, "token_ids": None, "other": "ignored"})
    assert len(alone) == len(model.blocks)
    for a, b in zip(keras.tree.flatten(alone), keras.tree.flatten(within), strict=True):
        np.testing.assert_array_equal(to_numpy(a), to_numpy(b))


# As a Keras model.


def colours_and_names(rows=24):
    """Images of one of three colours, and three-token names of the colours."""
    classes = np.random.default_rng(0).integers(0, 3, rows)
    images = 0.1 * some_images(rows)
    images[np.arange(rows), :, :, classes] += 1.0
    return images, np.array([[2, 3, 4], [3, 3, 5], [4, 2, 2]])[classes]


def fitted(model, epochs=60):
    """Losses of maximum likelihood, and what the model was fitted to."""
    images, names = colours_and_names()
    x, y, weights = model.preprocessor(images, names)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-2), loss)
    history = model.fit(
        x, y, sample_weight=weights, epochs=epochs, batch_size=24, verbose=0
    )
    return history.history["loss"], images, y


@pytest.mark.chance
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_fit_teaches_it_to_name_colours(dtype):
    model = randomize(sequence_model(num_layers=1, dtype=dtype), scale=0.3)
    losses, images, y = fitted(model, epochs=120)
    assert losses[-1] < 0.1 * losses[0]
    np.testing.assert_array_equal(model.generate(images, temperature=0), y)


def test_first_weights_follow_the_seed():
    def first_weights(seed):
        keras.utils.set_random_seed(seed)
        model = VisionEncoderDecoder(tiny_encoder(), WORDS, LENGTH, num_heads=2)
        return weights_of(model)

    for one, same, other in zip(*map(first_weights, (0, 0, 1)), strict=True):
        np.testing.assert_array_equal(one, same)
        constant = np.all(one == one.flat[0])
        assert constant or (one != other).any()


def test_a_saved_model_returns_the_same(tmp_path):
    model = sequence_model(tiny_encoder(stem="conv"), dropout=0.1, width=6, pad_id=3)
    x = {"images": some_images(), "token_ids": some_ids(2, LENGTH)}
    expected = model.predict(x, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), expected)
    assert loaded.get_config() == model.get_config()
    assert len(loaded.weights) == len(model.weights)
    assert (loaded.pad_id, loaded.width, loaded.dropout) == (3, 6, 0.1)


def test_mixed_precision_has_float32_logits():
    full, token_ids = shared_model(), some_ids(2, 3, LENGTH)
    encoder = tiny_encoder(dtype="mixed_bfloat16")
    mixed = sequence_model(encoder, dtype="mixed_bfloat16")
    mixed.set_weights(full.get_weights())
    expected = to_numpy(full.logits(fast(at_once)(some_images(), token_ids)))
    for function in (at_once, step_by_step):
        hidden = compiled(lambda x, ids, f=function: f(mixed, x, ids))(
            some_images(), token_ids
        )
        assert keras.backend.standardize_dtype(hidden.dtype) == "bfloat16"
        logits = mixed.logits(hidden)
        assert keras.backend.standardize_dtype(logits.dtype) == "float32"
        scale = np.abs(expected).max()
        np.testing.assert_allclose(to_numpy(logits), expected, atol=0.05 * scale)


def test_dropout_acts_in_training_alone():
    model = sequence_model(tiny_encoder(dropout=0.5), dropout=0.5)
    images, token_ids = some_images(), some_ids(2, 1, LENGTH)
    context = model.encode(images)
    plain = [to_numpy(model.hidden_states(context, token_ids)) for _ in range(2)]
    np.testing.assert_array_equal(*plain)
    dropped = to_numpy(model.hidden_states(context, token_ids, training=True))
    assert np.abs(dropped - plain[0]).max() > 0.1
    keys = [to_numpy(model.encode(images, training=t)[0][0]) for t in (False, True)]
    assert np.abs(keys[0] - keys[1]).max() > 0.1


def test_it_traces_with_an_unknown_batch():
    model = shared_model()
    inputs = {
        "images": keras.Input((SIZE, SIZE, 3)),
        "token_ids": keras.Input((LENGTH,), dtype="int32"),
    }
    outer = keras.Model(inputs, model(inputs))
    assert outer.output_shape == (None, LENGTH, WORDS)
    x = {"images": some_images(3), "token_ids": some_ids(3, LENGTH)}
    expected = model.predict(x, verbose=0)
    np.testing.assert_allclose(outer.predict(x, verbose=0), expected, atol=1e-5)
    # Batches of 2 and 1: on TensorFlow the second one is traced with an unknown size.
    parts = model.predict(x, batch_size=2, verbose=0)
    np.testing.assert_allclose(parts, expected, atol=1e-5)


def with_keras_hub(folder):
    """Shapes, and how far a saved model with KerasHub's encoder is from itself."""
    import keras_hub

    encoder = keras_hub.models.ViTBackbone(
        image_shape=(SIZE, SIZE, 3),
        patch_size=4,
        num_layers=1,
        num_heads=2,
        hidden_dim=WIDTH,
        mlp_dim=16,
    )
    model = sequence_model(encoder)
    x = {"images": some_images(), "token_ids": some_ids(2, LENGTH)}
    model.save(f"{folder}/model.keras")
    loaded = keras.saving.load_model(f"{folder}/model.keras")
    logits = model.predict(x, verbose=0)
    difference = np.abs(loaded.predict(x, verbose=0) - logits).max()
    ids = model.generate(x, temperature=0)
    return model.encode(x)[0][0].shape[-1], logits.shape, difference, ids.shape


@pytest.mark.hub
def test_the_encoder_may_be_keras_hubs(hub, tmp_path):
    result = hub(with_keras_hub, tmp_path)
    # Four patches and the class token.
    assert result == (5, (2, LENGTH, WORDS), 0.0, (2, LENGTH))


# What `fit` is given.


def test_preprocessor_shifts_pads_and_masks():
    preprocessor = CaptionPreprocessor(10, 4, start_id=9, end_id=1, pad_id=0)
    images = some_images(3)
    x, y, weights = preprocessor(images, [[5, 6], [], (7, 8, 2, 1)])
    assert x["images"] is images
    np.testing.assert_array_equal(
        x["token_ids"], [[9, 5, 6, 1], [9, 1, 0, 0], [9, 7, 8, 2]]
    )
    np.testing.assert_array_equal(y, [[5, 6, 1, 0], [1, 0, 0, 0], [7, 8, 2, 1]])
    np.testing.assert_array_equal(weights, [[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]])
    assert [a.dtype.name for a in (x["token_ids"], y, weights)] == [
        "int32",
        "int32",
        "float32",
    ]


def test_sequences_without_an_end_token_may_hold_any_id():
    preprocessor = CaptionPreprocessor(10, 4, end_id=None)
    _, y, weights = preprocessor(some_images(2), [[0, 1, 0, 2], [3, 0]])
    np.testing.assert_array_equal(y, [[0, 1, 0, 2], [3, 0, 0, 0]])
    np.testing.assert_array_equal(weights, [[1, 1, 1, 1], [1, 1, 0, 0]])


def test_a_truncated_sequence_does_not_end():
    preprocessor = CaptionPreprocessor(10, 3, truncate=True)
    _, y, weights = preprocessor(some_images(2), [[5, 6, 7, 8], [5, 6]])
    np.testing.assert_array_equal(y, [[5, 6, 7], [5, 6, 1]])
    assert weights.all()


# Errors.


def call_with(token_ids=None, size=SIZE, **extra):
    inputs = {"images": np.zeros((2, size, size, 3), "float32"), **extra}
    if token_ids is not None:
        inputs["token_ids"] = token_ids
    return shared_model()(inputs)


def preprocess(*sequences, images=None, **arguments):
    arguments = {"vocabulary_size": 10, "max_length": 3, **arguments}
    images = some_images(len(sequences)) if images is None else images
    return CaptionPreprocessor(**arguments)(images, sequences)


def fit_to(token_ids=None, y=None, call="fit", **loss):
    """Calls a method for training, with ids that fit but for the given ones."""
    ids = some_ids(2, LENGTH)
    x = {"images": some_images(), "token_ids": ids if token_ids is None else token_ids}
    model = sequence_model(num_layers=1)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(True, **loss))
    return getattr(model, call)(x, ids if y is None else y)


def with_id(value, convert=np.asarray):
    ids = some_ids(2, LENGTH)
    ids[1, 2] = value
    return convert(ids)


def test_an_id_that_the_loss_ignores_may_be_outside_the_vocabulary():
    loss = fit_to(y=with_id(-1), call="train_on_batch", ignore_class=-1)
    assert np.isfinite(loss)


def unknown_size():
    return keras.Sequential([keras.layers.Dense(4)])


def any_size():
    return keras.Sequential([keras.Input((None, None, 3)), keras.layers.Dense(4)])


def no_tokens():
    return keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten()])


CASES = {
    "image of the wrong size": (
        lambda: call_with(some_ids(2, LENGTH), size=12),
        r"built for images of shape \(batch, 8, 8, 3\).*Resizing\(8, 8\).*"
        r"Received: images of shape \(2, 12, 12, 3\)",
    ),
    "too many tokens": (
        lambda: call_with(some_ids(2, LENGTH + 1)),
        r"at most 5 tokens.*larger `max_length`.*\(2, 1, 6\)",
    ),
    "no tokens": (call_with, r"keys 'images' and 'token_ids'.*Received: \['images'\]"),
    "images alone": (
        lambda: shared_model()(some_images()),
        "keys 'images' and 'token_ids'",
    ),
    "ids outside, preprocessor": (
        lambda: preprocess([5], [4, 10]),
        "from 0 to 9.*`vocabulary_size`.*Received: sequence 1 has the id 10",
    ),
    "negative id, preprocessor": (lambda: preprocess([-1]), "has the id -1"),
    "too long": (
        lambda: preprocess([5, 6, 7]),
        "at most 3 tokens.*`truncate=True`.*Received: sequence 0 has 4",
    ),
    "padding inside": (
        lambda: preprocess([5, 1, 0]),
        r"must not contain padding.*cut them.*Received: sequence 0 is \[5, 1, 0\]",
    ),
    "end inside": (lambda: preprocess([1, 5]), "nor the end token but at their end"),
    "images and sequences differ": (
        lambda: preprocess([5], images=some_images(2)),
        "one sequence for each image.*Received: 2 images and 1 sequences",
    ),
    "ids outside, fit": (
        lambda: fit_to(with_id(WORDS)),
        "from 0 to 6.*`vocabulary_size`.*Received: `token_ids` has the id 7",
    ),
    "ids outside, tensors": (
        lambda: fit_to(with_id(-1, ops.convert_to_tensor), call="train_on_batch"),
        "Received: `token_ids` has the id -1",
    ),
    "ids outside, y": (
        lambda: fit_to(y=with_id(9)),
        "from 0 to 6.*Received: `y` has the id 9",
    ),
    "ids outside, evaluate": (
        lambda: fit_to(y=with_id(-1), call="evaluate"),
        "Received: `y` has the id -1",
    ),
    "ids outside, predict": (
        lambda: shared_model().predict(
            {"images": some_images(), "token_ids": with_id(WORDS)}
        ),
        "Received: `token_ids` has the id 7",
    ),
    "no length": (
        lambda: sequence_model(length=0),
        "`max_length` must be a whole number from 1 to 1048576. Received: max_length=0",
    ),
    "no layers": (
        lambda: sequence_model(num_layers=-1),
        "`num_layers` must be a whole number from 1 to .* Received: num_layers=-1",
    ),
    "a fraction of a head": (
        lambda: sequence_model(num_heads=0.5),
        "`num_heads` must be a whole number from 1 to 1048576. Received: num_heads=0.5",
    ),
    "end is padding": (
        lambda: sequence_model(end_id=0),
        "`end_id` and `pad_id` must differ.*Received: end_id=0, pad_id=0",
    ),
    "end outside": (
        lambda: preprocess([5], end_id=10),
        "`end_id` must be from 0.*Received: end_id=10, vocabulary_size=10",
    ),
    "start outside": (
        lambda: sequence_model(start_id=-1),
        "`start_id` must be from 0.*Received: start_id=-1, vocabulary_size=7",
    ),
    "encoder of unknown size": (
        lambda: sequence_model(unknown_size()),
        "knows these sizes before it is called.*keras.Model.images, yours",
    ),
    "encoder of any size": (lambda: sequence_model(any_size()), "knows these sizes"),
    "encoder without tokens": (
        lambda: sequence_model(no_tokens()),
        r"\(batch, tokens, features\).*outputs \(None, 192\)",
    ),
    "heads": (
        lambda: sequence_model(num_heads=3),
        "`num_heads` must divide `width`. Received: width=8, num_heads=3",
    ),
    "encoder heads": (
        lambda: tiny_encoder(num_heads=3),
        "`num_heads` must divide `width`. Received: width=8, num_heads=3",
    ),
    "patches": (
        lambda: VisionTransformer((8, 6, 3), patch_size=4),
        "must divide the height.*Received: image_shape=.8, 6, 3., patch_size=4",
    ),
    "stem": (
        lambda: tiny_encoder(stem="deep"),
        "must be one of .*Received: stem='deep'",
    ),
    "patches of the stem": (
        lambda: VisionTransformer((12, 12, 3), patch_size=6, stem="conv"),
        "power of two, at most 32. Received: patch_size=6",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_errors_say_what_to_do(case):
    function, message = CASES[case]
    with pytest.raises(ValueError) as error:
        function()
    assert re.search(message, str(error.value), re.DOTALL)


def test_a_saved_model_loads_with_the_package_alone(tmp_path):
    """Without an import of `keras_reward.models`, which registers its classes."""
    path = tmp_path / "model.keras"
    sequence_model().save(path)
    code = "import sys, keras, keras_reward; keras.saving.load_model(sys.argv[1])"
    result = subprocess.run([sys.executable, "-c", code, path], capture_output=True)
    assert result.returncode == 0, result.stderr
