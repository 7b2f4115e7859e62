"""Which layers and units of the dense model stay: what a structural level is, apart from its weights."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stages.errors import UserError
from stages.files import read_json, remedy, write_json
from stages.models.anatomy import Side
from stages.pruning.structure.axes import Axis, Structure

PLAN_FILE = "structure.json"


@dataclass(frozen=True)
class Plan:
    """What is kept. Indices are those of the dense model, ascending."""

    layers: Mapping[Side, tuple[int, ...]]
    """Blocks of each side that are kept."""
    units: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Units of each axis that are kept; of one that is not named, all. Axes of removed blocks are not named."""

    def save(self, path: Path) -> None:
        """Write it as JSON, on one line an axis."""
        write_json(path, {"layers": _spelled(self.layers), "units": _spelled(self.units)})

    @classmethod
    def load(cls, path: Path) -> Plan:
        """Read a plan.

        Raises:
            UserError: the file is missing, or is no plan.
        """
        read = read_json(path)
        try:
            layers, units = (_read(read[part]) for part in ("layers", "units"))
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise UserError(f"{path} is no plan of a structure ({error}): {remedy(path)}") from None
        return cls(layers, units)  # type: ignore[arg-type]

    def kept(self, axis: Axis) -> tuple[int, ...]:
        """Units of an axis that are kept."""
        return self.units.get(axis.name, tuple(range(axis.units)))

    def has(self, axis: Axis) -> bool:
        """Whether an axis is there at all: not if its block is removed."""
        return axis.block is None or axis.block in self.layers[axis.side]

    def elements(self, name: str, shape: Sequence[int], structure: Structure) -> int:
        """How many elements are left of a tensor of that name and shape."""
        placed = structure.placed(name)
        if placed and placed[1] not in self.layers[placed[0]]:
            return 0
        kept = [
            len(self.kept(structure.axes[d.axis])) * d.parts * d.width if d else whole
            for d, whole in zip(structure.tensors[name], shape, strict=True)
        ]
        return math.prod(kept)

    def after(self, earlier: Plan, structure: Structure) -> Plan:
        """This plan, as seen by a model from which an earlier one has been removed.

        Args:
            earlier: keeps all that this one keeps.
            structure: of the dense model.

        Raises:
            RuntimeError: the earlier plan has removed what this one keeps; a bug, since removal only goes on.
        """
        layers = {side: _within(kept, earlier.layers[side], side) for side, kept in self.layers.items()}
        units = {}
        for axis in structure.axes.values():
            if self.has(axis):
                name = axis.name
                if axis.block is not None:
                    block = earlier.layers[axis.side].index(axis.block)
                    name = f"{axis.side}.{block}.{name.rpartition('.')[2]}"
                units[name] = _within(self.kept(axis), earlier.kept(axis), axis.name)
        return Plan(layers, units)

    def check(self, structure: Structure, origin: str = "the plan") -> None:
        """Check that the plan is one of this model, and that a plain config can describe what is left.

        Raises:
            UserError: it is not.
        """
        _check_layers(self, structure, origin)
        counts: dict[str, dict[int, str]] = defaultdict(dict)
        for name, kept in self.units.items():
            axis = structure.axis(name)
            if not self.has(axis):
                raise UserError(f"{origin}: {name} is of a layer that is removed")
            _check_indices(kept, axis.units, f"{origin}: {name}")
            if axis.locked and len(kept) < axis.units:
                raise UserError(f"{origin}: {name} cannot be cut: {axis.locked}")
        for axis in structure.axes.values():
            if self.has(axis):
                counts[axis.size][len(self.kept(axis))] = axis.name
        for size, found in counts.items():
            if len(found) > 1:
                (less, one), (more, other) = list(found.items())[:2]
                raise UserError(
                    f"{origin}: {one} keeps {less}, {other} {more}: the config has one {size}, so they must agree"
                )
        _check_heads(self, structure, origin)


def whole(structure: Structure) -> Plan:
    """The plan that keeps everything."""
    return Plan({side: tuple(range(stack.blocks)) for side, stack in structure.stacks.items()})


def counts(plan: Plan, structure: Structure) -> dict[str, int]:
    """Units kept by config field, layers among them; query heads are not."""
    sizes = {axis.size: len(plan.kept(axis)) for axis in structure.axes.values() if plan.has(axis)}
    return sizes | {stack.size: len(plan.layers[side]) for side, stack in structure.stacks.items()}


def _check_layers(plan: Plan, structure: Structure, origin: str) -> None:
    if set(plan.layers) != set(structure.stacks):
        raise UserError(f"{origin} is of sides {sorted(plan.layers)}, the model has {sorted(structure.stacks)}")
    for side, kept in plan.layers.items():
        stack = structure.stacks[side]
        _check_indices(kept, stack.blocks, f"{origin}: layers of the {side}")
        if stack.locked and len(kept) < stack.blocks:
            raise UserError(f"{origin}: no layer of the {side} can be removed: {stack.locked}")
    sides = structure.stacks
    # transformers sizes the cache of a T5 by its encoder.
    is_t5 = "encoder" in sides and sides["decoder"].size == "num_decoder_layers"
    encoder, decoder = len(plan.layers.get("encoder", ())), len(plan.layers["decoder"])
    if is_t5 and decoder > encoder:
        raise UserError(
            f"{origin}: a T5 with more decoder than encoder layers cannot generate, and {decoder} would stay of the "
            f"decoder, {encoder} of the encoder: raise decoder_layers, the share that goes, or lower encoder_layers"
        )


def _check_heads(plan: Plan, structure: Structure, origin: str) -> None:
    """Check that heads fill the width where they have to, and divide it where the config wants that."""
    if structure.same_width:
        encoder, decoder = (len(plan.kept(structure.axes[f"{side}.width"])) for side in ("encoder", "decoder"))
        if encoder != decoder:
            raise UserError(
                f"{origin}: encoder.width keeps {encoder} dimensions, decoder.width {decoder}: cross-attention reads "
                "the one as the other, so they must agree"
            )
    for axis in structure.axes.values():
        if axis.kind != "heads" or not plan.has(axis):
            continue
        width = structure.width(axis.side)
        dimensions, heads = len(plan.kept(width)), len(plan.kept(axis))
        size = structure.head_sizes.get(axis.size)
        if size and heads * size != dimensions:
            raise UserError(
                f"{origin}: {axis.name} keeps {heads} heads of {size}, {width.name} {dimensions} dimensions: in this "
                "family heads fill the width, so that both must be cut together"
            )
        family = structure.stacks[axis.side].family
        queries = heads * structure.queries
        if family.divisible and dimensions % queries:
            raise UserError(f"{origin}: {width.name} keeps {dimensions} dimensions, no multiple of {queries} heads")


def _check_indices(kept: tuple[int, ...], size: int, what: str) -> None:
    if not kept:
        raise UserError(f"{what}: at least one has to stay")
    if list(kept) != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= size:
        raise UserError(f"{what}: kept indices must ascend and be below {size}")


def _within(kept: tuple[int, ...], earlier: tuple[int, ...], what: str) -> tuple[int, ...]:
    places = {index: place for place, index in enumerate(earlier)}
    if gone := [index for index in kept if index not in places]:
        raise RuntimeError(f"{what}: {gone[0]} is kept, and has been removed before")
    return tuple(places[index] for index in kept)


def _spelled(kept: Mapping[Any, tuple[int, ...]]) -> dict[str, str]:
    """Indices as a short text, `0-3 5`, for a file that people can read."""
    return {str(name): " ".join(_ranges(indices)) for name, indices in kept.items()}


def _ranges(indices: tuple[int, ...]) -> list[str]:
    runs: list[list[int]] = []
    for index in indices:
        if runs and runs[-1][1] == index - 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return [str(first) if first == last else f"{first}-{last}" for first, last in runs]


def _read(kept: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    found = {}
    for name, text in kept.items():
        bounds = [[int(bound) for bound in run.split("-")] for run in text.split()]
        found[name] = tuple(index for run in bounds for index in range(run[0], run[-1] + 1))
    return found
