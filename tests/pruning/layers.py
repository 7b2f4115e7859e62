"""A single matrix to prune, as a layer-by-layer criterion is given one, and the error it makes; and a whole model."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import torch
from shared import ROOT, SOURCES, TARGETS
from torch import Tensor

from stages import params
from stages.models import anatomy
from stages.pruning import criterion, patterns
from stages.pruning.layerwise import Layer
from stages.pruning.statistics import Norms
from stages.pruning.structure.axes import Axis, Structure
from stages.pruning.walk import walk

KNOBS = params.read_yaml(Path(ROOT / "params.yaml"))["prune"]


def layer_of(
    method: str,
    weight: Tensor,
    inputs: Tensor,
    count: int,
    *,
    pattern: str = "unstructured",
    held: Tensor | None = None,
    **knobs: Any,
) -> Layer:
    """The matrix [out, in] with a criterion's statistic over inputs [tokens, in], and its knobs of params.yaml."""
    settings = types.SimpleNamespace(**(KNOBS[method] | knobs))
    layerwise = criterion.find(method).layerwise
    assert layerwise
    statistic = layerwise.statistic(weight.shape[1], weight.device)
    for batch in inputs.split(16):
        statistic.add(batch)
    rows = settings.scope == "row"
    return Layer("m", weight.clone(), statistic, count, patterns.parse(pattern), rows, held, settings)


def pruned(method: str, weight: Tensor, inputs: Tensor, count: int, **others: Any) -> tuple[Tensor, Tensor]:
    """The mask and the weights that a criterion leaves of a matrix."""
    layer = layer_of(method, weight, inputs, count, **others)
    layerwise = criterion.find(method).layerwise
    assert layerwise
    kept = layerwise.prune(layer)
    if not layerwise.updates:
        assert torch.equal(layer.weight, weight)
    return kept, layer.weight * kept


def error(weight: Tensor, dense: Tensor, inputs: Tensor) -> float:
    """||WX - W'X||^2 over ||WX||^2."""
    return float(((weight - dense) @ inputs.T).square().sum() / (dense @ inputs.T).square().sum())


def correlated(out: int, width: int, tokens: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A matrix, and inputs of unlike size that share a quarter as many causes as there are features."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    inputs = noise(tokens, width) + 2 * noise(tokens, width // 4) @ noise(width // 4, width) / (width // 4) ** 0.5
    inputs = (inputs + 0.3) * torch.rand(width, generator=generator) * 2
    return noise(out, width) / width**0.5, inputs


def context_of(generator: Any, settings: Any, method: str, batch: int, **rules: Any) -> criterion.Context:
    """What a criterion looks at of a small generator: the shared pairs, so many a batch."""
    generator.model.eval()
    examples = generator.encode(SOURCES, TARGETS)
    batches = [generator.collate(examples[i : i + batch]) for i in range(0, len(examples), batch)]
    section = getattr(settings(prune=rules).prune, method)
    matrices = anatomy.describe(generator.model).matrices
    return criterion.Context(generator.model, matrices, lambda: batches, 0, section)


def gathered(context: criterion.Context, statistic: Any = Norms) -> dict[str, Any]:
    """What reaches each matrix."""
    found: dict[str, Any] = {}
    walk(context, statistic, lambda block, statistics: found.update(statistics))
    return found


def unit_of(model: Any, structure: Structure, axis: Axis, unit: int) -> Tensor:
    """All weights of a unit, of whatever tensors it runs through, one after another."""
    parts = [
        parameter.index_select(place, dimension.indices(torch.tensor([unit]), axis.units)).flatten()
        for name, parameter in model.named_parameters()
        for place, dimension in enumerate(structure.tensors[name])
        if dimension and dimension.axis == axis.name
    ]
    return torch.cat(parts)
