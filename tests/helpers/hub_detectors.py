"""Small object detectors of KerasHub and KerasCV with random weights.

Importing this file imports both, and with them TensorFlow.
"""

import keras_hub
import numpy as np

SIZE, CLASSES = 64, 3


def retinanet(preprocessor=None, bounding_box_format="yxyx"):
    encoder = keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 8, 8],
        stackwise_num_blocks=[1, 1, 1],
        stackwise_num_strides=[1, 2, 2],
        block_type="basic_block",
        use_pre_activation=False,
        image_shape=(SIZE, SIZE, 3),
    )
    backbone = keras_hub.models.RetinaNetBackbone(
        encoder, min_level=4, max_level=4, use_p5=False, image_shape=(SIZE, SIZE, 3)
    )
    model = keras_hub.models.RetinaNetObjectDetector(
        backbone,
        CLASSES,
        bounding_box_format=bounding_box_format,
        preprocessor=preprocessor,
        pre_logits_num_conv_layers=1,
    )
    return spread(model)


def retinanet_of_raw_images(bounding_box_format="yxyx"):
    """Takes images of any size with values from 0 to 255."""
    converter = keras_hub.layers.RetinaNetImageConverter(
        image_size=(SIZE, SIZE),
        scale=1 / 255,
        bounding_box_format=bounding_box_format,
    )
    return retinanet(keras_hub.models.RetinaNetObjectDetectorPreprocessor(converter))


def dfine(bounding_box_format="yxyx", decoder_layers=1):
    encoder = keras_hub.models.HGNetV2Backbone(
        stem_channels=[3, 8, 8],
        stackwise_stage_filters=[
            *([8, 8, 16, 1, 1, 3], [16, 8, 32, 1, 1, 3]),
            *([32, 8, 64, 1, 1, 3], [64, 8, 64, 1, 1, 3]),
        ],
        apply_downsample=[False, True, True, True],
        use_lightweight_conv_block=[False] * 4,
        depths=[1, 1, 1, 1],
        hidden_sizes=[16, 32, 64, 64],
        embedding_size=8,
        use_learnable_affine_block=True,
        hidden_act="relu",
        image_shape=(SIZE, SIZE, 3),
        out_features=["stage3", "stage4"],
    )
    backbone = keras_hub.models.DFineBackbone(
        backbone=encoder,
        decoder_in_channels=[16, 16],
        encoder_hidden_dim=16,
        num_denoising=0,
        num_labels=CLASSES,
        hidden_dim=16,
        learn_initial_query=False,
        num_queries=10,
        anchor_image_size=(SIZE, SIZE),
        feat_strides=[16, 32],
        num_feature_levels=2,
        encoder_in_channels=[64, 64],
        encode_proj_layers=[1],
        num_attention_heads=2,
        encoder_ffn_dim=16,
        num_encoder_layers=1,
        hidden_expansion=0.34,
        depth_multiplier=0.5,
        eval_idx=-1,
        num_decoder_layers=decoder_layers,
        decoder_attention_heads=2,
        decoder_ffn_dim=16,
        decoder_n_points=[2, 2],
        lqe_hidden_dim=8,
        num_lqe_layers=2,
        out_features=["stage3", "stage4"],
        image_shape=(SIZE, SIZE, 3),
    )
    return keras_hub.models.DFineObjectDetector(
        backbone, CLASSES, bounding_box_format=bounding_box_format
    )


def keras_cv_retinanet(bounding_box_format="xyxy"):
    import keras_cv

    backbone = keras_cv.models.ResNetBackbone(
        stackwise_filters=[8, 8, 8, 8],
        stackwise_blocks=[1, 1, 1, 1],
        stackwise_strides=[1, 2, 2, 2],
        include_rescaling=False,
        input_shape=(SIZE, SIZE, 3),
    )
    return keras_cv.models.RetinaNet(backbone, CLASSES, bounding_box_format)


def yolo(bounding_box_format="xyxy"):
    import keras_cv

    backbone = keras_cv.models.YOLOV8Backbone(
        stackwise_channels=[8, 8, 8, 8],
        stackwise_depth=[1, 1, 1, 1],
        include_rescaling=False,
        input_shape=(SIZE, SIZE, 3),
    )
    return keras_cv.models.YOLOV8Detector(
        backbone, CLASSES, bounding_box_format, fpn_depth=1
    )


def spread(model):
    """Makes the weights of the heads smaller, so that boxes are near their anchors.

    Else the random weights of KerasHub put them far outside of the image.
    """
    for weight in model.weights:
        if "head" in weight.path:
            scale = 0.03 if "box_head" in weight.path else 0.3
            weight.assign((scale if "kernel" in weight.path else 0.0) * weight)
    return model


def images(batch=4, size=(SIZE, SIZE), seed=0):
    return np.random.default_rng(seed).normal(size=(batch, *size, 3)).astype("float32")


def targets(batch=4, size=SIZE, seed=1):
    """Three boxes an image, of which some are padding."""
    generator = np.random.default_rng(seed)
    corner = generator.uniform(0, 0.6, (batch, 3, 2))
    extent = generator.uniform(0.2, 0.4, (batch, 3, 2))
    labels = generator.integers(0, CLASSES, (batch, 3))
    labels[0] = -1
    labels[1:, 2] = -1
    boxes = size * np.concatenate([corner, corner + extent], axis=-1)
    return {"boxes": boxes.astype("float32"), "labels": labels.astype("int32")}
