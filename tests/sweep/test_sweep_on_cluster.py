"""A sweep by the workers of a Dask cluster: cheap stages, two real worker processes, a folder as DVC remote."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from dask_cluster import Cluster, cluster
from half_second_stages import KEYS, STAGES, Project
from shared import ROOT


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("cluster")
    with cluster(folder, 0) as started:
        for _ in range(2):
            started.add_worker(LOG=str(folder / "stages.log"))
        yield started


@pytest.fixture
def project(tmp_path: Path, two_workers: Cluster) -> Project:
    """A project that is committed and has a DVC remote; its log is that of what the workers run."""
    made = Project(tmp_path / "project")
    made.run(sys.executable, "-m", "dvc", "remote", "add", "-q", "--default", "storage", str(tmp_path / "remote"))
    stage = made.folder / "stage.py"
    stage.write_text(stage.read_text() + f"# {tmp_path}\\n")  # another commit, whenever it is made
    shutil.copy(ROOT / ".dvcignore", made.folder)
    made.commit("start")
    made.log = two_workers.folder / "stages.log"
    made.forget()
    return made


def sweep(project: Project, cluster: Cluster, *arguments: str, **variables: str) -> tuple[int, str, str]:
    return project.sweep("--scheduler", cluster.address, "--repository", str(project.folder), *arguments, **variables)


def test_workers_make_everything_and_the_head_restores_it(project, two_workers):
    status, out, err = sweep(project, two_workers)
    assert status == 0, out + err
    times = project.times()
    assert times.keys() == STAGES and len(project.log.read_text().splitlines()) == 2 * len(STAGES)
    for key in KEYS:
        assert times["train"][1] < times[f"prune@{key}"][0] < times[f"evaluate@{key}"][0]
    assert f"{len(STAGES)} stages made" in out and "compare done in" in out
    assert project.run(sys.executable, "-m", "dvc", "status").startswith("Data and pipelines are up to date")
    logs = [log.read_text() for log in (project.folder / ".scratch/sweep").glob("*.log")]
    assert len({log.splitlines()[0] for log in logs}) == 2 and all(log.startswith("on tcp://") for log in logs)
