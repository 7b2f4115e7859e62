"""What DVC took away when a stage started, put back when the stage fails.

DVC removes a stage's outputs before it runs the command. A mistake in params or data would so cost the user the
last good results: they are still in DVC's cache, but gone from the workspace until somebody thinks of
`dvc checkout`, and metrics, which git holds, until `git checkout`.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

TRIAL = f".{'?' * 22}.tmp"
"""How DVC calls a temporary file."""


@contextmanager
def outputs_kept() -> Iterator[None]:
    """If the block raises while DVC runs it as a stage, give the workspace that stage's outputs of dvc.lock again."""
    try:
        yield
    except BaseException:
        put_back()
        raise


def put_back() -> None:
    """If DVC runs this as a stage, give the workspace its outputs of dvc.lock again."""
    if name := os.environ.get("DVC_STAGE"):
        # Best effort: the error that is on its way says more than a second one about its clean-up would.
        with suppress(Exception):
            _check_out(name, os.environ.get("DVC_ROOT", "."))


def _check_out(name: str, root: str) -> None:
    """Check out one stage's outputs, where they are as dvc.lock has them.

    `dvc checkout` would wait for a lock that the `dvc repro` above us holds.
    """
    from dvc.repo import Repo

    with Repo(root) as repo:
        for stage in repo.stage.collect(name):
            for out in stage.outs:
                if out.hash_info:
                    with suppress(Exception), _tidy(Path(out.fs_path).parent):
                        out.checkout(force=True) if out.use_cache else _check_out_tracked(out)


@contextmanager
def _tidy(folder: Path) -> Iterator[None]:
    """Remove what DVC tries links with, and leaves where the disk is full."""
    before = set(folder.glob(TRIAL))
    try:
        yield
    finally:
        for left in set(folder.glob(TRIAL)) - before:
            left.unlink(missing_ok=True)


def _check_out_tracked(out: Any) -> None:
    """Bring back what git tracks.

    DVC keeps it in the cache too, for its run cache, but checks out only what git does not track; and a clone that has
    not pulled has it from git alone.
    """
    from stages.files import md5_of, replacing  # which needs stages.errors, which needs this module

    path = Path(out.fs_path)
    cached = Path(out.cache.oid_to_path(out.hash_info.value))
    content = cached.read_bytes() if cached.is_file() else _committed(path)
    if md5_of(content) == out.hash_info.value:
        with replacing(path) as partial:
            partial.write_bytes(content)


def _committed(path: Path) -> bytes:
    command = ["git", "show", f"HEAD:./{path.name}"]
    path.parent.mkdir(parents=True, exist_ok=True)
    return subprocess.run(command, cwd=path.parent, capture_output=True, check=True).stdout
