"""Rewards for the form of sequences: length and repetition."""

import keras
from keras import ops

from keras_reward.forms.captions import caption_lengths, check_ids
from keras_reward.forms.integers import refuse_beyond_int32
from keras_reward.rewards.ngrams import count_matches
from keras_reward.rewards.reward import Reward


def narrow_sequences(name, argument, values):
    """Refuses token ids beyond int32 in the outputs; targets are not used."""
    if argument == "y_pred":
        refuse_beyond_int32(f"Reward {name!r}", argument, values, "token ids")
    return values


@keras.saving.register_keras_serializable(package="keras_reward")
class LengthReward(Reward):
    """Minus the number of words by which a sequence is too long or too short.

    A sequence ends before its first end token or padding. The end token is not counted.

    Does not punish: anything but length. Add it, with a small weight, to a reward of
    the words: `CIDErReward(end_id=1) + 0.1 * LengthReward(5, 15, end_id=1)`.

    Args:
        min_length: shortest length without penalty, in words. Default 5.
        max_length: longest length without penalty, or None: no sequence is too long.
            Default 20. In COCO and Flickr8k, 98 % of the captions have 5 to 20 words.
        end_id: id of the end token. Default None: sequences end only at padding.
        pad_id: id of padding. Default 0. Negative ids are padding in any case.
        name: optional name.

    Call arguments: `y_true` is not used; `y_pred` integer ids, `(rows, T)`. Returns
    `(rows,)`, at most 0.

    Example:

    ```python
    import numpy as np
    from keras_reward import LengthReward

    captions = np.array([[5, 6, 1, 0], [5, 1, 0, 0], [5, 6, 7, 8]])
    LengthReward(2, 3, end_id=1)(None, captions)  # [0.0, -1.0, -1.0]
    ```
    """

    def __init__(self, min_length=5, max_length=20, end_id=None, pad_id=0, name=None):
        super().__init__(name=name)
        if max_length is not None and max_length < min_length:
            raise ValueError(
                "`max_length` must be at least `min_length`. "
                f"Received: min_length={min_length}, max_length={max_length}"
            )
        self.min_length = min_length
        self.max_length = max_length
        self.end_id = end_id
        self.pad_id = pad_id

    def narrow(self, argument, values):
        return narrow_sequences(self.name, argument, values)

    def call(self, y_true, y_pred):
        ids = check_ids(self.name, y_pred, ("rows", "tokens"), "sequences")
        lengths = caption_lengths(ops, ids, self.end_id, self.pad_id)
        lengths = ops.cast(lengths, "float32")
        reward = ops.minimum(lengths - self.min_length, 0.0)
        if self.max_length is not None:
            reward = reward + ops.minimum(self.max_length - lengths, 0.0)
        return reward

    def get_config(self):
        return {
            **super().get_config(),
            "min_length": self.min_length,
            "max_length": self.max_length,
            "end_id": self.end_id,
            "pad_id": self.pad_id,
        }


@keras.saving.register_keras_serializable(package="keras_reward")
class RepetitionReward(Reward):
    """Minus the share of n-grams that are repeated: `distinct n-grams / n-grams - 1`.

    0 if no n-gram occurs twice, and for sequences that are too short to have one. The
    end token is not a word.

    Does not punish: anything else; short sequences repeat least. Add it, with a weight,
    to a reward of the words.

    Args:
        ngram: number of words n of an n-gram, at least 1. Default 3, so that only
            repeated phrases count, and not words such as "a".
        end_id: id of the end token. Default None: sequences end only at padding.
        pad_id: id of padding. Default 0. Negative ids are padding in any case.
        name: optional name.

    Call arguments: `y_true` is not used; `y_pred` integer ids, `(rows, T)`. Returns
    `(rows,)` in (-1, 0].

    Example:

    ```python
    import numpy as np
    from keras_reward import RepetitionReward

    captions = np.array([[5, 6, 5, 6, 5], [5, 6, 7, 1, 0]])
    RepetitionReward(ngram=2, end_id=1)(None, captions)  # [-0.5, 0.0]
    ```

    The first caption has the bigrams 56, 65, 56, 65: two of four are repeated.

    Reference: Welleck et al. 2020, "Neural Text Generation with Unlikelihood Training",
    section 6 (seq-rep-n).
    """

    def __init__(self, ngram=3, end_id=None, pad_id=0, name=None):
        super().__init__(name=name)
        if ngram not in range(1, 17):
            raise ValueError(
                f"`ngram` must be an integer from 1 to 16. Received: ngram={ngram}"
            )
        self.ngram = ngram
        self.end_id = end_id
        self.pad_id = pad_id

    def narrow(self, argument, values):
        return narrow_sequences(self.name, argument, values)

    def call(self, y_true, y_pred):
        ids = check_ids(self.name, y_pred, ("rows", "tokens"), "sequences")
        lengths = caption_lengths(ops, ids, self.end_id, self.pad_id)
        counts = count_matches(ids, ids, lengths, self.ngram)[-1]
        ends = ops.arange(ops.shape(ids)[-1], dtype="int32") + self.ngram
        inside = ops.cast(ends <= lengths[:, None], "float32")
        total = ops.sum(inside, axis=-1)
        # An n-gram that occurs `count` times is one distinct n-gram: 1/count at each
        # of its positions. Exactly 0 where count is 1.
        count = ops.cast(ops.maximum(counts, 1), "float32")
        less = ops.sum(inside * ((1.0 - count) / count), axis=-1)
        return less / ops.maximum(total, 1.0)

    def get_config(self):
        return {
            **super().get_config(),
            "ngram": self.ngram,
            "end_id": self.end_id,
            "pad_id": self.pad_id,
        }
