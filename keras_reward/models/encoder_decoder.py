"""A model from images to sequences: any image encoder and a Transformer decoder."""

import functools

import keras
import numpy as np
from keras import ops

from keras_reward.models import generation
from keras_reward.models.captions import (
    CaptionPreprocessor,
    check_array_of_ids,
    check_special_ids,
)
from keras_reward.models.sizes import check_layers, check_sizes, encoder_shapes
from keras_reward.models.transformer import (
    STDDEV,
    DecoderBlock,
    Dense,
    PositionEmbedding,
    layer_norm,
)
from keras_reward.nests import may_be_equal, with_last_sizes
from keras_reward.saved_objects import deserialized, entry, serialized


@keras.saving.register_keras_serializable(package="keras_reward")
class VisionEncoderDecoder(keras.Model):
    """An image encoder, and a Transformer decoder that generates token ids.

    The decoder is pre-norm, with causal self-attention, cross-attention to the encoded
    image, learned positions and GELU. Maximum likelihood training is plain `fit`, with
    the data that `preprocessor` makes from images and sequences.

    The methods below `call` are for sampling and the likelihood: the image is encoded
    once, and its cross-attention keys and values are stored once for all of its
    sequences.

    Args:
        encoder: a Keras model from images `(batch, height, width, channels)` to
            `(batch, tokens, features)`, with static shapes except for the batch:
            `VisionTransformer`, KerasHub's `ViTBackbone`, or your own.
        vocabulary_size: number of token ids, including special ones.
        max_length: maximum length of a sequence in tokens, including the end token.
        num_layers: number of decoder blocks. Default 3.
        num_heads: number of attention heads; divides `width`. Default 4.
        mlp_dim: hidden width of the feed-forward networks. Default `4 * width`.
        width: width of the decoder. Default: that of the encoder's output.
        dropout: share of each sub-layer's output that is dropped in training.
        start_id: id that the decoder gets before the first token. It is not part of
            sequences, and may be the id of padding. Default 0.
        end_id: id of the token that ends a sequence. Default 1. None: every sequence
            has `max_length` tokens.
        pad_id: id of padding after the end. Default 0.
        attention_bias: whether the decoder's attention has biases. Default True. The
            published models of big_vision have none.
        name: optional name.
        dtype: optional dtype or dtype policy. Softmax and logits are always float32.

    Call arguments: a dict of `images` `(batch, height, width, channels)` and
    `token_ids` `(batch, T)`, `start_id` and then the ids before those to predict; T is
    at most `max_length`. Returns logits `(batch, T, vocabulary_size)`, float32.

    Example:

    ```python
    import keras
    import numpy as np
    from keras_reward.models import VisionEncoderDecoder, VisionTransformer

    encoder = VisionTransformer((32, 32, 3), patch_size=8, width=16, num_heads=2)
    model = VisionEncoderDecoder(encoder, vocabulary_size=20, max_length=6, num_heads=2)
    images = np.random.default_rng(0).random((2, 32, 32, 3)).astype("float32")
    x, y, weights = model.preprocessor(images, [[5, 6, 7], [8, 9]])
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x, y, sample_weight=weights, verbose=0)
    model.generate(images, temperature=0)  # (2, 6) token ids, greedy
    model.generate(images, num_samples=3)  # (2, 3, 6)
    ```

    Reference: Vaswani et al. 2017, "Attention Is All You Need"; pre-norm as in Xiong
    et al. 2020, "On Layer Normalization in the Transformer Architecture".
    """

    def __init__(
        self,
        encoder,
        vocabulary_size,
        max_length,
        num_layers=3,
        num_heads=4,
        mlp_dim=None,
        width=None,
        dropout=0.0,
        start_id=0,
        end_id=1,
        pad_id=0,
        attention_bias=True,
        name=None,
        dtype=None,
    ):
        super().__init__(name=name, dtype=dtype)
        self.image_shape, memory_shape = encoder_shapes(encoder)
        width = width or memory_shape[-1]
        mlp_dim = mlp_dim or 4 * width
        check_sizes(
            vocabulary_size=vocabulary_size,
            max_length=max_length,
            num_layers=num_layers,
            num_heads=num_heads,
            mlp_dim=mlp_dim,
            width=width,
        )
        check_layers(num_layers=num_layers)
        check_special_ids(vocabulary_size, start_id, end_id, pad_id)
        if width % num_heads:
            raise ValueError(
                "`num_heads` must divide `width`. "
                f"Received: width={width}, num_heads={num_heads}"
            )
        self.encoder = encoder
        self.vocabulary_size = vocabulary_size
        self.max_length = max_length
        self.num_heads = num_heads
        self.mlp_dim = mlp_dim
        self.width = width
        self.dropout = dropout
        self.start_id = start_id
        self.end_id = end_id
        self.pad_id = pad_id
        self.attention_bias = attention_bias
        dtype = self.dtype_policy
        self.token_embedding = keras.layers.Embedding(
            vocabulary_size,
            width,
            # Made here: a module-level one would fix its seed before the user's.
            keras.initializers.RandomNormal(stddev=STDDEV),
            name="token_embedding",
            dtype=dtype,
        )
        self.positions = PositionEmbedding(
            max_length, name="token_positions", dtype=dtype
        )
        self.drop = keras.layers.Dropout(dropout, dtype=dtype)
        self.blocks = [
            DecoderBlock(
                num_heads,
                self.mlp_dim,
                dropout,
                attention_bias,
                name=f"decoder_block_{i}",
                dtype=dtype,
            )
            for i in range(num_layers)
        ]
        self.head = Dense(vocabulary_size, name="logits", dtype=dtype)
        self.build_layers(memory_shape)

    def build_layers(self, memory_shape):
        """Makes all weights, since every shape is known."""
        shape = (None, None, self.max_length, self.width)
        self.token_embedding.build(shape[:-1])
        self.positions.build(shape)
        for block in self.blocks:
            block.build(shape, memory_shape)
        self.norm = layer_norm("decoder_norm", shape, self.dtype_policy)
        self.head.build(shape)
        self.built = True

    def call(self, inputs, training=False):
        if not isinstance(inputs, dict) or not {"images", "token_ids"} <= set(inputs):
            raise ValueError(
                f"{type(self).__name__} expects a dict with the keys 'images' and "
                "'token_ids', as `preprocessor` makes it. "
                f"Received: {describe(inputs)}"
            )
        context = self.encode(inputs, training=training)
        token_ids = ops.expand_dims(inputs["token_ids"], 1)
        hidden = self.hidden_states(context, token_ids, training=training)
        return self.logits(hidden)[:, 0]

    # A compiled step cannot check token ids, and on JAX an id outside the vocabulary
    # makes the loss NaN. So arrays and tensors are checked first.

    def check_data(self, x=None, y=None, *args, **kwargs):
        """Raises if ids in the arguments of `fit` are not in the vocabulary."""
        if isinstance(x, dict):
            check_array_of_ids(x.get("token_ids"), self.vocabulary_size, "`token_ids`")
        ignored = getattr(getattr(self, "loss", None), "ignore_class", None)
        check_array_of_ids(y, self.vocabulary_size, "`y`", ignored)

    @functools.wraps(keras.Model.fit)
    def fit(self, *args, **kwargs):
        self.check_data(*args, **kwargs)
        return super().fit(*args, **kwargs)

    @functools.wraps(keras.Model.evaluate)
    def evaluate(self, *args, **kwargs):
        self.check_data(*args, **kwargs)
        return super().evaluate(*args, **kwargs)

    @functools.wraps(keras.Model.train_on_batch)
    def train_on_batch(self, *args, **kwargs):
        self.check_data(*args, **kwargs)
        return super().train_on_batch(*args, **kwargs)

    @functools.wraps(keras.Model.predict)
    def predict(self, x, *args, **kwargs):
        self.check_data(x)
        return super().predict(x, *args, **kwargs)

    def encode(self, x, training=False):
        """Runs the encoder once, for all that the decoder needs of the images.

        Args:
            x: images `(batch, height, width, channels)`, or a dict with the key
                `"images"`.
            training: the encoder's `training` flag.

        Returns:
            The context: the cross-attention keys and values of each decoder block, each
            `(batch, heads, ...)`.
        """
        images = x["images"] if isinstance(x, dict) else x
        self.check_images(images)
        images = with_last_sizes(images, self.image_shape)
        memory = self.encoder(images, training=training)
        return [block.cross_attention.keys_values(memory) for block in self.blocks]

    def check_images(self, images):
        """Raises if an array or tensor does not have the encoder's image shape."""
        shape = tuple(images.shape)
        if not may_be_equal(shape[1:], self.image_shape):
            height, width, channels = self.image_shape
            raise ValueError(
                f"The encoder of {self.name!r} was built for images of shape (batch, "
                f"{height}, {width}, {channels}). Resize yours, for example with "
                f"`keras.layers.Resizing({height}, {width})`. "
                f"Received: images of shape {shape}"
            )

    def hidden_states(self, context, token_ids, training=False):
        """The decoder's output at each position, from one pass over known tokens.

        Args:
            context: what `encode` returned.
            token_ids: `(batch, n, T)` int, the inputs of n sequences per image,
                `start_id` first. T is at most `max_length`.
            training: whether to apply dropout.

        Returns:
            `(batch, n, T, width)`. The output at position t predicts token t.
        """
        if (token_ids.shape[-1] or 0) > self.max_length:
            raise ValueError(
                f"{self.name!r} was made for at most {self.max_length} tokens. Shorten "
                "the sequences, or make the model with a larger `max_length`. "
                f"Received: token_ids of shape {tuple(token_ids.shape)}"
            )
        x = self.embed(token_ids, 0)
        x = self.drop(x, training=training)
        for block, memory in zip(self.blocks, context, strict=True):
            x, _ = block(x, memory, training=training)
        return self.norm(x)

    def embed(self, token_ids, position):
        """Embeds ids `(batch, n, tokens)`, the first of which is at `position`."""
        x = self.token_embedding(ops.cast(token_ids, "int32"))
        return self.positions(x, position=position)

    def logits(self, hidden):
        """Logits `(..., vocabulary_size)` in float32, from `hidden` `(..., width)`."""
        return ops.cast(self.head(hidden), "float32")

    def start_cache(self, context, n):
        """An empty cache for `next_hidden`.

        Args:
            context: what `encode` returned.
            n: number of sequences per image.

        Returns:
            A nest of zeros `(batch * n, heads, ...)`, with the sequences in the first
            axis.
        """
        rows = ops.shape(context[0][0])[0] * n
        size = (rows, self.max_length, self.width)
        return [block.self_attention.empty_cache(*size) for block in self.blocks]

    def next_hidden(self, context, cache, token_ids, position):
        """The decoder's output at one position, given the cache of earlier ones.

        Args:
            context: what `encode` returned.
            cache: what the previous step returned; at first, `start_cache`.
            token_ids: `(batch, n)` int, the inputs at this position: `start_id` at
                position 0, later the previous token.
            position: scalar int32.

        Returns:
            `(batch, n, width)`, which predicts the token at `position`, and the cache.
        """
        x = self.embed(ops.expand_dims(token_ids, -1), position)
        steps = zip(self.blocks, context, cache, strict=True)
        cache = []
        for block, memory, known in steps:
            x, known = block(x, memory, cache=known, position=position)
            cache.append(known)
        return self.norm(x)[:, :, 0], cache

    def generate(
        self, images, num_samples=1, temperature=1.0, beam_width=None, seed=None
    ):
        """Generates sequences for images, by sampling, greedily or by beam search.

        Args:
            images: a batch `(batch, height, width, channels)`, a list of images, or
                a dict with one of these under `"images"`.
            num_samples: number of sequences per image. Default 1.
            temperature: divides the logits. 0 takes the likeliest token at every
                position. Default 1.
            beam_width: number of sequences per image that a beam search keeps. It
                returns the likeliest sequence that it finds, according to the model
                alone: a policy's slot mask is ignored. Default None: no beam search.
            seed: int. With the same seed, every backend draws the same numbers.

        Returns:
            Int32 NumPy array of token ids, `(batch, max_length)` if `num_samples` is
            1, else `(batch, num_samples, max_length)`, with `pad_id` after the first
            end token.
        """
        images = images["images"] if isinstance(images, dict) else images
        images = as_array(images)
        self.check_images(images)
        return generation.generate(
            self, images, num_samples, temperature, beam_width, seed
        )

    @property
    def preprocessor(self):
        """A `CaptionPreprocessor` with the sizes and special ids of this model."""
        return CaptionPreprocessor(
            self.vocabulary_size,
            self.max_length,
            start_id=self.start_id,
            end_id=self.end_id,
            pad_id=self.pad_id,
        )

    def get_config(self):
        return {
            "encoder": serialized(self.encoder),
            "vocabulary_size": self.vocabulary_size,
            "max_length": self.max_length,
            "num_layers": len(self.blocks),
            "num_heads": self.num_heads,
            "mlp_dim": self.mlp_dim,
            "width": self.width,
            "dropout": self.dropout,
            "start_id": self.start_id,
            "end_id": self.end_id,
            "pad_id": self.pad_id,
            "attention_bias": self.attention_bias,
            "name": self.name,
            "dtype": serialized(self.dtype_policy),
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        encoder = deserialized(entry(config, "encoder"), custom_objects)
        return cls(**{**config, "encoder": encoder})


def as_array(images):
    """A list of images as one array; an array `(batch,)` if their sizes differ."""
    if not isinstance(images, (list, tuple)):
        return images if hasattr(images, "shape") else np.asarray(images)
    images = [np.asarray(image) for image in images]
    if len({image.shape for image in images}) < 2:
        return np.asarray(images)
    return np.empty(len(images), "object")


def describe(inputs):
    """Describes a model's inputs for an error message."""
    return sorted(inputs) if isinstance(inputs, dict) else type(inputs).__name__
