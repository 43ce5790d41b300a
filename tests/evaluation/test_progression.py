"""Reward and metric over a training, against SciPy."""

import keras
import numpy as np
import pytest
from backends import trains
from scipy import stats
from tiny import classifier, inputs

from keras_reward import RewardTuning
from keras_reward.callbacks import OfficialMetrics
from keras_reward.evaluation import plot_progression, progression
from keras_reward.evaluation.progression import rank_correlation, ranks


def test_ranks_and_correlation_equal_scipy_with_ties():
    generator = np.random.default_rng(0)
    for _ in range(20):
        first, second = generator.integers(0, 6, (2, 15)).astype("float64")
        np.testing.assert_allclose(ranks(first), stats.rankdata(first) - 1)
        expected = stats.spearmanr(first, second).statistic
        np.testing.assert_allclose(rank_correlation(first, second), expected)
    assert rank_correlation(np.arange(5), np.arange(5) ** 3) == pytest.approx(1.0)
    assert np.isnan(rank_correlation(np.ones(4), np.arange(4)))
    assert np.isnan(rank_correlation(np.ones(1), np.ones(1)))


class Share:
    """An evaluator: the share of predictions that are class 2."""

    def reset_state(self):
        self.predicted = []

    def update_state(self, y_true, y_pred):
        self.predicted.append(y_pred)

    def result(self):
        return {"share": np.mean(np.concatenate(self.predicted) == 2)}


@trains
def test_a_run_and_the_file_of_its_log_agree(tmp_path):
    def is_two(y_true, y_pred):
        return keras.ops.cast(y_pred == 2, "float32")

    x = inputs(32)
    tuned = RewardTuning(classifier(), reward=is_two, num_samples=4, seed=0)
    tuned.compile(keras.optimizers.Adam(0.1))
    scores = OfficialMetrics(Share(), (x, np.zeros(32)))
    file = keras.callbacks.CSVLogger(tmp_path / "log.csv")
    history = tuned.fit(
        x, validation_data=(x,), epochs=4, callbacks=[scores, file], verbose=0
    )
    result = progression(history, metric="val_share")
    assert result.rank_correlation == pytest.approx(1.0)  # they are the same number
    np.testing.assert_allclose(result.reward, result.metric, rtol=1e-5)
    read = progression(tmp_path / "log.csv", metric="val_share")
    for a, b in zip(read[:4], result[:4], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    figure = plot_progression(result, tmp_path / "progression.png")
    assert (tmp_path / "progression.png").exists()
    lines = [axes.lines[0].get_ydata() for axes in figure.axes]
    np.testing.assert_allclose(lines, [result.reward, result.metric])


def test_epochs_without_both_are_left_out():
    log = {"epoch": [3, 4, 5, 6], "val_reward": [0.1, None, 0.3, 0.2]}
    log["val_cider"] = [1.0, 2.0, float("nan"), 3.0]
    result = progression(log)
    np.testing.assert_array_equal(result.epochs, [3, 6])
    assert result.rank_correlation == pytest.approx(1.0)


def test_a_name_that_is_not_in_the_log():
    with pytest.raises(ValueError, match=r"Known: val_reward\. Received: 'val_map'"):
        progression({"val_reward": [1.0]}, metric="val_map")
