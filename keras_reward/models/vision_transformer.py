"""A small Vision Transformer, from images to tokens."""

import keras
from keras import ops

from keras_reward.models.sizes import check_layers, check_sizes
from keras_reward.models.transformer import (
    Dense,
    EncoderBlock,
    PositionEmbedding,
    layer_norm,
)

STEMS = ("patch", "conv")
# Standard deviation of initial positions. With convolutions, it matches the scale of
# the content: with weak positions, a decoder takes several times longer to learn where
# things are.
POSITION_SCALES = {"patch": 0.02, "conv": 0.5}
STEM_CONVOLUTIONS = 5


@keras.saving.register_keras_serializable(package="keras_reward")
class VisionTransformer(keras.Model):
    """Vision Transformer encoder, from images to one vector for each patch.

    Patch embedding, learned positions, pre-norm blocks and a final normalisation,
    without class token and pooling. Any image model with the same form of output can
    replace it, such as KerasHub's `ViTBackbone` with pretrained weights.

    Args:
        image_shape: `(height, width, channels)`.
        patch_size: side of a patch in pixels; divides height and width.
        width: length of a patch's vector. Default 128.
        num_layers: number of Transformer blocks. Default 3.
        num_heads: number of attention heads; divides `width`. Default 4.
        mlp_dim: hidden width of the feed-forward networks. Default `4 * width`.
        dropout: share of each sub-layer's output that is dropped in training.
        stem: `"patch"` (default), one linear map of a patch's pixels; or `"conv"`, five
            normalised convolutions, which learn better from small datasets. With these,
            `patch_size` must be a power of two, at most 32.
        name: optional name.
        dtype: optional dtype or dtype policy.

    Call arguments: float images `(batch, height, width, channels)`, in the range that
    the model was trained with, such as [-1, 1]. Returns `(batch, tokens, width)`, with
    the tokens row by row.

    Example:

    ```python
    import numpy as np
    from keras_reward.models import VisionTransformer

    encoder = VisionTransformer((32, 32, 3), patch_size=8, width=16, num_heads=2)
    encoder.predict(np.zeros((2, 32, 32, 3), "float32"), verbose=0)  # (2, 16, 16)
    ```

    Reference: Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words"; for the
    convolutions, Xiao et al. 2021, "Early Convolutions Help Transformers See Better".
    """

    def __init__(
        self,
        image_shape,
        patch_size,
        width=128,
        num_layers=3,
        num_heads=4,
        mlp_dim=None,
        dropout=0.0,
        stem="patch",
        name=None,
        dtype=None,
    ):
        check_arguments(image_shape, patch_size, width, num_heads, stem)
        mlp_dim = mlp_dim or 4 * width
        check_sizes(mlp_dim=mlp_dim)
        check_layers(num_layers=num_layers)
        images = keras.Input(image_shape, name="images")
        embed = convolution_stem if stem == "conv" else patch_stem
        x = embed(images, patch_size, width, dtype)
        positions = PositionEmbedding(
            x.shape[1], POSITION_SCALES[stem], name="encoder_positions", dtype=dtype
        )
        x = positions(x)
        x = keras.layers.Dropout(dropout, name="encoder_dropout", dtype=dtype)(x)
        for i in range(num_layers):
            block = EncoderBlock(
                num_heads, mlp_dim, dropout, name=f"encoder_block_{i}", dtype=dtype
            )
            x = block(x)
        x = layer_norm("encoder_norm", x.shape, dtype)(x)
        super().__init__(inputs=images, outputs=x, name=name, dtype=dtype)
        self.config = {
            "image_shape": tuple(image_shape),
            "patch_size": patch_size,
            "width": width,
            "num_layers": num_layers,
            "num_heads": num_heads,
            "mlp_dim": mlp_dim,
            "dropout": dropout,
            "stem": stem,
        }

    def get_config(self):
        dtype = keras.saving.serialize_keras_object(self.dtype_policy)
        return {**self.config, "name": self.name, "dtype": dtype}


@keras.saving.register_keras_serializable(package="keras_reward")
class Patches(keras.layers.Layer):
    """Cuts images `(batch, height, width, channels)` into `(batch, tokens, pixels)`.

    Args:
        size: side of a patch in pixels.
    """

    def __init__(self, size, **kwargs):
        super().__init__(**kwargs)
        self.size = size

    def call(self, images):
        _, height, width, channels = images.shape
        rows, columns, size = height // self.size, width // self.size, self.size
        x = ops.reshape(images, (-1, rows, size, columns, size, channels))
        x = ops.transpose(x, (0, 1, 3, 2, 4, 5))
        return ops.reshape(x, (-1, rows * columns, size * size * channels))

    def get_config(self):
        return {**super().get_config(), "size": self.size}


def patch_stem(images, size, width, dtype):
    """A linear map of the pixels of each patch."""
    patches = Patches(size, name="patches", dtype=dtype)(images)
    return Dense(width, name="patch_embedding", dtype=dtype)(patches)


def convolution_stem(images, size, width, dtype):
    """Five convolutions with normalisation and GELU; the first ones halve the image."""
    halvings = size.bit_length() - 1
    x = images
    for i in range(STEM_CONVOLUTIONS):
        x = keras.layers.Conv2D(
            width // 2 if i < STEM_CONVOLUTIONS - 1 else width,
            kernel_size=3,
            strides=2 if i < halvings else 1,
            padding="same",
            use_bias=False,
            name=f"stem_conv_{i}",
            dtype=dtype,
        )(x)
        norm = keras.layers.GroupNormalization(1, name=f"stem_norm_{i}", dtype=dtype)
        x = keras.layers.Activation("gelu", name=f"stem_gelu_{i}", dtype=dtype)(norm(x))
    x = keras.layers.Reshape((-1, width), name="stem_tokens", dtype=dtype)(x)
    return Dense(width, name="patch_embedding", dtype=dtype)(x)


def check_arguments(image_shape, patch_size, width, num_heads, stem):
    """Raises if sizes do not fit together."""
    height, columns, channels = image_shape
    check_sizes(height=height, width_of_images=columns, channels=channels)
    check_sizes(patch_size=patch_size, width=width, num_heads=num_heads)
    if height % patch_size or columns % patch_size:
        raise ValueError(
            "`patch_size` must divide the height and the width of the images. "
            f"Received: image_shape={tuple(image_shape)}, patch_size={patch_size}"
        )
    if width % num_heads:
        raise ValueError(
            "`num_heads` must divide `width`. "
            f"Received: width={width}, num_heads={num_heads}"
        )
    if stem not in STEMS:
        raise ValueError(f"`stem` must be one of {STEMS}. Received: stem={stem!r}")
    if stem == "conv" and patch_size not in [2**i for i in range(6)]:
        raise ValueError(
            'With `stem="conv"`, `patch_size` must be a power of two, at most 32. '
            f"Received: patch_size={patch_size}"
        )
