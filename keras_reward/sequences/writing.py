"""The loop in which a sequence model generates tokens, one position at a time."""

import keras
from keras import ops

from keras_reward.backend import is_exporting


def write_tokens(model, context, n, choose):
    """Generates `n` sequences for each input, until all have ended.

    Args:
        model: a sequence model, such as `VisionEncoderDecoder`.
        context: what `model.encode` returned.
        n: number of sequences per input.
        choose: takes the model's output at a position `(batch, n, width)` and the
            position; returns tokens `(batch, n)`, int32.

    Returns:
        Token ids `(batch, n, max_length)` int32, padded after the first end token, and
        the number of steps taken.
    """

    def unfinished(position, token_ids, last, ended, cache):
        inside = position < model.max_length
        if model.end_id is None:
            return inside
        return ops.logical_and(inside, ops.logical_not(ops.all(ended)))

    def step(position, token_ids, last, ended, cache):
        hidden, cache = model.next_hidden(context, cache, last, position)
        token = ops.where(ended, model.pad_id, choose(hidden, position))
        ended = has_ended(model, ended, token)
        token_ids = put_token(token_ids, token, position)
        return position + 1, token_ids, token, ended, cache

    start = (
        *nothing_written(model, (batch_size(context), n)),
        model.start_cache(context, n),
    )
    position, token_ids, *_ = loop(unfinished, step, start, range(model.max_length))
    return token_ids, position


def loop(unfinished, step, state, positions):
    """`ops.while_loop` over positions, which are the first part of the state.

    Its end depends on values, which PyTorch cannot export: there, all steps are taken.
    A step after the end must change nothing.

    Args:
        unfinished: takes the state; whether to go on.
        step: takes the state and returns the next one.
        state: tuple; the position is first.
        positions: a range with all positions that a step may be at.

    Returns:
        The last state.
    """
    if not is_exporting():
        return ops.while_loop(unfinished, step, state)
    for position in positions:
        state = step(position, *state[1:])
    return state


def nothing_written(model, rows):
    """The initial state: position 0, padding, the start token, and none has ended.

    Args:
        model: a sequence model.
        rows: `(batch, n)`.

    Returns:
        A scalar, `(batch, n, max_length)`, `(batch, n)`, int32, and `(batch, n)` bool.
    """
    return (
        ops.zeros((), "int32"),
        ops.full((*rows, model.max_length), model.pad_id, "int32"),
        ops.full(rows, model.start_id, "int32"),
        ops.zeros(rows, "bool"),
    )


def batch_size(context):
    """Number of inputs in a context."""
    return ops.shape(keras.tree.flatten(context)[0])[0]


def put_token(token_ids, token, position):
    """`token_ids` `(..., length)` with `token` `(...)` at `position`, a scalar."""
    here = ops.arange(token_ids.shape[-1], dtype="int32") == position
    return ops.where(here, ops.expand_dims(token, -1), token_ids)


def has_ended(model, ended, token):
    """`ended` after one more token, both `(batch, n)`."""
    if model.end_id is None:
        return ended
    return ops.logical_or(ended, token == model.end_id)
