"""What a step of `RewardTuning.fit` costs on an image-to-sequence model.

Beside it, in turns and each in a process of its own: the same step written by hand in
plain JAX, and as a PyTorch user writes it with transformers. Both are scripts with a
dataclass `Config` and `seconds_per_step(config, steps, warmup)`, whose paths are given
as arguments. Without them those columns are left out. Also printed: tokens per second
of `generate` beside sampling without a cache, and beside KerasHub's `CausalLM`: one of
the decoder's size, about single tokens and about prompts as long as the image has
tokens, and one of the size of encoder and decoder together, about single tokens.

    python benchmarks/sequence_step.py --limit limit_jax.py --peer peer_transformers.py

Sizes are those of the scripts' `Config`: `--image 64 --patch 8` and so on. A busy
machine makes PyTorch's threads wait for one another: `--threads 1` gives each process
one.
"""

import argparse
import importlib.util
import os
import sys

from timing import Worker, race, serve, steps_of_fit, timed

SIZES = {
    "image": 128,
    "patch": 16,
    "dim": 256,
    "heads": 4,
    "mlp": 1024,
    "encoder_layers": 4,
    "decoder_layers": 4,
    "vocab": 1024,
    "length": 32,
    "batch": 8,
    "samples": 4,
}


def even_tokens(y_true, y_pred):
    """Share of even tokens: cheap, so that the model is what is timed."""
    from keras import ops

    return ops.mean(ops.cast(y_pred % 2 == 0, "float32"), axis=-1)


def make_model(sizes):
    from keras_reward.models import VisionEncoderDecoder, VisionTransformer

    side = sizes.image
    encoder = VisionTransformer(
        (side, side, 3),
        patch_size=sizes.patch,
        width=sizes.dim,
        num_layers=sizes.encoder_layers,
        num_heads=sizes.heads,
        mlp_dim=sizes.mlp,
    )
    return VisionEncoderDecoder(
        encoder,
        vocabulary_size=sizes.vocab,
        max_length=sizes.length,
        num_layers=sizes.decoder_layers,
        num_heads=sizes.heads,
        mlp_dim=sizes.mlp,
        end_id=None,  # every sequence has all tokens, as in the references
    )


def pictures(sizes, count):
    import numpy

    shape = (count, sizes.image, sizes.image, 3)
    return numpy.random.default_rng(0).normal(size=shape).astype("float32")


def library_step(sizes):
    """A function that runs `n` steps of `fit` and returns the seconds of each."""
    import keras

    from keras_reward import RewardTuning

    keras.config.set_dtype_policy(sizes.dtype)
    tuned = RewardTuning(
        make_model(sizes), reward=even_tokens, num_samples=sizes.samples, seed=0
    )
    jit_compile = {"1": True, "0": "auto"}[os.environ["BENCH_JIT"]]
    tuned.compile(keras.optimizers.Adam(1e-4), jit_compile=jit_compile)

    return steps_of_fit(tuned, lambda count: pictures(sizes, count), sizes.batch)


def script_step(path, sizes):
    """As `library_step`, for a script that times itself."""
    spec = importlib.util.spec_from_file_location("script", path)
    script = importlib.util.module_from_spec(spec)
    sys.modules["script"] = script  # where its dataclass looks for its annotations
    spec.loader.exec_module(script)
    config = script.Config(**{name: getattr(sizes, name) for name in SIZES})
    return lambda steps: [script.seconds_per_step(config, steps=steps, warmup=1)[0]]


def generation(sizes):
    """Sampling 8 sequences for each image."""
    model, images = make_model(sizes), pictures(sizes, sizes.batch)
    return timed(lambda: model.generate(images, num_samples=PER_PROMPT))


def generation_without_cache(sizes):
    """The same by a whole teacher-forced pass for each token."""
    import keras
    from keras import ops

    model = make_model(sizes)
    images = ops.convert_to_tensor(pictures(sizes, sizes.batch))

    class Sampler(keras.Model):
        def call(self, images):
            context = model.encode(images)
            shape = (sizes.batch, PER_PROMPT, sizes.length)
            tokens = ops.zeros(shape, "int32")
            noise = keras.random.uniform(shape, seed=0)

            def step(position, tokens):
                from keras_reward.categorical import draw_tokens

                inputs = ops.pad(tokens[..., :-1], [(0, 0), (0, 0), (1, 0)])
                hidden = model.hidden_states(context, inputs)
                logits = model.logits(ops.take(hidden, position, axis=2))
                number = ops.take(noise, position, axis=2)[..., None]
                chosen = draw_tokens(logits, number)
                here = ops.arange(sizes.length, dtype="int32") == position
                return position + 1, ops.where(here, chosen, tokens)

            start = (ops.zeros((), "int32"), tokens)
            return ops.while_loop(lambda t, _: t < sizes.length, step, start)[1]

    sampler = Sampler()
    sampler.model = model  # whose weights are then arguments, not constants
    return timed(lambda: sampler.predict_on_batch(images))


def gpt2(sizes, prompt, layers=None):
    """A KerasHub GPT-2, by default of the decoder's size, and prompts for it.

    They have `prompt` tokens.
    """
    import keras_hub
    import numpy

    length = prompt + sizes.length
    backbone = keras_hub.models.GPT2Backbone(
        vocabulary_size=sizes.vocab,
        num_layers=layers or sizes.decoder_layers,
        num_heads=sizes.heads,
        hidden_dim=sizes.dim,
        intermediate_dim=sizes.mlp,
        dropout=0.0,
        max_sequence_length=length,
    )
    model = keras_hub.models.GPT2CausalLM(backbone, preprocessor=None)
    model.compile(sampler=keras_hub.samplers.RandomSampler(seed=0))
    prompts = {
        "token_ids": numpy.zeros((sizes.batch, length), "int32"),
        "padding_mask": numpy.arange(length) < numpy.full((sizes.batch, 1), prompt),
    }
    return model, prompts


def generation_by_keras_hub(sizes, prompt, layers=None):
    """`generate` of a GPT-2, with each prompt 8 times in the batch."""
    model, prompts = gpt2(sizes, prompt, layers)
    prompts = {name: value.repeat(PER_PROMPT, 0) for name, value in prompts.items()}
    return timed(lambda: model.generate(prompts, stop_token_ids=None))


def generation_by_policy(sizes, prompt):
    """The same GPT-2 sampled by `CausalLMPolicy`, 8 times for each prompt."""
    import keras

    from keras_reward import CausalLMPolicy

    model, prompts = gpt2(sizes, prompt)
    policy = CausalLMPolicy(max_new_tokens=sizes.length, end_token_ids=[])
    policy.bind(model)

    class Sampler(keras.Model):
        def call(self, prompts):
            return policy.sample(policy.encode(prompts), PER_PROMPT, seed=0)

    sampler = Sampler()
    sampler.model = model  # whose weights are then arguments, not constants
    return timed(lambda: sampler.predict_on_batch(prompts))


def image_tokens(sizes):
    return (sizes.image // sizes.patch) ** 2


PER_PROMPT = 8
KINDS = {
    "step": library_step,
    "limit": lambda sizes: script_step(sizes.limit, sizes),
    "peer": lambda sizes: script_step(sizes.peer, sizes),
    "generate": generation,
    "without cache": generation_without_cache,
    "KerasHub": lambda sizes: generation_by_keras_hub(sizes, image_tokens(sizes)),
    "policy": lambda sizes: generation_by_policy(sizes, image_tokens(sizes)),
    "KerasHub, 1 token": lambda sizes: generation_by_keras_hub(sizes, 1),
    "policy, 1 token": lambda sizes: generation_by_policy(sizes, 1),
    "KerasHub, all layers": lambda sizes: generation_by_keras_hub(
        sizes, 1, sizes.encoder_layers + sizes.decoder_layers
    ),
}
# What samples for prompts as long as the image has tokens, for single tokens, and for
# single tokens with a model of as many layers as encoder and decoder have.
GENERATION = list(KINDS)[list(KINDS).index("generate") :]


def steps_table(sizes, arguments, environment):
    """Times one step everywhere, and prints the ratios to the script in plain JAX."""
    workers = {}
    if sizes.limit:
        workers["plain JAX"] = ("limit", "jax", "0")
    if sizes.peer:
        workers["transformers"] = ("peer", "torch", "0")
    for backend in sizes.backends:
        workers[f"fit, {backend}"] = ("step", backend, "0")
        if backend == "tensorflow":
            workers["fit, tensorflow (XLA)"] = ("step", backend, "1")
    medians = race(
        {
            name: Worker([*arguments, kind], backend, BENCH_JIT=jit, **environment)
            for name, (kind, backend, jit) in workers.items()
        },
        sizes.rounds,
        sizes.steps,
    )
    print(f"\n{'one training step':24} {'ms':>9} {'to plain JAX':>13}")
    for name, seconds in medians.items():
        ratio = seconds / medians["plain JAX"] if sizes.limit else float("nan")
        print(f"{name:24} {1e3 * seconds:9.1f} {ratio:13.2f}")


def generation_table(sizes, arguments, environment):
    """Tokens per second of `generate` and of its references."""
    backend = sizes.backends[0]
    medians = race(
        {
            name: Worker([*arguments, name], backend, BENCH_JIT="0", **environment)
            for name in GENERATION
        },
        sizes.rounds,
        max(1, sizes.steps // 2),
    )
    tokens = sizes.batch * PER_PROMPT * sizes.length
    print(f"\n{f'sampling, {backend}':24} {'tokens/s':>9} {'ours to it':>13}")
    for name, seconds in medians.items():
        ratio = seconds / medians["generate"]
        print(f"{name:24} {tokens / seconds:9.0f} {ratio:13.2f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, default in SIZES.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    parser.add_argument("--limit", help="script with the step in plain JAX")
    parser.add_argument("--peer", help="script with the step in transformers")
    parser.add_argument("--backends", nargs="+", default=["jax", "tensorflow", "torch"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--threads", type=int, help="threads of each process")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--worker", choices=KINDS, help=argparse.SUPPRESS)
    sizes = parser.parse_args()
    if sizes.worker:
        serve(lambda: KINDS[sizes.worker](sizes))
        return
    for option, what in {"limit": "plain JAX", "peer": "transformers"}.items():
        if getattr(sizes, option) is None:
            print(f"Without --{option} SCRIPT the step in {what} is left out.")
    environment = {}
    if sizes.threads:
        environment["OMP_NUM_THREADS"] = str(sizes.threads)
        environment["TF_NUM_INTRAOP_THREADS"] = str(sizes.threads)
        environment["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
    arguments = [*sys.argv[1:], "--worker"]
    steps_table(sizes, arguments, environment)
    generation_table(sizes, arguments, environment)


if __name__ == "__main__":
    main()
