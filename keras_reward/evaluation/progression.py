"""Whether a reward and an official metric rise together, from the log of a training."""

import csv
import pathlib
from typing import NamedTuple

import numpy as np

from keras_reward.evaluation.figures import save_figure


class Progression(NamedTuple):
    """Two quantities over the epochs in which both were measured.

    Attributes:
        epochs: `(n,)` int, from 0.
        reward: `(n,)` float64.
        metric: `(n,)` float64.
        rank_correlation: Spearman's, from -1 to 1; NaN if one of the two never changes
            or fewer than two epochs have both.
        names: names of reward and metric in the log.
    """

    epochs: np.ndarray
    reward: np.ndarray
    metric: np.ndarray
    rank_correlation: float
    names: tuple


def progression(log, reward="val_reward", metric="val_cider"):
    """Reward and official metric during a training, and their rank correlation.

    A reward is a good substitute for a metric as long as both rise together. If the
    reward continues to rise but the metric does not, the model exploits the difference.

    Args:
        log: what `fit` returned, its `history`, or the path of a file that
            `keras.callbacks.CSVLogger` wrote.
        reward: name of the reward in the log. Default `"val_reward"`: greedy outputs.
        metric: name of the other quantity, such as those that the callback
            `OfficialMetrics` logs. Default `"val_cider"`.

    Returns:
        A `Progression`. Epochs in which one of the two is missing or not finite are
        left out.

    Raises:
        ValueError: if the log has no such name.

    Example:

    ```python
    from keras_reward.evaluation import progression

    history = {"val_reward": [0.1, 0.3, 0.4], "val_map": [0.30, 0.35, 0.33]}
    progression(history, metric="val_map").rank_correlation  # 0.5
    ```

    Reference: Pinto et al. 2023, "Tuning computer vision models with task rewards",
    section 5 and figure 6; Spearman 1904, "The Proof and Measurement of Association
    between Two Things".
    """
    columns = read_log(log)
    for name in (reward, metric):
        if name not in columns:
            raise ValueError(
                f"`reward` and `metric` must be names in the log{named(log)}. "
                f"Known: {', '.join(sorted(columns))}. Received: {name!r}"
            )
    epochs = columns.get("epoch")
    pair = [columns[reward], columns[metric]]
    length = min(map(len, pair))
    first, second = (values[:length] for values in pair)
    both = np.isfinite(first) & np.isfinite(second)
    if epochs is None:
        epochs = np.arange(length)
    else:
        both &= np.abs(epochs[:length]) < 2**31  # NaN is not
        epochs = np.where(both, epochs[:length], 0).astype(int)
    first, second = first[both], second[both]
    correlation = rank_correlation(first, second)
    return Progression(epochs[both], first, second, correlation, (reward, metric))


def read_log(log):
    """Columns of a log: arrays of float64 by name, NaN where a cell is not a number."""
    if isinstance(log, str | pathlib.Path):
        log = read_csv(log)
    log = getattr(log, "history", log)
    return {name: np.array([number(v) for v in column]) for name, column in log.items()}


def named(log):
    """The path of a log, for messages; nothing if it is no file."""
    return f" {str(log)!r}" if isinstance(log, str | pathlib.Path) else ""


def read_csv(path):
    """Columns of a CSV file, lists of strings by name.

    Raises:
        ValueError: if it is not such a file, with the path.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows, names = list(reader), reader.fieldnames or []
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(
            "A log must be a CSV file, as `keras.callbacks.CSVLogger` writes it. "
            f"Received: {str(path)!r} ({error})"
        ) from error
    return {name: [row[name] for row in rows] for name in names}


def number(cell):
    """A float; NaN if the cell is not a number."""
    try:
        return float(cell)
    except (OverflowError, TypeError, ValueError):
        return float("nan")


def rank_correlation(first, second):
    """Spearman's rank correlation: Pearson's correlation of the ranks.

    Args:
        first, second: `(n,)`.

    Returns:
        A float, NaN if it is not defined.
    """
    if len(first) < 2:
        return float("nan")
    first, second = ranks(first), ranks(second)
    first, second = first - first.mean(), second - second.mean()
    scale = np.sqrt(np.sum(first**2) * np.sum(second**2))
    return float(first @ second / scale) if scale > 0 else float("nan")


def ranks(values):
    """Ranks `(n,)` from 0; equal values get their mean rank."""
    _, index, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - 0.5 * (counts + 1))[index]


def plot_progression(result, path=None):
    """Draws reward and metric over epochs, as in the paper's figure 6.

    Args:
        result: a `Progression`.
        path: where to save the figure. Default None: not saved.

    Returns:
        A `matplotlib.figure.Figure`.

    Example:

    ```python
    from keras_reward.evaluation import plot_progression, progression

    history = {"val_reward": [0.1, 0.3, 0.4], "val_map": [0.30, 0.35, 0.33]}
    plot_progression(progression(history, metric="val_map"), "progression.png")
    ```
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    left = figure.subplots()
    right = left.twinx()
    values = (result.reward, result.metric)
    colors, markers = ("tab:blue", "tab:orange"), ("o", "s")
    lines = [
        axes.plot(result.epochs, column, color=color, marker=marker, label=name)[0]
        for axes, column, color, marker, name in zip(
            (left, right), values, colors, markers, result.names, strict=True
        )
    ]
    for axes, color, name in zip((left, right), colors, result.names, strict=True):
        axes.set_ylabel(name, color=color)
    left.set(xlabel="epoch", title=f"rank correlation {result.rank_correlation:.2f}")
    left.legend(handles=lines)
    if path is not None:
        save_figure(figure, path)
    return figure
