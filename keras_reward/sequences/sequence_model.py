"""The methods and attributes of sequence models, such as `VisionEncoderDecoder`."""

METHODS = ("encode", "hidden_states", "logits", "start_cache", "next_hidden")
ATTRIBUTES = ("vocabulary_size", "max_length", "start_id", "end_id", "pad_id")


def what_is_missing(model):
    """List of the methods and attributes that `model` lacks to be a sequence model."""
    methods = [m for m in METHODS if not callable(getattr(model, m, None))]
    return methods + [a for a in ATTRIBUTES if not hasattr(model, a)]


def shift_right(xp, token_ids, start_id):
    """The inputs of a decoder: the start token, then all tokens except the last one.

    Args:
        xp: `keras.ops` or `numpy`, depending on `token_ids`.
        token_ids: `(..., T)` int, the tokens to predict.
        start_id: id of the start token.

    Returns:
        `(..., T)` int.
    """
    start = xp.full_like(token_ids[..., :1], start_id)
    return xp.concatenate([start, token_ids[..., :-1]], axis=-1)
