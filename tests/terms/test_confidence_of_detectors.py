"""The confidence loss of a detector's scores, against numbers worked out in NumPy."""

import keras
import numpy as np
from detectors import BOXES, features, tiny_detector
from tiny import to_numpy, weights_of

from keras_reward import (
    ConfidenceLoss,
    DetectionPolicy,
    FunctionReward,
    RewardTuning,
)

# By the candidates of `BOXES`: IoU 1 with the first, 0.5 with the second; not above the
# threshold. The fifth lies in the first, with an IoU of 0.75.
TRUTH = {
    "boxes": np.array([[BOXES[0], [16, 0, 32, 8], [0, 0, 1, 1]]] * 2, "float32"),
    "labels": np.array([[0, 0, -1], [1, 1, -1]], "int32"),
}


@FunctionReward
def nothing(y_true, y_pred):
    return 0.0 * y_pred["scores"][:, 0]


def expected_loss(model, x):
    logits = to_numpy(model(x)["scores"]).astype("float64")
    total = 0.0
    for row in range(2):
        best, labels = logits[row].max(-1), logits[row].argmax(-1)
        suppressed = 0 if best[4] > best[0] else 4
        for box in range(6):
            if box == suppressed:
                continue
            iou = {0: 1.0, 4: 0.75}.get(box, 0.0)
            target = iou * (labels[box] == TRUTH["labels"][row, 0])
            p = 1 / (1 + np.exp(-best[box]))
            total -= target * np.log(p) + (1 - target) * np.log(1 - p)
    return total / 2


def test_each_score_learns_the_iou_of_its_box():
    x, model = features(2, seed=3), tiny_detector(seed=1)
    tuned = RewardTuning(
        model,
        nothing,
        DetectionPolicy(6),  # one is padding
        terms=[ConfidenceLoss(0.5)],
        temperature=0.1,  # has no influence on the score
    )
    tuned.compile(keras.optimizers.SGD(0.1))
    losses, before = [], weights_of(model)[0]
    for _ in range(30):
        expected = expected_loss(model, x)
        logs = tuned.train_on_batch(x, TRUTH, return_dict=True)
        tuned.reset_metrics()
        losses.append(float(logs["confidence_loss"]))
        np.testing.assert_allclose(losses[-1], expected, rtol=1e-4)
        np.testing.assert_allclose(logs["loss"], 0.5 * expected, rtol=1e-4)
    assert losses[-1] < 0.8 * losses[0]
    assert np.abs(weights_of(model)[0] - before).max() > 0.01
