"""Gives all rewards and readers malformed inputs, and counts what becomes of them.

```
KERAS_BACKEND=torch python benchmarks/fuzz.py                # 10,000 inputs, 2 minutes
KERAS_BACKEND=jax python benchmarks/fuzz.py --inputs 1000 --seed 7
```

Each input is a good one that was changed at random, from the seed and its number. It
must give what is documented, or an error of ours that says what was wrong. Anything
else is a fault, and ends this with 1: another kind of error, a message from below, a
result that was broadcast, a NaN that no reward documents, an input that takes seconds,
or the end of the process. So half of the inputs, those of readers, run in a process of
their own, which is started again after the input that ended it.

PyTorch is the fastest: JAX compiles for each shape.
"""

import argparse
import collections
import json
import pathlib
import subprocess
import sys
import tempfile
import time

HELPERS = pathlib.Path(__file__).resolve().parents[1] / "tests" / "helpers"
SHOWN = 20  # faults


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=["rewards", "readers"])
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sys.path.insert(0, str(HELPERS))
    if arguments.child:
        return child(json.loads(arguments.child))
    faults = 0
    parts = [arguments.only] if arguments.only else ["rewards", "readers"]
    for part in parts:
        start = time.perf_counter()
        count = arguments.inputs // len(parts)
        kinds, found = PARTS[part](count, arguments.seed)
        seconds = time.perf_counter() - start
        print(f"{part}: {count} inputs in {seconds:.0f} s, {len(found)} faults")
        for kind, number in kinds.most_common():
            print(f"  {number:6}  {kind}")
        for text in found[:SHOWN]:
            print("  FAULT", text)
        faults += len(found)
    return int(faults > 0)


def try_rewards(count, seed):
    import fuzz_rewards

    kinds, faults = collections.Counter(), []

    def report(kind, fault, name, given):
        kinds[kind] += 1
        if fault:
            faults.append(f"{name}: {fault}")

    fuzz_rewards.run(count, seed, report)
    return kinds, faults


def try_readers(count, seed):
    """Starts a process for the inputs, and another one after each that it dies of."""
    kinds, faults = collections.Counter(), []
    first = 0
    while first < count:
        task = json.dumps({"first": first, "last": count, "seed": seed})
        command = [sys.executable, __file__, "--child", task]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            for line in process.stdout:
                number, name, kind, fault = json.loads(line)
                first = number + 1
                kinds[kind] += 1
                if fault:
                    faults.append(f"{seed}/{number} {name}: {fault}")
        if first < count:
            faults.append(f"{seed}/{first} ended the process: {process.returncode}")
            kinds["end of the process"] += 1
            first += 1
    return kinds, faults


def child(task):
    import fuzz_readers

    output = sys.stdout

    def report(*result):
        print(json.dumps(result), file=output, flush=True)

    with tempfile.TemporaryDirectory() as folder:
        fuzz_readers.run(folder, **task, report=report, clock=time.process_time)
    return 0


PARTS = {"rewards": try_rewards, "readers": try_readers}

if __name__ == "__main__":
    sys.exit(main())
