"""Words and their token ids."""

import collections
import re

import keras
import numpy as np

PAD_ID, END_ID, UNKNOWN_ID = 0, 1, 2
FIRST_WORD_ID = 3


class Vocabulary:
    """Translates between captions and token ids.

    Captions are lower-cased, and all characters except letters, digits and underscores
    are removed ("don't" becomes "dont"), as is usual before captions are compared. Id 0
    is padding (and the start of a sequence), 1 the end token, 2 any unknown word, and
    known words begin at 3.

    Args:
        words: the known words, in the order of their ids: a list of distinct strings,
            as `encode` splits them.
        max_length: length of an encoded caption, including the end token.

    Raises:
        ValueError: if a word occurs twice or cannot occur in a caption.

    Example:

    ```python
    from keras_reward.data import Vocabulary

    captions = ["A three above two sevens.", "two sevens below a three"]
    vocabulary = Vocabulary.from_captions(captions, max_length=8)
    ids = vocabulary.encode(captions)  # (2, 8) int32
    vocabulary.decode(ids)  # ["a three above two sevens", "two sevens below a three"]
    Vocabulary(vocabulary.words, 8)  # the same again, from what JSON can hold
    ```
    """

    def __init__(self, words, max_length):
        words = list(words)
        repeated = [w for w, n in collections.Counter(words).items() if n > 1]
        odd = [word for word in words if split(word) != [word]]
        if repeated or odd:
            raise ValueError(
                "`words` must be distinct, in lower case, without spaces and "
                f"punctuation. Received: {(repeated or odd)[0]!r}"
                f"{' twice' if repeated else ''}"
            )
        if not isinstance(max_length, int) or max_length < 1:
            raise ValueError(
                "`max_length` must be a positive int, a number of tokens. "
                f"Received: max_length={max_length!r}"
            )
        self.words = words
        self.max_length = max_length
        self.ids = {word: i for i, word in enumerate(words, FIRST_WORD_ID)}

    @classmethod
    def from_captions(cls, captions, max_length, min_count=1):
        """Makes a vocabulary of the words in captions, the most frequent ones first.

        Args:
            captions: iterable of strings.
            max_length: length of an encoded caption, including the end token.
            min_count: words that occur less often are left out.
        """
        counts = collections.Counter(w for caption in captions for w in split(caption))
        # By frequency, then alphabetically: the order of captions does not matter.
        ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        return cls([word for word, n in ranked if n >= min_count], max_length)

    def __len__(self):
        """Number of token ids, including special ones."""
        return FIRST_WORD_ID + len(self.words)

    def encode(self, captions):
        """Token ids of captions.

        Args:
            captions: a list of strings; or a list of such lists, one for each image.

        Returns:
            `(captions, max_length)` int32, with end token and padding. A caption that
            is too long loses its last words, but keeps the end token. For lists of
            lists, `(images, captions, max_length)`, with captions of padding for images
            that have fewer than others.
        """
        if isinstance(captions, str):
            raise ValueError(
                f"`captions` must be a list of strings. Received: {captions!r}"
            )
        if captions and not isinstance(captions[0], str):
            most = max(map(len, captions))
            ids = np.full((len(captions), most, self.max_length), PAD_ID, "int32")
            for image, own in zip(ids, captions, strict=True):
                image[: len(own)] = self.encode(own)
            return ids
        ids = np.full((len(captions), self.max_length), PAD_ID, "int32")
        for row, caption in zip(ids, captions, strict=True):
            words = split(caption)[: self.max_length - 1]
            row[: len(words)] = [self.ids.get(word, UNKNOWN_ID) for word in words]
            row[len(words)] = END_ID
        return ids

    def decode(self, ids):
        """Captions of token ids, up to their first end token.

        Args:
            ids: int array or tensor `(..., T)`.

        Returns:
            A string for `(T,)`, else a list of strings, nested like `ids`. Padding and
            negative ids are left out, and unknown words become "<unknown>".
        """
        ids = keras.ops.convert_to_numpy(ids)
        if ids.ndim > 1:
            return [self.decode(row) for row in ids]
        ended = np.flatnonzero(ids == END_ID)
        ids = ids[: ended[0]] if len(ended) else ids
        return " ".join(self.word(int(i)) for i in ids if i >= 0 and i != PAD_ID)

    def word(self, token_id):
        """The word of an id."""
        known = FIRST_WORD_ID <= token_id < len(self)
        return self.words[token_id - FIRST_WORD_ID] if known else "<unknown>"


def split(caption):
    """The words of a caption, lower-cased and without punctuation."""
    return re.sub(r"[^\w\s]", "", caption.lower()).split()
