"""Datasets of images for `fit`, with boxes, captions and panoptic maps."""

from keras_reward.data.coco import CocoBoxes, CocoCaptions
from keras_reward.data.coco_dataset import CocoDataset
from keras_reward.data.coco_files import coco_files
from keras_reward.data.coco_panoptic import CocoPanoptic
from keras_reward.data.scenes import Scenes
from keras_reward.data.vocabulary import Vocabulary
