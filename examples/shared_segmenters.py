"""The small segmenters of `semantic_segmentation.py`, which return logits."""

import keras
from keras import layers


def build_unet(size, widths, channels):
    """A small U-Net: down to a sixteenth of the size and up again, with shortcuts.

    It works at half the size and less, which is where most of the time would go.
    """

    def conv(x, filters, **arguments):
        x = layers.Conv2D(filters, 3, padding="same", use_bias=False, **arguments)(x)
        x = layers.BatchNormalization(momentum=0.9)(x)
        return layers.Activation("relu")(x)

    image = keras.Input((size, size, 3), name="image")
    x, shortcuts = conv(conv(image, widths[0], strides=2), widths[0]), []
    for width in widths[1:]:
        shortcuts.append(x)
        x = conv(conv(layers.MaxPooling2D(2)(x), width), width)
    for width, shortcut in zip(widths[-2::-1], reversed(shortcuts), strict=True):
        x = layers.Concatenate()([layers.UpSampling2D(2)(x), shortcut])
        x = conv(conv(x, width), width)
    # With a weight for each of four neighbours, tuning for outlines makes dotted masks,
    # which have outlines everywhere. Between smooth logits it cannot.
    x = layers.Conv2D(channels, 1)(x)
    logits = layers.UpSampling2D(2, interpolation="bilinear", name="logits")(x)
    return keras.Model(image, logits)


def build_segformer(size, channels):
    """KerasHub's SegFormer, small and without pretrained weights."""
    from keras_hub.models import MiTBackbone, SegFormerBackbone, SegFormerImageSegmenter

    encoder = MiTBackbone(
        layerwise_depths=[1, 1, 1, 1],
        image_shape=(size, size, 3),
        hidden_dims=[16, 32, 64, 96],
        num_layers=4,
        layerwise_num_heads=[1, 1, 2, 4],
        layerwise_sr_ratios=[4, 2, 1, 1],
        max_drop_path_rate=0.0,
        layerwise_patch_sizes=[3, 3, 3, 3],
        layerwise_strides=[2, 2, 2, 2],
    )
    backbone = SegFormerBackbone(encoder, projection_filters=64)
    segmenter = SegFormerImageSegmenter(backbone, channels, preprocessor=None)
    # A plain model: the `fit` of a task needs TensorFlow or Grain.
    return keras.Model(segmenter.inputs, segmenter.outputs)
