"""Codecs, which convert between the samples of a policy and what a reward sees."""

from keras_reward.codecs.boxes import BoxCodec
from keras_reward.codecs.colors import ColorPalette
from keras_reward.codecs.panoptic import canonical_segments, panoptic_from_logits
from keras_reward.forms.colors import lab_to_rgb, rgb_to_lab, to_gray
