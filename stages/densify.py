"""Make a plain `transformers` folder of a level that is kept without its zeros.

    python -m stages.densify magnitude-0.9 --output my-generator

In:  a level's key, or the folder of a checkpoint, with `finetune.storage: sparse`.
Out: a folder that `from_pretrained` loads with none of this code: the same bytes as `storage: dense` would have left.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from stages import layout
from stages.errors import UserError, command


@command
def main(arguments: Sequence[str] | None = None) -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(
        prog="python -m stages.densify", description="Make a plain transformers folder of a sparse one."
    )
    parser.add_argument("level", help="key of a level, such as magnitude-0.9, or a checkpoint folder")
    parser.add_argument("--output", type=Path, required=True, help="folder to write; must not exist")
    args = parser.parse_args(arguments)
    if args.output.exists():
        raise UserError(f"--output {args.output} exists: name a new folder")
    folder = layout.named_folder(args.level)

    from transformers.utils import logging

    from stages.bitmasks import MASKS_FILE, Masks
    from stages.models import checkpoint, sparse

    logging.disable_progress_bar()
    if (folder / "config.json").is_file() and not sparse.is_sparse(folder):
        raise UserError(f"{folder} is a plain folder already: copy it")
    checkpoint.save(checkpoint.load(folder), args.output, masks=Masks.load(folder / MASKS_FILE))
    print(f"{args.output}: a plain transformers folder")


if __name__ == "__main__":
    main()
