"""Captions and other sequences of padded token ids: lengths and references.

Functions with a first argument `xp` run on tensors (`xp=keras.ops`) or on the host
(`xp=numpy`).

A caption ends at its first padding: the id of padding, or any negative id, such as the
-100 of labels for Hugging Face's losses.
"""

import numpy as np

from keras_reward.forms.integers import LARGEST, as_int32, refuse_beyond_int32
from keras_reward.nests import is_integer


def check_ids(name, ids, shape, what):
    """Returns token ids as int32.

    Args:
        name: the reward's name, for the message.
        ids: an integer array or tensor.
        shape: the names of its axes, for the message.
        what: name of the ids, for the message.

    Raises:
        ValueError: if `ids` has the wrong rank or is not of an integer dtype.
    """
    received = tuple(getattr(ids, "shape", ()))
    if len(received) != len(shape) or not is_integer(ids):
        dtype = getattr(ids, "dtype", type(ids).__name__)
        raise ValueError(
            f"Reward {name!r} needs {what} as integer token ids. "
            f"Expected: shape ({', '.join(shape)}). "
            f"Received: shape {received}, dtype {dtype}"
        )
    if len(shape) == 2 and received[1] == 0:
        raise ValueError(
            f"Reward {name!r} needs {what} of at least one token, perhaps padding. "
            f"Received: shape {received}"
        )
    if isinstance(ids, np.ndarray):
        refuse_beyond_int32(f"Reward {name!r}", what, ids, "token ids")
        return ids.astype("int32")
    return as_int32(ids, LARGEST)  # an id that no vocabulary has


def caption_lengths(xp, ids, end_id, pad_id):
    """Number of words before the first end token or padding: `(...,)` int32.

    Args:
        xp: `keras.ops` or `numpy`.
        ids: `(..., T)` int32.
        end_id: id of the end token, or None.
        pad_id: id of padding.
    """
    width = xp.shape(ids)[-1]
    stop = xp.logical_or(ids == pad_id, ids < 0)
    if end_id is not None:
        stop = xp.logical_or(stop, ids == end_id)
    positions = xp.arange(width, dtype="int32")
    return xp.min(xp.where(stop, positions, width), axis=-1)


def counted_lengths(xp, ids, end_id, pad_id, count_end_token):
    """Number of tokens of captions that count: `(...,)` int32.

    Args:
        xp, ids, end_id, pad_id: as in `caption_lengths`.
        count_end_token: whether the end token counts, if there is one.
    """
    lengths = caption_lengths(xp, ids, end_id, pad_id)
    if end_id is None or not count_end_token:
        return lengths
    at_end = xp.arange(xp.shape(ids)[-1], dtype="int32") == lengths[..., None]
    ended = xp.any(xp.logical_and(at_end, ids == end_id), axis=-1)
    return xp.where(ended, lengths + 1, lengths)


def counted_references(xp, ids, end_id, pad_id, count_end_token):
    """The words of references that count.

    With `count_end_token`, each reference ends with the end token, whether or not the
    array has it, since captions by people are complete.

    Args:
        xp: `keras.ops` or `numpy`.
        ids: `(images, references, T)` int32.
        end_id, pad_id, count_end_token: as in `counted_lengths`.

    Returns:
        `(ids, lengths, present)`: `(images, references, T + 1)`, then
        `(images, references)` each. A reference that is all padding is not present;
        its other values have no meaning.
    """
    # Without any reference, one that is absent: some backends refuse empty axes.
    references = int(ids.shape[1] == 0)
    ids = xp.pad(ids, [(0, 0), (0, references), (0, 1)], constant_values=pad_id)
    present = xp.logical_and(ids[..., 0] != pad_id, ids[..., 0] >= 0)
    lengths = caption_lengths(xp, ids, end_id, pad_id)
    if end_id is not None and count_end_token:
        at_end = xp.arange(xp.shape(ids)[-1], dtype="int32") == lengths[..., None]
        ids = xp.where(at_end, end_id, ids)
        lengths = lengths + 1
    return ids, lengths, present
