"""KerasHub's detectors for `object_detection.py`: small, trained by their own loss.

They are built without pretrained weights, for images of 64 pixels with objects of about
20.
"""

import functools

import keras
import numpy as np
import shared
from keras import ops

from keras_reward import (
    ConfidenceLoss,
    DetectionPolicy,
    MaximumLikelihood,
    RewardTuning,
)
from keras_reward.evaluation import CocoDetection

IOU = 0.5  # at which a box has found an object, for F1

# What differs from the settings of sequences.
SETTINGS = {
    "image_size": 64,
    "train_scenes": 4096,
    "held_out_start": 2_000_000,
    "false_positive_penalty": 0.2,  # averaged over all IoUs, so high ones count too
    "num_candidates": 20,  # in an image
    "num_samples": 1,
    "confidence": 0.3,  # weight of the confidence loss, which keeps scores ordered
}
PRESETS = {
    "retinanet": {
        **SETTINGS,
        # The rate falls until the loss of held-out images does not improve any more.
        "likelihood": {"rate": 1e-3, "warmup": 50, "batch": 16, "steps": 3072},
        "tuning": {"rate": 1e-4, "warmup": 50, "last": 0.0, "batch": 16, "steps": 768},
        "own_loss": 100.0,  # weight of the detector's own loss, which holds its boxes
    },
    "dfine": {
        **SETTINGS,
        "own_loss": 1.0,
        "likelihood": {"rate": 1e-3, "warmup": 50, "batch": 16, "steps": 5120},
        "tuning": {"rate": 1e-4, "warmup": 50, "last": 0.0, "batch": 16, "steps": 768},
    },
}


# Models


def build_retinanet(size, num_classes):
    """KerasHub's RetinaNet on a shallow ResNet, with one level of anchors."""
    from keras_hub.layers import AnchorGenerator, NonMaxSuppression
    from keras_hub.models import (
        ResNetBackbone,
        RetinaNetBackbone,
        RetinaNetObjectDetector,
    )

    encoder = ResNetBackbone(
        input_conv_filters=[16, 64],
        input_conv_kernel_sizes=[3, 3],
        stackwise_num_filters=[64, 128],
        stackwise_num_blocks=[1, 1],
        stackwise_num_strides=[1, 2],
        block_type="basic_block",
        image_shape=(size, size, 3),
    )
    levels = {"min_level": 3, "max_level": 3}  # an eighth of the size
    backbone = RetinaNetBackbone(
        encoder, **levels, use_p5=False, image_shape=(size, size, 3)
    )
    return RetinaNetObjectDetector(
        backbone,
        num_classes,
        "xyxy",
        # 16 and 22 pixels, higher than wide
        AnchorGenerator(
            "xyxy", **levels, num_scales=2, aspect_ratios=[1.5], anchor_size=2.0
        ),
        pre_logits_num_conv_layers=0,
        prediction_decoder=NonMaxSuppression("xyxy", from_logits=True),
    )


def build_dfine(size, num_classes):
    """KerasHub's D-FINE with narrow layers and 20 queries."""
    from keras_hub.models import DFineBackbone, DFineObjectDetector, HGNetV2Backbone

    shape, levels, width, queries = (size, size, 3), ["stage2", "stage3"], 64, 20
    encoder = HGNetV2Backbone(
        depths=[1, 1, 1],
        embedding_size=32,
        hidden_sizes=[64, 128, 128],
        stem_channels=[3, 16, 32],
        hidden_act="relu",
        use_learnable_affine_block=False,
        # channels in, between and out, blocks, layers of each, size of kernels
        stackwise_stage_filters=[
            (32, 32, 64, 1, 2, 3),
            (64, 64, 128, 1, 2, 3),
            (128, 64, 128, 1, 2, 3),
        ],
        apply_downsample=[False, True, True],  # from a quarter of the size
        use_lightweight_conv_block=[False, False, False],
        image_shape=shape,
        out_features=levels,
    )
    backbone = DFineBackbone(
        encoder,
        decoder_in_channels=[width, width],
        encoder_hidden_dim=width,
        num_labels=num_classes,
        num_denoising=0,
        learn_initial_query=False,
        num_queries=queries,
        anchor_image_size=(size, size),
        feat_strides=[8, 16],
        num_feature_levels=2,
        hidden_dim=width,
        encoder_in_channels=[128, 128],
        encode_proj_layers=[1],
        num_attention_heads=4,
        encoder_ffn_dim=128,
        num_encoder_layers=1,
        hidden_expansion=0.5,
        depth_multiplier=0.34,
        eval_idx=-1,
        num_decoder_layers=2,
        decoder_attention_heads=4,
        decoder_ffn_dim=128,
        decoder_n_points=[4, 4],
        lqe_hidden_dim=32,
        num_lqe_layers=2,
        out_features=levels,
        image_shape=shape,
    )
    model = DFineObjectDetector(backbone, num_classes, "xyxy")
    model.compute_loss = functools.partial(dfine_loss, model)
    return model


def dfine_loss(model, x, y, y_pred, sample_weight=None, **kwargs):
    """The loss of a D-FINE, image by image.

    KerasHub 0.32 compares the boxes of all images in a batch with those of the first
    image, expects targets relative to the image, and takes padding for objects. Here,
    padding becomes a box as large as the image, of no class.
    """
    height, width = x.shape[1:3]
    boxes = keras.utils.bounding_boxes.convert_format(
        y["boxes"], "xyxy", "rel_center_xywh", height=height, width=width
    )
    whole_image = ops.convert_to_tensor([0.5, 0.5, 1.0, 1.0])
    y = {
        "boxes": ops.where(y["labels"][..., None] < 0, whole_image, boxes),
        "labels": y["labels"],
    }

    def of_one(values):
        truth, predicted = keras.tree.map_structure(lambda value: value[None], values)
        return type(model).compute_loss(model, None, truth, predicted, None)

    return ops.mean(ops.map(of_one, (y, dict(y_pred))))


# Maximum likelihood


def fit_likelihood(task):
    """A detector trained by its own loss, and the losses of each epoch.

    Trains until the loss of held-out images stops improving.
    """
    build = {"retinanet": build_retinanet, "dfine": build_dfine}[task.model]
    model = build(task.preset.image_size, len(task.class_names))
    data, epochs = task.training("likelihood")
    return model, fit_own_loss(model, data, epochs, task.preset.likelihood, task)


def fit_own_loss(model, data, epochs, schedule, task):
    """Trains a detector by its own loss, and returns the losses of each epoch."""
    rate = shared.learning_rate(
        len(data) * epochs, schedule["rate"], schedule["warmup"], last=0.0
    )
    model.compile(keras.optimizers.Adam(rate, global_clipnorm=1.0))
    best = keras.callbacks.EarlyStopping(patience=epochs, restore_best_weights=True)
    # The `fit` of a KerasHub task needs TensorFlow or Grain, and takes no PyDataset.
    history = keras.Model.fit(
        model,
        data,
        validation_data=task.watched,
        epochs=epochs,
        callbacks=[best],
        verbose=2,
    )
    return {name: history.history[name] for name in ("loss", "val_loss")}


# Reward tuning


def tuner(model, task):
    """The detector as a distribution over which of its boxes are shown."""
    preset = task.preset
    if task.model == "dfine":  # a file does not keep it
        model.compute_loss = functools.partial(dfine_loss, model)
    model.compile()  # its own loss
    return RewardTuning(
        model,
        reward=task.reward,
        policy=DetectionPolicy(preset.num_candidates),
        terms=[ConfidenceLoss(preset.confidence), MaximumLikelihood(preset.own_loss)],
        num_samples=preset.num_samples,
        model_training=True,  # batch normalization as in the first stage
        seed=task.seed,
    )


# Results


def measure(model, task):
    """The table's column for a detector, and its boxes in the first images."""
    tuner = task.tuner(model, task.scores[-1])
    images, truth = task.watched
    watched = F1()
    watched.update_state(truth, tuner.predict(images, verbose=0))
    best, coco, f1, shown = watched.best_threshold(), CocoDetection(), F1(), None
    counts, rewards = np.zeros(3), 0.0
    for i in task.test_batches:
        images, truth = task.test[i]
        boxes = tuner.predict_on_batch(images)
        boxes = keras.tree.map_structure(ops.convert_to_numpy, boxes)
        coco.update_state(truth, boxes)
        f1.update_state(truth, boxes)
        boxes["labels"] = np.where(boxes["shown"], boxes["labels"], -1)
        rewards += ops.convert_to_numpy(task.reward(truth, boxes)).sum()
        numbers = [(each["labels"] >= 0).sum() for each in (boxes, truth)]
        counts += [*numbers, len(images)]
        shown = shown or boxes
    result = coco.result()
    return {
        "ar_100": result["ar_100"],
        "map": result["map"],
        "f1": f1.at(0.5),
        "f1, best threshold": f1.at(best),
        "best threshold": best,
        "greedy reward": rewards / counts[-1],
        "boxes an image": counts[0] / counts[-1],
        "objects an image": counts[1] / counts[-1],
    }, shown


class F1:
    """F1 over a dataset, by the threshold of scores; updated like `CocoDetection`."""

    def __init__(self):
        self.scores, self.found, self.objects = [], [], 0

    def update_state(self, truth, boxes):
        self.scores.append(np.where(boxes["labels"] >= 0, boxes["scores"], -1.0))
        self.found.append(find(truth, boxes))
        self.objects += (truth["labels"] >= 0).sum()

    def at(self, threshold):
        shown = np.concatenate(self.scores) > threshold
        found = np.concatenate(self.found)[shown]
        return float(2 * found.sum() / (len(found) + self.objects))

    def best_threshold(self):
        return max(np.linspace(0.02, 0.98, 49), key=self.at)


def find(truth, boxes):
    """Which boxes are the first to find an object, `(rows, M)` bool.

    Args:
        truth: dict of `boxes` `(rows, N, 4)` "xyxy" and `labels` `(rows, N)`.
        boxes: the same of M boxes, the best score first.
    """
    ious = keras.utils.bounding_boxes.compute_iou(
        boxes["boxes"], truth["boxes"], "xyxy"
    )
    same = boxes["labels"][:, :, None] == truth["labels"][:, None]
    ious = ops.convert_to_numpy(ious) * (same & (truth["labels"] >= 0)[:, None])
    found, rows = np.zeros(boxes["labels"].shape, bool), np.arange(len(ious))
    for j in range(found.shape[1]):
        best = ious[:, j].argmax(-1)
        found[:, j] = ious[rows, j, best] >= IOU
        ious[rows[found[:, j]], :, best[found[:, j]]] = 0.0  # found only once
    return found
