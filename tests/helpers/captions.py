"""Padded token ids that several tests of captions share."""

import numpy as np

PAD, END = 0, 1


def words_of(caption):
    """Words before the first end token or padding, as text."""
    words = []
    for token in caption:
        if token in (PAD, END):
            break
        words.append(str(token))
    return " ".join(words)


def random_captions(seed, images, references, tokens, vocabulary=60):
    """Ids `(images, references, tokens)` of frequent and rare words, some absent."""
    generator = np.random.default_rng(seed)
    shape = (images, references, tokens)
    ids = np.minimum(generator.zipf(1.4, shape), vocabulary) + 1  # END among them
    ids += ids == END
    lengths = generator.integers(0, tokens + 1, shape[:2])
    position = np.arange(tokens)
    ids = np.where(position < lengths[..., None], ids, PAD)
    ids = np.where(position == lengths[..., None], END, ids)
    absent = generator.random(shape[:2]) < 0.2
    absent[:, 0] = False
    ids[absent] = PAD
    return ids.astype("int32")
