"""Models that write a sequence token by token, as policies."""

import keras
import numpy as np
from keras import ops

from keras_reward import objective
from keras_reward.backend import LOOPS_RECOMPUTE
from keras_reward.policies.policy import Policy
from keras_reward.policies.targets import (
    as_references,
    check_vocabulary,
    mean_over_references,
)
from keras_reward.policies.token_sampling import sample_tokens

METHODS = ("encode", "hidden_states", "logits", "start_cache", "next_hidden")
ATTRIBUTES = ("vocabulary_size", "max_length", "start_id", "end_id", "pad_id")
# Logit of a token that the slot mask forbids. Its probability underflows to exactly 0;
# unlike -inf it leaves entropies and gradients finite.
FORBIDDEN = -1e30


def missing_parts(model):
    """Names of what `model` lacks to be a sequence model, as a list."""
    methods = [m for m in METHODS if not callable(getattr(model, m, None))]
    return methods + [a for a in ATTRIBUTES if not hasattr(model, a)]


@keras.saving.register_keras_serializable(package="keras_reward")
class AutoregressivePolicy(Policy):
    """A sequence of tokens, each drawn given the image and the tokens before it.

    For sequence models such as `VisionEncoderDecoder`: any `keras.Model` with the
    attributes `vocabulary_size`, `max_length`, `start_id`, `end_id` (or None) and
    `pad_id`, and the methods `encode`, `hidden_states`, `logits`, `start_cache` and
    `next_hidden`. With `policy="auto"` such a model gets this policy.

    The encoder runs once a step, and what it returns is held once per image, for all
    samples, in sampling and in scoring. Samples are drawn with a key/value cache and
    scored in one teacher-forced pass. The decoder runs with `training=False` always,
    so that the distribution that is scored is the one that was sampled from.

    A sample is `(batch, n, T)` int32 token ids with `T = model.max_length`: the first
    end token included, `pad_id` after it. Its log-probability is the sum over its
    tokens through the first end token, or over all of them if it never ends. Padding
    and the start token are tokens like others before that: a model that was trained
    never to write them does not, and a slot mask forbids them altogether.

    Args:
        score_chunk: number of positions whose logits exist at once when samples are
            scored. Default None: all, `(batch * n, T, vocabulary)`. A smaller number
            needs less memory, and time to compute logits anew for the gradient.
        slot_mask: which tokens are allowed at which position: a bool array
            `(T, vocabulary)`, or a function of the model's inputs that returns one for
            each of them, `(batch, T, vocabulary)`. A forbidden token is never drawn
            and has probability 0, in sampling, scoring and the greedy output alike.
            Default None: all are allowed.
        codec: how token ids become what a reward sees, see `Policy`.
        name: optional name.

    Raises:
        ValueError: if `score_chunk` is not a positive int; if the slot mask has another
            shape, or a position without any allowed token; from `bind`, if the model
            is no sequence model.

    Example:

    ```python
    import numpy as np
    from keras_reward import AutoregressivePolicy

    def never_padding(inputs):  # one mask for each input: (batch, 16, 100)
        allowed = np.ones((len(inputs), 16, 100), "bool")
        allowed[..., 0] = False
        return allowed

    policy = AutoregressivePolicy(score_chunk=8, slot_mask=never_padding)
    # RewardTuning(model, reward=..., policy=policy)
    ```
    """

    def __init__(
        self, score_chunk=None, slot_mask=None, codec=None, name=None, **kwargs
    ):
        super().__init__(codec=codec, name=name, **kwargs)
        if score_chunk is not None and (
            not isinstance(score_chunk, int) or score_chunk < 1
        ):
            raise ValueError(
                "`score_chunk` must be a positive int, a number of positions, or None. "
                f"Received: score_chunk={score_chunk!r}"
            )
        self.score_chunk = score_chunk
        self.slot_mask = slot_mask
        if slot_mask is not None and not callable(slot_mask):
            self.slot_mask = np.asarray(slot_mask, "bool")

    def bind(self, model, temperature=1.0):
        missing = missing_parts(model)
        if missing:
            raise ValueError(
                f"{type(self).__name__} tunes a sequence model, such as "
                "VisionEncoderDecoder: one with the methods "
                f"{', '.join(METHODS)} and the attributes {', '.join(ATTRIBUTES)}. "
                f"Received: model {model.name!r} without {', '.join(missing)}"
            )
        if isinstance(self.slot_mask, np.ndarray):
            check_slot_mask(self.slot_mask, (model.max_length, model.vocabulary_size))
        return super().bind(model, temperature)

    def encode(self, x, training=False):
        """One encoder pass.

        Returns:
            Dict of `"model"`: what the model's `encode` returned, and, where the slot
            mask depends on the inputs, `"allowed"`: `(batch, T, vocabulary)` bool.
        """
        context = {"model": self.model.encode(x, training=training)}
        if callable(self.slot_mask):
            allowed = self.slot_mask(x)
            slots = (self.model.max_length, self.model.vocabulary_size)
            check_slot_mask(allowed, ("batch", *slots))
            context["allowed"] = ops.cast(allowed, "bool")
        return context

    def allowed_tokens(self, context):
        """The slot mask `(batch or 1, T, vocabulary)`, or None."""
        if isinstance(self.slot_mask, np.ndarray):
            return ops.convert_to_tensor(self.slot_mask[None])
        return context.get("allowed")

    def masked_logits(self, hidden, allowed):
        """Logits that are sampled and scored: `(..., vocabulary)`, float32."""
        logits = ops.cast(self.model.logits(hidden), "float32")
        if self.temperature != 1.0:
            logits = logits / self.temperature
        return logits if allowed is None else ops.where(allowed, logits, FORBIDDEN)

    # Sampling.

    def sample(self, context, num_samples, seed=None, noise=None):
        if noise is None:
            batch = ops.shape(keras.tree.flatten(context)[0])[0]
            shape = (batch, num_samples, self.model.max_length)
            noise = keras.random.uniform(shape, seed=seed, dtype="float32")
        noise = ops.convert_to_tensor(noise, "float32")

        def draw(logits, position):
            number = ops.take(noise, position, axis=2)
            return sample_tokens(logits, ops.expand_dims(number, -1))[..., 0]

        return self.write(context, num_samples, draw)

    def mode(self, context):
        """The greedy output `(batch, T)`: the likeliest token at each position."""

        def likeliest(logits, position):
            return ops.cast(ops.argmax(logits, axis=-1), "int32")

        return self.write(context, 1, likeliest)[:, 0]

    def write(self, context, n, choose):
        """Writes `n` sequences for each input, until all have ended.

        Args:
            context: what `encode` returned.
            n: number of sequences.
            choose: takes logits `(batch, n, vocabulary)` and the position, returns
                tokens `(batch, n)`, int32.

        Returns:
            `(batch, n, T)` int32, padded after the first end token.
        """
        model, allowed = self.model, self.allowed_tokens(context)
        cache = model.start_cache(context["model"], n)
        batch = ops.shape(keras.tree.flatten(context)[0])[0]

        def unfinished(position, tokens, previous, ended, cache):
            inside = position < model.max_length
            if model.end_id is None:
                return inside
            return ops.logical_and(inside, ops.logical_not(ops.all(ended)))

        def step(position, tokens, previous, ended, cache):
            hidden, cache = model.next_hidden(
                context["model"], cache, previous, position
            )
            slot = None
            if allowed is not None:
                slot = ops.expand_dims(ops.take(allowed, position, axis=1), 1)
            chosen = choose(self.masked_logits(hidden, slot), position)
            chosen = ops.where(ended, model.pad_id, chosen)
            if model.end_id is not None:
                ended = ops.logical_or(ended, ops.equal(chosen, model.end_id))
            here = ops.equal(ops.arange(model.max_length, dtype="int32"), position)
            tokens = ops.where(here, ops.expand_dims(chosen, -1), tokens)
            return position + 1, tokens, chosen, ended, cache

        start = (
            ops.zeros((), "int32"),
            ops.full((batch, n, model.max_length), model.pad_id, "int32"),
            ops.full((batch, n), model.start_id, "int32"),
            ops.zeros((batch, n), "bool"),
            cache,
        )
        return ops.while_loop(unfinished, step, start)[1]

    # Scoring.

    def mask(self, samples):
        """Which tokens belong to samples `(..., T)`: those through the first end."""
        if self.model.end_id is None:
            return ops.ones_like(samples, dtype="bool")
        ends = ops.cast(ops.equal(samples, self.model.end_id), "int32")
        return ops.equal(ops.cumsum(ends, axis=-1) - ends, 0)

    def token_scores(self, context, samples, entropy_gradient=False):
        """Log-probability and entropy at every position, by one teacher-forced pass.

        Args:
            context: what `encode` returned.
            samples: `(batch, n, T')` int32, of at most `T` positions.
            entropy_gradient: whether a gradient flows through the entropies.

        Returns:
            Two tensors `(batch, n, T')`, float32. What stands at positions that are
            not in the mask is without meaning.
        """
        start = ops.full_like(samples[..., :1], self.model.start_id)
        inputs = ops.concatenate([start, samples[..., :-1]], axis=-1)
        hidden = self.model.hidden_states(context["model"], inputs)
        allowed = self.allowed_tokens(context)

        slots = None if allowed is None else allowed[:, None, : samples.shape[-1]]

        def scores(hidden, samples, slots=None):
            logits = self.masked_logits(hidden, slots)
            return objective.categorical_scores(logits, samples, entropy_gradient)

        tensors = (hidden, samples) if slots is None else (hidden, samples, slots)
        if self.score_chunk is None or self.score_chunk >= samples.shape[-1]:
            return scores(*tensors)
        return map_chunks(scores, tensors, self.score_chunk)

    def token_log_prob(self, context, samples):
        """Log-probability of each token `(batch, n, T)`; 0 after the end."""
        samples = ops.convert_to_tensor(samples, "int32")
        log_probs, _ = self.token_scores(context, samples)
        return ops.where(self.mask(samples), log_probs, 0.0)

    def score(self, context, samples, entropy_gradient=False):
        samples = ops.convert_to_tensor(samples, "int32")
        log_probs, entropies = self.token_scores(context, samples, entropy_gradient)
        mask = self.mask(samples)
        weights = ops.cast(mask, "float32")
        entropy = ops.sum(entropies * weights, -1) / ops.sum(weights, -1)
        log_prob = objective.sequence_log_prob(log_probs, mask)
        return log_prob, ops.mean(entropy, axis=1)

    def log_prob(self, context, samples):
        return self.score(context, samples)[0]

    def entropy(self, context, samples):
        """Mean entropy `(batch,)` of the positions of the samples, in nats.

        An estimate: the mean over the tokens of each sample, and then over samples.
        """
        return self.score(context, samples, entropy_gradient=True)[1]

    def target_log_prob(self, context, targets):
        """Mean log-probability `(batch,)` of the references of an image.

        Args:
            context: what `encode` returned.
            targets: `(batch, T')` or `(batch, references, T')` int token ids, padded,
                at most `T` of them. A token that the slot mask forbids, or that is not
                in the vocabulary, is left out; so is a reference that is all padding.
        """
        model = self.model
        targets = as_references(self, targets, model.max_length)
        known = ops.logical_and(targets >= 0, targets < model.vocabulary_size)
        log_probs, _ = self.token_scores(context, ops.where(known, targets, 0))
        known = ops.logical_and(known, log_probs > 0.5 * FORBIDDEN)
        mask = ops.logical_and(self.mask(targets), known)
        is_padding = ops.equal(targets, model.pad_id)
        if model.end_id != model.pad_id:
            mask = ops.logical_and(mask, ops.logical_not(is_padding))
        return mean_over_references(log_probs, mask, is_padding)

    def check_targets(self, targets):
        """Raises if `y` of `fit`, a NumPy array, has ids outside the vocabulary."""
        as_references(self, targets, self.model.max_length)
        check_vocabulary("y", targets, self.model.vocabulary_size)

    def get_config(self):
        return {
            **super().get_config(),
            "score_chunk": self.score_chunk,
            "slot_mask": keras.saving.serialize_keras_object(self.slot_mask),
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        config["slot_mask"] = keras.saving.deserialize_keras_object(config["slot_mask"])
        return super().from_config(config)


def map_chunks(function, tensors, size):
    """Applies a function to chunks of positions, one after the other.

    A loop, since XLA may hold chunks that do not wait for one another all at once. The
    gradient computes each chunk anew: of a chunk only what goes in is kept.

    Args:
        function: takes a chunk of each tensor, returns a nest of `(batch, n, size)`.
        tensors: tuple of `(batch, n, T, ...)`. Gradients flow into the first one, and
            into what the function reads.
        size: number of positions in a chunk.

    Returns:
        A nest of `(batch, n, T)`.
    """
    length = tensors[0].shape[2]
    chunks = -(-length // size)

    def split(tensor):
        rest = [(0, 0)] * (len(tensor.shape) - 3)
        tensor = ops.pad(tensor, [(0, 0), (0, 0), (0, chunks * size - length), *rest])
        lead = tuple(ops.shape(tensor)[:2])
        tensor = ops.reshape(tensor, (*lead, chunks, size, *tensor.shape[3:]))
        return ops.moveaxis(tensor, 2, 0)

    def join(tensor):
        tensor = ops.moveaxis(tensor, 0, 2)
        lead = tuple(ops.shape(tensor)[:2])
        return ops.reshape(tensor, (*lead, chunks * size))[..., :length]

    def recomputed(chunk):
        first, *rest = chunk
        # Only `first` is an argument: TensorFlow asks for gradients of all of them.
        return keras.remat(lambda tensor: function(tensor, *rest))(first)

    split_tensors = tuple(map(split, tensors))
    if LOOPS_RECOMPUTE:
        results = ops.map(recomputed, split_tensors)
    else:
        results = [recomputed([t[i] for t in split_tensors]) for i in range(chunks)]
        results = keras.tree.map_structure(lambda *r: ops.stack(r), *results)
    return keras.tree.map_structure(join, results)


def check_slot_mask(mask, expected):
    """Raises if a slot mask has another shape, or a position without any token.

    Args:
        mask: bool array or tensor.
        expected: its shape; a name where any size will do.
    """
    shape = tuple(getattr(mask, "shape", ()))
    fits = len(shape) == len(expected) and all(
        isinstance(size, str) or size == given
        for given, size in zip(shape, expected, strict=True)
    )
    if not fits:
        described = ", ".join(map(str, expected))
        raise ValueError(
            "`slot_mask` says of every token whether it is allowed at a position: "
            f"shape ({described}). Received: shape {shape}"
        )
    if isinstance(mask, np.ndarray) and not mask.any(axis=-1).all():
        empty = np.argwhere(~mask.any(axis=-1))[0]
        raise ValueError(
            "`slot_mask` must allow at least one token at every position. "
            f"Received: none at position {int(empty[-1])}"
        )
