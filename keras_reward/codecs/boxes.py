"""Boxes as token sequences: y0, x0, y1, x1, class and confidence of each box."""

import keras
import numpy as np
from keras import ops

from keras_reward.forms.boxes import corners, find_crowds, standardize_format
from keras_reward.sequences.sequence_model import shift_right

BOX_TOKENS = 6  # y0, x0, y1, x1, class, confidence
CLASS, CONFIDENCE = 4, 5  # their places in a box
MAX_LOGITS = 2**28  # 100 boxes of 2,000 buckets and 91 classes have a million
SCORES = ("confidence", "class", "product", None)


@keras.saving.register_keras_serializable(package="keras_reward")
class BoxCodec:
    """Sets of boxes as sequences of tokens, six for each box.

    A box is written as `y0, x0, y1, x1, class, confidence`. A coordinate is one of
    `num_buckets` equally spaced points from one edge of the image to the other, edges
    included. The confidence is one of two tokens, "wrong" and "right"; the probability
    of "right" is the score of the box. A sequence has `6 * max_boxes` tokens. Unless it
    is full, the end token and then padding follow its last box.

    With `end_id=None`, every sequence has exactly `max_boxes` boxes. The remaining ones
    have the extra class "nothing" and decode to padding. In the ground truth they are
    noise: random boxes whose coordinates have weight 0.

    The vocabulary consists, in this order, of the special ids (from 0 to the largest of
    them), the buckets (the same for all four coordinates), the classes, "nothing" if
    `end_id` is None, "wrong", and "right".

    As the `codec` of an `AutoregressivePolicy`, it also defines the tokens allowed at
    each position (`slot_mask`), and leaves the confidences out of the log-probability
    (`position_mask`): they are trained by a `ConfidenceLoss`, not by the reward. It
    says which box a token belongs to (`part_of_token`), for rewards with `gains`.

    Args:
        num_classes: number of classes; labels are from 0 to `num_classes - 1`.
        image_size: `(height, width)` of the images in pixels, or one int for both.
        max_boxes: maximum number of boxes in an image. Default 100.
        num_buckets: number of possible values of a coordinate. Default 1000. With
            `size + 1`, buckets are the edges of pixels, and whole coordinates are
            exact.
        bounding_box_format: Keras's name of the format of boxes, in pixels or
            relative. Default `"xyxy"`.
        score: what the score of a box is. `"confidence"` (default, as in the paper):
            the probability of the token "right". `"class"`: that of the class token.
            `"product"`: the product of both, which ordered boxes best in our trials: a
            model rates its box given the class that was written, and does not see how
            sure of the class it was. None: boxes have no scores.
        start_id: id that a decoder gets before the first token. Default 0.
        end_id: id of the end token. Default 1. None: see above.
        pad_id: id of padding. Default 0.

    Attributes:
        vocabulary_size: number of token ids.
        max_length: `6 * max_boxes`, the number of tokens in a sequence.
        slot_mask: NumPy bool `(max_length, vocabulary_size)`, tokens allowed at each
            position: those of its kind, and at the first position of a box also the
            end token.
        position_mask: NumPy bool `(max_length,)`, False at confidences.
        part_of_token: NumPy int `(max_length,)`, the number of the box that each token
            belongs to.
        uses_token_probs: whether `decode` computes scores from token probabilities.

    Example:

    ```python
    import numpy as np
    from keras_reward import BoxCodec

    codec = BoxCodec(num_classes=3, image_size=64, max_boxes=2, num_buckets=65)
    targets = {
        "boxes": np.array([[[8, 16, 24, 40], [0, 0, 0, 0]]], "float32"),  # xyxy
        "labels": np.array([[2, -1]]),
    }
    tokens, weights = codec.encode(targets, seed=0)  # (1, 12) each
    boxes = codec.decode(None, tokens[:, None])
    boxes["boxes"][0, 0, 0], boxes["labels"]  # [8, 16, 24, 40], [[[2, -1]]]
    ```

    Reference: Pinto et al. 2023, "Tuning computer vision models with task rewards",
    section 4.2; Chen et al. 2022, "Pix2seq: A Language Modeling Framework for Object
    Detection", the source of the random order and the noise boxes.
    """

    def __init__(
        self,
        num_classes,
        image_size,
        max_boxes=100,
        num_buckets=1000,
        bounding_box_format="xyxy",
        score="confidence",
        start_id=0,
        end_id=1,
        pad_id=0,
    ):
        if num_classes < 1 or max_boxes < 1 or num_buckets < 2:
            raise ValueError(
                "BoxCodec needs at least one class, one box and two buckets. Received: "
                f"num_classes={num_classes}, max_boxes={max_boxes}, "
                f"num_buckets={num_buckets}"
            )
        tokens = num_classes + num_buckets
        if not BOX_TOKENS * max_boxes * tokens <= MAX_LOGITS:  # NaN is not
            raise ValueError(
                "A BoxCodec knows which of its tokens may come at which position, of "
                f"at most {MAX_LOGITS} pairs: choose fewer boxes, buckets or classes. "
                f"Received: num_classes={num_classes}, max_boxes={max_boxes}, "
                f"num_buckets={num_buckets}"
            )
        if score not in SCORES:
            raise ValueError(f"`score` must be one of {SCORES}. Received: {score!r}")
        if end_id is not None and end_id in (start_id, pad_id):
            raise ValueError(
                "The end token must have an id of its own. Received: "
                f"start_id={start_id}, end_id={end_id}, pad_id={pad_id}"
            )
        self.num_classes = num_classes
        self.image_size = image_size
        self.max_boxes = max_boxes
        self.num_buckets = num_buckets
        self.bounding_box_format = standardize_format(bounding_box_format)
        self.score = score
        self.uses_token_probs = score is not None
        self.start_id, self.end_id, self.pad_id = start_id, end_id, pad_id

        self.first_bucket = 1 + max(start_id, pad_id, end_id or 0)
        self.first_class = self.first_bucket + num_buckets
        self.wrong_id = self.first_class + num_classes + (end_id is None)
        self.right_id = self.wrong_id + 1
        self.vocabulary_size = self.right_id + 1
        self.max_length = BOX_TOKENS * max_boxes

    @property
    def slot_mask(self):
        box = np.zeros((BOX_TOKENS, self.vocabulary_size), "bool")
        box[:CLASS, self.first_bucket : self.first_class] = True
        box[CLASS, self.first_class : self.wrong_id] = True
        box[CONFIDENCE, self.wrong_id :] = True
        if self.end_id is not None:
            box[0, self.end_id] = True
        return np.tile(box, (self.max_boxes, 1))

    @property
    def position_mask(self):
        return np.arange(self.max_length) % BOX_TOKENS != CONFIDENCE

    @property
    def part_of_token(self):
        return np.arange(self.max_length) // BOX_TOKENS

    # From boxes to tokens, on the host.

    def encode(self, targets, seed=None):
        """Tokens of the ground truth, with the boxes of each image in random order.

        Boxes are clipped to the image. Padding, crowds, and boxes that are empty,
        inverted, not finite or outside the image are left out. If an image has more
        than `max_boxes` boxes, a random choice of that many is kept. A side shorter
        than a bucket becomes one bucket long.

        Confidences are random, so that the model gets both tokens as inputs, and have
        weight 0, since the ground truth does not determine them.

        Args:
            targets: dict of NumPy arrays: `boxes` `(batch, N, 4)`, `labels`
                `(batch, N)`, negative for padding, and optionally `is_crowd` or
                `iscrowd` `(batch, N)`.
            seed: int or `numpy.random.Generator`. Default: random.

        Returns:
            Two NumPy arrays `(batch, max_length)`: int32 token ids, and float32
            weights, 1 at tokens that a model should learn.
        """
        rng = np.random.default_rng(seed)
        labels = np.asarray(targets["labels"])
        if labels.size and labels.max() >= self.num_classes:  # before a cast cuts it
            raise ValueError(
                f"Labels must be below {self.num_classes}, the number of classes, and "
                f"negative for padding. Received: {labels.max()}"
            )
        labels = labels.astype("int64")
        buckets, usable = self.quantize(np.asarray(targets["boxes"], "float64"))
        crowds = find_crowds(targets)
        usable &= (labels >= 0) & ~np.asarray(False if crowds is None else crowds, bool)
        tokens = np.full((len(labels), self.max_length), self.pad_id, "int32")
        weights = np.zeros(tokens.shape, "float32")
        for row, kept in enumerate(usable):
            chosen = rng.permutation(np.flatnonzero(kept))[: self.max_boxes]
            boxes = np.empty((len(chosen), BOX_TOKENS), "int32")
            boxes[:, :CLASS] = self.first_bucket + buckets[row, chosen]
            boxes[:, CLASS] = self.first_class + labels[row, chosen]
            learned = np.ones(boxes.shape, "float32")
            if self.end_id is None:
                noise = self.noise(self.max_boxes - len(chosen), rng)
                boxes = np.concatenate([boxes, noise])
                learned = np.concatenate([learned, np.zeros(noise.shape, "float32")])
                learned[:, CLASS] = 1.0
            boxes[:, CONFIDENCE] = rng.integers(
                self.wrong_id, self.vocabulary_size, len(boxes)
            )
            learned[:, CONFIDENCE] = 0.0
            tokens[row, : boxes.size] = boxes.ravel()
            weights[row, : boxes.size] = learned.ravel()
            if self.end_id is not None and boxes.size < self.max_length:
                tokens[row, boxes.size] = self.end_id
                weights[row, boxes.size] = 1.0
        return tokens, weights

    def quantize(self, boxes):
        """Buckets y0, x0, y1, x1 of boxes `(..., 4)`, and which boxes are not empty."""
        left, top, right, bottom = corners(boxes, self.bounding_box_format)
        height, width = self.unit
        with np.errstate(invalid="ignore"):
            sides = np.stack(
                [top / height, left / width, bottom / height, right / width]
            )
            sides = np.clip(sides, 0.0, 1.0)
            usable = (sides[2] > sides[0]) & (sides[3] > sides[1])
        usable &= np.isfinite(boxes).all(axis=-1)
        sides = np.where(usable, sides, 0.0)
        last = self.num_buckets - 1
        low, high = np.split(np.rint(sides * last).astype("int64"), 2)
        low = np.minimum(low, last - 1)
        high = np.maximum(high, low + 1)
        return np.moveaxis(np.concatenate([low, high]), 0, -1), usable

    def noise(self, count, rng):
        """Tokens of random boxes of the class "nothing", `(count, 6)`."""
        buckets = rng.integers(self.num_buckets, size=(count, 2, 2))
        boxes = np.empty((count, BOX_TOKENS), "int32")
        boxes[:, :CLASS] = self.first_bucket + np.sort(buckets, 1).reshape(-1, CLASS)
        boxes[:, CLASS] = self.first_class + self.num_classes
        return boxes

    def preprocess(self, images, targets, seed=None):
        """The data for the maximum likelihood training of a sequence model.

        Args:
            images: `(batch, height, width, channels)`.
            targets, seed: as for `encode`.

        Returns:
            `(x, y, sample_weight)` for `fit`: `x` is a dict of `images` and
            `token_ids`, the start token and all tokens except the last one.
        """
        tokens, weights = self.encode(targets, seed)
        token_ids = shift_right(np, tokens, self.start_id)
        return {"images": images, "token_ids": token_ids}, tokens, weights

    # From tokens to boxes, traced.

    def decode(self, inputs, samples, token_probs=None):
        """Decodes token sequences to boxes.

        Any ids are accepted. A box with a token of the wrong kind becomes padding, and
        so do boxes that are empty or inverted, or that include or follow the first end
        token. A malformed box does not affect the boxes after it.

        Args:
            inputs: not used; the images, as a policy passes them.
            samples: `(batch, n, max_length)` int token ids.
            token_probs: `(batch, n, max_length)`, the probability of each of these
                tokens among those allowed at its position. Default None.

        Returns:
            dict of `boxes` `(batch, n, max_boxes, 4)` float32 in the codec's format,
            `labels` `(batch, n, max_boxes)` int32, -1 for padding, and, with
            `token_probs` and unless `score` is None, `scores` `(batch, n, max_boxes)`
            float32 in [0, 1], 0 for padding.
        """
        tokens = self.split(ops.cast(samples, "int32"))
        buckets = tokens[..., :CLASS] - self.first_bucket
        labels = tokens[..., CLASS] - self.first_class
        in_range = ops.logical_and(buckets >= 0, buckets < self.num_buckets)
        facts = [
            ops.all(in_range, axis=-1),
            buckets[..., 2] > buckets[..., 0],
            buckets[..., 3] > buckets[..., 1],
            ops.logical_and(labels >= 0, labels < self.num_classes),
            tokens[..., CONFIDENCE] >= self.wrong_id,
            tokens[..., CONFIDENCE] <= self.right_id,
        ]
        if self.end_id is not None:
            ends = ops.cast(ops.any(tokens == self.end_id, axis=-1), "int32")
            facts.append(ops.cumsum(ends, axis=-1) == 0)
        valid = ops.all(ops.stack(facts), axis=0)
        boxes = self.coordinates(ops.cast(buckets, "float32"))
        decoded = {
            "boxes": ops.where(valid[..., None], boxes, 0.0),
            "labels": ops.where(valid, labels, -1),
        }
        if token_probs is not None and self.uses_token_probs:
            scores = self.scores(tokens, self.split(token_probs))
            decoded["scores"] = ops.where(valid, scores, 0.0)
        return decoded

    def split(self, tokens):
        """`(batch, n, max_length, ...)` to `(batch, n, max_boxes, 6)`."""
        tokens = ops.convert_to_tensor(tokens)
        if len(tokens.shape) != 3 or tokens.shape[-1] not in (None, self.max_length):
            raise ValueError(
                f"BoxCodec decodes sequences of {self.max_length} tokens, (batch, n, "
                f"{self.max_length}). Received: shape {tuple(tokens.shape)}"
            )
        lead = ops.shape(tokens)[:2]
        return ops.reshape(tokens, (*lead, self.max_boxes, BOX_TOKENS))

    def coordinates(self, buckets):
        """Boxes `(..., 4)` in the codec's format from float buckets y0, x0, y1, x1."""
        height, width = (size / (self.num_buckets - 1) for size in self.unit)
        top, left = buckets[..., 0] * height, buckets[..., 1] * width
        bottom, right = buckets[..., 2] * height, buckets[..., 3] * width
        layout = self.bounding_box_format.removeprefix("rel_")
        if layout == "yxyx":
            sides = (top, left, bottom, right)
        elif layout == "xyxy":
            sides = (left, top, right, bottom)
        elif layout == "xywh":
            sides = (left, top, right - left, bottom - top)
        else:
            x, y = 0.5 * (left + right), 0.5 * (top + bottom)
            sides = (x, y, right - left, bottom - top)
            if layout == "center_yxhw":
                sides = (y, x, bottom - top, right - left)
        return ops.stack(sides, axis=-1)

    def scores(self, tokens, token_probs):
        """Scores `(batch, n, max_boxes)`. The probabilities of the two confidence
        tokens sum to 1, so either gives the other."""
        token_probs = ops.cast(token_probs, "float32")
        if self.score == "class":
            return token_probs[..., CLASS]
        written = token_probs[..., CONFIDENCE]
        is_right = tokens[..., CONFIDENCE] == self.right_id
        confidence = ops.where(is_right, written, 1.0 - written)
        if self.score == "product":
            return confidence * token_probs[..., CLASS]
        return confidence

    @property
    def unit(self):
        """Height and width of the image in the units of its boxes."""
        if self.bounding_box_format.startswith("rel_"):
            return 1.0, 1.0
        size = self.image_size
        return (size, size) if isinstance(size, int) else tuple(size)

    def get_config(self):
        return {
            "num_classes": self.num_classes,
            "image_size": self.image_size,
            "max_boxes": self.max_boxes,
            "num_buckets": self.num_buckets,
            "bounding_box_format": self.bounding_box_format,
            "score": self.score,
            "start_id": self.start_id,
            "end_id": self.end_id,
            "pad_id": self.pad_id,
        }

    @classmethod
    def from_config(cls, config):
        return cls(**config)
