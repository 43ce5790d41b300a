"""A supervised loss that teaches a detector to rate its own boxes."""

import keras
from keras import ops

from keras_reward.codecs.boxes import BOX_TOKENS, CONFIDENCE, BoxCodec
from keras_reward.nests import repeat_rows
from keras_reward.policies.detection import DetectionPolicy
from keras_reward.rewards.detection import matched_iou
from keras_reward.terms.term import Term
from keras_reward.valid_inputs import where_valid


@keras.saving.register_keras_serializable(package="keras_reward")
class ConfidenceLoss(Term):
    """Teaches a detector to predict how good each of its boxes is.

    The cross-entropy of the two confidence tokens of each box that the model sampled.
    The target probability of "right" is the intersection over union (IoU) of the box
    with the ground-truth box that it matches, 0 if it matches none. The boxes then have
    scores, which mean average precision needs; `MeanAveragePrecisionReward` uses only
    boxes and classes.

    The loss is summed over the boxes of a sample, without padding, multiplied by the
    six tokens of a box, and averaged over samples. `weight` then means the same as in
    the published code, which averages this loss over boxes and the other over tokens,
    whereas `RewardTuning` sums the log-likelihood of tokens. The minimum of the loss is
    the entropy of its targets, not 0.

    For `RewardTuning(..., terms=[ConfidenceLoss()])` with an `AutoregressivePolicy`
    whose codec is a `BoxCodec`, and `y` a dict of `boxes` and `labels`. Logged as
    `confidence_loss`. `sample_weight` does not apply to it.

    With a `DetectionPolicy`, it is the binary cross-entropy of the score of each
    candidate, shown or hidden, with its IoU as target, summed over the candidates of an
    image and averaged over images. It acts on the same logits as the reward. The reward
    would drive every score to 0 or 1, and so lose their order. With a `temperature`
    below 1, candidates whose score is far from the policy's `threshold` are all but
    certainly shown or hidden, so the reward only moves those that are near it, and the
    scores of all others stay what this loss makes of them.

    Args:
        weight: factor of the term. Default 0.3, as in the paper.
        iou_threshold: IoU that a match must exceed. Default 0.5.
        name: name in the logs. Default `"confidence_loss"`.

    Example:

    ```python
    from keras_reward import AutoregressivePolicy, BoxCodec, ConfidenceLoss

    codec = BoxCodec(num_classes=10, image_size=64, max_boxes=8, num_buckets=65)
    policy = AutoregressivePolicy(codec=codec)
    loss = ConfidenceLoss(weight=0.3)
    # RewardTuning(model, reward=..., policy=policy, terms=[loss])
    ```

    Reference: Pinto et al. 2023, "Tuning computer vision models with task rewards",
    section 4.2, and the `detection_reward.py` published with it.
    """

    def __init__(self, weight=0.3, iou_threshold=0.5, name="confidence_loss", **kwargs):
        super().__init__(weight, name=name, **kwargs)
        if not 0 <= iou_threshold < 1:
            raise ValueError(
                "`iou_threshold` must be from 0 to below 1. "
                f"Received: iou_threshold={iou_threshold}"
            )
        self.iou_threshold = iou_threshold

    def bind(self, tuner):
        if isinstance(tuner.policy, DetectionPolicy):
            return
        find_codec(tuner.policy)
        if not tuner.policy.takes_choices:
            raise ValueError(
                "ConfidenceLoss needs a policy whose `likelihood` takes `choices`, "
                "such as AutoregressivePolicy. "
                f"Received: {type(tuner.policy).__name__}"
            )

    def choices(self, policy, samples):
        """The samples with every confidence set to "wrong", and to "right"."""
        if isinstance(policy, DetectionPolicy):
            return []
        codec = find_codec(policy)
        is_confidence = ops.logical_or(
            samples == codec.wrong_id, samples == codec.right_id
        )
        return [
            ops.where(is_confidence, token, samples)
            for token in (codec.wrong_id, codec.right_id)
        ]

    def loss(self, update):
        if isinstance(update.policy, DetectionPolicy):
            return self.loss_of_scores(update)
        codec = find_codec(update.policy)
        samples, outputs = update.rollout.samples, update.rollout.outputs
        n, boxes = samples.shape[1], codec.max_boxes
        iou = matched_iou(
            repeat_rows(update.y, n),
            outputs,
            self.iou_threshold,
            codec.bounding_box_format,
        )
        target = ops.stop_gradient(ops.reshape(iou, (-1, n, boxes)))
        is_box = ops.reshape(outputs["labels"] >= 0, (-1, n, boxes))
        log_probs = update.likelihood.choice_log_probs
        wrong, right = (codec.split(log_probs[i])[..., CONFIDENCE] for i in range(2))
        cross_entropy = -(target * right + (1.0 - target) * wrong)
        of_boxes = ops.where(is_box, cross_entropy, 0.0)
        return BOX_TOKENS * ops.mean(ops.sum(of_boxes, axis=-1))

    def loss_of_scores(self, update):
        """The loss of the scores of a detector's candidates."""
        policy, context = update.policy, update.context
        iou = matched_iou(
            update.y,
            policy.detections(context),
            self.iou_threshold,
            policy.bounding_box_format,
        )
        logits = context["logits"]
        cross_entropy = ops.softplus(logits) - ops.stop_gradient(iou) * logits
        of_boxes = ops.where(context["valid"], cross_entropy, 0.0)
        of_boxes = where_valid(update.rollout.valid, of_boxes)
        return ops.mean(ops.sum(of_boxes, axis=-1))

    def get_config(self):
        return {**super().get_config(), "iou_threshold": self.iou_threshold}


def find_codec(policy):
    """The policy's `BoxCodec`; raises a ValueError if it has none."""
    codec = getattr(policy, "codec", None)
    if not isinstance(codec, BoxCodec):
        raise ValueError(
            "ConfidenceLoss needs a DetectionPolicy, or a policy whose codec is a "
            "BoxCodec, such as `AutoregressivePolicy(codec=BoxCodec(...))`. "
            f"Received: {type(policy).__name__} with codec={codec!r}"
        )
    return codec
