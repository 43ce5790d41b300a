"""A supervised loss that teaches a detector to rate its own boxes."""

import keras
from keras import ops

from keras_reward.codecs.boxes import BOX_TOKENS, CONFIDENCE, BoxCodec
from keras_reward.nests import repeat_rows
from keras_reward.rewards.detection import matched_iou
from keras_reward.terms.term import Term


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
        find_codec(tuner.policy)
        if not tuner.policy.takes_choices:
            raise ValueError(
                "ConfidenceLoss needs a policy whose `likelihood` takes `choices`, "
                "such as AutoregressivePolicy. "
                f"Received: {type(tuner.policy).__name__}"
            )

    def choices(self, policy, samples):
        """The samples with every confidence set to "wrong", and to "right"."""
        codec = find_codec(policy)
        is_confidence = ops.logical_or(
            samples == codec.wrong_id, samples == codec.right_id
        )
        return [
            ops.where(is_confidence, token, samples)
            for token in (codec.wrong_id, codec.right_id)
        ]

    def loss(self, update):
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
        wrong, right = (
            codec.split(log_probs)[..., CONFIDENCE]
            for log_probs in update.likelihood.choice_log_probs
        )
        cross_entropy = -(target * right + (1.0 - target) * wrong)
        of_boxes = ops.where(is_box, cross_entropy, 0.0)
        return BOX_TOKENS * ops.mean(ops.sum(of_boxes, axis=-1))

    def get_config(self):
        return {**super().get_config(), "iou_threshold": self.iou_threshold}


def find_codec(policy):
    """The policy's `BoxCodec`; raises a ValueError if it has none."""
    codec = getattr(policy, "codec", None)
    if not isinstance(codec, BoxCodec):
        raise ValueError(
            "ConfidenceLoss needs a policy whose codec is a BoxCodec, such as "
            "`AutoregressivePolicy(codec=BoxCodec(...))`. "
            f"Received: {type(policy).__name__} with codec={codec!r}"
        )
    return codec
