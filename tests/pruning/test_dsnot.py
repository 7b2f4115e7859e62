"""DSnoT by hand, against a plain loop, and that no row's expected error grows."""

from __future__ import annotations

import pytest
import torch
from layers import correlated, layer_of, pruned

from stages.errors import UserError
from stages.pruning.criteria import dsnot

MEAN = torch.tensor([1.0, 1.0, 1.0, -1.0])
INPUTS = torch.stack([MEAN + torch.tensor([1, 0.5, 1, 1]), MEAN - torch.tensor([1, 0.5, 1, 1])])  # Var 1, 1/4, 1, 1


def test_by_hand():
    # By magnitude the first two go: an expected error of 0.9. Growing 0.4 is worth 0.4 / 0.25, growing 0.5 is worth
    # 0.5 / 1; -0.6 is the only contribution of the other sign. 0.9 - 0.4 - 0.6 = -0.1 is nearer to zero.
    weight = torch.tensor([[0.5, 0.4, 2.0, 0.6]])
    kept, _ = pruned("dsnot", weight, INPUTS, 2, initial="magnitude")
    assert kept.tolist() == [[False, True, True, False]]
    kept, _ = pruned("dsnot", weight, INPUTS, 2, initial="magnitude", threshold=0.9)
    assert kept.tolist() == [[False, False, True, True]]
    # Pruned already, 0.4 does not come back; 0.5 would, but 0.9 - 0.5 - 0.6 = -0.2.
    held = torch.tensor([[True, False, True, True]])
    kept, _ = pruned("dsnot", weight, INPUTS, 2, initial="magnitude", held=held)
    assert kept.tolist() == [[True, False, True, False]]
    # A swap that would make the error larger is not made: 0.9 - 0.4 - 1.5 = -1.
    kept, _ = pruned("dsnot", torch.tensor([[0.5, 0.4, 2.0, 1.5]]), INPUTS, 2, initial="magnitude")
    assert kept.tolist() == [[False, False, True, True]]


def plain(weight, mean, variance, norms, kept, group, cycles, threshold):
    """The same a row at a time, in words of the paper."""
    kept = kept.clone()
    for row, w in enumerate(weight.tolist()):
        grow = {j for j in range(len(w)) if not kept[row, j]}
        prune = set(range(len(w))) - grow
        error = sum(w[j] * mean[j] for j in grow)
        for _ in range(cycles):
            sign = 1 if error > 0 else -1
            helps = [j for j in grow if w[j] * mean[j] * sign > 0]
            if abs(error) <= threshold or not helps:
                break
            best = max(helps, key=lambda j: w[j] * mean[j] * sign / variance[j])
            able = [j for j in prune if (j // group == best // group if group else w[j] * mean[j] * sign < 0)]
            if not able:
                break
            least = min(able, key=lambda j: abs(w[j]) * norms[j])
            after = error - w[best] * mean[best] + w[least] * mean[least]
            if abs(after) >= abs(error):
                break
            grow, prune, error = grow - {best}, prune - {least}, after
            kept[row, best], kept[row, least] = True, False
    return kept


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
@pytest.mark.parametrize("cycles", [1, 3, 50])
def test_equals_a_plain_loop(pattern, cycles):
    weight, inputs = correlated(32, 24, 300)
    layer = layer_of("dsnot", weight, inputs, 384, pattern=pattern, cycles=cycles, threshold=1e-3)
    known = layer.statistic
    first = layer.keep(weight.abs() * known.norms)
    group = 4 if pattern == "2:4" else None
    args = [known.mean.tolist(), known.variance.tolist(), known.norms.tolist(), first, group]
    assert torch.equal(dsnot.prune(layer), plain(weight, *args, cycles, 1e-3))


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
@pytest.mark.parametrize("scope", ["row", "layer"])
def test_no_row_is_worse_off_and_each_keeps_its_count(pattern, scope):
    weight, inputs = correlated(64, 128, 1000)
    mean = inputs.mean(dim=0)
    layer = layer_of("dsnot", weight, inputs, 64 * 64, pattern=pattern, scope=scope)
    first = layer.keep(weight.abs() * layer.statistic.norms)
    refined, _ = pruned("dsnot", weight, inputs, 64 * 64, pattern=pattern, scope=scope)
    before, after = (((weight * ~mask) @ mean).abs() for mask in (first, refined))
    assert bool((after <= before + 1e-6).all())
    # Within a group there is mostly no weight to prune that does not make it worse.
    assert after.mean() < (0.9 if pattern == "2:4" else 0.2) * before.mean()
    assert torch.equal(refined.sum(1), first.sum(1))
    if pattern == "2:4":
        assert bool((refined.reshape(64, 32, 4).sum(-1) == 2).all())


def test_blocks_are_refused():
    weight, inputs = correlated(8, 8, 50)
    with pytest.raises(UserError, match="dsnot swaps single weights"):
        pruned("dsnot", weight, inputs, 8, pattern="4x1")
