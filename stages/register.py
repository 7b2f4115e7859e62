"""Put a finished level into MLflow's registry, as a model that `mlflow models serve` answers with.

    python -m stages.register chosen
    python -m stages.register magnitude-0.5 --alias candidate

In:  dvc.lock, the level's checkpoint and figures, which have to be those that dvc.lock has; `chosen` is the level that
     `compare` chose.
Out: in MLflow (mlflow.db, or MLFLOW_TRACKING_URI) a version of the model, logged to the level's run, with signature, an
     example of a request, pinned requirements and its model card; and the alias. A level that is there already, with
     the same bits, is given the alias and no second version.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from stages import layout, params
from stages.errors import command
from stages.files import scratch_folder
from stages.registry.level import Finished
from stages.tracking.client import project, tracking_uri, workspace
from stages.tracking.secrets import hidden

NAME, CHAMPION = "espalier", "champion"
EXAMPLES = 2


@command
def main(arguments: Sequence[str] | None = None) -> None:
    """Register one level."""
    parser = argparse.ArgumentParser(
        prog="python -m stages.register", description="Put a level into MLflow's registry."
    )
    parser.add_argument("key", metavar="KEY", help="chosen, or a level such as magnitude-0.5, dense, baseline")
    parser.add_argument("--name", default=NAME, help=f"of the registered model (default: {NAME})")
    parser.add_argument("--alias", help=f"to give the version (default: {CHAMPION} for {layout.CHOSEN}, else none)")
    args = parser.parse_args(arguments)
    root = workspace()
    settings = params.load("tracking", path=root / params.PARAMS_FILE)
    finished = Finished.find(args.key, root)
    alias = args.alias or (CHAMPION if args.key == layout.CHOSEN else None)

    from filelock import FileLock
    from transformers.utils import logging

    from stages.registry import card, package
    from stages.registry.versions import Versions, check
    from stages.tracking.store import Store, explained

    check(args.name, alias)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    made = card.make(finished)
    uri = tracking_uri()
    scratch = project() / layout.SCRATCH
    scratch.mkdir(exist_ok=True)
    with explained(uri), FileLock(scratch / "register.lock"), scratch_folder(scratch, "register") as folder:
        store = Store(
            settings.tracking.experiment,
            commit=finished.commit,
            commit_is="HEAD when registered",
            timeout_s=30,
            retries=2,
        )
        versions = Versions(store, args.name)
        version = versions.find(finished)
        outcome = "registered" if version is None else "registered already"
        if version is None:
            model = folder / "model"
            package.save(finished, model, card=made.content, example=finished.inputs(EXAMPLES))
            version = versions.add(finished, model, card.untitled(made))
        if alias:
            versions.name_as(version, alias)
    named = f", alias {alias}" if alias else ""
    print(f"{finished.key}: {outcome}, {args.name} version {version.version}{named}: {hidden(uri)}")
    if changed := finished.uncommitted:
        print(f"made with uncommitted changes ({changed[0]}, …): its commit does not reproduce it", file=sys.stderr)


if __name__ == "__main__":
    main()
