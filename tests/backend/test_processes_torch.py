"""Several processes on PyTorch: each says that it would train alone."""

import concurrent.futures
import multiprocessing

import numpy as np
from tiny import classifier, inputs, weights_of

from keras_reward import RewardTuning

PROCESSES = 2


def reward(y_true, y_pred):
    return y_pred * 1.0


def messages_of(rank, file):
    """What training says in one of `PROCESSES` processes, and whether weights moved."""
    import torch

    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{file}", rank=rank, world_size=PROCESSES
    )
    tuned = RewardTuning(classifier(), reward=reward, seed=0)
    tuned.compile("sgd")
    before = weights_of(tuned.model)
    messages = []
    for method in (tuned.fit, tuned.train_on_batch):
        try:
            method(inputs())
            messages.append("trained")
        except NotImplementedError as refused:
            messages.append(str(refused))
    torch.distributed.destroy_process_group()
    pairs = zip(before, weights_of(tuned.model), strict=True)
    return messages, any(np.any(a != b) for a, b in pairs)


def test_training_in_two_processes_is_refused_before_the_first_step(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(PROCESSES, mp_context=spawn) as pool:
        files = [tmp_path / "store"] * PROCESSES
        for messages, moved in pool.map(messages_of, range(PROCESSES), files):
            assert len(messages) == 2
            for message in messages:
                assert "does not average gradients between processes" in message
                assert message.endswith("Received: world size 2")
            assert not moved


def test_a_group_of_one_process_trains(tmp_path):
    import torch

    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    try:
        tuned = RewardTuning(classifier(), reward=reward, seed=0)
        tuned.compile("sgd")
        assert "reward" in tuned.fit(inputs(), verbose=0).history
    finally:
        torch.distributed.destroy_process_group()
