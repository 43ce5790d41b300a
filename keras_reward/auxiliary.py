"""Supervised losses on a model's own samples, beside the reward's."""

import keras
from keras import ops

from keras_reward.codecs.boxes import BOX_TOKENS, CONFIDENCE, BoxCodec
from keras_reward.rewards.detection import matched_iou


@keras.saving.register_keras_serializable(package="keras_reward")
class ConfidenceLoss:
    """Teaches a detector to say how good the box is that it has just written.

    The cross-entropy of the two confidence tokens of each box that the model sampled:
    "right" should have a probability equal to the intersection over union (IoU) of the
    box with the ground-truth box that it matches, 0 if it matches none. So boxes come
    with scores, which mean average precision needs, while
    `MeanAveragePrecisionReward` looks at boxes and classes alone.

    The sum over the boxes of a sample, what decodes to padding left out, times the six
    tokens of a box; of samples the mean. So `weight` means what it does in the
    published code: that averages both losses, one over boxes and one over tokens,
    where `RewardTuning` sums the log-likelihood of tokens. At its best the loss is the
    entropy of its targets, above 0.

    For `RewardTuning(..., auxiliary_loss=ConfidenceLoss())` with an
    `AutoregressivePolicy` whose codec is a `BoxCodec`. Logged as `confidence_loss`.

    Args:
        weight: of this loss beside the reward's. Default 0.3, as in the paper.
        iou_threshold: IoU that a match must exceed. Default 0.5.
        name: what it is logged as. Default `"confidence_loss"`.

    Example:

    ```python
    from keras_reward import AutoregressivePolicy, BoxCodec, ConfidenceLoss

    codec = BoxCodec(num_classes=10, image_size=64, max_boxes=8, num_buckets=65)
    policy = AutoregressivePolicy(codec=codec)
    loss = ConfidenceLoss(weight=0.3)
    # RewardTuning(model, reward=..., policy=policy, auxiliary_loss=loss)
    ```

    Reference: Pinto et al. 2023, "Tuning computer vision models with task rewards",
    section 4.2, and the `detection_reward.py` published with it.
    """

    def __init__(self, weight=0.3, iou_threshold=0.5, name="confidence_loss"):
        if weight < 0 or not 0 <= iou_threshold < 1:
            raise ValueError(
                "`weight` must not be negative, and `iou_threshold` must be from 0 to "
                f"below 1. Received: weight={weight}, iou_threshold={iou_threshold}"
            )
        self.weight = weight
        self.iou_threshold = iou_threshold
        self.name = name

    def alternatives(self, policy, samples):
        """For each confidence token the other one, for all other tokens themselves.

        Args:
            policy: an `AutoregressivePolicy` with a `BoxCodec`.
            samples: `(batch, n, T)` int32 token ids.

        Returns:
            `(batch, n, T)` int32.
        """
        codec = find_codec(policy)
        wrong, right = codec.wrong_id, codec.right_id
        other = ops.where(samples == wrong, right, samples)
        return ops.where(samples == right, wrong, other)

    def call(self, policy, y, samples, outputs, log_probs, alternative_log_probs):
        """The loss.

        Args:
            policy: an `AutoregressivePolicy` with a `BoxCodec`.
            y: dict of `boxes` and `labels` of the ground truth, `(batch * n, ...)`.
            samples: `(batch, n, T)` int32 token ids.
            outputs: what they decode to, `(batch * n, ...)`.
            log_probs: `(batch, n, T)` float32, log-probabilities of the samples.
            alternative_log_probs: those of the `alternatives`.

        Returns:
            Scalar, float32.
        """
        codec = find_codec(policy)
        iou = matched_iou(y, outputs, self.iou_threshold, codec.bounding_box_format)
        n, boxes = samples.shape[1], codec.max_boxes
        target = ops.stop_gradient(ops.reshape(iou, (-1, n, boxes)))
        is_box = ops.reshape(outputs["labels"] >= 0, (-1, n, boxes))

        is_right = codec.split(samples)[..., CONFIDENCE] == codec.right_id
        written = codec.split(log_probs)[..., CONFIDENCE]
        other = codec.split(alternative_log_probs)[..., CONFIDENCE]
        right = ops.where(is_right, written, other)
        wrong = ops.where(is_right, other, written)
        cross_entropy = -(target * right + (1.0 - target) * wrong)

        of_boxes = ops.where(is_box, cross_entropy, 0.0)
        return BOX_TOKENS * ops.mean(ops.sum(of_boxes, axis=-1))

    def get_config(self):
        return {
            "weight": self.weight,
            "iou_threshold": self.iou_threshold,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config):
        return cls(**config)


def find_codec(policy):
    """The policy's `BoxCodec`, or an error that says it needs one."""
    codec = getattr(policy, "codec", None)
    if not isinstance(codec, BoxCodec):
        raise ValueError(
            "ConfidenceLoss needs a policy whose codec is a BoxCodec, such as "
            "`AutoregressivePolicy(codec=BoxCodec(...))`. "
            f"Received: {type(policy).__name__} with codec={codec!r}"
        )
    return codec
