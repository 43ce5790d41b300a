"""The vector quantiser, against NumPy and numbers worked out by hand."""

import keras
import numpy as np
import pytest
from keras import ops
from tiny import compiled, to_numpy

from keras_reward.models import CodeUsage, VectorQuantizer
from keras_reward.models.quantization import PERTURBATION, replace_dead

CODES, WIDTH = 6, 4


def vectors(batch=3, n=5, seed=0):
    generator = np.random.default_rng(seed)
    return generator.normal(2.0, 3.0, (batch, n, WIDTH)).astype("float32")


def quantizer(counts=None, codes=CODES, **arguments):
    layer = VectorQuantizer(codes, **arguments)
    layer.build((None, None, WIDTH))
    generator = np.random.default_rng(1)
    counts = generator.uniform(1, 9, codes) if counts is None else np.array(counts)
    layer.sums.assign(generator.normal(size=(codes, WIDTH)) * counts[:, None])
    layer.counts.assign(counts)
    return layer


def state(layer):
    return np.float64(to_numpy(layer.sums)), np.float64(to_numpy(layer.counts))


def standardized(x):
    x = np.float64(x)
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)


def in_numpy(layer, x):
    """Entries and codes in float64."""
    sums, counts = state(layer)
    entries = sums / counts[:, None]
    entries /= np.linalg.norm(entries, axis=-1, keepdims=True)
    x = standardized(x)
    distances = np.square(x[:, :, None] - entries).sum(-1)
    return entries, distances.argmin(-1)


class Trained(keras.Model):
    """A model of a quantiser alone, whose training steps update the dictionary."""

    def __init__(self, layer):
        super().__init__()
        self.quantizer = layer
        self.built = True
        self.compile("sgd")

    def call(self, x, training=False):
        return self.quantizer(x, training=training)[0]

    def compute_loss(self, x=None, y=None, y_pred=None, *args, **kwargs):
        return ops.mean(y_pred)


def test_vectors_become_the_nearest_entries():
    layer, x = quantizer(), vectors()
    entries, codes = in_numpy(layer, x)
    found, found_codes = compiled(lambda x: layer(x))(x)
    np.testing.assert_array_equal(to_numpy(found_codes), codes)
    np.testing.assert_allclose(to_numpy(found), entries[codes], atol=1e-6)
    np.testing.assert_allclose(to_numpy(layer.lookup(codes)), entries[codes], atol=1e-6)
    assert len(np.unique(codes)) > 2


def test_the_gradient_passes_straight_through():
    """That of the entry, led through the standardisation alone."""
    layer, x = quantizer(), vectors(batch=1, n=2)
    weights = np.random.default_rng(2).normal(size=(1, 2, WIDTH)).astype("float32")

    class Probe(keras.Model):
        def __init__(self):
            super().__init__()
            self.quantizer = layer
            self.x = self.add_weight(x.shape, initializer="zeros")
            self.x.assign(x)
            self.built = True

        def call(self, inputs):
            return self.quantizer(ops.convert_to_tensor(self.x))[0]

        def compute_loss(self, x=None, y=None, y_pred=None, *args, **kwargs):
            return ops.sum(ops.multiply(y_pred, weights))

    probe = Probe()
    probe.compile(keras.optimizers.SGD(1.0))
    probe.train_on_batch(np.zeros((1, 1)))
    moved = np.float64(x) - to_numpy(probe.x)
    expected = np.zeros(x.shape)
    for index in np.ndindex(x.shape):
        step = np.zeros(x.shape)
        step[index] = 1e-5
        ends = standardized(x + step), standardized(x - step)
        expected[index] = (weights * (ends[0] - ends[1])).sum() / 2e-5
    np.testing.assert_allclose(moved, expected, atol=1e-5)
    assert np.abs(expected).max() > 0.1


def test_the_dictionary_follows_the_vectors():
    """Discounted counts and sums, three steps, against NumPy."""
    layer = quantizer(momentum=0.9, min_count=0.0)
    model = Trained(layer)
    for seed in range(3):
        x = vectors(seed=seed)
        _, codes = in_numpy(layer, x)
        sums, counts = state(layer)
        sums, counts = 0.9 * sums, 0.9 * counts
        np.add.at(sums, codes, standardized(x))
        np.add.at(counts, codes, 1.0)
        model.train_on_batch(x)
        found_sums, found_counts = state(layer)
        np.testing.assert_allclose(found_counts, counts, rtol=1e-5)
        np.testing.assert_allclose(found_sums, sums, atol=1e-4)


def test_nothing_moves_outside_training_or_when_frozen():
    layer = quantizer()
    before = state(layer)
    layer(vectors())
    layer.trainable = False
    Trained(layer).train_on_batch(vectors())
    for a, b in zip(state(layer), before, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.chance
def test_a_dead_entry_is_revived():
    """It becomes its parent but for a perturbation, and they share the count."""
    layer = quantizer(counts=[5.0, 0.05, 40.0, 3.0, 3.0, 3.0], momentum=0.5)
    layer.sums.assign(to_numpy(layer.sums) * np.array([[1.0], [0.0]] + [[1.0]] * 4))
    sums, counts = state(layer)
    alive = (sums / counts[:, None])[None, 3:4]
    Trained(layer).train_on_batch(alive)
    sums, counts = state(layer)
    assert counts[1] == counts[2] and 10.0 <= counts[1] <= 10.5
    ratio = (sums / counts[:, None])[1] / (sums / counts[:, None])[2]
    assert np.abs(ratio - 1).max() <= PERTURBATION * 1.01
    assert len(np.unique(ratio)) == WIDTH
    # With a perturbation of 0, nothing could tell the two apart.
    assert np.abs(ratio - 1).max() > PERTURBATION / 10


def test_dead_entries_split_the_most_frequent_ones_in_turn():
    counts = np.array([8.0, 0.01, 6.0, 0.02, 0.03, 1.0], "float32")
    parents, is_new, after = compiled(lambda c: replace_dead(c, 0.1))(counts)
    # 1 halves 0 (4, 4), 3 halves 2 (3, 3), 4 halves 0 again (2, 2).
    np.testing.assert_array_equal(to_numpy(parents), [0, 0, 2, 2, 0, 5])
    np.testing.assert_array_equal(to_numpy(is_new), [0, 1, 0, 1, 1, 0])
    np.testing.assert_allclose(to_numpy(after), [2.0, 4.0, 3.0, 3.0, 2.0, 1.0])


def test_an_heir_of_an_heir_is_made_from_the_first_parent():
    counts = np.array([9.0, 0.0, 0.0, 0.0], "float32")
    parents, _, after = replace_dead(counts, 0.1)
    np.testing.assert_array_equal(to_numpy(parents), [0, 0, 0, 0])
    assert to_numpy(after).sum() == 9.0


def test_splitting_stops_where_too_little_is_used():
    """Else it would go on for ever."""
    counts = np.array([0.3, 0.0, 0.0, 0.0], "float32")
    _, is_new, after = compiled(lambda c: replace_dead(c, 0.1))(counts)
    np.testing.assert_array_equal(to_numpy(is_new), [0, 1, 0, 0])
    np.testing.assert_allclose(to_numpy(after), [0.15, 0.15, 0.0, 0.0])


@pytest.mark.chance
def test_a_collapsed_dictionary_spreads_over_the_vectors():
    """All start at one place; splitting and following finds the clusters."""
    layer = quantizer(counts=np.ones(CODES), momentum=0.5)
    layer.sums.assign(np.tile([[1.0, -1.0, 1.0, -1.0]], (CODES, 1)))
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(4, WIDTH))
    model = Trained(layer)
    for _ in range(30):
        chosen = centres[generator.integers(0, 4, (8, 8))]
        x = chosen + 0.01 * generator.normal(size=chosen.shape)
        model.train_on_batch(x.astype("float32"))
    _, codes = layer(centres[None].astype("float32"))
    assert len(np.unique(to_numpy(codes))) == 4


def test_commitment_is_the_distance_to_the_entries():
    layer, x = quantizer(commitment=0.25), vectors()
    layer.trainable = False
    entries, codes = in_numpy(layer, x)
    expected = 0.25 * np.square(standardized(x) - entries[codes]).mean()
    layer(x, training=True)
    assert float(layer.losses[0]) == pytest.approx(expected, rel=1e-5)


def test_usage_is_perplexity_and_the_number_of_dead_codes():
    usage = CodeUsage(CODES)
    usage.update_state(np.array([[0, 1, 1]]))
    usage.update_state(np.array([[4]]))
    shares = np.array([0.25, 0.5, 0.25])
    result = usage.result()
    expected = np.exp(-(shares * np.log(shares)).sum())
    assert float(result["perplexity"]) == pytest.approx(expected, rel=1e-6)
    assert float(result["dead_codes"]) == 3.0
    usage.reset_state()
    assert float(usage.result()["dead_codes"]) == CODES


def test_configuration_round_trip():
    layer = VectorQuantizer(5, momentum=0.9, min_count=0.2, commitment=0.1, seed=3)
    again = VectorQuantizer.from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    usage = CodeUsage.from_config(CodeUsage(5).get_config())
    assert usage.num_codes == 5


ERRORS = {
    "codes": ({"num_codes": 0}, "num_codes=0"),
    "momentum": ({"num_codes": 2, "momentum": 1.0}, "momentum=1.0"),
    "count": ({"num_codes": 2, "min_count": -1}, "min_count=-1"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_message_for_settings_that_make_no_sense(case):
    arguments, message = ERRORS[case]
    with pytest.raises(ValueError, match=f"Received: .*{message}"):
        VectorQuantizer(**arguments)
