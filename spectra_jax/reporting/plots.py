"""The plots every report needs: curves over training and a heat map of class-to-class distances."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from spectra_jax.reporting.figures import SERIES, new_figure, plot_style
from spectra_jax.reporting.formatting import format_number, is_number, scalar

_NOT_CURVES = ("step", "epoch", "split")


class Series(NamedTuple):
    """One line of a plot: where a metric of a split stood at each x; only finite values are kept."""

    metric: str
    split: str
    x: list[float]
    y: list[float]
    num_not_finite: int


def in_words(name: str) -> str:
    """The name of a metric as people read it: "class_loss" -> "class loss"."""
    return name.replace("_", " ")


def collect_series(rows: Iterable[Mapping[str, Any]], *, x: str, names: Sequence[str] | None) -> list[Series]:
    """Groups the rows of a metrics.jsonl into lines, in order of appearance; `names` selects and orders the metrics."""
    found: dict[tuple[str, str], Series] = {}
    for index, row in enumerate(rows):
        position = scalar(row.get(x))
        position = index if position is None else position
        for name, value in row.items():
            if name == x or name in _NOT_CURVES or np.ndim(value):
                continue
            value = scalar(value)
            if not (is_number(value) or value is None):
                continue
            split = str(row.get("split", ""))
            series = found.setdefault((name, split), Series(name, split, [], [], 0))
            if value is None or not math.isfinite(value):
                found[name, split] = series._replace(num_not_finite=series.num_not_finite + 1)
            else:
                series.x.append(float(position))
                series.y.append(float(value))
    if names is None:
        return list(found.values())
    missing = [n for n in names if n not in {s.metric for s in found.values()}]
    if missing:
        raise ValueError(f"no row has {missing}; the rows have {sorted({s.metric for s in found.values()})}")
    return [s for n in names for s in found.values() if s.metric == n]


def curve_figure(lines: Sequence[Series], *, x: str) -> Figure:
    """One panel: the lines of one metric, told apart by colour, dash and marker."""
    with plot_style(), rc_context({"text.parse_math": False}):
        figure = new_figure()
        alone = lines[0].split if len(lines) == 1 else ""
        axes = figure.add_subplot(title=in_words(lines[0].metric) + (f" ({alone})" if alone else ""), xlabel=x)
        for line, marker in zip(lines, "os^Dv" * len(lines), strict=False):
            few = len(line.x) <= 30
            axes.plot(line.x, line.y, label=line.split or None, marker=marker if few else None, markersize=4)
        if len(lines) > 1:
            axes.legend()
        return figure


def describe_curves(lines: Sequence[Series], *, x: str) -> str:
    """The same panel in words."""
    parts = []
    for line in lines:
        who = line.split or line.metric
        if line.y:
            first, last = (format_number(v) for v in (line.y[0], line.y[-1]))
            parts.append(f"{who}: {first} at {x} {line.x[0]:g}, {last} at {x} {line.x[-1]:g}")
        else:
            parts.append(f"{who}: no finite values")
    return f"Line plot of {in_words(lines[0].metric)} over {x}. " + "; ".join(parts) + "."


def matrix_figure(
    values: NDArray[np.floating],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    row_title: str,
    column_title: str,
    label: str,
    log: bool,
) -> Figure:
    """A heat map whose lightness rises with the value; entries without a finite value stay hatched."""
    shown = np.ma.masked_invalid(values)
    if log:
        shown = np.ma.masked_less_equal(shown, 0)
    count = shown.count()
    low, high = (float(shown.min()), float(shown.max())) if count else (0.0, 1.0)
    cell = 0.34 if max(values.shape) <= 24 else 0.15
    with plot_style(), rc_context({"text.parse_math": False}):
        width, height = (max(cell * size, 1.2) for size in (len(columns), len(rows)))
        figure = Figure(figsize=(width, height))  # the axes fill it; savefig's tight box adds room for the names
        axes = figure.add_axes((0, 0, 1, 1), xlabel=column_title, ylabel=row_title)
        axes.grid(False)
        axes.patch.set(hatch="/////", facecolor="none", edgecolor=SERIES[3], linewidth=0)
        image = axes.imshow(shown, norm=LogNorm(low, high) if log and count else Normalize(low, high), aspect="auto")
        size, large = (8.5, 9.5) if cell > 0.3 else (6.5, 15)
        axes.xaxis.label.set_fontsize(large)
        axes.yaxis.label.set_fontsize(large)
        axes.set_xticks(range(len(columns)), columns, rotation=90, fontsize=size)
        axes.set_yticks(range(len(rows)), rows, fontsize=size)
        axes.tick_params(length=0)
        bar = figure.colorbar(image, cax=figure.add_axes((1 + 0.25 / width, 0, 0.16 / width, 1)))
        bar.set_label(label, size=large)
        bar.ax.tick_params(labelsize=large - 1)
        if values.size <= 144:
            for (i, j), value in np.ma.ndenumerate(shown):
                text = format_number(float(value)) if abs(value) < 1000 else f"{value:.2g}"
                # Pure black and white are no page colours: they stay put in dark mode, as the cells do.
                colour = "#000000" if np.asarray(image.norm(value)) > 0.5 else "#ffffff"
                axes.text(j, i, text, ha="center", va="center", fontsize=7, color=colour)
        return figure
