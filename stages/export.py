"""Export a level for a runtime: ONNX Runtime or CTranslate2, in float or int8, or a plain `transformers` folder.

    python -m stages.export magnitude-0.5 --to onnx --output exported
    python -m stages.generate --model exported --text "Hotel-Inform (Area, Name)"

In:  a level's key, `dense`, `baseline`, or the folder of a checkpoint.
Out: a folder with graphs or weights, tokenizer, configs, and export.json, which says what is there. An earlier export
     in its place is replaced once all is written.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from stages import layout
from stages.errors import command
from stages.runtimes.description import FORMATS


@command
def main(arguments: Sequence[str] | None = None) -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(prog="python -m stages.export", description="Export a level for a runtime.")
    parser.add_argument("level", help="baseline, dense, magnitude-0.5, …, or a checkpoint folder")
    parser.add_argument("--to", choices=FORMATS, required=True, help="format to write")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    args = parser.parse_args(arguments)
    source = Path(args.level) if Path(args.level).is_dir() else layout.model_folder(args.level)

    from transformers.utils import logging

    from stages.models import checkpoint
    from stages.runtimes import folder

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    folder.save(checkpoint.load(source), args.output, args.to, source=source.name)
    size = sum(file.stat().st_size for file in args.output.rglob("*") if file.is_file())
    print(f"{args.output}: {args.to} of {source.name}, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
