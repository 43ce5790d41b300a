"""Tunes Keras vision models for what they are used for."""

from keras_reward.codecs import ColorPalette
from keras_reward.policies import (
    BernoulliPolicy,
    CategoricalPolicy,
    GaussianPolicy,
    Policy,
)
from keras_reward.rewards import (
    ColorfulnessReward,
    FunctionReward,
    HostReward,
    HueEntropyReward,
    ModelReward,
    ProductReward,
    Reward,
    SumReward,
    VividnessReward,
)
from keras_reward.tuning import RewardTuning

__version__ = "0.1.0"

__all__ = [
    "BernoulliPolicy",
    "CategoricalPolicy",
    "ColorPalette",
    "ColorfulnessReward",
    "FunctionReward",
    "GaussianPolicy",
    "HostReward",
    "HueEntropyReward",
    "ModelReward",
    "Policy",
    "ProductReward",
    "Reward",
    "RewardTuning",
    "SumReward",
    "VividnessReward",
]
