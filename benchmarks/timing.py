"""Timing of functions and of whole processes side by side.

They take turns, so that whatever slows the machine for a while slows all of them.
"""

import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import time


def in_turns(functions, rounds):
    """Median seconds of each function, called in turns after a call to warm up.

    Args:
        functions: list of functions without arguments, which return when they are
            done.
        rounds: how often each one is timed.
    """
    seconds = [[] for _ in functions]
    for function in functions:
        function()
    for _ in range(rounds):
        for function, times in zip(functions, seconds, strict=True):
            begin = time.perf_counter()
            function()
            times.append(time.perf_counter() - begin)
    return [statistics.median(times) for times in seconds]


def timed(function):
    """A function that runs `function` n times and returns the seconds of each."""

    def run(steps):
        times = []
        for _ in range(steps):
            begin = time.perf_counter()
            function()
            times.append(time.perf_counter() - begin)
        return times

    return run


def steps_of_fit(tuned, make_images, batch_size):
    """A function that runs `n` steps of `fit` and returns the seconds of each.

    Args:
        tuned: a compiled Keras model.
        make_images: returns as many images as it is asked for, or a tuple of images
            and targets.
        batch_size: images in a step.
    """
    import keras

    class Times(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            ends.append(time.perf_counter())

    ends = []

    def run(steps):
        ends.clear()
        # One step more: seconds are those from the end of one to the end of the next.
        data = make_images(batch_size * (steps + 1))
        tuned.fit(
            *(data if isinstance(data, tuple) else (data,)),
            batch_size=batch_size,
            callbacks=[Times()],
            shuffle=False,
            verbose=0,
        )
        return [after - before for before, after in itertools.pairwise(ends)]

    return run


def serve(make_run):
    """Answers each line `n` on standard input with the seconds of `n` runs.

    Args:
        make_run: returns a function from `n` to a list of seconds.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print does not belong to the answers
    run = make_run()
    for line in sys.stdin:
        answers.write(json.dumps(run(int(line))) + "\n")
        answers.flush()


class Worker:
    """A process that serves, on one backend.

    Args:
        arguments: command line of the script that is running, which must `serve`.
        backend: Keras's backend.
        environment: more environment variables.
    """

    def __init__(self, arguments, backend, **environment):
        self.process = subprocess.Popen(
            [sys.executable, sys.argv[0], *arguments],
            env={
                **os.environ,
                "KERAS_BACKEND": backend,
                "TF_CPP_MIN_LOG_LEVEL": "3",
                **environment,
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.times = []

    def run(self, steps, keep=True):
        """Waits for `steps` runs, and keeps their seconds."""
        line = ""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(f"{steps}\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"A worker stopped: {self.process.args}")
        self.times += json.loads(line) if keep else []

    def median(self):
        """Median seconds of all runs that were kept."""
        return statistics.median(self.times)

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def race(workers, rounds, steps):
    """Median seconds of each worker, run in turns after a few runs to warm up.

    Args:
        workers: dict of `Worker` by name; they are closed at the end.
        rounds: how often each has its turn.
        steps: runs in a turn.
    """
    for worker in workers.values():
        worker.run(3, keep=False)  # compiles
    for _ in range(rounds):
        for worker in workers.values():
            worker.run(steps)
    medians = {name: worker.median() for name, worker in workers.items()}
    for worker in workers.values():
        worker.close()
    return medians
