"""What travels through the DVC remote, in functions that run in a process of their own inside a clone."""

from __future__ import annotations

from collections.abc import Sequence


def push(names: Sequence[str]) -> None:
    """Push what stages have made, so that a clone that has neither their outs nor their lock entries can restore them.

    `dvc push --run-cache` leaves out what git is to hold, metrics above all, without which DVC cannot restore a run.
    """
    from dvc.repo import Repo

    with Repo() as repo:
        repo.push(targets=list(names), run_cache=True)
        outs = [out for name in names for stage in repo.stage.collect(name) for out in stage.outs]
        tracked = [out for out in outs if not out.use_cache and out.hash_info]
        held = {out.hash_info for out in tracked if out.cache.exists(out.hash_info.value)}
        if held and (failed := repo.cloud.push(held).failed):
            raise SystemExit(f"{len(failed)} files could not be pushed")


def reach(filled: bool) -> None:
    """Look for the DVC remote.

    Args:
        filled: whether something is known to be there.
    """
    from dvc.repo import Repo

    with Repo() as repo:
        store = repo.cloud.get_remote_odb(None, "pull")
        if not store.fs.exists(store.path) and filled:
            raise SystemExit(f"nothing is at {store.path}, where the head has pushed to: is the folder shared?")
