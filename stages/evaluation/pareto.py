"""The Pareto picture: quality against latency and against size, of dense, every level and every export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from stages import layout
from stages.errors import UserError
from stages.evaluation.comparison import NAMES
from stages.evaluation.plots import STYLES, figure_of, save

Corner = Literal["lower left", "lower right"]
FAR = 1.5
"""Widths of the control's interval below it, beyond which points are left out of the picture."""


@dataclass(frozen=True)
class Point:
    """What was measured of one generator.

    Attributes:
        key: a level, or a format.
        score: with the bounds of its interval: score, low, high.
        latency_ms: quartiles of one text: first, median, third.
        megabytes: of weights or graphs, compressed, which shows what zeros save.
    """

    key: str
    score: tuple[float, float, float]
    latency_ms: tuple[float, float, float]
    megabytes: float

    @property
    def method(self) -> str:
        """What points of one style share."""
        return self.key.rpartition("-")[0] if _is_level(self.key) else self.key


def front(costs: Sequence[float], scores: Sequence[float]) -> list[int]:
    """Which points no other is better than in both.

    Args:
        costs: lower is better.
        scores: higher is better.

    Returns:
        Indices, from the least cost up; of points that are equal in both, the first.
    """
    found: list[int] = []
    for i in sorted(range(len(costs)), key=lambda i: (costs[i], -scores[i])):
        if not found or scores[i] > scores[found[-1]]:
            found.append(i)
    return found


def draw(path: Path, points: Sequence[Point], metric: str, confidence: float, chosen: str | None) -> None:
    """Draw both pictures side by side.

    Args:
        path: PNG to write.
        points: the control first.
        metric: of the scores.
        confidence: of their intervals, for the caption.
        chosen: key to mark.
    """
    with figure_of(11.5, 5.0) as figure:
        left, right = figure.subplots(1, 2, sharey=True)
        _scatter(left, points, [point.latency_ms for point in points], chosen, "lower left")
        left.set_xlabel("latency of one text, ms (median and quartiles; greedy)")
        left.set_ylabel(f"{NAMES[metric]} on test")
        left.set_title("Quality and latency", loc="left", fontweight="bold")
        sizes = [(point.megabytes, point.megabytes, point.megabytes) for point in points]
        _scatter(right, points, sizes, chosen, "lower right")
        right.set_xlabel("size, MB (weights or graphs, compressed by zstd)")
        right.set_title("Quality and size", loc="left", fontweight="bold")
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 8), frameon=False)
        ring = "" if chosen is None else f"   Ring: {chosen}, chosen on validation."
        caption = f"Bars up: {confidence:.0%} intervals. Grey: the front, which no other beats in both.{ring}"
        figure.suptitle(caption, x=0.01, ha="left", fontsize=9)
        save(figure, path)


def _is_level(key: str) -> bool:
    try:
        layout.Level.parse(key)
    except UserError:
        return False
    return True


def _scatter(
    axes: Axes, points: Sequence[Point], costs: Sequence[tuple[float, float, float]], chosen: str | None, corner: Corner
) -> None:
    scores = [point.score[0] for point in points]
    best = front([cost[1] for cost in costs], scores)
    axes.step([costs[i][1] for i in best], [scores[i] for i in best], where="post", color="0.7", linewidth=5, zorder=0)
    for method, (color, marker) in _styles(points).items():
        own = [i for i, point in enumerate(points) if point.method == method]
        x, y = np.array([costs[i] for i in own]), np.array([points[i].score for i in own])
        axes.errorbar(
            x[:, 1],
            y[:, 0],
            xerr=np.maximum(np.stack([x[:, 1] - x[:, 0], x[:, 2] - x[:, 1]]), 0),
            yerr=np.maximum(np.stack([y[:, 0] - y[:, 1], y[:, 2] - y[:, 0]]), 0),
            label=method,
            color=color,
            marker=marker,
            linestyle="none",
            markersize=6,
            elinewidth=0.9,
            alpha=0.9,
        )
    for i, point in enumerate(points):
        if point.key == chosen:
            axes.plot(costs[i][1], point.score[0], "o", ms=15, mfc="none", mec="black", zorder=4)
    axes.set_xscale("log")
    axes.set_xticks(*_ticks([value for cost in costs for value in cost]))
    axes.minorticks_off()
    axes.grid(color="0.9", linewidth=0.7)
    axes.set_axisbelow(True)
    _heights(axes, points)
    _name_front(axes, [points[i].key for i in best], corner)


def _styles(points: Sequence[Point]) -> Mapping[str, tuple[str, str]]:
    """Colour and marker of each method or format; dense and baseline in greys."""
    greys = {layout.DENSE: ("black", "*"), layout.BASELINE: ("0.5", "X")}
    methods = list(dict.fromkeys(point.method for point in points if point.key not in greys))
    styles = {method: STYLES[i % len(STYLES)][:2] for i, method in enumerate(methods)}
    return {name: style for name, style in greys.items() if any(p.key == name for p in points)} | styles


def _ticks(values: Sequence[float]) -> tuple[list[float], list[str]]:
    """Round numbers (1, 1.5, 2, 3, 5, 7 times a power of ten) within and just around the values."""
    low, high = min(values) / 1.15, max(values) * 1.15
    first = int(np.floor(np.log10(low)))
    steps = [step * 10.0**power for power in range(first, first + 8) for step in (1, 1.5, 2, 3, 5, 7)]
    ticks = [tick for tick in steps if low <= tick <= high]
    return ticks, [f"{tick:g}" for tick in ticks]


def _name_front(axes: Axes, keys: Sequence[str], corner: Corner) -> None:
    """Name the points of the front in a corner: beside them, the names of close ones would overlap."""
    nothing = [Line2D([], [], linestyle="none") for _ in keys]
    options: dict[str, Any] = {"handlelength": 0, "handletextpad": 0, "fontsize": 8, "framealpha": 0.6}
    axes.legend(nothing, keys, title="front, from the left", loc=corner, **options)


def _heights(axes: Axes, points: Sequence[Point]) -> None:
    """Limits that keep the points near the control apart; one far below runs off the picture."""
    _, low, high = points[0].score
    floor = low - FAR * (high - low)
    bottom, top = min(point.score[1] for point in points), max(point.score[2] for point in points)
    bottom = max(bottom, floor)
    margin = 0.05 * (top - bottom) or 1.0
    axes.set_ylim(bottom - margin, top + margin)
