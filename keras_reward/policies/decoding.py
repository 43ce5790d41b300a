"""The loop in which a sequence model writes tokens, one position at a time."""

import keras
from keras import ops


def write_tokens(model, context, n, choose):
    """Writes `n` sequences for each input, until every one has ended.

    Args:
        model: a sequence model, such as `VisionEncoderDecoder`.
        context: what `model.encode` returned.
        n: number of sequences.
        choose: takes the model's output at a position `(batch, n, width)` and the
            position; returns tokens `(batch, n)`, int32.

    Returns:
        Token ids `(batch, n, max_length)` int32, padded after the first end token, and
        the number of steps it took.
    """
    rows = (ops.shape(keras.tree.flatten(context)[0])[0], n)
    positions = ops.arange(model.max_length, dtype="int32")

    def unfinished(position, token_ids, last, ended, cache):
        inside = position < model.max_length
        if model.end_id is None:
            return inside
        return ops.logical_and(inside, ops.logical_not(ops.all(ended)))

    def step(position, token_ids, last, ended, cache):
        hidden, cache = model.next_hidden(context, cache, last, position)
        token = ops.where(ended, model.pad_id, choose(hidden, position))
        if model.end_id is not None:
            ended = ops.logical_or(ended, token == model.end_id)
        here = positions == position
        token_ids = ops.where(here, ops.expand_dims(token, -1), token_ids)
        return position + 1, token_ids, token, ended, cache

    start = (
        ops.zeros((), "int32"),
        ops.full((*rows, model.max_length), model.pad_id, "int32"),
        ops.full(rows, model.start_id, "int32"),
        ops.zeros(rows, "bool"),
        model.start_cache(context, n),
    )
    position, token_ids, *_ = ops.while_loop(unfinished, step, start)
    return token_ids, position


def likeliest(logits):
    """The index of the largest logit in the last axis, int32."""
    return ops.cast(ops.argmax(logits, axis=-1), "int32")
