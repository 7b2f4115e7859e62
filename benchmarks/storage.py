"""What a sweep of twenty levels takes in the DVC cache, with each `finetune.storage`.

    python -m benchmarks.storage

In:  a checkpoint folder, outputs/models/baseline unless told otherwise.
Out: a table on standard output; nothing is kept.

The levels are random masks of four sparsities and five seeds over weights that all differ, as after fine-tuning: how
many bytes a level takes does not depend on which weights are zero, nor on what the others are. The cache holds a file
of any contents once, so tokenizers and configs count once for all levels, and so do the masks that a level has from
pruning.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from stages import layout
from stages.errors import command

SPARSITIES = (0.5, 0.7, 0.9, 0.95)
SEEDS = range(5)
Storage = Literal["dense", "sparse"]


@command
def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.storage", description="Size of a sweep's cache.")
    parser.add_argument("--model", type=Path, default=layout.MODELS / "baseline", help="checkpoint folder")
    origin = parser.parse_args(arguments).model

    from rich.console import Console
    from rich.table import Table

    from stages.models import checkpoint

    generator = checkpoint.load(origin)
    levels = len(SPARSITIES) * len(SEEDS)
    table = Table("storage", "cache, MB", "a level, MB", "above its least, %", title=f"{levels} levels of {origin}")
    for storage in get_args(Storage):
        with tempfile.TemporaryDirectory() as folder:
            least = sum(_save(generator, level, Path(folder), storage) for level in _levels())
            cached = _bytes_of_unlike_files(Path(folder))
        above = f"{100 * (cached / least - 1):.1f}"
        table.add_row(storage, f"{cached / 1e6:.1f}", f"{cached / levels / 1e6:.2f}", above)
    Console().print(table)


def _levels() -> Iterator[tuple[float, int]]:
    return ((sparsity, seed) for sparsity in SPARSITIES for seed in SEEDS)


def _save(generator: Any, level: tuple[float, int], folder: Path, storage: Storage) -> int:
    """Write what the prune and fine-tune stages leave of a level.

    Returns:
        The least that it could take: the values that are not zero in fp32, and a bit for each eligible weight.
    """
    import torch

    from stages import params
    from stages.bitmasks import MASKS_FILE
    from stages.models import anatomy, checkpoint
    from stages.pruning import criterion, engine, masks

    sparsity, seed = level
    tuned = copy.copy(generator)
    tuned.model = copy.deepcopy(generator.model)
    described = anatomy.describe(tuned.model)
    rules = params.load("prune").prune
    context = criterion.Context(tuned.model, described.matrices, list, seed, rules.random)
    chosen = engine.choose(context, criterion.find("random"), sparsity, rules)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in tuned.model.parameters():
            parameter.mul_(1 + 1e-3 * torch.randn(parameter.shape, generator=random))
    masks.apply(described.weights, chosen)
    key = f"{sparsity}-{seed}"
    pruned = folder / "pruned" / key
    pruned.mkdir(parents=True)
    chosen.save(pruned / MASKS_FILE)
    checkpoint.save(tuned, folder / "finetuned" / key, masks=chosen, storage=storage)
    return 4 * anatomy.nonzero(tuned.model) + described.eligible // 8


def _bytes_of_unlike_files(folder: Path) -> int:
    """Size of all files below a folder, of those with the same contents one."""
    files = (file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file())
    return sum({hashlib.md5(contents, usedforsecurity=False).digest(): len(contents) for contents in files}.values())


if __name__ == "__main__":
    main()
