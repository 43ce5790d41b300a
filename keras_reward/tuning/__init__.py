"""`RewardTuning`: a model, its policy and a reward, trained by `fit`."""

from keras_reward.tuning.reward_tuning import RewardTuning
