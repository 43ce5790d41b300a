"""What Keras does not promise to keep of how `fit` counts the batches of epochs."""

import keras
import numpy as np
from backends import trains
from keras.src.trainers.data_adapters.py_dataset_adapter import PyDatasetAdapter
from test_keras_private import changed
from tiny import classifier, inputs

from keras_reward.backend.keras_private import (
    Start,
    StartsAtBatch,
    forget_fetched,
    metrics_of_steps,
)

X = inputs(10)
Y = np.zeros((10, 5))


class Model(StartsAtBatch, keras.Sequential):
    pass


class Data(keras.utils.PyDataset):
    """Five batches; knows which were fetched."""

    def __init__(self, first=0, **workers):
        super().__init__(**workers)
        self.first, self.fetched = first, []

    def __len__(self):
        return 5

    def __getitem__(self, index):
        self.fetched.append(index)
        index = min(self.first + index, 4)
        return X[2 * index :][:2], Y[2 * index :][:2]


class Numbers(keras.callbacks.Callback):
    def on_train_begin(self, logs=None):
        self.begun, self.ended = [], []

    def on_train_batch_begin(self, batch, logs=None):
        self.begun.append(batch)

    def on_train_batch_end(self, batch, logs=None):
        self.ended.append(batch)


def fit(start, data, **arguments):
    model = Model(classifier().layers)
    model.compile("sgd", "mse")
    model.starts_at = start
    numbers = Numbers()
    model.fit(data, callbacks=[numbers], shuffle=False, verbose=0, **arguments)
    return numbers


@trains
def test_an_epoch_begins_at_a_batch():
    message = changed("`EpochIterator._enumerate_iterator`, which counts the batches.")
    numbers = fit(Start(3, passed=3), Data(first=3), epochs=2)
    assert numbers.begun == [3, 4, 0, 1, 2, 3, 4], message
    assert numbers.ended == numbers.begun, message
    assert fit(None, Data()).begun == [0, 1, 2, 3, 4]


@trains
def test_batches_are_passed_over():
    message = changed("`EpochIterator._steps_seen`, batches of the pass over the data.")
    given = [(X[i : i + 2], Y[i : i + 2]) for i in range(0, 10, 2)]
    numbers = fit(Start(1, 3, 3), (batch for batch in given), steps_per_epoch=3)
    assert numbers.begun == [1, 2], message


@trains
def test_workers_begin_each_pass_at_its_start():
    message = changed("`PyDatasetAdapter.enqueuer.ready_queue`, what is left over.")
    data = Data(workers=2)
    adapter = PyDatasetAdapter(data)
    forget_fetched(adapter)
    passes = []
    for _ in range(2):
        adapter.on_epoch_begin()
        batches = adapter.get_numpy_iterator()
        passes.append(np.concatenate([next(batches)[0] for _ in range(2)]))
        adapter.on_epoch_end()  # with batches that were fetched and not taken
    np.testing.assert_array_equal(passes, [X[:4], X[:4]], message)


def test_metrics_of_a_step_are_not_those_of_compile():
    message = changed("`Model._compile_metrics`, one of `Model.metrics`.")
    model = classifier()
    model.compile("sgd", "mse", metrics=["mae"])
    assert [metric.name for metric in metrics_of_steps(model)] == ["loss"], message
    assert len(model.metrics) == 2, message
