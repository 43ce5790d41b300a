"""A thousand malformed inputs of all rewards and readers: see `benchmarks/fuzz.py`.

All of them on PyTorch, which is fastest without compiling, and a fifth elsewhere.
"""

import collections
import time

import fuzz_readers
import fuzz_rewards
import keras
import pytest
from backends import CAN_TRAIN

SEEDS = (3, 4, 5, 6, 7) if keras.backend.backend() == "torch" else (3,)


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_rewards_refuse_or_rate_what_is_malformed(seed):
    kinds, faults = collections.Counter(), []

    def report(kind, fault, name, given):
        kinds[kind] += 1
        if fault:
            faults.append((name, fault, given))

    fuzz_rewards.run(100, seed, report)
    assert not faults
    assert kinds["ValueError"] > 50 and kinds["reward"] > 10


@pytest.mark.skipif(not CAN_TRAIN, reason="reads what models are trained with")
@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_readers_refuse_or_count_what_is_malformed(tmp_path, seed):
    pytest.importorskip("pycocotools")
    kinds, faults = collections.Counter(), []

    def report(number, name, kind, fault):
        kinds[kind] += 1
        if fault:
            faults.append((number, name, fault))

    fuzz_readers.run(str(tmp_path), 0, 100, seed, report, time.process_time)
    assert not faults
    assert kinds["ValueError"] > 20 and kinds["counted problem"] > 10
    assert kinds["read"] + kinds["made"] > 0


def test_a_reward_that_broadcasts_is_found():
    """As the fuzz must, to be worth something."""
    _, y_true, y_pred = fuzz_rewards.REWARDS["mean_iou"]
    result = fuzz_rewards.reward_of("mean_iou")(y_true, y_pred)
    given = "mean_iou", y_true[:1], y_pred, result
    assert "broadcast" in fuzz_rewards.fault_of_result(*given)[1]
    given = "mean_iou", y_true, y_pred, result * float("nan")
    assert "not documented" in fuzz_rewards.fault_of_result(*given)[1]
    for error in (IndexError("list"), ValueError("Received: nothing")):
        assert fuzz_rewards.fault_of_error(error.with_traceback(raised().__traceback__))


def raised():
    try:
        raise KeyError
    except KeyError as error:
        return error
