"""A finished sweep travels through an S3 remote to a clone that trains nothing. The server is moto's, on loopback."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from project import ACCESS, KEYS, Project


def runs(project: Project) -> dict[str, dict[str, Any]]:
    """Of every MLflow run by name: what is the same for whoever synced it."""
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{project.root}/mlflow.db")
    experiment = client.get_experiment_by_name("espalier")
    found = client.search_runs([experiment.experiment_id])
    named = {
        run.info.run_name: {
            "metrics": run.data.metrics,
            "params": run.data.params,
            "identity": run.data.tags["espalier.identity"],
            "status": run.info.status,
        }
        for run in found
    }
    assert len(named) == len(found)
    return named


def test_a_fresh_clone_executes_nothing_and_has_the_same_runs(
    finished: Project, bucket: tuple[str, str], tmp_path: Path
):
    ours = Project(tmp_path / "ours")
    shutil.copytree(finished.root, ours.root, symlinks=True)
    endpoint, url = bucket
    ours.run("dvc", "remote", "add", "--default", "storage", f"{url}/storage")
    ours.run("dvc", "remote", "modify", "storage", "endpointurl", endpoint)
    ours.commit("made")
    refused = ours.run(
        "dvc", "push", check=False, **(ACCESS | {"AWS_ACCESS_KEY_ID": ""}), AWS_EC2_METADATA_DISABLED="true"
    )
    assert refused.returncode and "credentials" in refused.stderr.lower()
    ours.run("dvc", "push", "--run-cache", **ACCESS)

    theirs = Project(tmp_path / "theirs")
    ours.run("git", "clone", "-q", str(ours.root), str(theirs.root))
    assert not (theirs.root / ".dvc/cache").exists() and not (theirs.root / "mlflow.db").exists()
    assert theirs.run("python", "-m", "stages.check").stdout == "dvc.lock is up to date.\n"
    said = theirs.run("dvc", "repro", "--pull", **ACCESS).stdout
    assert "Running stage" not in said
    assert theirs.run("git", "status", "--porcelain").stdout == ""
    assert theirs.run("dvc", "status").stdout.startswith("Data and pipelines are up to date")
    for key in KEYS:  # levels that have left the sweep are in the workspace still, but not in the commit
        files = list((ours.root / "outputs/models/finetuned" / key).rglob("*.safetensors"))
        assert files and all(
            (theirs.root / path.relative_to(ours.root)).read_bytes() == path.read_bytes() for path in files
        )

    for project in (ours, theirs):
        (project.root / "mlflow.db").unlink(missing_ok=True)
        project.run("python", "-m", "stages.sync")
    assert runs(theirs) == runs(ours) and set(KEYS) | {"dense", "baseline"} <= runs(theirs).keys()
