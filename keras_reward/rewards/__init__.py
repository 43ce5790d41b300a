"""Rewards: what a model is tuned for."""

from keras_reward.rewards.boundary import BoundaryReward
from keras_reward.rewards.captioning import CIDErReward
from keras_reward.rewards.colorfulness import (
    ColorfulnessReward,
    HueEntropyReward,
    VividnessReward,
)
from keras_reward.rewards.combination import (
    FunctionReward,
    ProductReward,
    SumReward,
    as_reward,
)
from keras_reward.rewards.detection import (
    MeanAveragePrecisionReward,
    RecallReward,
    matched_iou,
)
from keras_reward.rewards.host import HostReward
from keras_reward.rewards.map_reward import MapReward
from keras_reward.rewards.model import ModelReward
from keras_reward.rewards.panoptic import PanopticQualityReward
from keras_reward.rewards.psnr import PSNRReward
from keras_reward.rewards.reward import Reward
from keras_reward.rewards.segmentation import DiceReward, FBetaReward, MeanIoUReward
from keras_reward.rewards.sequences import LengthReward, RepetitionReward
from keras_reward.saved_objects import deserialized

# Rewards without required arguments.
REWARDS = {
    "colorfulness": ColorfulnessReward,
    "hue_entropy": HueEntropyReward,
    "length": LengthReward,
    "mean_average_precision": MeanAveragePrecisionReward,
    "panoptic_quality": PanopticQualityReward,
    "psnr": PSNRReward,
    "recall": RecallReward,
    "repetition": RepetitionReward,
    "vividness": VividnessReward,
}


def get(identifier):
    """A reward from what users pass.

    Args:
        identifier: a `Reward`, a function `(y_true, y_pred) -> (rows,)`, the name of
            a reward in `REWARDS`, or a serialised config.

    Returns:
        A `Reward`.

    Raises:
        ValueError: if there is none, or none of that name.
    """
    if identifier is None:
        raise ValueError(
            "RewardTuning needs a reward: a Reward, a function "
            "`(y_true, y_pred) -> (rows,)`, or a name "
            f"({', '.join(map(repr, REWARDS))}). Received: reward=None"
        )
    if isinstance(identifier, str):
        if identifier not in REWARDS:
            raise ValueError(
                "`reward` must be the name of a known reward. "
                f"Known: {', '.join(map(repr, REWARDS))}. "
                f"Received: reward={identifier!r}"
            )
        return REWARDS[identifier]()
    return as_reward(deserialized(identifier))
