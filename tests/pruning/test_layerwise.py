"""Layer by layer: what reaches each matrix, padding left out, on every family; Wanda against its definition."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from layers import context_of, gathered
from shared import FAMILIES
from torch import nn

from stages.models import anatomy
from stages.models.anatomy import Matrix
from stages.pruning import criterion, engine
from stages.pruning.statistics import Gram, Moments


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_changes_nothing(family, build_family, settings):
    generator = build_family(family)
    alone = gathered(context_of(generator, settings, "wanda", batch=1))
    padded = gathered(context_of(generator, settings, "wanda", batch=4))
    assert list(alone) == list(padded) == list(anatomy.describe(generator.model).matrices)
    for name, one in alone.items():
        assert one.tokens == padded[name].tokens
        torch.testing.assert_close(one.norms, padded[name].norms, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_inputs_are_those_of_the_model(family, build_family, settings):
    """Against plain hooks on an untouched model, a text at a time so that there is no padding."""
    generator = build_family(family)
    context = context_of(generator, settings, "wanda", batch=1)
    seen: dict[str, torch.Tensor] = {}

    def hook(name: str) -> Any:
        def add(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            seen[name] = seen.get(name, 0) + inputs[0].detach().flatten(0, 1).square().sum(0)

        return add

    handles = [
        generator.model.get_submodule(name.removesuffix(".weight")).register_forward_pre_hook(hook(name))
        for name in context.matrices
    ]
    with torch.no_grad():
        for batch in context.batches():
            generator.model(**batch)
    for handle in handles:
        handle.remove()
    before = {name: p.clone() for name, p in generator.model.named_parameters()}
    for name, statistic in gathered(context).items():
        torch.testing.assert_close(statistic.squares, seen[name])
    assert all(torch.equal(before[name], p) for name, p in generator.model.named_parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_later_blocks_see_what_is_left_of_earlier_ones(family, build_family, settings):
    generator = build_family(family)
    context = context_of(generator, settings, "wanda", batch=2)
    dense = gathered(context)
    rules = settings().prune
    masks = engine.choose(context, criterion.find("wanda"), 0.5, rules)
    pruned = gathered(context)  # the weights are zero by now
    first = next(iter(context.matrices.values())).block
    for name, matrix in context.matrices.items():
        same = torch.allclose(dense[name].squares, pruned[name].squares)
        assert same or matrix.block != first or not name.endswith(("q_proj.weight", "query.weight"))
        mask = matrix.oriented(masks[name])
        assert (~mask).sum(1).tolist() == [mask.shape[1] // 2] * len(mask)
    last = list(context.matrices)[-1]
    assert not torch.allclose(dense[last].squares, pruned[last].squares)


class OneMatrix(nn.Module):
    """A block with a matrix."""

    def __init__(self, weight: list[list[float]]) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Sequential(nn.Linear(len(weight[0]), len(weight), bias=False))])
        self.config = type("Config", (), {"is_encoder_decoder": False, "model_type": "mine"})()
        self.weight = self.layers[0][0].weight
        with torch.no_grad():
            self.weight.copy_(torch.tensor(weight))

    def forward(self, input_ids: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return self.layers[0](input_ids)

    def given(self, inputs: list[list[float]], padded: int, scope: str) -> tuple[Matrix, criterion.Context]:
        """The matrix, and the context of a text [tokens, in], of which the last tokens are padding."""
        name = "layers.0.0.weight"
        matrix = Matrix(name, self.weight, transposed=False, role="unknown", side="decoder", block="layers.0")
        real = torch.tensor([[1] * (len(inputs) - padded) + [0] * padded])
        batch = {"input_ids": torch.tensor([inputs]), "attention_mask": real, "labels": torch.zeros_like(real)}
        knobs = type("Knobs", (), {"scope": scope})()
        return matrix, criterion.Context(self, {name: matrix}, lambda: [batch], 0, knobs)


def test_wanda_by_hand(settings):
    model = OneMatrix([[1.0, -2.0, 3.0], [3.0, 2.0, 1.0]])
    matrix, context = model.given([[3.0, 0.0, 1.0], [4.0, 1.0, 0.0], [9.0, 9.0, 9.0]], 1, "row")
    statistic = gathered(context, Moments)[matrix.name]
    assert statistic.tokens == 2 and statistic.squares.tolist() == [25.0, 1.0, 1.0]
    torch.testing.assert_close(statistic.mean, torch.tensor([3.5, 0.5, 0.5]))
    torch.testing.assert_close(statistic.variance, torch.tensor([0.25, 0.25, 0.25]))
    assert gathered(context, Gram)[matrix.name].products.tolist() == [
        [25.0, 4.0, 3.0],
        [4.0, 1.0, 0.0],
        [3.0, 0.0, 1.0],
    ]
    # |w| * norm: 5, 2, 3 and 15, 2, 1; by |w| alone the first row would lose another.
    chosen = engine.choose(context, criterion.find("wanda"), 1 / 3, settings().prune)
    assert chosen[matrix.name].tolist() == [[True, False, True], [True, True, False]]
    assert model.weight.tolist() == [[1.0, 0.0, 3.0], [3.0, 2.0, 0.0]]


def test_weights_that_were_zero_and_stay_are_kept(settings):
    """Of four zeros two go, the first in order; then -0.0, which is one of the others, is in the mask all the same."""
    model = OneMatrix([[0.0, 5.0, 0.0, -0.0], [4.0, 0.0, 3.0, 2.0]])
    matrix, context = model.given([[1.0, 1.0, 1.0, 1.0]], 0, "layer")
    chosen = engine.choose(context, criterion.find("wanda"), 0.25, settings().prune)
    assert chosen[matrix.name].tolist() == [[False, True, False, True], [True, True, True, True]]
