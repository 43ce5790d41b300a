"""Several devices give what one gives: `keras.distribution` and `tf.distribute`."""

import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest

pytestmark = pytest.mark.slow

# One process for each number of devices: they are set before a backend starts.
TRAIN = """
import contextlib, os, sys

devices = int(sys.argv[1])
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
import keras
import numpy as np
import test_credit
from test_train_step import GivenNoise, data, match, noise
from tiny import classifier, weights_of

from keras_reward import MeanIoUReward, RewardTuning

scope = contextlib.nullcontext()
if keras.config.backend() == "jax":
    names = [f"cpu:{i}" for i in range(devices)]
    keras.distribution.set_distribution(keras.distribution.DataParallel(devices=names))
else:
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    logical = [tf.config.LogicalDeviceConfiguration()] * devices
    tf.config.set_logical_device_configuration(cpu, logical)
    names = [f"cpu:{i}" for i in range(devices)]
    scope = tf.distribute.MirroredStrategy(names).scope()

x, y = data()
x = {"features": x, "noise": noise(16, 3, 4)}
with scope:
    model = classifier(positions=4)
    tuned = RewardTuning(model, reward=match, policy=GivenNoise(), num_samples=3)
    tuned.compile(keras.optimizers.Adam(0.05))
    tuned.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    # The same with credit by parts.
    x, y = test_credit.data(16)
    x = {"features": x, "noise": noise(16, 1, 4).reshape(16, 1, 2, 2)}
    maps = test_credit.segmenter()
    policy = test_credit.GivenNoise()
    tuned = RewardTuning(maps, MeanIoUReward(3), policy, num_samples=1)
    tuned.compile(keras.optimizers.Adam(0.05))
    tuned.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    assert tuned.by_parts
    np.savez(sys.argv[2], *weights_of(model), *weights_of(maps))
"""


@pytest.mark.skipif(
    keras.config.backend() == "torch", reason="Keras distributes no torch models"
)
def test_two_devices_equal_one(tmp_path):
    runs = []
    for devices in (1, 2):
        path = tmp_path / f"{devices}.npz"
        subprocess.run(
            [sys.executable, "-c", TRAIN, str(devices), str(path)],
            cwd=pathlib.Path(__file__).parent,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            check=True,
            capture_output=True,
        )
        with np.load(path) as weights:
            runs.append([weights[name] for name in weights.files])
    for a, b in zip(*runs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


# A model that is built by the look at the first batch, in and from a strategy.
UNBUILT = """
import tensorflow as tf

cpu = tf.config.list_physical_devices("CPU")[0]
logical = [tf.config.LogicalDeviceConfiguration()] * 2
tf.config.set_logical_device_configuration(cpu, logical)
import keras
from test_first_batch import Softmaxed, class_is_3
from tiny import inputs

from keras_reward import RewardTuning

strategy = tf.distribute.MirroredStrategy(["cpu:0", "cpu:1"])
data = tf.data.Dataset.from_tensor_slices(inputs(8)).batch(4)
for x in (data, strategy.experimental_distribute_dataset(data)):
    with strategy.scope():
        tuned = RewardTuning(Softmaxed(), reward=class_is_3)
        tuned.compile(keras.optimizers.Adam(0.05))
    tuned.fit(x, verbose=0)
    assert isinstance(tuned.model.dense.kernel.value, tf.distribute.DistributedValues)
    assert tuned.policy.from_logits is False
"""


@pytest.mark.skipif(
    keras.config.backend() != "tensorflow", reason="`tf.distribute` is TensorFlow's"
)
def test_a_model_is_built_within_the_strategy():
    subprocess.run(
        [sys.executable, "-c", UNBUILT],
        cwd=pathlib.Path(__file__).parent,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=True,
    )
