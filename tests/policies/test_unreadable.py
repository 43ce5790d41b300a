"""Models that a policy of independent positions cannot read are told what to do."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from tiny import inputs

from keras_reward import CategoricalPolicy, GaussianPolicy, RewardTuning, policies

T, WORDS = 6, 11


def some_reward(y_true, y_pred):
    return ops.cast(y_pred, "float32")


def captioner(picture=True, words=WORDS, embed=True, scores=WORDS):
    """Called with an input and tokens: scores of the next token at each position."""
    x = keras.Input((4, 4, 3)) if picture else keras.Input((T,), dtype="int32")
    tokens = keras.Input((T,), dtype="int32")
    if embed:
        hidden = layers.Embedding(words, 8)(tokens)
    else:
        hidden = layers.CategoryEncoding(words)(tokens)[:, None]
    seen = ops.mean(ops.cast(x, "float32"), axis=tuple(range(1, len(x.shape))))
    hidden = hidden + seen[:, None, None] * ops.ones((T, 1))
    return keras.Model([x, tokens], layers.Dense(scores, activation="softmax")(hidden))


class Subclassed(keras.Model):
    """The same, in `call`."""

    def __init__(self):
        super().__init__()
        self.inner = captioner()

    def call(self, x):
        return self.inner([x["images"], x["tokens"]])


MODELS = {
    "image and tokens": captioner,
    "tokens and tokens": lambda: captioner(picture=False),
    "without embedding": lambda: captioner(embed=False),
    "no special tokens written": lambda: captioner(words=WORDS + 2),
}


@pytest.mark.parametrize("policy", ["auto", "categorical"])
@pytest.mark.parametrize("case", MODELS)
def test_a_model_of_next_tokens_is_led_to_a_sequence_policy(case, policy):
    model = MODELS[case]()
    pattern = (
        r"tokens of the data.*hidden_states.*AutoregressivePolicy.*\(None, 6, 11\)"
    )
    with pytest.raises(ValueError, match=pattern):
        RewardTuning(model, reward=some_reward, policy=policy)


def test_a_subclassed_one_is_led_there_when_it_is_called():
    tuned = RewardTuning(Subclassed(), reward=some_reward)
    x = {
        "images": np.zeros((2, 4, 4, 3), "float32"),
        "tokens": np.zeros((2, T), "int32"),
    }
    with pytest.raises(ValueError, match="AutoregressivePolicy"):
        tuned.predict(x, verbose=0)


def test_a_model_that_labels_words_is_read():
    """It knows 50 words and 11 labels."""
    tagger = captioner(picture=False, words=50)
    assert policies.get("auto", tagger).from_logits is False


def test_a_single_input_of_tokens_may_be_labelled_if_one_says_so():
    tokens = keras.Input((T,), dtype="int32")
    hidden = layers.Embedding(WORDS, 4)(tokens)
    model = keras.Model(tokens, layers.Dense(WORDS)(hidden))
    with pytest.raises(ValueError, match=r'labels tokens.*policy="categorical"'):
        policies.get("auto", model)
    assert policies.get("categorical", model).from_logits is True


def outputs(kind):
    x = keras.Input((3,))
    depth, classes = layers.Dense(2)(x), layers.Dense(4)(x)
    if kind == "dict":
        return keras.Model(x, {"classes": classes, "depth": depth})
    return keras.Model(x, [depth, classes])


@pytest.mark.parametrize("policy", [CategoricalPolicy, GaussianPolicy])
def test_several_outputs_are_named(policy):
    policy = policy().bind(outputs("dict"))
    with pytest.raises(ValueError, match="one tensor of floats") as error:
        policy.encode(inputs(2))
    for part in (
        "`policy={'classes': ..., 'depth': ...}`",
        "a dict of 'classes' of shape (2, 4), 'depth' of shape (2, 2)",
    ):
        assert part in str(error.value)
    policy = CategoricalPolicy().bind(outputs("list"))
    with pytest.raises(ValueError, match=r"policy=\[\.\.\., \.\.\.\].*a list of 0 of"):
        policy.encode(inputs(2))


def test_a_diffusion_model_is_refused_at_once():
    class Diffusion(keras.Model):
        def reverse_diffusion(self, noise, steps):
            return noise

    for policy in ("auto", "gaussian", "bernoulli"):
        with pytest.raises(ValueError, match=r"a diffusion model.*many passes"):
            RewardTuning(Diffusion(), reward=some_reward, policy=policy)


def test_a_model_that_labels_words_in_segments_is_read():
    """The embedding of two segments is about as large as the number of labels."""
    words, segments = (keras.Input((6,), dtype="int32") for _ in range(2))
    hidden = keras.layers.Embedding(50, 4)(words)
    hidden += keras.layers.Embedding(2, 4)(segments)
    tagger = keras.Model([words, segments], keras.layers.Dense(5)(hidden))
    assert policies.get("auto", tagger).from_logits is True
