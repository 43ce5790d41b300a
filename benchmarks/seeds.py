"""What an example gained over several seeds, as Markdown tables.

Of the results.json files that one of the examples wrote with a `--seed` each: every
number before and after tuning and the seconds of every stage, as mean (least to most),
and the change of every number, of each seed in the order of the files and in the mean.

    python benchmarks/seeds.py outputs/seed_0/results.json outputs/seed_1/results.json
"""

import argparse
import json
import pathlib

import numpy as np

KEYS = ("metric", "before", "after", "seconds")
ABSENT = "-"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=pathlib.Path, nargs="+", help="results.json")
    runs = [read(path) for path in parser.parse_args().results]
    metrics = sorted({run["metric"] for run in runs})
    if len(metrics) > 1:
        raise SystemExit(f"Expected results of one example. Received: {metrics}")
    print(f"{metrics[0]} and other numbers, mean (least to most) of {len(runs)} runs")
    print_table(("name", "before", "after", "change", "mean change"), changes(runs))
    seconds = gather(runs, "seconds")
    rows = [(stage, spread(values, 0)) for stage, values in seconds.items()]
    print_table(("stage", "seconds"), rows)


def read(path):
    """What a results.json says, if it has all that is needed."""
    results = json.loads(path.read_text())
    missing = [key for key in KEYS if key not in results]
    if missing:
        raise SystemExit(
            f"Expected {', '.join(KEYS)} in {path}. Received: {', '.join(results)}"
        )
    return results


def gather(runs, part):
    """A part of the results: arrays `(runs,)` by name, NaN where one has none."""
    names = dict.fromkeys(name for run in runs for name in run[part])
    return {
        name: np.array([run[part].get(name, np.nan) for run in runs], "float64")
        for name in names
    }


def changes(runs):
    """Rows of numbers by name. Some are measured before or after tuning only."""
    before, after = gather(runs, "before"), gather(runs, "after")
    absent = np.full(len(runs), np.nan)
    for name in {**before, **after}:
        old, new = before.get(name, absent), after.get(name, absent)
        with np.errstate(divide="ignore", invalid="ignore"):
            change = 100.0 * (new - old) / np.abs(old)
        each = ", ".join(map(percent, change))
        yield name, spread(old), spread(new), each, percent(change.mean())


def spread(values, digits=3):
    """Of the runs that have a value."""
    values = values[np.isfinite(values)]
    if not len(values):
        return ABSENT
    mean, least, most = (
        f"{number:.{digits}f}" for number in (values.mean(), values.min(), values.max())
    )
    return f"{mean} ({least} to {most})"


def percent(change):
    return f"{change:+.1f} %" if np.isfinite(change) else ABSENT


def print_table(header, rows):
    print()
    for row in (header, ["---"] * len(header), *rows):
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
