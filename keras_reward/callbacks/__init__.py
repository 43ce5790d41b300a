"""What `fit` shows and says while it tunes."""

from keras_reward.callbacks.progress import RewardProgress
from keras_reward.callbacks.unscored import UnscoredWarning
