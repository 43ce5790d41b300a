"""A vector quantiser with a dictionary that follows the vectors."""

import keras
from keras import ops

from keras_reward.models.sizes import check_sizes

# A new entry is its parent with each coordinate multiplied by a number this close to 1.
PERTURBATION = 1e-3
# Added to variances, and the smallest norm, before a division.
EPSILON = 1e-5


@keras.saving.register_keras_serializable(package="keras_reward")
class VectorQuantizer(keras.layers.Layer):
    """Replaces each vector by the nearest entry of a dictionary.

    Vectors are standardised to mean 0 and variance 1 over their coordinates; entries
    have length 1. The dictionary is not trained by gradient; it follows the vectors. In
    a training step, the discounted count of each entry, and the discounted sum of the
    vectors that it replaced, are multiplied by `momentum`, and those of the batch are
    added. An entry is its sum, scaled to length 1. An entry whose count falls below
    `min_count` is dead. It is replaced by a slightly perturbed copy of the most
    frequent entry, and the two share its count.

    The gradient is passed straight through: the vector gets the gradient of its entry.

    Args:
        num_codes: number of entries.
        momentum: factor of counts and sums in each step. Default 0.995.
        min_count: discounted count below which an entry is dead. Default 0.1, which an
            entry used once reaches after about 460 steps without use.
        commitment: weight of the loss that pulls vectors towards their entries, the
            mean squared distance. Default 0.0, as published.
        seed: int, seed of the perturbations of copied entries.
        **kwargs: arguments of `keras.layers.Layer`. The layer always uses float32.

    Call arguments: vectors `(batch, n, width)`. `training=True` updates the dictionary
    unless the layer's `trainable` is False. Returns the entries `(batch, n, width)`
    float32, and the codes `(batch, n)` int32, which are the indices of the entries.

    Example:

    ```python
    import numpy as np
    from keras_reward.models import VectorQuantizer

    quantizer = VectorQuantizer(num_codes=8, seed=0)
    vectors = np.random.default_rng(0).normal(size=(2, 3, 4)).astype("float32")
    entries, codes = quantizer(vectors)  # (2, 3, 4), (2, 3)
    quantizer.lookup(codes)              # the same entries
    ```

    References: van den Oord et al. 2017, "Neural Discrete Representation Learning",
    appendix A.1 (the update); Kolesnikov et al. 2022, "UViM: A Unified Modeling
    Approach for Vision with Learned Guiding Codes", and its published code
    (standardised vectors, entries of length 1, dead entries).
    """

    def __init__(
        self,
        num_codes,
        momentum=0.995,
        min_count=0.1,
        commitment=0.0,
        seed=None,
        **kwargs,
    ):
        super().__init__(**{**kwargs, "dtype": "float32"})
        check_sizes(num_codes=num_codes)
        if not 0 <= momentum < 1 or min_count < 0 or commitment < 0:
            raise ValueError(
                "`momentum` must be from 0 to 1, 1 excluded, `min_count` and "
                f"`commitment` at least 0. Received: momentum={momentum}, "
                f"min_count={min_count}, commitment={commitment}"
            )
        self.num_codes = num_codes
        self.momentum = momentum
        self.min_count = min_count
        self.commitment = commitment
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def build(self, shape):
        self.sums = self.add_weight(
            shape=(self.num_codes, shape[-1]),
            initializer=keras.initializers.RandomNormal(
                stddev=self.num_codes**-0.5, seed=self.seed
            ),
            trainable=False,
            aggregation="mean",
            name="sums",
        )
        self.counts = self.add_weight(
            shape=(self.num_codes,),
            initializer="ones",
            trainable=False,
            aggregation="mean",
            name="counts",
        )

    def call(self, vectors, training=False):
        vectors = standardize(vectors)
        entries = self.entries()
        codes = nearest(ops.stop_gradient(vectors), entries)
        found = ops.take(entries, codes, axis=0)
        if training and self.trainable:
            self.update(ops.stop_gradient(vectors), codes)
        if training and self.commitment:
            distance = ops.mean(ops.square(vectors - found))
            self.add_loss(self.commitment * distance)
        return vectors + ops.stop_gradient(found - vectors), codes

    def entries(self):
        """The dictionary: `(num_codes, width)`, each entry of length 1."""
        means = self.sums / self.counts[:, None]
        return means / ops.maximum(ops.norm(means, axis=-1, keepdims=True), EPSILON)

    def lookup(self, codes):
        """Entries `(..., width)` of int codes `(...)`."""
        return ops.take(self.entries(), codes, axis=0)

    def update(self, vectors, codes):
        """Moves the dictionary towards the vectors that its entries replaced.

        Args:
            vectors: `(batch, n, width)`, standardised.
            codes: `(batch, n)` int32.
        """
        codes = ops.reshape(codes, (-1,))
        vectors = ops.reshape(vectors, (-1, vectors.shape[-1]))
        used = ops.segment_sum(
            ops.ones_like(codes, dtype="float32"), codes, self.num_codes
        )
        total = ops.segment_sum(vectors, codes, self.num_codes)
        counts = self.counts * self.momentum + used
        means = (self.sums * self.momentum + total) / counts[:, None]
        noise = keras.random.uniform(
            means.shape,
            1.0 - PERTURBATION,
            1.0 + PERTURBATION,
            dtype="float32",
            seed=self.seed_generator,
        )
        parents, is_new, counts = replace_dead(counts, self.min_count)
        means = ops.take(means, parents, axis=0)
        means = ops.where(is_new[:, None], means * noise, means)
        self.sums.assign(means * counts[:, None])
        self.counts.assign(counts)

    def compute_output_shape(self, shape, *args, **kwargs):
        return tuple(shape), tuple(shape[:-1])

    def compute_output_spec(self, vectors, training=False):
        return (
            keras.KerasTensor(vectors.shape, "float32"),
            keras.KerasTensor(vectors.shape[:-1], "int32"),
        )

    def get_config(self):
        return {
            **super().get_config(),
            "num_codes": self.num_codes,
            "momentum": self.momentum,
            "min_count": self.min_count,
            "commitment": self.commitment,
            "seed": self.seed,
        }


def standardize(vectors):
    """Standardises vectors `(..., width)` to mean 0 and variance 1."""
    vectors = vectors - ops.mean(vectors, axis=-1, keepdims=True)
    variance = ops.mean(ops.square(vectors), axis=-1, keepdims=True)
    return vectors * ops.rsqrt(variance + EPSILON)


def nearest(vectors, entries):
    """The index of the nearest entry by Euclidean distance, the first one on ties.

    Args:
        vectors: `(batch, n, width)`.
        entries: `(num_codes, width)`.

    Returns:
        `(batch, n)` int32.
    """
    # Leaves out the square of the vector, which is the same for all entries.
    products = ops.matmul(vectors, ops.transpose(entries))
    distances = ops.sum(ops.square(entries), axis=-1) - 2.0 * products
    return ops.cast(ops.argmin(distances, axis=-1), "int32")


def replace_dead(counts, min_count):
    """Splits the most frequent entry in two as long as there is a dead one.

    Each split replaces the least frequent entry by the most frequent one and gives each
    half of the count. It stops early if that half would be dead as well.

    Args:
        counts: `(num_codes,)` float32.
        min_count: count below which an entry is dead.

    Returns:
        Three tensors `(num_codes,)`: the index of the entry that each is copied from,
        int32, its own if it is kept; whether it is new, bool; and the new counts.
    """
    places = ops.arange(ops.shape(counts)[0], dtype="int32")

    def dead_ones(parents, is_new, counts):
        can_split = ops.max(counts) >= 2.0 * min_count
        return ops.logical_and(can_split, ops.min(counts) < min_count)

    def split(parents, is_new, counts):
        most = ops.cast(ops.argmax(counts), "int32")
        least = ops.cast(ops.argmin(counts), "int32")
        dies = places == least
        shares = ops.logical_or(dies, places == most)
        parents = ops.where(dies, ops.take(parents, most), parents)
        is_new = ops.logical_or(is_new, dies)
        return parents, is_new, ops.where(shares, ops.max(counts) / 2.0, counts)

    start = (places, ops.zeros_like(places, dtype="bool"), counts)
    return ops.while_loop(dead_ones, split, start)


@keras.saving.register_keras_serializable(package="keras_reward")
class CodeUsage(keras.metrics.Metric):
    """How much of a dictionary is used, over all codes since the last reset.

    The result is a dict: `perplexity`, the exponential of the entropy of the codes,
    from 1 to `num_codes`, which is the number of codes if all are used equally often;
    and `dead_codes`, the number of codes that did not occur.

    Args:
        num_codes: number of entries of the dictionary.
        name: optional name.

    Call arguments: codes, int, of any shape.

    Example:

    ```python
    import numpy as np
    from keras_reward.models import CodeUsage

    usage = CodeUsage(num_codes=8)
    usage.update_state(np.array([[0, 0, 5, 5]]))
    usage.result()  # {"perplexity": 2.0, "dead_codes": 6.0}
    ```
    """

    def __init__(self, num_codes, name="code_usage"):
        super().__init__(name=name, dtype="float32")
        self.num_codes = num_codes
        self.counts = self.add_variable((num_codes,), "zeros", name="counts")

    def update_state(self, codes, sample_weight=None):
        """Counts codes; `sample_weight` is ignored."""
        codes = ops.reshape(ops.cast(codes, "int32"), (-1,))
        used = ops.ones_like(codes, dtype="float32")
        used = ops.segment_sum(used, codes, self.num_codes)
        self.counts.assign(self.counts + used)

    def result(self):
        total = ops.sum(self.counts)
        shares = self.counts / ops.maximum(total, 1.0)
        logs = ops.log(ops.where(shares > 0, shares, 1.0))
        dead = ops.sum(ops.cast(self.counts == 0, "float32"))
        return {"perplexity": ops.exp(-ops.sum(shares * logs)), "dead_codes": dead}

    def get_config(self):
        return {"num_codes": self.num_codes, "name": self.name}
