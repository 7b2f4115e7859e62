"""The second-order view of a matrix: how its output error grows when weights move.

The squared error of an output, ||(w - w')X||^2 / n over n tokens X, is quadratic in the row w, with the same Hessian
H = 2XX^T/n for every row (Frantar and Alistarh 2023, SparseGPT, section 3.1).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stages.errors import UserError
from stages.pruning.statistics import Gram

PIECE = 2**16
"""Elements that are moved at once."""


def damped(gram: Gram, damping: float, name: str) -> Tensor:
    """H with `damping` times the mean of its diagonal added to the diagonal, [inputs, inputs], fp64.

    Double precision, since the inverse has only the digits that dividing by the smallest eigenvalue leaves.

    Raises:
        UserError: an input was not finite.
    """
    hessian = gram.products.double().mul_(2 / gram.tokens)
    if not math.isfinite(float(hessian.sum())):  # as it is if one is not, and no sum of fp32 leaves fp64
        raise UserError(f"what reaches {name} is not finite: the model has diverged")
    diagonal = hessian.diagonal()
    diagonal += damping * (float(diagonal.mean()) or 1.0)
    return hessian


def shared_factor(gram: Gram, damping: float, name: str) -> Tensor:
    """`inverse_factor` of `damped`, computed once for all matrices that are given the same inputs; sums are used up.

    Raises:
        UserError: as the two.
    """
    if gram.factor is None:
        hessian = damped(gram, damping, name)
        gram.free()
        gram.factor = inverse_factor(hessian, name)
    return gram.factor


def inverse_factor(hessian: Tensor, name: str) -> Tensor:
    """Upper triangular U with H^-1 = U^T U, [inputs, inputs], fp32; H is used up.

    Its rows are what eliminating one input after another takes: with the inputs before j fixed, the inverse for those
    that are left begins with U_jj^2, and its first row is U_jj * U_j.

    The inverse itself is never formed. With J the matrix that turns the order of the inputs round and L the lower
    Cholesky factor of JHJ, H = (JLJ)(JLJ)^T, so that U = J L^-1 J: half the work, and half the digits lost.

    Raises:
        UserError: H is not positive definite in double precision.
    """
    _turn(hessian)
    # What is left of a diagonal entry is no number but noise, where rounding alone makes as much.
    noise = len(hessian) * torch.finfo(hessian.dtype).eps * hessian.diagonal().clone()
    lower = hessian.mT  # by columns, as LAPACK has it: H is symmetric, and what it was becomes L
    failed = torch.zeros((), dtype=torch.int32, device=hessian.device)
    torch.linalg.cholesky_ex(lower, out=(lower, failed))
    if bool(failed) or bool((lower.diagonal().square() <= noise).any()):
        raise UserError(f"the Hessian of {name} has no inverse: raise the method's damping")
    _invert(lower)
    _turn(hessian)
    return lower.float()


def _turn(matrix: Tensor) -> None:
    """Turn the order of rows and of columns round, in place: the elements change places end to end, piece by piece."""
    flat = matrix.view(-1)
    last, half = flat.numel(), flat.numel() // 2
    for start in range(0, half, PIECE):
        end = min(start + PIECE, half)
        front = flat[start:end].flip(0)
        flat[start:end] = flat[last - end : last - start].flip(0)
        flat[last - end : last - start] = front


def _invert(lower: Tensor) -> None:
    """Put the inverse of a lower triangular matrix in its place, by halves: [[A, 0], [C, B]] has -B^-1 C A^-1 for C."""
    size = len(lower)
    if size <= 64:
        identity = torch.eye(size, dtype=lower.dtype, device=lower.device)
        lower.copy_(torch.linalg.solve_triangular(lower, identity, upper=False))
        return
    half = size // 2
    first, second, corner = lower[:half, :half], lower[half:, half:], lower[half:, :half]
    _invert(first)
    _invert(second)
    corner.copy_((second @ corner @ first).neg_())
