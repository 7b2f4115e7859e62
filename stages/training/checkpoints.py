"""Checkpoints of a training run on disk: whole or not there at all, and verified before one is used.

    .scratch/checkpoints/NAME/KEY/step-000000400/   what `stages.training.resuming` puts there, and manifest.json

NAME is the stage and its level. KEY is a hash of everything that decides the result, so that a run never goes on from a
checkpoint of other params, data, code or library versions.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import stages
from stages import layout
from stages.errors import UserError
from stages.files import digest, md5, read_json, replacing, write_json
from stages.runtime import writes_outputs

KEPT = 2
"""Checkpoints of a run: the one before the last is there for the case that the last is damaged."""
MANIFEST = "manifest.json"
ENDED = "ended.json"
"""Beside the checkpoints of a stage that has ended: an output by which to tell whether dvc.lock has it."""
LOCK = "dvc.lock"


@dataclass(frozen=True)
class Checkpoints:
    """How often a stage keeps a checkpoint of what it trains, and where."""

    name: str
    """Stage and level, as in `finetune-magnitude-0.5`."""
    every: int
    """Optimizer steps from one to the next; 0: none are kept, and none gone on from."""
    inputs: tuple[Path | str, ...] = ()
    """Files and text that decide the result beside what the training loop is given."""

    @property
    def home(self) -> Path:
        """Folder of all checkpoints of the name, whatever their key."""
        return layout.SCRATCH / "checkpoints" / self.name

    def of(self, *decisive: Path | str | bytes) -> Store:
        """The checkpoints of runs that these, `inputs` and the code decide."""
        remove_recorded()
        return Store(self.home / digest(self.name, *code(), *self.inputs, *decisive))

    def remove(self) -> None:
        """Remove them: what they led to is kept."""
        shutil.rmtree(self.home, ignore_errors=True)

    def keep_until_recorded(self, out: Path) -> None:
        """Have them removed by a later stage, once dvc.lock has this file of this content as an output.

        Until then they are what a `dvc repro` goes on from that was killed, or whose cache was full, after the stage
        had ended.
        """
        if not self.home.is_dir():
            return
        try:
            write_json(self.home / ENDED, {"path": out.as_posix(), "md5": md5(out)})
        except OSError:  # no room: what the stage has made is worth more
            self.remove()


def code() -> list[Path]:
    """All that may decide what a training comes to; where it is a key, nothing is taken that other code has made."""
    return sorted(Path(stages.__file__).parent.rglob("*.py"))


def remove_recorded() -> None:
    """Remove the checkpoints of all stages that have ended, and that dvc.lock has; called wherever a stage begins."""
    if not writes_outputs():
        return
    for ended in (layout.SCRATCH / "checkpoints").glob(f"*/{ENDED}"):
        try:
            out = read_json(ended)
            entry = rf"path: {re.escape(out['path'])}\s+hash: md5\s+md5: {out['md5']}\s"
            recorded = re.search(entry, Path(LOCK).read_text(encoding="utf-8", errors="replace"))
        except (UserError, OSError, KeyError, TypeError):
            continue
        if recorded:
            shutil.rmtree(ended.parent, ignore_errors=True)


@dataclass(frozen=True)
class Store:
    """The checkpoints of one run."""

    folder: Path

    @contextmanager
    def writing(self, step: int) -> Iterator[Path]:
        """Yield an empty folder to write a checkpoint to; it is there, for good, once the block has ended."""
        for left in self.folder.glob(".*.partial"):  # of a run that was killed while it wrote
            shutil.rmtree(left)
        with replacing(self.folder / f"step-{step:09d}") as partial:
            partial.mkdir()
            yield partial
            write_json(partial / MANIFEST, {name: _described(partial / name) for name in _names(partial)})
        for old in self._steps()[KEPT:]:
            shutil.rmtree(old)

    def latest(self) -> Path | None:
        """The last checkpoint that is as it was written; says so on standard error if one is not."""
        for folder in self._steps():
            if not (damage := _damage(folder)):
                return folder
            print(f"{folder} is damaged ({damage}): it is not used", file=sys.stderr)
        return None

    def _steps(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"), reverse=True)


def _names(folder: Path) -> list[str]:
    files = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in files if name != MANIFEST)


def _described(file: Path) -> dict[str, int | str]:
    with file.open("rb") as handle:
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(handle, "sha256").hexdigest()}


def _damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint."""
    try:
        manifest = read_json(folder / MANIFEST)
        if not manifest:
            return "it is empty"
        if manifest.keys() != set(_names(folder)):
            return "its files are not those it was written with"
        return next((name for name, written in manifest.items() if _described(folder / name) != written), None)
    except (UserError, OSError, AttributeError, TypeError):
        return MANIFEST
