"""Official scores in the logs of training."""

import keras
import numpy as np
import pytest
from detectors import tiny_detector
from keras import ops
from tiny import inputs, randomize

from keras_reward import (
    CategoricalPolicy,
    FunctionReward,
    GaussianPolicy,
    RecallReward,
    RewardTuning,
)
from keras_reward.callbacks import OfficialMetrics
from keras_reward.evaluation import (
    Cider,
    CocoDetection,
    PanopticQuality,
    cider,
    coco_detection,
    panoptic_quality,
)

IMAGES = 5
generator = np.random.default_rng(0)
CORNERS = generator.uniform(0.0, 2.0, (IMAGES, 2, 2))
BOXES = {
    "boxes": np.concatenate([CORNERS, CORNERS + 4.0], -1).astype("float32"),
    "labels": np.zeros((IMAGES, 2), "int32"),
}
MAPS = np.tile([1, 0], (IMAGES, 4, 2, 1))
CAPTIONS = generator.integers(2, 5, (IMAGES, 3, 6))


def as_boxes(x, samples):
    boxes = ops.reshape(samples[..., :8], (-1, samples.shape[1], 2, 4))
    return {
        "boxes": boxes + ops.convert_to_tensor([1.0, 1.0, 5.0, 5.0]),
        "labels": ops.zeros_like(boxes[..., 0], dtype="int32"),
        "scores": ops.sigmoid(samples[..., 8:]),
    }


def as_map(x, samples):
    """A segment of class 1 with holes of void."""
    labels = ops.reshape(ops.minimum(samples, 1), (-1, samples.shape[1], 4, 2))
    return ops.stack([labels, ops.zeros_like(labels)], axis=-1)


# evaluator, the same score as a function, its name, targets, codec, positions
CASES = {
    "val_map": (CocoDetection, coco_detection, BOXES, as_boxes, 10),
    "val_pq": (PanopticQuality, panoptic_quality, MAPS, as_map, 8),
    "val_cider": (Cider, cider, CAPTIONS, None, 6),
}


def first_of(structure):
    """A reward for any output: the mean of its first array."""
    first = ops.cast(keras.tree.flatten(structure)[0], "float32")
    return ops.mean(ops.reshape(first, (-1, int(np.prod(first.shape[1:])))), axis=-1)


def tuner(codec, positions):
    layers = [keras.Input((3,))]
    if codec is as_boxes:
        policy = GaussianPolicy(codec=codec)
        layers.append(keras.layers.Dense(positions))
    else:
        policy = CategoricalPolicy(codec=codec)
        layers.append(keras.layers.Dense(positions * 5))
        layers.append(keras.layers.Reshape((positions, 5)))
    reward = FunctionReward(lambda y_true, y_pred: first_of(y_pred), name="first")
    model = randomize(keras.Sequential(layers))
    tuned = RewardTuning(model, reward=reward, policy=policy, seed=0)
    tuned.compile(keras.optimizers.SGD(0.01))
    return tuned


@pytest.mark.parametrize("name", CASES)
def test_every_epoch_logs_the_metric_of_the_greedy_outputs(name, tmp_path):
    evaluator, score, y, codec, positions = CASES[name]
    tuned = tuner(codec, positions)
    x = inputs(IMAGES)
    callbacks = [
        OfficialMetrics(evaluator(), (x, y), batch_size=2),
        keras.callbacks.ModelCheckpoint(
            tmp_path / "best.weights.h5",
            monitor=name,
            mode="max",
            save_best_only=True,
            save_weights_only=True,
        ),
    ]
    history = tuned.fit(x, y, epochs=2, verbose=0, callbacks=callbacks).history
    expected = score(y, tuned.predict(x, verbose=0))[name.removeprefix("val_")]
    assert len(history[name]) == 2
    np.testing.assert_allclose(history[name][-1], expected, rtol=1e-6)
    assert 0.0 < expected < 10.0
    assert (tmp_path / "best.weights.h5").exists()
    numbers = {key for key in history if key.startswith("val_")}
    assert all(np.ndim(value) == 0 for key in numbers for value in history[key])


class Batches(keras.utils.PyDataset):
    """`(x, y)` in batches of two."""

    def __init__(self, x, y):
        super().__init__()
        self.x, self.y = x, y

    def __len__(self):
        return -(-len(self.x) // 2)

    def __getitem__(self, i):
        return self.x[2 * i : 2 * i + 2], self.y[2 * i : 2 * i + 2]


class Recorder:
    """An evaluator that keeps what it is given."""

    def reset_state(self):
        self.seen = []

    def update_state(self, y_true, y_pred):
        assert isinstance(y_true, np.ndarray)
        self.seen.append((y_true, y_pred))

    def result(self):
        return {"images": sum(len(y) for y, _ in self.seen)}


@pytest.mark.parametrize("form", ["arrays", "list", "PyDataset", "tensors"])
def test_data_in_any_form_gives_the_same_batches(form):
    x, y = inputs(IMAGES), CAPTIONS
    batches = [(x[:2], y[:2]), (x[2:4], y[2:4]), (x[4:], y[4:])]
    data = {
        "arrays": (x, y),
        "list": batches,
        "PyDataset": Batches(x, y),
        "tensors": [tuple(map(ops.convert_to_tensor, batch)) for batch in batches],
    }[form]
    callback = OfficialMetrics(Recorder(), data, batch_size=2)
    tuned = tuner(None, 6)
    callback.set_model(tuned)
    assert callback.results() == {"images": IMAGES}
    predicted = np.concatenate([out for _, out in callback.evaluator.seen])
    np.testing.assert_array_equal(predicted, tuned.predict(x, verbose=0))
    np.testing.assert_array_equal(
        np.concatenate([target for target, _ in callback.evaluator.seen]), y
    )
    assert [len(target) for target, _ in callback.evaluator.seen] == [2, 2, 1]


def test_boxes_of_another_format_are_refused():
    tuned = RewardTuning(tiny_detector(), RecallReward())  # boxes as xyxy
    with pytest.raises(ValueError, match=r"reads boxes as 'yxyx'.*predicts 'xyxy'"):
        OfficialMetrics(CocoDetection("yxyx"), (None, None)).set_model(tuned)
    OfficialMetrics(CocoDetection(), (None, None)).set_model(tuned)
