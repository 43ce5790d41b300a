"""A self-contained HTML page about a tuning."""

import base64
import html
import io
import pathlib
import re

import numpy as np

from keras_reward.evaluation.distribution_figure import findings, plot
from keras_reward.evaluation.intervals import KINDS, difference, interval
from keras_reward.forms.pictures import as_rgb
from keras_reward.whole_files import whole_file

# The page may show its own content, and load nothing.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
# What no page can hold, or a browser would not show: control characters and halves of
# surrogate pairs.
UNSHOWN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
DEEPEST = 50  # level of nested settings
MAX_CURVES = 150  # panels; a figure of more is too large to be drawn
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
    escaped, with U+FFFD for control characters and halves of surrogate pairs. Sections
    without data are left out. The file is written as a whole or not at all: if it was
    there before, and anything fails, it stays as it was.

    Args:
        path: path of the file.
        title: heading.
        settings: dict, may be nested: learning rate, reward, data, seeds, ...
        before, after: metrics by name, with the same names in both. A metric is a
            number, or one number per example, or one per run.
        intervals: `"bootstrap"`: metrics are of examples, and a mean is shown with the
            interval that contains 95 % of resamples. `"seeds"`: they are of runs, and a
            mean is shown with the minimum and the maximum. Default `"bootstrap"`.
        history: what `fit` returned, or lists of numbers by name. Drawn as curves,
            training and validation (`val_`) together, the first 150.
        distributions: two `RewardDistribution`, before and after. Shown as the paper's
            figure 5, with its three findings as numbers.
        pairs: list of dicts, sample pairs to show side by side: `input`, `before`,
            `after`, each a picture `(H, W, 3)` or anything else as text, and the
            numbers `before_reward` and `after_reward`; all optional.
        seed: int, seed of the bootstrap.

    Returns:
        The path, a `pathlib.Path`.

    Raises:
        ValueError: for metrics with different names, metrics, curves or rewards that
            are not numbers, settings that are nested without end, or unknown
            `intervals`.

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
    with whole_file(path) as new:
        new.write_text(page, encoding="utf-8")
    return path


def escape(text):
    """Any value as escaped HTML text, without what UTF-8 or a browser has not."""
    return html.escape(UNSHOWN.sub("\ufffd", str(text)), quote=True)


def numbers(values, what):
    """Values as float64, or an error that says what they are of."""
    try:
        return np.asarray(values, "float64")
    except (OverflowError, TypeError, ValueError) as error:
        raise ValueError(
            f"{what} must be numbers. Received: {ascii(values)[:100]}"
        ) from error


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


def flat(settings, prefix="", depth=1):
    """Names and values of a nested dict, with outer names as prefixes."""
    if not isinstance(settings, dict) or depth > DEEPEST:
        raise ValueError(
            f"`settings` must be a dict, nested at most {DEEPEST} times. Received: "
            f"{type(settings).__name__} at level {depth}"
        )
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}: ", depth + 1)
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
        pair = [numbers(m[name], f"Metric {name!r}") for m in (before, after)]
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

    history = {
        str(name): np.atleast_1d(numbers(values, f"Curve {name!r} of `history`"))
        for name, values in getattr(history, "history", history).items()
    }
    names = [name.removeprefix("val_") for name in history if name != "epoch"]
    names = list(dict.fromkeys(names))
    if not names:
        return ""
    names.sort(key=lambda name: name != "reward")  # first; the others keep their order
    left_out = len(names) - MAX_CURVES
    names = names[:MAX_CURVES]
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
                values = history[key]
                if values.ndim != 1:
                    raise ValueError(
                        f"Curve {key!r} of `history` must have shape (epochs,). "
                        f"Received: shape {values.shape}"
                    )
                panel.plot(np.arange(1, len(values) + 1), values, ".-", label=label)
        panel.set_title(UNSHOWN.sub("\ufffd", name), parse_math=False)
        panel.set_xlabel("epoch")
        panel.legend(fontsize=8)
    note = f"<p>{left_out} more are not drawn.</p>" if left_out > 0 else ""
    return embedded(figure, "Curves of " + ", ".join(names)) + note


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
                reward = numbers(pair[f"{name}_reward"], f"`{name}_reward`")
                if reward.size != 1:
                    raise ValueError(
                        f"`{name}_reward` of a pair must be one number. "
                        f"Received: shape {reward.shape}"
                    )
                reward = reward.item()
                cell += f"<br><small>reward {reward:.4g}</small>"
            cells.append(f"<td>{cell}</td>")
        rows.append(cells)
    return table(rows, names)


def thing(value, name):
    """A picture as an image, anything else as text."""
    value = np.asarray(value) if len(getattr(value, "shape", ())) == 3 else value
    if is_picture(value):
        from PIL import Image

        buffer = io.BytesIO()
        Image.fromarray(as_rgb(value)).save(buffer, format="png")
        return image(buffer.getvalue(), name)
    return escape(value)


def is_picture(value):
    """Whether a value is an array of numbers that can be shown as a picture."""
    if not isinstance(value, np.ndarray) or value.ndim != 3 or not value.size:
        return False
    return value.shape[-1] in (1, 3) and value.dtype.kind in "fiub"


def embedded(figure, description):
    """A Matplotlib figure as an embedded image."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return image(buffer.getvalue(), description)


def image(png, description):
    data = base64.b64encode(png).decode()
    return f'<img alt="{escape(description)}" src="data:image/png;base64,{data}">'
