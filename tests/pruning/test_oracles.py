"""Wanda and SparseGPT against llmcompressor, whose functions are the papers' code; `pip install .[oracles]`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from layers import correlated, layer_of, pruned
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

pytest.importorskip("llmcompressor", reason="the extra `oracles` is not installed")
from llmcompressor.modifiers.pruning.sparsegpt import sgpt_sparsify
from llmcompressor.modifiers.pruning.wanda import wanda_sparsify

SHAPE = 48, 96, 1000  # outputs, inputs, tokens
GROUPS = [("unstructured", 0.5), ("2:4", 0.5), ("4:8", 0.5), ("1:4", 0.75)]


def module_of(weight: Tensor, kind: type[nn.Module]) -> Any:
    """A linear map with that weight [out, in], kept as the kind keeps it."""
    module: Any = nn.Linear(*weight.T.shape, bias=False) if kind is nn.Linear else Conv1D(len(weight), weight.shape[1])
    module.weight.data = weight.clone() if kind is nn.Linear else weight.T.clone()
    return module


def oriented(weight: Tensor, kind: type[nn.Module]) -> Tensor:
    return weight if kind is nn.Linear else weight.T


@pytest.mark.parametrize("kind", [nn.Linear, Conv1D])
@pytest.mark.parametrize(("pattern", "share"), [("unstructured", 0.3), *GROUPS])
def test_wanda(kind, pattern, share):
    dense, inputs = correlated(*SHAPE)
    module = module_of(dense, kind)
    scalars, seen = wanda_sparsify.make_empty_row_scalars(module, torch.device("cpu")), 0
    if kind is Conv1D:  # sized by the first dimension that is inputs in a Linear
        scalars = torch.zeros(dense.shape[1])
    for batch in inputs.split(100):
        scalars, seen = wanda_sparsify.accumulate_row_scalars(batch, module, scalars, seen)
    group = [int(n) for n in pattern.split(":")] if ":" in pattern else [0, 0]
    theirs = wanda_sparsify.sparsify_weight(module, {module: scalars}, share, group[1] - group[0], group[1])

    count = int(share * dense.shape[1]) * len(dense)  # rounded in each row, as theirs is
    kept, weight = pruned("wanda", dense, inputs, count, pattern=pattern, scope="row")
    assert torch.equal(oriented(theirs, kind), weight) and int((~kept).sum()) == count


@pytest.mark.parametrize("kind", [nn.Linear, Conv1D])
@pytest.mark.parametrize("block", [32, 128])
@pytest.mark.parametrize(("pattern", "share"), [("unstructured", 0.7), *GROUPS])
def test_sparsegpt(kind, block, pattern, share):
    dense, inputs = correlated(*SHAPE)
    layer = layer_of("sparsegpt", dense, inputs, 0)
    module = module_of(dense, kind)
    hessian = layer.statistic.products * 2 / layer.statistic.tokens
    group = [int(n) for n in pattern.split(":")] if ":" in pattern else [0, 0]
    _, theirs = sgpt_sparsify.sparsify_weight(
        module, {module: hessian}, share, group[1] - group[0], group[1], block, 0.01, preserve_sparsity_mask=False
    )
    theirs = oriented(theirs, kind)

    # Theirs keeps what is above the k-th value of a block from zero: one fewer than the share says.
    windows = -(-dense.shape[1] // block)
    count = round(share * dense.numel()) if ":" in pattern else windows * (int(share * dense.numel() / windows) + 1)
    kept, weight = pruned("sparsegpt", dense, inputs, count, pattern=pattern, block_columns=block)
    assert torch.equal(kept, theirs != 0)
    torch.testing.assert_close(weight, theirs, rtol=0, atol=1e-5)


def test_gathered_statistics_are_theirs():
    _, inputs = correlated(*SHAPE)
    module = nn.Linear(SHAPE[1], SHAPE[0], bias=False)
    theirs, seen = sgpt_sparsify.make_empty_hessian(module), 0
    for batch in inputs.split(1):  # a token a text, for theirs is a mean over texts and ours over tokens
        theirs, seen = sgpt_sparsify.accumulate_hessian(batch, module, theirs, seen)
    ours = layer_of("sparsegpt", module.weight.detach(), inputs, 0).statistic
    torch.testing.assert_close(ours.products * 2 / ours.tokens, theirs, rtol=1e-4, atol=1e-4)
