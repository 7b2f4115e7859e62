"""What DVC took away when a stage started, put back when the stage fails.

DVC removes a stage's outputs before it runs the command. A mistake in params or data would so cost the user the
last good results: they are still in DVC's cache, but gone from the workspace until somebody thinks of
`dvc checkout`, and metrics, which git holds, until `git checkout`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def outputs_kept() -> Iterator[None]:
    """If the block raises while DVC runs it as a stage, give the workspace that stage's outputs of dvc.lock again."""
    try:
        yield
    except BaseException:
        if name := os.environ.get("DVC_STAGE"):
            # Best effort: the error that is on its way says more than a second one about its clean-up would.
            with suppress(Exception):
                _check_out(name, os.environ.get("DVC_ROOT", "."))
        raise


def _check_out(name: str, root: str) -> None:
    """Check out one stage's outputs from the cache, where they are as dvc.lock has them.

    `dvc checkout` would wait for a lock that the `dvc repro` above us holds.
    """
    from dvc.repo import Repo

    with Repo(root) as repo:
        for stage in repo.stage.collect(name):
            for out in stage.outs:
                if out.hash_info:
                    # What git tracks is in the cache too, for DVC's run cache, but DVC checks out only what is
                    # not; as a copy, since git would take a link to the cache for the file's content.
                    if not out.use_cache:
                        out.use_cache = True
                        out.cache.cache_types = ["copy"]
                    with suppress(Exception):
                        out.checkout(force=True)
