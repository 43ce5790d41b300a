"""How much memory `logits_chunk` saves: temporaries of one compiled training step.

One image, 8 samples, 128 tokens, 30,522 words, as JAX's compiler plans them on this
machine's device.

    python benchmarks/logits_memory.py
"""

import os
import pathlib
import sys

os.environ["KERAS_BACKEND"] = "jax"

import keras

sys.path.append(str(pathlib.Path(__file__).parent.parent / "tests" / "helpers"))
from jax_steps import temporaries

from keras_reward import AutoregressivePolicy, RewardTuning
from keras_reward.models import VisionEncoderDecoder, VisionTransformer

SAMPLES, LENGTH, WORDS, WIDTH, IMAGE = 8, 128, 30_522, 64, 32
CHUNKS = (None, 32, 8)


def zero(y_true, y_pred):
    return keras.ops.zeros(keras.ops.shape(y_pred)[:1])


def bytes_needed(logits_chunk):
    """Temporaries of a step about one image."""
    encoder = VisionTransformer((IMAGE, IMAGE, 3), patch_size=8, width=WIDTH)
    model = VisionEncoderDecoder(encoder, WORDS, LENGTH, end_id=1)
    policy = AutoregressivePolicy(logits_chunk=logits_chunk)
    tuned = RewardTuning(model, reward=zero, policy=policy, num_samples=SAMPLES, seed=0)
    tuned.compile(keras.optimizers.SGD(0.1))
    return temporaries(tuned, keras.ops.zeros((1, IMAGE, IMAGE, 3)))


def main():
    print(f"{'logits_chunk':>12} {'temporaries':>12} {'to plain':>9}")
    plain = None
    for logits_chunk in CHUNKS:
        size = bytes_needed(logits_chunk)
        plain = plain or size
        print(
            f"{logits_chunk!s:>12} {size / 2**20:8.0f} MiB {size / plain:9.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
