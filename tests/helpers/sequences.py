"""A tiny sequence model that several tests share, and the same model in NumPy.

Token t is drawn given the image and a sum over the tokens before it, so that a cache
that is wrong anywhere shows. No tests of attention here: those of the models have them.
"""

import itertools

import keras
import numpy as np
from keras import ops
from tiny import randomize

FEATURES, WIDTH = 3, 5


class SequenceModel(keras.Model):
    """The interface that `AutoregressivePolicy` expects, in a few lines.

    `hidden[t] = tanh(image + position[t] + sum of embeddings of the inputs up to t)`.
    """

    start_id, pad_id = 0, 0

    def __init__(self, vocabulary_size=4, max_length=3, end_id=1, seed=0, scale=0.7):
        super().__init__()
        self.vocabulary_size = vocabulary_size
        self.max_length = max_length
        self.end_id = end_id
        self.encoder_calls = 0
        self.encoder = keras.layers.Dense(WIDTH, use_bias=False)
        self.encoder.build((None, FEATURES))
        self.head = keras.layers.Dense(vocabulary_size, use_bias=False)
        self.head.build((None, WIDTH))
        self.embedding = self.add_weight((vocabulary_size, WIDTH), name="embedding")
        self.positions = self.add_weight((max_length, WIDTH), name="positions")
        self.built = True
        randomize(self, seed, scale)

    def call(self, x):
        return self.encoder(x)

    def encode(self, x, training=False):
        self.encoder_calls += 1
        return {"image": self.encoder(x["images"] if isinstance(x, dict) else x)}

    def hidden_states(self, context, token_ids, training=False):
        before = ops.cumsum(ops.take(self.embedding, token_ids, axis=0), axis=2)
        positions = self.positions[: token_ids.shape[-1]]
        return ops.tanh(context["image"][:, None, None] + positions + before)

    def logits(self, hidden):
        return self.head(hidden)

    def start_cache(self, context, n):
        return {"sum": ops.zeros((ops.shape(context["image"])[0], n, WIDTH))}

    def next_hidden(self, context, cache, token_ids, position):
        total = cache["sum"] + ops.take(self.embedding, token_ids, axis=0)
        here = ops.take(self.positions, position, axis=0)
        return ops.tanh(context["image"][:, None] + here + total), {"sum": total}

    def get_config(self):
        return {
            "vocabulary_size": self.vocabulary_size,
            "max_length": self.max_length,
            "end_id": self.end_id,
        }


keras.saving.register_keras_serializable(package="keras_reward_tests")(SequenceModel)


class InNumPy:
    """`SequenceModel` in float64 NumPy, one sequence at a time, token by token."""

    def __init__(self, model, temperature=1.0, allowed=None):
        self.model, self.temperature, self.allowed = model, temperature, allowed
        value = lambda v: np.array(keras.ops.convert_to_numpy(v), "float64")  # noqa: E731
        self.encoder = value(model.encoder.kernel)
        self.head = value(model.head.kernel)
        self.embedding = value(model.embedding)
        self.positions = value(model.positions)

    def log_softmax(self, x, tokens, allowed=None):
        """Log-probabilities of the next token after `tokens`, for one image."""
        inputs = [self.model.start_id, *tokens]
        total = x @ self.encoder + self.positions[len(tokens)]
        hidden = np.tanh(total + self.embedding[inputs].sum(0))
        logits = hidden @ self.head / self.temperature
        allowed = self.allowed if allowed is None else allowed
        if allowed is not None:
            logits = np.where(allowed[len(tokens)], logits, -np.inf)
        logits = logits - logits.max()
        return logits - np.log(np.exp(logits).sum())

    def ends(self, tokens):
        """Whether a sequence is complete."""
        full = len(tokens) == self.model.max_length
        return full or (len(tokens) > 0 and tokens[-1] == self.model.end_id)

    def token_log_probs(self, x, tokens, allowed=None):
        """Log-probability of each token of a sequence that is cut at its end."""
        return [
            self.log_softmax(x, tokens[:t], allowed)[token]
            for t, token in enumerate(tokens)
        ]

    def entropy(self, x, tokens, allowed=None):
        """Mean entropy of the positions of a sequence."""
        entropies = []
        for t in range(len(tokens)):
            log_p = self.log_softmax(x, tokens[:t], allowed)
            log_p = log_p[np.isfinite(log_p)]
            entropies.append(-(np.exp(log_p) * log_p).sum())
        return np.mean(entropies)

    def sample(self, x, uniform):
        """The sequence that the uniform numbers `(T,)` choose."""
        tokens = []
        while not self.ends(tokens):
            cumulative = np.exp(self.log_softmax(x, tokens)).cumsum()
            index = np.searchsorted(cumulative, uniform[len(tokens)], "right")
            tokens.append(int(min(index, len(cumulative) - 1)))
        return tokens

    def greedy(self, x):
        tokens = []
        while not self.ends(tokens):
            tokens.append(int(self.log_softmax(x, tokens).argmax()))
        return tokens

    def sequences(self):
        """Every sequence that the model can write, each cut at its end."""
        found = []
        for length in range(1, self.model.max_length + 1):
            for tokens in itertools.product(
                range(self.model.vocabulary_size), repeat=length
            ):
                early = any(self.ends(list(tokens[:t])) for t in range(1, length))
                if self.ends(list(tokens)) and not early:
                    found.append(list(tokens))
        return found

    def padded(self, tokens):
        """A sequence as the policy writes it: `(T,)`."""
        padding = [self.model.pad_id] * (self.model.max_length - len(tokens))
        return [*tokens, *padding]


def cut(tokens, end_id):
    """A padded sample as a list, through its first end token."""
    tokens = [int(token) for token in tokens]
    return tokens[: tokens.index(end_id) + 1] if end_id in tokens else tokens


def images(batch=2, seed=0):
    """Inputs of the tiny model, `(batch, FEATURES)`."""
    return np.random.default_rng(seed).normal(size=(batch, FEATURES)).astype("float32")
