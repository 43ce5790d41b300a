"""The reward for captions: CIDEr-D (Pinto et al. 2023, section 4.4)."""

import warnings

import keras
import numpy as np
from keras import ops

from keras_reward.forms.captions import (
    check_ids,
    counted_lengths,
    counted_references,
)
from keras_reward.forms.integers import refuse_beyond_int32
from keras_reward.ragged import as_array, rank_of
from keras_reward.rewards.ngrams import (
    build_table,
    check_table,
    count_matches,
    document_frequencies,
    look_up_ngrams,
)
from keras_reward.rewards.reward import Reward

ORDERS = 4  # n-grams of 1 to 4 words
SIGMA = 6.0  # width of the length penalty, in bigrams


@keras.saving.register_keras_serializable(package="keras_reward")
class CIDErReward(Reward):
    """CIDEr-D of captions: tf-idf similarity of their n-grams to the references'.

    The mean over n = 1 to 4 and over the references of an image, times 10, of

    ```
    exp(-(l - l')^2 / (2 * 6^2)) * sum(min(v, v') * v') / (|v| * |v'|)
    ```

    where, for candidate and reference, `v` is the vector of count times idf of each
    n-gram and `l` the number of bigrams; `idf = log(images) - log(max(1, images with
    it))`. The summand of an n with a zero norm is 0.

    The document frequencies are those of the training captions: call `adapt` with them
    before using the reward. Those of a batch would change from batch to batch.

    A caption ends at its first end token or padding. Negative ids, such as -100, are
    padding, whatever `pad_id` is. A reference that is all padding is absent, so images
    may have different numbers of references. A reference that consists of the end token
    is empty, but counts. A candidate whose image has no reference gets 0. Each word
    needs an id of its own: with one id for all unknown words, these would match each
    other and change the reward.

    Does not punish: captions that break off, if the end token does not count (see
    `count_end_token`); repeated words, except when the length penalty applies; odd
    grammar made of frequent phrases. `CIDErReward(...) + RepetitionReward()` punishes
    repetition, and `+ 0.1 * LengthReward(...)` also captions that break off.

    Args:
        end_id: id of the end token. Default None: captions end only at padding.
        pad_id: id of padding. Default 0. It may be the same as `end_id`.
        count_end_token: whether the end token counts as a word. Default True, as is
            usual in tuning: otherwise captions that break off ("a man on a") earn as
            much as complete ones, and the model learns to write them. All references
            then end with it, whether or not it is in the array; candidates only if
            they contain it. With False, or without `end_id`, the reward is CIDEr-D as
            published.
        name: optional name. Default "cider".

    Call arguments: `y_true` integer ids of references, `(rows, references, T)`,
    padded; `y_pred` integer ids of captions, `(rows, T2)`. In a call by hand, also as
    ragged lists or a `tf.RaggedTensor`. Returns `(rows,)` in [0, 10].

    Example:

    ```python
    import numpy as np
    from keras_reward import CIDErReward

    references = np.array([  # two images, up to two captions each
        [[5, 6, 7, 8, 1], [5, 6, 9, 1, 0]],
        [[5, 2, 3, 4, 1], [0, 0, 0, 0, 0]],
    ])
    reward = CIDErReward(end_id=1, count_end_token=False)
    reward.adapt(references)
    reward(references, np.array([[5, 6, 7, 8, 1], [9, 9, 1, 0, 0]]))  # [6.01, 0.0]
    ```

    Reference: Vedantam et al. 2015, "CIDEr: Consensus-based Image Description
    Evaluation", section 7 (CIDEr-D); Pinto et al. 2023, "Tuning computer vision models
    with task rewards", section 4.4; on the end token, Rennie et al. 2017,
    "Self-critical Sequence Training for Image Captioning".
    """

    def __init__(self, end_id=None, pad_id=0, count_end_token=True, name=None):
        super().__init__(name=name)
        self.end_id = end_id
        self.pad_id = pad_id
        self.count_end_token = count_end_token
        self._probes = None
        self._variables = []

    @property
    def name(self):
        return self._name or "cider"

    @property
    def variables(self):
        """The table of n-grams and their idf; empty before `adapt`."""
        return list(self._variables)

    def adapt(self, references):
        """Counts document frequencies, on the host. Replaces earlier ones.

        An image is a document: an n-gram counts once for all its captions. Call `adapt`
        before `fit`; if you call it again, `compile` again too. All ids are in memory
        while it runs.

        Args:
            references: integer ids `(images, references, T)`, padded, or as ragged
                lists or a `tf.RaggedTensor`; or an iterable of such batches, which may
                differ in shape: a `tf.data.Dataset`, a `keras.utils.PyDataset`, a
                generator. If the batches are `(x, y)`, as for `fit`, `y` is used.

        Raises:
            ValueError: without any caption. With captions of only one image, where all
                frequencies are those of the image itself, it warns: every n-gram weighs
                nothing, and every reward is 0.
        """
        captions, lengths, images = [], [], []
        count = 0
        for batch in reference_batches(references):
            batch = keras.ops.convert_to_numpy(as_array(batch))
            ids, length, present = self._references(np, batch)
            captions.append(ids[present])
            lengths.append(length[present])
            captioned = np.any(present, axis=-1)
            images.append(count + (np.cumsum(captioned) - 1)[np.nonzero(present)[0]])
            count += int(captioned.sum())
        if not count:
            raise ValueError(
                f"Reward {self.name!r} needs at least one caption to adapt to. "
                f"Received: {len(captions)} batches without captions"
            )
        if count == 1:
            warnings.warn(
                f"Reward {self.name!r} was adapted to the captions of one image, so "
                "that every n-gram is in all images, weighs log(1) = 0, and every "
                "reward is 0. Adapt it to the captions of all training images.",
                stacklevel=2,
            )
        width = max(ids.shape[1] for ids in captions)
        captions = [np.pad(i, ((0, 0), (0, width - i.shape[1]))) for i in captions]
        parents, words, frequencies = document_frequencies(
            *map(np.concatenate, (captions, lengths, images)), ORDERS
        )
        idf = np.log(float(count)) - np.log(np.concatenate([[1.0], frequencies]))
        columns, directory, self._probes = build_table(parents, words)
        self._make_variables([*columns, directory, idf.astype("float32")])

    def _make_variables(self, values):
        # Variables, because a compiled step would contain a copy of constants.
        names = ("parents", "words", "numbers", "directory", "idf")
        self._variables = [
            keras.Variable(
                value, trainable=False, dtype=str(value.dtype), name=f"cider_{name}"
            )
            for name, value in zip(names, values, strict=True)
        ]

    def _references(self, xp, ids):
        """Ids of references, checked: `(ids, lengths, present)`."""
        ids = check_ids(self.name, ids, ("rows", "references", "tokens"), "references")
        return counted_references(
            xp, ids, self.end_id, self.pad_id, self.count_end_token
        )

    def _squared_idf(self, ids, lengths):
        """Squared idf of each n-gram of captions, 0 beyond their ends.

        Args:
            ids: `(..., T)`.
            lengths: `(...,)`.

        Returns:
            A list over n of `(..., T)` float32.
        """
        *columns, directory, idf = self._variables
        numbers = look_up_ngrams(columns, directory, self._probes, ids, ORDERS)
        positions = ops.arange(ops.shape(ids)[-1], dtype="int32")
        return [
            ops.where(
                positions + n < lengths[..., None],
                ops.square(ops.take(idf, number)),
                0.0,
            )
            for n, number in enumerate(numbers)
        ]

    def _check_adapted(self):
        if not self._variables:
            raise ValueError(
                f"Reward {self.name!r} has no document frequencies yet: call "
                "`reward.adapt(references)` with the training captions before it is "
                "used. Received: a reward that is not adapted"
            )

    def narrow(self, argument, values):
        refuse_beyond_int32(f"Reward {self.name!r}", argument, values, "token ids")
        return values

    def prepare(self, y_true):
        """Counts and weighs the n-grams of the references, once per image.

        Args:
            y_true: `(batch, references, T)` integer ids, padded.
        """
        self._check_adapted()
        ids, lengths, present = self._references(ops, y_true)
        counts = count_matches(ids, ids, lengths, ORDERS)
        norms = norms_of(counts, self._squared_idf(ids, lengths))
        share = ops.cast(present, "float32")
        total = ops.sum(share, axis=-1, keepdims=True)
        # One weight for each reference and order holds the mean over references and
        # orders, the factor 10 and the division by the norm.
        share = share * (10.0 / ORDERS) / ops.maximum(total, 1.0)
        weights = ops.stack([share * inverse(norm) for norm in norms], axis=-1)
        return {"ids": ids, "lengths": lengths, "weights": weights}

    def call(self, y_true, y_pred):
        self._check_adapted()
        ids = check_ids(self.name, y_pred, ("rows", "tokens"), "captions")
        lengths = counted_lengths(
            ops, ids, self.end_id, self.pad_id, self.count_end_token
        )
        own_counts = count_matches(ids, ids, lengths, ORDERS)
        squares = self._squared_idf(ids, lengths)
        norms = norms_of(own_counts, squares)
        counts = count_matches(ids[:, None], y_true["ids"], y_true["lengths"], ORDERS)
        similarity = 0.0
        for n in range(ORDERS):
            own = ops.cast(ops.maximum(own_counts[n], 1), "float32")[:, None]
            count = ops.cast(counts[n], "float32")
            # Over positions, not distinct n-grams: each counts `own` times too often.
            square = squares[n][:, None] / own
            products = ops.sum(ops.minimum(own, count) * count * square, axis=-1)
            weights = y_true["weights"][..., n] * inverse(norms[n])[:, None]
            similarity = similarity + products * weights
        # CIDEr-D compares numbers of bigrams. Numbers of words have the same
        # difference, except for empty captions, whose similarity is 0 anyway.
        difference = ops.cast(lengths[:, None] - y_true["lengths"], "float32")
        penalty = ops.exp(ops.square(difference) * (-0.5 / SIGMA**2))
        return ops.sum(similarity * penalty, axis=-1)

    def get_config(self):
        config = {
            **super().get_config(),
            "end_id": self.end_id,
            "pad_id": self.pad_id,
            "count_end_token": self.count_end_token,
        }
        if self._variables:
            config["probes"] = self._probes
            config["table_sizes"] = [variable.shape[0] for variable in self.variables]
        return config

    @classmethod
    def from_config(cls, config):
        """Makes the reward; if it was adapted, with variables for the loaded table."""
        config = dict(config)
        probes = config.pop("probes", None)
        sizes = config.pop("table_sizes", None)
        reward = cls(**config)
        if sizes is not None:
            check_table(sizes, probes)
            reward._probes = probes
            dtypes = ("int32", "int32", "int32", "int32", "float32")
            reward._make_variables(list(map(np.zeros, sizes, dtypes)))
        return reward


def reference_batches(references):
    """Yields arrays `(images, references, T)`, or ragged, from what `adapt` takes."""
    is_list = isinstance(references, list) and rank_of(references) == 3
    is_list = is_list and not isinstance(references[0], tuple)  # `(x, y)`
    if hasattr(references, "shape") or is_list:
        batches = [references]
    elif isinstance(references, keras.utils.PyDataset):
        batches = (references[i] for i in range(references.num_batches))
    else:
        batches = references
    for batch in batches:
        yield batch[1] if isinstance(batch, tuple) else batch


def norms_of(counts, squares):
    """Norms of tf-idf vectors: a list over n of `(...,)`.

    Args:
        counts: list over n of `(..., T)`, how often the n-gram at a position occurs.
        squares: list over n of `(..., T)`, its squared idf, 0 beyond the end.
    """
    # A sum over positions: an n-gram that occurs `count` times adds `count` times.
    return [
        ops.sqrt(ops.sum(ops.cast(count, "float32") * square, axis=-1))
        for count, square in zip(counts, squares, strict=True)
    ]


def inverse(norms):
    """`1 / norms`, and 0 where the norm is 0."""
    zero = norms == 0.0
    return ops.where(zero, 0.0, 1.0 / ops.where(zero, 1.0, norms))
