"""Models from images to sequences."""

from keras_reward.models.captions import CaptionPreprocessor
from keras_reward.models.encoder_decoder import VisionEncoderDecoder
from keras_reward.models.quantization import CodeUsage, VectorQuantizer
from keras_reward.models.vision_transformer import VisionTransformer

__all__ = [
    "CaptionPreprocessor",
    "CodeUsage",
    "VectorQuantizer",
    "VisionEncoderDecoder",
    "VisionTransformer",
]
