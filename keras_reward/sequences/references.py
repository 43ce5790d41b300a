"""Reference captions and other token ids of the ground truth."""

import numpy as np
from keras import ops

from keras_reward import objective
from keras_reward.nests import host_array, is_integer


def as_references(reader, targets, max_length=None):
    """Targets `(batch, [references,] T)` as `(batch, references, T)` int32.

    Args:
        reader: name of what uses them, for the message.
        targets: integer token ids.
        max_length: the largest T. Default None: any.
    """
    shape = tuple(getattr(targets, "shape", ()))
    fits = len(shape) in (2, 3) and is_integer(targets)
    if fits and max_length is not None:
        fits = shape[-1] is None or shape[-1] <= max_length
    if not fits:
        received = type(targets).__name__
        if hasattr(targets, "shape"):
            received = f"shape {shape}, dtype {targets.dtype}"
        most = "" if max_length is None else f", with at most {max_length} tokens"
        raise ValueError(
            f"For its likelihood, {reader} needs `y` of integer token ids, padded: "
            f"shape (batch, tokens) or (batch, references, tokens){most}. "
            f"Received: y of {received}"
        )
    targets = ops.cast(targets, "int32")
    return targets if len(shape) == 3 else ops.expand_dims(targets, 1)


def tokens_of_references(targets, pad_id, end_ids, length):
    """Which tokens of references are not padding, and which references are present.

    Padding, which negative ids are too, is only at the end: before other tokens, the
    padding id is a token. If the padding id is also an end token, the first one is the
    end, and the caller must leave out the rest. Without end tokens, all sequences have
    the full length, so that a row of this length has no padding.

    A reference that is all padding is absent, unless there is room for only one.

    Args:
        targets: `(batch, references, T)` int32.
        pad_id: id of padding.
        end_ids: ids that end a sequence.
        length: the full length of a sequence.

    Returns:
        Bool, `(batch, references, T)` and `(batch, references)`.
    """
    is_token = ops.logical_and(ops.not_equal(targets, pad_id), targets >= 0)
    is_token = ops.cast(is_token, "int32")
    # Number of tokens from a position to the end.
    left = ops.flip(ops.cumsum(ops.flip(is_token, axis=-1), axis=-1), axis=-1)
    tokens = left > 0
    present = ops.any(tokens, axis=-1)
    _, references, size = ops.shape(targets)
    # Tensors, where these are unknown while tracing.
    only, whole = references == 1, not end_ids and size == length
    present = ops.where(only, True, present)
    tokens = ops.where(pad_id in end_ids or whole, True, tokens)
    return tokens, present


def mean_over_references(log_probs, mask, present):
    """Mean log-probability of the references of each input: `(batch,)`.

    Args:
        log_probs: `(batch, references, T)`.
        mask: the same shape, the tokens that count.
        present: `(batch, references)`, which references are present.
    """
    present = ops.cast(present, "float32")
    log_prob = objective.sequence_log_prob(log_probs, mask) * present
    return ops.sum(log_prob, axis=1) / ops.maximum(ops.sum(present, axis=1), 1.0)


def check_references(token_ids, size):
    """Raises unless the ids of `y` are in the vocabulary, or negative at the end.

    Args:
        token_ids: array or tensor `(..., T)`. Not checked inside a compiled function.
        size: number of token ids.
    """
    token_ids = host_array(token_ids)
    if token_ids is None or not token_ids.size:
        return
    is_padding = token_ids < 0
    if np.any(is_padding[..., :-1] & ~is_padding[..., 1:]):
        raise ValueError(
            "Negative ids in `y`, such as -100, are padding, which must be at the end "
            "of a sequence: leave out what is not to be learned, such as a prompt. "
            "Received: y with a negative id before other token ids"
        )
    check_vocabulary("y", np.where(is_padding, 0, token_ids), size)


def check_vocabulary(key, token_ids, size):
    """Raises if a token id is negative or not below `size`.

    Args:
        key: name of the ids, for the message.
        token_ids: array or tensor. Not checked inside a compiled function.
        size: number of token ids.
    """
    token_ids = host_array(token_ids)
    if token_ids is not None and not 0 <= token_ids.min() <= token_ids.max() < size:
        raise ValueError(
            f"Token ids must be at least 0 and below {size}, the size of the model's "
            "vocabulary: make them with the model's own tokenizer. "
            f"Received: {key} between {token_ids.min()} and {token_ids.max()}"
        )
