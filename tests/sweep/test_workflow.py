"""The workflow for continuous integration: its commands, run as GitHub would, on stages of half a second."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from half_second_stages import Project
from ruamel.yaml import YAML
from shared import ROOT

WORKFLOW: dict[str, Any] = YAML(typ="safe").load(ROOT / ".github/workflows/espalier.yml")
CONTEXT = {"github.base_ref": "main", "github.token": "t0ken", "github.event.pull_request.number": "7"}
GH = """#!/bin/bash
echo "$GH_TOKEN $*" >> "$LOG.gh"
[[ "$*" != *--edit-last* ]] || exit 1
cat report.md >> "$LOG.gh"
"""


@pytest.fixture
def pull_request(again: Project) -> Project:
    """A project with an environment that is set up, and a commit more than origin/main."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, again.folder)
    (again.folder / ".venv").mkdir()
    for part in Path(sys.prefix).iterdir():
        if part.name != "installed":
            (again.folder / ".venv" / part.name).symlink_to(part)
    (again.folder / ".venv/installed").touch()
    with (again.folder / ".gitignore").open("a") as file:
        file.write("/.venv/\n")
    again.commit("base")
    again.run("git", "update-ref", "refs/remotes/origin/main", "HEAD")
    again.set_sweep(sparsity=[0.5])
    again.run(sys.executable, "-m", "dvc", "repro", "-q")
    again.commit("one sparsity less")
    stub = again.folder.with_name("bin") / "gh"
    stub.parent.mkdir()
    stub.write_text(GH)
    stub.chmod(0o755)
    return again


def steps(job: str) -> dict[str, dict[str, Any]]:
    return {step["name"]: step for step in WORKFLOW["jobs"][job]["steps"] if "run" in step}


def run(project: Project, step: dict[str, Any]) -> tuple[int, str]:
    """Status and all that a step prints, in the shell that GitHub gives it."""
    variables = {
        name: re.sub(r"\$\{\{ (.+?) \}\}", lambda m: CONTEXT[m[1]], v) for name, v in step.get("env", {}).items()
    }
    variables["PATH"] = f"{project.folder.with_name('bin')}{os.pathsep}{os.environ['PATH']}"
    variables["GITHUB_STEP_SUMMARY"] = f"{project.log}.summary"
    process = project.start("bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"], **variables)
    out, err = process.communicate(timeout=300)
    return process.returncode, out + err


def test_every_step_works_in_its_order(pull_request):
    assert WORKFLOW["defaults"]["run"]["shell"] == "bash" and set(WORKFLOW["jobs"]) == {"lock", "test", "audit"}
    for name, step in steps("lock").items():
        status, said = run(pull_request, step)
        assert status == 0, f"{name}: {said}"
    summary = Path(f"{pull_request.log}.summary").read_text()
    assert summary.startswith("## From origin/main (") and "| sweep.sparsity | [0.5, 0.9] | [0.5] |" in summary
    first, second, *report = Path(f"{pull_request.log}.gh").read_text().splitlines(keepends=True)
    assert first.startswith("t0ken pr comment 7 --edit-last") and second == "t0ken pr comment 7 --body-file report.md\n"
    assert "".join(report) == summary


def test_a_stale_lock_fails(pull_request):
    pull_request.set_sweep(sparsity=[0.5, 0.7])
    status, said = run(pull_request, steps("lock")["dvc.lock is up to date"])
    assert status == 2 and "dvc.lock is out of date: prune@magnitude-0.7 (never made)" in said


def test_the_tests_are_those_of_the_makefile(pull_request):
    (step,) = steps("test").values()
    assert step["run"] == "make test"
    status, said = run(pull_request, {"run": "make --dry-run test"})
    assert status == 0 and "pytest" in said and "mypy" in said and "pip install" not in said


def test_nothing_from_a_pull_request_is_pasted_into_a_command():
    """A branch may be called `$(…)`: such values go through the environment."""
    commands = [step["run"] for job in WORKFLOW["jobs"] for step in steps(job).values()]
    assert len(commands) == 6 and not any("${{" in command for command in commands)
