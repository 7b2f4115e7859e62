"""Write the model card of a finished level.

    python -m stages.card magnitude-0.5                      prints it
    python -m stages.card chosen --output README.md          to publish beside a checkpoint

In:  dvc.lock, the level's checkpoint, predictions and metrics files, which have to be those that dvc.lock has; what git
     says of the commit. `chosen` is the level that `compare` chose.
Out: a page of Markdown with Hugging Face's metadata. It names the commit, so it is no output of a DVC stage.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from stages.errors import UserError, command
from stages.files import replacing
from stages.registry.level import Finished
from stages.tracking.client import workspace


@command
def main(arguments: Sequence[str] | None = None) -> None:
    """Print or write the card."""
    parser = argparse.ArgumentParser(prog="python -m stages.card", description="Write the model card of a level.")
    parser.add_argument("key", metavar="KEY", help="chosen, or a level such as magnitude-0.5, dense, baseline")
    parser.add_argument("--output", type=Path, help="file to write (default: standard output)")
    args = parser.parse_args(arguments)
    finished = Finished.find(args.key, workspace())

    from stages.registry import card
    from stages.registry.metadata import is_card

    if args.output is not None and args.output.exists() and not is_card(args.output):
        raise UserError(f"--output {args.output} exists and is no model card of ours: name another file")
    content = card.make(finished).content
    if args.output is None:
        sys.stdout.write(content)
        return
    with replacing(args.output) as partial:
        partial.write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
