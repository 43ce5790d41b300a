"""Terms that can be added to the loss of the reward."""

from keras_reward.terms.confidence import ConfidenceLoss
from keras_reward.terms.entropy import Entropy
from keras_reward.terms.kl import KL
from keras_reward.terms.maximum_likelihood import MaximumLikelihood
from keras_reward.terms.term import Term
