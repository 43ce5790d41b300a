"""UViM: a language model generates codes, and a base model decodes them to outputs."""

import keras
import numpy as np
from keras import ops

from keras_reward.categorical import likeliest
from keras_reward.models.uvim_stage_one import FIRST_TOKEN, UViMStageOne
from keras_reward.saved_objects import deserialized, serialized
from keras_reward.sequences.sequence_model import what_is_missing
from keras_reward.sequences.writing import write_tokens


@keras.saving.register_keras_serializable(package="keras_reward")
class UViM(keras.Model):
    """Maps images to structured outputs by way of short codes.

    The language model generates a code for the image, token by token. The base model of
    the first stage makes the output from image and code, in one pass. The code resolves
    what is uncertain about the output, so a sample of the language model is a complete,
    consistent picture.

    `RewardTuning(uvim, reward=...)` tunes the language model. It samples codes, decodes
    all of them with the base model, in one batch and without gradient, and rewards the
    outputs. The first stage is frozen: `UViM` sets its `trainable` to False, and its
    dictionary no longer changes.

    The two stages are trained separately before: the first stage by `fit` on images and
    labels, the language model by `fit` on `stage_one.code_pairs`.

    Args:
        stage_one: a trained `UViMStageOne`.
        language_model: a sequence model, such as `VisionEncoderDecoder`, from the same
            images to `stage_one.code_length` tokens of a vocabulary of
            `stage_one.vocabulary_size`, with `end_id=None`, `start_id=0` and
            `pad_id=0`. Token `i + 1` is code `i`.
        name: optional name.

    Call arguments: images `(batch, height, width, channels)`. Returns the greedy
    outputs, such as `(batch, height, width, 3)` images.

    Example:

    ```python
    import keras
    import numpy as np
    from keras_reward import ColorfulnessReward, RewardTuning
    from keras_reward.codecs import to_gray
    from keras_reward.models import (
        ColorizationTask, UViM, UViMStageOne, VisionEncoderDecoder, VisionTransformer,
    )

    sizes = {"width": 16, "num_heads": 2}
    stage_one = UViMStageOne(
        ColorizationTask(), (16, 16, 1), patch_size=4, code_grid=(2, 2), num_codes=8,
        oracle_layers=1, base_layers=1, **sizes,
    )  # stage_one.fit(gray, photos)
    language_model = VisionEncoderDecoder(
        VisionTransformer((16, 16, 1), patch_size=4, num_layers=1, **sizes),
        stage_one.vocabulary_size,
        stage_one.code_length,
        num_layers=1,
        num_heads=2,
        end_id=None,
    )  # language_model.fit(*stage_one.code_pairs(gray, photos))
    uvim = UViM(stage_one, language_model)
    photos = np.random.default_rng(0).random((4, 16, 16, 3)).astype("float32")
    gray = np.array(to_gray(photos))
    tuned = RewardTuning(uvim, reward=ColorfulnessReward(), seed=0)
    tuned.compile(keras.optimizers.Adam(1e-4))
    tuned.fit(gray, verbose=0)
    uvim.predict(gray, verbose=0)  # (4, 16, 16, 3): the likeliest colours
    ```

    References: Kolesnikov et al. 2022, "UViM: A Unified Modeling Approach for Vision
    with Learned Guiding Codes"; Pinto et al. 2023, "Tuning computer vision models with
    task rewards", sections 4.1 and 4.3.
    """

    start_id, end_id, pad_id = 0, None, 0

    def __init__(self, stage_one, language_model, name=None):
        check_stages(stage_one, language_model)
        super().__init__(name=name, dtype=language_model.dtype_policy, autocast=False)
        self.stage_one = stage_one
        self.stage_one.trainable = False
        self.language_model = language_model
        self.vocabulary_size = language_model.vocabulary_size
        self.max_length = language_model.max_length
        self.built = True

    def call(self, images, training=False):
        allowed = ops.convert_to_tensor(self.slot_mask)

        def choose(hidden, position):
            logits = ops.cast(self.logits(hidden), "float32")
            here = ops.take(allowed, position, axis=0)
            return likeliest(ops.where(here, logits, -float("inf")))

        context = self.encode(images, training=bool(training))
        return self.decode(images, write_tokens(self, context, 1, choose)[0])

    # The methods of a sequence model, which call those of the language model.

    def encode(self, x, training=False):
        """Runs the language model's encoder once, for all that its decoder needs."""
        return self.language_model.encode(x, training=training)

    def hidden_states(self, context, token_ids, training=False):
        """The decoder's output at each position, see `VisionEncoderDecoder`."""
        return self.language_model.hidden_states(context, token_ids, training=training)

    def logits(self, hidden):
        """Logits `(..., vocabulary_size)` from `hidden` `(..., width)`."""
        return self.language_model.logits(hidden)

    def start_cache(self, context, n):
        """An empty cache for `next_hidden`, see `VisionEncoderDecoder`."""
        return self.language_model.start_cache(context, n)

    def next_hidden(self, context, cache, token_ids, position):
        """The decoder's output at one position, see `VisionEncoderDecoder`."""
        return self.language_model.next_hidden(context, cache, token_ids, position)

    @property
    def slot_mask(self):
        """The allowed tokens, which are the codes: `(code_length, vocabulary_size)`."""
        allowed = np.ones((self.max_length, self.vocabulary_size), "bool")
        allowed[:, :FIRST_TOKEN] = False
        return allowed

    # Decoding, which the language model does not have.

    def decode(self, x, samples):
        """Decodes codes to outputs with the base model, without gradient.

        Args:
            x: images `(batch, height, width, channels)`.
            samples: token ids `(batch, n, code_length)`.

        Returns:
            Outputs in rows, `(batch * n, ...)`, as the reward sees them.
        """
        codes = ops.cast(samples, "int32") - FIRST_TOKEN
        outputs = self.stage_one.decode_codes(x, codes)
        return keras.tree.map_structure(ops.stop_gradient, outputs)

    def get_config(self):
        return {
            "stage_one": serialized(self.stage_one),
            "language_model": serialized(self.language_model),
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        parts = {
            part: deserialized(config[part], custom_objects)
            for part in ("stage_one", "language_model")
        }
        return cls(**{**config, **parts})


def check_stages(stage_one, language_model):
    """Raises unless the language model generates the codes of the first stage."""
    if not isinstance(stage_one, UViMStageOne):
        raise ValueError(
            "`stage_one` must be a UViMStageOne. "
            f"Received: {stage_one!r} (of type {type(stage_one).__name__})"
        )
    missing = what_is_missing(language_model)
    if missing:
        raise ValueError(
            "`language_model` must be a sequence model, such as VisionEncoderDecoder. "
            f"Received: {type(language_model).__name__} without {', '.join(missing)}"
        )
    expected = {
        "vocabulary_size": stage_one.vocabulary_size,
        "max_length": stage_one.code_length,
        "start_id": 0,
        "end_id": None,
        "pad_id": 0,
    }
    received = {name: getattr(language_model, name) for name in expected}
    if received != expected:
        raise ValueError(
            "`language_model` must write the codes of `stage_one`. Expected: "
            f"{describe(expected)}. Received: {describe(received)}"
        )
    shape = getattr(language_model, "image_shape", stage_one.image_shape)
    if tuple(shape) != stage_one.image_shape:
        raise ValueError(
            "Both stages must be made for the same images. Received: images of shape "
            f"{stage_one.image_shape} for `stage_one`, {tuple(shape)} for "
            "`language_model`"
        )


def describe(attributes):
    return ", ".join(f"{name}={value}" for name, value in attributes.items())
