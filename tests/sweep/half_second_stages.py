"""A DVC project with the real params and the shape of the real graph, whose stages take half a second."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from ruamel.yaml import YAML
from shared import ROOT

STAGE = """
import os, pathlib, sys, time
stage, _, key = sys.argv[1].partition("@")
with open(os.environ["LOG"], "a") as log:
    print("start", sys.argv[1], time.monotonic(), file=log)
if sys.argv[1] == os.environ.get("WAIT"):
    time.sleep(60)
time.sleep(0.5)
if sys.argv[1] == os.environ.get("FAIL"):
    sys.exit("error: no memory left for this one")
out = pathlib.Path("outputs", stage, key or "all")
out.parent.mkdir(parents=True, exist_ok=True)
out.write_text(sys.argv[1])
with open(os.environ["LOG"], "a") as log:
    print("end", sys.argv[1], time.monotonic(), file=log)
"""
GRAPH = """
stages:
  train:
    cmd: python stage.py train
    deps: [input.txt]
    outs: [outputs/train/all]
  prune:
    matrix: {method: "${sweep.method}", sparsity: "${sweep.sparsity}"}
    cmd: python stage.py prune@${key}
    deps: [outputs/train/all]
    outs: ["outputs/prune/${key}"]
  evaluate_dense:
    cmd: python stage.py evaluate_dense
    deps: [outputs/train/all]
    outs: [outputs/evaluate_dense/all]
  evaluate:
    matrix: {method: "${sweep.method}", sparsity: "${sweep.sparsity}"}
    cmd: python stage.py evaluate@${key}
    deps: ["outputs/prune/${key}", outputs/evaluate_dense/all]
    outs: ["outputs/evaluate/${key}"]
  compare:
    cmd: python stage.py compare
    deps: [outputs/evaluate]
    outs: [outputs/compare/all]
"""
KEYS = ["magnitude-0.5", "magnitude-0.9", "taylor-0.5", "taylor-0.9"]
STAGES = {"train", "evaluate_dense", "compare", *(f"{stage}@{key}" for stage in ("prune", "evaluate") for key in KEYS)}


class Project:
    """The folder, its commands, and when its stages ran."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder.with_name(f"{folder.name}.log")
        folder.mkdir()
        (folder / "stage.py").write_text(STAGE)
        (folder / "dvc.yaml").write_text(GRAPH)
        (folder / "input.txt").write_text("text")
        shutil.copy(ROOT / "params.yaml", folder)
        self.set_sweep(method=["magnitude", "taylor"], sparsity=[0.5, 0.9])
        self.run("git", "init", "-q")
        self.run(sys.executable, "-m", "dvc", "init", "-q")
        shutil.copy(ROOT / ".dvcignore", folder)
        self.run(sys.executable, "-m", "dvc", "config", "core.analytics", "false")

    def set_sweep(self, **values: list) -> None:
        """Change the sweep of params.yaml."""
        yaml = YAML()
        file = self.folder / "params.yaml"
        all_values = yaml.load(file)
        all_values["sweep"].update(values)
        yaml.dump(all_values, file)

    def start(self, *command: str, **variables: str) -> subprocess.Popen[str]:
        """Start a command in the project."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "GIT_"))}
        environment = kept | {"PYTHONPATH": str(ROOT), "LOG": str(self.log)} | variables
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=self.folder, env=environment, stdout=pipe, stderr=pipe, text=True)

    def run(self, *command: str) -> str:
        """Run a command that has to succeed."""
        process = self.start(*command)
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, out + err
        return out

    def commit(self, message: str) -> None:
        """Commit everything that git does not ignore."""
        self.run("git", "add", "-A")
        self.run("git", "-c", "user.name=t", "-c", "user.email=t@example.com", "commit", "-qm", message)

    def sweep(self, *arguments: str, **variables: str) -> tuple[int, str, str]:
        """Exit status, standard output and standard error of the sweep."""
        process = self.start(sys.executable, "-m", "stages.sweep", *arguments, **variables)
        out, err = process.communicate(timeout=300)
        return process.returncode, out, err

    def times(self) -> dict[str, tuple[float, float]]:
        """Start and end of every stage that ran to its end, the last time it did."""
        found: dict[str, dict[str, float]] = {}
        for line in self.log.read_text().splitlines() if self.log.exists() else []:
            event, name, moment = line.split()
            found.setdefault(name, {})[event] = float(moment)
        return {name: (events["start"], events["end"]) for name, events in found.items() if "end" in events}

    def forget(self) -> None:
        """Empty the log."""
        self.log.unlink(missing_ok=True)
