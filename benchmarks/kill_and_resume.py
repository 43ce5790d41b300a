"""Whether a run that is killed and resumed ends with the weights of one that is not.

A small classifier with active dropout, tuned on shuffled arrays with a `Checkpoint`
every few steps, a moving average of the weights, gradient accumulation, a moving
average baseline, a `RewardGuard` and `ReduceLROnPlateau`, validated after each epoch.
Its process is killed (SIGKILL) at random moments: in a step, while a checkpoint is
written, during validation. Each next process starts from other random numbers and goes
on from the folder. At the end, all variables and the history are compared with those of
a run that was left alone, bit for bit, in each backend's deterministic mode.

    python benchmarks/kill_and_resume.py --backends jax tensorflow torch --kills 20

Prints a row for each kill: what went on, in which step, and which checkpoint the next
process resumed from. Exits with 1 if a bit differs.

    python benchmarks/kill_and_resume.py --cost --backends jax tensorflow torch

prints the cost of the callback: seconds of as many steps with a checkpoint every 100
steps and without, in turns in one process.
"""

import argparse
import os
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile
import time

BATCH, ROWS, HELD_OUT, FEATURES = 8, 92, 64, 6
POSITIONS, CLASSES = 4, 5
EPOCHS, EVERY_STEPS = 10, 3
KINDS = ("step", "saving", "validating")  # what goes on, as the process says it
JAX_DETERMINISTIC = " --xla_gpu_deterministic_ops=true"  # at its start
WIDTH, COST_STEPS = 512, 300


# The process that is killed.


def deterministic():
    """Turns the backend's deterministic mode on."""
    import keras

    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()
    if keras.config.backend() == "torch":
        import torch

        torch.use_deterministic_algorithms(True)
        torch.manual_seed(random.getrandbits(32))


def make_tuner():
    import keras
    from keras import ops

    from keras_reward import MovingAverageBaseline, RewardTuning

    def share_of_class_3(y_true, y_pred):
        return ops.mean(ops.cast(y_pred == 3, "float32"), axis=-1)

    model = keras.Sequential(
        [
            keras.Input((FEATURES,)),
            keras.layers.Dense(32, activation="relu"),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(POSITIONS * CLASSES),
            keras.layers.Reshape((POSITIONS, CLASSES)),
        ]
    )
    tuned = RewardTuning(
        model,
        reward=share_of_class_3,
        num_samples=4,
        baseline=MovingAverageBaseline(),
        model_training=True,
    )
    optimizer = keras.optimizers.Adam(
        0.003, use_ema=True, ema_momentum=0.9, gradient_accumulation_steps=2
    )
    tuned.compile(optimizer)
    return tuned


def train(folder):
    """Trains, says what goes on, and writes the result to `folder`."""
    folder = pathlib.Path(folder)
    run = folder / "run"
    is_new = not list(run.glob("step_*"))
    # Of all initial weights and seeds; where there is a checkpoint it must not matter.
    random.seed(0 if is_new else time.time_ns())
    import keras
    import numpy as np

    from keras_reward.callbacks import Checkpoint, RewardGuard

    def say(*words):  # in one piece, from two threads
        os.write(1, (" ".join(map(str, words)) + "\n").encode())

    class Said(Checkpoint):
        def write(self, step, arrays, about):
            say("saving", step)
            super().write(step, arrays, about)
            say("saved", step)

    class Saying(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            say("step", self.epoch, batch)

        def on_epoch_begin(self, epoch, logs=None):
            self.epoch = epoch

        def on_test_begin(self, logs=None):
            say("validating", self.epoch)

        def on_test_batch_end(self, batch, logs=None):
            time.sleep(0.005)  # so that it is not over at once

    deterministic()
    tuned = make_tuner()
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, FEATURES)).astype("float32")
    held_out = rng.normal(size=(HELD_OUT, FEATURES)).astype("float32")
    guard = RewardGuard(
        validation_data=(held_out, None), every_steps=7, tolerance=9.0, batch_size=64
    )
    plateau = keras.callbacks.ReduceLROnPlateau("val_reward", 0.5, 1, mode="max")
    checkpoint = Said(run, every_steps=EVERY_STEPS)
    history = tuned.fit(
        x,
        batch_size=BATCH,
        epochs=EPOCHS,
        validation_data=(held_out, None),
        callbacks=[guard, plateau, checkpoint, Saying()],
        verbose=0,
    ).history
    to_numpy = keras.ops.convert_to_numpy
    variables = [*tuned.variables, *tuned.optimizer.variables]
    result = {f"{i:03} {v.path}": to_numpy(v) for i, v in enumerate(variables)}
    result |= {f"history {name}": values for name, values in history.items()}
    result |= {"guard best": guard.best_value, "guard step": guard.best_step}
    result |= {f"guard {i}": v for i, v in enumerate(guard.best_weights)}
    np.savez(folder / "result.npz", **result)
    say("finished", checkpoint.resumed_from)


# The one that kills it.


class Process:
    """A process that trains, and says what goes on.

    Args:
        folder: where to write.
        backend: Keras's backend.
    """

    def __init__(self, folder, backend):
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115, as the process
        environment = {
            **os.environ,
            "KERAS_BACKEND": backend,
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "XLA_FLAGS": os.environ.get("XLA_FLAGS", "") + JAX_DETERMINISTIC,
        }
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--train", str(folder)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )
        self.said = []

    def wait_for(self, kind, count):
        """Waits until it has said something a number of times, or ends."""
        for line in self.process.stdout:
            self.said.append(line.split())
            count -= self.said[-1][0] == kind
            if count <= 0:
                return

    def kill(self):
        self.process.kill()
        self.end()

    def end(self):
        """Waits for its end; the exit status."""
        self.said += [line.split() for line in self.process.stdout]
        return self.process.wait()

    def check(self, status):
        """Raises if it has failed."""
        if status not in (0, -9):
            self.errors.seek(0)
            errors = self.errors.read()
            raise RuntimeError(f"A run failed with {status}:\n{errors[-3000:]}")


def newest(folder):
    """The name of the newest checkpoint."""
    names = sorted(path.name for path in (folder / "run").glob("step_*"))
    return names[-1] if names else "the start"


def compare(backend, kills, seed):
    """Runs it alone and with kills, and prints what happened. Whether all is equal."""
    import numpy as np

    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        alone, killed = pathlib.Path(folder) / "alone", pathlib.Path(folder) / "killed"
        alone.mkdir()
        killed.mkdir()
        process = Process(alone, backend)
        process.check(process.end())
        print(f"{backend}: killed in, at, and resumed from")
        for number in range(kills):
            kind = KINDS[number % len(KINDS)]
            process = Process(killed, backend)
            process.wait_for(kind, 1 if kind == "validating" else rng.randint(1, 4))
            time.sleep(rng.uniform(0.0, 0.01 if kind == "step" else 0.004))
            process.kill()
            process.check(process.process.returncode)
            if process.said[-1][0] == "finished":
                print(f"  only {number} kills: the run has ended")
                break
            steps = [words[1:] for words in process.said if words[0] == "step"]
            place = "epoch {}, batch {}".format(*steps[-1]) if steps else "its start"
            print(f"  {process.said[-1][0]:12}{place:22}{newest(killed)}", flush=True)
        process = Process(killed, backend)
        process.check(process.end())
        with (
            np.load(alone / "result.npz") as one,
            np.load(killed / "result.npz") as two,
        ):
            names = one.files
            missing = set(names) ^ set(two.files)
            differ = [n for n in names if n not in two or not same(one[n], two[n])]
    print(f"{backend}: {len(one) - len(differ)} of {len(one)} arrays are equal")
    for name in [*differ, *missing]:
        print(f"  differs: {name}")
    return not differ and not missing


def same(array, other):
    """Whether two arrays are equal, bit for bit."""
    return array.shape == other.shape and array.tobytes() == other.tobytes()


# What it costs.


def cost(rounds):
    """Prints the seconds of steps with checkpoints and without, in turns."""
    import keras
    import numpy as np
    from keras import ops

    from keras_reward import RewardTuning
    from keras_reward.callbacks import Checkpoint

    def value(y_true, y_pred):
        return ops.mean(ops.cast(y_pred, "float32"), axis=-1)

    layers = [keras.layers.Dense(WIDTH, activation="relu") for _ in range(3)]
    last = [keras.layers.Dense(64 * 16), keras.layers.Reshape((64, 16))]
    model = keras.Sequential([keras.Input((WIDTH,)), *layers, *last])
    tuned = RewardTuning(model, reward=value, num_samples=4, seed=0)
    tuned.compile(keras.optimizers.Adam(1e-4))
    x = np.random.default_rng(0).normal(size=(64 * COST_STEPS, WIDTH))
    x = x.astype("float32")

    def seconds(callbacks):
        begin = time.perf_counter()
        tuned.fit(x, batch_size=64, callbacks=callbacks, verbose=0)
        return time.perf_counter() - begin

    seconds([])
    times = {"without": [], "with": []}
    for _ in range(rounds):
        times["without"].append(seconds([]))
        with tempfile.TemporaryDirectory() as folder:
            times["with"].append(seconds([Checkpoint(folder, every_steps=100)]))
    pairs = zip(times["with"], times["without"], strict=True)
    ratios = sorted(one / other for one, other in pairs)
    medians = {name: statistics.median(held) for name, held in times.items()}
    print(
        f"{keras.config.backend():12}"
        f"{1e3 * medians['without'] / COST_STEPS:8.2f} ms a step"
        f"{1e3 * medians['with'] / COST_STEPS:8.2f} ms with a checkpoint every 100, "
        f"ratio {statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f}), "
        f"{model.count_params()} weights",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--backends", nargs="+", default=["jax", "tensorflow", "torch"])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cost", action="store_true")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--train", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.train:
        train(args.train)
    elif args.cost and len(args.backends) == 1:
        os.environ["KERAS_BACKEND"] = args.backends[0]
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
        cost(args.rounds)
    elif args.cost:  # Keras has one backend in a process
        for backend in args.backends:
            command = [sys.executable, __file__, "--cost", "--backends", backend]
            subprocess.run([*command, "--rounds", str(args.rounds)], check=True)
    else:
        equal = [compare(each, args.kills, args.seed) for each in args.backends]
        sys.exit(0 if all(equal) else 1)


if __name__ == "__main__":
    main()
