"""A sweep by the workers of a Dask cluster: cheap stages, real worker processes, a folder as DVC remote."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from dask_cluster import Cluster, cluster
from half_second_stages import Project
from shared import ROOT

KEYS = ["magnitude-0.5", "taylor-0.5"]
REMOTE = {"train", "evaluate_dense", *(f"{stage}@{key}" for stage in ("prune", "evaluate") for key in KEYS)}


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("cluster")
    with cluster(folder, 0) as started:
        for _ in range(2):
            started.add_worker(LOG=str(folder / "stages.log"))
        yield started


@pytest.fixture
def project(tmp_path: Path, two_workers: Cluster) -> Iterator[Project]:
    """A committed project with a DVC remote; its log is that of what workers run, and what they wait for or fail in is
    written beside the log, since their environment is what it was when they started."""
    made = Project(tmp_path / "project")
    made.set_sweep(sparsity=[0.5])
    made.run(sys.executable, "-m", "dvc", "remote", "add", "-q", "--default", "storage", str(tmp_path / "remote"))
    stage = made.folder / "stage.py"
    text = stage.read_text()
    for name in ("WAIT", "FAIL"):
        file = two_workers.folder / f"stages.{name}"
        file.write_text("")
        text = text.replace(f'os.environ.get("{name}")', f"pathlib.Path({str(file)!r}).read_text()")
    # Workers of one machine share what they have made, and each test is to make its own.
    stage.write_text(text.replace("write_text(sys.argv[1])", f"write_text(sys.argv[1] + {str(tmp_path)!r})"))
    (made.folder / "input.txt").write_text(str(tmp_path))
    graph = made.folder / "dvc.yaml"
    graph.write_text(
        graph.read_text().replace("outs: [outputs/compare/all]", "outs: [outputs/compare/all: {cache: false}]")
    )
    shutil.copy(ROOT / ".dvcignore", made.folder)
    made.commit("start")
    made.log = two_workers.folder / "stages.log"
    made.forget()
    yield made
    made.forget()


def arguments(project: Project, cluster: Cluster) -> list[str]:
    return ["--scheduler", cluster.address, "--repository", str(project.folder)]


def here_log(project: Project) -> Path:
    """Of stages that run on the head."""
    return project.folder.with_name("here.log")


def start(project: Project, cluster: Cluster, waiting_for: str) -> subprocess.Popen[str]:
    """Start a sweep, and wait until a stage of it waits."""
    (cluster.folder / "stages.WAIT").write_text(waiting_for)
    process = project.start(
        sys.executable, "-m", "stages.sweep", *arguments(project, cluster), LOG=str(here_log(project))
    )
    deadline = time.monotonic() + 200
    while f"start {waiting_for} " not in (project.log.read_text() if project.log.exists() else ""):
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()
        time.sleep(0.1)
    (cluster.folder / "stages.WAIT").write_text("")
    return process


def test_workers_make_everything_even_if_one_is_killed_and_the_head_restores_it(project, two_workers):
    waits = "prune@taylor-0.5"
    process = start(project, two_workers, waits)
    [(index, stage)] = two_workers.running("stage.py", waits).items()
    two_workers.workers[index].send_signal(signal.SIGKILL)
    stage.wait(timeout=20)  # what a lost worker ran must not go on
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out + err
    here = here_log(project)
    lines = project.log.read_text().splitlines()
    times = project.times()
    assert times.keys() == REMOTE
    assert sum(line.startswith("start") for line in lines) == len(REMOTE) + 1  # the killed one twice
    for key in KEYS:
        assert times["train"][1] < times[f"prune@{key}"][0] < times[f"evaluate@{key}"][0]
    assert f"{len(REMOTE) + 1} stages made" in out and "compare done in" in out
    assert "start compare" in here.read_text()  # whose run DVC does not keep, so that it could not be restored
    assert project.run(sys.executable, "-m", "dvc", "status").startswith("Data and pipelines are up to date")
    logs = [log.read_text() for log in (project.folder / ".scratch/sweep").glob("*.log")]
    assert len({line for log in logs for line in log.splitlines() if line.startswith("on tcp://")}) == 2
    two_workers.add_worker(LOG=str(project.log))


def test_a_failure_is_reported_and_the_others_are_made_and_later_the_rest(project, two_workers):
    fails = two_workers.folder / "stages.FAIL"
    fails.write_text("evaluate@taylor-0.5")
    status, _, err = project.sweep(*arguments(project, two_workers), LOG=str(here_log(project)))
    assert status == 1 and "Traceback" not in err
    assert "error: no memory left for this one" in err
    assert "failed: evaluate@taylor-0.5; not made, since they need it: compare" in err
    assert project.times().keys() == REMOTE - {"evaluate@taylor-0.5"}
    assert (project.folder / "outputs/prune/taylor-0.5").exists(), "what was finished before the failure is kept"
    fails.write_text("")
    project.forget()
    status, out, err = project.sweep(*arguments(project, two_workers), LOG=str(here_log(project)))
    assert status == 0 and project.times().keys() == {"evaluate@taylor-0.5"}, out + err
    assert "compare done in" in out
    assert "pushing what" in out


def test_interrupted_it_stops(project, two_workers):
    waits = "train"
    process = start(project, two_workers, waits)
    [stage] = two_workers.running("stage.py", waits).values()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted" in err and "Traceback" not in err, out + err
    stage.wait(timeout=20)
    assert project.times() == {}


def test_what_workers_cannot_work_with_is_one_line(project, two_workers, tmp_path):
    def refusal(*options: str) -> str:
        status, out, err = project.sweep(*options)
        assert status == 1 and len(err.splitlines()) == 1 and "stages made" not in out, out + err
        return err

    scheduler = ("--scheduler", two_workers.address)
    assert "leave --jobs and --pull out" in refusal(*scheduler, "--pull")
    data = project.folder / "data.txt"
    data.write_text("as added")
    project.run(sys.executable, "-m", "dvc", "add", "-q", data.name)
    data.write_text("changed")
    assert "data.txt is not as data.txt.dvc has it: `dvc add` it" in refusal(*scheduler)
    for name in ("data.txt", "data.txt.dvc", ".gitignore"):
        (project.folder / name).unlink()
    assert "give --repository URL, or `git remote add origin URL`" in refusal(*scheduler)
    origin = tmp_path / "origin"
    project.run("git", "clone", "-q", "--bare", str(project.folder), str(origin))
    project.run("git", "remote", "add", "origin", str(origin))
    (project.folder / "input.txt").write_text("other text")
    assert "input.txt is not committed, and workers clone a commit" in refusal(*scheduler)
    project.commit("not pushed")
    assert "cannot find commit" in (said := refusal(*scheduler)) and f"in {origin}: `git push` it" in said
    assert "cannot clone nowhere: " in refusal(*scheduler, "--repository", "nowhere")
    two_threads = two_workers.add_worker("--nthreads", "2")
    assert "has 2 threads, each of which would make a level" in refusal(*arguments(project, two_workers))
    two_threads.kill()
    project.run(sys.executable, "-m", "dvc", "remote", "default", "--unset")
    project.commit("no remote")
    assert "there is no DVC remote for results to come back by" in refusal(*scheduler)
