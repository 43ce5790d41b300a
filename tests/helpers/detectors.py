"""A tiny detector in the form of KerasHub's, for tests without KerasHub."""

import keras
import numpy as np
from keras import ops
from tiny import randomize

from keras_reward import Reward

SIZE = 32  # of the image that boxes lie in
# Boxes as xyxy. The last two overlap the first, by IoUs of 0.75 and 0.4.
BOXES = np.array(
    [
        *([0, 0, 16, 8], [16, 0, 32, 16], [0, 16, 16, 32], [16, 16, 30, 32]),
        *([0, 0, 12, 8], [8, 0, 20, 8]),
    ],
    "float32",
)


@keras.saving.register_keras_serializable(package="keras_reward_tests")
class Decoder(keras.layers.Layer):
    """Has the attributes of `keras_hub.layers.NonMaxSuppression`."""

    def __init__(
        self,
        bounding_box_format="xyxy",
        from_logits=True,
        iou_threshold=0.5,
        max_detections=100,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.bounding_box_format = bounding_box_format
        self.from_logits = from_logits
        self.iou_threshold = iou_threshold
        self.max_detections = max_detections


@keras.saving.register_keras_serializable(package="keras_reward_tests")
class TinyDetector(keras.Model):
    """Scores fixed boxes by a linear layer: features `(batch, 2)` to logits."""

    def __init__(self, classes=2, number=6, from_logits=True, moves=False, **kwargs):
        super().__init__(**kwargs)
        self.moves = moves
        self.classes, self.number = classes, number
        self.bounding_box_format = "xyxy"
        self.prediction_decoder = Decoder(from_logits=from_logits)
        activation = None if from_logits else "sigmoid"
        self.dense = keras.layers.Dense(
            number * classes, use_bias=False, activation=activation
        )

    def build(self, shape):
        self.dense.build(shape)
        if self.moves:
            self.shift = self.add_weight(shape=(self.number, 4), name="shift")

    def call(self, x):
        scores = ops.reshape(self.dense(x), (-1, self.number, self.classes))
        shift = self.shift + 0.0 if self.moves else 0.0
        return {"scores": scores, "shift": shift}

    def decode_predictions(self, predictions, images):
        scores = predictions["scores"]
        shape = (ops.shape(images)[0], self.number, 4)
        boxes = ops.convert_to_tensor(BOXES[: self.number]) + predictions["shift"]
        boxes = ops.broadcast_to(boxes, shape)
        return self.prediction_decoder(boxes, scores, images=images)

    def get_config(self):
        sizes = {"classes": self.classes, "number": self.number}
        from_logits = self.prediction_decoder.from_logits
        given = {**sizes, "from_logits": from_logits, "moves": self.moves}
        return {**super().get_config(), **given}


def tiny_detector(seed=0, **arguments):
    model = TinyDetector(**arguments)
    model.build((None, 2))
    return randomize(model, seed, scale=0.8)


@keras.saving.register_keras_serializable(package="keras_reward_tests")
class FewOfClass(Reward):
    """Boxes of the class that the target says, less the square of how many there are.

    What a box is worth depends on the others. Its alternatives are brute force.
    """

    def call(self, y_true, y_pred):
        labels = y_pred["labels"]
        right = ops.sum(ops.cast(labels == y_true["labels"][:, :1], "float32"), axis=1)
        number = ops.sum(ops.cast(labels >= 0, "float32"), axis=1)
        scores = ops.where(labels >= 0, y_pred["scores"], 0.0)
        return right - 0.1 * number**2 + 0.3 * ops.sum(scores, axis=1)

    def alternatives(self, y_true, y_pred, choices):
        (number,) = choices.positions
        chosen = [choices[choice]["labels"] for choice in range(len(choices))]
        worth = []
        for part in range(number):
            here = np.arange(number) == part
            for own in chosen:
                labels = ops.where(here, own, y_pred["labels"])
                worth.append(self.call(y_true, {**y_pred, "labels": labels}))
        worth = ops.stack(worth, axis=1)
        return ops.reshape(worth, (-1, number, len(choices)))


def targets(batch, seed=1):
    """Two boxes an image, the second one padding in every other image."""
    generator = np.random.default_rng(seed)
    places = generator.integers(0, 4, (batch, 2))
    labels = generator.integers(0, 2, (batch, 2))
    labels[::2, 1] = -1
    return {"boxes": BOXES[places], "labels": labels.astype("int32")}


def features(batch, seed=0):
    return np.random.default_rng(seed).normal(size=(batch, 2)).astype("float32")
