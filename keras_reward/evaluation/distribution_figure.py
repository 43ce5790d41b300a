"""The paper's figure 5, which compares two reward distributions, and its findings."""

import numpy as np

from keras_reward.evaluation.figures import save_figure


def findings(before, after, rare=0.05):
    """The findings of the paper's figure 5, as numbers.

    The three findings are: most samples of the tuned model exceed a level that few
    samples reach before tuning; with enough samples, the best one before tuning beats
    the best one after it; the likeliest of many samples before tuning stays below the
    tuned model.

    Args:
        before, after: `RewardDistribution` of the same examples and the same number of
            samples.
        rare: the share of samples before tuning that reach the level. Default 0.05.

    Returns:
        A dict of floats (None if undefined):
        `level`, the mean reward that a share `rare` of samples reaches before tuning;
        `share_above`, the share of samples after tuning that reaches it, read from the
        mean quantile functions as in the paper; `share_above_own`, the same with the
        level of each example, averaged over examples;
        `crossing`, the smallest N at which the best sample before tuning is at least as
        good as that after it; `best_before` and `best_after`, the best of all samples;
        `likeliest_before` and `likeliest_after`, the likeliest of all samples, and
        `likeliest_stays_below`, whether the likeliest of N samples before tuning is
        below the mean sample after it for every N;
        `greedy_before`, `greedy_after`, `mean_before`, `mean_after`.

    Example:

    ```python
    import numpy as np
    from keras_reward.evaluation import RewardDistribution, findings

    rewards = np.linspace(0.0, 1.0, 100)[None]
    before = RewardDistribution(rewards, np.zeros((1, 100)), np.zeros(1))
    after = RewardDistribution(0.5 + 0.5 * rewards, np.zeros((1, 100)), np.ones(1))
    findings(before, after)["share_above"]  # 0.1
    ```

    Reference: Pinto et al. 2023, "Tuning computer vision models with task rewards",
    section 5.
    """
    check_pair(before, after)
    early, late = before.quantiles(), after.quantiles()
    level = level_of(early, rare)
    own = [
        np.mean(theirs >= level_of(np.sort(mine), rare))
        for mine, theirs in zip(*both_with_rewards(before, after), strict=True)
    ]
    best_before, best_after = before.best_of(), after.best_of()
    crossed = np.flatnonzero(best_before >= best_after)
    likeliest_before, likeliest_after = before.most_likely_of(), after.most_likely_of()
    return {
        "level": float(level),
        "share_above": float(np.mean(late >= level)),
        "share_above_own": float(np.mean(own)),
        "crossing": int(crossed[0]) + 1 if len(crossed) else None,
        "best_before": float(best_before[-1]),
        "best_after": float(best_after[-1]),
        "likeliest_before": float(likeliest_before[-1]),
        "likeliest_after": float(likeliest_after[-1]),
        "likeliest_stays_below": bool(likeliest_before.max() < after.mean()),
        "greedy_before": before.greedy_mean(),
        "greedy_after": after.greedy_mean(),
        "mean_before": before.mean(),
        "mean_after": after.mean(),
    }


def level_of(rising, rare):
    """The smallest of sorted values `(n,)` that at most a share `rare` reaches."""
    reach = max(1, int(np.floor(rare * len(rising) + 1e-9)))
    return rising[-reach]


def both_with_rewards(before, after):
    """Rewards before and after of the examples that count in both."""
    examples = before.with_rewards() & after.with_rewards()
    return before.rewards[examples], after.rewards[examples]


def check_pair(before, after):
    """Raises if two distributions are not of the same examples and sizes."""
    if before.rewards.shape != after.rewards.shape:
        raise ValueError(
            "`before` and `after` must have the same examples and number of samples. "
            f"Received: rewards of shapes {before.rewards.shape} and "
            f"{after.rewards.shape}"
        )


def plot(before, after, path=None, names=("maximum likelihood", "reward tuned")):
    """Draws the three panels of the paper's figure 5.

    Left: the mean quantile function of the reward; the area below it is the mean
    reward. Middle: the expected reward of the best of N samples. Right: that of the
    likeliest of N samples. Dashed lines are the greedy outputs.

    Args:
        before, after: `RewardDistribution` of the same examples and the same number of
            samples.
        path: where to save the figure. Default None: not saved.
        names: two names for the legend.

    Returns:
        A `matplotlib.figure.Figure`.

    Example:

    ```python
    import numpy as np
    from keras_reward.evaluation import RewardDistribution, plot

    rewards = np.random.default_rng(0).random((4, 64))
    before = RewardDistribution(rewards, np.zeros((4, 64)), np.full(4, 0.5))
    after = RewardDistribution(np.sqrt(rewards), np.zeros((4, 64)), np.full(4, 0.7))
    plot(before, after, path="distribution.png")
    ```
    """
    from matplotlib.figure import Figure

    check_pair(before, after)
    figure = Figure(figsize=(13, 4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    levels = (np.arange(before.num_samples) + 0.5) / before.num_samples
    sizes = np.arange(1, before.num_samples + 1)
    for distribution, name, color in zip((before, after), names, COLORS, strict=True):
        left.plot(levels, distribution.quantiles(), color=color, label=name)
        middle.plot(sizes, distribution.best_of(), color=color, label=name)
        right.plot(sizes, distribution.most_likely_of(), color=color, label=name)
        for panel in (left, middle, right):
            greedy = {"color": color, "linestyle": "--", "linewidth": 1}
            panel.axhline(distribution.greedy_mean(), label=f"{name}, greedy", **greedy)
    left.set(title="Reward of a sample", xlabel="quantile", ylabel="reward")
    middle.set(title="Best of N samples", xlabel="N", xscale="log")
    right.set(title="Likeliest of N samples", xlabel="N", xscale="log")
    left.legend(fontsize=8)
    if path is not None:
        save_figure(figure, path)
    return figure


COLORS = ("tab:blue", "tab:orange")
