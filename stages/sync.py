"""Bring MLflow up to what DVC recorded.

    python -m stages.sync

In:  dvc.lock, dvc.yaml, params.yaml and the metrics files and curves under outputs/ (no data, no models).
Out: MLflow runs, at MLFLOW_TRACKING_URI or in mlflow.db: those that are missing are made (a fresh clone, a deleted
     database), those that stages logged live are completed. Run again, it changes nothing.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from stages import params
from stages.errors import UserError, command
from stages.tracking.client import git, tracking_uri, workspace
from stages.tracking.content import Content, describe
from stages.tracking.identity import in_lock
from stages.tracking.pipeline import Pipeline
from stages.tracking.secrets import hidden


@command
def main() -> None:
    """Sync all runs of dvc.lock."""
    argparse.ArgumentParser(description="Bring MLflow up to what DVC recorded.").parse_args()
    root = workspace()
    settings = params.load("tracking", path=root / params.PARAMS_FILE)
    if not (root / "dvc.lock").is_file():
        raise UserError("dvc.lock is missing: nothing has been made here yet; run `dvc repro`, or `git pull`")
    pipeline = Pipeline(root)
    contents = [describe(pipeline, run) for run in in_lock(pipeline)]
    if not contents:
        raise UserError("dvc.lock has no trained baseline that is up to date: run `dvc repro`")
    done = _write(contents, settings.tracking.experiment, root)
    changes = [f"{done[outcome]} {outcome}" for outcome in ("made", "updated") if done[outcome]]
    print(f"{done.total()} runs, {', '.join(changes) or 'all up to date'}: {hidden(tracking_uri())}")
    missing = sorted({path for content in contents for path in content.missing})
    if missing:
        raise UserError(
            f"{missing[0]}{f' and {len(missing) - 1} more' if missing[1:] else ''} missing or not as dvc.lock has "
            "it: run `git checkout`, `dvc pull` or `dvc repro`, then this again"
        )


def _write(contents: list[Content], experiment: str, root: Path) -> Counter[str]:
    from rich.console import Console
    from rich.progress import track as progress

    from stages.tracking.store import Store, explained

    done: Counter[str] = Counter()
    with explained(tracking_uri()):
        head = git("rev-parse", "HEAD", folder=root)
        store = Store(experiment, commit=head, commit_is="HEAD when dvc.lock was read", timeout_s=30, retries=2)
        known = store.runs()
        terminal = Console(stderr=True)
        for content in progress(contents, "MLflow", console=terminal, transient=True, disable=not terminal.is_terminal):
            done[store.upsert(content, known)] += 1
    return done


if __name__ == "__main__":
    main()
