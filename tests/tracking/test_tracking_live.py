"""What stages log while they run, in processes of their own; and a real DVC pipeline over it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sweep_on_disk import LEVELS, STAGES, Sweep

from stages.tracking import client, forked, live
from stages.tracking.identity import in_lock
from stages.tracking.pipeline import Pipeline

Runs = Callable[[], dict[str, Any]]
Sync = Callable[[], str]
ALL = 3 + len(LEVELS)
STAGE = """
import os, sys, time
from stages import params
from stages.tracking import live
from stages.tracking.live import track
if "ESPALIER_RECORDERS" in os.environ:
    live._start_anew = None  # is not to be needed
with track("finetune", sys.argv[1], params.load("tracking")) as run:
    for step in (7, 14, 21):
        run.log_metrics({"loss": 3 / step, "learning_rate": 0.001}, step=step)
    run.log_metrics({"loss": 0.5, "steps": 21})
    %s
print("stage done", "mlflow" in sys.modules)
"""


@pytest.fixture(params=["anew", "forked"])
def recorder(request: pytest.FixtureRequest, sweep: Sweep) -> Iterator[None]:
    """A recorder is a new process, or a fork of one that waits while a sweep runs."""
    with forked.recorders() if request.param == "forked" else nullcontext():
        yield


def stage(key: str, body: str = "pass", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a stage; returns when its recorder has ended too, which holds on to standard error."""
    command = [sys.executable, "-c", STAGE % body, key]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, check=False)


def unfinished(sweep: Sweep, *names: str) -> None:
    """Take stages back out of the lock, as if they had not run yet."""
    for name in names:
        del sweep.lock[name]
    sweep.write_lock()


@pytest.mark.usefixtures("recorder")
def test_a_stage_s_figures_join_what_sync_makes(sweep: Sweep, database: Path, sync: Sync, runs: Runs) -> None:
    unfinished(sweep, "finetune@l1-0.5", "evaluate@l1-0.5")
    result = stage("l1-0.5")
    assert (result.stdout, result.stderr, result.returncode) == ("stage done False\n", "", 0)
    assert len(runs()) == 2
    run = runs()["l1-0.5"]
    assert run.info.status == "FINISHED"
    assert run.data.metrics["finetune/loss"] == 3 / 21
    assert run.data.metrics["finetune/final_loss"] == 0.5
    assert "prune/validation_loss_after" in run.data.metrics  # its finished stage came along
    assert run.data.params["prune.l1.strength"] == str(sweep.params["prune"]["l1"]["strength"])
    assert run.data.params["finetune.schedule"] == "cubic"

    sweep.run("finetune@l1-0.5", "evaluate@l1-0.5")
    assert f"{ALL} runs, {ALL - 2} made, 1 updated" in sync()
    assert runs()["l1-0.5"].info.run_id == run.info.run_id
    history = client.connect(f"sqlite:///{database}", timeout_s=1, retries=0).get_metric_history(
        run.info.run_id, "finetune/loss"
    )
    assert len({point.step for point in history}) == len(history) == 40  # none doubled by the curve file
    assert "all up to date" in sync()


def test_a_fork_goes_on_after_its_server(sweep: Sweep, database: Path, runs: Runs) -> None:
    """The sweep has ended, and what its last stage logged is still being written."""
    command = [sys.executable, "-c", STAGE % "print('ready', flush=True); sys.stdin.read()", "l1-0.5"]
    with forked.recorders():
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        process.stdout.readline()
        until(lambda: "l1-0.5" in runs())
    assert forked.ADDRESS not in os.environ
    process.communicate("", timeout=60)
    until(lambda: runs()["l1-0.5"].info.status == "FINISHED")


def until(holds: Callable[[], bool]) -> None:
    """Wait for what MLflow is to hold; so far it may have no experiment, or no such run."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with suppress(AssertionError, KeyError):
            if holds():
                return
        time.sleep(0.2)
    assert holds()


@pytest.mark.parametrize("address", [None, "/elsewhere\n/nowhere", f"{forked.PACKAGE}\n/nowhere"])
def test_without_a_server_a_recorder_is_a_new_process(
    address: str | None, sweep: Sweep, database: Path, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None runs, it is of another project's code, or it was killed."""
    if address:
        monkeypatch.setenv(forked.ADDRESS, address)
    process = live._start_recorder("finetune", "l1-0.5", "espalier")
    assert process is not None
    run = live.Run(process)
    run.log_metrics({"loss": 1.0})
    run.end("FINISHED")
    until(lambda: runs()["l1-0.5"].info.status == "FINISHED")


def test_the_same_stage_again_is_the_same_run(sweep: Sweep, database: Path, runs: Runs) -> None:
    unfinished(sweep, "finetune_dense", "evaluate_dense")
    stage("dense")
    first = runs()["dense"]
    stage("dense")
    assert runs()["dense"].info.run_id == first.info.run_id
    connection = client.connect(f"sqlite:///{database}", timeout_s=1, retries=0)
    assert len(connection.get_metric_history(first.info.run_id, "finetune/learning_rate")) == 3


@pytest.mark.usefixtures("recorder")
def test_failure_interrupt_and_kill(sweep: Sweep, database: Path, runs: Runs) -> None:
    assert "ValueError: wrong" in stage("l1-0.5", "raise ValueError('wrong')").stderr
    assert stage("l1-0.9", "raise KeyboardInterrupt").returncode
    assert stage("magnitude-0.5", "os.kill(os.getpid(), 9)").returncode == -signal.SIGKILL
    found = {name: run.info.status for name, run in runs().items() if name in LEVELS}
    assert found == {"l1-0.5": "FAILED", "l1-0.9": "KILLED", "magnitude-0.5": "KILLED"}


@pytest.mark.usefixtures("recorder")
def test_ctrl_c_in_the_terminal_reaches_the_stage_alone(sweep: Sweep, database: Path, runs: Runs) -> None:
    unfinished(sweep, "finetune@l1-0.5", "evaluate@l1-0.5")
    process = subprocess.Popen(
        [sys.executable, "-c", STAGE % "print('ready', flush=True); time.sleep(60)", "l1-0.5"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=300)
    run = runs()["l1-0.5"]
    assert run.info.status == "KILLED"
    assert run.data.metrics["finetune/loss"] == 3 / 21


@pytest.mark.usefixtures("recorder")
@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("http://127.0.0.1:9", "MLflow at http://127.0.0.1:9 does not answer"),
        ("sqlite:////dev/null/x.db", "MLflow at sqlite:////dev/null/x.db failed"),
    ],
)
def test_a_stage_survives_mlflow(sweep: Sweep, uri: str, reason: str) -> None:
    result = stage("l1-0.5", MLFLOW_TRACKING_URI=uri, MLFLOW_HTTP_REQUEST_MAX_RETRIES="0")
    assert (result.stdout, result.returncode) == ("stage done False\n", 0)
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith(f"not tracked: {reason}")


@pytest.mark.usefixtures("recorder")
def test_a_stage_that_logs_on_after_the_recorder_died(sweep: Sweep) -> None:
    body = "time.sleep(3); [run.log_metrics({'loss': 1.0}, step=i) for i in range(30, 9000)]"
    result = stage("l1-0.5", body, MLFLOW_TRACKING_URI="sqlite:////dev/null/x.db")
    assert (result.stdout, result.returncode) == ("stage done False\n", 0)
    assert result.stderr.count("\n") == 1


def test_a_stage_does_not_wait(sweep: Sweep) -> None:
    """A server that takes connections and never answers."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as mute:
        uri = f"http://127.0.0.1:{mute.getsockname()[1]}"
        environment = {**os.environ, "MLFLOW_TRACKING_URI": uri, "MLFLOW_HTTP_REQUEST_TIMEOUT": "3600"}
        command = [sys.executable, "-c", STAGE % "pass", "l1-0.5"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment)
        assert process.wait(timeout=300) == 0


def test_data_that_dvc_does_not_know(sweep: Sweep, database: Path) -> None:
    (sweep.root / "dvc.lock").unlink()
    result = stage("l1-0.5")
    assert result.returncode == 0
    assert result.stderr.startswith("not tracked: dvc.lock does not say what data this is")


def test_a_lock_file_that_is_being_written(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first half of it would be another revision."""
    monkeypatch.setattr("stages.tracking.pipeline.SETTLED_S", 0.5)
    lock = sweep.root / "dvc.lock"
    whole = lock.read_text()
    before = [run.identity for run in in_lock(Pipeline(sweep.root))]
    with lock.open("w") as file, ThreadPoolExecutor() as pool:
        file.write("schema: '2.0'\nstages: {}\n")
        file.flush()
        reading = pool.submit(lambda: [run.identity for run in in_lock(Pipeline(sweep.root))])
        time.sleep(0.3)
        file.seek(0)
        file.write(whole)
        file.flush()
        assert reading.result() == before


@pytest.mark.parametrize("environment", [{"ESPALIER_TRACKING": "off"}, {"RANK": "1"}])
def test_off(sweep: Sweep, environment: dict[str, str]) -> None:
    result = stage("l1-0.5", "assert run.callbacks() == []", **environment)
    assert (result.stdout, result.stderr) == ("stage done False\n", "")
    assert not (sweep.root / "mlflow.db").exists()


def test_the_trainer_s_logs_get_the_curve_file_s_names(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[dict[str, float], int]] = []
    run = live.Run(None)
    monkeypatch.setattr(run, "log_metrics", lambda metrics, step: sent.append((metrics, step)))
    callback = live._log_curves(run)
    state = SimpleNamespace(is_world_process_zero=True, global_step=7)
    callback.on_log(None, state, None, logs={"loss": 1.5, "learning_rate": 0.1, "grad_norm": 3.0})
    callback.on_log(None, state, None, logs={"eval_loss": 1.25, "eval_runtime": 2.0, "epoch": 1.0})
    callback.on_log(None, state, None, logs={"train_runtime": 2.0})
    callback.on_log(None, SimpleNamespace(is_world_process_zero=False, global_step=8), None, logs={"loss": 1.5})
    assert sent == [({"loss": 1.5, "learning_rate": 0.1}, 7), ({"validation_loss": 1.25}, 7)]


def test_where_the_database_is(sweep: Sweep, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    expected = f"sqlite:///{sweep.root / 'mlflow.db'}"
    assert client.tracking_uri() == expected
    monkeypatch.chdir(sweep.root / "outputs/metrics")
    assert client.tracking_uri() == expected
    copy = sweep.root / ".dvc/tmp/exps/tmpabc"
    copy.mkdir(parents=True)
    shutil.copy(sweep.root / "dvc.yaml", copy)
    monkeypatch.chdir(copy)  # as in `dvc exp run --temp`
    assert client.workspace() == copy
    assert client.tracking_uri() == expected
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(sweep.root))
    assert client.tracking_uri() == expected
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking")
    assert client.tracking_uri() == "http://tracking"


FAKE_STAGE = """
import os, sys
from pathlib import Path
from stages import params
from stages.tracking.live import track
from sweep_on_disk import STAGES, output
stage, key = sys.argv[1], sys.argv[2]
name = os.environ["DVC_STAGE"].partition("@")[0]
method, _, sparsity = key.rpartition("-")
def write():
    for path in STAGES[name]["outs"]:
        path = path.replace("${item.method}", method).replace("${item.sparsity}", sparsity)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(output(path, Path("params.yaml").read_text()))
if stage in ("train", "finetune", "evaluate"):
    with track(stage, key, params.load("tracking")) as run:
        write()
        run.log_metrics({"bleu": 1.0} if stage == "evaluate" else {"loss": 1.0})
else:
    write()
"""


def test_under_dvc(sweep: Sweep, sync: Sync, runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs logged by real DVC stages are the ones that sync finds in the dvc.lock that DVC wrote."""
    from ruamel.yaml import YAML

    shutil.rmtree(sweep.root / "outputs")
    sweep.write_fingerprints()
    (sweep.root / "dvc.lock").unlink()
    sweep.set("sweep.method", ["l1"])
    sweep.set("sweep.sparsity", [0.5])
    sweep.write("fake.py", FAKE_STAGE)
    stages = {}
    for name, declared in STAGES.items():
        if name in ("reference", "compare", "evaluate_baseline"):
            continue
        key = name.partition("_")[2] or ("${key}" if "matrix" in declared else "baseline")
        stages[name] = {**declared, "cmd": f"{sys.executable} fake.py {name.partition('_')[0]} {key}"}
    with (sweep.root / "dvc.yaml").open("w") as file:
        YAML(typ="safe").dump({"stages": stages}, file)
    sweep.write(".gitignore", "/outputs/*\n!/outputs/code\n/mlflow.db*\n.scratch\n")
    for command in (
        ["git", "init", "-q"],
        [sys.executable, "-m", "dvc", "init", "-q"],
        ["git", "add", "-A"],
        ["git", "-c", "user.name=x", "-c", "user.email=x@example.org", "commit", "-qm", "start"],
    ):
        subprocess.run(command, check=True, capture_output=True)
    reproduce = [sys.executable, "-m", "dvc"]
    result = subprocess.run([*reproduce, "repro"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "not tracked" not in result.stderr
    before = {name: run.info.run_id for name, run in runs().items()}
    assert set(before) == {"baseline", "dense", "l1-0.5", *(name for name in before if name.startswith("multiwoz-"))}
    assert "4 runs, " in (said := sync())
    assert "made" not in said
    assert "all up to date" in sync()
    assert {name: run.info.run_id for name, run in runs().items()} == before

    subprocess.run(["git", "add", "-A"], check=True)
    subprocess.run(["git", "-c", "user.name=x", "-c", "user.email=x@example.org", "commit", "-qm", "made"], check=True)
    experiment = ["exp", "run", "--temp", "-S", "sweep.sparsity=[0.75]", "evaluate@l1-0.75"]
    result = subprocess.run([*reproduce, *experiment], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    found = runs()
    assert set(found) == {*before, "l1-0.75"}
    parent = next(run for name, run in found.items() if name.startswith("multiwoz-"))
    assert found["l1-0.75"].data.tags["mlflow.parentRunId"] == parent.info.run_id
