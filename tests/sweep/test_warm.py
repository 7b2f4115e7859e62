"""Processes that begin with the libraries in memory do what others do, and are left out where they would not."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from stages import warm
from stages.pool import Said
from stages.processes import Processes

ROOT = Path(__file__).parents[2]
RUN = """
import os, sys
import dvc.stage.run
from stages import warm, warm_imports

def cold(*_, **__):
    print("cold")

way, folder, *commands = sys.argv[1:]
run = dvc.stage.run._run if way == "cold" else warm.forking(cold)
variables = {**os.environ, "COLUMNS": "70", "PYTHONUNBUFFERED": "1", "ESPALIER_TRACKING": "off"}
for command in commands:
    try:
        run("/bin/sh", command, env=variables, cwd=folder, close_fds=True, shell=False)
    except Exception as error:
        print(type(error).__name__, error)
    print("ended in", os.getcwd())
"""
START = """
import os, sys
from stages.warm import Warm

if __name__ == "__main__":
    for arguments in (["--version"], ["repro", "nothing"]):
        process = Warm(arguments, dict(os.environ))
        group = os.getpgid(process.pid)
        said = process.stdout.read().strip().splitlines()
        print(process.wait(), group == process.pid, said[-1])
"""


KILLED = """
import os, signal
from multiprocessing.forkserver import _forkserver
from stages.warm import Warm

if __name__ == "__main__":
    process = Warm(["--version"], dict(os.environ))
    os.kill(_forkserver._forkserver_pid, signal.SIGKILL)
    print(process.wait(), process.stdout.read().strip())
"""


def python(code: str, *arguments: str, folder: Path = ROOT) -> str:
    """What a program prints, errors among it, with the code that is in the folder, if any is."""
    package = folder if (folder / "stages").is_dir() else ROOT
    answer = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env={"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "PYTHONPATH": str(package), "HOME": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        check=False,
    )
    return answer.stdout


def test_a_forked_stage_is_as_a_started_one(tmp_path):
    """Output, exit status, working directory: of a stage that stops, of bad usage, and of one that ends well."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    commands = [f"python -m stages.{words}" for words in ("evaluate dense", "finetune nonsense", "prune --help")]
    cold, forked = (python(RUN, way, str(tmp_path), *commands) for way in ("cold", "forked"))
    program = re.compile(r"^usage: \S+(?: -m \S+)?", re.MULTILINE)  # which argparse names after how it was started
    assert program.sub("", forked) == program.sub("", cold)
    assert cold.count(f"ended in {ROOT}") == len(commands) == cold.count("StageCmdFailedError") + 1


def test_other_commands_and_edited_modules_are_left_to_dvc(tmp_path):
    """DVC writes the hash of a file into dvc.lock, so that has to be the code that was run."""
    shutil.copytree(ROOT / "stages", tmp_path / "stages", ignore=shutil.ignore_patterns("__pycache__"))
    others = ["python -m stages.clean", "python -m stages.prune a; true", "echo python"]
    stage = "python -m stages.evaluate dense"
    said = python(RUN, "forked", str(tmp_path), *others, stage, folder=tmp_path).splitlines()
    assert said[:6] == ["cold", f"ended in {tmp_path}"] * 3
    assert "params.yaml" in said[6]
    edit = RUN.replace("\nway, ", "\nos.utime('stages/models/checkpoint.py')\nway, ")
    assert python(edit, "forked", str(tmp_path), stage, folder=tmp_path).startswith("cold\n")


def test_dvc_starts_in_a_group_of_its_own_with_output_and_status(tmp_path):
    said = python(START, folder=tmp_path).splitlines()
    assert said[0].startswith("0 True 3.")
    assert said[1].startswith("253 True ERROR: you are not inside of a DVC repository")


def test_the_status_is_its_own_though_the_server_is_killed(tmp_path):
    assert python(KILLED, folder=tmp_path).startswith("0 3.")


def test_where_it_is_possible(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    assert warm.possible()
    monkeypatch.setenv(warm.SWITCH, "off")
    assert not warm.possible()
    monkeypatch.delenv(warm.SWITCH)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert not warm.possible()
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)  # another project, or another commit's clone
    assert not warm.possible()


def test_a_sweep_uses_it_where_it_can(monkeypatch, tmp_path):
    begun: list[Any] = []
    monkeypatch.setattr("stages.processes.warm.Warm", lambda arguments, variables: begun.append(arguments) or ended())
    monkeypatch.setattr("stages.processes.start_dvc", lambda *arguments, **_: ended())
    told: list[Said] = []
    for folder in (tmp_path, ROOT):
        monkeypatch.chdir(folder)
        Processes(1, lambda: 0, ["--force"]).start(["prune@a-0.5"], told.append)
    assert begun == [("--wait-for-lock", "repro", "--single-item", "--force", "prune@a-0.5")]


def ended() -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE, text=True)
