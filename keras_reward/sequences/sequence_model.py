"""What a model must have to write sequences, such as `VisionEncoderDecoder`."""

METHODS = ("encode", "hidden_states", "logits", "start_cache", "next_hidden")
ATTRIBUTES = ("vocabulary_size", "max_length", "start_id", "end_id", "pad_id")


def what_is_missing(model):
    """Names of what `model` lacks to be a sequence model, as a list."""
    methods = [m for m in METHODS if not callable(getattr(model, m, None))]
    return methods + [a for a in ATTRIBUTES if not hasattr(model, a)]


def shift_right(xp, token_ids, start_id):
    """What a decoder is given: the start token, then all tokens but the last one.

    Args:
        xp: `keras.ops` or `numpy`, whichever `token_ids` are of.
        token_ids: `(..., T)` int, the tokens to predict.
        start_id: id of the start token.

    Returns:
        `(..., T)` int.
    """
    start = xp.full_like(token_ids[..., :1], start_id)
    return xp.concatenate([start, token_ids[..., :-1]], axis=-1)
