"""A small DVC project with the real params and stage names, whose evaluate stage is a formula."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from shared import copy_of

ROOT = Path(__file__).parents[2]

TRAIN = """
import pathlib, re
data = re.search(r"^  path: (\\S+)", pathlib.Path("params.yaml").read_text(), re.M)[1]
folder = pathlib.Path("outputs/model")
folder.mkdir(parents=True, exist_ok=True)
(folder / "weights").write_text(pathlib.Path(data).read_text())
"""
EVALUATE = """
import json, os, pathlib, sys, time
key = sys.argv[1]
sparsity = 0.0 if key == "dense" else float(key.partition("-")[2])
with open(os.environ["TRIES"], "a") as log:
    print(key, os.getcwd(), os.environ["MLFLOW_TRACKING_URI"], file=log)
if os.environ.get("WAIT"):
    pathlib.Path(os.environ["WAIT"]).touch()
    time.sleep(60)
if key == os.environ.get("FAIL"):
    sys.exit("out of memory")
score = 50 - 20 * sparsity**4
figures = {"bleu": score - 1, "validation_bleu": score, "validation_chrf": 60 - sparsity, "chrf": 60 - sparsity}
file = pathlib.Path(f"outputs/metrics/evaluate/{key}.json")
file.parent.mkdir(parents=True, exist_ok=True)
file.write_text(json.dumps(figures))
"""
GRAPH = """
stages:
  train:
    cmd: python code/train.py
    deps: [code/train.py, "${data.path}"]
    params: [train]
    outs: [outputs/model]
  evaluate_dense:
    cmd: python code/evaluate.py dense
    deps: [code/evaluate.py, outputs/model]
    params: [evaluate]
    metrics:
      - outputs/metrics/evaluate/dense.json: {cache: false}
  evaluate:
    matrix:
      method: ${sweep.method}
      sparsity: ${sweep.sparsity}
    cmd: python code/evaluate.py ${key}
    deps: [code/evaluate.py, outputs/model, outputs/metrics/evaluate/dense.json]
    params: [evaluate]
    metrics:
      - outputs/metrics/evaluate/${key}.json: {cache: false}
"""


class Project:
    """The folder, its commands, and what was really run in it."""

    def __init__(self, folder: Path, log: Path) -> None:
        self.folder = folder
        self.log = log
        folder.mkdir(parents=True)
        for name, text in (("train", TRAIN), ("evaluate", EVALUATE)):
            self.write(f"code/{name}.py", text)
        self.write("dvc.yaml", GRAPH)
        self.write("data/raw.txt", "text")
        shutil.copy(ROOT / "params.yaml", folder)
        self.set("data", "path", "data/raw.txt")
        self.set("sweep", "method", ["magnitude", "taylor"])
        self.set("sweep", "sparsity", [0.5, 0.9])
        self.set("search", "resolution", 0.2)
        self.run("git", "init", "-q", "-b", "main")
        self.run("git", "config", "user.email", "person@example.com")
        self.run("git", "config", "user.name", "Person")
        self.dvc("init", "-q")
        self.dvc("config", "core.analytics", "false")
        self.commit()

    def write(self, name: str, text: str) -> None:
        """Write a file of the project."""
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def set(self, section: str, key: str, value: Any) -> None:
        """Change a knob of params.yaml, comments kept."""
        yaml = YAML()
        values = yaml.load(self.params)
        values[section][key] = value
        with (self.folder / "params.yaml").open("w") as file:
            yaml.dump(values, file)

    def read(self, name: str) -> str:
        """Text of a file of the project."""
        return (self.folder / name).read_text()

    def section(self, name: str) -> dict[str, Any]:
        """A section of params.yaml."""
        return YAML(typ="safe").load(self.params)[name]

    @property
    def params(self) -> str:
        """Text of params.yaml."""
        return self.read("params.yaml")

    @property
    def tries(self) -> list[str]:
        """Keys that evaluate has really run for, in order."""
        return [line.split()[0] for line in self.log.read_text().splitlines()] if self.log.exists() else []

    def run(self, *command: str, check: bool = True) -> str:
        """Run a command in the project."""
        answer = subprocess.run(command, cwd=self.folder, env=self.environment(), capture_output=True, text=True)
        assert not check or answer.returncode == 0, answer.stdout + answer.stderr
        return answer.stdout

    def dvc(self, *arguments: str) -> str:
        """Run dvc in the project."""
        return self.run(sys.executable, "-m", "dvc", *arguments)

    def commit(self) -> None:
        """Commit everything."""
        self.run("git", "add", "-A")
        self.run("git", "commit", "-qm", "state", "--allow-empty")

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        """Start `python -m stages.search`."""
        return subprocess.Popen(
            [sys.executable, "-m", "stages.search", *arguments],
            cwd=self.folder,
            env=self.environment(**variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def search(self, *arguments: str, **variables: str) -> tuple[int, str, str]:
        """Exit status, standard output and standard error of `python -m stages.search`."""
        process = self.start(*arguments, **variables)
        out, err = process.communicate(timeout=300)
        return process.returncode, out, err

    def environment(self, **variables: str) -> dict[str, str]:
        """With the repository's code and this interpreter, and without what would lead elsewhere."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "MLFLOW_", "GIT_"))}
        path = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
        shared = {"PYTHONPATH": str(ROOT), "TRIES": str(self.log), "PATH": path, "COLUMNS": "110"}
        return kept | shared | {"MLFLOW_TRACKING_URI": ""} | variables

    def experiments(self) -> list[str]:
        """Names of DVC experiments, of all commits."""
        references = self.run("git", "for-each-ref", "--format=%(refname)", "refs/exps/").split()
        return sorted(reference.rpartition("/")[2] for reference in references)

    def metric(self, reference: str, key: str) -> float:
        """`validation_bleu` that `dvc exp show` gives for an experiment."""
        for revision in json.loads(self.dvc("exp", "show", "--all-commits", "--json")):
            for experiment in revision.get("experiments") or []:
                if experiment["name"] == reference:
                    metrics = experiment["revs"][0]["data"]["metrics"]
                    return metrics[f"outputs/metrics/evaluate/{key}.json"]["data"]["validation_bleu"]
        raise AssertionError(f"{reference} is not shown")


@pytest.fixture(scope="session")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, str]:
    """A project whose sweep was made and committed and then searched, and what the search printed. Do not change."""
    home = tmp_path_factory.mktemp("searched")
    project = Project(home / "project", home / "tries")
    project.dvc("repro", "-q")
    project.commit()
    status, out, err = project.search()
    assert status == 0, out + err
    return project, out


@pytest.fixture
def again(searched: tuple[Project, str], tmp_path: Path) -> Project:
    """A copy of `searched`, to change; its log of tries is empty."""
    return copy_of(searched[0], tmp_path / "project", tmp_path / "tries")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A committed project in which nothing was run yet."""
    return Project(tmp_path / "project", tmp_path / "tries")
