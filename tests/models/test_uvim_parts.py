"""UViM's codes of parts of an image: against NumPy, and what they must not know."""

import functools

import keras
import numpy as np
import pytest
from keras import ops
from tiny import compiled, randomize, to_numpy, weights_of
from uvim_models import (
    CODES,
    SIZE,
    WIDTH,
    Networks,
    gray,
    language_model,
    photos,
)

from keras_reward import ColorfulnessReward, RewardTuning
from keras_reward.codecs import rgb_to_lab
from keras_reward.models import (
    ColorizationTask,
    UViM,
    UViMStageOne,
    load_big_vision,
)
from keras_reward.models.quantization import standardize
from keras_reward.models.uvim_networks import MeanOfParts, parts_network

pytestmark = pytest.mark.slow

PARTS, PATCH = 3, 2
GRID = SIZE // PATCH


def part_model(**arguments):
    """A first stage of 4 x 4 patches, whose outputs differ from code to code."""
    sizes = {"width": WIDTH, "num_heads": 2, "oracle_layers": 1, "base_layers": 1}
    arguments = {"code_grid": PARTS, "num_codes": CODES, **sizes, **arguments}
    shape = (SIZE, SIZE, 1)
    first = UViMStageOne(ColorizationTask(), shape, PATCH, seed=0, **arguments)
    randomize(first)
    # Entries are what the oracle says of some photographs: others are in between.
    images = ops.convert_to_tensor(gray(photos(2)))
    vectors = first.code_vectors(images, first.targets(photos(2)), first.see(images))
    entries = standardize(vectors)
    first.quantizer.sums.assign(np.reshape(to_numpy(entries), (CODES, WIDTH)))
    return first


@functools.cache
def model():
    """The model of tests that leave it as it is."""
    return part_model()


@functools.cache
def results():
    inputs = {"images": gray(photos()), "labels": photos()}
    return model().predict(inputs, verbose=0)


class PartNetworks(Networks):
    """The networks of one image, of 4 x 4 patches."""

    def __init__(self, model):
        super().__init__(model)
        self.oracle["positions/embeddings"] = 0.0
        self.base["positions/embeddings"] = 0.0
        self.shares = self.weights(model.parts)

    def patches(self, image):
        x = image.reshape(GRID, PATCH, GRID, PATCH, -1).transpose(0, 2, 1, 3, 4)
        return x.reshape(GRID**2, -1)

    def tokens(self, part, image):
        one, other = (
            self.dense(part, self.patches(x), "patch_embedding").reshape(GRID, GRID, -1)
            for x in (image, image[:, ::-1])
        )
        return (one + other[:, ::-1]).reshape(GRID**2, -1) / 2

    def parts(self, image):
        x = self.norm(self.shares, self.tokens(self.stem, image), "norm")
        x = self.dense(self.shares, x, "parts").reshape(GRID, GRID, PARTS)
        x = np.array(
            [
                x[max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2].mean((0, 1))
                for i in range(GRID)
                for j in range(GRID)
            ]
        )
        return np.exp(2 * x) / np.exp(2 * x).sum(-1, keepdims=True)

    def vectors(self, image, label):
        x = self.dense(self.oracle, self.patches(label), "embedding_color")
        x = self.block(self.oracle, x + self.tokens(self.oracle, image))
        parts = self.parts(image)
        x = parts.T @ x / (parts.sum(0)[:, None] + 1e-3)
        return self.dense(self.oracle, x, "code_vectors")

    def colors(self, image, code):
        x = self.dense(self.base, self.entries()[code], "code_embedding")
        x = self.parts(image) @ x + self.tokens(self.stem, image)
        return self.dense(self.base, self.block(self.base, x), "head_color")


def test_networks_are_those_of_a_transcription_in_numpy():
    labels, in_numpy = photos(), PartNetworks(model())
    images = gray(labels)
    seen = model().see(images)
    said = model().code_vectors(
        ops.convert_to_tensor(images), model().targets(labels), seen
    )
    lab = np.stack(rgb_to_lab(labels, stack=False), -1)[..., 1:] / 110.0
    for i in range(len(images)):
        parts = in_numpy.parts(images[i])
        np.testing.assert_allclose(to_numpy(seen["parts"])[i], parts, atol=1e-5)
        vectors = in_numpy.vectors(images[i], lab[i])
        np.testing.assert_allclose(to_numpy(said)[i], vectors, atol=1e-4)
        colors = in_numpy.colors(images[i], results()["codes"][i])
        colors = colors.reshape(GRID, GRID, PATCH, PATCH, 2)
        expected = colors.transpose(0, 2, 1, 3, 4).reshape(SIZE, SIZE, 2)
        found = results()["logits"]["color"][i]
        np.testing.assert_allclose(found, expected, atol=1e-4)
    assert len(np.unique(results()["codes"])) > 1


def test_shares_are_averaged_with_the_neighbours_there_are():
    grid, width = (3, 4), 5
    network = parts_network(grid, width, 2, "float32")
    tokens = np.random.default_rng(0).normal(size=(1, 12, width)).astype("float32")
    x = (tokens - tokens.mean(-1, keepdims=True)) / tokens.std(-1, keepdims=True)
    kernel, bias = (to_numpy(w) for w in network.get_layer("parts").weights)
    x = (x @ kernel + bias).reshape(3, 4, 2)
    expected = np.zeros((3, 4, 2))
    for i in range(3):
        for j in range(4):
            near = x[max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2]
            share = np.exp(2 * near.mean((0, 1)))
            expected[i, j] = share / share.sum()
    found = to_numpy(network(tokens)).reshape(3, 4, 2)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_part_says_the_mean_of_its_tokens():
    parts = np.array([[[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]], "float32")
    tokens = np.array([[[3.0], [6.0], [12.0]]], "float32")
    means = to_numpy(MeanOfParts()(parts, tokens))[0, :, 0]
    np.testing.assert_allclose(means, [6.0 / 1.5, 15.0 / 1.5], rtol=1e-3)


@pytest.mark.parametrize("stem", ["patch", "conv"])
def test_what_is_seen_of_a_mirror_image_is_mirrored(stem):
    first = part_model(stem=stem)
    images = gray(photos())
    seen, mirrored = first.see(images), first.see(images[:, :, ::-1].copy())
    for name, x in seen.items():
        there, here = (
            to_numpy(tokens).reshape(4, GRID, GRID, -1)
            for tokens in (mirrored[name], x)
        )
        np.testing.assert_allclose(there[:, :, ::-1], here, atol=1e-5)


def test_no_network_knows_places():
    """Upside down: the oracle says the same, and outputs are upside down."""
    labels = photos().reshape(4, GRID, PATCH, SIZE, 3)[:, :, :1]  # rows of patches
    labels = labels.repeat(PATCH, axis=2).reshape(4, SIZE, SIZE, 3)
    codes, found = results()["codes"][:, None], []
    for x in (labels, labels[:, ::-1].copy()):
        images = ops.convert_to_tensor(gray(x))
        vectors = model().code_vectors(images, model().targets(x), model().see(images))
        found.append((to_numpy(vectors), to_numpy(model().decode_codes(images, codes))))
    (vectors, outputs), (turned_vectors, turned_outputs) = found
    np.testing.assert_allclose(turned_vectors, vectors, atol=1e-4)
    blocks = turned_outputs.reshape(4, GRID, PATCH, SIZE, 3)[:, ::-1]
    np.testing.assert_allclose(blocks.reshape(outputs.shape), outputs, atol=1e-4)
    paths = [w.path for w in part_model().weights]
    assert not [path for path in paths if "positions" in path]


@pytest.mark.parametrize("sees_image", [True, False])
def test_fit_teaches_all_parts(sees_image):
    first = part_model(oracle_sees_image=sees_image)
    networks = (first.oracle, first.base, first.base_stem, first.parts)
    before = [weights_of(network) for network in networks]
    first.compile(keras.optimizers.SGD(1.0))
    first.train_on_batch(gray(photos()), photos())
    for network, old in zip(networks, before, strict=True):
        changed = zip(weights_of(network), old, strict=True)
        assert any((a != b).any() for a, b in changed)


def test_outputs_of_its_own_codes_are_the_reconstruction():
    images, codes = gray(photos()), results()["codes"]
    assert codes.shape == (4, PARTS) and model().code_length == PARTS
    outputs = to_numpy(compiled(model().decode_codes)(images, codes[:, None]))
    expected = model().reconstruct(images, photos())
    np.testing.assert_allclose(outputs, expected, atol=1e-5)
    np.testing.assert_array_equal(model().codes(images, photos()), codes)


def test_tunes_and_saves(tmp_path):
    first = part_model()
    uvim = UViM(first, language_model(first))
    old = weights_of(first)
    tuned = RewardTuning(uvim, reward=ColorfulnessReward(), num_samples=2, seed=0)
    tuned.compile(keras.optimizers.SGD(0.1))
    tuned.fit(gray(photos()), verbose=0)
    for a, b in zip(weights_of(first), old, strict=True):
        np.testing.assert_array_equal(a, b)
    uvim.save(tmp_path / "uvim.keras")
    again = keras.models.load_model(tmp_path / "uvim.keras")
    assert again.stage_one.get_config() == first.get_config()
    outputs = uvim.predict(gray(photos()), verbose=0)
    np.testing.assert_allclose(
        again.predict(gray(photos()), verbose=0), outputs, atol=1e-6
    )


def test_computes_in_half_precision_with_codes_and_logits_in_full():
    first = part_model(dtype="mixed_bfloat16")
    inputs = {"images": gray(photos()), "labels": photos()}
    result = compiled(lambda x: first(x))(inputs)
    assert keras.backend.standardize_dtype(result["codes"].dtype) == "int32"
    colors = result["logits"]["color"]
    assert keras.backend.standardize_dtype(colors.dtype) == "float32"
    assert np.isfinite(to_numpy(colors)).all()


def test_messages(tmp_path):
    with pytest.raises(ValueError, match=r"codes of parts.*code_grid=0"):
        part_model(code_grid=0)
    path = tmp_path / "weights.npz"
    np.savez(path, x=np.zeros(1))
    with pytest.raises(ValueError, match=r"codes of a grid.*code_grid=3"):
        load_big_vision(path, model())
