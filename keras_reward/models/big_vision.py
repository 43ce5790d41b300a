"""Weights from the checkpoint files of google-research/big_vision."""

import math
import re
from typing import Any, NamedTuple

import numpy as np

from keras_reward.models.big_vision_files import Checkpoint
from keras_reward.models.encoder_decoder import VisionEncoderDecoder
from keras_reward.models.uvim_networks import of_parts
from keras_reward.models.uvim_stage_one import UViMStageOne
from keras_reward.models.vision_transformer import VisionTransformer

POSITIONS = ("learn", "sincos2d")
# Parts of a classifier that an encoder does not have.
CLASSIFIER = re.compile(r"(head|pre_logits|MAPHead_0)/|cls$")
MAX_POSITIONS = 2**16  # in a file: a grid of 256 x 256
LISTED = 100  # problems, in a message
WAVELENGTH = 10_000.0  # the longest wavelength of sincos2d positions, over 2 pi


class Weight(NamedTuple):
    """A variable, and the array that it is loaded from.

    Attributes:
        variable: the Keras variable.
        name: name in the file, None for a value that does not need the file.
        convert: turns the file's array into the variable's value.
        shape: shape that the array must have, or a function of a shape that raises a
            ValueError for one that it must not have.
    """

    variable: Any
    name: Any
    convert: Any
    shape: Any


def load_big_vision(path, model, positions="learn"):
    """Loads the weights of a big_vision checkpoint into a model of the same sizes.

    Loads ViT encoders into a `VisionTransformer`, without the classification head and
    class token; `vtt` models, the language models of UViM, into a
    `VisionEncoderDecoder` whose encoder is a `VisionTransformer`; and the first stage
    of UViM into a `UViMStageOne`. Files may have one array per layer or layers stacked
    by scan, older names of modules, and an optimizer.

    If the grid differs, positions of image patches are resized linearly from corner to
    corner. big_vision's decoders have no biases in their attention: make yours with
    `attention_bias=False`, or the biases start as 0.

    big_vision's models were trained on images in [-1, 1]. UViM's colours are
    `ColorizationTask(output="rgb", value_range=(-1, 1))`.

    Args:
        path: an `.npz` file.
        model: the Keras model, with `stem="patch"`.
        positions: `"learn"` (default): the positions in the file. `"sincos2d"`: fixed
            positions, for models that were trained with them.

    Returns:
        `model`.

    Raises:
        ValueError: if the file is broken or cannot be read without pickle, or has a
            value that is NaN or infinite; for another kind of model; and if names are
            missing or left over or shapes differ. One message lists all of these. The
            model does not change, and values are read only if all names, shapes and
            sizes fit.

    Example:

    ```python
    import numpy as np
    from keras_reward.models import VisionTransformer, load_big_vision

    sizes = {"width": 8, "num_layers": 0, "num_heads": 2}
    np.savez(
        "vit.npz",
        **{
            "params/embedding/kernel": np.ones((4, 4, 3, 8), "float32"),
            "params/embedding/bias": np.zeros(8, "float32"),
            "params/pos_embedding": np.zeros((1, 4, 8), "float32"),  # a 2x2 grid
            "params/Transformer/encoder_norm/scale": np.ones(8, "float32"),
            "params/Transformer/encoder_norm/bias": np.zeros(8, "float32"),
        },
    )
    load_big_vision("vit.npz", VisionTransformer((16, 16, 3), patch_size=4, **sizes))
    ```

    Reference: https://github.com/google-research/big_vision, `models/vit.py` and
    `models/proj/uvim`.
    """
    if positions not in POSITIONS:
        raise ValueError(
            f"`positions` must be one of {POSITIONS}. Received: positions={positions!r}"
        )
    weights = weights_of(model, positions)
    file = Checkpoint(path)
    problems = list(filter(None, (problem_of(w, file.stored) for w in weights)))
    known = {weight.name for weight in weights}
    is_encoder = isinstance(model, VisionTransformer)
    for name in sorted(set(file.stored) - known):
        if positions == "sincos2d" and name.startswith("pos_embedding"):
            problems.append(f"left over: {name}, with positions='sincos2d'")
        elif not (is_encoder and CLASSIFIER.match(name)):
            shown = ascii(name)[1:-1][:200]
            problems.append(f"left over: {shown} {file.stored[name].shape}")
    if problems:
        more = [f"and {len(problems) - LISTED} more"] if problems[LISTED:] else []
        raise ValueError(
            f"The weights in {str(path)!r} must be those of a {type(model).__name__} "
            f"of these sizes; nothing was loaded. Received {len(problems)} that do not "
            "fit:\n" + "\n".join(problems[:LISTED] + more)
        )
    arrays = file.read(known - {None})
    values = [weight.convert(arrays.get(weight.name)) for weight in weights]
    for weight, value in zip(weights, values, strict=True):
        weight.variable.assign(value)
    return model


def problem_of(weight, stored):
    """What does not fit between a weight and the arrays in a file, or None."""
    name, expected = weight.name, weight.shape
    if name is None or name not in stored:
        return name and f"missing: {name}"
    shape = stored[name].shape
    try:
        if callable(expected):
            expected(shape)
        elif shape != expected:
            raise ValueError(f"not {expected}")
    except ValueError as error:
        return f"shape: {name} is {shape}, {error}"
    return None


# Models: each function returns a list of weights.


def weights_of(model, positions):
    """All weights of a model."""
    if isinstance(model, VisionTransformer):
        return vision_transformer(
            model, "embedding", "pos_embedding", "Transformer", positions
        )
    if isinstance(model, UViMStageOne):
        return stage_one(model, positions)
    is_pair = isinstance(model, VisionEncoderDecoder)
    if is_pair and isinstance(model.encoder, VisionTransformer):
        return encoder_decoder(model, positions)
    raise ValueError(
        "big_vision's weights are for a VisionTransformer, a VisionEncoderDecoder with "
        f"a VisionTransformer, or a UViMStageOne. Received: {type(model).__name__}"
    )


def vision_transformer(model, embedding, table, blocks, positions):
    """Weights of an encoder; the other arguments are names in the file."""
    config = model.config
    check_stem(config["stem"])
    grid = grid_of(config["image_shape"], config["patch_size"])
    weights = patches(model.get_layer("patch_embedding"), embedding, config)
    layer = model.get_layer("encoder_positions")
    weights += [position_table(layer, table, grid, positions)]
    for i in range(config["num_layers"]):
        block = model.get_layer(f"encoder_block_{i}")
        weights += encoder_block(block, f"{blocks}/encoderblock_{i}")
    return weights + norm(model.get_layer("encoder_norm"), f"{blocks}/encoder_norm")


def encoder_decoder(model, positions):
    weights = vision_transformer(
        model.encoder, "EmbedPatches", "pos_embedding_encoder", "encoder", positions
    )
    words = model.token_embedding.embeddings
    weights += [plain(words, "decoder/EmbedTargets/embedding")]
    grid = (1, model.max_length)
    weights += [
        position_table(
            model.positions, "pos_embedding_decoder", grid, positions, resizes=False
        )
    ]
    for i, block in enumerate(model.blocks):
        name = f"decoder/EncDecBlock{i}"
        weights += norm(block.attention_norm, f"{name}/LayerNorm1")
        weights += attention(block.self_attention, f"{name}/SelfAttn", bias=False)
        weights += norm(block.cross_norm, f"{name}/LayerNorm2")
        weights += attention(block.cross_attention, f"{name}/CrossAttn", bias=False)
        weights += norm(block.mlp_norm, f"{name}/LayerNorm3")
        weights += mlp(block.mlp, f"{name}/MLP")
    weights += norm(model.norm, "decoder/LayerNorm")
    return weights + dense(model.head, "decoder/LogitsDense")


def stage_one(model, positions):
    config = {**model.config, "image_shape": model.image_shape}
    check_stem(config["stem"])
    if of_parts(config["code_grid"]):
        raise ValueError(
            "big_vision's models have codes of a grid: make yours with rows and "
            f"columns. Received: a model with code_grid={config['code_grid']}"
        )
    grid = grid_of(model.image_shape, config["patch_size"])
    oracle, base = model.oracle, model.base
    weights = []
    for name, channels in model.task.heads.items():
        pixels = (channels, config["patch_size"] ** 2)
        embedding = oracle.get_layer(f"embedding_{name}")
        weights += label_embedding(embedding, f"embedding_{name}", pixels)
        weights += label_head(base.get_layer(f"head_{name}"), f"head_{name}", pixels)
    if config["oracle_sees_image"]:
        stem = oracle.get_layer("image_stem").get_layer("patch_embedding")
        weights += patches(stem, "ctx_enc_embedding", config)
    stem = model.base_stem.get_layer("patch_embedding")
    weights += patches(stem, "ctx_dec_embedding", config)
    for network, name in ((oracle, "encoder"), (base, "decoder")):
        layer = network.get_layer("positions")
        table = f"pos_embedding_{name}"
        weights += [position_table(layer, table, grid, positions)]
        layers = config["oracle_layers" if name == "encoder" else "base_layers"]
        for i in range(layers):
            block = network.get_layer(f"block_{i}")
            weights += encoder_block(block, f"{name}/encoderblock_{i}")
        weights += norm(network.get_layer("norm"), f"{name}/encoder_norm")
    weights += dense(oracle.get_layer("code_vectors"), "encoder_head")
    weights += dense(base.get_layer("code_embedding"), "decoder_stem")
    weights += [plain(model.quantizer.sums, "state/dictionary")]
    return [*weights, plain(model.quantizer.counts, "state/counts")]


def check_stem(stem):
    if stem != "patch":
        raise ValueError(
            'big_vision\'s models have linear patches: make yours with `stem="patch"`. '
            f"Received: a model with stem={stem!r}"
        )


def grid_of(image_shape, patch_size):
    return image_shape[0] // patch_size, image_shape[1] // patch_size


# Layers.


def plain(variable, name):
    return Weight(variable, name, lambda array: array, tuple(variable.shape))


def reshaped(variable, name, shape):
    target = tuple(variable.shape)
    return Weight(variable, name, lambda array: array.reshape(target), shape)


def norm(layer, name):
    return [plain(layer.gamma, f"{name}/scale"), plain(layer.beta, f"{name}/bias")]


def dense(layer, name):
    return [plain(layer.kernel, f"{name}/kernel"), plain(layer.bias, f"{name}/bias")]


def mlp(layer, name):
    return dense(layer.up, f"{name}/Dense_0") + dense(layer.down, f"{name}/Dense_1")


def attention(layer, name, bias=True):
    """Weights of an attention layer, whose heads have their own axis in the file."""
    weights = []
    for ours, theirs in zip(
        ("query_dense", "key_dense", "value_dense", "output_dense"),
        ("query", "key", "value", "out"),
        strict=True,
    ):
        part = getattr(layer, ours)
        inputs, outputs = part.kernel.shape
        is_out = theirs == "out"
        heads = (layer.num_heads, (inputs if is_out else outputs) // layer.num_heads)
        kernel = (*heads, outputs) if is_out else (inputs, *heads)
        weights.append(reshaped(part.kernel, f"{name}/{theirs}/kernel", kernel))
        if bias:
            shape = (outputs,) if is_out else heads
            weights.append(reshaped(part.bias, f"{name}/{theirs}/bias", shape))
        elif part.bias is not None:
            zeros = np.zeros(part.bias.shape, "float32")
            weights.append(Weight(part.bias, None, lambda _, z=zeros: z, None))
    return weights


def encoder_block(block, name):
    return [
        *norm(block.attention_norm, f"{name}/LayerNorm_0"),
        *attention(block.self_attention, f"{name}/MultiHeadDotProductAttention_0"),
        *norm(block.mlp_norm, f"{name}/LayerNorm_1"),
        *mlp(block.mlp, f"{name}/MlpBlock_0"),
    ]


def patches(layer, name, config):
    """Weights of a patch embedding, a convolution in the file."""
    size, channels = config["patch_size"], config["image_shape"][-1]
    kernel = (size, size, channels, layer.units)
    return [
        reshaped(layer.kernel, f"{name}/kernel", kernel),
        plain(layer.bias, f"{name}/bias"),
    ]


def label_embedding(layer, name, pixels):
    """Weights of a label embedding, `(channels, pixels, width)` in the file."""

    def convert(array):
        return array.transpose(1, 0, 2).reshape(-1, layer.units)

    kernel = Weight(layer.kernel, f"{name}/kernel", convert, (*pixels, layer.units))
    return [kernel, plain(layer.bias, f"{name}/bias")]


def label_head(layer, name, pixels):
    width = layer.kernel.shape[0]

    def convert(array):
        return np.swapaxes(array, -1, -2).reshape(*array.shape[:-2], layer.units)

    return [
        Weight(layer.kernel, f"{name}/kernel", convert, (width, *pixels)),
        Weight(layer.bias, f"{name}/bias", convert, pixels),
    ]


def position_table(layer, name, grid, positions, resizes=True):
    """Position embeddings of a grid, `(1, rows * columns, width)` in the file."""
    length, width = layer.embeddings.shape
    if positions == "sincos2d":
        return Weight(
            layer.embeddings, None, lambda _: sincos_positions(grid, width), None
        )
    if not resizes:
        return reshaped(layer.embeddings, name, (1, length, width))

    def check(shape):
        if len(shape) != 3 or shape[0] != 1 or shape[2] != width:
            raise ValueError(f"not (1, positions, {width})")
        check_positions(shape[1], grid)

    def convert(array):
        return resize_positions(array[0], grid)

    return Weight(layer.embeddings, name, convert, check)


def resize_positions(table, grid):
    """Resizes positions `(n * n, width)` to a grid; drops that of a class token.

    Linear interpolation that keeps the corners, as in scipy's `zoom`.
    """
    check_positions(len(table), grid)
    if len(table) == grid[0] * grid[1]:
        return table
    side = math.isqrt(len(table))
    if side**2 + 1 == len(table):
        table = table[1:]
    if grid == (side, side):
        return table
    matrices = [corner_matrix(side, size) for size in grid]
    return (np.kron(*matrices) @ table).astype("float32")


def check_positions(count, grid):
    """Raises for a number of positions that is not that of the grid or of a square."""
    if count == grid[0] * grid[1]:
        return
    if not 0 < count <= MAX_POSITIONS:
        raise ValueError(f"not of 1 to {MAX_POSITIONS} positions")
    if math.isqrt(count) ** 2 not in (count, count - 1):
        raise ValueError("not those of a square grid")


def corner_matrix(size, target):
    """Weights `(target, size)` of linear interpolation from corner to corner."""
    places = np.linspace(0.0, size - 1.0, target)[:, None]
    return np.maximum(1.0 - np.abs(places - np.arange(size)), 0.0)


def sincos_positions(grid, width):
    """Sines and cosines of column and row, `(rows * columns, width)`."""
    if width % 4 or width < 8:
        raise ValueError(
            "sincos2d positions need a width that is a multiple of 4 and at least 8. "
            f"Received: width={width}"
        )
    steps = np.arange(width // 4) / (width // 4 - 1)
    frequencies = WAVELENGTH**-steps
    rows, columns = (i.ravel()[:, None] * frequencies for i in np.indices(grid))
    waves = [np.sin(columns), np.cos(columns), np.sin(rows), np.cos(rows)]
    return np.concatenate(waves, axis=1).astype("float32")
