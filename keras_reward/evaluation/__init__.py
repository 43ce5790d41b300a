"""The field's own scores of a dataset, from the arrays that rewards see."""

from keras_reward.evaluation.cider import Cider, cider
from keras_reward.evaluation.coco_detection import CocoDetection, coco_detection
from keras_reward.evaluation.panoptic_quality import PanopticQuality, panoptic_quality
