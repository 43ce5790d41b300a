"""Models that a policy of independent positions cannot read, and what to do instead."""

import keras

from keras_reward.backend.keras_private import flatten_layers
from keras_reward.nests import are_arrays, is_integer
from keras_reward.sequences.sequence_model import ATTRIBUTES, METHODS

# Methods of diffusion models: of KerasHub's tasks, and of those written as in Keras's
# examples.
DIFFUSION = ("denoise_step", "reverse_diffusion")
# Tokens that a decoder knows besides those that it writes: start, padding.
SPECIAL_TOKENS = 3


def refuse_diffusion(model):
    """Raises for a diffusion model."""
    found = [m for m in DIFFUSION if callable(getattr(model, m, None))]
    if found:
        raise ValueError(
            f"Model {model.name!r} is a diffusion model, whose samples are made in "
            "many passes: no policy of this package tunes it. One that draws and "
            "scores such samples can be written in the model, as ModelPolicy says. "
            f"Received: a model with the method {found[0]!r}"
        )


def refuse_several_outputs(policy, output):
    """Raises if what a model returned is not one tensor."""
    if getattr(output, "shape", None) is not None:
        return
    if not isinstance(output, dict | list | tuple):
        raise ValueError(expected(policy, f"a {type(output).__name__}"))
    keys = list(output) if isinstance(output, dict) else range(len(output))
    shapes = {
        key: tuple(output[key].shape) if hasattr(output[key], "shape") else "a nest"
        for key in keys
    }
    if isinstance(output, dict):
        entries = ", ".join(f"{key!r}: ..." for key in keys)
        each = f"`policy={{{entries}}}`"
    else:
        each = f"`policy=[{', '.join('...' for _ in keys)}]`"
    received = ", ".join(f"{key!r} of shape {shape}" for key, shape in shapes.items())
    raise ValueError(expected(policy, f"a {type(output).__name__} of {received}", each))


def expected(policy, received, each=None):
    """The message for an output that is not one tensor of floats."""
    advice = f" If it returns several, pass {each}, a policy for each." if each else ""
    return (
        f"{type(policy).__name__} expects the model to return one tensor of floats of "
        f"shape {policy.expected_output}.{advice} "
        f"Received: {received} from model {policy.model.name!r}"
    )


def refuse_next_tokens(model, inputs, output, fewest=2):
    """Raises if a model predicts the next token of a sequence that it is given.

    Such as a captioner called with an image and tokens. Read as independent positions,
    it would be tuned on the tokens of the data, and not on what it writes itself.

    Args:
        model: a `keras.Model`.
        inputs: what it is called with, arrays or symbolic tensors.
        output: what it returns, a tensor.
        fewest: the fewest inputs of such a model. With one input, it may as well label
            the tokens: 1 only if nobody has said how to read it.
    """
    tokens = given_tokens(model, inputs, output, fewest)
    if tokens is not None:
        labels = 'If it labels tokens, pass `policy="categorical"`. '
        raise ValueError(
            f"Model {model.name!r} is given tokens and returns scores of a token at "
            "each of their positions: read as a class at each position, it would be "
            "tuned on the tokens of the data instead of those that it writes. Give it "
            f"the methods {', '.join(METHODS)} and the attributes "
            f'{", ".join(ATTRIBUTES)}; then `policy="auto"` is an AutoregressivePolicy '
            '(see "Your own model" in docs/sequence_models.md). '
            f"{labels if fewest == 1 else ''}"
            f"Received: integers of shape {tuple(tokens.shape)}, output of shape "
            f"{tuple(output.shape)}"
        )


def given_tokens(model, inputs, output, fewest=2):
    """The tokens whose next ones a model predicts; None if it seems not to.

    It has `fewest` inputs at least, one of them `(batch, T)` integers, and returns
    `(batch, T, vocabulary)`. A model that labels given words does so too, but knows
    more words than labels; one without a word embedding is taken for a captioner if it
    sees a picture.
    """
    leaves = keras.tree.flatten(inputs)
    if len(leaves) < fewest or len(output.shape) != 3 or not are_arrays(leaves):
        return None
    length, vocabulary = output.shape[1:]
    tokens = [
        leaf
        for leaf in leaves
        if is_integer(leaf) and len(leaf.shape) == 2 and leaf.shape[1] == length
    ]
    if not tokens:
        return None
    words = [
        layer.input_dim
        for layer in flatten_layers(model)
        if hasattr(layer, "input_dim") and hasattr(layer, "output_dim")
    ]
    if words:
        writes = abs(max(words) - vocabulary) <= SPECIAL_TOKENS
    else:
        writes = any(len(leaf.shape) >= 4 for leaf in leaves)
    return tokens[0] if writes else None
