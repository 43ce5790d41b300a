"""Small KerasHub language models with random weights, without tokenizers.

Importing this file imports KerasHub, and with it TensorFlow.
"""

import keras
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


# Tasks with preprocessors, for raw inputs.


def vit_classifier():
    """Images of any size with values from 0 to 255 to five classes."""
    backbone = keras_hub.models.ViTBackbone(
        image_shape=(IMAGE, IMAGE, 3),
        patch_size=4,
        num_layers=1,
        num_heads=2,
        hidden_dim=8,
        mlp_dim=16,
    )
    converter = keras_hub.layers.ViTImageConverter(
        image_size=(IMAGE, IMAGE), scale=1 / 127.5, offset=-1.0
    )
    preprocessor = keras_hub.models.ViTImageClassifierPreprocessor(converter)
    model = keras_hub.models.ViTImageClassifier(backbone, 5, preprocessor)
    return centred(randomize(model, seed=2, scale=0.6), photos())


def photos():
    """Raw images, of another size than `vit_classifier` takes."""
    return np.random.default_rng(0).integers(0, 256, (20, 12, 10, 3)).astype("uint8")


def centred(model, x):
    """Gives the last layer a bias with which all classes are likely for `x`."""
    logits = keras.ops.convert_to_numpy(model(model.preprocessor(x)))
    bias = model.layers[-1].bias
    bias.assign(keras.ops.convert_to_numpy(bias) - logits.mean(axis=0))
    return model


def segformer_backbone(max_drop_path_rate=0.0):
    encoder = keras_hub.models.MiTBackbone(
        image_shape=(32, 32, 3),
        num_layers=2,
        layerwise_depths=[1, 1],
        hidden_dims=[8, 16],
        layerwise_num_heads=[1, 2],
        layerwise_sr_ratios=[2, 1],
        layerwise_patch_sizes=[7, 3],
        layerwise_strides=[4, 2],
        max_drop_path_rate=max_drop_path_rate,
    )
    return keras_hub.models.SegFormerBackbone(encoder, projection_filters=16)


def segmenter():
    """Images of any size to maps of three classes; masks are resized too."""
    backbone = segformer_backbone()
    converter = keras_hub.layers.SegFormerImageConverter(
        image_size=(32, 32), scale=1 / 255
    )
    preprocessor = keras_hub.models.SegFormerImageSegmenterPreprocessor(
        converter, resize_output_mask=True
    )
    return keras_hub.models.SegFormerImageSegmenter(backbone, 3, preprocessor)


def gpt2_of_strings():
    """A language model with a tokenizer of five tokens."""
    tokenizer = keras_hub.models.GPT2Tokenizer(
        vocabulary={"<|endoftext|>": 0, "a": 1, "b": 2, "Ġ": 3, "ab": 4},
        merges=["a b"],
    )
    preprocessor = keras_hub.models.GPT2CausalLMPreprocessor(tokenizer, LENGTH)
    backbone = keras_hub.models.GPT2Backbone(**{**OF_TEXT, "vocabulary_size": 5})
    model = keras_hub.models.GPT2CausalLM(backbone, preprocessor)
    return finished(model, seed=8, scale=0.5)


def bert_classifier():
    """Strings to three classes."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c"]
    tokenizer = keras_hub.models.BertTokenizer(words)
    preprocessor = keras_hub.models.BertTextClassifierPreprocessor(tokenizer, 8)
    backbone = keras_hub.models.BertBackbone(
        **{**OF_TEXT, "vocabulary_size": len(words)}
    )
    model = keras_hub.models.BertTextClassifier(backbone, 3, preprocessor)
    return centred(randomize(model, seed=2, scale=1.0), TEXTS)


TEXTS = ["a b a", "b", "c b", "a", "c c c", "b c a a"]
