"""Sequences from a sequence model: sampling, greedy decoding and beam search.

Uses the methods that `VisionEncoderDecoder` documents: `encode`, `start_cache`,
`next_hidden`, `logits`, and the sizes and special ids. In all loops, the sequences are
`(batch, n, max_length)`, initially filled with `pad_id`.
"""

import keras
import numpy as np
from keras import ops

from keras_reward.categorical import draw_tokens, likeliest
from keras_reward.compiled import CompiledFunction, kept
from keras_reward.sequences.writing import (
    batch_size,
    has_ended,
    nothing_written,
    put_token,
    write_tokens,
)


def sample(model, context, num_samples, temperature=1.0, noise=None):
    """Generates sequences token by token until all have ended.

    Args:
        model: a sequence model.
        context: what `model.encode` returned.
        num_samples: number of sequences per input, n.
        temperature: divides the logits: a number, or `(batch, 1, 1)`.
        noise: `(batch, n, max_length)` uniform numbers in [0, 1), one for each token.
            Without noise, each token is the likeliest one.

    Returns:
        Token ids `(batch, n, max_length)` int32, and the number of steps taken.
    """

    def choose(hidden, position):
        logits = model.logits(hidden)
        if noise is None:
            return likeliest(logits)
        uniform = ops.take(noise, ops.expand_dims(position, 0), axis=-1)
        return draw_tokens(logits / temperature, uniform)[..., 0]

    return write_tokens(model, context, num_samples, choose)


def beam_search(model, context, beam_width):
    """The likeliest sequence that a beam search finds.

    A sequence that has ended stays in the beam with its log-probability. That of the
    others can only fall, so the search stops when the first sequence of every beam has
    ended. Log-probabilities are not normalised by length.

    Args:
        model: a sequence model.
        context: what `model.encode` returned.
        beam_width: number of sequences per input that are kept, n.

    Returns:
        Token ids `(batch, max_length)` int32, their log-probabilities `(batch,)`, and
        the number of steps taken.
    """
    length, pad_id, words = model.max_length, model.pad_id, model.vocabulary_size
    rows = (batch_size(context), beam_width)
    # All start equal, so only the first one counts; the beam must not contain copies.
    first = ops.arange(beam_width, dtype="int32") == 0
    log_probs = ops.broadcast_to(zero_where(first), rows)
    # An ended sequence is followed by padding with probability 1.
    nothing = zero_where(ops.arange(words, dtype="int32") == pad_id)

    def unfinished(position, token_ids, last, ended, log_probs, cache):
        some = ops.logical_not(ops.all(ended[:, 0]))
        return ops.logical_and(position < length, some)

    def step(position, token_ids, last, ended, log_probs, cache):
        hidden, cache = model.next_hidden(context, cache, last, position)
        of_tokens = ops.log_softmax(model.logits(hidden), axis=-1)
        of_tokens = ops.where(ops.expand_dims(ended, -1), nothing, of_tokens)
        candidates = ops.expand_dims(log_probs, -1) + of_tokens
        candidates = ops.reshape(candidates, (-1, beam_width * words))
        log_probs, chosen = ops.top_k(candidates, beam_width)
        chosen = ops.cast(chosen, "int32")
        parent, token = chosen // words, chosen % words
        ended = ops.take_along_axis(ended, parent, axis=1)
        token_ids = ops.take_along_axis(token_ids, ops.expand_dims(parent, -1), axis=1)
        token_ids = put_token(token_ids, token, position)
        cache = follow(cache, parent)
        ended = has_ended(model, ended, token)
        return position + 1, token_ids, token, ended, log_probs, cache

    position, token_ids, _, _, log_probs, _ = ops.while_loop(
        unfinished,
        step,
        (
            *nothing_written(model, rows),
            log_probs,
            model.start_cache(context, beam_width),
        ),
    )
    return token_ids[:, 0], log_probs[:, 0], position


def zero_where(mask):
    """Log-probability 0 where `mask` is True, and minus infinity elsewhere: float32."""
    return ops.cast(ops.where(mask, 0.0, -float("inf")), "float32")


def follow(cache, parent):
    """The cache whose row `(b, i)` is row `(b, parent[b, i])` of the given one."""
    batch, width = ops.shape(parent)[0], parent.shape[1]
    first = ops.arange(batch, dtype="int32") * width
    rows = ops.reshape(parent + first[:, None], (-1,))
    return keras.tree.map_structure(lambda leaf: ops.take(leaf, rows, axis=0), cache)


class Generator(CompiledFunction):
    """Generates token ids for images, by sampling, greedily or by beam search."""

    def __init__(self, owner, num_samples, beam_width):
        super().__init__(owner)
        self.num_samples = num_samples
        self.beam_width = beam_width

    def call(self, inputs):
        model = self.owner
        context = model.encode(inputs["x"])
        if self.beam_width is not None:
            ids, _, _ = beam_search(model, context, self.beam_width)
            return ops.expand_dims(ids, 1)
        settings = inputs.get("temperature"), inputs.get("noise")
        return sample(model, context, self.num_samples, *settings)[0]


def generate(model, x, num_samples=1, temperature=1.0, beam_width=None, seed=None):
    """Generates token ids in NumPy; compiled once per number of sequences and shape.

    See `VisionEncoderDecoder.generate` for the arguments and the result.
    """
    check_arguments(num_samples, temperature, beam_width)
    generator = kept(model, Generator, num_samples, beam_width)
    x = keras.tree.map_structure(np.asarray, x)
    inputs = {"x": x}
    if beam_width is None and temperature > 0:
        batch = len(keras.tree.flatten(x)[0])
        shape = (batch, num_samples, model.max_length)
        # One for each input, so that all data have the same batch size.
        inputs["temperature"] = np.full((batch, 1, 1), temperature, "float32")
        inputs["noise"] = np.random.default_rng(seed).random(shape, dtype="float32")
    token_ids = generator.predict_on_batch(inputs)
    return token_ids[:, 0] if num_samples == 1 else token_ids


def check_arguments(num_samples, temperature, beam_width):
    """Raises for invalid arguments."""
    if not isinstance(num_samples, int) or num_samples < 1:
        raise ValueError(
            "`num_samples` must be a whole number from 1. "
            f"Received: num_samples={num_samples}"
        )
    if not 0 <= temperature < float("inf"):
        raise ValueError(
            "`temperature` must be a number, at least 0, where 0 takes the likeliest "
            "token. "
            f"Received: temperature={temperature}"
        )
    if beam_width is None:
        return
    if not isinstance(beam_width, int) or beam_width < 1:
        raise ValueError(
            "`beam_width` must be a whole number from 1, or None. "
            f"Received: beam_width={beam_width}"
        )
    if num_samples != 1 or temperature not in (0, 1):
        raise ValueError(
            "Beam search returns one sequence, the likeliest it finds: do not set "
            "`num_samples` and `temperature`. Received: "
            f"num_samples={num_samples}, temperature={temperature}"
        )
