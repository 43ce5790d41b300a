"""Small KerasHub language models with random weights, without tokenizers.

Importing this file imports KerasHub, and with it TensorFlow.
"""

import keras_hub
import numpy as np
from tiny import randomize

VOCABULARY = 11
LENGTH = 12
IMAGE = 8
START, END, PAD = 2, 1, 0


BACKBONE = {
    "vocabulary_size": VOCABULARY,
    "num_layers": 2,
    "hidden_dim": 8,
    "intermediate_dim": 16,
}
OF_TEXT = {**BACKBONE, "num_heads": 2, "max_sequence_length": LENGTH}
OF_IMAGES = {
    **BACKBONE,
    "image_size": IMAGE,
    "num_query_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
}


def gpt2():
    backbone = keras_hub.models.GPT2Backbone(**OF_TEXT)
    model = keras_hub.models.GPT2CausalLM(backbone=backbone, preprocessor=None)
    return finished(model, seed=2, scale=0.8)


def pali_gemma():
    backbone = keras_hub.models.PaliGemmaBackbone(
        **OF_IMAGES,
        vit_patch_size=4,
        vit_num_heads=2,
        vit_hidden_dim=8,
        vit_num_layers=1,
        vit_intermediate_dim=16,
    )
    model = keras_hub.models.PaliGemmaCausalLM(backbone=backbone, preprocessor=None)
    return finished(model)


def gemma3():
    encoder = keras_hub.models.Gemma3VisionEncoder(
        image_size=IMAGE,
        patch_size=4,
        num_heads=2,
        hidden_dim=8,
        num_layers=1,
        intermediate_dim=16,
        output_dim=8,
        pool_size=1,
    )
    backbone = keras_hub.models.Gemma3Backbone(
        **OF_IMAGES,
        use_sliding_window_attention=True,
        sliding_window_size=6,
        vision_encoder=encoder,
    )
    model = keras_hub.models.Gemma3CausalLM(backbone=backbone, preprocessor=None)
    return finished(model)


def bart():
    backbone = keras_hub.models.BartBackbone(**OF_TEXT)
    model = keras_hub.models.BartSeq2SeqLM(backbone=backbone, preprocessor=None)
    return finished(model, seed=1, scale=0.8)


def finished(model, seed=0, scale=0.5):
    """Random weights, so large that distributions are far from uniform."""
    randomize(model, seed, scale)
    model.compile(sampler="greedy")
    return model


def tokens(lengths, seed=0):
    """Prompts of given lengths: ids `(batch, LENGTH)` and their mask."""
    generator = np.random.default_rng(seed)
    mask = np.arange(LENGTH) < np.array(lengths)[:, None]
    ids = generator.integers(3, VOCABULARY, mask.shape)
    ids[:, 0] = START
    return np.where(mask, ids, PAD).astype("int32"), mask


def prompts(name, lengths=(2, 5, 3), seed=0):
    """Inputs as the preprocessor of the model `name` makes them for generation."""
    ids, mask = tokens(lengths, seed)
    batch = len(lengths)
    generator = np.random.default_rng(seed + 1)
    images = generator.normal(size=(batch, IMAGE, IMAGE, 3)).astype("float32")
    if name == "bart":
        encoder_ids, encoder_mask = tokens([4 + 2 * i for i in range(batch)], seed + 1)
        return {
            "encoder_token_ids": encoder_ids,
            "encoder_padding_mask": encoder_mask,
            "decoder_token_ids": ids,
            "decoder_padding_mask": mask,
        }
    x = {"token_ids": ids, "padding_mask": mask}
    if name == "pali_gemma":
        x["images"] = images
    if name == "gemma3":
        # An image takes four places, in each prompt somewhere else, and not the last.
        ids, mask = tokens([length + 4 for length in lengths], seed)
        first = [min(1 + 2 * i, length - 1) for i, length in enumerate(lengths)]
        places = np.array(first, "int32")[:, None] + np.arange(4, dtype="int32")
        vision_mask = np.zeros_like(mask)
        np.put_along_axis(vision_mask, places, True, axis=1)
        x = {
            "token_ids": np.where(vision_mask, 3, ids).astype("int32"),
            "padding_mask": mask,
            "images": images[:, None],
            "vision_indices": places,
            "vision_mask": vision_mask,
        }
    return x


MODELS = {"gpt2": gpt2, "pali_gemma": pali_gemma, "gemma3": gemma3, "bart": bart}
