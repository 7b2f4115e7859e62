"""The units of a generator that can be removed, and the tensors each of them runs through.

A unit is a head, a neuron or a dimension of the hidden width. It lies on an axis, one of a block's or of the whole
side's, and each tensor says which axis each of its dimensions lies on (`families`). From that alone follow what removal
cuts, what masking zeroes, and which weights the score of a unit is made of.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from stages.errors import UserError
from stages.models import anatomy
from stages.models.anatomy import Matrix, Side
from stages.pruning.structure import families
from stages.pruning.structure.families import FAMILIES, Family

Kind = Literal["width", "heads", "neurons"]


@dataclass(frozen=True)
class Axis:
    """Units of one kind that lie beside each other."""

    name: str
    """`width`, or with its side and block, as in `decoder.3.neurons`."""
    kind: Kind
    units: int
    side: Side
    """The decoder's, where both sides have it in common."""
    block: int | None
    """Whose removal takes the axis along; None if it runs through several."""
    size: str
    """Config field of the number of units. Axes of one field have to keep equally many: a config holds one number."""
    locked: str | None = None
    """Why none of its units may be removed."""


@dataclass(frozen=True)
class Dimension:
    """A dimension of a tensor that lies on an axis."""

    axis: str
    parts: int
    """How many times the axis is repeated, as queries, keys and values are in one matrix."""
    width: int
    """Rows (or columns) of a unit, in each part."""

    def indices(self, units: Tensor, of: int) -> Tensor:
        """The rows of these units, of an axis with so many."""
        first = (torch.arange(self.parts)[:, None] * of + units[None, :]).flatten() * self.width
        return (first[:, None] + torch.arange(self.width)[None, :]).flatten()


@dataclass(frozen=True)
class Stack:
    """The blocks of one side."""

    prefix: str
    """Of their names, as in `decoder.bert.encoder.layer`."""
    blocks: int
    size: str
    """Config field of their number."""
    family: Family
    locked: str | None = None
    """Why no block may be removed."""


@dataclass(frozen=True)
class Structure:
    """Everything that can be removed of a model."""

    stacks: Mapping[Side, Stack]
    axes: Mapping[str, Axis]
    tensors: Mapping[str, tuple[Dimension | None, ...]]
    """By name in the state dict; tied ones under each of their names."""
    head_sizes: Mapping[str, int]
    """Dimensions of a head by config field of the heads, where heads have to fill the width."""
    queries: int = 1
    """Query heads of a unit of heads: more than one where they are grouped."""

    same_width: bool = False
    """Whether the widths of two sides have to agree, since cross-attention reads the encoder's as it is."""

    def width(self, side: Side) -> Axis:
        """The residual stream of a side."""
        return self.axes.get(f"{side}.width") or self.axes["width"]

    def axis(self, name: str) -> Axis:
        """The axis of that name.

        Raises:
            UserError: the model has none.
        """
        if name not in self.axes:
            raise UserError(f"the model has no {name}: it has {', '.join(self.axes)}")
        return self.axes[name]

    def read(self, matrix: Matrix) -> tuple[int, Dimension | None]:
        """Which dimension of a matrix its inputs lie along, and the axis that is."""
        place = 0 if matrix.transposed else 1
        return place, self.tensors[matrix.name][place]

    def per_unit(self, value: Tensor, place: int, dimension: Dimension) -> Tensor:
        """Sum over everything but the units [units] that lie along one dimension of a tensor."""
        others = [other for other in range(value.dim()) if other != place]
        summed = value.sum(dim=others) if others else value
        return summed.view(dimension.parts, self.axes[dimension.axis].units, dimension.width).sum(dim=(0, 2))

    def placed(self, name: str) -> tuple[Side, int, str] | None:
        """Side, block and name within the block of a tensor; None if it is outside of blocks."""
        for side, stack in self.stacks.items():
            if match := re.fullmatch(rf"{re.escape(stack.prefix)}\.(\d+)\.(.+)", name):
                return side, int(match[1]), match[2]
        return None


def describe(model: Any) -> Structure:
    """Find the axes of a generator.

    Raises:
        UserError: its family is not known, or its sides share their weights.
    """
    if getattr(model.config, "share_weights", False):
        raise UserError("structure cannot be removed of sides that share their weights: set model.share_weights: false")
    return _Description(model).structure()


class _Description:
    """Collects the axes while it goes through the tensors."""

    def __init__(self, model: Any) -> None:
        self.config = model.config
        self.apart = hasattr(model.config, "encoder") and hasattr(model.config, "decoder")
        self.state: dict[str, Tensor] = model.state_dict()
        self.projected = "enc_to_dec_proj.weight" in self.state
        self.axes: dict[str, Axis] = {}
        self.stacks: dict[Side, Stack] = {}
        for matrix in anatomy.describe(model).matrices.values():
            prefix, _, index = matrix.block.rpartition(".")
            side = matrix.side
            family = self.family(side)
            blocks = max(int(index) + 1, self.stacks[side].blocks if side in self.stacks else 0)
            locked = families.layers_locked(self.of(side))
            self.stacks[side] = Stack(prefix, blocks, self.field(side, "layers"), family, locked)

    def structure(self) -> Structure:
        placed = Structure(self.stacks, {}, {}, {}).placed
        tensors = {name: self.tensor(name, tensor, placed(name)) for name, tensor in self.state.items()}
        return Structure(
            self.stacks, self.axes, tensors, self.head_sizes(), self.queries(), self.apart and not self.projected
        )

    def of(self, side: Side) -> Any:
        """The config that describes a side."""
        return getattr(self.config, side) if self.apart else self.config

    def family(self, side: Side) -> Family:
        name = self.of(side).model_type
        if name not in FAMILIES:
            raise UserError(f"the structure of a {name} is not known: choose from {', '.join(FAMILIES)}")
        return FAMILIES[name]

    def field(self, side: Side, kind: str) -> str:
        """Where the config has a size: the path of the field."""
        field = self.family(side).sizes[kind].format(side=side)
        field = "num_layers" if field == "num_encoder_layers" else field
        return f"{side}.{field}" if self.apart else field

    def head_sizes(self) -> dict[str, int]:
        """Heads that have to fill the width: their size by config field."""
        found = {}
        for axis in self.axes.values():
            if axis.kind == "heads" and self.family(axis.side).free_heads is None:
                width = self.axes[f"{axis.side}.width" if self.apart else "width"]
                found[axis.size] = width.units // axis.units
        return found

    def queries(self) -> int:
        family, config = self.family("decoder"), self.of("decoder")
        return getattr(config, family.queries) // getattr(config, family.sizes["heads"]) if family.queries else 1

    def tensor(self, name: str, tensor: Tensor, placed: tuple[Side, int, str] | None) -> tuple[Dimension | None, ...]:
        """The axes of a tensor's dimensions; makes those that are met for the first time."""
        side: Side
        if placed:
            side, block, within = placed
            patterns = self.stacks[side].family.block
        else:
            side = "encoder" if self.apart and name.startswith("encoder.") else "decoder"
            block, within, patterns = -1, name, self.family(side).outside
        found = next((axes for pattern, axes in patterns.items() if re.fullmatch(pattern, within)), None)
        if found is None or len(found.split()) != tensor.dim():
            raise UserError(f"{name} {list(tensor.shape)} is no tensor that is known of a {self.of(side).model_type}")
        return tuple(
            self.dimension(side, block, axis, size) for axis, size in zip(found.split(), tensor.shape, strict=True)
        )

    def dimension(self, side: Side, block: int, spelled: str, size: int) -> Dimension | None:
        if spelled == "-":
            return None
        role, _, times = spelled.partition("*")
        parts = int(times or 1)
        if role == "source":
            side, role = ("decoder" if self.projected and block >= 0 else "encoder"), "width"
        kind: Kind = "heads" if role in ("self", "cross") else "width" if role == "width" else "neurons"
        if kind == "width":
            name = f"{side}.width" if self.apart else "width"
        elif role == "self" and self.family(side).shared_heads:
            name = f"{side}.self_attention"
        else:
            name = f"{side}.{block}.{role if kind == 'neurons' else f'{role}_attention'}"
        if name not in self.axes:
            own = block if name.startswith(f"{side}.{block}.") else None
            config = self.of(side)
            field = self.field(side, kind)
            units = getattr(config, field.rpartition(".")[2]) if kind == "heads" else size // parts
            locked = families.width_locked(config) if kind == "width" else None
            self.axes[name] = Axis(name, kind, units, side, own, field, locked)
        return Dimension(name, parts, size // (self.axes[name].units * parts))
