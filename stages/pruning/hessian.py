"""The second-order view of a matrix: how its output error grows when weights move.

The squared error of an output, ||(w - w')X||^2 / n over n tokens X, is quadratic in the row w, with the same Hessian
H = 2XX^T/n for every row (Frantar and Alistarh 2023, SparseGPT, section 3.1).
"""

from __future__ import annotations

import torch
from torch import Tensor

from stages.errors import UserError
from stages.pruning.statistics import Gram


def damped(gram: Gram, damping: float, name: str) -> Tensor:
    """H with `damping` times the mean of its diagonal added to the diagonal, [inputs, inputs], fp64.

    Double precision, since the inverse has only the digits that dividing by the smallest eigenvalue leaves.

    Raises:
        UserError: an input was not finite.
    """
    hessian = gram.products.double() * (2 / gram.tokens)
    if not bool(hessian.isfinite().all()):
        raise UserError(f"what reaches {name} is not finite: the model has diverged")
    diagonal = hessian.diagonal()
    diagonal += damping * (float(diagonal.mean()) or 1.0)
    return hessian


def dead(gram: Gram) -> Tensor:
    """Which inputs were never anything but zero, such as those behind a ReLU that never opens, [inputs]."""
    return gram.products.diagonal() == 0


def inverse_factor(hessian: Tensor, name: str) -> Tensor:
    """Upper triangular U with H^-1 = U^T U, [inputs, inputs], fp32.

    Its rows are what eliminating one input after another takes: with the inputs before j fixed, the inverse for those
    that are left begins with U_jj^2, and its first row is U_jj * U_j.

    Raises:
        UserError: H is not positive definite in double precision.
    """
    try:
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
        return torch.linalg.cholesky(inverse, upper=True).float()
    except torch.linalg.LinAlgError:
        raise UserError(f"the Hessian of {name} has no inverse: raise the method's damping") from None
