"""What a reference model costs: a step of `fit` with a `KL` term beside one without.

A model from images to sequences, as in the captioning example, and a factorised one.
The steps take turns, each in a process of its own. A reference model is one more
forward pass; the goal is less than 1.6 times the step without.

    python benchmarks/kl_overhead.py --backends jax tensorflow torch
"""

import argparse
import os

from timing import Worker, race, serve, steps_of_fit

MODELS = ("sequence", "factorised")
REFERENCES = ("none", "copy", "lora_base")
RANK = 4


def make_model(kind, lora):
    """A model, and images to train it on, of which a batch has 16."""
    import keras

    from keras_reward.backend.keras_private import flatten_layers
    from keras_reward.models import VisionEncoderDecoder, VisionTransformer

    if kind == "sequence":
        blocks = {"num_layers": 2, "num_heads": 4, "mlp_dim": 256}
        encoder = VisionTransformer(
            (64, 64, 3), patch_size=16, width=128, stem="conv", **blocks
        )
        model = VisionEncoderDecoder(
            encoder, vocabulary_size=512, max_length=20, end_id=None, **blocks
        )
    else:
        model = keras.Sequential(
            [
                keras.Input((64, 64, 3)),
                keras.layers.Conv2D(64, 3, padding="same", activation="relu"),
                keras.layers.Conv2D(64, 3, strides=2, padding="same"),
                keras.layers.Conv2D(64, 3, padding="same"),
            ]
        )
    if lora:
        for layer in flatten_layers(model):
            if isinstance(layer, (keras.layers.Dense, keras.layers.Conv2D)):
                layer.enable_lora(RANK)
    return model


def step(kind, reference, lora):
    """A function that runs `n` steps of `fit` and returns the seconds of each."""
    import keras
    import numpy
    from keras import ops

    from keras_reward import KL, RewardTuning

    def even(y_true, y_pred):
        axes = tuple(range(1, len(y_pred.shape)))
        return ops.mean(ops.cast(y_pred % 2 == 0, "float32"), axis=axes)

    tuned = RewardTuning(
        make_model(kind, lora),
        reward=even,
        num_samples=8,
        terms=[] if reference == "none" else [KL(reference, 0.1)],
        seed=0,
    )
    tuned.compile(keras.optimizers.Adam(1e-5))

    def images(count):
        shape = (count, 64, 64, 3)
        return numpy.random.default_rng(0).random(shape).astype("float32")

    return steps_of_fit(tuned, images, batch_size=16)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--backends", nargs="+", default=["jax", "tensorflow", "torch"])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        kind, reference, lora = args.worker
        serve(lambda: step(kind, reference, lora == "lora"))
        return
    print(f"{'backend':11} {'model':11} {'reference':10} {'ms':>7} {'ratio':>6}")
    for backend in args.backends:
        for kind in args.models:
            compare(backend, kind, args)


def compare(backend, kind, args):
    """Prints a row for each reference, beside the same model without one."""
    for reference in REFERENCES[1:]:
        lora = "lora" if reference == "lora_base" else "plain"
        workers = {
            name: Worker(["--worker", kind, name, lora], backend)
            for name in ("none", reference)
        }
        medians = race(workers, args.rounds, args.steps)
        for name in medians:
            ratio = medians[name] / medians["none"]
            row = f"{backend:11} {kind:11} {name:10} {1e3 * medians[name]:7.1f}"
            print(f"{row} {ratio:6.2f}{'  (with adapters)' * (lora == 'lora')}")


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    main()
