"""Whether a sequence model says the same in one pass and token by token."""

import keras
import numpy as np
from keras import ops

from keras_reward.sequences.sequence_model import METHODS, shift_right

POSITIONS = 4  # that are compared
SEQUENCES = 2  # of one input
# The largest difference of log-probabilities, as a share of their range at a position.
TOLERANCES = {"float16": 0.05, "bfloat16": 0.2}
TOLERANCE = 0.01
SMALLEST = 1e-4  # nats; a model without any preference has no range
RANGE = 20.0  # nats below the likeliest token, where all are alike: forbidden


def is_users_own(model):
    """Whether a method of a sequence model was written outside of this package."""
    methods = [getattr(type(model), name, None) for name in METHODS]
    modules = [getattr(method, "__module__", None) or "" for method in methods]
    return not all(module.startswith("keras_reward.") for module in modules)


def check_agreement(model, x):
    """Raises if `hidden_states` and `next_hidden` of a sequence model disagree.

    Samples are written with `next_hidden`, and their likelihood is that of
    `hidden_states`: if they are not of one distribution, the gradient is wrong. The
    log-probabilities of all tokens are compared at the first positions of two random
    sequences. Not for compiled functions.

    Args:
        model: a sequence model.
        x: inputs, tensors of one row.

    Raises:
        ValueError: if they differ by more than rounding.
    """
    context = model.encode(x, training=False)
    tokens = random_tokens(model)
    stepwise = token_by_token(model, context, tokens)
    start_first = ops.convert_to_tensor(shift_right(np, tokens, model.start_id))
    at_once = in_one_pass(model, context, start_first)
    position, difference = first_difference(at_once, stepwise, model.compute_dtype)
    if position is None:
        return
    twice = in_one_pass(model, context, ops.convert_to_tensor(tokens))
    unshifted = first_difference(twice, stepwise, model.compute_dtype)[0] is None
    received = "a `hidden_states` that puts it there itself, and "
    raise ValueError(
        f"`hidden_states` and `next_hidden` of model {model.name!r} must give the same "
        "log-probabilities, of tokens that are all known and one token at a time: "
        "samples are written with one and scored with the other. `hidden_states` is "
        "called with the start token first, so it must not add or shift anything; what "
        "it returns at a position predicts the token after the one there. "
        f"Received: {received if unshifted else ''}a difference of {difference:.3g} "
        f"nats at position {position}"
    )


def random_tokens(model):
    """Sequences `(1, SEQUENCES, max_length)` int32, without special tokens."""
    special = {model.start_id, model.end_id, model.pad_id}
    words = [i for i in range(model.vocabulary_size) if i not in special]
    shape = (1, SEQUENCES, model.max_length)
    choice = np.random.default_rng(0).choice(words or [model.pad_id], shape)
    return choice.astype("int32")


def in_one_pass(model, context, inputs):
    """Log-probabilities `(1, SEQUENCES, POSITIONS, vocabulary)` after known tokens."""
    hidden = model.hidden_states(context, inputs)
    return log_probabilities(model, hidden[:, :, :POSITIONS])


def token_by_token(model, context, tokens):
    """As `in_one_pass`, with a cache."""
    cache = model.start_cache(context, tokens.shape[1])
    last = np.full_like(tokens[..., 0], model.start_id)
    states = []
    for position in range(min(POSITIONS, tokens.shape[-1])):
        hidden, cache = model.next_hidden(
            context,
            cache,
            ops.convert_to_tensor(last),
            ops.convert_to_tensor(position, "int32"),
        )
        states.append(hidden)
        last = tokens[..., position]
    return log_probabilities(model, ops.stack(states, axis=2))


def log_probabilities(model, hidden):
    """Of all tokens after states `(..., width)`, in NumPy."""
    logits = ops.cast(model.logits(hidden), "float32")
    return ops.convert_to_numpy(ops.log_softmax(logits, axis=-1))


def first_difference(log_probs, others, dtype):
    """The first position where two distributions differ, and by how many nats.

    Args:
        log_probs, others: `(1, sequences, positions, vocabulary)`; NaN is ignored.
        dtype: in which they were computed.

    Returns:
        The position and the largest difference there; None and 0.0 if they agree.
    """
    dtype = keras.backend.standardize_dtype(dtype)
    log_probs, others = (
        np.maximum(values, values.max(axis=-1, keepdims=True) - RANGE)
        for values in (log_probs, others)
    )
    differences = np.abs(log_probs - others).max(axis=-1)
    spread = np.maximum(np.ptp(log_probs, axis=-1), np.ptp(others, axis=-1))
    allowed = SMALLEST + TOLERANCES.get(dtype, TOLERANCE) * spread
    differ = np.where(np.isnan(allowed), False, differences > allowed)
    if not differ.any():
        return None, 0.0
    position = int(differ.any(axis=(0, 1)).argmax())
    return position, float(differences[..., position].max())
