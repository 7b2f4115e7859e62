"""Prune a checkpoint by magnitude without loading it: from safetensors shards to safetensors shards.

    python -m stages.prune_shards --model FOLDER --sparsity 0.5 --output FOLDER

In:  a transformers folder with safetensors, of any size; `scope`, `pattern` and `layers` of params `prune`.
Out: the same folder with the pruned weights, shard by shard. One matrix is read at a time to choose, and one shard at
     a time to write, so memory holds the largest shard, and a bit for each eligible weight of the model.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from stages import params
from stages.errors import UserError, command


@command
def main(arguments: Sequence[str] | None = None) -> None:
    """Prune as the command line says."""
    parser = argparse.ArgumentParser(
        prog="python -m stages.prune_shards", description="Prune a checkpoint by magnitude, shard by shard."
    )
    parser.add_argument("--model", type=Path, required=True, help="folder with config.json and safetensors")
    parser.add_argument("--sparsity", type=float, required=True, help="share of the eligible weights, in [0, 1)")
    parser.add_argument("--output", type=Path, required=True, help="folder to write; must not exist")
    args = parser.parse_args(arguments)
    if not 0 <= args.sparsity < 1:
        raise UserError(f"--sparsity {args.sparsity}: give a share in [0, 1)")
    if args.output.exists():
        raise UserError(f"--output {args.output} exists: name a new folder")
    rules = params.load("prune").prune
    if rules.allocation != "uniform":
        raise UserError("prune.allocation owl needs calibration texts, which need the whole model: use uniform")

    from stages.pruning.shards import prune_folder

    pruned = prune_folder(args.model, args.output, args.sparsity, rules)
    print(f"{args.output}: {pruned.pruned:,} of {pruned.eligible:,} eligible weights are zero ({pruned.sparsity:.2%})")


if __name__ == "__main__":
    main()
