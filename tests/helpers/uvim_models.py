"""Tiny UViM models and data, and their networks in NumPy, that several tests share."""

import numpy as np
from sequences import SequenceModel
from tiny import randomize, to_numpy

from keras_reward.codecs import to_gray
from keras_reward.models import (
    ColorizationTask,
    PanopticTask,
    UViM,
    UViMStageOne,
    VisionEncoderDecoder,
    VisionTransformer,
)

SIZE, PATCH, CODES, WIDTH = 8, 4, 6, 8
CLASSES, SEGMENTS = 3, 4


def photos(batch=4, seed=0):
    """Colour images `(batch, SIZE, SIZE, 3)` in [0, 1]."""
    generator = np.random.default_rng(seed)
    return generator.random((batch, SIZE, SIZE, 3)).astype("float32")


def gray(images):
    return np.array(to_numpy(to_gray(images)))


def maps(batch=4, seed=0):
    """Panoptic maps `(batch, SIZE, SIZE, 2)` of blocks, void among them."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, [CLASSES + 1, 3], (batch, 2, 2, 2))
    return coarse.repeat(SIZE // 2, 1).repeat(SIZE // 2, 2).astype("int32")


def stage_one(task=None, channels=1, random=True, **arguments):
    """A first stage; with `random`, whose outputs differ clearly from code to code."""
    sizes = {"width": WIDTH, "num_heads": 2, "oracle_layers": 1, "base_layers": 1}
    arguments = {"code_grid": (2, 2), "num_codes": CODES, **sizes, **arguments}
    shape = (SIZE, SIZE, channels)
    task = task or ColorizationTask()
    model = UViMStageOne(task, shape, PATCH, seed=0, **arguments)
    if random:
        randomize(model)
        model.quantizer.counts.assign(np.arange(1.0, model.num_codes + 1.0))
    return model


def panoptic_task(**arguments):
    return PanopticTask(CLASSES, SEGMENTS, **arguments)


def language_model(first, **arguments):
    """A model that writes the codes of a first stage."""
    encoder = VisionTransformer(
        first.image_shape, PATCH, width=WIDTH, num_layers=1, num_heads=2
    )
    arguments = {"num_layers": 1, "num_heads": 2, "end_id": None, **arguments}
    arguments.setdefault("vocabulary_size", first.vocabulary_size)
    arguments.setdefault("max_length", first.code_length)
    return randomize(VisionEncoderDecoder(encoder, **arguments))


def uvim(task=None, **arguments):
    first = stage_one(task, **arguments)
    return UViM(first, language_model(first))


class PixelModel(SequenceModel):
    """The tiny sequence model, whose features are three pixels of an image."""

    def __init__(self, first):
        super().__init__(first.vocabulary_size, first.code_length, end_id=None)

    def encode(self, x, training=False):
        return super().encode(pixels(x), training)


def pixels(images):
    return images[:, 0, :3, 0]


class Networks:
    """The oracle and the base model of one image, in float64, by their paths."""

    def __init__(self, model):
        self.model = model
        self.oracle = self.weights(model.oracle)
        self.base = self.weights(model.base)
        self.stem = self.weights(model.base_stem)

    def weights(self, model):
        return {w.path: np.float64(to_numpy(w)) for w in model.weights}

    def dense(self, part, x, name):
        return x @ part[f"{name}/kernel"] + part[f"{name}/bias"]

    def norm(self, part, x, name):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
        return x * part[f"{name}/gamma"] + part[f"{name}/beta"]

    def block(self, part, x):
        """Positions, the one block and the last normalisation."""
        x = x + part["positions/embeddings"]
        h = self.norm(part, x, "block_0/attention_norm")
        q, k, v = (
            np.split(self.dense(part, h, f"block_0/self_attention/{n}"), 2, -1)
            for n in ("query", "key", "value")
        )
        found = []
        for q, k, v in zip(q, k, v, strict=True):  # noqa: B020
            scores = np.exp(q @ k.T / np.sqrt(q.shape[-1]))
            found.append(scores / scores.sum(-1, keepdims=True) @ v)
        found = np.concatenate(found, -1)
        x = x + self.dense(part, found, "block_0/self_attention/output")
        h = self.dense(part, self.norm(part, x, "block_0/mlp_norm"), "block_0/mlp/up")
        h = h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3))) / 2
        return self.norm(part, x + self.dense(part, h, "block_0/mlp/down"), "norm")

    def patches(self, image):
        starts = range(0, SIZE, PATCH)
        return np.array(
            [
                image[i : i + PATCH, j : j + PATCH].ravel()
                for i in starts
                for j in starts
            ]
        )

    def code(self, image, features):
        """Codes of one image; the grid of codes is that of the patches."""
        x = sum(
            self.dense(self.oracle, self.patches(feature), f"embedding_{name}")
            for name, feature in features.items()
        )
        x = x + self.dense(self.oracle, self.patches(image), "patch_embedding")
        x = self.dense(self.oracle, self.block(self.oracle, x), "code_vectors")
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return np.square(x[:, None] - self.entries()).sum(-1).argmin(-1)

    def entries(self):
        quantizer = self.model.quantizer
        entries = np.float64(to_numpy(quantizer.sums))
        entries = entries / np.float64(to_numpy(quantizer.counts))[:, None]
        return entries / np.linalg.norm(entries, axis=-1, keepdims=True)

    def logits(self, image, code, heads):
        x = self.dense(self.base, self.entries()[code], "code_embedding")
        x = x + self.dense(self.stem, self.patches(image), "patch_embedding")
        x = self.block(self.base, x)
        result = {}
        for name in heads:
            head = self.dense(self.base, x, f"head_{name}")
            result[name] = np.zeros((SIZE, SIZE, head.shape[-1] // PATCH**2))
            for i, patch in enumerate(head):
                top, left = divmod(i, SIZE // PATCH)
                top, left = top * PATCH, left * PATCH
                patch = patch.reshape(PATCH, PATCH, -1)
                result[name][top : top + PATCH, left : left + PATCH] = patch
        return result
