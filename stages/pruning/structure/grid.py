"""Structures to measure, and what their times say of each part.

Times are taken of the whole model and of smaller ones that are cut of it: of each knob half or three quarters, half of
every two, and much of everything, without which small models would be told by what is left of large ones: their weights
fit a cache. Others, of which everything is cut too, are not fitted: they show how well the parts add up to a time that
was not measured.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stages.params.prune import Part, Structured
from stages.pruning.structure.axes import Structure
from stages.pruning.structure.knobs import KINDS, Knob, find_knobs, plan_of, possible
from stages.pruning.structure.latency import PARTS
from stages.pruning.structure.plan import Plan

EVERYTHING = dict.fromkeys(KINDS, "auto")


@dataclass(frozen=True)
class Point:
    """A structure to measure."""

    plan: Plan
    label: str
    """What is left of what is cut, by config field."""
    fitted: bool
    """Whether the parts are fitted to it, or checked by it."""


def grid(structure: Structure, rules: Structured) -> list[Point]:
    """What to measure, the whole model first.

    Args:
        structure: of the model.
        rules: params; what they let be cut does not matter here.
    """
    knobs = find_knobs(structure, rules.model_copy(update=EVERYTHING))
    fitted: list[Mapping[Knob, float]] = [{}]
    fitted += [{knob: lost} for knob in knobs for lost in (0.5, 0.75)]
    fitted += [dict.fromkeys(pair, 0.5) for pair in itertools.combinations(knobs, 2)]
    fitted += [dict.fromkeys(knobs, lost) for lost in (0.5, 0.75)] + [_turns(knobs, 0.25, 0.75)]
    checked: list[Mapping[Knob, float]] = [dict.fromkeys(knobs, lost) for lost in (0.25, 0.4, 0.65)]
    checked += [_turns(knobs, 0.75, 0.25)]
    points: dict[str, Point] = {}
    for number, shares in enumerate([*fitted, *checked]):
        sizes = {knob: left for knob, lost in shares.items() if (left := knob.left(lost)) < knob.size}
        plan = plan_of(structure, sizes)
        label = ", ".join(_label(k, left) for k, left in sizes.items()) or "whole"
        if label not in points and possible(structure, sizes):
            points[label] = Point(plan, label, number < len(fitted))
    return list(points.values())


def fit(amounts: Sequence[Mapping[Part, float]], milliseconds: Sequence[float]) -> dict[Part, float]:
    """Milliseconds of each part, none below 0, of least squared relative error.

    Args:
        amounts: how much of each part the structures have (`latency.amounts`), the whole model first.
        milliseconds: what they take.

    Returns:
        By part, of a layer, of a million weights, or of the reply itself.
    """
    parts = [part for part in PARTS if part in amounts[0]]
    times = np.array(milliseconds)
    weights = 1 / times
    # Speed is told against the whole model, whose time is taken with each of the others.
    weights[0] *= len(times) ** 0.5
    rows = np.array([[found[part] for part in parts] for found in amounts]) * weights[:, None]
    scale = np.abs(rows).max(axis=0)
    solved = nonnegative(rows / scale, times * weights) / scale
    return {part: float(f"{value:.4g}") for part, value in zip(parts, solved, strict=True)}


def nonnegative(rows: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The x of no component below 0 of least |rows x - wanted|.

    Its positive components are the ordinary solution of their columns alone, so that of a few columns each subset is
    tried. What columns do not tell apart is shared between them.

    Args:
        rows: [equations, unknowns]; at most some ten unknowns.
        wanted: [equations].
    """
    columns = rows.shape[1]
    best, error = np.zeros(columns), float(np.square(wanted).sum())
    for subset in itertools.chain.from_iterable(
        itertools.combinations(range(columns), count) for count in range(columns, 0, -1)
    ):
        solved = np.linalg.lstsq(rows[:, subset], wanted, rcond=None)[0]
        found = float(np.square(rows[:, subset] @ solved - wanted).sum())
        if (solved >= 0).all() and found < error:
            best, error = np.zeros(columns), found
            best[list(subset)] = solved
    return best


def _turns(knobs: Sequence[Knob], one: float, other: float) -> dict[Knob, float]:
    return {knob: other if place % 2 else one for place, knob in enumerate(knobs)}


def _label(knob: Knob, left: int) -> str:
    field, step = next(iter(knob.fields.items()), (knob.kind, 1))
    return f"{field} {left * step}"
