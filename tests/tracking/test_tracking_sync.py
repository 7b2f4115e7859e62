"""`python -m stages.sync`, on a real MLflow database and a real server."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sweep_on_disk import ALL, Sweep

Runs = Callable[[], dict[str, Any]]
Sync = Callable[[], str]
Rows = Callable[[], list[str]]


def history(sweep: Sweep, run: Any, name: str) -> dict[int, float]:
    from mlflow import MlflowClient

    points = MlflowClient(f"sqlite:///{sweep.root / 'mlflow.db'}").get_metric_history(run.info.run_id, name)
    assert len({point.step for point in points}) == len(points)
    return {point.step: point.value for point in points}


def test_again_changes_nothing(sweep: Sweep, database: Path, sync: Sync, rows: Rows, runs: Runs) -> None:
    assert sync() == f"{ALL} runs, {ALL} made: sqlite:///{database}\n"
    before = rows()
    assert sync() == f"{ALL} runs, all up to date: sqlite:///{database}\n"
    assert rows() == before
    assert len(runs()) == ALL


def test_a_run_holds_what_the_files_say(sweep: Sweep, database: Path, sync: Sync, runs: Runs) -> None:
    sync()
    found = runs()
    parent = next(run for name, run in found.items() if name.startswith("multiwoz-"))
    run = found["l1-0.9"]
    figures = json.loads((sweep.root / "outputs/metrics/evaluate/l1-0.9.json").read_text())
    timings = {row["key"]: row for row in csv.DictReader((sweep.root / "outputs/benchmark/speed.csv").open())}
    pruned = json.loads((sweep.root / "outputs/metrics/prune/l1-0.9.json").read_text())
    assert {name: run.data.metrics[name] for name in figures} == figures
    assert run.data.metrics["latency_ms_p50"] == float(timings["l1-0.9"]["latency_ms_p50"])
    assert not [name for name in run.data.metrics if name.startswith("onnx")]
    exported = found["magnitude-0.5"].data.metrics
    assert exported["onnx/latency_ms_p50"] == float(timings["onnx"]["latency_ms_p50"])
    assert exported["onnx/size_bytes"] == 7_300_000 and exported["onnx/same_outputs"] == 1
    assert exported["latency_ms_p50"] == float(timings["magnitude-0.5"]["latency_ms_p50"])
    assert run.data.metrics["prune/validation_loss_after"] == pruned["validation_loss_after"]
    assert run.data.metrics["finetune/final_loss"] == pytest.approx(1.12 + 0.9**3)
    rows = list(csv.DictReader((sweep.root / "outputs/metrics/finetune/l1-0.9.curve.csv").open()))
    assert history(sweep, run, "finetune/loss") == {int(row["step"]): float(row["loss"]) for row in rows}
    assert len(history(sweep, run, "finetune/validation_loss")) == 2

    params = run.data.params
    strength = str(sweep.params["prune"]["l1"]["strength"])
    assert (params["method"], params["sparsity"], params["prune.l1.strength"]) == ("l1", "0.9", strength)
    assert params["finetune.schedule"] == sweep.params["finetune"]["schedule"]
    assert not any(name.startswith(("train.", "model.", "clean.", "sweep")) for name in params)
    assert parent.data.params["train.epochs"] == str(sweep.params["train"]["epochs"])

    tags = run.data.tags
    assert tags["mlflow.parentRunId"] == parent.info.run_id
    assert tags["dvc.stages"] == "prune@l1-0.9 finetune@l1-0.9 evaluate@l1-0.9"
    entry = sweep.lock["finetune@l1-0.9"]
    assert json.loads(tags["dvc.finetune.deps"]) == {dep["path"]: dep["md5"] for dep in entry["deps"]}
    assert json.loads(tags["dvc.finetune.outs"]) == {out["path"]: out["md5"] for out in entry["outs"]}
    splits = {item.dataset.name: item.dataset.digest for item in run.inputs.dataset_inputs}
    assert splits == {Path(o["path"]).stem: o["md5"] for o in sweep.lock["clean"]["outs"] if "data/" in o["path"]}
    assert parent.data.metrics["clean/kept"] == 22_490
    assert {found[name].info.status for name in found} == {"FINISHED"}


def test_a_deleted_database_comes_back(sweep: Sweep, sync: Sync, runs: Runs) -> None:
    sync()
    before = {name: (run.data.metrics, run.data.params) for name, run in runs().items()}
    for file in sweep.root.glob("mlflow.db*"):
        file.unlink()
    shutil.rmtree(sweep.root / "outputs/models")  # `dvc pull` was not run: models and data are not needed
    shutil.rmtree(sweep.root / "outputs/data")
    sync()
    assert {name: (run.data.metrics, run.data.params) for name, run in runs().items()} == before


def test_only_what_is_new_is_made(sweep: Sweep, database: Path, sync: Sync, runs: Runs) -> None:
    sync()
    ids = {name: run.info.run_id for name, run in runs().items()}
    sweep.run("prune@magnitude-0.7", "finetune@magnitude-0.7", "evaluate@magnitude-0.7")
    assert f"{ALL + 1} runs, 1 made:" in sync()
    after = {name: run.info.run_id for name, run in runs().items()}
    assert after.pop("magnitude-0.7")
    assert after == ids


def test_a_result_made_again_with_the_same_inputs_updates_its_run(
    sweep: Sweep, database: Path, sync: Sync, runs: Runs
) -> None:
    sync()
    timings = sweep.root / "outputs/benchmark/speed.csv"
    timings.write_text("key,level,runtime,latency_ms_p50\nl1-0.5,l1-0.5,pytorch,99.5\n")
    out = next(out for out in sweep.lock["benchmark"]["outs"] if "benchmark" in out["path"])
    out["md5"] = hashlib.md5(timings.read_bytes()).hexdigest()
    sweep.write_lock()
    assert f"{ALL} runs, 1 updated:" in sync()
    assert runs()["l1-0.5"].data.metrics["latency_ms_p50"] == 99.5
    assert "all up to date" in sync()


def test_what_a_person_deleted_in_a_run_is_put_back(sweep: Sweep, database: Path, sync: Sync, runs: Runs) -> None:
    from mlflow import MlflowClient

    sync()
    client = MlflowClient(f"sqlite:///{database}")
    client.delete_tag(runs()["dense"].info.run_id, "dvc.finetune.outs")
    client.delete_run(runs()["baseline"].info.run_id)
    assert "1 made, 1 updated" in sync()
    assert len(runs()) == ALL


def test_a_run_whose_maker_was_killed_is_finished(sweep: Sweep, database: Path, sync: Sync, runs: Runs) -> None:
    """MLflow makes runs as RUNNING; before the word that it has ended, a process can die."""
    from mlflow import MlflowClient

    sync()
    client = MlflowClient(f"sqlite:///{database}")
    parent = next(name for name in runs() if name.startswith("multiwoz-"))
    for name in (parent, "l1-0.9"):
        client.update_run(runs()[name].info.run_id, status="RUNNING")
    client.set_tag(runs()["l1-0.9"].info.run_id, "espalier.stage", "finetune")
    assert sync() == f"{ALL} runs, 1 updated: sqlite:///{database}\n"
    assert runs()[parent].info.status == "FINISHED"
    assert runs()["l1-0.9"].info.status == "RUNNING"
    assert "all up to date" in sync()


def test_a_new_parent_takes_its_children_in(sweep: Sweep, database: Path, sync: Sync, runs: Runs) -> None:
    from mlflow import MlflowClient

    sync()
    parent = next(name for name in runs() if name.startswith("multiwoz-"))
    MlflowClient(f"sqlite:///{database}").delete_run(runs()[parent].info.run_id)
    assert f"1 made, {ALL - 1} updated" in sync()
    assert "all up to date" in sync()
    found = runs()
    children = [run for name, run in found.items() if name != parent]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {found[parent].info.run_id}


def test_infinite_and_undefined_figures(sweep: Sweep, database: Path, sync: Sync, runs: Runs) -> None:
    path = sweep.root / "outputs/metrics/evaluate/dense.json"
    path.write_text('{"perplexity": Infinity, "bleu": NaN, "loss": 2}')
    entry = next(out for out in sweep.lock["evaluate_dense"]["outs"] if out["path"].endswith("evaluate/dense.json"))
    entry["md5"] = hashlib.md5(path.read_bytes()).hexdigest()
    sweep.write_lock()
    sync()
    assert runs()["dense"].data.metrics["loss"] == 2
    assert "all up to date" in sync()


def test_missing_metrics_files_are_named_and_the_rest_is_synced(
    sweep: Sweep, database: Path, sync: Sync, runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    path = sweep.root / "outputs/metrics/evaluate/l1-0.5.json"
    kept = path.read_text()
    path.unlink()
    (sweep.root / "outputs/metrics/clean.json").write_text("{}")
    with pytest.raises(SystemExit) as stop:
        sync()
    assert stop.value.code == 1
    error = capsys.readouterr().err
    assert "outputs/metrics/clean.json and 1 more" in error
    assert "dvc pull" in error
    assert "bleu" not in runs()["l1-0.5"].data.metrics
    path.write_text(kept)
    with pytest.raises(SystemExit):
        sync()
    assert "bleu" in runs()["l1-0.5"].data.metrics


def test_levels_that_left_the_sweep_are_passed_over(
    sweep: Sweep, database: Path, sync: Sync, runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    """DVC keeps their entries in dvc.lock, `compare` removes their files."""
    left = list(sweep.root.glob("outputs/metrics/*/l1-*"))
    assert len(left) == 2 * 4
    sweep.set("sweep.method", ["magnitude"])
    assert f"{ALL} runs, {ALL} made:" in sync()  # they are shown for as long as their files are there
    for path in left:
        path.unlink()
    assert f"{ALL - 2} runs, all up to date:" in sync()
    assert "bleu" in runs()["l1-0.5"].data.metrics
    sweep.set("sweep.method", ["magnitude", "l1"])
    with pytest.raises(SystemExit):
        sync()
    assert "outputs/metrics/evaluate/l1-0.5.json and 7 more missing" in capsys.readouterr().err


def test_a_revision_of_levels_that_left_the_sweep_is_passed_over(sweep: Sweep, database: Path, sync: Sync) -> None:
    """With none of its levels left, it would be an empty group beside the one that is there."""
    sweep.set("finetune.rounds", sweep.params["finetune"]["rounds"] + 1)
    sweep.run(*(f"{stage}@magnitude-0.5" for stage in ("finetune", "evaluate")))
    for path in [*sweep.root.glob("outputs/metrics/*/*-0.9.*"), *sweep.root.glob("outputs/*/l1-*")]:
        path.unlink()
    for path in [*sweep.root.glob("outputs/metrics/*/l1-0.5.*"), *sweep.root.glob("outputs/*/*-0.9.json")]:
        path.unlink()
    sweep.set("sweep.method", ["magnitude"])
    sweep.set("sweep.sparsity", [0.5])
    made = sync().partition(" runs")[0]
    assert made == "3"  # the new revision with baseline and the level; dense was made with the old params


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ("lock", "dvc.lock is missing"),
        ("train", "no trained baseline"),
        ("server", "MLflow at http://127.0.0.1:9 does not answer"),
        ("folder", "MLflow at sqlite:////dev/null/x.db failed"),
        ("trash", "is in the trash"),
        ("half", "mlflow.db is not whole ((sqlite3.OperationalError) table evaluation_datasets already exists"),
    ],
)
def test_errors_are_one_line(
    sweep: Sweep,
    database: Path,
    sync: Sync,
    spoil: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    if spoil == "lock":
        (sweep.root / "dvc.lock").unlink()
    elif spoil == "train":
        del sweep.lock["train"]
        sweep.write_lock()
    elif spoil == "server":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    elif spoil == "half":
        database.unlink()
        with sqlite3.connect(database) as connection:
            connection.execute("CREATE TABLE evaluation_datasets (id INTEGER)")
    elif spoil == "folder":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////dev/null/x.db")
    else:
        from mlflow import MlflowClient

        client = MlflowClient(f"sqlite:///{database}")
        client.delete_experiment(client.create_experiment("espalier"))
    with pytest.raises(SystemExit):
        sync()
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


def test_first_users_at_once(sweep: Sweep, runs: Runs) -> None:
    """Three processes find no database; MLflow alone fails five times of six there."""
    start = [sys.executable, "-m", "stages.sync"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(start, **pipes) for _ in range(3)]
    results = [(*process.communicate(), process.returncode) for process in processes]
    assert [(error, status) for _, error, status in results] == [("", 0)] * 3  # and none says anything else
    assert len(runs()) == ALL
    assert not (sweep.root / "mlruns").exists()


def test_a_killed_first_use_leaves_no_half_made_database(sweep: Sweep, runs: Runs) -> None:
    """Its migrations would fail at what is there already, whoever comes next."""
    partial, whole = sweep.root / "mlflow.db.partial", sweep.root / "mlflow.db"
    process = subprocess.Popen([sys.executable, "-m", "stages.sync"])
    while process.poll() is None and not (partial.exists() and partial.stat().st_size):
        time.sleep(0.01)
    process.terminate()
    assert process.wait() == -signal.SIGTERM
    assert partial.exists() and not whole.exists()
    Path(f"{partial}-journal").write_text("left by a killed write")
    subprocess.run([sys.executable, "-m", "stages.sync"], check=True)
    assert len(runs()) == ALL
    assert [path.name for path in sweep.root.glob("mlflow.db*") if path.suffix != ".lock"] == ["mlflow.db"]


def test_from_a_folder_inside(sweep: Sweep, database: Path, sync: Sync, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(sweep.root / "outputs")
    assert f"sqlite:///{database}" in sync()
