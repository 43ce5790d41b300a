"""What the detection reward costs beside two other ways to compute its like.

100 ground-truth and 100 predicted boxes an image, 10 IoU thresholds, COCO's classes
in COCO's frequencies, jitted JAX on the CPU, against

- the formulation of the code published with Pinto et al. 2023: IoU, masks and matching
  once for each threshold, vmapped over images and jitted;
- pycocotools' `COCOeval`, one image at a time, with the classes in it, all areas as one
  range and up to 100 boxes.
"""

import contextlib
import io

from timing import in_turns

ROWS, BOXES, CLASSES = 64, 100, 80
PENALTY = 0.3
ROUNDS = 15
CALLS = 10  # of ours in a round: one is short
COCO_IMAGES = 4  # of `ROWS`: pycocotools takes its time


def synthetic_boxes(numpy, counts):
    """Boxes of COCO's sizes in images of 640 x 480, and predictions near them.

    Returns:
        `(y_true, y_pred)`: dicts of `boxes` `(ROWS, BOXES, 4)` in `xyxy`, `labels`, and
        `scores` of the predictions.
    """
    generator = numpy.random.default_rng(0)
    shape = (ROWS, BOXES, 2)
    # As in COCO's val2017, where the median box is about 60 pixels wide.
    size = numpy.exp(generator.normal(numpy.log(60.0), 1.2, shape))
    size = numpy.minimum(size, [640.0, 480.0])
    low = generator.random(shape) * ([640.0, 480.0] - size)
    boxes = numpy.concatenate([low, low + size], -1)
    frequency = numpy.array(counts) / sum(counts)
    labels = generator.choice(CLASSES, (ROWS, BOXES), p=frequency)
    jitter = (
        0.1 * numpy.concatenate([size, size], -1) * generator.normal(size=boxes.shape)
    )
    order = generator.integers(0, BOXES, (ROWS, BOXES))  # misses and duplicates
    near = numpy.take_along_axis(boxes + jitter, order[..., None], 1)
    y_true = {"boxes": boxes.astype("float32"), "labels": labels.astype("int32")}
    y_pred = {
        "boxes": near.astype("float32"),
        "labels": numpy.take_along_axis(labels, order, 1).astype("int32"),
        "scores": generator.random((ROWS, BOXES)).astype("float32"),
    }
    return y_true, y_pred


def once_per_threshold(weights, thresholds):
    """The reference in JAX: everything again for each threshold and image."""
    import jax
    import jax.numpy as jnp

    weights = jnp.asarray(weights)

    def overlap(box, other):
        left, top, right, bottom = box
        other_left, other_top, other_right, other_bottom = other
        area = (right - left) * (bottom - top)
        other_area = (other_right - other_left) * (other_bottom - other_top)
        width = jnp.minimum(right, other_right) - jnp.maximum(left, other_left)
        height = jnp.minimum(bottom, other_bottom) - jnp.maximum(top, other_top)
        shared = jnp.maximum(width, 0.0) * jnp.maximum(height, 0.0)
        return shared / (area + other_area - shared + 1e-9)

    pairwise = jax.vmap(jax.vmap(overlap, (None, 0)), (0, None))

    def image_reward(truth, truth_labels, boxes, labels, threshold):
        iou = pairwise(boxes, truth)
        iou = jnp.where(iou > threshold, iou, 0.0)
        iou *= (labels[:, None] >= 0) & (truth_labels[None] >= 0)
        iou *= labels[:, None] == truth_labels[None]
        iou *= jax.nn.one_hot(jnp.argmax(iou, axis=1), iou.shape[1])
        best = jnp.argmax(iou, axis=0)
        matched = jnp.take_along_axis(iou, best[None], axis=0)[0] > 0.0
        is_match = jax.nn.one_hot(best, iou.shape[0], axis=0) * matched[None]
        duplicate = (iou > 0.0) * (1.0 - is_match)
        matches = jnp.sum(matched * weights[truth_labels])
        return matches - PENALTY * jnp.sum(duplicate * weights[labels][:, None])

    @jax.jit
    def reward(y_true, y_pred):
        arguments = (y_true["boxes"], y_true["labels"])
        arguments += (y_pred["boxes"], y_pred["labels"])
        rewards = [
            jax.vmap(lambda *row, t=threshold: image_reward(*row, t))(*arguments)
            for threshold in thresholds
        ]
        return jnp.mean(jnp.stack(rewards), axis=0)

    return reward


def coco_api_images(y_true, y_pred):
    """A function that evaluates `COCO_IMAGES` images one by one with pycocotools."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def dataset(boxes, image):
        annotations = []
        for i in range(BOXES):
            left, top, right, bottom = boxes["boxes"][image, i].tolist()
            width, height = right - left, bottom - top
            annotation = {
                "id": i + 1,
                "image_id": 0,
                "category_id": int(boxes["labels"][image, i]),
                "bbox": [left, top, width, height],
                "area": width * height,
                "iscrowd": 0,
            }
            if "scores" in boxes:
                annotation["score"] = float(boxes["scores"][image, i])
            annotations.append(annotation)
        coco = COCO()
        coco.dataset = {
            "images": [{"id": 0}],
            "categories": [{"id": int(label)} for label in set(boxes["labels"][image])],
            "annotations": annotations,
        }
        coco.createIndex()
        return coco

    with contextlib.redirect_stdout(io.StringIO()):
        images = [
            (dataset(y_true, image), dataset(y_pred, image))
            for image in range(COCO_IMAGES)
        ]

    def evaluate():
        with contextlib.redirect_stdout(io.StringIO()):
            for truth, predictions in images:
                evaluation = COCOeval(truth, predictions, "bbox")
                # No more than the reward counts: boxes of all sizes, up to 100.
                evaluation.params.areaRng = evaluation.params.areaRng[:1]
                evaluation.params.areaRngLbl = evaluation.params.areaRngLbl[:1]
                evaluation.params.maxDets = [BOXES]
                evaluation.evaluate()
                evaluation.accumulate()

    return evaluate


def measure():
    """Rows of (name, reference's name, seconds an item, the reference's, goal)."""
    import jax
    import numpy

    from keras_reward.rewards.coco_classes import COCO_CLASS_COUNTS
    from keras_reward.rewards.detection import MeanAveragePrecisionReward

    reward = MeanAveragePrecisionReward(
        duplicate_penalty=PENALTY, class_counts="coco", bounding_box_format="xyxy"
    )
    y_true, y_pred = synthetic_boxes(numpy, list(COCO_CLASS_COUNTS.values()))
    on_device = jax.device_put((y_true, y_pred))
    evaluate = jax.jit(lambda truth, boxes: reward(truth, boxes))
    published = once_per_threshold(reward.class_weights[:-1], reward.iou_thresholds)
    numpy.testing.assert_allclose(
        evaluate(*on_device), published(*on_device), rtol=1e-4
    )
    coco_api = coco_api_images(y_true, y_pred)

    ours, theirs, coco_api = in_turns(
        [
            lambda: jax.block_until_ready([evaluate(*on_device) for _ in range(CALLS)]),
            lambda: jax.block_until_ready(published(*on_device)),
            coco_api,
        ],
        ROUNDS,
    )
    ours /= CALLS * ROWS
    name = f"detection mAP, {BOXES} x {BOXES} boxes, 10 thresholds"
    return [
        (name, "once per threshold, JAX", ours, theirs / ROWS, 10.0),
        (name, "pycocotools per image", ours, coco_api / COCO_IMAGES, 200.0),
    ]
