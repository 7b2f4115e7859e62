"""ALPS: the mask and the weights that give the least output error, by ADMM; then the best weights for that mask.

With H the Hessian of a row's squared output error and W0 the dense weights, minimise tr((W - W0) H (W - W0)^T) over the
W of that sparsity. ADMM splits W into B, free, and D, sparse:

    B <- (W0 H - V + rho D)(H + rho I)^-1,  D <- the largest of B + V/rho,  V <- V + rho (B - D)

with rho growing the slower, the less the mask still changes. Then conjugate gradients find the W of the mask. Both
work on weights in units of their inputs' norms, where the diagonal of H is one. Meng et al. 2024, ALPS: Improved
Optimization for Highly Sparse One-Shot Pruning for Large Language Models, algorithms 1 and 2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stages.pruning import hessian
from stages.pruning.criterion import Criterion
from stages.pruning.layerwise import Layer, Layerwise
from stages.pruning.statistics import Gram

STEPS_BETWEEN = 3
"""ADMM steps between looks at how much the mask changed, as in the paper."""


def prune(layer: Layer) -> Tensor:
    """The mask [out, in]; changes the weights that it keeps."""
    curvature = hessian.damped(layer.statistic, layer.settings.damping, layer.name)
    norms = curvature.diagonal().sqrt()
    curvature = curvature / norms / norms.unsqueeze(1)
    dense = layer.weight * norms.float()
    kept, weight = search(layer, dense, curvature)
    weight = solve(weight, dense, curvature.float(), kept, layer.settings.gradient_steps)
    layer.weight.copy_(weight / norms.float())
    return kept


def search(layer: Layer, dense: Tensor, curvature: Tensor) -> tuple[Tensor, Tensor]:
    """The mask [out, in] that ADMM ends with, and the free weights under it, when it stays or the steps are used up.

    Args:
        layer: says how much is to go and what has to go together.
        dense: W0, [out, in].
        curvature: H, [in, in], fp64, of diagonal one.
    """
    values, vectors = torch.linalg.eigh(curvature)
    target = dense @ curvature.float()
    rho = layer.settings.rho
    free, kept = dense, layer.keep(dense.square())
    sparse, dual, before = dense * kept, torch.zeros_like(dense), kept
    inverse = _inverse(values, vectors, rho)
    for step in range(1, layer.settings.steps + 1):
        free = (target - dual + rho * sparse) @ inverse
        wanted = free + dual / rho
        kept = layer.keep(wanted.square())
        sparse = wanted * kept
        dual += rho * (free - sparse)
        if step % STEPS_BETWEEN == 0:
            changed = int((kept != before).sum())
            if not changed:
                break
            rho *= growth(changed / int(kept.sum()))
            inverse, before = _inverse(values, vectors, rho), kept
    return kept, free * kept


def growth(changed: float) -> float:
    """What rho is multiplied by, after a change of the mask by this share of the kept weights."""
    if changed >= 0.1:
        return 1.3
    return 1.2 if changed >= 0.005 else 1.1


def solve(weight: Tensor, dense: Tensor, curvature: Tensor, kept: Tensor, steps: int) -> Tensor:
    """The weights of a mask that give the least error, by conjugate gradients, one problem a row.

    No step makes the error larger.

    Args:
        weight: to begin with, [out, in], zero where it is not kept.
        dense: W0, [out, in].
        curvature: H, [in, in], of diagonal one: the residual is its own preconditioned self.
        kept: the mask [out, in].
        steps: at most.
    """
    residual = (dense - weight) @ curvature * kept
    direction, square = residual, residual.square().sum(dim=1, keepdim=True)
    for _ in range(steps):
        image = direction @ curvature * kept
        length = _quotient(square, (direction * image).sum(dim=1, keepdim=True))
        weight = weight + length * direction
        residual = residual - length * image
        square, last = residual.square().sum(dim=1, keepdim=True), square
        direction = residual + _quotient(square, last) * direction
    return weight


def _quotient(above: Tensor, below: Tensor) -> Tensor:
    """Their quotient; zero where the divisor is: a row without a kept weight, or one that is solved."""
    return torch.where(below > 0, above / below, 0.0)


def _inverse(values: Tensor, vectors: Tensor, rho: float) -> Tensor:
    """(H + rho I)^-1, fp32, from the eigenvalues and eigenvectors of H."""
    return ((vectors / (values + rho)) @ vectors.T).float()


CRITERION = Criterion(layerwise=Layerwise(Gram, prune, updates=True))
