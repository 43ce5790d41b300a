"""Official metrics of the greedy outputs, after every epoch."""

import keras
import numpy as np

from keras_reward.batches import batches_of
from keras_reward.nests import to_numpy


class OfficialMetrics(keras.callbacks.Callback):
    """Adds official metrics to the logs of every epoch.

    After each epoch, the model predicts the data in batches (`RewardTuning` predicts
    greedy outputs, in the form that rewards see), and an evaluator computes the metrics
    of all of them. They are added to the logs with the prefix `val_` (`val_map`,
    `val_pq`, `val_cider`), for `ModelCheckpoint`, `EarlyStopping` and the history. Put
    this callback before those that read them.

    Args:
        evaluator: from `keras_reward.evaluation`, or any object with `reset_state()`,
            `update_state(y_true, y_pred)` on NumPy arrays, and `result()`, a dict.
        data: `(x, y)` arrays or nests of them, or an iterable of such batches: a
            `keras.utils.PyDataset`, a `tf.data.Dataset`, a PyTorch `DataLoader`, a
            list.
        batch_size: batch size of predictions if `data` is arrays. Default 32.

    Raises:
        ValueError: if the evaluator and the model have boxes of different formats.

    Example:

    ```python
    import keras
    import numpy as np
    from keras_reward import RecallReward, RewardTuning
    from keras_reward.callbacks import OfficialMetrics
    from keras_reward.evaluation import CocoDetection

    class Detector(keras.Model):  # one box an image
        def call(self, x):
            boxes = x[:, None, :4]
            return {
                "boxes": boxes,
                "labels": keras.ops.zeros(keras.ops.shape(boxes)[:2], "int32"),
                "scores": keras.ops.ones(keras.ops.shape(boxes)[:2]),
            }

    boxes = np.array([[0, 0, 20, 20], [5, 5, 30, 40]], "float32")
    y = {"boxes": boxes[:, None], "labels": np.zeros((2, 1), "int32")}
    metrics = OfficialMetrics(CocoDetection(), (boxes, y))
    metrics.set_model(Detector())
    metrics.results()["map"]  # 1.0
    best = keras.callbacks.ModelCheckpoint("best.keras", monitor="val_map", mode="max")
    callbacks = [metrics, best]  # for `fit`
    ```
    """

    def __init__(self, evaluator, data, batch_size=32):
        super().__init__()
        self.evaluator = evaluator
        self.data = data
        self.batch_size = batch_size

    def set_model(self, model):
        super().set_model(model)
        read = getattr(self.evaluator, "bounding_box_format", None)
        policy = getattr(model, "policy", None)
        written = getattr(policy, "bounding_box_format", None)
        if None not in (read, written) and read != written:
            raise ValueError(
                f"The evaluator reads boxes as {read!r}, but the model predicts "
                f"{written!r}. Pass `bounding_box_format={written!r}` to "
                f"{type(self.evaluator).__name__}. "
                f"Received: bounding_box_format={read!r}"
            )

    def on_epoch_end(self, epoch, logs=None):
        for name, value in self.results().items():
            if np.ndim(value) == 0 and not isinstance(value, (dict, str)):
                logs[f"val_{name}"] = float(value)

    def results(self):
        """Predicts the data and returns the evaluator's results: a dict."""
        count, batches = batches_of(self.data, self.batch_size)
        verbose = (self.params or {}).get("verbose", 0)
        bar = keras.utils.Progbar(count, verbose=verbose, unit_name="batch")
        self.evaluator.reset_state()
        for step, (x, y) in enumerate(batches):
            if hasattr(self.model, "preprocessed"):  # which may change targets too
                x, y, _ = self.model.preprocessed(x, y)
                predictions = self.model.predict_preprocessed(x)
            else:
                predictions = self.model.predict_on_batch(x)
            self.evaluator.update_state(y, to_numpy(predictions))
            bar.update(step + 1)
        return self.evaluator.result()
