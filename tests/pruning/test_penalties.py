"""The proximal steps of L1 and group lasso against torchao's, which the Makefile puts beside the environment."""

from __future__ import annotations

import copy
import importlib
import sys
import types
from pathlib import Path

import pytest
import torch
from layers import unit_of
from shared import FAMILIES

from stages.pruning import criterion
from stages.pruning.structure.axes import describe
from stages.pruning.structure.group_lasso import GroupLasso, penalised

BESIDE = Path(sys.prefix) / "beside"


@pytest.fixture(scope="module")
def theirs():
    """`theirs(module)`: one of torchao's modules of proximal maps, without all that torchao imports."""
    folders = [Path(path) / "torchao" / "prototype" / "pat" / "optim" for path in (BESIDE, *sys.path)]
    found = next((folder for folder in folders if folder.is_dir()), None)
    if found is None:
        pytest.skip("torchao is not installed: make environment")
    package = types.ModuleType("torchao_proximal")
    package.__path__ = [str(found)]
    sys.modules[package.__name__] = package
    yield lambda module: importlib.import_module(f"torchao_proximal.{module}")
    for name in [name for name in sys.modules if name.startswith("torchao_proximal")]:
        del sys.modules[name]


@pytest.mark.parametrize(("rate", "strength"), [(0.01, 3.0), (0.5, 1.0), (1.0, 9.0)])
def test_a_step_of_l1(rate, strength, theirs):
    ours = torch.randn(64, 48, generator=torch.Generator().manual_seed(0))
    ours[0, :3] = 0
    other = ours.clone()
    criterion.find("l1").shrink(ours, rate, strength)
    theirs("lasso").ProxLasso(strength).apply_(other, rate)
    torch.testing.assert_close(ours, other, rtol=0, atol=5e-7)
    assert torch.equal(ours == 0, other == 0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("strength", [0.02, 0.3, 20.0])
def test_a_step_of_group_lasso(strength, family, built, settings, theirs):
    """Theirs is of one tensor a group; a head or neuron of ours runs through several, here put one after another."""
    rules = settings(prune={"structured": {"group_lasso": {"strength": strength}, "width": 0}}).prune.structured
    dense, structure = built(family).model, describe(built(family).model)
    model = copy.deepcopy(dense)
    GroupLasso(model, rules).shrink(0.1)
    step, lost, units = theirs("group_lasso").ProxGroupLasso(strength), 0, 0
    for axis in penalised(structure, rules):
        for unit in range(axis.units):
            ours, other = (unit_of(one, structure, axis, unit).detach() for one in (model, dense))
            step.apply_(other, 0.1)
            torch.testing.assert_close(ours, other, rtol=1e-6, atol=1e-7)
            lost, units = lost + int(not ours.any()), units + 1
    assert units and lost == {0.02: 0, 20.0: units}.get(strength, lost)
