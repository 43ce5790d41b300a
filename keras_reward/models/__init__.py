"""Models from images to sequences, and by way of these to labels."""

from keras_reward.models.big_vision import load_big_vision
from keras_reward.models.captions import CaptionPreprocessor
from keras_reward.models.encoder_decoder import VisionEncoderDecoder
from keras_reward.models.quantization import CodeUsage, VectorQuantizer
from keras_reward.models.uvim import UViM
from keras_reward.models.uvim_stage_one import UViMStageOne
from keras_reward.models.uvim_tasks import ColorizationTask, PanopticTask
from keras_reward.models.vision_transformer import VisionTransformer

__all__ = [
    "CaptionPreprocessor",
    "CodeUsage",
    "ColorizationTask",
    "PanopticTask",
    "UViM",
    "UViMStageOne",
    "VectorQuantizer",
    "VisionEncoderDecoder",
    "VisionTransformer",
    "load_big_vision",
]
