"""Tunes Keras vision models for what they are used for."""

from keras_reward.auxiliary import ConfidenceLoss
from keras_reward.codecs import BoxCodec, ColorPalette
from keras_reward.policies import (
    AutoregressivePolicy,
    BernoulliPolicy,
    CategoricalPolicy,
    CausalLMPolicy,
    GaussianPolicy,
    Policy,
)
from keras_reward.rewards import (
    CIDErReward,
    ColorfulnessReward,
    DiceReward,
    FunctionReward,
    HostReward,
    HueEntropyReward,
    LengthReward,
    MeanAveragePrecisionReward,
    MeanIoUReward,
    ModelReward,
    PanopticQualityReward,
    ProductReward,
    PSNRReward,
    RecallReward,
    RepetitionReward,
    Reward,
    SumReward,
    VividnessReward,
    matched_iou,
)
from keras_reward.tuning import RewardTuning

__version__ = "0.1.0"

__all__ = [
    "AutoregressivePolicy",
    "BernoulliPolicy",
    "BoxCodec",
    "CIDErReward",
    "CategoricalPolicy",
    "CausalLMPolicy",
    "ColorPalette",
    "ColorfulnessReward",
    "ConfidenceLoss",
    "DiceReward",
    "FunctionReward",
    "GaussianPolicy",
    "HostReward",
    "HueEntropyReward",
    "LengthReward",
    "MeanAveragePrecisionReward",
    "MeanIoUReward",
    "ModelReward",
    "PSNRReward",
    "PanopticQualityReward",
    "Policy",
    "ProductReward",
    "RecallReward",
    "RepetitionReward",
    "Reward",
    "RewardTuning",
    "SumReward",
    "VividnessReward",
    "matched_iou",
]
