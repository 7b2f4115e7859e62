"""SparseGPT: its update by hand, against least squares, and where the mask is chosen."""

from __future__ import annotations

import pytest
import torch
from layers import correlated, error, layer_of, pruned

from stages.errors import UserError
from stages.pruning.criteria import sparsegpt


def test_by_hand():
    # H = 2/n X^T X = [[2, 1], [1, 2]], so [H^-1]_00 = 2/3, and 1/2 for the second input once the first is fixed.
    # Losses w^2 / those: 1.5 and 2. The first goes; the second becomes 1 + (1/3)/(2/3).
    inputs = torch.linalg.cholesky(torch.tensor([[2.0, 1.0], [1.0, 2.0]])).T
    kept, weight = pruned("sparsegpt", torch.ones(1, 2), inputs, 1, damping=1e-9)
    assert kept.tolist() == [[False, True]]
    torch.testing.assert_close(weight, torch.tensor([[0.0, 1.5]]))


@pytest.mark.parametrize("block", [3, 128])
def test_update_is_least_squares_of_what_is_left(block):
    """The small columns come first, so all are pruned before any is kept, and each update is part of one solution."""
    dense, inputs = correlated(5, 12, 200)
    dense[:, :6] *= 1e-4
    kept, weight = pruned("sparsegpt", dense, inputs, 30, damping=1e-9, block_columns=block, scope="layer")
    if block == 128:
        assert not kept[:, :6].any() and kept[:, 6:].all()
        best = torch.linalg.lstsq(inputs[:, 6:], inputs @ dense.T).solution.T
        torch.testing.assert_close(weight[:, 6:], best, rtol=1e-3, atol=1e-4)
    else:
        # Each block of three columns loses its half, however large they are.
        assert [int((~kept[:, i : i + 3]).sum()) for i in range(0, 12, 3)] == [7, 8, 7, 8]


def test_groups_are_chosen_after_those_before_them_are_done():
    dense, inputs = correlated(16, 32, 500)
    kept, _ = pruned("sparsegpt", dense, inputs, 256, pattern="2:4")
    assert bool((kept.reshape(16, 8, 4).sum(-1) == 2).all())
    at_once = layer_of("sparsegpt", dense, inputs, 256, pattern="2:4")
    factor = sparsegpt.hessian.inverse_factor(sparsegpt.hessian.damped(at_once.statistic, 0.01, "m"), "m")
    scores = dense.square() / factor.diagonal().square()
    first = at_once.keep(scores)
    assert torch.equal(kept[:, :4], first[:, :4]) and not torch.equal(kept, first)


def test_blocks_of_columns_are_rounded_up_to_the_pattern():
    dense, inputs = correlated(8, 24, 200)
    for pattern, unit in (("1x8", 8), ("2:4", 1)):
        count = 8 * 24 // 2 // unit
        kept, _ = pruned("sparsegpt", dense, inputs, count, pattern=pattern, block_columns=5)
        assert int((~kept).sum()) == count * unit


def test_inputs_that_never_come_go_first_and_change_nothing():
    dense, inputs = correlated(8, 16, 200)
    inputs[:, [3, 7]] = 0
    dense[:, [3, 7]] = 100.0
    kept, weight = pruned("sparsegpt", dense, inputs, 64)
    assert not kept[:, [3, 7]].any()
    alone = [i for i in range(16) if i not in (3, 7)]
    _, without = pruned("sparsegpt", dense[:, alone], inputs[:, alone], 48, damping=0.01 * 14 / 16)
    torch.testing.assert_close(weight[:, alone], without)
    # More of them than are to go: sparsity stays exact, and a kept weight is left as it is.
    kept, weight = pruned("sparsegpt", dense, inputs, 4)
    assert int((~kept).sum()) == 4 and torch.equal(weight[:, [3, 7]], dense[:, [3, 7]] * kept[:, [3, 7]])
    kept, _ = pruned("sparsegpt", dense, torch.zeros_like(inputs), 64)
    assert int((~kept).sum()) == 64


def test_a_transposed_view_is_changed_in_place():
    dense, inputs = correlated(8, 12, 200)
    stored = dense.T.contiguous()
    layer = layer_of("sparsegpt", dense, inputs, 48)
    plain = sparsegpt.prune(layer)
    other = layer_of("sparsegpt", dense, inputs, 48)
    other.weight = stored.T
    assert torch.equal(sparsegpt.prune(other), plain)
    torch.testing.assert_close(stored.T, layer.weight)


def test_inputs_that_are_not_finite_are_refused():
    dense, inputs = correlated(4, 8, 20)
    inputs[3, 2] = torch.inf
    for method in ("sparsegpt", "alps"):
        with pytest.raises(UserError, match="what reaches m is not finite"):
            pruned(method, dense, inputs, 16)


def test_too_little_damping_for_inputs_that_repeat_is_named():
    dense, inputs = correlated(4, 8, 20)
    inputs[:, 4:] = inputs[:, :4]
    with pytest.raises(UserError, match="Hessian of m has no inverse: raise the method's damping"):
        pruned("sparsegpt", dense, inputs, 16, damping=1e-300)


@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "4x1"])
@pytest.mark.parametrize("scope", ["layer", "row"])
def test_errors_are_in_the_order_of_what_a_method_knows(pattern, scope):
    """Least error: ALPS, SparseGPT, Wanda, magnitude, on correlated inputs."""
    dense, inputs = correlated(64, 128, 2000)
    count = 64 * 128 // 2 // (4 if pattern == "4x1" else 1)
    errors = {}
    for method in ("alps", "sparsegpt", "wanda"):
        _, weight = pruned(method, dense, inputs, count, pattern=pattern, scope=scope)
        errors[method] = error(weight, dense, inputs)
    magnitude = layer_of("wanda", dense, inputs, count, pattern=pattern, scope=scope)
    errors["magnitude"] = error(dense * magnitude.keep(dense.abs()), dense, inputs)
    assert list(errors.values()) == sorted(errors.values())
    assert errors["alps"] < 0.8 * errors["sparsegpt"] < 0.8 * 0.8 * errors["wanda"]
