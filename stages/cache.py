"""Check that what DVC holds for whole is so, in its cache and in the workspace, and take out what is not.

    python -m stages.cache              before a push, or after a disk or a copy failed

In:  DVC's cache, where an object is named by the md5 of its content. The outputs in the workspace that DVC keeps there,
     and the md5 that it remembers of each.
Out: damaged objects are removed, since DVC would hand them out, and push them, as they are. So are outputs that are not
     what DVC remembers, though they have the size and time that they had. Exit status 1 if there were any; says how to
     have them again. Everything else is left as it is: an output that was changed since, DVC sees by itself.

DVC trusts objects that only it has written: `dvc checkout` does not read them through, and remembers what it has handed
out under the name of the object. A stage that makes the right file again does not replace a damaged object.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from stages.errors import UserError, command
from stages.files import md5
from stages.shell import dvc

OBJECT = re.compile(r"[0-9a-f]{30}(\.dir)?")
"""How an object is called in the folder that the first two of its md5's digits name; other files are passing."""


@command
def main(arguments: Sequence[str] | None = None) -> None:
    """Check all objects, then all outputs."""
    argparse.ArgumentParser(
        prog="python -m stages.cache", description="Remove damaged files from DVC's cache, and what it handed out."
    ).parse_args(arguments)
    count, damaged = _take_out(objects(Path(dvc("cache", "dir").strip())))
    outputs, wrong = _take_out(remembered())
    if damaged or wrong:
        found = [f"{_named(damaged)} of {count} objects did not hold what the name says"] if damaged else []
        found += [f"{_named(wrong)} of {outputs} outputs was not what DVC takes it for"] if wrong else []
        raise UserError(
            f"{', and '.join(found)}; removed: run `dvc pull` to have them from the remote, or `dvc repro` to make "
            "them again"
        )
    print(f"{count} objects and {outputs} outputs, all as they should be")


def _take_out(files: Iterable[tuple[Path, str]]) -> tuple[int, list[Path]]:
    """Remove files that have another md5; how many there were, and those."""
    count = 0
    damaged = []
    for path, name in files:
        count += 1
        if md5(path) != name:
            damaged.append(path)
            path.unlink()
    return count, damaged


def _named(paths: Sequence[Path]) -> str:
    return f"{paths[0]} and {len(paths) - 1} more" if paths[1:] else str(paths[0])


def objects(cache: Path) -> Iterator[tuple[Path, str]]:
    """Every object of a cache, and the md5 that its name says."""
    for path in sorted(cache.glob("files/md5/[0-9a-f][0-9a-f]/*")):
        if OBJECT.fullmatch(path.name):
            yield path, path.parent.name + path.name.removesuffix(".dir")


def remembered() -> Iterator[tuple[Path, str]]:
    """Every file of the workspace's outputs that DVC keeps in its cache and takes for unchanged, and its md5."""
    from dvc.repo import Repo

    with Repo() as repo:
        for out in repo.index.outs:
            if not out.use_cache or out.protocol != "local":
                continue
            place = Path(out.fs_path)
            for path in sorted(place.rglob("*")) if place.is_dir() else [place]:
                _, found = repo.state.get(str(path), out.fs) if path.is_file() else (None, None)
                if found and found.name == "md5":
                    yield path, found.value


if __name__ == "__main__":
    main()
