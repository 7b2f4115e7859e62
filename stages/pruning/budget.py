"""How many weights each matrix loses. The sum is exact; matrices share what rounding leaves."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from stages.errors import UserError

_OTHERS = ""
"""Name of the others together; no matrix has it."""


@dataclass(frozen=True)
class Budget:
    """What has been decided before any weight is looked at. Counts are in units of the pattern."""

    fixed: dict[str, int]
    """Of the matrices that params give a sparsity of their own."""
    rest: int
    """Of all others together."""
    others: list[str]


def divide(
    sizes: Mapping[str, int],
    sparsity: float,
    layers: Mapping[str, float],
    gone: Mapping[str, int] | None = None,
    *,
    unit: str = "weights",
) -> Budget:
    """Divide round(sparsity * n) units between the matrices with a sparsity of their own and the others.

    Of a total of none nothing is pruned, whatever the layers are to lose.

    Args:
        sizes: units of every eligible matrix, n of them in all.
        sparsity: to reach over all of them, in [0, 1).
        layers: sparsity of the matrices whose names match a pattern (`*` and `?` as in a shell); the first that
            matches counts, 0 protects.
        gone: units of each matrix that are pruned already, which stay so; none if None.
        unit: what an error calls them.

    Raises:
        UserError: a pattern matches nothing, or the others cannot make up for what is given.
    """
    check_patterns(sizes, layers)
    total = round(sparsity * sum(sizes.values()))
    own = own_shares(sizes, layers)
    shares = {name: share if total else 0.0 for name, share in own.items() if share is not None}
    others = [name for name in sizes if name not in shares]
    room = sum(sizes[name] for name in others)
    rest = total - sum(share * sizes[name] for name, share in shares.items())
    if not -1 < rest < room + 1:  # the total is a whole number, the shares of the layers need not be
        raise UserError(
            f"prune.layers: a sparsity of {sparsity:g} is {total} {unit}, those layers lose {round(total - rest)} and "
            f"the others have {room}: choose other shares, or another sparsity"
        )
    # The others together are one more matrix, so that what rounding leaves finds room, and nothing has to come back.
    pools = {name: sizes[name] for name in shares} | {_OTHERS: room}
    shares[_OTHERS] = min(max(rest / room, 0.0), 1.0) if room else 0.0
    gone = gone or dict.fromkeys(sizes, 0)
    least = {name: gone[name] for name in pools if name != _OTHERS} | {_OTHERS: sum(gone[name] for name in others)}
    counts = apportion(total, pools, shares, least)
    return Budget(rest=counts.pop(_OTHERS), fixed=counts, others=others)


def own_shares(names: Iterable[str], layers: Mapping[str, float]) -> dict[str, float | None]:
    """The sparsity that `prune.layers` gives each matrix, by the first pattern that matches; None where none does."""
    return {
        name: next((share for pattern, share in layers.items() if fnmatch.fnmatchcase(name, pattern)), None)
        for name in names
    }


def check_patterns(names: Iterable[str], layers: Iterable[str]) -> None:
    """Check that every pattern of `prune.layers` is of some matrix.

    Raises:
        UserError: one matches none of the names.
    """
    names = list(names)
    for pattern in layers:
        if not fnmatch.filter(names, pattern):
            raise UserError(f"prune.layers: {pattern} matches no eligible matrix; one is {names[0]}")


def apportion(
    total: int,
    sizes: Mapping[str, int],
    shares: Mapping[str, float] | None = None,
    gone: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Counts that sum to `total`, each the share of its size, up or down to a whole number.

    What rounding down leaves goes to the largest remainders, of equal ones to the first (Hamilton's method).

    Args:
        total: to give out, at most the sum of sizes.
        sizes: most that each can take.
        shares: of each size, in [0, 1]; they have to give `total` but for rounding. The same for all if None.
        gone: least that each has to take, since it is pruned already; nothing if None. Without it a count could fall
            while the total rises: by shares that changed, or by one where remainders change places.

    Raises:
        RuntimeError: more are pruned already than are to be; a bug, since sparsity only grows.
    """
    whole = sum(sizes.values())
    least = {name: gone[name] if gone else 0 for name in sizes}
    if sum(least.values()) > total:
        raise RuntimeError(f"{total} units are to be pruned, {sum(least.values())} are already")
    wanted = {name: shares[name] * size if shares else total * size / max(whole, 1) for name, size in sizes.items()}
    wanted = {name: min(max(wanted[name], least[name]), size) for name, size in sizes.items()}
    counts = {name: math.floor(value) for name, value in wanted.items()}
    left = total - sum(counts.values())
    # Several turns where shares were off by more than rounding, so that the sum is right whatever they are.
    while left:
        step = 1 if left > 0 else -1
        order = sorted(sizes, key=lambda name: step * (counts[name] - wanted[name]))
        able = [name for name in order if least[name] <= counts[name] + step <= sizes[name]][: abs(left)]
        for name in able:
            counts[name] += step
        left -= step * len(able)
    return counts


def outlier_shares(
    ratios: Mapping[str, float], sizes: Mapping[str, int], sparsity: float, spread: float
) -> dict[str, float]:
    """Sparsity of each matrix by the share of outliers among its scores: more outliers, fewer pruned.

    Ratios are scaled to a range of 2 * spread and recentred so that the mean over all weights is `sparsity`.
    Yin et al. 2024, Outlier Weighed Layerwise Sparsity (OWL), section 3.2. Near 0 and 1, where that range would take
    whole matrices away or leave them whole, it is narrowed until none is more than half-way from the mean to either.

    Args:
        ratios: share of outliers of each matrix (of its block).
        sizes: weights of each matrix.
        sparsity: of all together.
        spread: lambda, half of how far the highest and the lowest sparsity are apart.
    """
    low, high = min(ratios.values()), max(ratios.values())
    scaled = {name: (ratio - low) / (high - low) * 2 * spread if high > low else 0.0 for name, ratio in ratios.items()}
    mean = sum(scaled[name] * size for name, size in sizes.items()) / sum(sizes.values())
    above, below = mean - min(scaled.values()), max(scaled.values()) - mean
    narrow = min([1.0, *(room / 2 / off for room, off in ((1 - sparsity, above), (sparsity, below)) if off > 0)])
    return {name: sparsity - narrow * (value - mean) for name, value in scaled.items()}
