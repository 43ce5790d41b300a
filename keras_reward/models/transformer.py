"""Transformer layers: pre-norm blocks, and attention with cached keys and values."""

import keras
from keras import ops

EPSILON = 1e-6  # of the layer normalisations, as in the published ViT models
STDDEV = 0.02  # of initial embeddings


@keras.saving.register_keras_serializable(package="keras_reward")
class Dense(keras.layers.Dense):
    """`keras.layers.Dense` as a product of two-dimensional matrices.

    The weight gradient of a product over `(batch, tokens, width)` contracts two axes,
    which takes XLA twice as long on a CPU as contracting one.
    """

    def call(self, x, training=None):
        *lead, width = ops.shape(x)
        rows = super().call(ops.reshape(x, (-1, width)), training=training)
        return ops.reshape(rows, (*lead, self.units))


@keras.saving.register_keras_serializable(package="keras_reward")
class PositionEmbedding(keras.layers.Layer):
    """Adds a learned vector for each position.

    Args:
        length: number of positions.
        stddev: standard deviation of the initial vectors. Default 0.02.
    """

    def __init__(self, length, stddev=STDDEV, **kwargs):
        super().__init__(**kwargs)
        self.length = length
        self.stddev = stddev

    def build(self, shape):
        self.embeddings = self.add_weight(
            shape=(self.length, shape[-1]),
            initializer=keras.initializers.RandomNormal(stddev=self.stddev),
            name="embeddings",
        )

    def call(self, x, position=0):
        """Takes `x` `(..., tokens, width)`, with its first token at `position`."""
        embeddings = ops.convert_to_tensor(self.embeddings)
        return x + ops.slice(embeddings, (position, 0), ops.shape(x)[-2:])

    def compute_output_shape(self, shape):
        return shape

    def get_config(self):
        return {
            **super().get_config(),
            "length": self.length,
            "stddev": self.stddev,
        }


@keras.saving.register_keras_serializable(package="keras_reward")
class Attention(keras.layers.Layer):
    """Multi-head attention to keys and values that are computed separately.

    Args:
        num_heads: number of heads; divides the width of the queries.
        use_bias: whether its four linear maps have biases. Default True.
    """

    def __init__(self, num_heads, use_bias=True, **kwargs):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.use_bias = use_bias

    def build(self, shape, memory_shape=None):
        """`shape` is that of the queries, `memory_shape` that of keys if it differs."""
        width = shape[-1]
        for name in ("query", "key", "value", "output"):
            layer = Dense(
                width, use_bias=self.use_bias, name=name, dtype=self.dtype_policy
            )
            memory = memory_shape if name in ("key", "value") else None
            layer.build(memory or shape)
            setattr(self, f"{name}_dense", layer)

    def keys_values(self, memory):
        """Keys and values of `memory` `(batch, tokens, width)`.

        Computed once, so that each call only computes what depends on the queries.

        Returns:
            Keys `(batch, heads, depth, tokens)`, in the layout of the product with
            queries, so that a loop over positions need not transpose them. Values
            `(batch, heads, tokens, depth)`.
        """
        keys = split_heads(self.key_dense(memory), self.num_heads)
        values = split_heads(self.value_dense(memory), self.num_heads)
        return ops.transpose(keys, (0, 1, 3, 2)), values

    def empty_cache(self, rows, length, width):
        """Zero keys and values of `length` positions, for `rows` sequences."""
        depth = width // self.num_heads
        # Two arrays, since `slice_update` writes in place on NumPy.
        keys = ops.zeros((rows, self.num_heads, depth, length), self.compute_dtype)
        values = ops.zeros((rows, self.num_heads, length, depth), self.compute_dtype)
        return keys, values

    def call(self, x, keys, values, visible=None):
        """Attends to keys and values where `visible` is True.

        Args:
            x: `(batch, queries, width)`.
            keys, values: as `keys_values` returns them.
            visible: bool `(queries, tokens)`. Default: all are visible.

        Returns:
            `(batch, queries, width)`.
        """
        queries = split_heads(self.query_dense(x), self.num_heads)
        logits = ops.matmul(queries, keys)
        logits = ops.cast(logits, "float32") * keys.shape[2] ** -0.5
        if visible is not None:
            logits = ops.where(visible, logits, ops.cast(-1e9, "float32"))
        weights = ops.cast(ops.softmax(logits, axis=-1), self.compute_dtype)
        found = ops.transpose(ops.matmul(weights, values), (0, 2, 1, 3))
        return self.output_dense(ops.reshape(found, ops.shape(x)))

    def compute_output_shape(self, shape, *args, **kwargs):
        return shape

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "use_bias": self.use_bias,
        }


def split_heads(x, num_heads):
    """`(batch, tokens, width)` to `(batch, heads, tokens, depth)`."""
    batch, tokens, width = ops.shape(x)
    x = ops.reshape(x, (batch, tokens, num_heads, width // num_heads))
    return ops.transpose(x, (0, 2, 1, 3))


@keras.saving.register_keras_serializable(package="keras_reward")
class FeedForward(keras.layers.Layer):
    """Two dense layers with a GELU (tanh form) between them, applied to each token.

    Args:
        mlp_dim: hidden width.
    """

    def __init__(self, mlp_dim, **kwargs):
        super().__init__(**kwargs)
        self.mlp_dim = mlp_dim

    def build(self, shape):
        self.up = Dense(self.mlp_dim, name="up", dtype=self.dtype_policy)
        self.up.build(shape)
        self.down = Dense(shape[-1], name="down", dtype=self.dtype_policy)
        self.down.build((*shape[:-1], self.mlp_dim))

    def call(self, x):
        return self.down(ops.gelu(self.up(x), approximate=True))

    def compute_output_shape(self, shape):
        return shape

    def get_config(self):
        return {**super().get_config(), "mlp_dim": self.mlp_dim}


class Block(keras.layers.Layer):
    """Base class of encoder and decoder blocks.

    Args:
        num_heads: number of attention heads; divides the width.
        mlp_dim: hidden width of the feed-forward network.
        dropout: share of each sub-layer's output that is dropped in training.
        attention_bias: whether attention has biases. Default True.
    """

    def __init__(self, num_heads, mlp_dim, dropout=0.0, attention_bias=True, **kwargs):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.mlp_dim = mlp_dim
        self.dropout = dropout
        self.attention_bias = attention_bias
        self.drop = keras.layers.Dropout(dropout, dtype=self.dtype_policy)

    def attention(self, name, *shapes):
        layer = Attention(
            self.num_heads, self.attention_bias, name=name, dtype=self.dtype_policy
        )
        layer.build(*shapes)
        return layer

    def norm(self, name, shape):
        return layer_norm(name, shape, self.dtype_policy)

    def feed_forward(self, shape):
        layer = FeedForward(self.mlp_dim, name="mlp", dtype=self.dtype_policy)
        layer.build(shape)
        return layer

    def compute_output_shape(self, shape, *args, **kwargs):
        return shape

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "mlp_dim": self.mlp_dim,
            "dropout": self.dropout,
            "attention_bias": self.attention_bias,
        }


def layer_norm(name, shape, dtype):
    """A built layer normalisation over the last axis."""
    layer = keras.layers.LayerNormalization(epsilon=EPSILON, name=name, dtype=dtype)
    layer.build(shape)
    return layer


@keras.saving.register_keras_serializable(package="keras_reward")
class EncoderBlock(Block):
    """Pre-norm Transformer encoder block on `(batch, tokens, width)`."""

    def build(self, shape):
        self.attention_norm = self.norm("attention_norm", shape)
        self.self_attention = self.attention("self_attention", shape)
        self.mlp_norm = self.norm("mlp_norm", shape)
        self.mlp = self.feed_forward(shape)

    def call(self, x, training=False):
        h = self.attention_norm(x)
        h = self.self_attention(h, *self.self_attention.keys_values(h))
        x = x + self.drop(h, training=training)
        return x + self.drop(self.mlp(self.mlp_norm(x)), training=training)


@keras.saving.register_keras_serializable(package="keras_reward")
class DecoderBlock(Block):
    """Pre-norm Transformer decoder block: self-attention, cross-attention, MLP.

    Works on `(batch, n, tokens, width)`: n sequences per image, which share the keys
    and values of cross-attention.
    """

    def build(self, shape, memory_shape):
        self.attention_norm = self.norm("attention_norm", shape)
        self.self_attention = self.attention("self_attention", shape)
        self.cross_norm = self.norm("cross_norm", shape)
        self.cross_attention = self.attention("cross_attention", shape, memory_shape)
        self.mlp_norm = self.norm("mlp_norm", shape)
        self.mlp = self.feed_forward(shape)

    def call(self, x, memory, cache=None, position=0, training=False):
        """Applies the block to tokens `x`, the first of which is at `position`.

        Args:
            x: `(batch, n, tokens, width)`.
            memory: the image's keys and values, `cross_attention.keys_values(encoded)`.
            cache: keys and values of all positions of `batch * n` sequences, filled
                before `position`; initially `empty_cache`. Without it, the tokens only
                attend to one another.
            position: scalar int32.
            training: whether to apply dropout.

        Returns:
            `x` after the block, and the cache with the tokens of `x`.
        """
        batch, n, tokens, width = ops.shape(x)
        h = ops.reshape(self.attention_norm(x), (batch * n, tokens, width))
        known = self.self_attention.keys_values(h)
        if cache is not None:
            starts = (0, 0, 0, position), (0, 0, position, 0)
            known = tuple(map(ops.slice_update, cache, starts, known))
        visible = causal_mask(position, tokens, ops.shape(known[0])[-1])
        h = self.self_attention(h, *known, visible=visible)
        x = x + self.drop(ops.reshape(h, ops.shape(x)), training=training)
        # The n sequences of an image are n * tokens queries for one set of keys.
        h = ops.reshape(self.cross_norm(x), (batch, n * tokens, width))
        h = self.cross_attention(h, *memory)
        x = x + self.drop(ops.reshape(h, ops.shape(x)), training=training)
        x = x + self.drop(self.mlp(self.mlp_norm(x)), training=training)
        return x, known


def causal_mask(position, tokens, keys):
    """Which keys each token attends to, `(tokens, keys)`: its own and earlier ones."""
    own = position + ops.arange(tokens, dtype="int32")
    return ops.arange(keys, dtype="int32") <= own[:, None]
