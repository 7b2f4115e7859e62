"""A clone of the project to run stages in, which leaves the workspace and DVC's cache as they are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path

from stages import files
from stages.errors import UserError
from stages.shell import dvc, git, last_line
from stages.tracking.secrets import hidden

ELSEWHERE = (
    "DVC_EXP",
    "DVC_ROOT",
    "DVC_STAGE",
    "GIT_DIR",
    "GIT_INDEX",
    "GIT_OBJECT",
    "GIT_WORK_TREE",
    "PYTHONSAFEPATH",
)
"""How variables begin that would lead git, DVC or Python out of the clone: a git hook has some."""


def commit_of(rev: str | None) -> str:
    """The full name of a commit.

    Args:
        rev: branch, tag or commit; None for HEAD, if nothing differs from it.

    Raises:
        UserError: there is none of that name; or none was named, and the workspace is not as HEAD has it.
    """
    answer = git("rev-parse", "--verify", "--quiet", f"{rev or 'HEAD'}^{{commit}}")
    if answer.returncode:
        raise UserError(f"{rev} is no commit of this repository" if rev else "there is no commit yet: make one first")
    changed = git("status", "--porcelain", "--untracked-files=no").stdout.splitlines()
    if rev is None and changed:
        more = f" and {len(changed) - 1} more" if changed[1:] else ""
        raise UserError(
            f"uncommitted changes ({changed[0][3:]}{more}): commit them, or take the last commit as it is: --rev HEAD"
        )
    return answer.stdout.strip()


@contextmanager
def clone_of(commit: str, scratch: Path) -> Iterator[None]:
    """Work in a clone of the project at a commit, which shares git's objects and DVC's cache with it.

    Args:
        commit: its full name.
        scratch: folder that the clone is in, until the end.

    Raises:
        UserError: git or DVC fails.
    """
    cache = dvc("cache", "dir").strip()
    top = Path(git("rev-parse", "--show-toplevel").stdout.strip())
    below = git("rev-parse", "--show-prefix").stdout.strip()
    with files.scratch_folder(scratch, "clone") as folder:
        clone = folder / "project"
        with _variables(folder / "dvc"):
            run_git("clone", "--quiet", "--shared", "--no-checkout", str(top), str(clone))
            run_git("-C", str(clone), "checkout", "--quiet", "--detach", commit)
            with chdir(clone / below):
                dvc("config", "--local", "cache.dir", cache)
                yield


@contextmanager
def _variables(site: Path) -> Iterator[None]:
    """Have DVC keep its notes on the clone in a folder that goes with it, and stages track nothing."""
    before = dict(os.environ)
    for name in before:
        if name.startswith(ELSEWHERE):
            del os.environ[name]
    os.environ |= {"DVC_SITE_CACHE_DIR": str(site), "DVC_NO_ANALYTICS": "1", "ESPALIER_TRACKING": "off"}
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def run_git(*arguments: str) -> None:
    """Run git.

    Raises:
        UserError: it failed; with the last line it said.
    """
    answer = git(*arguments)
    if answer.returncode:
        raise UserError(hidden(f"`git {' '.join(arguments[:3])} …` failed: {last_line(answer.stderr)}"))
