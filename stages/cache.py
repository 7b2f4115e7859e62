"""Check that every object of DVC's cache holds what its name says, and take out what does not.

    python -m stages.cache              before a push, or after a disk or a copy failed

In:  DVC's cache. An object is named by the md5 of its content.
Out: damaged objects are removed, since DVC would hand them out, and push them, as they are. Exit status 1 if there were
     any; says how to have them again. Everything else is left as it is.

DVC trusts objects that only it has written: `dvc checkout` does not read them through, and a stage that makes the right
file again does not replace a damaged object of that name.
"""

from __future__ import annotations

import argparse
import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from stages.errors import UserError, command
from stages.shell import dvc

OBJECT = re.compile(r"[0-9a-f]{30}(\.dir)?")
"""How an object is called in the folder that the first two of its md5's digits name; other files are passing."""


@command
def main(arguments: Sequence[str] | None = None) -> None:
    """Check all objects."""
    argparse.ArgumentParser(
        prog="python -m stages.cache", description="Remove damaged objects from DVC's cache."
    ).parse_args(arguments)
    count = 0
    damaged = []
    for path in objects(Path(dvc("cache", "dir").strip())):
        count += 1
        if not is_whole(path):
            damaged.append(path)
            path.unlink()
    if damaged:
        more = f" and {len(damaged) - 1} more" if damaged[1:] else ""
        raise UserError(
            f"{damaged[0]}{more} of {count} objects did not hold what the name says, and were removed: run `dvc fetch` "
            "to have them from the remote, or `dvc repro` to make them again"
        )
    print(f"{count} objects, all as their names say")


def objects(cache: Path) -> Iterator[Path]:
    """Every object of a cache."""
    for path in sorted(cache.glob("files/md5/[0-9a-f][0-9a-f]/*")):
        if OBJECT.fullmatch(path.name):
            yield path


def is_whole(path: Path) -> bool:
    """Whether an object holds what its name says."""
    with path.open("rb") as handle:
        md5 = hashlib.file_digest(handle, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    return md5 == path.parent.name + path.name.removesuffix(".dir")


if __name__ == "__main__":
    main()
