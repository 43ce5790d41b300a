"""The networks of UViM's first stage: labels to codes, and codes to labels."""

import keras
import numpy as np
from keras import ops

from keras_reward.models.transformer import (
    Dense,
    EncoderBlock,
    PositionEmbedding,
    layer_norm,
)
from keras_reward.models.vision_transformer import (
    POSITION_SCALES,
    Patches,
    convolution_stem,
    patch_stem,
)

# Factor of the logits of parts, since averages over neighbours are small.
PARTS_SHARPNESS = 2.0
# Added to the size of a part, in patches, before dividing by it.
PARTS_EPSILON = 1e-3


def image_stem(image_shape, patch_size, width, stem, name, dtype, both_ways=False):
    """A model from images to tokens `(batch, patches, width)`, without positions.

    With `both_ways`, they are the mean of the tokens of the image and of its mirror
    image, mirrored back, so that left and right are treated alike.
    """
    images = keras.Input(image_shape, name="images")
    embed = convolution_stem if stem == "conv" else patch_stem
    tokens = embed(images, patch_size, width, dtype)
    if not both_ways:
        return keras.Model(images, tokens, name=name)
    one_way = keras.Model(images, tokens, name="one_way")
    rows, columns = (side // patch_size for side in image_shape[:2])
    images = keras.Input(image_shape, name="images")
    mirrored = ops.reshape(one_way(ops.flip(images, 2)), (-1, rows, columns, width))
    mirrored = ops.reshape(ops.flip(mirrored, 2), (-1, rows * columns, width))
    return keras.Model(images, 0.5 * (one_way(images) + mirrored), name=name)


def parts_network(grid, width, num_parts, dtype):
    """A model from tokens `(batch, patches, width)` to their shares in parts.

    The parts are learned: patches belong together if their colours, or other labels,
    have something in common. Neighbours mostly belong together.

    Returns:
        A Keras model to `(batch, patches, num_parts)`, with sum 1 over the parts.
    """
    tokens = keras.Input((grid[0] * grid[1], width), name="tokens")
    x = layer_norm("norm", tokens.shape, dtype)(tokens)
    x = Dense(num_parts, name="parts", dtype=dtype)(x)
    x = ops.reshape(x, (-1, *grid, num_parts))
    x = keras.layers.AveragePooling2D(3, strides=1, padding="same", dtype=dtype)(x)
    x = ops.reshape(PARTS_SHARPNESS * x, (-1, grid[0] * grid[1], num_parts))
    return keras.Model(tokens, ops.softmax(x, axis=-1), name="parts")


@keras.saving.register_keras_serializable(package="keras_reward")
class MeanOfParts(keras.layers.Layer):
    """Means `(batch, n, width)` of tokens `(batch, patches, width)` over n parts.

    Called with the shares `(batch, patches, n)` from `parts_network`, and the tokens.
    """

    def call(self, parts, x):
        shares = parts / (ops.sum(parts, axis=1, keepdims=True) + PARTS_EPSILON)
        return ops.matmul(ops.transpose(shares, (0, 2, 1)), x)

    def compute_output_shape(self, parts_shape, x_shape):
        return (parts_shape[0], parts_shape[2], x_shape[2])


def oracle_network(
    heads, image_shape, patch_size, code_grid, code_dim, sizes, stem, sees_image, dtype
):
    """The restricted oracle without its quantiser.

    Args:
        heads: channels of the label's features, by name.
        image_shape: `(height, width, channels)`.
        patch_size: side of a patch, of images and labels.
        code_grid: rows and columns of codes, or the number of codes of parts.
        code_dim: length of the vectors that are quantised.
        sizes: dict of `width`, `num_layers`, `num_heads` and `mlp_dim`.
        stem: stem of the image.
        sees_image: whether the image is one of the inputs.
        dtype: dtype policy.

    Returns:
        A Keras model from a dict of features `(batch, height, width, channels)`, and
        `"images"`, to vectors `(batch, codes, code_dim)`. With codes of parts, its
        inputs include `"parts"` `(batch, patches, codes)`, and it has no positions.
    """
    height, columns, _ = image_shape
    grid = (height // patch_size, columns // patch_size)
    inputs = {
        name: keras.Input((height, columns, channels), name=name)
        for name, channels in heads.items()
    }
    width = sizes["width"]
    tokens = []
    for name, features in inputs.items():
        patches = Patches(patch_size, name=f"patches_{name}", dtype=dtype)(features)
        tokens.append(Dense(width, name=f"embedding_{name}", dtype=dtype)(patches))
    if sees_image:
        inputs["images"] = keras.Input(image_shape, name="images")
        embed = image_stem(
            image_shape,
            patch_size,
            width,
            stem,
            "image_stem",
            dtype,
            both_ways=of_parts(code_grid),
        )
        tokens.append(embed(inputs["images"]))
    x = keras.layers.Add(name="sum", dtype=dtype)(tokens) if len(tokens) > 1 else None
    x = tokens[0] if x is None else x
    if of_parts(code_grid):
        inputs["parts"] = keras.Input((grid[0] * grid[1], code_grid), name="parts")
        x = blocks(x, sizes, None, dtype)
        x = MeanOfParts(name="means", dtype=dtype)(inputs["parts"], x)
    else:
        x = blocks(x, sizes, stem, dtype)
        x = TokenResize(grid, code_grid, name="resize", dtype=dtype)(x)
    x = Dense(code_dim, name="code_vectors", dtype=dtype)(x)
    return keras.Model(inputs, x, name="oracle")


def base_network(
    heads, image_shape, patch_size, code_grid, code_dim, sizes, stem, sees_image, dtype
):
    """The base model without the stem of its image.

    Args:
        heads: output channels of each pixel, by name.
        sees_image: whether the tokens of an image are one of the inputs.
        image_shape, patch_size, code_grid, code_dim, sizes, stem, dtype: as for
            `oracle_network`.

    Returns:
        A Keras model from a dict of `"codes"` `(batch, codes, code_dim)` and `"tokens"`
        `(batch, patches, width)` to a dict of `(batch, height, width, channels)`. With
        codes of parts, it also takes `"parts"`, as `oracle_network` does.
    """
    height, columns, _ = image_shape
    grid = (height // patch_size, columns // patch_size)
    width = sizes["width"]
    inputs = {"codes": keras.Input((code_length(code_grid), code_dim), name="codes")}
    x = Dense(width, name="code_embedding", dtype=dtype)(inputs["codes"])
    if of_parts(code_grid):
        inputs["parts"] = keras.Input((grid[0] * grid[1], code_grid), name="parts")
        x = ops.matmul(inputs["parts"], x)
        stem = None
    else:
        x = TokenResize(code_grid, grid, name="resize", dtype=dtype)(x)
    if sees_image:
        inputs["tokens"] = keras.Input((grid[0] * grid[1], width), name="tokens")
        x = keras.layers.Add(name="sum", dtype=dtype)([x, inputs["tokens"]])
    x = blocks(x, sizes, stem, dtype)
    outputs = {}
    for name, channels in heads.items():
        # Initially zero: all classes are equally likely, all colours grey.
        head = Dense(
            patch_size**2 * channels,
            kernel_initializer="zeros",
            name=f"head_{name}",
            dtype=dtype,
        )
        pixels = Pixels(grid, patch_size, name=f"pixels_{name}", dtype=dtype)
        outputs[name] = pixels(head(x))
    return keras.Model(inputs, outputs, name="base")


def of_parts(code_grid):
    """Whether codes are of parts, not of a grid."""
    return isinstance(code_grid, int)


def code_length(code_grid):
    """Number of codes: of a grid, or of parts."""
    return code_grid if of_parts(code_grid) else code_grid[0] * code_grid[1]


def blocks(x, sizes, stem, dtype):
    """Positions (unless `stem` is None), Transformer blocks, a final normalisation."""
    if stem is not None:
        x = PositionEmbedding(
            x.shape[1], POSITION_SCALES[stem], name="positions", dtype=dtype
        )(x)
    for i in range(sizes["num_layers"]):
        block = EncoderBlock(
            sizes["num_heads"], sizes["mlp_dim"], name=f"block_{i}", dtype=dtype
        )
        x = block(x)
    return layer_norm("norm", x.shape, dtype)(x)


@keras.saving.register_keras_serializable(package="keras_reward")
class TokenResize(keras.layers.Layer):
    """Resizes a grid of tokens, `(batch, tokens, width)` row by row, bilinearly.

    If the grid shrinks, it averages over correspondingly more tokens.

    Args:
        grid: rows and columns of the input.
        target: rows and columns of the output.
    """

    def __init__(self, grid, target, **kwargs):
        super().__init__(**kwargs)
        self.grid, self.target = tuple(grid), tuple(target)
        matrices = map(resize_matrix, self.grid, self.target)
        self.matrix = np.kron(*matrices).astype("float32")

    def call(self, x):
        if self.grid == self.target:
            return x
        matrix = ops.cast(ops.convert_to_tensor(self.matrix), self.compute_dtype)
        return ops.matmul(matrix, x)

    def compute_output_shape(self, shape):
        return (shape[0], self.target[0] * self.target[1], shape[2])

    def get_config(self):
        return {**super().get_config(), "grid": self.grid, "target": self.target}


def resize_matrix(size, target):
    """Weights `(target, size)` of linear resizing, with a wider kernel to shrink."""
    ratio = size / target
    centre = (np.arange(target)[:, None] + 0.5) * ratio - 0.5
    distance = np.abs(centre - np.arange(size)) / max(ratio, 1.0)
    weights = np.maximum(1.0 - distance, 0.0)
    return weights / weights.sum(axis=1, keepdims=True)


@keras.saving.register_keras_serializable(package="keras_reward")
class Pixels(keras.layers.Layer):
    """The inverse of `Patches`: tokens to maps `(batch, height, width, channels)`.

    Args:
        grid: rows and columns of tokens.
        size: side of a patch in pixels.
    """

    def __init__(self, grid, size, **kwargs):
        super().__init__(**kwargs)
        self.grid, self.size = tuple(grid), size

    def call(self, x):
        (rows, columns), size = self.grid, self.size
        channels = x.shape[-1] // size**2
        x = ops.reshape(x, (-1, rows, columns, size, size, channels))
        x = ops.transpose(x, (0, 1, 3, 2, 4, 5))
        return ops.reshape(x, (-1, rows * size, columns * size, channels))

    def get_config(self):
        return {**super().get_config(), "grid": self.grid, "size": self.size}


@keras.saving.register_keras_serializable(package="keras_reward")
class CodeDropout(keras.layers.Layer):
    """Replaces a random number of codes of each sequence by zeros, in training.

    The number of codes that are kept is uniform, from none to all.

    Args:
        mode: `"random"`: any codes. `"ordered"`: the first ones stay. None: no dropout.
        seed: int.

    Reference: Kolesnikov et al. 2022, "UViM", and its published code.
    """

    def __init__(self, mode, seed=None, **kwargs):
        super().__init__(**kwargs)
        self.mode = mode
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def call(self, x, training=False):
        """`x` `(batch, n, width)`."""
        if not training or self.mode is None:
            return x
        batch, n = ops.shape(x)[0], x.shape[1]
        numbers = keras.random.uniform(
            (batch, n + 1), dtype="float32", seed=self.seed_generator
        )
        kept = ops.floor(numbers[:, :1] * (n + 1))
        places = ops.broadcast_to(ops.arange(n, dtype="int32"), (batch, n))
        if self.mode == "random":
            places = ops.argsort(numbers[:, 1:], axis=-1)
        mask = ops.cast(places, "float32") < kept
        return x * ops.cast(mask, x.dtype)[:, :, None]

    def compute_output_shape(self, shape):
        return shape

    def get_config(self):
        return {**super().get_config(), "mode": self.mode, "seed": self.seed}
