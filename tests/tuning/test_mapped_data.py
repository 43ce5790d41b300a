"""Datasets with a function applied to their batches."""

import numpy as np
import pytest
from tiny import classifier, inputs

from keras_reward import RewardTuning
from keras_reward.tuning.mapped_data import MappedArrays


@pytest.mark.parametrize("shuffle", [False, True])
def test_each_pass_over_arrays_takes_every_row_once(shuffle):
    rows = np.arange(10)
    np.random.seed(1)
    data = MappedArrays((rows, -rows, None), lambda batch: batch, 4, None, shuffle)
    passes = [[data[i] for i in range(data.num_batches)] for _ in range(3)]
    orders = [np.concatenate([x for x, _, _ in batches]) for batches in passes]
    for batches, order in zip(passes, orders, strict=True):
        assert [len(x) for x, _, _ in batches] == [4, 4, 2]
        assert all((x == -y).all() and w is None for x, y, w in batches)
        np.testing.assert_array_equal(np.sort(order), rows)
    assert (orders[0] == orders[1]).all() != shuffle
    assert MappedArrays((rows, None, None), None, steps=3).batch_size == 4
    assert MappedArrays((rows, None, None), None).batch_size == 32


def test_other_models_get_their_data_as_it_is():
    tuned = RewardTuning(classifier(), lambda y_true, y_pred: y_pred)
    x = inputs()
    assert tuned.preprocessed(x) == (x, None, None)
