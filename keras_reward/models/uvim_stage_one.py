"""UViM's first stage: labels to short codes, and images with codes to labels."""

import keras
import numpy as np
from keras import ops

from keras_reward.compiled import CompiledFunction, kept
from keras_reward.models import uvim_networks as networks
from keras_reward.models import uvim_tasks as tasks
from keras_reward.models.quantization import CodeUsage, VectorQuantizer
from keras_reward.models.sizes import check_layers, check_sizes
from keras_reward.models.vision_transformer import check_arguments
from keras_reward.nests import merge_rows, repeat_rows
from keras_reward.objective import input_weights
from keras_reward.saved_objects import deserialized, entry, serialized
from keras_reward.sequences.sequence_model import shift_right

CODE_DROPOUTS = ("random", "ordered", None)
START, FIRST_TOKEN = 0, 1  # the start token, and the token of code 0


@keras.saving.register_keras_serializable(package="keras_reward")
class UViMStageOne(keras.Model):
    """The first stage of UViM: guiding codes, and the base model that they guide.

    It has three parts that are trained together. The `oracle`, a ViT, encodes the label
    (and the image) as a few vectors. The `quantizer` replaces each by an entry of its
    dictionary: the code. The `base` model, another ViT, predicts the label from the
    image and the code. It is a feed-forward network: the code resolves what the image
    leaves open.

    Train it by `fit(images, labels)`, with an optimizer and without a loss, which the
    task defines. It logs `loss` and the use of the codes, `perplexity` and
    `dead_codes`, see `CodeUsage`. `sample_weight` weights images.

    `code_pairs` makes the training data of the language model of the second stage, and
    `UViM` joins the two.

    Args:
        task: `ColorizationTask`, `PanopticTask`, or an object with their methods.
        image_shape: `(height, width, channels)` of the input images.
        patch_size: side of a patch in pixels, for images and labels; divides height
            and width.
        code_grid: rows and columns of codes, such as the published `(16, 16)`: each
            code belongs to a place. Or an int, such as 8, the number of codes of parts:
            the model finds the patches of a part from the content of the image,
            wherever they are. Then no network has positions, and patches on the left
            and on the right are treated alike. This is not in the publication.
        num_codes: number of entries of the dictionary. Published: 4096.
        width: width of the networks. Default 128. Published: 768.
        oracle_layers: Transformer blocks of the oracle. Default 2. Published: 6.
        base_layers: Transformer blocks of the base model. Default 3. Published: 12.
        num_heads: attention heads; divides `width`. Default 4. Published: 12.
        mlp_dim: hidden width of the feed-forward networks. Default `4 * width`.
        code_dim: length of the entries. Default `width`.
        code_dropout: `"random"` (default, as published) hides a random number of codes
            of each image from the base model in training; `"ordered"` hides the last
            ones; None hides none.
        stem: `"patch"` (default) or `"conv"`, how images become tokens, see
            `VisionTransformer`.
        oracle_sees_image: whether the oracle also sees the image. Default True.
        momentum, min_count, commitment: see `VectorQuantizer`.
        seed: int, for code dropout and for new entries.
        name: optional name.
        dtype: optional dtype or dtype policy. Codes and losses are always float32.

    Call arguments: a dict of `images` `(batch, height, width, channels)` and `labels`
    in the task's form. Returns a dict of `codes` `(batch, code_length)` int32 and
    `logits`, a dict of maps `(batch, height, width, channels)` float32.

    Example:

    ```python
    import numpy as np
    from keras_reward.codecs import to_gray
    from keras_reward.models import ColorizationTask, UViMStageOne

    photos = np.random.default_rng(0).random((8, 16, 16, 3)).astype("float32")
    gray = np.array(to_gray(photos))
    stage_one = UViMStageOne(
        ColorizationTask(), (16, 16, 1), patch_size=4, code_grid=(2, 2), num_codes=8,
        width=16, oracle_layers=1, base_layers=1, num_heads=2,
    )
    stage_one.compile("adam")
    stage_one.fit(gray, photos, verbose=0)  # loss, perplexity, dead_codes
    stage_one.reconstruct(gray, photos)     # (8, 16, 16, 3): what the codes can say
    x, y = stage_one.code_pairs(gray, photos)
    x["token_ids"], y                       # (8, 4) each, for the second stage
    ```

    Reference: Kolesnikov et al. 2022, "UViM: A Unified Modeling Approach for Vision
    with Learned Guiding Codes", and its published code.
    """

    def __init__(
        self,
        task,
        image_shape,
        patch_size,
        code_grid,
        num_codes,
        width=128,
        oracle_layers=2,
        base_layers=3,
        num_heads=4,
        mlp_dim=None,
        code_dim=None,
        code_dropout="random",
        stem="patch",
        oracle_sees_image=True,
        momentum=0.995,
        min_count=0.1,
        commitment=0.0,
        seed=None,
        name=None,
        dtype=None,
    ):
        super().__init__(name=name, dtype=dtype)
        check_arguments(image_shape, patch_size, width, num_heads, stem)
        check_codes(code_grid, code_dropout)
        check_layers(oracle_layers=oracle_layers, base_layers=base_layers)
        check_sizes(mlp_dim=mlp_dim or 4 * width, code_dim=code_dim or width)
        self.task = task
        self.image_shape = tuple(image_shape)
        self.config = {
            "patch_size": patch_size,
            "code_grid": code_grid
            if networks.of_parts(code_grid)
            else tuple(code_grid),
            "num_codes": num_codes,
            "width": width,
            "oracle_layers": oracle_layers,
            "base_layers": base_layers,
            "num_heads": num_heads,
            "mlp_dim": mlp_dim or 4 * width,
            "code_dim": code_dim or width,
            "code_dropout": code_dropout,
            "stem": stem,
            "oracle_sees_image": oracle_sees_image,
            "momentum": momentum,
            "min_count": min_count,
            "commitment": commitment,
            "seed": seed,
        }
        self.code_length = networks.code_length(code_grid)
        self.num_codes = num_codes
        self.usage = CodeUsage(num_codes)
        self.build_networks(oracle_layers, base_layers, oracle_sees_image)

    def build_networks(self, oracle_layers, base_layers, oracle_sees_image):
        """Makes the parts and their weights, since every shape is known."""
        config, dtype = self.config, self.dtype_policy
        shared = {
            "heads": self.task.heads,
            "image_shape": self.image_shape,
            **{k: config[k] for k in ("patch_size", "code_grid", "code_dim", "stem")},
            "dtype": dtype,
        }
        sizes = {k: config[k] for k in ("width", "num_heads", "mlp_dim")}
        self.oracle = networks.oracle_network(
            sizes={**sizes, "num_layers": oracle_layers},
            sees_image=oracle_sees_image,
            **shared,
        )
        self.quantizer = VectorQuantizer(
            self.num_codes,
            **{k: config[k] for k in ("momentum", "min_count", "commitment", "seed")},
            name="quantizer",
        )
        self.quantizer.build((None, self.code_length, config["code_dim"]))
        self.code_dropout = networks.CodeDropout(
            config["code_dropout"], config["seed"], name="code_dropout", dtype=dtype
        )
        self.code_dropout.build((None, self.code_length, config["code_dim"]))
        self.base_stem = networks.image_stem(
            self.image_shape,
            config["patch_size"],
            config["width"],
            config["stem"],
            "base_stem",
            dtype,
            both_ways=networks.of_parts(config["code_grid"]),
        )
        self.parts = None
        if networks.of_parts(config["code_grid"]):
            grid = [side // config["patch_size"] for side in self.image_shape[:2]]
            self.parts = networks.parts_network(
                grid, config["width"], config["code_grid"], dtype
            )
        self.base = networks.base_network(
            sizes={**sizes, "num_layers": base_layers}, sees_image=True, **shared
        )
        self.built = True

    # Training: Keras's own steps on images and targets, with the task's loss.

    def train_step(self, *arguments):
        return super().train_step(*self.with_targets(arguments))

    def test_step(self, *arguments):
        return super().test_step(*self.with_targets(arguments))

    def with_targets(self, arguments):
        """The arguments of a step, with the targets also among the inputs."""
        if getattr(self, "loss", None) is not None:
            raise ValueError(
                f"The loss is that of {type(self.task).__name__}: compile it without "
                f"loss and metrics. Received: loss={self.loss!r}"
            )
        *state, data = arguments
        images, labels, weights = keras.utils.unpack_x_y_sample_weight(data)
        targets = self.targets(labels)
        inputs = {"images": images, "targets": targets}
        return *state, (inputs, targets, weights)

    def call(self, inputs, training=False):
        if not isinstance(inputs, dict) or "images" not in inputs:
            raise ValueError(
                "UViMStageOne takes images with their labels: a dict with the keys "
                "'images' and 'labels'. For `fit` and `evaluate` give it both, and "
                "compile it without loss and metrics. Received: inputs of type "
                f"{type(inputs).__name__}"
            )
        self.check_images(inputs["images"])
        targets = inputs.get("targets")
        if targets is None:
            targets = self.targets(inputs["labels"])
        seen = self.see(inputs["images"], training)
        vectors = self.code_vectors(inputs["images"], targets, seen, training)
        vectors, codes = self.quantizer(vectors, training=training)
        vectors = self.code_dropout(vectors, training=training)
        return {"codes": codes, "logits": self.run_base(seen, vectors, training)}

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        """The losses of the task and of the layers; also counts the codes."""
        self.usage.update_state(y_pred["codes"])
        losses = sum(self.task.losses(y, y_pred["logits"]).values())
        weights = input_weights(sample_weight, losses)
        loss = ops.mean(losses if weights is None else losses * weights)
        for penalty in self.losses:
            loss = loss + ops.cast(ops.sum(penalty), "float32")
        return loss

    def fit(self, x=None, y=None, *args, **kwargs):
        """As `keras.Model.fit`, for images and labels."""
        if y is not None and tasks.is_host(y):
            tasks.check_shape(self.task, y, self.image_shape)
            self.task.check_labels(y)
        return super().fit(x, y, *args, **kwargs)

    # The parts, on tensors.

    def targets(self, labels):
        """The targets of the networks, made by the task."""
        tasks.check_shape(self.task, labels, self.image_shape)
        return self.task.targets(labels)

    def check_images(self, images):
        shape = tuple(getattr(images, "shape", ()))
        if len(shape) != 4 or shape[1:] != self.image_shape:
            raise ValueError(
                f"{self.name!r} was made for images of shape (batch, "
                f"{', '.join(map(str, self.image_shape))}). Received: shape {shape}"
            )

    def see(self, images, training=False):
        """A dict of what the base model gets from images: `tokens`, and `parts`."""
        tokens = self.base_stem(images, training=training)
        if self.parts is None:
            return {"tokens": tokens}
        return {"tokens": tokens, "parts": self.parts(tokens, training=training)}

    def code_vectors(self, images, targets, seen, training=False):
        """The oracle's vectors `(batch, code_length, code_dim)`, not quantised."""
        inputs = dict(self.task.features(targets))
        if self.parts is not None:
            inputs["parts"] = seen["parts"]
        if self.config["oracle_sees_image"]:
            inputs["images"] = images
        return self.oracle(inputs, training=training)

    def encode_labels(self, images, labels):
        """The oracle's codes, `(batch, code_length)` int32."""
        self.check_images(images)
        seen = self.see(images) if self.parts is not None else None
        vectors = self.code_vectors(images, self.targets(labels), seen)
        return self.quantizer(vectors)[1]

    def run_base(self, seen, vectors, training=False):
        """Logits in float32 from what `see` returned and the entries of a code."""
        logits = self.base({**seen, "codes": vectors}, training=training)
        return {name: ops.cast(value, "float32") for name, value in logits.items()}

    def decode_codes(self, images, codes):
        """Decodes codes with the base model.

        Args:
            images: `(batch, height, width, channels)`.
            codes: `(batch, n, code_length)` int, n codes for each image.

        Returns:
            Outputs of the task in rows, `(batch * n, ...)`. All rows are one batch, but
            the stem runs only once per image.
        """
        self.check_images(images)
        n = codes.shape[1]
        seen = repeat_rows(self.see(images), n)
        logits = self.run_base(seen, merge_rows(self.quantizer.lookup(codes)))
        return self.task.outputs(repeat_rows(images, n), logits)

    # For NumPy arrays.

    @property
    def vocabulary_size(self):
        """Number of tokens of the language model: the codes and the start token."""
        return self.num_codes + FIRST_TOKEN

    def codes(self, images, labels, batch_size=32):
        """The oracle's codes of NumPy arrays: `(count, code_length)` int32."""
        return self._run("codes", images, labels, batch_size)

    def reconstruct(self, images, labels, batch_size=32):
        """Encodes labels to codes and decodes them: outputs of the task, in NumPy.

        This is the best that a language model can achieve on these images.
        """
        return self._run("outputs", images, labels, batch_size)

    def code_pairs(self, images, labels, batch_size=32):
        """The training data of the language model of the second stage.

        Args:
            images, labels: NumPy arrays, as for `fit`.
            batch_size: batch size of the oracle. Default 32.

        Returns:
            `(x, y)` for `fit` of a `VisionEncoderDecoder`: `x` is a dict of `images`
            and `token_ids`, the inputs of the decoder, and `y` is the tokens to
            predict, both `(count, code_length)` int32.
        """
        tokens = self.codes(images, labels, batch_size) + FIRST_TOKEN
        token_ids = shift_right(np, tokens, START)
        return {"images": images, "token_ids": token_ids}, tokens

    def _run(self, what, images, labels, batch_size):
        images, labels = np.asarray(images), np.asarray(labels)
        self.check_images(images)
        tasks.check_shape(self.task, labels, self.image_shape)
        self.task.check_labels(labels)
        inputs = {"images": images, "labels": labels}
        inference = kept(self, Inference, what)
        return inference.predict(inputs, batch_size=batch_size, verbose=0)

    def get_config(self):
        return {
            "task": serialized(self.task),
            "image_shape": self.image_shape,
            **self.config,
            "name": self.name,
            "dtype": serialized(self.dtype_policy),
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        task = deserialized(entry(config, "task"), custom_objects)
        return cls(**{**config, "task": task})


class Inference(CompiledFunction):
    """The codes of images and labels, or the outputs decoded from them."""

    def __init__(self, owner, what):
        super().__init__(owner)
        self.what = what

    def call(self, inputs):
        if self.what == "codes":
            return self.owner.encode_labels(inputs["images"], inputs["labels"])
        images, model = inputs["images"], self.owner
        result = model({"images": images, "labels": inputs["labels"]})
        return model.task.outputs(images, result["logits"])


def check_codes(code_grid, code_dropout):
    """Raises for an invalid grid or dropout."""
    numbers = (code_grid, 1) if networks.of_parts(code_grid) else code_grid
    if len(numbers) != 2 or min(numbers) < 1:
        raise ValueError(
            "`code_grid` must be the numbers of rows and columns of codes, or the "
            f"number of codes of parts. Received: code_grid={code_grid}"
        )
    if code_dropout not in CODE_DROPOUTS:
        raise ValueError(
            f"`code_dropout` must be one of {CODE_DROPOUTS}. "
            f"Received: code_dropout={code_dropout!r}"
        )
