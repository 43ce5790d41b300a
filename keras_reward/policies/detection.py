"""The policy of object detectors, which shows or hides each of their candidates."""

import math

import keras
import numpy as np
from keras import ops, tree

from keras_reward.forms.boxes import standardize_format
from keras_reward.nests import merge_rows, repeat_rows, samples_per_input
from keras_reward.policies.detectors import (
    all_predictions,
    best_candidates,
    missing_of_detector,
    own_loss,
    ready_own_loss,
)
from keras_reward.policies.drawn_boxes import boxes_drawn_by
from keras_reward.policies.likelihood import of_parts, of_positions
from keras_reward.policies.multi_output import seed_of_part
from keras_reward.policies.policy import Policy


@keras.saving.register_keras_serializable(package="keras_reward")
class DetectionPolicy(Policy):
    """Shows or hides each box that an object detector proposes.

    For KerasHub's `RetinaNetObjectDetector` and `DFineObjectDetector`, KerasCV's
    `RetinaNet` and `YOLOV8Detector`, and detectors of their form. These models score
    many boxes at once. Their own decoding and non-maximum suppression run first,
    without gradient. What is left, without any threshold of scores, are the candidates:
    pairs of a box and its best class. A sample shows or hides each candidate,
    independently of the others, with the detector's own score as probability (see
    `threshold`). Nothing is suppressed afterwards, so each candidate can be credited by
    itself, see `Reward.alternatives`.

    The reward sees a dict of `boxes` `(rows, M, 4)`, `labels` `(rows, M)`, -1 for what
    is hidden and for padding, `scores` `(rows, M)`, which do not depend on the
    temperature, and `shown` `(rows, M)` bool. `predict` returns all candidates with
    their labels, ranked by score; in `shown`, those whose probability is above 0.5.
    Those are all that the greedy reward of `evaluate` sees: to compute it by hand, set
    the labels of the others to -1. The detector's own `predict` goes on cutting at the
    `confidence_threshold` of its `prediction_decoder`: set that to `threshold`.

    Boxes are in the detector's `bounding_box_format`, in pixels of the image that the
    model gets: of a KerasHub task with a preprocessor, the preprocessed image. Targets
    are a dict of `boxes` in the same format and `labels`, -1 for padding.

    By default, boxes are not tuned: no gradient flows into them. They may still move
    with layers that they share with the scores, such as the backbone. Layers of their
    own get no gradient, of which Keras warns on TensorFlow and PyTorch. With
    `tune_boxes`, each sample draws its boxes from normal distributions around what the
    detector predicts, and each box is credited with what it was worth where it was
    drawn, less a baseline. Samples are then a dict of `boxes` and `shown`.

    Args:
        num_candidates: how many boxes of an image may be shown. Default: the
            `max_detections` of the detector's `prediction_decoder`, or all its boxes if
            they are fewer. If suppression leaves fewer, the others are padding.
        threshold: the score of a candidate that is as likely shown as hidden, between 0
            and 1. Default 0.5: the score is the probability. The probability is
            `sigmoid((logit(score) - logit(threshold)) / temperature)`. For a detector
            whose scores are low, set it to the score at which it is best cut: with a
            low temperature, candidates far below are never shown, and not tuned.
        tune_boxes: standard deviation of what is drawn, as a share of the width of a
            box or of its height, such as 0.05; or "predicted", for the distribution
            that a D-FINE predicts for each side. Default None: boxes are not tuned.
        name: optional name.

    Raises:
        ValueError: for a model of another form; if the reward reads boxes of another
            format; when the model runs, if it has fewer boxes than `num_candidates`.

    Example:

    ```python
    import numpy as np
    from keras_reward import DetectionPolicy, RecallReward

    policy = DetectionPolicy(num_candidates=50)
    reward = RecallReward(
        bounding_box_format="yxyx",  # KerasHub's default; KerasCV's is up to you
        false_positive_penalty=0.2,  # else showing everything is optimal
    )
    y = {  # of two images, the second one without objects
        "boxes": np.array([[[8, 16, 24, 40]], [[0, 0, 0, 0]]], "float32"),
        "labels": np.array([[2], [-1]]),
    }
    # tuned = RewardTuning(detector, reward=reward, policy=policy)
    # tuned.fit(images, y)
    ```
    """

    has_choices = True
    independent_parts = True
    fixed_positions = False

    def __init__(
        self, num_candidates=None, threshold=0.5, tune_boxes=None, name=None, **kwargs
    ):
        super().__init__(name=name, **kwargs)
        is_count = isinstance(num_candidates, int) and num_candidates > 0
        if num_candidates is not None and not is_count:
            raise ValueError(
                "`num_candidates` must be a positive int, or None. "
                f"Received: num_candidates={num_candidates!r}"
            )
        if not 0 < threshold < 1:
            raise ValueError(
                "`threshold` must be a score between 0 and 1. "
                f"Received: threshold={threshold!r}"
            )
        is_number = isinstance(tune_boxes, int | float) and tune_boxes > 0
        is_number = is_number and not isinstance(tune_boxes, bool)
        if not (is_number or tune_boxes in (None, "predicted")):
            raise ValueError(
                '`tune_boxes` must be a positive number, "predicted", or None. '
                f"Received: tune_boxes={tune_boxes!r}"
            )
        self.num_candidates = num_candidates
        self.threshold = threshold
        self.tune_boxes = tune_boxes
        self.drawn = None  # what draws boxes, once there is a model
        self.offset = math.log(threshold / (1.0 - threshold))

    def bind(self, model, temperature=1.0):
        missing = missing_of_detector(model)
        if missing:
            raise ValueError(
                "DetectionPolicy tunes detectors in the form of KerasHub's and "
                "KerasCV's: with `decode_predictions`, `bounding_box_format`, and a "
                "`prediction_decoder` such as `NonMaxSuppression`. For a model of "
                "another form write a Policy. Received: "
                f"{type(model).__name__} {model.name!r} without {', '.join(missing)}"
            )
        layout = standardize_format(model.bounding_box_format)
        self.check_preprocessor(model, layout)
        self.drawn = boxes_drawn_by(self.tune_boxes, model, layout)
        return super().bind(model, temperature)

    @staticmethod
    def check_preprocessor(model, bounding_box_format):
        """Raises if a preprocessor would resize boxes of another format."""
        preprocessor = getattr(model, "preprocessor", None)
        converter = getattr(preprocessor, "image_converter", None)
        resizes = getattr(converter, "image_size", None) is not None
        read = getattr(converter, "bounding_box_format", bounding_box_format)
        if resizes and read != bounding_box_format:
            raise ValueError(
                "The preprocessor resizes the boxes of `y` with the images, so it must "
                f"read the format of detector {model.name!r}. Make its "
                f"`image_converter` with `bounding_box_format={bounding_box_format!r}`."
                f" Received: bounding_box_format={read!r}"
            )

    @property
    def bounding_box_format(self):
        """Keras's name of the format of all boxes, that of the detector."""
        return standardize_format(self.model.bounding_box_format)

    def encode(self, x, training=False):
        """Runs the detector once, and finds the candidates.

        Returns:
            dict of `boxes` `(batch, M, 4)`, `labels` `(batch, M)` int32, `logits`
            `(batch, M)`, those of the labels, with gradient, `valid` `(batch, M)`,
            `places` `(batch, M)`, which of the detector's boxes they are, and
            `outputs`, what the detector returned. Boxes have a gradient only if they
            are tuned.
        """
        outputs = self.model(x, training=training)
        boxes, logits = all_predictions(self.model, x, outputs)
        if self.tune_boxes is None:
            boxes = ops.stop_gradient(boxes)
        candidates = best_candidates(
            boxes,
            logits,
            self.bounding_box_format,
            self.model.prediction_decoder.iou_threshold,
            self.count(logits.shape),
        )
        context = {**candidates, "outputs": outputs}
        if self.drawn is not None:
            images = tree.flatten(x)[0]
            context.update(self.drawn.context(outputs, candidates["places"], images))
        return context

    def ready_own_loss(self):
        """Raises if the detector is not ready for `own_loss`."""
        ready_own_loss(self.model)

    def own_loss(self, x, y, context):
        """The loss that the detector was compiled with, a scalar."""
        return own_loss(self.model, x, y, context["outputs"])

    def count(self, shape):
        """The number of candidates, for logits of a shape `(batch, N, classes)`."""
        number = shape[1]
        if number is None:
            raise ValueError(
                "DetectionPolicy needs to know the number of boxes while the step is "
                "compiled. Give all images one size, and the model an `image_shape` "
                f"without None. Received: logits of shape {tuple(shape)}"
            )
        if self.num_candidates is None:
            return min(self.model.prediction_decoder.max_detections, number)
        if self.num_candidates > number:
            raise ValueError(
                "`num_candidates` must be at most the number of boxes that the "
                f"detector scores. Lower it, or leave it out. Received: "
                f"num_candidates={self.num_candidates}, and {number} boxes"
            )
        return self.num_candidates

    def show_logits(self, context):
        """The logit of showing each candidate, `(batch, M)`, with gradient."""
        return (context["logits"] - self.offset) / self.temperature

    def sample(self, context, num_samples, seed=None, noise=None):
        """As in `Policy`; with `tune_boxes`, `noise` is a dict of `shown`, uniform, and
        `boxes`, normal, or uniform for "predicted"."""
        if self.tune_boxes is None:
            return self.sample_shown(context, num_samples, seed, noise)
        noise = {} if noise is None else noise
        first, second = (seed_of_part(seed, index) for index in range(2))
        shown = self.sample_shown(context, num_samples, first, noise.get("shown"))
        given = ops.shape(shown), second, noise.get("boxes")
        return {"boxes": self.drawn.draw(context, *given), "shown": shown}

    def sample_shown(self, context, num_samples, seed, noise):
        if noise is None:
            batch, number = ops.shape(context["logits"])
            shape = (batch, num_samples, number)
            noise = keras.random.uniform(shape, seed=seed, dtype="float32")
        shown = ops.convert_to_tensor(noise, "float32") < self.probabilities(context)
        return ops.cast(shown, "int32")

    def choices_of(self, samples):
        return samples if self.tune_boxes is None else samples["shown"]

    def with_choices(self, samples, choices):
        return choices if self.tune_boxes is None else {**samples, "shown": choices}

    @property
    def has_part_rewards(self):
        return self.tune_boxes is not None

    def part_rewards(self, credit):
        """What the boxes were worth where they were drawn, and NaN for what is shown.

        Whether to show a box is credited without a baseline, by `alternatives`. Where
        to draw it is credited as `MapReward` credits parts: with what the reward would
        lose without this box, less a baseline. The likelihood leaves out hidden boxes.

        Returns:
            `(batch, n, 2 M)`, in the order of `likelihood`.
        """
        if self.tune_boxes is None:
            return credit.part_rewards
        worth = credit.alternatives[..., 1] - credit.alternatives[..., 0]
        # NaN is no reward: a baseline leaves it out, such as from a moving average.
        return ops.concatenate([worth, ops.full_like(worth, np.nan)], axis=-1)

    def probabilities(self, context):
        """The probability of showing each candidate, `(batch, 1, M)`."""
        shown = ops.sigmoid(self.show_logits(context))
        return ops.where(context["valid"], shown, 0.0)[:, None]

    def likelihood(self, context, samples, choices=(), entropy_gradient=False):
        """As in `Policy`. The entropy is that of showing or hiding."""
        drawn = [self.choices_of(each) for each in (samples, *choices)]
        shown = self.likelihood_shown(context, ops.stack(drawn), entropy_gradient)
        if self.tune_boxes is None:
            return shown
        boxes = ops.stack([each["boxes"] for each in (samples, *choices)])
        log_probs = self.drawn.log_prob(context, boxes)
        # A hidden box was drawn as well, but nobody saw it.
        counted = ops.logical_and(shown.counted, ops.cast(samples["shown"], "bool"))
        of_boxes = of_positions(log_probs, shown.entropy, counted)
        return of_parts([of_boxes, shown])

    def likelihood_shown(self, context, drawn, entropy_gradient):
        """The likelihood of showing or hiding, for `(1 + choices, batch, n, M)`."""
        logits, valid = self.show_logits(context), context["valid"]
        own = logits[:, None]
        log_probs = -ops.softplus(ops.where(ops.cast(drawn, "bool"), -own, own))
        counted = ops.broadcast_to(valid[:, None], ops.shape(drawn)[1:])
        if not entropy_gradient:
            logits = ops.stop_gradient(logits)
        entropies = ops.softplus(logits) - logits * ops.sigmoid(logits)
        entropy = ops.sum(ops.where(valid, entropies, 0.0), axis=1)
        number = ops.sum(ops.cast(valid, "float32"), axis=1)
        return of_positions(
            ops.where(counted, log_probs, 0.0),
            entropy / ops.maximum(number, 1.0),
            counted,
        )

    def choice_probabilities(self, context):
        logits, valid = self.show_logits(context), context["valid"]
        hidden = ops.where(valid, ops.sigmoid(-logits), 1.0)
        return ops.stack([hidden, self.probabilities(context)[:, 0]], axis=-1)

    def number_of_choices(self, context):
        return 2

    def mode(self, context):
        shown = ops.logical_and(context["valid"], context["logits"] > self.offset)
        boxes = {} if self.drawn is None else {"boxes": self.drawn.mode(context)}
        return self.with_choices(boxes, ops.cast(shown, "int32"))

    def decode(self, x, samples, context):
        """The detections of samples, with label -1 for what they hide.

        Args:
            x: the model's inputs.
            samples: `(batch, n, M)`.
            context: what `encode` returned.

        Returns:
            dict of `boxes` `(rows, M, 4)`, `labels`, `scores` and `shown` `(rows, M)`.
        """
        found = repeat_rows(self.detections(context), samples_per_input(samples))
        if self.tune_boxes is not None:
            found["boxes"] = merge_rows(self.drawn.boxes(context, samples["boxes"]))
        shown = ops.cast(merge_rows(self.choices_of(samples)), "bool")
        return self.rewarded({**found, "shown": shown})

    def detections(self, context):
        """All candidates, `(batch, M)`, with label -1 and score 0 for padding."""
        valid = context["valid"]
        scores = ops.stop_gradient(ops.sigmoid(context["logits"]))
        return {
            "boxes": ops.stop_gradient(context["boxes"]),
            "labels": ops.where(valid, context["labels"], -1),
            "scores": ops.where(valid, scores, 0.0),
        }

    def greedy_outputs(self, x, context):
        shown = ops.cast(self.choices_of(self.mode(context)), "bool")
        return {**self.detections(context), "shown": shown}

    def rewarded(self, outputs):
        labels = ops.where(outputs["shown"], outputs["labels"], -1)
        return {**outputs, "labels": labels}

    def get_config(self):
        return {
            "num_candidates": self.num_candidates,
            "threshold": self.threshold,
            "tune_boxes": self.tune_boxes,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config):
        return cls(**config)

    def given(self):
        return {}
