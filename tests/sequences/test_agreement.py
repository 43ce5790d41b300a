"""`hidden_states` and `next_hidden` of a user's model must be of one distribution."""

import re

import keras
import numpy as np
import pytest
from keras import ops
from sequences import InNumPy, SequenceModel, images

from keras_reward import AutoregressivePolicy, RewardTuning
from keras_reward.models import VisionEncoderDecoder
from keras_reward.sequences.agreement import (
    check_agreement,
    is_users_own,
    random_tokens,
)


class StartTwice(SequenceModel):
    """`hidden_states` puts the start token first, which is there already."""

    def hidden_states(self, context, token_ids, training=False):
        start = ops.full_like(token_ids[..., :1], self.start_id)
        shifted = ops.concatenate([start, token_ids[..., :-1]], axis=-1)
        return super().hidden_states(context, shifted)


class LastTokenOnly(SequenceModel):
    """The cache forgets all but the last token."""

    def next_hidden(self, context, cache, token_ids, position):
        cache = {"sum": ops.zeros_like(cache["sum"])}
        return super().next_hidden(context, cache, token_ids, position)


class WrongPosition(SequenceModel):
    """The first position is counted from 1 in one pass."""

    def hidden_states(self, context, token_ids, training=False):
        positions = self.positions
        rolled = keras.ops.roll(ops.convert_to_tensor(positions), 1, axis=0)
        before = ops.cumsum(ops.take(self.embedding, token_ids, axis=0), axis=2)
        return ops.tanh(context["image"][:, None, None] + rolled + before)


class Forbids(SequenceModel):
    """It forbids a token itself, by minus infinity or a large number."""

    lowest = -float("inf")

    def logits(self, hidden):
        logits = super().logits(hidden)
        last = ops.arange(self.vocabulary_size) == self.vocabulary_size - 1
        return ops.where(last, self.lowest, logits)


def make(kind, **arguments):
    return kind(vocabulary_size=6, max_length=4, **arguments)


@pytest.mark.parametrize("kind", [SequenceModel, Forbids])
def test_models_that_agree(kind):
    for scale in (0.001, 0.7, 5.0):
        check_agreement(make(kind, scale=scale), images(1))


@pytest.mark.parametrize("scale", [0.05, 0.7, 3.0])
@pytest.mark.parametrize(
    ("kind", "received"),
    [
        (StartTwice, "`hidden_states` that puts it there itself.* position 1"),
        (LastTokenOnly, "Received: a difference of .* position 1"),
        (WrongPosition, "Received: a difference of .* position 0"),
    ],
)
def test_models_that_do_not(kind, received, scale):
    with pytest.raises(ValueError, match="called with the start token first") as error:
        check_agreement(make(kind, scale=scale), images(1))
    assert re.search(received, str(error.value)), str(error.value)


def test_the_difference_is_that_in_numpy():
    """After the start token twice, and after it and the first token."""
    model = make(StartTwice)
    numpy, x = InNumPy(model), images(1)[0].astype("float64")
    twice = numpy.log_softmax(x, [model.start_id])
    firsts = random_tokens(model)[0, :, 0]
    expected = max(np.abs(numpy.log_softmax(x, [t]) - twice).max() for t in firsts)
    with pytest.raises(ValueError, match="a difference of") as error:
        check_agreement(model, images(1))
    found = re.search(r"difference of (\S+) nats", str(error.value)).group(1)
    assert float(found) == pytest.approx(expected, rel=1e-2)


def longest_caption(y_true, y_pred):
    return ops.sum(ops.cast(y_pred > 1, "float32"), axis=-1)


@pytest.mark.parametrize("method", ["fit", "train_on_batch"])
def test_fit_refuses_it_before_the_first_step(method):
    model = make(StartTwice)
    before = model.get_weights()
    tuned = RewardTuning(model, reward=longest_caption, seed=0)
    tuned.compile(keras.optimizers.SGD(1.0))
    with pytest.raises(ValueError, match="puts it there itself"):
        getattr(tuned, method)(images(4))
    for a, b in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_it_is_looked_at_once_and_only_where_it_may_be_wrong():
    model = make(SequenceModel)
    policy = AutoregressivePolicy().bind(model)
    assert policy.needs_first_batch
    policy.check_first_batch(images(4))
    assert not policy.needs_first_batch
    assert not is_users_own(object.__new__(VisionEncoderDecoder))


@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16"])
def test_rounding_is_no_disagreement(dtype):
    """Half precision: one pass and single steps round in other places."""

    class Rounded(SequenceModel):
        def hidden_states(self, context, token_ids, training=False):
            hidden = super().hidden_states(context, token_ids)
            return ops.cast(ops.cast(hidden, self.compute_dtype), "float32")

    model = make(Rounded, scale=2.0)
    model.dtype_policy = dtype
    check_agreement(model, images(1))
