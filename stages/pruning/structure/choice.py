"""Which structure a budget leaves: first how many units of each kind stay, then which."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from stages.errors import UserError
from stages.models.anatomy import Side
from stages.params.prune import Structured
from stages.pruning.criterion import Context
from stages.pruning.structure import scores
from stages.pruning.structure.axes import Structure, describe
from stages.pruning.structure.cost import BUDGETS, Cost
from stages.pruning.structure.knobs import Knob, Sizes, check, find_knobs, fixed, plan_of, possible
from stages.pruning.structure.masking import masked
from stages.pruning.structure.plan import Plan, whole

MOST_TRIED = 64
"""Structures whose loss is measured at most; of more, so many at even distances."""
STEPS = 4
"""Sizes of heads and width between all and none that allocation `loss` tries."""


@dataclass(frozen=True)
class Dense:
    """The model before anything was removed of it, its vocabulary neither."""

    structure: Structure
    """Which shares of a kind are shares of."""
    cost: float
    """In the unit of the budget (`cost`)."""


def choose(context: Context, limit: float, dense: Dense | None = None) -> Plan:
    """The structure whose cost is just not above a limit.

    Args:
        context: the model, its calibration batches, and params `prune.structured`.
        limit: in the unit of the budget (`cost`).
        dense: the model that this one has been; its shares go even if the limit is met. None: this one.

    Raises:
        UserError: no structure costs so little, or the shares asked for cannot be had.
    """
    rules: Structured = context.settings
    structure = describe(context.model)
    cost_of = BUDGETS[rules.budget](context, structure)
    knobs = find_knobs(structure, rules)
    held = fixed(knobs, find_knobs(dense.structure, rules) if dense else knobs, rules)
    overdue = dense is not None and any(left < knob.size for knob, left in held.items())
    there = cost_of(whole(structure))
    if there <= limit and not overdue:
        return whole(structure)
    free = _free(structure, cost_of, knobs, held)
    lowest = _cost(structure, cost_of, _fewest_of_all(structure, held, free))
    if lowest > limit:
        raise UserError(
            f"prune.structured: the least that can be left is {lowest / (dense.cost if dense else there):.0%} of the "
            "budget, more than the level's sparsity allows: lower the sparsity, or set more kinds to auto"
        )
    units = _Units(context, structure, rules)
    if rules.allocation == "uniform":
        return units.plan(_uniform(structure, cost_of, held, free, limit))
    found = _candidates(structure, cost_of, held, free, limit)
    best = _least_loss(context, structure, units, found[:: math.ceil(len(found) / MOST_TRIED)])
    fine = [knob for knob in free if knob.kind == "neurons"]
    return _least_loss(context, structure, units, _apart(structure, cost_of, best.sizes, fine, limit), best).plan


def cost(context: Context) -> float:
    """What the model of a context costs, in the unit of its budget."""
    structure = describe(context.model)
    return BUDGETS[context.settings.budget](context, structure)(whole(structure))


def least(structure: Structure, cost_of: Cost, rules: Structured) -> float:
    """The cost that is there when all has gone that may.

    Raises:
        UserError: the shares asked for cannot be had.
    """
    knobs = find_knobs(structure, rules)
    held = fixed(knobs, knobs, rules)
    free = _free(structure, cost_of, knobs, held)
    return _cost(structure, cost_of, _fewest_of_all(structure, held, free))


def _free(structure: Structure, cost_of: Cost, knobs: Sequence[Knob], held: Sizes) -> list[Knob]:
    """Knobs that the budget may lower: those without a share of their own, by which something is saved.

    Others would lose units for nothing. A cost that a knob does not lower in the whole model it never does.
    """
    there = cost_of(whole(structure))
    return [knob for knob in knobs if knob not in held and _cost(structure, cost_of, {knob: 1}) < there]


def _fewest_of_all(structure: Structure, held: Sizes, free: Sequence[Knob]) -> dict[Knob, int]:
    """The smallest sizes that a config can hold.

    Raises:
        UserError: it can hold none with these shares.
    """
    sizes = {**held, **dict.fromkeys(free, 1)}
    if possible(structure, sizes):
        return sizes
    for knob in free:  # one side's layers may have to be as many as the other's
        for left in range(2, knob.size + 1):
            if possible(structure, found := {**sizes, knob: left}):
                return found
    check(structure, sizes)
    return sizes


class _Units:
    """Which layers and units stay, given how many; scores are computed once."""

    def __init__(self, context: Context, structure: Structure, rules: Structured) -> None:
        self._context, self._structure, self._rules = context, structure, rules
        self._scores: dict[str, Tensor] = {}
        self._layers: dict[tuple[Side, int], tuple[int, ...]] = {}

    def plan(self, sizes: Sizes) -> Plan:
        """The plan that keeps the best of each knob.

        Raises:
            UserError: a config cannot hold these sizes.
        """
        layers = dict(whole(self._structure).layers)
        for knob, left in sizes.items():
            if knob.side:
                layers[knob.side] = self._kept_layers(knob.side, knob.size - left)
        plan = Plan(layers)
        counts = {field: left * step for k, left in sizes.items() if left < k.size for field, step in k.fields.items()}
        if counts and not self._scores:
            self._scores = scores.units(self._context, self._structure, self._rules.score)
        kept = {
            axis.name: _best(self._scores[axis.name], counts[axis.size])
            for axis in self._structure.axes.values()
            if axis.size in counts and plan.has(axis)
        }
        plan = Plan(layers, kept)
        plan.check(self._structure, "prune.structured")
        return plan

    def _kept_layers(self, side: Side, goes: int) -> tuple[int, ...]:
        if (side, goes) not in self._layers:
            order = scores.LAYERS[self._rules.layer_score]
            self._layers[side, goes] = order(self._context, self._structure, {side: goes})[side]
        return self._layers[side, goes]


def _uniform(structure: Structure, cost_of: Cost, held: Sizes, free: Sequence[Knob], limit: float) -> dict[Knob, int]:
    """Sizes within the limit of which free knobs lose about the same share.

    Where there are few layers, the same share of each can be far less than the limit. So layers, heads and width go one
    after another, the next always of what has lost the smallest share, and neurons as many as it then takes; of all
    that comes as near to the limit as any, the most even is taken.
    """
    fine = [knob for knob in free if knob.kind == "neurons"]
    coarse = [knob for knob in free if knob.kind != "neurons"]
    dense = cost_of(whole(structure))
    found = []
    sizes = {**held, **{knob: knob.size for knob in coarse}}
    steps = sorted((lost / knob.size, place, lost) for place, knob in enumerate(coarse) for lost in range(1, knob.size))
    for share, place, _ in [(0.0, -1, 0), *steps]:
        less = {**sizes, **({coarse[place]: coarse[place].left(share)} if place >= 0 else {})}
        if not possible(structure, less):
            continue
        sizes = less
        filled = _same_share(structure, cost_of, sizes, fine, limit)
        short = limit - _cost(structure, cost_of, filled)
        if short >= 0:
            found.append((round(short / dense, 2), max((1 - filled[k] / k.size for k in free), default=0), filled))
    return min(found, key=lambda candidate: candidate[:2])[2]


def _same_share(
    structure: Structure, cost_of: Cost, held: Sizes, free: Sequence[Knob], limit: float
) -> dict[Knob, int]:
    """The largest sizes within the limit of which all free knobs lose the same share; the least if none are."""
    shares = sorted({lost / knob.size for knob in free for lost in range(knob.size)} | {0.0})

    def sizes(place: int) -> dict[Knob, int]:
        return {**held, **{knob: knob.left(shares[place]) for knob in free}}

    # Costs fall as the share grows: the first place from which on they are within the limit.
    place = bisect_left(range(len(shares) - 1), True, key=lambda p: _cost(structure, cost_of, sizes(p)) <= limit)
    return sizes(place)


def _candidates(
    structure: Structure, cost_of: Cost, held: Sizes, free: Sequence[Knob], limit: float
) -> list[dict[Knob, int]]:
    """Sizes within the limit: every number of layers, some of heads and width, and as many neurons as fit then.

    Fewer heads and less width than the least step are tried where nothing else is within it.
    """
    return _tried(structure, cost_of, held, free, limit, _some) or _tried(
        structure, cost_of, held, free, limit, _fewest
    )


def _tried(
    structure: Structure,
    cost_of: Cost,
    held: Sizes,
    free: Sequence[Knob],
    limit: float,
    some: Callable[[Knob], list[int]],
) -> list[dict[Knob, int]]:
    """The candidates among some sizes of each knob."""
    fine = [knob for knob in free if knob.kind == "neurons"]
    coarse = [knob for knob in free if knob.kind != "neurons"]
    tried = []
    for sizes in itertools.product(*(some(knob) for knob in coarse)):
        chosen = {**held, **dict(zip(coarse, sizes, strict=True))}
        within = _cost(structure, cost_of, {**chosen, **dict.fromkeys(fine, 1)}) <= limit
        if not within or not possible(structure, chosen):
            continue
        found = _same_share(structure, cost_of, chosen, fine, limit)
        if not _wasteful(structure, cost_of, found, {knob: some(knob) for knob in coarse}, limit):
            tried.append(found)
    return tried


def _wasteful(
    structure: Structure, cost_of: Cost, sizes: Sizes, steps: Mapping[Knob, Sequence[int]], limit: float
) -> bool:
    """Whether the budget would do as well with the next larger step of a knob, and all else as it is."""
    larger = {knob: [size for size in some if size > sizes[knob]] for knob, some in steps.items()}
    return any(
        _cost(structure, cost_of, more) <= limit and possible(structure, more)
        for more in ({**sizes, knob: min(some)} for knob, some in larger.items() if some)
    )


def _apart(
    structure: Structure, cost_of: Cost, sizes: Sizes, fine: Sequence[Knob], limit: float
) -> list[dict[Knob, int]]:
    """What else neurons can be, of a side some share and of the other as many as fit then; all else as it is."""
    if len(fine) < 2:
        return []
    tried = []
    for knob in fine:
        others = [other for other in fine if other is not knob]
        for left in _some(knob):
            found = _same_share(structure, cost_of, {**sizes, knob: left}, others, limit)
            if found == sizes or found in tried or _cost(structure, cost_of, found) > limit:
                continue
            if not _wasteful(structure, cost_of, found, {knob: _some(knob)}, limit):
                tried.append(found)
    return tried


def _some(knob: Knob) -> list[int]:
    if knob.side:
        return list(range(knob.size, 0, -1))
    return sorted({knob.left(1 - step / STEPS) for step in range(1, STEPS + 1)}, reverse=True)


def _fewest(knob: Knob) -> list[int]:
    """Those of `_some`, and halves of the least of them down to one."""
    sizes = _some(knob)
    while sizes[-1] > 1:
        less = knob.left(1 - sizes[-1] // 2 / knob.size)
        sizes.append(less if less < sizes[-1] else knob.left(1 - 1 / knob.size))
    return sizes


@dataclass(frozen=True)
class _Measured:
    """A structure and its loss on the calibration sample."""

    loss: float
    sizes: Sizes
    plan: Plan


def _least_loss(
    context: Context, structure: Structure, units: _Units, candidates: Sequence[Sizes], best: _Measured | None = None
) -> _Measured:
    """The candidate of the least loss, or what was the best before, if that is no more."""
    for sizes in candidates:
        plan = units.plan(sizes)
        with masked(context.model, plan, structure):
            loss = scores.mean_loss(context)
        if best is None or loss < best.loss:
            best = _Measured(loss, sizes, plan)
    assert best is not None, "with the fewest of all the budget is met, which was checked"
    return best


def _cost(structure: Structure, cost_of: Cost, sizes: Sizes) -> float:
    return cost_of(plan_of(structure, sizes))


def _best(found: Tensor, count: int) -> tuple[int, ...]:
    """The units of the highest scores, ascending; of equal ones the first."""
    order = found.argsort(descending=True, stable=True)
    return tuple(sorted(order[:count].tolist()))
