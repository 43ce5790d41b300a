"""Means with intervals."""

from typing import NamedTuple

import numpy as np

RESAMPLES = 2000
KINDS = ("bootstrap", "seeds")


class Interval(NamedTuple):
    """A mean with an interval; `low` and `high` are NaN for a single value.

    Attributes:
        mean: float.
        low, high: floats.
        count: number of finite values.
    """

    mean: float
    low: float
    high: float
    count: int


def interval(values, kind="bootstrap", seed=0):
    """The mean of values, with an interval.

    Args:
        values: a number, or `(n,)`; values that are not finite are left out.
        kind: `"bootstrap"` for values of examples: the interval that contains the means
            of 95 % of resamples with replacement (Efron 1979, "Bootstrap Methods:
            Another Look at the Jackknife", the percentile method). `"seeds"` for values
            of a few runs: the minimum and the maximum.
        seed: int, seed of the resamples.

    Returns:
        An `Interval`.

    Example:

    ```python
    from keras_reward.evaluation.intervals import interval

    interval([1.29, 1.33, 1.31], kind="seeds")  # mean 1.31, low 1.29, high 1.33
    ```
    """
    if kind not in KINDS:
        raise ValueError(f"`kind` must be one of {KINDS}. Received: kind={kind!r}")
    values = np.atleast_1d(np.asarray(values, "float64"))
    if values.ndim != 1:
        raise ValueError(
            "`values` must be a number or have shape (n,). "
            f"Received: shape {values.shape}"
        )
    values = values[np.isfinite(values)]
    if len(values) < 2:
        mean = float(values[0]) if len(values) else float("nan")
        return Interval(mean, float("nan"), float("nan"), len(values))
    ends = values.min(), values.max()
    if kind == "bootstrap":
        ends = np.percentile(resampled_means(values, seed), (2.5, 97.5))
    return Interval(float(values.mean()), *map(float, ends), len(values))


def resampled_means(values, seed):
    """Means `(RESAMPLES,)` of n of the n values, drawn with replacement."""
    generator = np.random.default_rng(seed)
    n = len(values)
    return np.array(
        [values[generator.integers(0, n, n)].mean() for _ in range(RESAMPLES)]
    )


def difference(before, after, kind="bootstrap", seed=0):
    """The interval of `after - before`, example by example or run by run.

    None if the numbers of values differ.
    """
    before, after = (np.atleast_1d(np.asarray(v, "float64")) for v in (before, after))
    if before.shape != after.shape:
        return None
    return interval(after - before, kind, seed)
