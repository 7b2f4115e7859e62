"""The step of the group lasso by hand, as the minimum that it is, and what it leaves alone."""

from __future__ import annotations

import copy

import pytest
import torch
from layers import unit_of
from shared import FAMILIES

from stages.errors import UserError
from stages.pruning.structure.axes import describe
from stages.pruning.structure.group_lasso import GroupLasso, penalised


@pytest.fixture
def rules(settings):
    def make(strength=1.0, **changes):
        section = {"score": "group_lasso", "group_lasso": {"strength": strength}, **changes}
        return settings(prune={"structured": section}).prune.structured

    return make


def test_a_neuron_by_hand(built, rules):
    """Four weights of 3 and 29 zeros: of all 33 the root mean square is 6 / sqrt(33), and the step takes 0.5 off it."""
    model = copy.deepcopy(built("bert")).model
    block = model.encoder.encoder.layer[0]
    up, down = block.intermediate.dense, block.output.dense
    with torch.no_grad():
        for weight in (up.weight[3], up.bias[3:4], down.weight[:, 3]):
            weight.zero_()
        up.weight[3, :2], up.bias[3], down.weight[5, 3] = 3.0, 3.0, 3.0
        before = down.bias.clone()
    GroupLasso(model, rules(strength=2.0)).shrink(0.25)
    expected = 3.0 * (1 - 0.5 / (6 / 33**0.5))
    assert [up.weight[3, 0].item(), up.bias[3].item(), down.weight[5, 3].item()] == pytest.approx([expected] * 3)
    assert up.weight[3].abs().sum().item() == pytest.approx(2 * expected)
    assert torch.equal(down.bias, before), "a bias of the width is no part of a neuron"


def test_a_unit_that_is_small_goes_whole(built, rules):
    model = copy.deepcopy(built("bart")).model
    up, down = model.model.decoder.layers[1].fc1, model.model.decoder.layers[1].fc2
    with torch.no_grad():
        for weight in (up.weight[7], up.bias[7:8], down.weight[:, 7]):
            weight.fill_(0.01)
    GroupLasso(model, rules()).shrink(0.0101)
    assert not up.weight[7].any() and not up.bias[7] and not down.weight[:, 7].any()
    assert up.weight[6].all(), "others only shrink"


@pytest.mark.parametrize("family", ["t5", "llama", "bart"])
def test_a_step_is_the_proximal_operator(family, built, rules):
    """It minimises ||v - w||^2 / 2 + rate * strength * sum of sqrt(size)*||v_unit||: the gradient at v is zero."""
    model = copy.deepcopy(built(family)).model.double()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    GroupLasso(model, rules(strength=0.02)).shrink(0.1)
    structure = describe(model)
    total = torch.tensor(0.0, dtype=torch.float64)
    for axis in penalised(structure, rules()):
        for unit in range(axis.units):
            weights = unit_of(model, structure, axis, unit)
            total = total + weights.numel() ** 0.5 * weights.square().sum().sqrt()
    distance = sum((parameter - before[name]).square().sum() for name, parameter in model.named_parameters()) / 2
    (distance + 0.1 * 0.02 * total).backward()
    moved = 0
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert float(parameter.grad.abs().max()) < 1e-9, name
        moved += int((parameter != before[name]).sum())
    assert moved > 1000


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_penalised(family, built, rules):
    """What the rules let go and the family can do without; the width comes last."""
    structure = describe(built(family).model)

    def kinds(**changes):
        return [axis.kind for axis in penalised(structure, rules(**changes))]

    free = family in ("t5", "llama", "qwen2")  # elsewhere heads fill the width, and go with it
    assert set(kinds()) == ({"heads", "neurons"} if free else {"neurons"})
    assert set(kinds(heads=0)) == {"neurons"}
    wide = kinds(width="auto", neurons=0)
    assert set(wide) == (set() if family == "marian" else {"heads", "width"})
    assert wide == sorted(wide), "width last"


def test_a_model_without_units_to_penalise(built, rules):
    with pytest.raises(UserError, match="no units to train away"):
        GroupLasso(built("bert").model, rules(neurons=0))
