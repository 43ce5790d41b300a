"""What all policies over sequences of tokens share: how samples are scored."""

import keras
from keras import ops

from keras_reward import objective
from keras_reward.backend import LOOPS_RECOMPUTE
from keras_reward.policies.policy import Policy


class TokenPolicy(Policy):
    """Base class: a sequence of tokens, each drawn given those before it.

    A sample is `(batch, n, T)` int32 token ids. Its log-probability is the sum over
    the tokens that belong to it, by one teacher-forced pass. A subclass implements
    `encode`, `sample` and `mode`, and for scoring `states`, `token_logits` and `mask`.

    Args:
        score_chunk: number of positions whose logits exist at once when samples are
            scored. Default None: all, `(batch * n, T, vocabulary)`. A smaller number
            needs less memory, and time to compute logits anew for the gradient.
        codec: how token ids become what a reward sees, see `Policy`.
        name: optional name.
    """

    # Which of T positions count in log-probability and entropy: (T,) bool. None: all.
    position_mask = None

    def __init__(self, score_chunk=None, codec=None, name=None, **kwargs):
        super().__init__(codec=codec, name=name, **kwargs)
        if score_chunk is not None and (
            not isinstance(score_chunk, int) or score_chunk < 1
        ):
            raise ValueError(
                "`score_chunk` must be a positive int, a number of positions, or None. "
                f"Received: score_chunk={score_chunk!r}"
            )
        self.score_chunk = score_chunk

    def states(self, context, samples):
        """What predicts each token, by one pass over known tokens.

        Args:
            context: what `encode` returned.
            samples: `(batch, n, T')` int32.

        Returns:
            Tuple of tensors `(batch, n or 1, T', ...)`, the arguments of
            `token_logits`. A gradient flows into the first one alone.
        """
        raise NotImplementedError

    def token_logits(self, *states):
        """Logits that are sampled from and scored: `(..., vocabulary)`, float32."""
        raise NotImplementedError

    def mask(self, context, samples):
        """Which tokens belong to samples `(batch, n, T)`: bool, through the end."""
        raise NotImplementedError

    def scored(self, context, samples):
        """The mask without the positions that `position_mask` leaves out."""
        mask = self.mask(context, samples)
        if self.position_mask is None:
            return mask
        counted = ops.convert_to_tensor(self.position_mask[: samples.shape[-1]])
        return ops.logical_and(mask, counted)

    def token_scores(self, context, tokens, entropy_gradient=False):
        """Log-probability and entropy at every position, by one pass.

        Args:
            context: what `encode` returned.
            tokens: `(k, batch, n, T')` int32: the samples, and after them k - 1 other
                choices of which each is scored as if it stood in its sample's place.
            entropy_gradient: whether a gradient flows through the entropies.

        Returns:
            `(k, batch, n, T')` and `(batch, n, T')`, float32. What stands at positions
            that are not in the mask is without meaning.
        """

        def scores(choices, *states):
            logits = self.token_logits(*states)
            return objective.categorical_scores(logits, choices, entropy_gradient)

        hidden, *rest = self.states(context, tokens[0])
        choices = ops.moveaxis(tokens, 0, -1)
        if self.score_chunk is None or self.score_chunk >= tokens.shape[-1]:
            log_probs, entropies = scores(choices, hidden, *rest)
        else:
            log_probs, entropies = map_chunks(
                lambda hidden, choices, *rest: scores(choices, hidden, *rest),
                (hidden, choices, *rest),
                self.score_chunk,
            )
        return ops.moveaxis(log_probs, -1, 0), entropies

    def token_log_prob(self, context, samples):
        """Log-probability of each token `(batch, n, T)`; 0 after the end."""
        samples = ops.convert_to_tensor(samples, "int32")
        log_probs, _ = self.token_scores(context, samples[None])
        return ops.where(self.mask(context, samples), log_probs[0], 0.0)

    def score(self, context, samples, entropy_gradient=False):
        return self.score_choices(context, [samples], entropy_gradient)[:2]

    def score_choices(self, context, choices, entropy_gradient=False):
        """As `score`, with the log-probabilities of single tokens.

        Args:
            context: what `encode` returned.
            choices: list of `(batch, n, T)`: the samples, then other tokens to be
                scored in their places.
            entropy_gradient: whether a gradient flows through the entropy.

        Returns:
            Log-probability of the samples `(batch, n)`, entropy `(batch,)`, and
            log-probabilities `(len(choices), batch, n, T)` of all choices.
        """
        choices = ops.stack([ops.convert_to_tensor(c, "int32") for c in choices])
        log_probs, entropies = self.token_scores(context, choices, entropy_gradient)
        scored = self.scored(context, choices[0])
        weights = ops.cast(scored, "float32")
        entropy = ops.sum(entropies * weights, axis=-1)
        entropy = entropy / ops.maximum(ops.sum(weights, axis=-1), 1.0)
        log_prob = objective.sequence_log_prob(log_probs[0], scored)
        return log_prob, ops.mean(entropy, axis=1), log_probs

    def log_prob(self, context, samples):
        return self.score(context, samples)[0]

    def entropy(self, context, samples):
        """Mean entropy `(batch,)` of the positions of the samples, in nats.

        An estimate: the mean over the tokens of each sample, and then over samples.
        """
        return self.score(context, samples, entropy_gradient=True)[1]

    def greedy_outputs(self, x, context):
        """The greedy output, decoded; with `token_probs` where the codec uses them."""
        greedy = self.mode(context)[:, None]
        if not getattr(self.codec, "uses_token_probs", False):
            return self.decode(x, greedy)
        token_probs = ops.exp(self.token_log_prob(context, greedy))
        return self.decode(x, greedy, token_probs=token_probs)

    def get_config(self):
        return {**super().get_config(), "score_chunk": self.score_chunk}


def map_chunks(function, tensors, size):
    """Applies a function to chunks of positions, one after the other.

    A loop, since XLA may hold chunks that do not wait for one another all at once. The
    gradient computes each chunk anew: of a chunk only what goes in is kept.

    Args:
        function: takes a chunk of each tensor, returns a nest of
            `(batch, n, size, ...)`.
        tensors: tuple of `(batch, n, T, ...)`. Gradients flow into the first one, and
            into what the function reads.
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
