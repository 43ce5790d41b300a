"""The policy of models that generate a sequence token by token."""

import keras
import numpy as np
from keras import ops

from keras_reward.categorical import draw_tokens, likeliest
from keras_reward.nests import goes_with, host_array, take_rows, with_last_sizes
from keras_reward.policies.policy import goes_with_decoding
from keras_reward.policies.tokens import FORBIDDEN, TokenPolicy
from keras_reward.saved_objects import deserialized, serialized
from keras_reward.sequences.agreement import check_agreement, is_users_own
from keras_reward.sequences.sequence_model import (
    ATTRIBUTES,
    METHODS,
    shift_right,
    what_is_missing,
)
from keras_reward.sequences.writing import batch_size, write_tokens

# Number of inputs whose slot masks are checked before training or prediction.
CHECKED_INPUTS = 8


@keras.saving.register_keras_serializable(package="keras_reward")
class AutoregressivePolicy(TokenPolicy):
    """A sequence of tokens, each drawn given the image and the tokens before it.

    For sequence models such as `VisionEncoderDecoder`: any `keras.Model` with the
    attributes `vocabulary_size`, `max_length`, `start_id`, `end_id` (or None) and
    `pad_id`, and the methods `encode`, `hidden_states`, `logits`, `start_cache` and
    `next_hidden`. With `policy="auto"` such a model gets this policy.

    The encoder runs once per step. Its output is stored once per image and shared by
    all samples, for sampling and for their likelihood. Samples are drawn with a
    key/value cache, and their likelihood is computed in one teacher-forced pass. The
    decoder always runs with `training=False`, so that both use the same distribution.

    A sample is `(batch, n, T)` int32 token ids with `T = model.max_length`, with
    `pad_id` after the first end token. Its log-probability is the sum over its tokens
    up to and including the first end token, or over all of them if there is none.
    Before the end, padding and the start token are ordinary tokens. A model that was
    trained without them does not write them; a slot mask can forbid them.

    Args:
        logits_chunk: number of positions whose logits are in memory at once when the
            likelihood of samples is computed. Default None: all of them,
            `(batch * n, T, vocabulary)`. A smaller number needs less memory, but the
            logits are recomputed for the gradient.
        slot_mask: which tokens are allowed at which position: a bool array
            `(T, vocabulary)`, or a function of the model's inputs that returns one mask
            per input, `(batch, T, vocabulary)`. A forbidden token has probability 0 and
            is never drawn, nor is it in the greedy output. Every position must allow a
            token. Since a compiled step cannot check what a function returns, `fit`,
            `evaluate` and `predict` check it on the first inputs if they get arrays. If
            a position allows no token, any token is drawn. Default None: the
            `slot_mask` of the codec or of the model if it has one, else all tokens are
            allowed.
        position_mask: which positions count in the log-probability and the entropy: a
            bool array `(T,)`. The others are sampled but not trained, such as the
            confidence of boxes, on which no reward depends. Default None: the codec's
            `position_mask` if it has one, else all positions count.
        codec: how token ids become what a reward sees, see `Policy`. If it has
            `uses_token_probs` set, its `decode` gets the argument `token_probs`
            `(batch, 1, T)` in predictions, the probability of each token. Default None:
            the model's method `decode` if it has one, as `UViM` does, which returns
            rows `(batch * n, ...)`; else the token ids themselves. If it has
            `part_of_token`, ints `(T,)` that say which part of what it decodes to each
            token belongs to, and decodes each part from its own and earlier tokens
            alone, a reward with `gains` credits each token with its part and later
            ones, see `Reward.gains`.
        name: optional name.

    Raises:
        ValueError: if `logits_chunk` is not a positive int; if a mask has the wrong
            shape, or a position without any allowed token; in `bind`, if the model is
            not a sequence model; in `fit` and `predict`, if `hidden_states` and
            `next_hidden` of a model of your own give different log-probabilities, which
            is looked at once, on one input.

    Example:

    ```python
    import numpy as np
    from keras_reward import AutoregressivePolicy

    def never_padding(inputs):  # one mask for each input: (batch, 16, 100)
        allowed = np.ones((len(inputs), 16, 100), "bool")
        allowed[..., 0] = False
        return allowed

    policy = AutoregressivePolicy(logits_chunk=8, slot_mask=never_padding)
    # RewardTuning(model, reward=..., policy=policy)
    ```
    """

    def __init__(
        self,
        logits_chunk=None,
        slot_mask=None,
        position_mask=None,
        codec=None,
        name=None,
        **kwargs,
    ):
        super().__init__(logits_chunk, codec=codec, name=name, **kwargs)
        self.given_masks = {"slot_mask": slot_mask, "position_mask": position_mask}
        if slot_mask is None:
            slot_mask = getattr(codec, "slot_mask", None)
        if slot_mask is not None and not callable(slot_mask):
            slot_mask = np.asarray(slot_mask, "bool")
        self.slot_mask = slot_mask
        if position_mask is None:
            position_mask = getattr(codec, "position_mask", None)
        if position_mask is not None:
            position_mask = np.asarray(position_mask, "bool")
        self.position_mask = position_mask

    def bind(self, model, temperature=1.0):
        missing = what_is_missing(model)
        if missing:
            raise ValueError(
                f"{type(self).__name__} tunes a sequence model, such as "
                "VisionEncoderDecoder: one with the methods "
                f"{', '.join(METHODS)} and the attributes {', '.join(ATTRIBUTES)}. "
                f"Received: model {model.name!r} without {', '.join(missing)}"
            )
        if self.slot_mask is None:
            self.slot_mask = getattr(model, "slot_mask", None)
        if isinstance(self.slot_mask, np.ndarray):
            check_slot_mask(self.slot_mask, (model.max_length, model.vocabulary_size))
        if self.position_mask is not None:
            check_position_mask(self.position_mask, model.max_length)
        if self.part_of_token is not None:
            check_part_of_token(self.part_of_token, model.max_length)
        self._untracked(agreed=False)
        end_ids = () if model.end_id is None else (model.end_id,)
        self._untracked(end_ids=end_ids, pad_id=model.pad_id)
        return super().bind(model, temperature)

    @property
    def vocabulary_size(self):
        return self.model.vocabulary_size

    def length_limit(self, context=None):
        return self.model.max_length

    def check_inputs(self, x):
        """Raises if the slot mask of the first inputs does not fit."""
        if callable(self.slot_mask):
            first = keras.tree.map_structure(
                lambda leaf: ops.convert_to_tensor(leaf[:CHECKED_INPUTS]), x
            )
            self.slots_of(first)

    @property
    def needs_first_batch(self):
        return not self.agreed and is_users_own(self.model)

    def check_first_batch(self, x):
        """Raises if the model's `hidden_states` and `next_hidden` disagree.

        For models whose methods are not all this package's own.
        """
        check_agreement(self.model, take_rows(x, slice(1)))
        self._untracked(agreed=True)

    def slots_of(self, x):
        """The masks that a `slot_mask` function returns for inputs, checked."""
        allowed = self.slot_mask(x)
        slots = (self.model.max_length, self.model.vocabulary_size)
        check_slot_mask(allowed, ("batch", *slots))
        return with_last_sizes(ops.cast(allowed, "bool"), slots)

    def encode(self, x, training=False):
        """One encoder pass.

        Returns:
            Dict of `"model"`, the result of the model's `encode`, and, if the slot mask
            depends on the inputs, `"allowed"`, `(batch, T, vocabulary)` bool.
        """
        context = {"model": self.model.encode(x, training=training)}
        if callable(self.slot_mask):
            context["allowed"] = self.slots_of(x)
        return context

    def allowed_tokens(self, context):
        """The slot mask `(batch or 1, T, vocabulary)`, or None."""
        if isinstance(self.slot_mask, np.ndarray):
            return ops.convert_to_tensor(self.slot_mask[None])
        return context.get("allowed")

    def token_logits(self, hidden, allowed=None):
        logits = ops.cast(self.model.logits(hidden), "float32")
        if self.temperature != 1.0:
            logits = logits / self.temperature
        if allowed is None:
            return logits
        return ops.where(allowed, logits, ops.cast(FORBIDDEN, "float32"))

    # Sampling.

    def sample(self, context, num_samples, seed=None, noise=None):
        if noise is None:
            shape = (batch_size(context), num_samples, self.model.max_length)
            noise = keras.random.uniform(shape, seed=seed, dtype="float32")
        noise = ops.convert_to_tensor(noise, "float32")

        def draw(logits, position):
            number = ops.take(noise, position, axis=2)
            return draw_tokens(logits, ops.expand_dims(number, -1))[..., 0]

        return self.write(context, num_samples, draw)

    def mode(self, context):
        """The greedy output `(batch, T)`: the likeliest token at each position."""
        return self.write(context, 1, lambda logits, _: likeliest(logits))[:, 0]

    def write(self, context, n, choose):
        """Writes sequences `(batch, n, T)`; `choose(logits, position)` picks tokens."""
        allowed = self.allowed_tokens(context)

        def choose_allowed(hidden, position):
            slot = None
            if allowed is not None:
                slot = ops.expand_dims(ops.take(allowed, position, axis=1), 1)
            return choose(self.token_logits(hidden, slot), position)

        return write_tokens(self.model, context["model"], n, choose_allowed)[0]

    @property
    def decode_function(self):
        own = getattr(self.model, "decode", None)
        own = own if callable(own) else None
        return own if self.codec is None else super().decode_function

    def decode(self, x, samples, context=None, **details):
        if self.codec is None and self.decode_function is not None:
            # The model's own, which returns rows.
            return self.call_decode_function(x, samples, context, details)
        return super().decode(x, samples, context, **details)

    @property
    def part_of_token(self):
        """Ints `(T,)`: the part of the output that each token belongs to, or None."""
        parts = getattr(self.codec, "part_of_token", None)
        return None if parts is None else np.asarray(parts)

    def without_parts(self):
        if not goes_with(type(self), "without_parts", ("decode", "likelihood")):
            return f"{type(self).__name__} decodes in a way of its own"
        if self.codec is None:
            return "there is no codec that says which part a token belongs to"
        if self.part_of_token is None or not goes_with_decoding(
            self.codec, "part_of_token"
        ):
            name = getattr(self.codec, "__name__", type(self.codec).__name__)
            return f"the codec {name} has no `part_of_token`"
        return None

    # Likelihood.

    def mask(self, context, samples):
        if self.model.end_id is None:
            return ops.ones_like(samples, dtype="bool")
        ends = ops.cast(ops.equal(samples, self.model.end_id), "int32")
        return ops.equal(ops.cumsum(ends, axis=-1) - ends, 0)

    def states(self, context, samples):
        inputs = shift_right(ops, samples, self.model.start_id)
        hidden = self.model.hidden_states(context["model"], inputs)
        allowed = self.allowed_tokens(context)
        if allowed is None:
            return (hidden,)
        return hidden, allowed[:, None, : ops.shape(samples)[-1]]

    def given(self):
        return {**super().given(), **self.given_masks}

    def get_config(self):
        masks = {name: serialized(mask) for name, mask in self.given_masks.items()}
        return {**super().get_config(), **masks}

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        for name in ("slot_mask", "position_mask"):
            config[name] = deserialized(config[name])
        return super().from_config(config)


def check_slot_mask(mask, expected):
    """Raises if a slot mask has the wrong shape, or a position without any token.

    Args:
        mask: bool array or tensor. Values are only checked outside of compiled
            functions.
        expected: its shape; a name stands for any size.
    """
    shape = tuple(getattr(mask, "shape", ()))
    fits = len(shape) == len(expected) and all(
        isinstance(size, str) or given in (None, size)
        for given, size in zip(shape, expected, strict=True)
    )
    if not fits:
        described = ", ".join(map(str, expected))
        raise ValueError(
            "`slot_mask` must say for every position which tokens are allowed: "
            f"shape ({described}). Received: shape {shape}"
        )
    some = host_array(ops.any(mask, axis=-1))
    if some is not None and not some.all():
        empty = np.argwhere(~some)[0]
        raise ValueError(
            "`slot_mask` must allow at least one token at every position. "
            f"Received: none at position {int(empty[-1])}"
        )


def check_position_mask(mask, length):
    """Raises if a position mask has the wrong shape, or no True value."""
    if mask.shape != (length,) or not mask.any():
        raise ValueError(
            "`position_mask` must say for every position whether it counts: shape "
            f"({length},), with at least one that does. Received: shape {mask.shape}, "
            f"{int(mask.sum())} that count"
        )


def check_part_of_token(parts, length):
    """Raises unless each token belongs to a part, and parts follow one another."""
    fits = parts.shape == (length,) and parts.dtype.kind in "iu"
    if not fits or parts[0] < 0 or (np.diff(parts) < 0).any():
        raise ValueError(
            "`part_of_token` of a codec must have an int for each token, from 0, none "
            f"smaller than that before: shape ({length},). "
            f"Received: shape {parts.shape}, dtype {parts.dtype}, {parts.tolist()}"
        )
