"""A self-contained HTML page about a tuning."""

import base64
import html
import io
import pathlib

import numpy as np

from keras_reward.evaluation.distribution_figure import findings, plot
from keras_reward.evaluation.intervals import KINDS, difference, interval
from keras_reward.forms.pictures import as_rgb

# The page may show its own content, and load nothing.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = """
body { font: 16px/1.5 sans-serif; max-width: 70rem; margin: 2rem auto;
  padding: 0 1rem; color: #222; background: #fff; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .3rem .8rem; border-bottom: 1px solid #ccc; text-align: left;
  vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
td small { color: #666; white-space: nowrap; }
img { max-width: 100%; } td img { width: 10rem; image-rendering: pixelated; }
"""


def report(
    path,
    title="Reward tuning",
    settings=None,
    before=None,
    after=None,
    intervals="bootstrap",
    history=None,
    distributions=None,
    pairs=None,
    seed=0,
):
    """Writes one self-contained HTML page about a tuning.

    Pictures are embedded in the file, and nothing is loaded from elsewhere. All text is
    escaped. Sections without data are left out.

    Args:
        path: path of the file.
        title: heading.
        settings: dict, may be nested: learning rate, reward, data, seeds, ...
        before, after: metrics by name, with the same names in both. A metric is a
            number, or one number per example, or one per run.
        intervals: `"bootstrap"`: metrics are of examples, and a mean is shown with the
            interval that contains 95 % of resamples. `"seeds"`: they are of runs, and a
            mean is shown with the minimum and the maximum. Default `"bootstrap"`.
        history: what `fit` returned, or lists by name. Drawn as curves, training and
            validation (`val_`) together.
        distributions: two `RewardDistribution`, before and after. Shown as the paper's
            figure 5, with its three findings as numbers.
        pairs: list of dicts, sample pairs to show side by side: `input`, `before`,
            `after`, each a picture `(H, W, 3)` or anything else as text, and the
            numbers `before_reward` and `after_reward`; all optional.
        seed: int, seed of the bootstrap.

    Returns:
        The path, a `pathlib.Path`.

    Raises:
        ValueError: for metrics with different names, or unknown `intervals`.

    Example:

    ```python
    import numpy as np
    from keras_reward.evaluation import report

    report(
        "report.html",
        settings={"learning rate": 1e-4, "samples": 8},
        before={"CIDEr-D": np.array([0.6, 0.8, 0.7])},  # of each example
        after={"CIDEr-D": np.array([0.9, 0.9, 1.1])},
        history={"reward": [0.6, 0.8], "val_reward": [0.7, 0.9]},
        pairs=[{"input": np.zeros((8, 8, 3)), "before": "a dog", "after": "one dog"}],
    )
    ```
    """
    if intervals not in KINDS:
        raise ValueError(
            f"`intervals` must be one of {KINDS}. Received: intervals={intervals!r}"
        )
    sections = [
        section("Settings", settings and settings_table(settings)),
        section("Before and after", metric_table(before, after, intervals, seed)),
        section("Curves", history and curves(history)),
        section("Rewards of samples", distributions and distribution(distributions)),
        section("Side by side", pairs and pair_table(pairs)),
    ]
    page = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
{"".join(sections)}
</body>
</html>
"""
    path = pathlib.Path(path)
    path.write_text(page, encoding="utf-8")
    return path


def escape(text):
    """Any value as escaped HTML text."""
    return html.escape(str(text), quote=True)


def section(title, content):
    """A heading with content; empty without content."""
    return f"<h2>{escape(title)}</h2>\n{content}\n" if content else ""


def table(rows, header=()):
    """An HTML table of cells that are HTML strings `<td>...</td>`."""
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    head = f"<tr>{head}</tr>\n" if header else ""
    body = "".join(f"<tr>{''.join(cells)}</tr>\n" for cells in rows)
    return f"<table>\n{head}{body}</table>"


def settings_table(settings):
    rows = [
        (f"<td>{escape(name)}</td>", f"<td>{escape(value)}</td>")
        for name, value in flat(settings)
    ]
    return table(rows)


def flat(settings, prefix=""):
    """Names and values of a nested dict, with outer names as prefixes."""
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}: ")
        else:
            yield f"{prefix}{name}", value


def metric_table(before, after, intervals, seed):
    """The table of metrics with their intervals and the change."""
    before, after = before or {}, after or {}
    if set(before) != set(after):
        raise ValueError(
            "`before` and `after` must have metrics of the same names. "
            f"Received: {sorted(before)} and {sorted(after)}"
        )
    if not before:
        return ""
    rows = []
    for name in before:
        pair = before[name], after[name]
        columns = [interval(values, intervals, seed) for values in pair]
        columns.append(difference(*pair, intervals, seed))
        rows.append([f"<td>{escape(name)}</td>", *map(metric_cell, columns)])
    notes = {
        "bootstrap": "Mean over examples, and the interval of 95 % of bootstrap "
        "resamples. The change is example by example.",
        "seeds": "Mean over runs, and the lowest and the highest. The change is run by "
        "run.",
    }
    ranged = any(np.size(values) > 1 for values in (*before.values(), *after.values()))
    note = f"<p>{escape(notes[intervals])}</p>" if ranged else ""
    return table(rows, ("", "before", "after", "change")) + note


def metric_cell(value):
    """A mean with its interval, in one cell."""
    if value is None:
        return "<td></td>"
    text = f"{value.mean:.4g}"
    if np.isfinite(value.low):
        text += (
            f" <small>[{value.low:.4g}, {value.high:.4g}], n = {value.count}</small>"
        )
    return f'<td class="number">{text}</td>'


def curves(history):
    """One panel for each quantity, training and validation together."""
    from matplotlib.figure import Figure

    history = getattr(history, "history", history)
    names = [name.removeprefix("val_") for name in history if name != "epoch"]
    names = list(dict.fromkeys(names))
    names.sort(key=lambda name: name != "reward")  # first; the others keep their order
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(4 * columns, 2.8 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for panel in panels:
        panel.axis("off")
    for panel, name in zip(figure.axes, names, strict=False):
        panel.axis("on")
        for key, label in ((name, "training"), (f"val_{name}", "validation")):
            if key in history:
                values = np.asarray(history[key], "float64")
                panel.plot(np.arange(1, len(values) + 1), values, ".-", label=label)
        panel.set_title(name, parse_math=False)
        panel.set_xlabel("epoch")
        panel.legend(fontsize=8)
    return embedded(figure, "Curves of " + ", ".join(names))


def distribution(distributions):
    """Figure 5 and the three findings."""
    before, after = distributions
    found = findings(before, after)
    crossing = found["crossing"]
    crossed = "no N" if crossing is None else f"N = {crossing}"
    stays = "stays below" if found["likeliest_stays_below"] else "does not stay below"
    lines = [
        f"The level {found['level']:.4g}, which 5 % of samples reach before, is "
        f"reached by {found['share_above']:.1%} after.",
        f"The best of N samples before is as good as after from {crossed} on, of "
        f"{before.num_samples}.",
        f"The likeliest of N samples before {stays} the mean sample after.",
    ]
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    figure = embedded(plot(before, after), "Rewards of samples before and after")
    return f"{figure}<ol>{items}</ol>"


def pair_table(pairs):
    """Input, before and after, side by side."""
    names = ("input", "before", "after")
    rows = []
    for pair in pairs:
        cells = []
        for name in names:
            cell = thing(pair[name], name) if name in pair else ""
            if f"{name}_reward" in pair:
                reward = float(pair[f"{name}_reward"])
                cell += f"<br><small>reward {reward:.4g}</small>"
            cells.append(f"<td>{cell}</td>")
        rows.append(cells)
    return table(rows, names)


def thing(value, name):
    """A picture as an image, anything else as text."""
    shape = getattr(value, "shape", ())
    if len(shape) == 3 and shape[-1] in (1, 3):
        from PIL import Image

        buffer = io.BytesIO()
        Image.fromarray(as_rgb(np.asarray(value))).save(buffer, format="png")
        return image(buffer.getvalue(), name)
    return escape(value)


def embedded(figure, description):
    """A Matplotlib figure as an embedded image."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return image(buffer.getvalue(), description)


def image(png, description):
    data = base64.b64encode(png).decode()
    return f'<img alt="{escape(description)}" src="data:image/png;base64,{data}">'
