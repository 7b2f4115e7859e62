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
from stages.pruning.structure.axes import Axis, Structure, describe
from stages.pruning.structure.cost import BUDGETS, Cost
from stages.pruning.structure.masking import masked
from stages.pruning.structure.plan import Plan, whole

MOST_TRIED = 64
"""Structures whose loss is measured at most; of more, so many at even distances."""
STEPS = 4
"""Sizes of heads and width between all and none that allocation `loss` tries."""


@dataclass(frozen=True, eq=False)
class Knob:
    """A number that can be lowered: of layers, or of units that have to agree."""

    kind: str
    """As its share is called in params `prune.structured`."""
    size: int
    fields: Mapping[str, int]
    """Config fields it sets: units of each in one step."""
    side: Side | None = None
    """Of layers."""
    allowed: tuple[int, ...] = ()
    """Sizes that a config can hold, ascending; none: all."""

    def left(self, share: float) -> int:
        """What stays if it loses a share of it, rounded up; at least one."""
        left = max(1, math.ceil(self.size * (1 - share) - 1e-9))
        return next((size for size in self.allowed if size >= left), left)

    def units(self, left: int) -> dict[str, int]:
        """What so many steps come to: units by config field, blocks by kind."""
        return {field: left * step for field, step in self.fields.items()} or {self.kind: left}

    def steps(self, units: Mapping[str, int]) -> int:
        """So many units, of `units`, in steps; what a smaller model has at most."""
        one = self.units(1)
        return min(self.size, *(units[field] // step for field, step in one.items()))


Sizes = Mapping[Knob, int]
"""How much of each knob stays."""


def choose(context: Context, limit: float, dense: Structure | None = None) -> Plan:
    """The structure whose cost is just not above a limit.

    Args:
        context: the model, its calibration batches, and params `prune.structured`.
        limit: in the unit of the budget (`cost`).
        dense: of the model before anything was removed of it, which shares of a kind are shares of; None: this one.

    Raises:
        UserError: no structure costs so little, or the shares asked for cannot be had.
    """
    rules: Structured = context.settings
    structure = describe(context.model)
    cost_of = BUDGETS[rules.budget](context, structure)
    knobs = find_knobs(structure, rules)
    fixed = _fixed(knobs, find_knobs(dense, rules) if dense else knobs, rules)
    overdue = dense is not None and any(left < knob.size for knob, left in fixed.items())
    if cost_of(whole(structure)) <= limit and not overdue:
        return whole(structure)
    free = [knob for knob in knobs if knob not in fixed]
    units = _Units(context, structure, rules)
    if rules.allocation == "uniform":
        return units.plan(_uniform(structure, cost_of, fixed, free, limit))
    return _least_loss(context, structure, units, _candidates(structure, cost_of, fixed, free, limit))


def cost(context: Context) -> float:
    """What the model of a context costs, in the unit of its budget."""
    structure = describe(context.model)
    return BUDGETS[context.settings.budget](context, structure)(whole(structure))


def least(structure: Structure, cost_of: Cost, rules: Structured) -> float:
    """Share of the cost that is there when all has gone that may."""
    knobs = find_knobs(structure, rules)
    fixed = _fixed(knobs, knobs, rules)
    free = [knob for knob in knobs if knob not in fixed]
    return _cost(structure, cost_of, {**fixed, **dict.fromkeys(free, 1)}) / cost_of(whole(structure))


def _fixed(knobs: Sequence[Knob], dense: Sequence[Knob], rules: Structured) -> dict[Knob, int]:
    """What stays of the knobs that have a share of their own, which is one of the dense model's."""
    units: dict[str, int] = {}
    for knob in dense:
        if (share := getattr(rules, knob.kind)) != "auto":
            left = knob.left(share)
            if left == knob.size and share and knob.allowed:
                raise UserError(
                    f"prune.structured.{knob.kind} is {share}, of which nothing would go: of {knob.size} the config "
                    f"can hold {', '.join(map(str, knob.allowed))}"
                )
            units |= knob.units(left)
    return {knob: knob.steps(units) for knob in knobs if getattr(rules, knob.kind) != "auto"}


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


def find_knobs(structure: Structure, rules: Structured) -> list[Knob]:
    """What of a model can be lowered, as far as its family and the rules allow it."""
    knobs = [
        Knob(f"{side}_layers", stack.blocks, {}, side)
        for side, stack in sorted(structure.stacks.items())  # the decoder first: it takes most of a reply's time
        if not _refused(rules, f"{side}_layers", stack.locked)
    ]
    sizes: dict[str, Axis] = {}
    for axis in structure.axes.values():
        sizes.setdefault(axis.size, axis)
    bound = {size for size in sizes if size in structure.head_sizes}
    widths = [axis for axis in sizes.values() if axis.kind == "width"]
    if bound:
        stays = next((axis.locked for axis in widths if axis.locked), None)
        instead = f"which has to stay ({stays})" if stays else "set prune.structured.width, and heads to auto"
        _refused(rules, "heads", f"in this family heads fill the width: {instead}")
    for axis in sizes.values():
        if (axis.kind == "neurons" or (axis.kind == "heads" and axis.size not in bound)) and getattr(rules, axis.kind):
            knobs.append(Knob(axis.kind, axis.units, {axis.size: 1}, allowed=_allowed(axis, structure, rules)))
    groups = [widths] if structure.same_width else [[axis] for axis in widths]
    for group in groups:
        locked = next((axis.locked for axis in group if axis.locked), None)
        if _refused(rules, "width", locked):
            continue
        sides = {axis.side for axis in group} | ({"encoder", "decoder"} if len(widths) == 1 else set())
        heads = {size: structure.head_sizes[size] for size in bound if sizes[size].side in sides}
        step = math.lcm(*heads.values(), *_divisors(structure))
        units = group[0].units
        fields = {axis.size: step for axis in group} | {size: step // of for size, of in heads.items()}
        knobs.append(Knob("width", units // step, fields))
    return knobs


def _divisors(structure: Structure) -> list[int]:
    """What the width has to be a multiple of, where the config wants heads to divide it."""
    found = [1]
    for axis in structure.axes.values():
        if axis.kind == "heads" and structure.stacks[axis.side].family.divisible:
            found.append(axis.units * structure.queries)
    return found


def _allowed(axis: Axis, structure: Structure, rules: Structured) -> tuple[int, ...]:
    """Numbers of heads that divide the width, where the config wants that; whatever is left of the width."""
    if axis.kind != "heads" or not structure.stacks[axis.side].family.divisible:
        return ()
    width = structure.width(axis.side).units if rules.width == 0 else axis.units * structure.queries
    return tuple(heads for heads in range(1, axis.units + 1) if width % (heads * structure.queries) == 0)


def _refused(rules: Structured, kind: str, reason: str | None) -> bool:
    """Whether a kind cannot be cut.

    Raises:
        UserError: a share of it is asked for all the same.
    """
    share = getattr(rules, kind)
    if reason and share not in ("auto", 0):
        raise UserError(f"prune.structured.{kind} cannot be {share}: {reason}")
    return bool(reason) or share == 0


def _uniform(structure: Structure, cost_of: Cost, fixed: Sizes, free: Sequence[Knob], limit: float) -> dict[Knob, int]:
    """Sizes within the limit of which free knobs lose about the same share.

    Where there are few layers, the same share of each can be far less than the limit. So layers, heads and width go one
    after another, the next always of what has lost the smallest share, and neurons as many as it then takes; of all
    that comes as near to the limit as any, the most even is taken.
    """
    fine = [knob for knob in free if knob.kind == "neurons"]
    coarse = [knob for knob in free if knob.kind != "neurons"]
    dense = cost_of(whole(structure))
    found = []
    held = {**fixed, **{knob: knob.size for knob in coarse}}
    steps = sorted((lost / knob.size, place, lost) for place, knob in enumerate(coarse) for lost in range(1, knob.size))
    for share, place, _ in [(0.0, -1, 0), *steps]:
        if place >= 0:
            held[coarse[place]] = coarse[place].left(share)
        sizes = _same_share(structure, cost_of, held, fine, limit)
        short = limit - _cost(structure, cost_of, sizes)
        if short >= 0:
            found.append((round(short / dense, 2), max((1 - sizes[k] / k.size for k in free), default=0), sizes))
    if not found:
        raise _too_much(structure, cost_of, {**fixed, **dict.fromkeys(free, 1)})
    return min(found, key=lambda candidate: candidate[:2])[2]


def _same_share(
    structure: Structure, cost_of: Cost, fixed: Sizes, free: Sequence[Knob], limit: float
) -> dict[Knob, int]:
    """The largest sizes within the limit of which all free knobs lose the same share; the least if none are."""
    shares = sorted({lost / knob.size for knob in free for lost in range(knob.size)} | {0.0})

    def sizes(place: int) -> dict[Knob, int]:
        return {**fixed, **{knob: knob.left(shares[place]) for knob in free}}

    # Costs fall as the share grows: the first place from which on they are within the limit.
    place = bisect_left(range(len(shares) - 1), True, key=lambda p: _cost(structure, cost_of, sizes(p)) <= limit)
    return sizes(place)


def _candidates(
    structure: Structure, cost_of: Cost, fixed: Sizes, free: Sequence[Knob], limit: float
) -> list[dict[Knob, int]]:
    """Sizes within the limit: every number of layers, some of heads and width, and as many neurons as fit then.

    Fewer heads and less width than the least step are tried where nothing else is within it.
    """
    for some in (_some, _fewest):
        if found := _tried(structure, cost_of, fixed, free, limit, some):
            return found
    raise _too_much(structure, cost_of, {**fixed, **dict.fromkeys(free, 1)})


def _tried(
    structure: Structure,
    cost_of: Cost,
    fixed: Sizes,
    free: Sequence[Knob],
    limit: float,
    some: Callable[[Knob], list[int]],
) -> list[dict[Knob, int]]:
    """The candidates among some sizes of each knob."""
    fine = [knob for knob in free if knob.kind == "neurons"]
    coarse = [knob for knob in free if knob.kind != "neurons"]
    tried = []
    for sizes in itertools.product(*(some(knob) for knob in coarse)):
        chosen = {**fixed, **dict(zip(coarse, sizes, strict=True))}
        if _cost(structure, cost_of, {**chosen, **dict.fromkeys(fine, 1)}) > limit:
            continue
        found = _same_share(structure, cost_of, chosen, fine, limit)
        # With the next larger number of a knob, and neurons as they are, the budget would do as well.
        wasteful = any(
            _cost(structure, cost_of, {**found, knob: min(more)}) <= limit
            for knob in coarse
            if (more := [size for size in some(knob) if size > found[knob]])
        )
        if not wasteful:
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


def _least_loss(context: Context, structure: Structure, units: _Units, candidates: Sequence[Sizes]) -> Plan:
    best: tuple[float, Plan] | None = None
    refused: UserError | None = None
    for sizes in candidates[:: math.ceil(len(candidates) / MOST_TRIED)]:
        try:
            plan = units.plan(sizes)
        except UserError as error:  # no config of the family has these sizes
            refused = error
            continue
        with masked(context.model, plan, structure):
            loss = scores.mean_loss(context)
        if best is None or loss < best[0]:
            best = loss, plan
    if best is None:
        raise refused or UserError("prune.structured: no structure meets the budget")
    return best[1]


def plan_of(structure: Structure, sizes: Sizes) -> Plan:
    """A plan of so many units, the first ones."""
    layers = dict(whole(structure).layers)
    layers |= {knob.side: tuple(range(left)) for knob, left in sizes.items() if knob.side}
    counts = {field: left * step for knob, left in sizes.items() for field, step in knob.fields.items()}
    plan = Plan(layers)
    axes = [axis for axis in structure.axes.values() if axis.size in counts and plan.has(axis)]
    return Plan(layers, {axis.name: tuple(range(counts[axis.size])) for axis in axes})


def _cost(structure: Structure, cost_of: Cost, sizes: Sizes) -> float:
    return cost_of(plan_of(structure, sizes))


def _too_much(structure: Structure, cost_of: Cost, least: Sizes) -> UserError:
    share = _cost(structure, cost_of, least) / cost_of(whole(structure))
    return UserError(
        f"prune.structured: the least that can be left is {share:.0%} of the budget, more than the level's "
        "sparsity allows: lower the sparsity, or set more kinds to auto"
    )


def _best(found: Tensor, count: int) -> tuple[int, ...]:
    """The units of the highest scores, ascending; of equal ones the first."""
    order = found.argsort(descending=True, stable=True)
    return tuple(sorted(order[:count].tolist()))
