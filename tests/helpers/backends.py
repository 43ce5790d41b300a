"""What a test needs of Keras's backend."""

import keras
import pytest

CAN_TRAIN = keras.config.backend() in ("jax", "tensorflow", "torch")
trains = pytest.mark.skipif(
    not CAN_TRAIN, reason="it trains, which Keras does on jax, tensorflow and torch"
)
