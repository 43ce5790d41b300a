"""Ids beyond int32 in the targets of `fit` and `evaluate`, however they arrive."""

import keras
import numpy as np
import pytest
from backends import trains
from keras import ops
from tiny import classifier, inputs

from keras_reward import PanopticQualityReward, RecallReward, RewardTuning
from keras_reward.evaluation import reward_distribution

FAR = 2**32 + 5  # 5, if its upper half is cut off
CROWD = 900_100_448_263  # negative, if it is


class OfTheTargets(PanopticQualityReward):
    """Whatever the model does, it predicts three segments right."""

    def call(self, y_true, y_pred):
        maps = np.ones((1, 3, 2, 2), "int32")
        maps[..., 1] = np.arange(3)[:, None]
        rows = ops.zeros((ops.shape(y_pred)[0], 1, 1, 1), "int32")
        return super().call(y_true, ops.convert_to_tensor(maps) + rows)


def targets(rows=8):
    """Maps of three segments, int64."""
    maps = np.ones((rows, 3, 2, 2), "int64")
    maps[..., 1] = np.array([5, FAR, CROWD])[:, None]
    return maps


class Dataset(keras.utils.PyDataset):
    def __init__(self, x, y):
        super().__init__()
        self.x, self.y = x, y

    def __len__(self):
        return 2

    def __getitem__(self, index):
        rows = slice(4 * index, 4 * index + 4)
        return self.x[rows], self.y[rows]


def tuner(reward):
    tuned = RewardTuning(classifier(positions=1), reward, seed=0)
    tuned.compile(keras.optimizers.SGD(0.0))
    return tuned


@trains
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["arrays", "dataset", "generator"])
def test_instances_are_told_apart(kind):
    x, y = inputs(8), targets()
    tuned = tuner(OfTheTargets(max_segments=4))
    data = {
        "arrays": (x, y),
        "dataset": (Dataset(x, y),),
        "generator": (((x[:4], y[:4]) for _ in range(9)),),
    }[kind]
    sizes = {"steps_per_epoch": 2, "shuffle": False} if kind == "generator" else {}
    validation = (x, y) if kind == "arrays" else Dataset(x, y)
    history = tuned.fit(
        *data, batch_size=4, validation_data=validation, verbose=0, **sizes
    ).history
    assert history["reward"] == pytest.approx([3.0])
    assert history["val_reward"] == pytest.approx([3.0])
    if kind != "generator":
        result = tuned.evaluate(*data, batch_size=4, verbose=0, return_dict=True)
        assert result["reward"] == pytest.approx(3.0)


@trains
@pytest.mark.slow
def test_instances_are_told_apart_in_single_batches_and_samples():
    x, y = inputs(4), targets(4)
    tuned = tuner(OfTheTargets(max_segments=4))
    for method in (tuned.train_on_batch, tuned.test_on_batch):
        assert method(x, y, return_dict=True)["reward"] == pytest.approx(3.0)
    drawn = reward_distribution(tuned, (x, y), 2, batch_size=4, verbose=0)
    np.testing.assert_allclose(drawn.rewards, 3.0)


def boxes(label):
    sides = np.tile(np.array([0, 0, 4, 4], "float32"), (8, 1, 1))
    return {"boxes": sides, "labels": np.full((8, 1), label)}


class OneOfTheTargets(RecallReward):
    """Whatever the model does, it predicts a box of label 5."""

    def call(self, y_true, y_pred):
        rows = ops.zeros((ops.shape(y_pred)[0], 1), "int32")
        sides = ops.convert_to_tensor([[[0.0, 0.0, 4.0, 4.0]]])
        found = {"boxes": sides + ops.cast(rows, "float32")[..., None]}
        return super().call(y_true, {**found, "labels": rows + 5})


@trains
@pytest.mark.slow
def test_labels_are_refused_where_they_can_be_seen():
    tuned = tuner(OneOfTheTargets())
    x, small, large = inputs(8), boxes(5), boxes(FAR)
    history = tuned.fit(x, small, batch_size=4, verbose=0).history
    assert history["reward"] == pytest.approx([1.0])
    for call in (
        lambda: tuned.fit(x, large, batch_size=4, verbose=0),
        lambda: tuned.fit(x, small, validation_data=(x, large), verbose=0),
        lambda: tuned.evaluate(x, large, verbose=0),
        lambda: tuned.train_on_batch(x, large),
        lambda: tuned.test_on_batch(x, large),
    ):
        with pytest.raises(ValueError, match=r"labels must be from.*4294967301 in `y"):
            call()


@trains
def test_a_reward_of_ones_own_gets_ids_whole_or_not_at_all():
    """On JAX, tensors have no room for them; elsewhere 64 bits arrive."""

    def is_far(y_true, y_pred):
        return ops.cast(y_true == FAR, "float32")

    x, y = inputs(8), np.full((8,), FAR)
    for data in ((x, y), (Dataset(x, y),)):
        tuned = tuner(is_far)
        if keras.config.backend() == "jax":
            with pytest.raises(ValueError, match=r"at most 32 bits.*4294967301"):
                tuned.fit(*data, batch_size=4, verbose=0)
        else:
            history = tuned.fit(*data, batch_size=4, verbose=0).history
            assert history["reward"] == [1.0]
