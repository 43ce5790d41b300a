"""Turns sequences of token ids into training data for a sequence model."""

import numpy as np

from keras_reward.nests import host_array, is_integer
from keras_reward.sequences.sequence_model import shift_right


class CaptionPreprocessor:
    """Makes `(x, y, sample_weight)` for `fit` from images and sequences of token ids.

    Adds the end token, shifts, pads and masks. `model.preprocessor` is one with the
    settings of `model`.

    Args:
        vocabulary_size: number of token ids, including special ones.
        max_length: maximum length of a sequence in tokens, including the end token.
        start_id: id that the decoder gets before the first token. Default 0.
        end_id: id of the end token. Default 1. None: sequences have none. In sequences
            of fewer than `max_length` tokens, padding gets weight 0; this is not
            visible in `y`, so `MaximumLikelihood` counts it.
        pad_id: id of padding. Default 0.
        truncate: if False (default), a sequence that is too long is an error. If True,
            it is cut and gets no end token, so that the model does not learn to end
            there.

    Call arguments: images `(batch, ...)`, and `batch` sequences of ids without start
    token and padding. An end token is added to those that have none. Returns

    - `x`: dict of `images` and `token_ids` `(batch, max_length)` int32, the decoder's
      inputs: `start_id`, then the sequence without its last token;
    - `y`: `(batch, max_length)` int32, the tokens to predict;
    - `sample_weight`: `(batch, max_length)` float32, 1 up to the end token, 0 after it.

    Example:

    ```python
    import numpy as np
    from keras_reward.models import CaptionPreprocessor

    preprocessor = CaptionPreprocessor(vocabulary_size=10, max_length=4)
    x, y, weights = preprocessor(np.zeros((2, 8, 8, 3)), [[5, 6], [7]])
    x["token_ids"]  # [[0, 5, 6, 1], [0, 7, 1, 0]]
    y               # [[5, 6, 1, 0], [7, 1, 0, 0]]
    weights         # [[1, 1, 1, 0], [1, 1, 0, 0]]
    ```
    """

    def __init__(
        self,
        vocabulary_size,
        max_length,
        start_id=0,
        end_id=1,
        pad_id=0,
        truncate=False,
    ):
        check_special_ids(vocabulary_size, start_id, end_id, pad_id)
        self.vocabulary_size = vocabulary_size
        self.max_length = max_length
        self.start_id = start_id
        self.end_id = end_id
        self.pad_id = pad_id
        self.truncate = truncate

    def __call__(self, images, sequences):
        if len(images) != len(sequences):
            raise ValueError(
                "There must be one sequence for each image. Repeat an image to give it "
                "several. "
                f"Received: {len(images)} images and {len(sequences)} sequences"
            )
        y = np.full((len(sequences), self.max_length), self.pad_id, "int32")
        weights = np.zeros(y.shape, "float32")
        for row, sequence in enumerate(sequences):
            ids = self.complete(row, np.asarray(sequence, dtype="int64").reshape(-1))
            y[row, : len(ids)] = ids
            weights[row, : len(ids)] = 1.0
        token_ids = shift_right(np, y, self.start_id)
        return {"images": images, "token_ids": token_ids}, y, weights

    def complete(self, row, ids):
        """One sequence, checked, with its end token."""
        check_token_ids(ids, self.vocabulary_size, f"sequence {row}")
        if self.end_id is not None:
            if len(ids) and ids[-1] == self.end_id:
                ids = ids[:-1]
            if np.isin(ids, [self.end_id, self.pad_id]).any():
                raise ValueError(
                    "Sequences must not contain padding, nor the end token but at "
                    "their end: cut them there. "
                    f"Received: sequence {row} is {ids.tolist()}, "
                    f"with end_id={self.end_id} and pad_id={self.pad_id}"
                )
            ids = np.append(ids, self.end_id)
        if len(ids) > self.max_length and not self.truncate:
            raise ValueError(
                f"Sequences must have at most {self.max_length} tokens, end token "
                "included. Raise `max_length`, shorten them, or pass `truncate=True`. "
                f"Received: sequence {row} has {len(ids)}"
            )
        return ids[: self.max_length]


def check_token_ids(ids, vocabulary_size, what):
    """Raises if an id in an array is not in the vocabulary."""
    outside = ids[(ids < 0) | (ids >= vocabulary_size)]
    if outside.size:
        raise ValueError(
            f"Token ids must be from 0 to {vocabulary_size - 1}. Make the model with a "
            "`vocabulary_size` that holds them all, or replace rare tokens by one for "
            f"unknown words. Received: {what} has the id {outside.flat[0]}"
        )


def check_array_of_ids(ids, vocabulary_size, what, ignored=None):
    """As `check_token_ids`, for an argument of `fit`, which may be anything.

    Args:
        ids: checked if it is an integer array or tensor `(batch, tokens)`.
        vocabulary_size: number of token ids.
        what: name of the ids, for the message.
        ignored: an id outside the vocabulary that is allowed, such as a loss's
            `ignore_class`.
    """
    if len(getattr(ids, "shape", ())) == 2 and is_integer(ids):
        ids = host_array(ids)
        check_token_ids(ids[ids != ignored], vocabulary_size, what)


def check_special_ids(vocabulary_size, start_id, end_id, pad_id):
    """Raises if a special id is not in the vocabulary or two of them conflict."""
    special = {"start_id": start_id, "end_id": end_id, "pad_id": pad_id}
    for name, value in special.items():
        if value is None and name == "end_id":
            continue
        if not 0 <= value < vocabulary_size:
            raise ValueError(
                f"`{name}` must be from 0 to `vocabulary_size - 1`. "
                f"Received: {name}={value}, vocabulary_size={vocabulary_size}"
            )
    if end_id == pad_id:
        raise ValueError(
            "`end_id` and `pad_id` must differ, so that the end can be told from the "
            "padding after it. Give padding an id of its own, or `start_id`; "
            "use `end_id=None` if sequences do not end. "
            f"Received: end_id={end_id}, pad_id={pad_id}"
        )
