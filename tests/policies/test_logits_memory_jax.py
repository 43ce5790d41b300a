"""How much memory a compiled step needs, by JAX's compiler."""

import keras
import numpy as np
import pytest
from jax_steps import temporaries
from keras import ops

from keras_reward import AutoregressivePolicy, RewardTuning
from keras_reward.models import VisionEncoderDecoder, VisionTransformer

pytestmark = pytest.mark.slow

SAMPLES, LENGTH, WORDS, IMAGE = 8, 32, 4096, 8


def bytes_needed(logits_chunk):
    """Temporaries of one training step about one image."""
    sizes = {"num_layers": 1, "num_heads": 2, "mlp_dim": 16}
    encoder = VisionTransformer((IMAGE, IMAGE, 3), patch_size=4, width=16, **sizes)
    model = VisionEncoderDecoder(encoder, WORDS, LENGTH, **sizes)
    tuned = RewardTuning(
        model,
        reward=lambda y_true, y_pred: ops.cast(y_pred[:, 0], "float32"),
        policy=AutoregressivePolicy(logits_chunk=logits_chunk),
        num_samples=SAMPLES,
        seed=0,
    )
    tuned.compile(keras.optimizers.SGD(0.1))
    return temporaries(tuned, np.zeros((1, IMAGE, IMAGE, 3), "float32"))


def test_logits_in_chunks_need_at_most_half_the_memory():
    plain, chunks = bytes_needed(None), bytes_needed(4)
    logits = 4 * SAMPLES * LENGTH * WORDS  # float32, of all tokens of all samples
    assert plain > logits
    assert chunks < 0.5 * plain, (chunks, plain)
