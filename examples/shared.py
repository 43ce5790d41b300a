"""What all examples share: a clock, a learning rate, and what they print and save."""

import json
import time

import keras
import matplotlib.pyplot as plt
import numpy as np

from keras_reward.whole_files import whole_file


class Clock:
    """Seconds of each stage."""

    def __init__(self):
        self.start = self.last = time.perf_counter()
        self.seconds = {}

    def stop(self, stage):
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self.last
        self.last = now

    def rounded(self):
        total = self.last - self.start
        return {k: round(v, 1) for k, v in {**self.seconds, "total": total}.items()}


def collect(batches):
    """All of some batches in one."""
    return keras.tree.map_structure(lambda *parts: np.concatenate(parts), *batches)


def learning_rate(steps, rate, warmup, last):
    """Rises to `rate` in `warmup` of the steps, then falls along a cosine.

    Args:
        steps: of the whole training.
        rate: the highest learning rate.
        warmup: how many steps it rises.
        last: the learning rate at the end, as a fraction of `rate`; 1: it never falls.
    """
    return keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0,
        decay_steps=steps - warmup,
        alpha=last,
        warmup_target=rate,
        warmup_steps=warmup,
    )


def heading(text):
    print(f"\n{text}\n{'-' * len(text)}", flush=True)


def print_table(columns):
    """Prints the columns, and the change from the one before tuning to the one after.

    Args:
        columns: dict of dicts, `{title: {name: number}}`. A column need not have all
            names.
    """
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    width = max(map(len, names))
    print(" " * width + "".join(f"{title:>9}" for title in [*columns, "change"]))
    for name in names:
        row = {title: column.get(name, np.nan) for title, column in columns.items()}
        print(f"{name:{width}}" + "".join(f"{x:9.3f}" for x in row.values()), end="")
        # Beside what is printed as 0.000 there is nothing to compare.
        compares = row["before"] >= 5e-4 and np.isfinite(row["after"])
        print(f"{row['after'] / row['before'] - 1.0:+9.0%}" if compares else "")


def save_curves(path, panels):
    """Draws what happened epoch by epoch.

    Args:
        path: of the picture.
        panels: dict of pairs, `{title: (curves, names)}`, where curves are a dict of
            lists of numbers. It need not have all names: a stage may be left out.
    """
    size = (4 * len(panels), 3.5)
    _, axes = plt.subplots(1, len(panels), squeeze=False, figsize=size)
    for panel, (title, (curves, names)) in zip(axes.flat, panels.items(), strict=True):
        panel.set(title=title, xlabel="epoch")
        for name in names:
            panel.plot(curves.get(name, []), label=name)
        panel.legend()
    save_figure(path)


def save_model(model, path):
    """Saves a model, or its weights alone into a `.weights.h5`."""
    is_weights = path.name.endswith(".weights.h5")
    with whole_file(path) as new:  # an earlier file stays until it is complete
        model.save_weights(new) if is_weights else model.save(new)


def save_figure(path):
    with whole_file(path) as new:
        plt.savefig(new, dpi=100, bbox_inches="tight")
    plt.close()
    print(f"saved {path}")


def save_results(output, metric, before, after, clock, **details):
    """Writes results.json.

    Args:
        output: folder.
        metric: the name in the table that tuning is for.
        before, after: columns of the table.
        clock: a `Clock`.
        **details: more to write down.
    """
    results = {
        "metric": metric,
        "before": before,
        "after": after,
        "seconds": clock.rounded(),
        "backend": keras.config.backend(),
        **details,
    }
    path = output / "results.json"
    with whole_file(path) as new:
        new.write_text(json.dumps(results, indent=2, default=float) + "\n")
    print(f"saved {path}, after {results['seconds']['total']:.0f} seconds")
