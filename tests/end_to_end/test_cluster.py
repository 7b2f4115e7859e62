"""Levels made by the workers of a Dask cluster, with an S3 remote: the bits of one machine."""

from __future__ import annotations

import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dask_cluster import cluster
from project import ACCESS, Project
from ruamel.yaml import YAML

KEYS = ["magnitude-0.6", "l1-0.6"]
MADE = [*(f"{stage}@{key}" for stage in ("prune", "finetune", "evaluate") for key in KEYS), "compare"]
AFTER = ("compare", "export", "benchmark")


def without_levels(finished: Project, root: Path) -> Project:
    """A copy in which no level has been made yet, nor is in the run cache."""
    ours = Project(root)
    shutil.copytree(finished.root, root, symlinks=True)
    ours.set(sweep={"method": ["magnitude", "l1"]})
    yaml = YAML()
    lock = yaml.load(root / "dvc.lock")
    for name in [name for name in lock["stages"] if "@" in name or name in AFTER]:
        for out in lock["stages"].pop(name)["outs"]:
            path = root / out["path"]
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    yaml.dump(lock, root / "dvc.lock")
    shutil.rmtree(root / ".dvc/cache/runs")
    return ours


def test_levels_made_by_two_workers_of_which_one_is_killed(finished: Project, bucket: tuple[str, str], tmp_path: Path):
    ours = without_levels(finished, tmp_path / "ours")
    endpoint, url = bucket
    ours.run("dvc", "remote", "add", "--default", "storage", f"{url}/cluster")
    ours.run("dvc", "remote", "modify", "storage", "endpointurl", endpoint)
    ours.commit("no levels")
    with cluster(tmp_path / "cluster", 0) as started, ThreadPoolExecutor(1) as pool:
        for _ in range(2):
            started.add_worker(OMP_NUM_THREADS="1", **ACCESS)
        command = ("python", "-m", "stages.sweep", "--scheduler", started.address, "--repository", str(ours.root))
        sweep = pool.submit(lambda: ours.run(*command, **ACCESS).stdout)
        while not (found := started.running("-m", "stages.finetune", "magnitude-0.6")):
            assert not sweep.done(), sweep.result()
            time.sleep(0.05)
        [index] = found
        started.workers[index].send_signal(signal.SIGKILL)
        said = sweep.result()
    for name in MADE:
        assert f"{name} done in" in said, said
    assert ours.run("dvc", "status").stdout.startswith("Data and pipelines are up to date")
    here, there = finished.locked(), ours.locked()
    # With another sweep, what comes after the levels is something else.
    levels = {path for path in there if any(key in path for key in KEYS)}
    assert len(levels) > 8 and {path for path in levels if here[path] != there[path]} == set()
    for key in KEYS:
        weights = Path("outputs/models/finetuned") / key / "model.safetensors"
        assert (ours.root / weights).read_bytes() == (finished.root / weights).read_bytes()
