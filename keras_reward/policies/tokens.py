"""The likelihood of token sequences, shared by all policies over them."""

import keras
from keras import ops

from keras_reward import objective
from keras_reward.backend import LOOPS_RECOMPUTE
from keras_reward.policies.likelihood import of_positions
from keras_reward.policies.policy import Policy
from keras_reward.sequences.references import (
    as_references,
    check_references,
    mean_over_references,
    tokens_of_references,
)

# Logit of a forbidden token. Its probability underflows to exactly 0, and unlike -inf
# it keeps entropies and gradients finite.
FORBIDDEN = -1e30


class TokenPolicy(Policy):
    """Base class: a sequence of tokens, each drawn given those before it.

    A sample is `(batch, n, T)` int32 token ids. Its log-probability is the sum over the
    tokens that belong to it, computed in one teacher-forced pass. A subclass implements
    `encode`, `sample` and `mode`, and for the likelihood `states`, `token_logits`,
    `mask`, `vocabulary_size` and `length_limit`.

    Args:
        logits_chunk: number of positions whose logits are in memory at once when the
            likelihood of samples is computed. Default None: all of them,
            `(batch * n, T, vocabulary)`. A smaller number needs less memory, but the
            logits are recomputed for the gradient.
        codec: how token ids become what a reward sees, see `Policy`.
        name: optional name.
    """

    ordered = True
    # Which of T positions count in log-probability and entropy: (T,) bool. None: all.
    position_mask = None

    def __init__(self, logits_chunk=None, codec=None, name=None, **kwargs):
        super().__init__(codec=codec, name=name, **kwargs)
        if logits_chunk is not None and (
            not isinstance(logits_chunk, int) or logits_chunk < 1
        ):
            raise ValueError(
                "`logits_chunk` must be a positive int, in positions, or None. "
                f"Received: logits_chunk={logits_chunk!r}"
            )
        self.logits_chunk = logits_chunk

    def states(self, context, samples):
        """The states that predict each token, from one pass over known tokens.

        Args:
            context: what `encode` returned.
            samples: `(batch, n, T')` int32.

        Returns:
            Tuple of tensors `(batch, n or 1, T', ...)`, the arguments of
            `token_logits`. A gradient flows only into the first one.
        """
        raise NotImplementedError

    def token_logits(self, *states):
        """Logits `(..., vocabulary)` in float32, for sampling and the likelihood."""
        raise NotImplementedError

    def mask(self, context, samples):
        """Which tokens of samples `(batch, n, T)` are not after the end: bool."""
        raise NotImplementedError

    @property
    def vocabulary_size(self):
        """Number of token ids."""
        raise NotImplementedError

    def length_limit(self, context=None):
        """T, the maximum length of a sample; None if only a context would tell."""
        raise NotImplementedError

    def counted(self, context, samples):
        """The mask without the positions that `position_mask` leaves out."""
        mask = self.mask(context, samples)
        if self.position_mask is None:
            return mask
        counted = ops.convert_to_tensor(self.position_mask)[: ops.shape(samples)[-1]]
        return ops.logical_and(mask, counted)

    def token_likelihoods(self, context, tokens, entropy_gradient=False):
        """Log-probability and entropy at every position, from one pass.

        Args:
            context: what `encode` returned.
            tokens: `(k, batch, n, T')` int32: the samples, followed by k - 1 other
                choices for each position.
            entropy_gradient: whether a gradient flows through the entropies.

        Returns:
            `(k, batch, n, T')` and `(batch, n, T')`, float32. Values at positions that
            are not in the mask have no meaning.
        """

        def of_chunk(hidden, choices, *rest):
            logits = self.token_logits(hidden, *rest)
            return objective.categorical_likelihood(logits, choices, entropy_gradient)

        size = ops.shape(tokens)[-1]
        is_unknown = tokens.shape[-1] is None
        if is_unknown:
            # The model may read the length of sequences from their shape.
            tokens = filled_up(tokens, self.length_limit(context))
        hidden, *rest = self.states(context, tokens[0])
        choices = ops.moveaxis(tokens, 0, -1)
        inputs = (hidden, choices, *rest)
        if self.logits_chunk is None or self.logits_chunk >= tokens.shape[-1]:
            log_probs, entropies = of_chunk(*inputs)
        else:
            log_probs, entropies = map_chunks(of_chunk, inputs, self.logits_chunk)
        log_probs = ops.moveaxis(log_probs, -1, 0)
        if is_unknown:
            log_probs, entropies = log_probs[..., :size], entropies[..., :size]
        return log_probs, entropies

    def likelihood(self, context, samples, choices=(), entropy_gradient=False):
        tokens = [ops.convert_to_tensor(c, "int32") for c in (samples, *choices)]
        log_probs, entropies = self.token_likelihoods(
            context, ops.stack(tokens), entropy_gradient
        )
        counted = self.counted(context, tokens[0])
        weights = ops.cast(counted, "float32")
        # An estimate: the mean over the tokens of each sample, then over samples.
        entropy = ops.sum(entropies * weights, axis=-1)
        entropy = entropy / ops.maximum(ops.sum(weights, axis=-1), 1.0)
        return of_positions(log_probs, ops.mean(entropy, axis=1), counted)

    def target_log_prob(self, context, targets):
        """Mean log-probability `(batch,)` of the references of an input.

        Padding at the end, which negative ids such as -100 are too, is ignored; before
        other tokens, the padding id is a token. Tokens that are forbidden or not in the
        vocabulary are ignored, and so is a reference that is all padding if there are
        several. If the policy has no end token, a sequence of T tokens has no padding.

        Args:
            context: what `encode` returned.
            targets: `(batch, T')` or `(batch, references, T')` int token ids in the
                form of samples, padded, with T' at most T.
        """
        length = self.length_limit(context)
        targets = as_references(type(self).__name__, targets, length)
        if 0 in tuple(targets.shape[1:]):  # nothing to learn
            return ops.zeros(ops.shape(targets)[:1], "float32")
        tokens, present = tokens_of_references(
            targets, self.pad_id, self.end_ids, length
        )
        known = ops.logical_and(targets >= 0, targets < self.vocabulary_size)
        # The token that replaces unknown ones must not end the sequence.
        word = next(
            (i for i in range(self.vocabulary_size) if i not in self.end_ids), 0
        )
        stand_in = ops.where(known, targets, word)
        log_probs = self.token_likelihoods(context, stand_in[None])[0][0]
        allowed = log_probs > 0.5 * FORBIDDEN
        counted = self.counted(context, targets)
        for mask in (known, allowed, tokens):
            counted = ops.logical_and(counted, mask)
        return mean_over_references(log_probs, counted, present)

    def check_targets(self, targets):
        """Raises if `y` of `fit` has no token ids, or ids outside the vocabulary."""
        as_references(type(self).__name__, targets, self.length_limit())
        check_references(targets, self.vocabulary_size)

    def greedy_outputs(self, x, context):
        """The greedy output, decoded; with `token_probs` if the codec uses them."""
        greedy = self.mode(context)[:, None]
        if not getattr(self.codec, "uses_token_probs", False):
            return self.sampled_outputs(x, context, greedy)
        greedy = ops.convert_to_tensor(greedy, "int32")
        log_probs, _ = self.token_likelihoods(context, greedy[None])
        # Also at positions that do not count, such as the confidence of a box.
        log_probs = ops.where(self.mask(context, greedy), log_probs[0], 0.0)
        probabilities = ops.exp(log_probs)
        return self.sampled_outputs(x, context, greedy, token_probs=probabilities)

    def get_config(self):
        return {**super().get_config(), "logits_chunk": self.logits_chunk}


def filled_up(tokens, length):
    """Sequences `(..., T)` with zeros after them: `(..., length)`."""
    *lead, size = ops.shape(tokens)
    tokens = ops.pad(tokens, [(0, 0)] * len(lead) + [(0, length - size)])
    return ops.reshape(tokens, (*lead, length))


def map_chunks(function, tensors, size):
    """Applies a function to chunks of positions, one after the other.

    A loop, since XLA may keep independent chunks in memory all at once. The gradient
    recomputes each chunk: only the inputs of a chunk are kept.

    Args:
        function: takes a chunk of each tensor, returns a nest of
            `(batch, n, size, ...)`.
        tensors: tuple of `(batch, n, T, ...)`. Gradients flow into the first one, and
            into the variables that the function reads.
        size: number of positions in a chunk.

    Returns:
        A nest of `(batch, n, T, ...)`.
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
        lead, rest = tuple(ops.shape(tensor)[:2]), tuple(tensor.shape[4:])
        return ops.reshape(tensor, (*lead, chunks * size, *rest))[:, :, :length]

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
