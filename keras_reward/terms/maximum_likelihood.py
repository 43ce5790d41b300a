"""A term for the likelihood of the ground truth."""

import keras
from keras import ops

from keras_reward.nests import map_leaves
from keras_reward.objective import weighted_likelihood_loss
from keras_reward.policies.detection import DetectionPolicy
from keras_reward.policies.policy import Policy
from keras_reward.terms.term import Term
from keras_reward.valid_inputs import where_valid


@keras.saving.register_keras_serializable(package="keras_reward")
class MaximumLikelihood(Term):
    """The negative log-likelihood of the ground truth, the loss of pretraining.

    Summed over tokens, and averaged over reference captions and inputs. The temperature
    applies, as in sampling. `y` has the form of a sample: class indices for a
    `CategoricalPolicy`, padded token ids `(batch, tokens)` or
    `(batch, references, tokens)` for a sequence model. Padding at the end is ignored.
    For a model with several outputs, a dict or list of them, see `MultiOutputPolicy`.

    With a `DetectionPolicy`, it is the loss that the detector was compiled with, for
    its boxes and for all scores, with the penalties of its regularizers if it has some.
    It holds boxes where they are while the layers below are tuned. `sample_weight` does
    not apply to it. A D-FINE needs a `compute_loss` of its own: KerasHub's compares all
    images of a batch with the objects of the first one.

    Args:
        weight: factor of the term. Default 1.0.
        name: name in the logs. Default `"mle_loss"`.

    Example:

    ```python
    import keras
    import numpy as np
    from keras import ops
    from keras_reward import MaximumLikelihood, RewardTuning

    def right(y_true, y_pred):
        return ops.cast(y_true == y_pred, "float32")

    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(5)])
    tuned = RewardTuning(model, reward=right, terms=[MaximumLikelihood(0.1)], seed=0)
    tuned.compile("adam")
    x = np.random.default_rng(0).normal(size=(16, 8)).astype("float32")
    tuned.fit(x, np.zeros(16, "int32"), verbose=0)  # logs `mle_loss`
    ```
    """

    def __init__(self, weight=1.0, name="mle_loss", **kwargs):
        super().__init__(weight, name=name, **kwargs)
        self.policy = None

    def bind(self, tuner):
        self.policy = policy = tuner.policy
        if isinstance(policy, DetectionPolicy):
            return
        if type(policy).target_log_prob is Policy.target_log_prob:
            policy.target_log_prob(None, None)  # raises what is missing

    def before_training(self):
        if isinstance(self.policy, DetectionPolicy):
            self.policy.ready_own_loss()

    def check_targets(self, policy, y):
        policy.check_targets(y)

    def loss(self, update):
        if isinstance(update.policy, DetectionPolicy):
            given = of_valid(update.rollout.valid, update.y, update.context)
            return update.policy.own_loss(update.x, *given)
        log_prob = update.policy.target_log_prob(update.context, update.y)
        log_prob = ops.expand_dims(log_prob, 1)
        ones = ops.ones_like(log_prob)
        return weighted_likelihood_loss(log_prob, ones, None, update.sample_weight)


def of_valid(valid, y, context):
    """Targets and context of a `DetectionPolicy` for the detector's own loss.

    That takes no weights. So inputs that are not valid have no objects, by which the
    loss may divide, and what the detector says of them has no gradient.
    """
    if valid is None:
        return y, context

    def held(leaf):
        # What has no row for each input stays as it is.
        if tuple(getattr(leaf, "shape", ())[:1]) != tuple(valid.shape):
            return leaf
        at = ops.reshape(valid, (-1, *[1] * (len(leaf.shape) - 1)))
        return ops.where(at, leaf, ops.stop_gradient(leaf))

    outputs = map_leaves(held, context["outputs"])
    labels = where_valid(valid, y["labels"], -1)
    return {**y, "labels": labels}, {**context, "outputs": outputs}
