"""DVC on the real graph with many levels, whose outs are placeholders."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.overhead.processes import cost
from stages import params
from stages.errors import UserError
from stages.shell import git

METHODS = ["magnitude", "taylor", "l1", "random"]
FILES = (".json", ".csv", ".parquet", ".png", ".md")
"""What outs end in that are no folders."""


def measure(levels: int) -> None:
    """Print what `dvc repro` and `dvc status` take when there is nothing to do."""
    from rich.console import Console
    from rich.table import Table

    if levels < 1:
        raise UserError("--levels must be 1 or more")
    with tempfile.TemporaryDirectory(prefix="graph-") as name:
        folder = Path(name)
        made = make(folder, levels)
        dvc = [sys.executable, "-m", "dvc"]
        cost([sys.executable, "-P", "-m", "stages.run_dvc", "commit", "--force", "--quiet"], folder)
        table = Table("command", "seconds", "processor seconds", title=f"{made} levels, nothing to do")
        for words in (["repro"], ["status"], ["repro", "--dry"]):
            taken = min((cost([*dvc, *words], folder) for _ in range(3)), key=lambda one: one.wall_s)
            table.add_row(f"dvc {' '.join(words)}", f"{taken.wall_s:.1f}", f"{taken.cpu_s:.1f}")
    Console().print(table)


def make(folder: Path, levels: int) -> int:
    """A project with this one's files and graph and at least so many levels; how many."""
    for name in git("ls-files", "-z").stdout.split("\0"):
        if (
            name
            and Path(name).is_file()
            and not name.startswith(("outputs/", "docs/", "tests/", ".github", "dvc.lock"))
        ):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(name, folder / name)
    sparsities = -(-levels // len(METHODS))
    sweep = {"method": METHODS, "sparsity": [round((i + 1) / (sparsities + 1), 6) for i in range(sparsities)]}
    values: dict[str, Any] = params.read_yaml(folder / params.PARAMS_FILE)
    values["sweep"] |= sweep
    _dump(folder / params.PARAMS_FILE, values)
    (folder / "data/checkpoints").mkdir(parents=True, exist_ok=True)
    for command in (("git", "init", "-q"), (sys.executable, "-m", "dvc", "init", "-q", "--force")):
        subprocess.run(command, cwd=folder, check=True)
    _write_outs(folder)
    return sparsities * len(METHODS)


def _write_outs(folder: Path) -> None:
    """All that stages would make, as small as can be."""
    from dvc.repo import Repo

    with Repo(str(folder)) as repo:
        for path in (Path(out.fs_path) for stage in repo.index.stages for out in stage.outs):
            file = path if path.suffix in FILES else path / "file"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(str(path.relative_to(folder)))
    subprocess.run([sys.executable, "-m", "stages.code"], cwd=folder, check=True)  # deps are of its files


def _dump(path: Path, values: Any) -> None:
    from ruamel.yaml import YAML

    with path.open("w", encoding="utf-8") as file:
        YAML(typ="safe").dump(values, file)
