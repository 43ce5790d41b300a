"""The order in which `fit` takes its data: by seed, run and epoch."""

import keras
import numpy as np
import pytest
from tiny import randomize

from keras_reward import HostReward, RewardTuning
from keras_reward.tuning.ordered_data import ArrayBatches, weighted_by_class

ROWS, BATCH = 10, 4
X = np.arange(ROWS, dtype="float32")[:, None]


class Seen:
    """A tuner, and the number of each row that its steps were given, in their order."""

    def __init__(self, seed=5, **compiled):
        self.rows = []
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(3)])
        self.tuned = RewardTuning(
            randomize(model), HostReward(self.look), seed=seed, num_samples=2
        )
        self.tuned.compile("sgd", **compiled)

    def look(self, y_true, y_pred, inputs):
        self.rows.append(np.array(inputs[:, 0], "int64"))
        return np.zeros(len(y_pred))

    def fit(self, x, batch_size=BATCH, **arguments):
        """The rows of each step of a `fit`."""
        self.rows.clear()
        self.tuned.fit(x, batch_size=batch_size, verbose=0, **arguments)
        return [rows[::2].tolist() for rows in self.rows]


def orders(count, *keys):
    """By NumPy alone: an order for each key."""
    return [np.random.default_rng(key).permutation(count) for key in keys]


def batches(*orders, size=BATCH):
    cut = [order[i : i + size] for order in orders for i in range(0, len(order), size)]
    return [np.asarray(rows).tolist() for rows in cut]


def test_rows_of_an_epoch_follow_from_seed_run_and_epoch():
    seen = Seen()
    expected = batches(*orders(ROWS, (5, 0, 0), (5, 0, 1), (5, 0, 2)))
    assert seen.fit(X, epochs=3) == expected
    # Another run has other orders; one that goes on has those that are left.
    assert seen.fit(X) == batches(*orders(ROWS, (5, 1, 0)))
    assert seen.fit(X, initial_epoch=2, epochs=3) == batches(*orders(ROWS, (5, 1, 2)))
    assert Seen().fit(X, initial_epoch=2, epochs=3) == expected[6:]
    assert Seen(seed=6).fit(X) == batches(*orders(ROWS, (6, 0, 0)))


def test_rows_may_stay_in_their_order_or_in_their_batch():
    assert Seen().fit(X, epochs=2, shuffle=False) == batches(X[:, 0], X[:, 0])
    seen = Seen().fit(X, epochs=2, shuffle="batch")
    assert [sorted(rows) for rows in seen] == batches(X[:, 0], X[:, 0])
    starts = [(0, 4), (4, 4), (8, 2)]
    expected = [
        (start + np.random.default_rng((5, 0, 1, i)).permutation(count)).tolist()
        for i, (start, count) in enumerate(starts)
    ]
    assert seen[3:] == expected


def test_the_last_rows_are_held_out():
    seen = Seen()
    seen.fit(X, y=np.zeros(ROWS), validation_split=0.3)
    *trained, held_out = [rows.tolist() for rows in seen.rows]
    assert sorted(np.concatenate(trained)) == sorted([*range(7), *range(7)])
    assert held_out == [7, 8, 9]


def test_a_ready_list_of_callbacks_is_taken():
    seen = Seen()
    given = {"add_history": True, "epochs": 2, "steps": 3}
    callbacks = keras.callbacks.CallbackList(model=seen.tuned, **given)
    expected = batches(*orders(ROWS, (5, 0, 0), (5, 0, 1)))
    assert seen.fit(X, epochs=2, callbacks=callbacks) == expected


def test_epochs_of_fewer_steps_go_on_where_the_last_one_stopped():
    seen = Seen().fit(X, epochs=3, steps_per_epoch=2)
    assert seen == batches(*orders(ROWS, (5, 0, 0), (5, 0, 1)))
    seen = Seen().fit(X, epochs=1, steps_per_epoch=5)
    assert seen == batches(*orders(ROWS, (5, 0, 0), (5, 0, 1)))[:5]
    # Without a batch size, in as many batches as there are steps.
    seen = Seen().fit(X, None, steps_per_epoch=5)
    assert seen == batches(*orders(ROWS, (5, 0, 0)), size=2)


def given(kind, x):
    if kind == "tensor":
        return keras.ops.convert_to_tensor(x)
    return x.astype("float64")


@pytest.mark.parametrize("kind", ["tensor", "float64"])
def test_tensors_and_other_floats_are_taken(kind):
    assert Seen().fit(given(kind, X)) == batches(*orders(ROWS, (5, 0, 0)))


class Recorded(keras.utils.PyDataset):
    """Batches of rows in their order; knows which epochs it was told."""

    def __init__(self, count=3, **workers):
        super().__init__(**workers)
        self.count, self.told = count, []

    def __len__(self):
        return self.count

    def set_epoch(self, epoch):
        self.told.append(epoch)

    def __getitem__(self, index):
        x = X[index * BATCH : (index + 1) * BATCH]
        return x, np.zeros(len(x), "int32")


@pytest.mark.parametrize("workers", [1, 3])
def test_batches_of_a_dataset_follow_from_seed_run_and_epoch(workers):
    data = Recorded(workers=workers)
    cut = batches(X[:, 0])
    expected = [cut[i] for order in orders(3, (5, 0, 0), (5, 0, 1)) for i in order]
    # With compiled metrics, Keras fetches batches before the first epoch.
    assert Seen(metrics=["accuracy"]).fit(data, None, epochs=2) == expected
    assert data.told == [0, 1]
    assert Seen().fit(Recorded(), None, shuffle=False) == cut


class Endless(Recorded):
    num_batches = None

    def __getitem__(self, index):
        return (np.full((2, 1), index, "float32"),)


def test_an_endless_dataset_goes_on_at_the_batch_of_the_epoch():
    arguments = {"steps_per_epoch": 3, "shuffle": False}
    seen = Seen().fit(Endless(), None, epochs=2, **arguments)
    assert [rows[0] for rows in seen] == [0, 1, 2, 3, 4, 5]
    seen = Seen().fit(Endless(), None, initial_epoch=1, epochs=2, **arguments)
    assert [rows[0] for rows in seen] == [3, 4, 5]


def test_batches_have_as_many_rows_as_in_keras():
    rows = np.arange(10)
    assert ArrayBatches((rows, None, None), steps=3).batch_size == 4
    data = ArrayBatches((rows, -rows, None))
    assert data.batch_size == 32 and data.num_batches == 1
    assert data.static_size is None and ArrayBatches((rows,), None, 5).static_size == 5
    (x, y) = ArrayBatches((rows, -rows, None), None, 4)[2]
    assert x.tolist() == [8, 9] and y.tolist() == [-8, -9]
    with pytest.raises(ValueError, match="one row for each input"):
        ArrayBatches((rows, rows[:3], None))


def test_class_weights_become_sample_weights():
    weights = {1: 2.0, 7: 0.5}
    for y in ([0, 1, 7, 1], [[0], [1], [7], [1]], np.eye(8)[[0, 1, 7, 1]]):
        x, own, found = weighted_by_class((X, np.array(y), None), weights)
        assert x is X and found.tolist() == [1.0, 2.0, 0.5, 2.0]
        assert own.shape == np.shape(y)
    for y, weight in ((None, None), ({"a": X}, None), (X, X)):
        with pytest.raises(ValueError, match="`class_weight` needs a `y`"):
            weighted_by_class((X, y, weight), weights)
