"""The dense model, computing as if what a plan removes were not there: to measure that, and to prove removal right.

Units are masked where they are used: neurons and heads by zeros in the weights; a block by handing on its input; of the
width, every weight that reads or writes a dimension is zero, and norms take their statistics over the dimensions that
are kept. So no code is shared with removal but the table of axes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from stages.pruning.structure.axes import Structure, describe
from stages.pruning.structure.plan import Plan


@contextmanager
def masked(model: Any, plan: Plan, structure: Structure | None = None) -> Iterator[None]:
    """For the block, compute with the units and layers masked that the plan does not keep.

    The caches of generation are not masked: compute with `use_cache=False`.

    Args:
        model: the dense one; its weights are as before afterwards.
        plan: what is kept. It need not be one that a config can describe.
        structure: of the model, if it is known already.
    """
    structure = structure or describe(model)
    with ExitStack() as stack:
        for side, kept in plan.layers.items():
            blocks = model.get_submodule(structure.stacks[side].prefix)
            for index, block in enumerate(blocks):
                if index not in kept:
                    stack.callback(block.register_forward_hook(_pass_on, with_kwargs=True).remove)
        for name, kept_width in plan.units.items():
            if structure.axis(name).kind == "width":
                for norm in _norms(model, structure, name):
                    stack.callback(norm.register_forward_hook(_narrowed(norm, torch.tensor(kept_width))).remove)
        stack.enter_context(_zeroed(model, plan, structure))
        yield


def _pass_on(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
    """What a block would give out if it did nothing; beside it, such as position biases, its own."""
    hidden = args[0] if args else kwargs["hidden_states"]
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


def _norms(model: Any, structure: Structure, axis: str) -> Iterator[nn.Module]:
    for name, module in model.named_modules():
        dimensions = structure.tensors.get(f"{name}.weight", ())
        if len(dimensions) == 1 and dimensions[0] and dimensions[0].axis == axis:
            yield module


def _narrowed(norm: nn.Module, kept: Tensor) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    """A hook that normalises over some dimensions alone."""
    kept = kept.to(norm.weight.device)  # type: ignore[arg-type]

    def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        narrow = copy.copy(module)
        narrow._parameters = {n: nn.Parameter(p[kept]) for n, p in module._parameters.items() if p is not None}
        narrow._forward_hooks = type(module._forward_hooks)()
        if hasattr(narrow, "normalized_shape"):
            narrow.normalized_shape = (len(kept),)  # type: ignore[assignment]
        return torch.zeros_like(output).index_copy(-1, kept, narrow(args[0].index_select(-1, kept)))

    return hook


@contextmanager
def _zeroed(model: Any, plan: Plan, structure: Structure) -> Iterator[None]:
    """For the block, the rows and columns of units that are not kept are zero."""
    state: dict[str, Tensor] = model.state_dict()
    before: dict[int, tuple[Tensor, Tensor]] = {}
    try:
        for name, tensor in state.items():
            for place, dimension in enumerate(structure.tensors[name]):
                if dimension is None or dimension.axis not in plan.units:
                    continue
                axis = structure.axes[dimension.axis]
                gone = torch.ones(axis.units, dtype=torch.bool)
                gone[list(plan.units[axis.name])] = False
                if not gone.any():
                    continue
                if tensor.data_ptr() not in before:
                    before[tensor.data_ptr()] = tensor, tensor.clone()
                rows = dimension.indices(gone.nonzero().flatten(), axis.units)
                tensor.index_fill_(place, rows.to(tensor.device), 0.0)
        yield
    finally:
        for tensor, values in before.values():
            tensor.copy_(values)
