"""CIDEr-D of a dataset, with exact document frequencies, on the host."""

import collections
import math
import warnings

import keras
import numpy as np

from keras_reward.forms.captions import counted_lengths, counted_references
from keras_reward.ragged import as_array, is_ragged

ORDERS = 4
SIGMA = 6.0


class Cider:
    """CIDEr-D of a dataset's captions, as it is usually reported.

    The document frequencies are those of the evaluated references. They are only known
    at the end, so `result` does the work. Equal to pycocoevalcap's `Cider` on the same
    words.

    Captions are integer ids (cut at the first end token or padding; a reference that is
    all padding is absent), or strings of words separated by spaces. Negative ids, such
    as -100, are padding. Both may be arrays, tensors or lists, also ragged ones; an
    empty string in an array of references is absent. An image without references has no
    CIDEr-D: it is NaN in `per_image` and left out of the mean.

    With the references of only one image, `result` warns: every n-gram is in all
    images, weighs log(1) = 0, and so is every score.

    Args:
        end_id: id of the end token. Default None: captions end only at padding.
        pad_id: id of padding. Default 0.
        count_end_token: whether the end token counts as a word, as in `CIDErReward`.
            Default False: published numbers do not count it.
        corpus: references of other images, in the form of `y_true`, whose document
            frequencies are used. Default: the evaluated references.

    Example:

    ```python
    from keras_reward.evaluation import Cider

    metric = Cider()
    metric.update_state([["a dog runs here", "a dog"]], ["a dog runs here"])
    metric.update_state([["the red car stops"]], ["the red car stops"])
    metric.result()["cider"]  # 8.26
    ```

    Reference: Vedantam et al. 2015, "CIDEr: Consensus-based Image Description
    Evaluation", section 7 (CIDEr-D).
    """

    def __init__(self, end_id=None, pad_id=0, count_end_token=False, corpus=None):
        self._cut = (end_id, pad_id, count_end_token)
        self.corpus = None if corpus is None else self._references(corpus)
        self.reset_state()

    def reset_state(self):
        """Forgets all captions."""
        self.references = []
        self.candidates = []

    def update_state(self, y_true, y_pred):
        """Adds captions.

        Args:
            y_true: references: ids `(images, references, T)`, or strings
                `(images, references)`, or a list of either for each image.
            y_pred: one caption for each image: ids `(images, T2)`, or strings.
        """
        references = self._references(y_true)
        candidates = [ngram_counts(words) for words in self._candidates(y_pred)]
        if len(references) != len(candidates):
            raise ValueError(
                "`y_true` and `y_pred` must have the same number of images. Received: "
                f"references of {len(references)} and captions of {len(candidates)}"
            )
        self.references += references
        self.candidates += candidates

    def result(self):
        """CIDEr-D of all captions so far.

        Returns:
            A dict: `cider`, the mean over images (NaN if there are none), in [0, 10],
            and `per_image`, an array in the order of the images.
        """
        corpus = self.references if self.corpus is None else self.corpus
        if sum(len(references) > 0 for references in corpus) == 1:
            warnings.warn(
                "CIDEr-D of one image is 0, whatever the caption: its n-grams are in "
                "all images. Evaluate more images at once, or give `corpus`.",
                stacklevel=2,
            )
        idf = inverse_document_frequencies(corpus)
        values = [
            similarity(candidate, references, idf)
            for candidate, references in zip(
                self.candidates, self.references, strict=True
            )
        ]
        values = np.array(values, "float64")
        finite = values[~np.isnan(values)]
        return {
            "cider": float(finite.mean()) if len(finite) else math.nan,
            "per_image": values,
        }

    def _candidates(self, y_pred):
        y_pred = strings_as_arrays(y_pred)
        captions = texts_of(y_pred)
        if captions is not None:
            return [caption.split() for caption in captions]
        ids = as_ids(y_pred, 2, "captions", "(images, tokens)")
        lengths = counted_lengths(np, ids, *self._cut)
        return [row[:length].tolist() for row, length in zip(ids, lengths, strict=True)]

    def _references(self, y_true):
        """N-gram counts of the references of each image."""
        y_true = strings_as_arrays(y_true)
        first = next((own for own in y_true if len(own)), [])
        if texts_of(first) is not None:
            images = [
                [text.split() for text in texts_of(own, padded=True)] for own in y_true
            ]
        else:
            ids = as_ids(y_true, 3, "references", "(images, references, tokens)")
            images = [
                [ids[:n].tolist() for ids, n, present in captions if present]
                for captions in map(zip, *counted_references(np, ids, *self._cut))
            ]
        return [[ngram_counts(words) for words in image] for image in images]


def cider(y_true, y_pred, **arguments):
    """CIDEr-D of a dataset in one call.

    Args:
        y_true, y_pred: as for `Cider.update_state`.
        **arguments: arguments of `Cider`.

    Returns:
        A dict: `cider`, the mean over images, and `per_image`, an array.

    Example:

    ```python
    from keras_reward.evaluation import cider

    references = [["a dog runs here", "a dog"], ["the red car stops"]]
    cider(references, ["a dog runs here", "the red car stops"])["cider"]  # 8.26
    ```
    """
    metric = Cider(**arguments)
    metric.update_state(y_true, y_pred)
    return metric.result()


def strings_as_arrays(captions):
    """TensorFlow's strings as an array or lists, and its ragged tensors as lists."""
    if is_ragged(captions):
        return captions.to_list()
    if "string" in str(getattr(captions, "dtype", "")):
        return captions.numpy()
    return captions


def texts_of(captions, padded=False):
    """A list of strings; None if `captions` are not strings.

    Args:
        captions: what may be a list or an array of strings.
        padded: whether empty strings in an array are padding, and left out.
    """
    if isinstance(captions, np.ndarray) and captions.dtype.kind in "OUS":
        captions = [c for c in captions.tolist() if not padded or c not in ("", b"")]
    if not isinstance(captions, list | tuple) or not all(
        isinstance(caption, str | bytes) for caption in captions
    ):
        return None
    return [c.decode() if isinstance(c, bytes) else c for c in captions]


def as_ids(ids, rank, what, shape):
    """Integer ids as a NumPy array."""
    ids = np.asarray(keras.ops.convert_to_numpy(as_array(ids)))
    if ids.ndim != rank or ids.dtype.kind not in "iu":
        raise ValueError(
            f"CIDEr needs {what} as integer ids {shape}, or as strings. "
            f"Received: shape {ids.shape}, dtype {ids.dtype}"
        )
    if ids.dtype == "uint64":
        ids = np.minimum(ids, np.iinfo("int64").max)
    return ids.astype("int64")


def ngram_counts(words):
    """How often each n-gram occurs: for n = 1 to 4, a `Counter` of tuples."""
    return [
        collections.Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
        for n in range(1, ORDERS + 1)
    ]


def inverse_document_frequencies(corpus):
    """`log(images) - log(images with the n-gram)` as a function of the n-gram.

    Args:
        corpus: n-gram counts of the references of each image.
    """
    frequencies = collections.Counter()
    for references in corpus:
        frequencies.update({g for counts in references for c in counts for g in c})
    log_images = math.log(max(1, sum(len(references) > 0 for references in corpus)))
    return lambda ngram: log_images - math.log(max(1, frequencies[ngram]))


def similarity(candidate, references, idf):
    """CIDEr-D of one candidate: a float, NaN without references."""
    if not references:
        return math.nan
    vectors = tf_idf(candidate, idf)
    total = 0.0
    for reference in references:
        difference = candidate[1].total() - reference[1].total()  # of bigrams
        penalty = math.exp(-(difference**2) / (2.0 * SIGMA**2))
        pairs = zip(vectors, tf_idf(reference, idf), strict=True)
        total += penalty * sum(clipped_cosine(*pair) for pair in pairs)
    return 10.0 * total / (ORDERS * len(references))


def tf_idf(counts, idf):
    """Vectors of count times idf, one dict for each n."""
    return [{ngram: n * idf(ngram) for ngram, n in each.items()} for each in counts]


def clipped_cosine(vector, other):
    """Cosine of two sparse vectors, of which the first is clipped to the second."""
    norms = math.hypot(*vector.values()) * math.hypot(*other.values())
    if norms == 0.0:
        return 0.0
    shared = vector.keys() & other.keys()
    return sum(min(vector[g], other[g]) * other[g] for g in shared) / norms
