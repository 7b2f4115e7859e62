"""Versions of a registered model: one a level of a revision, found again by what the level is."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from stages.errors import UserError
from stages.registry.level import Finished
from stages.tracking.content import IDENTITY, KEY, REVISION, describe, lock_tag
from stages.tracking.store import Store

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

CHECKPOINT = "dvc.checkpoint.md5"
FORBIDDEN = "/:%\"'`"
LONGEST = 5000
"""Characters of a description, and of a tag, that a registry keeps."""
ABOUT = "Pruned generators. A version is one level of one revision: see its README.md for data, figures and commands."


class Versions:
    """Of one registered model."""

    def __init__(self, store: Store, name: str) -> None:
        """Take a name for what it is in the registry; nothing is made yet."""
        self._client, self._store, self.name = store.client, store, name

    def find(self, finished: Finished) -> ModelVersion | None:
        """The version that holds the same level of the same revision, with the same bits."""
        wanted = {IDENTITY: finished.run.identity, CHECKPOINT: finished.checkpoint_md5}
        conditions = " and ".join(f"tag.`{name}` = '{value}'" for name, value in wanted.items())
        found = self._client.search_model_versions(f"name = '{self.name}' and {conditions}")
        return max(found, key=lambda version: int(version.version), default=None)

    def add(self, finished: Finished, folder: Path, description: str) -> ModelVersion:
        """Log an MLflow model to the level's run, and make a version of it.

        Args:
            finished: the level; its run is made, or brought up to date.
            folder: the MLflow model.
            description: of the version, in Markdown.
        """
        from mlflow.entities import LoggedModelOutput
        from mlflow.exceptions import MlflowException

        run_id = self._run(finished)
        logged = self._client.create_logged_model(
            self._store.experiment_id,
            finished.key.replace(".", "_"),  # a full stop is not allowed
            source_run_id=run_id,
            params=describe(finished.pipeline, finished.run).params,
            tags=tags(finished),
        )
        try:
            self._client.log_model_artifacts(logged.model_id, str(folder))
            self._client.finalize_logged_model(logged.model_id, "READY")
            self._client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
        except BaseException:
            self._client.finalize_logged_model(logged.model_id, "FAILED")
            raise
        try:
            self._client.get_registered_model(self.name)
        except MlflowException:
            self._client.create_registered_model(self.name, description=ABOUT)
        version = self._client.create_model_version(
            self.name,
            logged.model_uri,
            run_id,
            tags=tags(finished),
            description=shortened(description),
            model_id=logged.model_id,
        )
        made = json.dumps([{"name": self.name, "version": version.version}])
        self._client.set_logged_model_tags(logged.model_id, {"mlflow.modelVersions": made})  # for the UI's link
        return version

    def name_as(self, version: ModelVersion, alias: str) -> None:
        """Give a version an alias, which another one may have had."""
        self._client.set_registered_model_alias(self.name, alias, version.version)

    def _run(self, finished: Finished) -> str:
        """Id of the level's run, in which all that dvc.lock says of it is written down."""
        known = self._store.runs()
        for run in (finished.revision, finished.run):
            self._store.upsert(describe(finished.pipeline, run), known)
        return known[finished.run.identity].info.run_id


def tags(finished: Finished) -> dict[str, str]:
    """Of a version: what level it is, of which revision and commit."""
    level = finished.level
    found = {
        "method": finished.key if level is None else level.method,
        "sparsity": "0" if level is None else str(level.sparsity),
        "commit": finished.commit,
        lock_tag(finished.maker): finished.lock,
        CHECKPOINT: finished.checkpoint_md5,
        KEY: finished.key,
        REVISION: finished.revision.identity,
        IDENTITY: finished.run.identity,
    }
    if finished.uncommitted:
        found["uncommitted"] = " ".join(finished.uncommitted)[:LONGEST]
    return {name: value for name, value in found.items() if value}


def check(name: str, alias: str | None) -> None:
    """See that a registry takes a name and an alias.

    Raises:
        UserError: it does not.
    """
    if not name.strip() or set(name) & set(FORBIDDEN):
        raise UserError(f"--name {name!r}: give one without any of {FORBIDDEN}")
    if alias is not None and (not re.fullmatch(r"[\w-]+", alias) or re.fullmatch(r"v\d+|latest", alias, re.IGNORECASE)):
        raise UserError(f"--alias {alias!r}: letters, digits, _ and -; v1, v2, … and latest are MLflow's own")


def shortened(text: str, limit: int = LONGEST) -> str:
    """A page of Markdown, or as many of its sections as fit, among them the last: how it is made again."""
    if len(text) <= limit:
        return text
    rest = "\n\nMore in README.md of the checkpoint."
    last = "\n\n" + text[text.rfind("\n## ") :].strip()
    if len(last) + len(rest) < limit / 2:
        rest = last + rest
    cut = text[: limit - len(rest)]
    return cut[: cut.rfind("\n## ")].rstrip() + rest
