"""What a step of `RewardTuning.fit` costs beside the same step written by hand.

A factorised colorizer: images of 32x32x3, three convolutions, 256 cells with 64
colours each, batch 64, 8 samples, colorfulness reward, leave-one-out, Adam. The
reference is one jitted JAX function with donated state that does the same and nothing
else. Each backend runs in a process of its own, and all of them take turns with the
reference, so that a busy machine disturbs both alike.

    python benchmarks/step_overhead.py --backends jax tensorflow torch

Prints the ratio of the median step times, and the share of the step that is the
reward: decoding samples to images and evaluating those.
"""

import argparse
import os
import time

from timing import Worker, race, serve, steps_of_fit, timed

IMAGE, GRID, COLORS, WIDTH = 32, 16, 64, 64
BATCH, SAMPLES = 64, 8
LEARNING_RATE = 1e-4


def photographs(numpy, count):
    """Smooth random pictures, `(count, 32, 32, 3)`."""
    generator = numpy.random.default_rng(0)
    coarse = generator.random((count, 4, 4, 3))
    fine = coarse.repeat(8, axis=1).repeat(8, axis=2)
    return (0.8 * fine + 0.2 * generator.random(fine.shape)).astype("float32")


# The library's step.


def library_step(jit_compile, dtype):
    """A function that runs `n` steps of `fit` and returns the seconds of each."""
    import keras
    import numpy

    from keras_reward import CategoricalPolicy, ColorfulnessReward, RewardTuning

    keras.config.set_dtype_policy(dtype)
    model = keras.Sequential(
        [
            keras.Input((IMAGE, IMAGE, 3)),
            keras.layers.Conv2D(WIDTH, 3, padding="same", activation="relu"),
            keras.layers.Conv2D(WIDTH, 3, strides=2, padding="same", activation="relu"),
            keras.layers.Conv2D(COLORS, 3, padding="same"),
        ]
    )
    policy = CategoricalPolicy(codec=benchmark_palette())
    tuned = RewardTuning(
        model, reward=ColorfulnessReward(), policy=policy, num_samples=SAMPLES, seed=0
    )
    tuned.compile(keras.optimizers.Adam(LEARNING_RATE), jit_compile=jit_compile)

    return steps_of_fit(tuned, lambda count: photographs(numpy, count), BATCH)


def benchmark_palette():
    """The library's palette, cut to the 64 colours of the setting."""
    from keras_reward import ColorPalette

    palette = ColorPalette(spacing=18.0)
    palette.colors = palette.colors[:COLORS]
    palette.num_colors = COLORS
    return palette


def library_reward():
    """As `library_step`, for decoding and the reward alone, as one function."""
    import keras
    import numpy

    from keras_reward import CategoricalPolicy, ColorfulnessReward

    policy, reward = CategoricalPolicy(codec=benchmark_palette()), ColorfulnessReward()

    def evaluate(images, samples):
        return reward(None, policy.decode(images, samples))

    if keras.config.backend() == "jax":
        import jax

        evaluate = jax.jit(evaluate)
    elif keras.config.backend() == "tensorflow":
        import tensorflow as tf

        xla = os.environ.get("BENCH_JIT") == "1"
        evaluate = tf.function(evaluate, jit_compile=xla)
    shape = (BATCH, SAMPLES, GRID, GRID)
    samples = numpy.random.default_rng(0).integers(0, COLORS, shape).astype("int32")
    images = keras.ops.convert_to_tensor(photographs(numpy, BATCH))
    samples = keras.ops.convert_to_tensor(samples)

    return timed(lambda: keras.ops.convert_to_numpy(evaluate(images, samples)))


# The same step in plain JAX.


def reference_step():
    """A function that runs `n` steps and returns the seconds of each."""
    import jax
    import numpy

    os.environ["KERAS_BACKEND"] = "jax"
    step, state = make_reference(numpy, jax)

    def run(steps):
        nonlocal state
        images = photographs(numpy, BATCH * steps).reshape(
            steps, BATCH, IMAGE, IMAGE, 3
        )
        times = []
        for batch in images:
            begin = time.perf_counter()
            state, metrics = step(state, batch)
            jax.block_until_ready((state, metrics))
            times.append(time.perf_counter() - begin)
        return times

    return run


def make_reference(numpy, jax):
    """The reference `(state, images) -> (state, metrics)`, jitted, and its state."""
    jnp = jax.numpy
    palette = jnp.asarray(benchmark_palette().colors)
    to_xyz = numpy.array(
        [
            [0.412453, 0.357580, 0.180423],
            [0.212671, 0.715160, 0.072169],
            [0.019334, 0.119193, 0.950227],
        ]
    )
    white = numpy.array([0.95047, 1.0, 1.08883])
    to_rgb = numpy.linalg.inv(to_xyz)
    position = (numpy.arange(IMAGE) + 0.5) * GRID / IMAGE - 0.5
    position = numpy.clip(position, 0, GRID - 1)[:, None]
    resize = numpy.maximum(1 - numpy.abs(position - numpy.arange(GRID)), 0)
    resize = jnp.asarray(resize.astype("float32"))

    def conv(x, weights, stride):
        kernel, bias = weights
        numbers = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), "SAME", dimension_numbers=numbers
        )
        return x + bias

    def forward(params, images):
        x = jax.nn.relu(conv(images, params[0], 1))
        x = jax.nn.relu(conv(x, params[1], 2))
        return conv(x, params[2], 1)

    def power(x, exponent):
        return jnp.exp(exponent * jnp.log(x))

    def linear(rgb):
        curve = power((jnp.maximum(rgb, 0.04045) + 0.055) / 1.055, 2.4)
        return jnp.where(rgb > 0.04045, curve, rgb / 12.92)

    def f(t):
        edge = (6 / 29) ** 3
        root = power(jnp.maximum(t, edge), 1 / 3)
        return jnp.where(t > edge, root, t * (29 / 6) ** 2 / 3 + 4 / 29)

    def inverse_f(t):
        return jnp.where(t > 6 / 29, t * t * t, (t - 4 / 29) * 3 * (6 / 29) ** 2)

    def mix(matrix, planes):
        return [
            sum(float(w) * p for w, p in zip(row, planes, strict=True))
            for row in matrix
        ]

    def paint(images, samples):
        rgb = linear(images)
        y = f(sum(float(w) * rgb[..., i] for i, w in enumerate(to_xyz[1])))[:, None]
        ab = palette[samples]
        a, b = (resize @ ab[..., i] @ resize.T for i in range(2))

        def colors(scale):
            x, z = y + scale * a / 500, y - scale * b / 200
            return mix(to_rgb * white, [inverse_f(v) for v in (x, y, z)])

        def fits(scale):
            r, g, b = colors(scale)
            low = jnp.minimum(jnp.minimum(r, g), b)
            high = jnp.maximum(jnp.maximum(r, g), b)
            return (low >= -2e-4) & (high <= 1 + 2e-4)

        scale = jnp.where(fits(1.0), 1.0, 0.0)
        for step in range(1, 8):
            larger = scale + 2.0**-step
            scale = jnp.where((larger <= 1) & fits(larger), larger, scale)
        planes = [jnp.clip(c, 0, 1) for c in colors(scale)]
        curve = [
            1.055 * power(jnp.maximum(c, 0.0031308), 1 / 2.4) - 0.055 for c in planes
        ]
        rgb = [
            jnp.where(c > 0.0031308, v, c * 12.92)
            for c, v in zip(planes, curve, strict=True)
        ]
        return jnp.stack(rgb, -1)

    def colorfulness(images):
        rgb = linear(images)
        planes = [rgb[..., i] for i in range(3)]
        x, y, z = (f(t) for t in mix(to_xyz / white[:, None], planes))
        a, b = 500 * (x - y), 200 * (y - z)
        vivid = (a * a + b * b > 100).mean((-1, -2), dtype="float32")
        upper, above = b >= 0, [jnp.ones_like(vivid)]
        for k in range(1, 7):
            angle = -numpy.pi + 2 * numpy.pi * k / 7
            side = float(numpy.cos(angle)) * b - float(numpy.sin(angle)) * a > 0
            inside = upper | side if angle < 0 else upper & side
            above.append(inside.mean((-1, -2), dtype="float32"))
        above = jnp.stack([*above, jnp.zeros_like(vivid)], -1)
        p = jnp.maximum(above[..., :-1] - above[..., 1:], 0)
        return vivid, -(p * jnp.log(jnp.maximum(p, 1e-12))).sum(-1)

    def draw(logits, key):
        weights = jnp.exp(logits - logits.max(-1, keepdims=True))
        cumulative = jnp.cumsum(weights, -1)
        shape = (BATCH, GRID, GRID, SAMPLES)
        target = jax.random.uniform(key, shape) * cumulative[..., -1:]
        found, step = jnp.zeros(shape, "int32"), COLORS
        while step:
            last = found + step - 1
            value = jnp.take_along_axis(cumulative, jnp.minimum(last, COLORS - 1), -1)
            found = jnp.where(
                (last < COLORS - 1) & (value <= target), found + step, found
            )
            step //= 2
        return found

    def loss_fn(params, images, key):
        logits = forward(params, images)
        fixed = jax.lax.stop_gradient(logits)
        samples = draw(fixed, key)
        vivid, hues = colorfulness(paint(images, jnp.moveaxis(samples, -1, 1)))
        reward = vivid * hues
        others = (reward.sum(1, keepdims=True) - reward) / (SAMPLES - 1)
        advantage = reward - others
        log_prob = jnp.take_along_axis(logits, samples, -1)
        log_prob = log_prob - jax.nn.logsumexp(logits, -1, keepdims=True)
        loss = -(advantage * log_prob.sum((1, 2))).mean()
        p = jax.nn.softmax(fixed)
        entropy = jax.nn.logsumexp(fixed, -1) - (p * fixed).sum(-1)
        metrics = {
            "reward": reward.mean(),
            "vividness": vivid.mean(),
            "hue_entropy": hues.mean(),
            "reward_std": reward.std(1, ddof=1).mean(),
            "entropy": entropy.mean(),
        }
        return loss, metrics

    def train_step(state, images):
        params, mean, square, count, key = state
        key, use = jax.random.split(key)
        gradients, metrics = jax.grad(loss_fn, has_aux=True)(params, images, use)
        count = count + 1
        mean = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, mean, gradients)
        square = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, square, gradients)
        rate = LEARNING_RATE * jnp.sqrt(1 - 0.999**count) / (1 - 0.9**count)
        params = jax.tree.map(
            lambda p, m, v: p - rate * m / (jnp.sqrt(v) + 1e-7), params, mean, square
        )
        return (params, mean, square, count, key), metrics

    shapes = [(3, 3, 3, WIDTH), (3, 3, WIDTH, WIDTH), (3, 3, WIDTH, COLORS)]
    generator = numpy.random.default_rng(0)
    params = [
        (
            jnp.asarray(generator.normal(0, 0.05, shape).astype("float32")),
            jnp.zeros(shape[-1]),
        )
        for shape in shapes
    ]
    zeros = jax.tree.map(jnp.zeros_like, params)
    state = (params, zeros, jax.tree.map(jnp.copy, zeros), 0.0, jax.random.key(0))
    return jax.jit(train_step, donate_argnums=0), state


# Processes that take turns.


def make_run(kind, jit, dtype):
    """What a worker times."""
    if kind == "reference":
        return reference_step()
    if kind == "reward":
        return library_reward()
    return library_step(True if jit == "1" else "auto", dtype)


def compare(backend, jit, rounds, steps, dtype):
    """Times one backend in turns with the reference, and prints a row."""
    arguments = ["--dtype", dtype, "--worker"]
    flag = {"BENCH_JIT": str(int(jit))}
    workers = {
        "reference": Worker([*arguments, "reference"], "jax"),
        "step": Worker([*arguments, "step"], backend, **flag),
        "reward": Worker([*arguments, "reward"], backend, **flag),
    }
    medians = race(workers, rounds, steps)
    name = f"{backend} (XLA)" if jit else backend
    print(
        f"{name:18} {1e3 * medians['step']:8.1f} ms"
        f" {1e3 * medians['reference']:8.1f} ms"
        f" {medians['step'] / medians['reference']:8.2f}"
        f" {medians['reward'] / medians['step']:10.0%}",
        flush=True,
    )
    return medians


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--backends", nargs="+", default=["jax", "tensorflow", "torch"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        serve(lambda: make_run(args.worker, os.environ.get("BENCH_JIT"), args.dtype))
        return
    print(f"{'backend':18} {'fit':>11} {'plain JAX':>11} {'ratio':>8} {'reward':>10}")
    for backend in args.backends:
        compare(backend, False, args.rounds, args.steps, args.dtype)
        if backend == "tensorflow":
            compare(backend, True, args.rounds, args.steps, args.dtype)


if __name__ == "__main__":
    main()
