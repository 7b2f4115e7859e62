"""A copy of the project with small data and a small model, driven by its real commands."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from shared import ROOT, SMALL_RUN, merge

from stages.verify import TIMINGS

NAMES = ["phone", "post", "area", "name", "food", "price", "stars", "type"]
METHODS = ["magnitude", "l1", "structured"]
KEYS = ["magnitude-0.6", "l1-0.6", "structured-0.6"]
MASKED = KEYS[:2]
CHANGES: dict[str, Any] = SMALL_RUN | {
    "model": SMALL_RUN["model"] | {"max_target_tokens": 32},
    "train": {"epochs": 3, "batch_size": 8, "learning_rate": 0.01},
    "sweep": {"method": METHODS, "sparsity": [0.6]},
    "prune": {
        "calibration": {"samples": 16, "batch_size": 8},
        "l1": {"epochs": 1.0},
        "structured": {"vocabulary": True},
    },
    "finetune": {"refresh_steps": 4, "batch_size": 8},
    "evaluate": {"bootstrap_samples": 100},
    "benchmark": {"rounds": 3, "throughput_rounds": 3, "batch_sizes": [1, 4], "tokens": 4},
}

ACCESS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
"""As in any team: from the environment, never from a file that git has."""


@dataclass
class Project:
    """The copy, and commands in it."""

    root: Path

    def run(self, *command: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command with this interpreter's tools first on the path."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("DVC_", "ESPALIER_", "MLFLOW_", "PYTHONPATH"))}
        environment = {**kept, "PATH": path, "DVC_NO_ANALYTICS": "1", "OMP_NUM_THREADS": "1", **environment}
        done = subprocess.run(command, cwd=self.root, env=environment, capture_output=True, text=True, timeout=800)
        if check and done.returncode:
            raise AssertionError(f"{' '.join(command)} ended with {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    def repro(self, *targets: str) -> list[str]:
        """Run `dvc repro`; the names of the stages that were executed."""
        output = self.run("dvc", "repro", *targets).stdout
        return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage ")]

    def set(self, **changes: Any) -> None:
        """Change params.yaml."""
        yaml = YAML()
        values = yaml.load(self.root / "params.yaml")
        yaml.dump(merge(values, changes), self.root / "params.yaml")

    def commit(self, message: str) -> None:
        """Commit everything that git does not ignore."""
        self.run("git", "add", "-A")
        self.run("git", "-c", "user.name=t", "-c", "user.email=t@example.com", "commit", "-qm", message)

    def locked(self) -> dict[str, str]:
        """md5 of every out in dvc.lock but timings."""
        stages = YAML(typ="safe").load((self.root / "dvc.lock").read_text())["stages"]
        return {
            out["path"]: out["md5"]
            for stage in stages.values()
            for out in stage["outs"]
            if not any(Path(out["path"]).is_relative_to(timing) for timing in TIMINGS)
        }


def make(root: Path) -> Project:
    """Copy the files git knows (and new ones it does not ignore) and put small data in."""
    listed = subprocess.run(
        ("git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"),
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in listed.stdout.decode().split("\0"):
        if name and (ROOT / name).is_file() and not name.startswith(("outputs/", "docs/", "dvc.lock")):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, root / name)
    project = Project(root)
    write_pairs(root / "data" / "raw" / "small.csv")
    project.set(**CHANGES)
    project.run("git", "init", "-q")
    project.commit("start")
    return project


def write_pairs(path: Path) -> None:
    """Inputs of one or two slots, each with two wordings; one duplicate and one empty row for cleaning to drop."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["act", "utterance"])
        for i, first in enumerate(NAMES):
            for second in NAMES[i:]:
                act = f"Hotel-Inform ({first}, {second})"
                slots = " and ".join(f"#HOTEL-INFORM-{name.upper()}#" for name in (first, second))
                writer.writerow([act, f"The answer is {slots} ."])
                writer.writerow([act, f"It  is {slots} , I think ."])
        writer.writerow([act, f"The answer is {slots} ."])
        writer.writerow([act, ""])
