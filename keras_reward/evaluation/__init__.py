"""Official metrics of a dataset, and analyses of tuned models."""

from keras_reward.evaluation.boundaries import BoundaryDetection, boundary_detection
from keras_reward.evaluation.cider import Cider, cider
from keras_reward.evaluation.coco_detection import CocoDetection, coco_detection
from keras_reward.evaluation.distribution_figure import findings, plot
from keras_reward.evaluation.panoptic_quality import PanopticQuality, panoptic_quality
from keras_reward.evaluation.progression import (
    Progression,
    plot_progression,
    progression,
)
from keras_reward.evaluation.report import report
from keras_reward.evaluation.reward_distribution import (
    RewardDistribution,
    reward_distribution,
)
