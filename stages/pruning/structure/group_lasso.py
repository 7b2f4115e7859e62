"""Group lasso: training that drives whole units towards zero, so that little is lost with those that go.

The penalty strength * sqrt(size) * ||w|| of every unit that may be removed, over all weights that it runs through, is
applied as its proximal operator after each optimizer step (Yuan and Lin 2006, Model Selection and Estimation in
Regression with Grouped Variables, equation 2.1; Parikh and Boyd 2014, Proximal Algorithms, section 6.5.4). In terms of
a unit's root mean square, a step takes rate * strength off it, whatever the unit's size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stages.errors import UserError
from stages.params.prune import Structured
from stages.pruning.structure.axes import Axis, Dimension, Structure, describe

Part = tuple[nn.Parameter, int, Dimension]
"""A weight that an axis runs through, along which of its dimensions, and how."""


class GroupLasso:
    """The penalty of a model's units."""

    def __init__(self, model: nn.Module, rules: Structured) -> None:
        """Set up.

        Args:
            model: whose weights are changed.
            rules: say which kinds of unit may be removed, and how strong the penalty is.

        Raises:
            UserError: none may be removed.
        """
        self._structure = describe(model)
        self._strength = rules.group_lasso.strength
        self._parts: dict[str, list[Part]] = {axis.name: [] for axis in penalised(self._structure, rules)}
        if not self._parts:
            raise UserError(
                "prune.structured.score group_lasso has no units to train away: let heads, neurons or width go, as far "
                "as the model's family allows it"
            )
        for name, weight in model.named_parameters():
            for place, dimension in enumerate(self._structure.tensors[name] if weight.requires_grad else ()):
                if dimension and dimension.axis in self._parts:
                    self._parts[dimension.axis].append((weight, place, dimension))
        self._sizes = {
            axis: sum(self._structure.per_unit(torch.ones_like(weight), place, d) for weight, place, d in parts)
            for axis, parts in self._parts.items()
        }

    @torch.no_grad()
    def shrink(self, rate: float) -> None:
        """w <- w * max(0, 1 - rate*strength*sqrt(size)/||w||) for each unit's weights w, in place.

        Heads and neurons have no weight in common. Dimensions of the width run through all of them: their step is
        taken last, on what the others have left.
        """
        for axis, parts in self._parts.items():
            squares = sum(self._structure.per_unit(weight.square(), place, d) for weight, place, d in parts)
            assert isinstance(squares, Tensor)
            roots = (squares / self._sizes[axis]).sqrt()
            less = rate * self._strength
            factors = torch.where(roots > less, 1 - less / roots, 0.0)
            for weight, place, dimension in parts:
                weight.mul_(_along(factors, weight, place, dimension))


def penalised(structure: Structure, rules: Structured) -> list[Axis]:
    """The axes of which the rules let units go, the width last; heads that fill the width go with it."""
    found = []
    for axis in structure.axes.values():
        with_width = axis.kind == "width" or axis.size in structure.head_sizes
        locked = structure.width(axis.side).locked if with_width else axis.locked
        if getattr(rules, "width" if with_width else axis.kind) and not locked:
            found.append(axis)
    return sorted(found, key=lambda axis: axis.kind == "width")


def _along(factors: Tensor, weight: Tensor, place: int, dimension: Dimension) -> Tensor:
    """A factor for each row of a weight, of a shape that multiplies it."""
    rows = factors.repeat_interleave(dimension.width).repeat(dimension.parts)
    return rows.view([-1 if other == place else 1 for other in range(weight.dim())])
