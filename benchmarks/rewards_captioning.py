"""How fast `CIDErReward` is beside pycocoevalcap, with the same document frequencies.

64 images with 8 captions each, 5 references, arrays of 20 tokens, jitted on JAX on
whatever device it has. Candidates and references are captions that people wrote, so
that they have the lengths of captions; document frequencies are those of all captions
in a folder with `coco_captions_val2017.json.gz` and `flickr8k_captions.json.gz` (COCO's
format). As in the tuner, references are prepared once per image and repeated to rows,
and the tables come in as arguments, not as constants.
"""

import collections
import gzip
import json
import os
import re

import numpy as np
from timing import in_turns

IMAGES, SAMPLES, REFERENCES, TOKENS = 64, 8, 5, 20
PAD, END = 0, 1
FILES = ("coco_captions_val2017.json.gz", "flickr8k_captions.json.gz")


def read_captions(folder):
    """Captions of each image, as lists of lower-case words."""
    images = collections.defaultdict(list)
    for name in FILES:
        with gzip.open(os.path.join(folder, name)) as file:
            annotations = json.load(file)["annotations"]
        for annotation in annotations:
            words = re.sub(r"[^\w\s]", "", annotation["caption"].lower()).split()
            images[name, annotation["image_id"]].append(words)
    return list(images.values())


def to_ids(images):
    """Captions as ids `(images, captions, tokens)`, ended and padded."""
    vocabulary = {}
    captions = max(map(len, images))
    tokens = 1 + max(len(words) for image in images for words in image)
    ids = np.full((len(images), captions, tokens), PAD, "int32")
    for i, image in enumerate(images):
        for k, words in enumerate(image):
            row = [vocabulary.setdefault(word, len(vocabulary) + 2) for word in words]
            ids[i, k, : len(row) + 1] = [*row, END]
    return ids


def batch_of(ids):
    """References `(64, 5, 20)`, and for each image 8 captions of any: `(512, 20)`."""
    generator = np.random.default_rng(0)
    chosen = generator.choice(len(ids), IMAGES, replace=False)
    references = ids[chosen, :REFERENCES, :TOKENS]
    # Half of the captions are of the image itself, as a good model's would be.
    others = generator.integers(0, len(ids), (IMAGES, SAMPLES // 2))
    own = np.repeat(chosen[:, None], SAMPLES - SAMPLES // 2, axis=1)
    which = np.concatenate([others, own], axis=1)
    captions = ids[which, generator.integers(0, 5, which.shape), :TOKENS]
    return references, captions.reshape(-1, TOKENS)


def library(ids, references, captions):
    """A function that evaluates the batch once by `CIDErReward`."""
    import jax
    import keras

    from keras_reward import CIDErReward
    from keras_reward.nests import repeat_rows

    reward = CIDErReward(end_id=END, pad_id=PAD, count_end_token=False)
    reward.adapt(ids)

    @jax.jit
    def evaluate(tables, references, captions):
        mapping = zip(reward.variables, tables, strict=True)
        with keras.StatelessScope(state_mapping=list(mapping)):
            rows = repeat_rows(reward.prepare(references), SAMPLES)
            return reward.evaluate(rows, captions)[0]

    tables = [variable.value for variable in reward.variables]
    references, captions = map(jax.numpy.asarray, (references, captions))
    return lambda: np.asarray(evaluate(tables, references, captions))


class Corpus(list):
    """A list of references with the length of the corpus they are from.

    pycocoevalcap takes the number of documents from its list of references.
    """

    documents = 0

    def __len__(self):
        return self.documents


def sentence(ids):
    """Ids as text for pycocoevalcap."""
    words = []
    for token in ids:
        if token in (PAD, END):
            break
        words.append(str(token))
    return " ".join(words)


def reference(ids, references, captions, samples=SAMPLES):
    """The same with pycocoevalcap, which counts n-grams of text."""
    from pycocoevalcap.cider.cider_scorer import CiderScorer

    counter = CiderScorer()
    for image in ids:
        present = [sentence(caption) for caption in image if caption[0] != PAD]
        counter += ("", present)
    counter.compute_doc_freq()
    candidates = [sentence(caption) for caption in captions]
    texts = [
        [sentence(caption) for caption in image if caption[0] != PAD]
        for image in references
    ]

    def evaluate():
        scorer = CiderScorer()
        scorer.document_frequency = counter.document_frequency
        scorer.crefs = Corpus()
        scorer.crefs.documents = len(ids)
        for row, candidate in enumerate(candidates):
            scorer += (candidate, texts[row // samples])
        return np.array(scorer.compute_cider())

    return evaluate


def measure(captions_folder, rounds=15):
    """Rows of (name, reference's name, seconds an item, the reference's, goal).

    An item is a caption; the goal is how many times faster ours should be.
    """
    ids = to_ids(read_captions(captions_folder))
    references, captions = batch_of(ids)
    ours = library(ids, references, captions)
    theirs = reference(ids, references, captions)
    np.testing.assert_allclose(ours(), theirs(), rtol=1e-4, atol=1e-5)
    items = len(captions)
    ours, theirs = (t / items for t in in_turns([ours, theirs], rounds))
    return [("CIDEr-D", "pycocoevalcap", ours, theirs, 40)]
