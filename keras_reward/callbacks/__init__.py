"""Callbacks for reward tuning."""

from keras_reward.callbacks.checkpoint import Checkpoint
from keras_reward.callbacks.host_failure import HostFailure
from keras_reward.callbacks.interruption import Interruption
from keras_reward.callbacks.no_reward import NoRewardWarning
from keras_reward.callbacks.official_metrics import OfficialMetrics
from keras_reward.callbacks.progress import RewardProgress
from keras_reward.callbacks.reward_guard import RewardGuard
from keras_reward.callbacks.sample_logger import SampleLogger
