"""ALPS: its weights against least squares, and its mask where the answer is known."""

from __future__ import annotations

import itertools

import pytest
import torch
from layers import correlated, error, layer_of, pruned

from stages.pruning import hessian
from stages.pruning.criteria import alps


def test_gradient_steps_reach_least_squares_and_never_raise_the_error():
    dense, inputs = correlated(6, 16, 300)
    layer = layer_of("alps", dense, inputs, 48)
    kept = layer.keep(dense.abs())
    kept[0] = False  # nothing to solve
    curvature = hessian.damped(layer.statistic, 1e-9, "m").float()
    norms = curvature.diagonal().sqrt()
    curvature = curvature / norms / norms.unsqueeze(1)
    errors = []
    for steps in (0, 1, 2, 4, 8, 30):
        weight = alps.solve(dense * norms * kept, dense * norms, curvature, kept, steps) / norms
        assert not weight[~kept].any()
        errors.append(error(weight, dense, inputs))
    assert all(later <= earlier * (1 + 1e-5) for earlier, later in itertools.pairwise(errors))
    for row in range(1, 6):
        best = torch.linalg.lstsq(inputs[:, kept[row]], inputs @ dense[row]).solution
        torch.testing.assert_close(weight[row, kept[row]], best, rtol=1e-3, atol=1e-4)


def test_without_correlation_kept_weights_stay_and_the_mask_is_all_but_the_best():
    """Which is that of the largest contributions; ADMM is a heuristic, and exchanges a few that are nearly equal."""
    dense, _ = correlated(8, 16, 10)
    norms = torch.linspace(0.5, 2, 16)
    inputs = torch.diag(norms)
    kept, weight = pruned("alps", dense, inputs, 64, damping=1e-9)
    torch.testing.assert_close(weight, dense * kept)
    contributions = (dense * norms).square()
    best = contributions > contributions.flatten().kthvalue(64).values
    assert error(weight, dense, inputs) < 1.03 * error(dense * best, dense, inputs)


def test_mostly_finds_the_best_mask_of_all():
    """One row of eight inputs, three to keep: every mask tried, each with its least-squares weights."""
    above = []
    for seed in range(12):
        dense, inputs = correlated(1, 8, 100, seed)
        _, weight = pruned("alps", dense, inputs, 5, damping=1e-6)
        least = min(
            error(_best(dense, inputs, list(columns)), dense, inputs) for columns in itertools.combinations(range(8), 3)
        )
        above.append(error(weight, dense, inputs) / least)
    assert sorted(above)[7] < 1.001


def _best(dense, inputs, columns):
    weight = torch.zeros_like(dense)
    weight[:, columns] = torch.linalg.lstsq(inputs[:, columns], inputs @ dense.T).solution.T
    return weight


@pytest.mark.parametrize(("changed", "factor"), [(0.2, 1.3), (0.1, 1.3), (0.01, 1.2), (0.001, 1.1)])
def test_rho_grows_the_slower_the_less_changes(changed, factor):
    assert alps.growth(changed) == factor
