"""The numbers that can be lowered of a model: what a family and the rules allow, and the shares that are asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stages.errors import UserError
from stages.models.anatomy import Side
from stages.params.prune import Structured
from stages.pruning.structure.axes import Axis, Structure
from stages.pruning.structure.plan import Plan, whole

KINDS = ("encoder_layers", "decoder_layers", "heads", "neurons", "width")
"""As params `prune.structured` call them."""


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


def fixed(knobs: Sequence[Knob], dense: Sequence[Knob], rules: Structured) -> dict[Knob, int]:
    """What stays of the knobs that have a share of their own, which is one of the dense model's.

    Args:
        knobs: of the model as it is.
        dense: of the model before anything was removed of it.
        rules: have the shares.

    Raises:
        UserError: nothing would go of a share.
    """
    units: dict[str, int] = {}
    for kind in KINDS:
        if (share := getattr(rules, kind)) == "auto":
            continue
        left = {knob: knob.left(share) for knob in dense if knob.kind == kind}
        if share and all(stays == knob.size for knob, stays in left.items()):
            raise _nothing(kind, share, list(left))
        for knob, stays in left.items():
            units |= knob.units(stays)
    return {knob: knob.steps(units) for knob in knobs if getattr(rules, knob.kind) != "auto"}


def _nothing(kind: str, share: float, knobs: Sequence[Knob]) -> UserError:
    """Why nothing goes of a share, and what would."""
    largest = max(knobs, key=lambda knob: knob.size, default=None)
    if largest is None:
        return UserError(f"prune.structured.{kind} is {share}, but the model has none: set it to 0")
    asked = f"prune.structured.{kind} is {share}, of which nothing would go"
    if largest.allowed:
        return UserError(
            f"{asked}: of {largest.size} the config can hold {', '.join(map(str, largest.allowed))}; set it to such a "
            "share, or to 0"
        )
    if largest.size == 1:
        return UserError(f"{asked}, since one has to stay: set it to 0")
    step = next(iter(largest.fields.values()), 1)
    least = math.ceil(1e4 / largest.size) / 1e4
    return UserError(f"{asked}: set it to {least:g} at least, which is {step} of {largest.size * step}, or to 0")


def plan_of(structure: Structure, sizes: Sizes) -> Plan:
    """A plan of so many units, the first ones."""
    layers = dict(whole(structure).layers)
    layers |= {knob.side: tuple(range(left)) for knob, left in sizes.items() if knob.side}
    counts = {field: left * step for knob, left in sizes.items() for field, step in knob.fields.items()}
    plan = Plan(layers)
    axes = [axis for axis in structure.axes.values() if axis.size in counts and plan.has(axis)]
    return Plan(layers, {axis.name: tuple(range(counts[axis.size])) for axis in axes})


def check(structure: Structure, sizes: Sizes) -> None:
    """Check that a config can hold these sizes.

    Raises:
        UserError: it cannot.
    """
    plan_of(structure, sizes).check(structure, "prune.structured")


def possible(structure: Structure, sizes: Sizes) -> bool:
    """Whether a config can hold these sizes."""
    try:
        check(structure, sizes)
    except UserError:
        return False
    return True
