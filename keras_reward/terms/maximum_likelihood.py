"""The likelihood of the ground truth, beside the reward of samples."""

import keras
from keras import ops

from keras_reward.objective import weighted_likelihood_loss
from keras_reward.terms.term import Term


@keras.saving.register_keras_serializable(package="keras_reward")
class MaximumLikelihood(Term):
    """The negative log-likelihood of the ground truth: the loss of the first stage.

    The sum over tokens, and the mean over reference captions and inputs, under the
    distribution that is sampled: with the temperature. `y` has the form of a sample:
    class indices for a `CategoricalPolicy`, padded token ids `(batch, tokens)` or
    `(batch, references, tokens)` for a sequence model, of which padding at the end
    does not count.

    Args:
        weight: what it is multiplied by. Default 1.0.
        name: what it is logged as. Default `"mle_loss"`.
    """

    def __init__(self, weight=1.0, name="mle_loss", **kwargs):
        super().__init__(weight, name=name, **kwargs)

    def check_targets(self, policy, y):
        policy.check_targets(y)

    def loss(self, update):
        log_prob = update.policy.target_log_prob(update.context, update.y)
        log_prob = ops.expand_dims(log_prob, 1)
        ones = ops.ones_like(log_prob)
        return weighted_likelihood_loss(log_prob, ones, None, update.sample_weight)
