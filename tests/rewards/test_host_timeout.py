"""A reward on the host that hangs: its rows are late, its workers are replaced."""

import multiprocessing
import threading
import time

import keras
import numpy as np
import pytest
from backends import trains
from host_functions import dies_or_hangs
from tiny import classifier, inputs, to_numpy, weights_of

from keras_reward import HostReward, RewardTuning

HANG = threading.Event()  # which nobody sets


def hangs_on_sevens(y_true, y_pred):
    if 7 in y_true:
        HANG.wait(100)
    return np.ones(len(y_pred))


def threads():
    return {t for t in threading.enumerate() if "work" in t.name}


@pytest.fixture(autouse=True)
def let_go():
    """Ends what hangs at the end of a test."""
    yield
    HANG.set()
    for thread in threads():
        thread.join(0.1)
    HANG.clear()


@pytest.mark.parametrize("workers", [1, 2])
def test_late_rows_have_no_reward(workers):
    reward = HostReward(
        hangs_on_sevens,
        batch_size=2,
        workers=workers,
        timeout=0.3,
        on_timeout="nan",
    )
    y = np.array([0, 7, 1, 1, 7, 2, 3, 3, 0, 0])
    expected = np.array([np.nan, np.nan, 1, 1, np.nan, np.nan, 1, 1, 1, 1])
    for _ in range(2):  # workers that hang are replaced
        scores = to_numpy(reward(y, np.zeros((10, 1))))
        np.testing.assert_array_equal(scores, expected)
    np.testing.assert_array_equal(to_numpy(reward(0 * y, np.zeros((10, 1)))), 1.0)


@pytest.mark.parametrize("workers", [1, 2])
def test_late_rows_are_a_failure_by_default(workers):
    reward = HostReward(hangs_on_sevens, batch_size=2, workers=workers, timeout=0.2)
    message = "'hangs_on_sevens' took longer than its `timeout`.*Received: timeout=0.2"
    with pytest.raises(TimeoutError, match=message) as caught:
        reward(np.arange(10), np.zeros((10, 1)))
    assert "on rows 6 to 7 of 10" in caught.value.__notes__[0]
    reward(np.zeros(10), np.zeros((10, 1)))  # and is over with


def test_the_time_is_that_of_one_call_and_not_of_all():
    def takes_a_moment(y_true, y_pred):
        time.sleep(0.1)
        return np.ones(len(y_pred))

    reward = HostReward(takes_a_moment, batch_size=1, timeout=0.5)
    assert np.isfinite(to_numpy(reward(None, np.zeros((8, 1))))).all()


@trains
@pytest.mark.parametrize("on_timeout", ["nan", "raise"])
def test_a_step_goes_on_without_late_rows(on_timeout):
    reward = HostReward(
        hangs_on_sevens, batch_size=4, timeout=0.3, on_timeout=on_timeout
    )
    tuned = RewardTuning(classifier(), reward=reward, seed=0)
    tuned.compile(keras.optimizers.SGD(0.5))
    before = weights_of(tuned.model)
    y = np.full(8, 7)
    if on_timeout == "raise":
        with pytest.raises(TimeoutError):
            tuned.fit(inputs(8), y, batch_size=8, verbose=0)
    else:
        with pytest.warns(UserWarning, match="NaN or infinite for every sample"):
            logs = tuned.fit(inputs(8), y, batch_size=8, verbose=0).history
        assert logs["no_reward"] == [1.0]
    for one, other in zip(before, weights_of(tuned.model), strict=True):
        np.testing.assert_array_equal(one, other)
    y[2:] = 0
    if on_timeout == "nan":
        history = tuned.fit(inputs(8), y, batch_size=8, shuffle=False, verbose=0)
        assert history.history["no_reward"] == [0.25]  # 4 of 16 rows


@pytest.mark.slow
def test_processes_that_hang_are_killed_and_those_that_died_are_replaced():
    reward = HostReward(
        dies_or_hangs,
        batch_size=1,
        workers=2,
        use_multiprocessing=True,
        timeout=1.0,
        on_timeout="nan",
    )
    others = set(multiprocessing.active_children())
    first = to_numpy(reward(np.zeros(4), np.zeros((4, 1))))
    assert np.isfinite(first).all()
    scores = to_numpy(reward(np.array([7, 0, 7, 0, 0]), np.zeros((5, 1))))
    np.testing.assert_array_equal(np.isfinite(scores), [0, 1, 0, 1, 1])
    own = {p for p in multiprocessing.active_children() if p not in others}
    assert not {p.pid for p in own} & set(first.astype(int))
    with pytest.raises(Exception, match="abruptly"):
        reward(np.array([8]), np.zeros((1, 1)))
    assert np.isfinite(to_numpy(reward(np.zeros(4), np.zeros((4, 1))))).all()
    reward.calls.close()


def test_serialisation():
    reward = HostReward(keras.ops.shape, timeout=2.5, on_timeout="nan")
    config = reward.get_config()
    assert config["timeout"] == 2.5
    assert config["on_timeout"] == "nan"


@pytest.mark.parametrize("timeout", [0, -1.0, float("nan"), float("inf"), "1", True])
def test_bad_timeouts(timeout):
    with pytest.raises(ValueError, match="`timeout` must be a positive number"):
        HostReward(hangs_on_sevens, timeout=timeout)


def test_bad_on_timeout():
    with pytest.raises(ValueError, match=r"`on_timeout` must be one of.*'skip'"):
        HostReward(hangs_on_sevens, timeout=1, on_timeout="skip")
