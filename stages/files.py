"""Writing outputs so that a reader never sees half of one: write beside, then rename."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from stages.errors import UserError

CLOCK_S = 2.0
"""By how much the start of a process and the time of a file may be off: the kernel tells its own start in seconds."""


@contextmanager
def replacing(target: Path | str) -> Iterator[Path]:
    """Yield a path beside `target` to write a file or folder to; on success it takes `target`'s place.

    If the block raises, what stood at `target` stays as it was and the partial output is removed; that of a process
    that was killed is removed by the next that writes to `target`. Power may fail at any moment: everything is on disk
    before it gets its name.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    former = target.with_name(f".{target.name}.{os.getpid()}.former.partial")
    _remove(partial)
    _remove_abandoned(target.parent, f".{target.name}.", ".partial")
    try:
        yield partial
        for path in (*partial.rglob("*"), partial):
            _sync(path)
        if target.is_dir() or (partial.is_dir() and target.exists()):
            target.rename(former)  # no folder takes the place of another that holds something
        try:
            partial.replace(target)
        except OSError:
            if former.exists():
                former.rename(target)
            raise
        _sync(target.parent)
    finally:
        _remove(partial)
        _remove(former)


@contextmanager
def scratch_folder(parent: Path, name: str) -> Iterator[Path]:
    """Yield the path of a new folder, which is removed in the end.

    That of a process that was killed is removed by the next that makes one of this name.

    Args:
        parent: folder that it is in, made if it is not there.
        name: how its name begins.
    """
    parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(parent, f"{name}-", "")
    prefix = f"{name}-{os.getpid()}-"
    with tempfile.TemporaryDirectory(prefix=prefix, dir=parent.absolute(), ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def write_json(path: Path | str, value: Any) -> None:
    """Write `value` as JSON, the same bytes for the same value (key order as given)."""
    with replacing(path) as partial:
        partial.write_text(as_json(value), encoding="utf-8")


def as_json(value: Any) -> str:
    """What `write_json` writes."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def read_json(path: Path | str) -> Any:
    """Read a JSON file.

    Raises:
        UserError: the file is missing or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run `dvc repro`, or `dvc pull` to fetch it") from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}): {remedy(Path(path))}") from None


def remedy(path: Path) -> str:
    """How to have a damaged output as it was: DVC may take it for whole, and have it so in its cache as well."""
    return f"run `python -m stages.cache`, then `dvc checkout --force {path}`"


def md5(path: Path) -> str:
    """What DVC knows a file by."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def md5_of(content: bytes | str) -> str:
    """What DVC knows a file of this content by; text as UTF-8."""
    data = content.encode() if isinstance(content, str) else content
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def digest(*parts: Path | str | bytes) -> str:
    """Hex digest over files (a `Path`, folders walked in name order), text and bytes."""
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, Path):
            files = sorted(p for p in part.rglob("*") if p.is_file()) if part.is_dir() else [part]
            for file in files:
                relative = file.relative_to(part).as_posix() if part.is_dir() else ""
                state.update(relative.encode() + b"\0")
                with file.open("rb") as handle:
                    state.update(hashlib.file_digest(handle, "sha256").digest())
        else:
            state.update(part.encode() if isinstance(part, str) else part)
        state.update(b"\1")
    return state.hexdigest()


def _remove_abandoned(parent: Path, before: str, after: str) -> None:
    """Remove what processes that were killed have left of names in which theirs comes after `before`."""
    for path in parent.glob(f"{glob.escape(before)}*{after}"):
        writer = re.match(r"\d+", path.name.removeprefix(before))
        if writer and not _writes(int(writer[0]), path):
            with suppress(FileNotFoundError):  # another process removes it at the same time
                _remove(path)


def _writes(process: int, path: Path) -> bool:
    """Whether a process may be the one that began `path`: it lives, and did so when that was last changed."""
    import psutil

    try:
        found = psutil.Process(process)
        # Where nobody waits for orphans, as in a container whose first process is no init, the killed stay zombies.
        return found.status() != psutil.STATUS_ZOMBIE and found.create_time() <= path.stat().st_mtime + CLOCK_S
    except (psutil.NoSuchProcess, FileNotFoundError):
        return False
    except psutil.AccessDenied:
        return True


def _sync(path: Path) -> None:
    """Have a file, or the names in a folder, on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
