"""Pictures of a comparison, the same bytes for the same figures.

Colours are the palette of Okabe and Ito ("Color Universal Design", 2008), which people with any common colour
vision tell apart; every method has its own marker and line as well, so the pictures also read in grey.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from stages.evaluation.comparison import NAMES, Choice, Entry, Figures, percent
from stages.files import replacing

STYLES = (
    ("#0072B2", "o", "-"),
    ("#D55E00", "s", "--"),
    ("#009E73", "^", "-."),
    ("#CC79A7", "D", (0, (5, 1, 1, 1, 1, 1))),
    ("#E69F00", "v", (0, (3, 1))),
    ("#56B4E9", "P", ":"),
)
LAYER_INCHES = 0.17
TALLEST_INCHES = 40.0
NUMBERED_LAYERS = 100
"""Up to so many layers every cell has its percentage written in it."""


def draw_quality(
    path: Path, entries: Sequence[Entry], choice: Choice, references: Figures, max_drop: float, confidence: float
) -> None:
    """Draw the sparsity–quality curves: scores on test, and the paired difference from the control.

    Args:
        path: PNG to write.
        entries: the control first.
        choice: the level to mark, and the metric to draw.
        references: may hold `copy_METRIC` and `human_METRIC`.
        max_drop: points below the control that are good enough, drawn as a band.
        confidence: of the intervals, for the caption.
    """
    metric = choice.metric
    levels = [entry for entry in entries if entry.is_level]
    offsets = _offsets(levels)
    with figure_of(10.5, 4.6) as figure:
        left, right = figure.subplots(1, 2)
        for axes, score in ((left, metric), (right, f"{metric}_delta")):
            _curves(axes, levels, offsets, score)
            axes.set_xlabel("sparsity (share of eligible weights set to zero)")
            _sparsity_ticks(axes, levels)
            axes.grid(axis="y", color="0.9", linewidth=0.7)
            axes.set_axisbelow(True)
            if choice.entry is not None:
                at = choice.entry.sparsity + offsets[choice.entry.method]
                axes.plot(at, choice.entry.figures[score], "o", ms=15, mfc="none", mec="black", zorder=4)
        _score_lines(left, entries[0].figures, references, metric)
        left.set_ylim(bottom=0)
        left.set_ylabel(f"{NAMES[metric]} on test")
        left.set_title("Score", loc="left", fontweight="bold")
        _difference_band(right, levels, f"{metric}_delta", max_drop)
        right.set_ylabel(f"{NAMES[metric]} less dense, on test")
        right.set_title("Difference from dense (paired bootstrap)", loc="left", fontweight="bold")
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 7), frameon=False)
        ring = "" if choice.entry is None else f"   Ring: {choice.entry.key}, chosen on validation."
        figure.suptitle(f"Bars and bands: {confidence:.0%} intervals.{ring}", x=0.01, ha="left", fontsize=9)
        save(figure, path)


def draw_layers(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw the sparsity of every weight matrix (down) in every level (across).

    Args:
        path: PNG to write.
        rows: layer, key and sparsity, as `comparison.layer_table` gives them.
    """
    layers = {layer: i for i, layer in enumerate(dict.fromkeys(row["layer"] for row in rows))}
    keys = {key: i for i, key in enumerate(dict.fromkeys(row["key"] for row in rows))}
    shares = np.full((len(layers), len(keys)), np.nan)
    for row in rows:
        shares[layers[row["layer"]], keys[row["key"]]] = row["sparsity"]
    height = min(1.8 + LAYER_INCHES * len(layers), TALLEST_INCHES)
    with figure_of(4.6 + 0.42 * len(keys), max(height, 3.0)) as figure:
        axes = figure.subplots()
        image = axes.imshow(shares, cmap="cividis", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        axes.set_xticks(range(len(keys)), list(keys), rotation=90, fontsize=8)
        # In a very deep model only every n-th name fits.
        step = -(-len(layers) // int(TALLEST_INCHES / LAYER_INCHES))
        axes.set_yticks(range(0, len(layers), step), [_short(name) for name in layers][::step], fontsize=7)
        methods = [key.rpartition("-")[0] for key in keys]
        if len(layers) <= NUMBERED_LAYERS:
            for row, column in np.argwhere(~np.isnan(shares)):
                share = shares[row, column]
                shade = "black" if share > 0.6 else "white"
                axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=6, color=shade)
        for i in range(1, len(methods)):
            if methods[i] != methods[i - 1]:
                axes.axvline(i - 0.5, color="white", linewidth=2)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_title("Sparsity of each weight matrix, %", loc="left", fontweight="bold")
        bar = figure.colorbar(image, ax=axes, shrink=min(1.0, 6 / height), aspect=25, format=PercentFormatter(1))
        bar.outline.set_visible(False)
        save(figure, path)


def _offsets(levels: Sequence[Entry]) -> dict[str, float]:
    """How far beside its sparsity each method is drawn, so that error bars do not cover each other."""
    methods = list(dict.fromkeys(entry.method for entry in levels))
    sparsities = sorted({entry.sparsity for entry in levels})
    gap = min((b - a for a, b in pairwise(sparsities)), default=0.1)
    apart = min(0.1 * gap / max(len(methods) - 1, 1), 0.02 * max(sparsities[-1] - sparsities[0], gap))
    return {method: (i - (len(methods) - 1) / 2) * apart for i, method in enumerate(methods)}


def _sparsity_ticks(axes: Axes, levels: Sequence[Entry]) -> None:
    """A tick at each sparsity where they have the room, else round numbers."""
    sparsities = sorted({entry.sparsity for entry in levels})
    gap = min((b - a for a, b in pairwise(sparsities)), default=1.0)
    if gap >= 0.07 * (sparsities[-1] - sparsities[0]):
        axes.set_xticks(sparsities, [percent(share) for share in sparsities])
    else:
        axes.xaxis.set_major_formatter(PercentFormatter(1))


def _curves(axes: Axes, levels: Sequence[Entry], offsets: Mapping[str, float], score: str) -> None:
    """One line a method, with error bars."""
    for i, (method, offset) in enumerate(offsets.items()):
        color, marker, line = STYLES[i % len(STYLES)]
        points = sorted((entry for entry in levels if entry.method == method), key=lambda entry: entry.sparsity)
        y = np.array([entry.figures[score] for entry in points])
        low = np.array([entry.figures[f"{score}_low"] for entry in points])
        high = np.array([entry.figures[f"{score}_high"] for entry in points])
        axes.errorbar(
            [entry.sparsity + offset for entry in points],
            y,
            # The score of the whole set may lie outside its percentile interval.
            yerr=[np.maximum(y - low, 0), np.maximum(high - y, 0)],
            label=method,
            color=color,
            marker=marker,
            linestyle=line,
            linewidth=1.6,
            markersize=5,
            elinewidth=1.1,
            capsize=2,
        )


def _score_lines(axes: Axes, dense: Figures, references: Figures, metric: str) -> None:
    axes.axhspan(dense[f"{metric}_low"], dense[f"{metric}_high"], color="0.88", zorder=0)
    axes.axhline(dense[metric], color="0.25", linewidth=1.4, label="dense", zorder=1)
    for prefix, label, line in (("human", "human line", (0, (1, 1))), ("copy", "copy floor", (0, (6, 2)))):
        if f"{prefix}_{metric}" in references:
            height = references[f"{prefix}_{metric}"]
            axes.axhline(height, color="0.45", linewidth=1.2, linestyle=line, label=label, zorder=1)


def _difference_band(axes: Axes, levels: Sequence[Entry], score: str, max_drop: float) -> None:
    """The target, and limits that keep the levels near it apart; a level far below runs off the picture."""
    axes.axhline(0, color="0.25", linewidth=1.4, zorder=1)
    axes.axhspan(-max_drop, 0, color="#009E73", alpha=0.12, linewidth=0, zorder=0)
    lowest = min(entry.figures[f"{score}_low"] for entry in levels)
    highest = max(entry.figures[f"{score}_high"] for entry in levels)
    bottom = min(max(lowest, -max(6 * max_drop, 3.0)), -max_drop)
    top = max(highest, 0)
    margin = 0.1 * (top - bottom) or 1.0
    axes.set_ylim(bottom - margin, top + margin)
    axes.annotate(
        f"target: at most {max_drop:g} below",
        (1, -max_drop),
        xycoords=("axes fraction", "data"),
        xytext=(-4, -3),
        textcoords="offset points",
        ha="right",
        va="top",
        fontsize=8,
        color="#00664b",
    )


@contextmanager
def figure_of(width: float, height: float) -> Iterator[Figure]:
    """A figure that no matplotlibrc of the machine changes."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                "font.size": 9,
                "axes.spines.top": False,
                "axes.spines.right": False,
                "figure.dpi": 160,
                "savefig.dpi": 160,
            }
        )
        figure = plt.figure(figsize=(width, height), layout="constrained")
        try:
            yield figure
        finally:
            plt.close(figure)


def save(figure: Figure, path: Path) -> None:
    """Write a PNG, the same bytes for the same figure."""
    with replacing(path) as partial:
        # Matplotlib would write its own version into the file.
        figure.savefig(partial, format="png", metadata={"Software": None})


def _short(name: str) -> str:
    """A parameter's name without what every one has: `.weight`, and parts that repeat the one before."""
    parts = name.removesuffix(".weight").split(".")
    kept = [part for i, part in enumerate(parts) if i == 0 or part != parts[i - 1]]
    return ".".join(part for part in kept if part not in ("layer", "layers", "model"))
