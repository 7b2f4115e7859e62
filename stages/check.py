"""Check, without data or models, that dvc.lock is what the code, params and data in git lead to.

    python -m stages.check                    what continuous integration runs on a fresh clone; or: make check

In:  what git has. Data and models that are not here are taken to be as dvc.lock has them.
Out: nothing. The exit status is 1 if a stage is out of date, and such stages are named with what has changed of them.

`dvc repro --dry --allow-missing` asks nearly the same, but ends with status 0 if it finds a stale stage, and on a fresh
clone takes those for stale that read a folder of which git has a part, such as the metrics of all levels.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from stages import params
from stages.errors import UserError, command
from stages.shell import dvc
from stages.sweep import graph
from stages.tracking.pipeline import Entry, Pipeline, files_in, md5_of, md5_of_files

SHOWN = 4
"""Stages that are named, and changes of each."""
UNKNOWN = "unknown"
"""Stands for the md5 of a folder that cannot be told without what is in it."""


@command
def main(arguments: Sequence[str] | None = None) -> None:
    """Name the stages that are out of date."""
    argparse.ArgumentParser(
        prog="python -m stages.check", description="Check that dvc.lock is up to date, without data or models."
    ).parse_args(arguments)
    stale = [f"{name} ({_listed(changes, ', ')})" for name, changes in _stale()]
    if stale:
        raise UserError(f"dvc.lock is out of date: {_listed(stale, '; ')}: run `dvc repro`, and commit what it leaves")
    print("dvc.lock is up to date.")


def _listed(texts: Sequence[str], separator: str) -> str:
    more = [f"{len(texts) - SHOWN} more"] if texts[SHOWN:] else []
    return separator.join([*texts[:SHOWN], *more])


def _stale() -> Iterator[tuple[str, list[str]]]:
    """Stages that have a reason to run, in the order of dvc.yaml, with what has changed of them."""
    stages = [name for name in graph() if not name.endswith(".dvc")]
    entries = {entry.name: entry for entry in Pipeline(Path()).entries if entry.name in stages}
    made = {path: md5 for entry in entries.values() for path, md5 in entry.outs.items()}
    status = json.loads(dvc("status", "--json"))
    for name in stages:
        if name not in entries:
            yield name, ["never made"]
        elif changes := list(_changes(status.get(name, []), entries[name], made)):
            yield name, changes


def _changes(status: Sequence[Any], entry: Entry, made: Mapping[str, str]) -> Iterator[str]:
    """What DVC finds changed of a stage, less what only seems so because it is not here."""
    for item in status:
        if isinstance(item, str):
            yield item
            continue
        for kind, recorded in (("changed deps", entry.deps), ("changed outs", entry.outs)):
            for path in item.get(kind, {}):
                if _as_locked(path, made) not in (recorded.get(path, ""), UNKNOWN):
                    yield path


def _as_locked(path: str, made: Mapping[str, str]) -> str | None:
    """md5 of a file or folder, its missing parts being as dvc.lock or a .dvc file has them; None if nothing has.

    A folder of folders, such as the models of all levels, is `UNKNOWN` while one is missing: dvc.lock has no md5s of
    the files in it. Other outs of the same stages show whether it is what it was.

    Args:
        path: of the file or folder, as in dvc.yaml.
        made: md5 of every out in dvc.lock.
    """
    place = Path(path)
    inside = {out: md5 for out, md5 in made.items() if Path(out).is_relative_to(place)}
    if path in inside:
        return md5_of(Path(), path) or inside[path]
    if inside:
        folders = {out for out, md5 in inside.items() if md5.endswith(".dir")}
        if not all(Path(out).is_dir() for out in folders):
            return UNKNOWN
        inside = {out: md5 for out, md5 in inside.items() if out not in folders}
        files = inside | {file.as_posix(): md5_of(Path(), str(file)) for file in files_in(Path(), path)}
        return md5_of_files({Path(file).relative_to(place).as_posix(): md5 for file, md5 in files.items()})
    if not place.exists() and Path(f"{path}.dvc").is_file():
        return str(params.read_yaml(Path(f"{path}.dvc"))["outs"][0]["md5"])
    return None


if __name__ == "__main__":
    main()
