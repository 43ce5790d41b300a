"""OpenVINO, in a Python of its own: everything imports, and training says no."""

import importlib.util
import os
import subprocess
import sys

import pytest

SCRIPT = """
import keras
import keras_reward
import keras_reward.callbacks, keras_reward.codecs, keras_reward.evaluation
import keras_reward.models, keras_reward.rewards
model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
tuned = keras_reward.RewardTuning(model, reward=keras_reward.LengthReward())
print(keras.config.backend())
try:
    tuned.fit([[0.0, 0.0, 0.0]])
except NotImplementedError as error:
    print(error)
"""


@pytest.mark.slow
def test_it_imports_and_refuses_to_train():
    assert importlib.util.find_spec("openvino"), (
        "This test needs OpenVINO, which is part of the extra `test`: "
        'python -m pip install --constraint constraints.txt --editable ".[test]"'
    )
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, "KERAS_BACKEND": "openvino"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    backend, message = result.stdout.splitlines()
    assert backend == "openvino"
    assert "trains on the Keras backends jax, tensorflow and torch" in message
    assert "'openvino'" in message
