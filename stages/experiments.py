"""Levels outside the sweep, made as DVC experiments.

A level becomes `dvc exp run --temp`: DVC copies the project as it stands (uncommitted edits and all) to a folder
under .dvc/tmp, narrows the sweep there to the one level, runs what is missing, and keeps the result as a git
reference. The workspace's params.yaml and outputs stay as they are, and because the cache is shared, the level is
restored rather than trained when it later joins the sweep.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from stages import layout
from stages.errors import UserError
from stages.files import read_json
from stages.layout import Level
from stages.params import PARAMS_FILE, read_yaml
from stages.shell import dvc, git, start_dvc, stopping
from stages.tracking.client import tracking_uri

NO_EFFECT = ("sweep", "search", "target", "export", "benchmark", "tracking")
"""Sections of params.yaml that do not change what a level is."""
RUNNING = ("Stage '", "Running stage", "'")
"""How DVC's first line on a stage begins. The workspace is back as it was by then."""
ADVICE = "Ran experiment"
"""From here on DVC says how to apply what it made, which the search does in the end for the level it found."""


@dataclass(frozen=True)
class Result:
    """What the evaluate stage measured of a level and of dense, and where it is kept.

    `experiment` is the name of a DVC experiment, None for a level of the workspace.
    """

    level: Level
    figures: Mapping[str, float]
    dense: Mapping[str, float]
    experiment: str | None


def in_workspace(levels: Sequence[Level]) -> list[Result]:
    """Those levels of the workspace's sweep that are made and up to date.

    Raises:
        UserError: DVC cannot read the project.
    """
    if not levels:
        return []
    targets = ["evaluate_dense", *(f"evaluate@{level.key}" for level in levels)]
    changed = set(json.loads(dvc("status", "--json", "--with-deps", *targets)))
    if any("@" not in name for name in changed):
        return []  # something that every level depends on
    stale = {name.partition("@")[2] for name in changed}
    dense = read_json(layout.metrics_file("evaluate", layout.DENSE))
    return [
        Result(level, read_json(layout.metrics_file("evaluate", level.key)), dense, None)
        for level in levels
        if level.key not in stale
    ]


def earlier(level: Level, files: Sequence[str]) -> Result | None:
    """The result of an experiment that made this level from the same code, data and params, if there is one.

    Args:
        level: the level.
        files: data and checkpoints that params name. Of those git does not know, nobody can tell whether they are
            what an earlier experiment read; then there is no earlier result, and DVC's run cache decides.
    """
    if _unversioned(files) or any(Path(name).exists() and not _is_local(name) for name in files):
        return None
    for name, reference in _experiments(level):
        everything_else = ("outputs", "docs", "tests", "dvc.lock", str(PARAMS_FILE))
        same_files = not git(
            "diff", "--quiet", reference, "--", ".", *(f":(exclude){path}" for path in everything_else)
        ).returncode
        if same_files and _effective(_show(reference, PARAMS_FILE)) == _effective(PARAMS_FILE.read_text("utf-8")):
            return _result(level, name, reference)
    return None


def make(level: Level, files: Sequence[str]) -> Result:
    """Make a level as an experiment named `search-LEVEL`; its output goes to the terminal.

    Args:
        level: the level.
        files: data and checkpoints that params name; those that git does not carry are copied.

    Raises:
        UserError: DVC cannot start, or a stage failed.
        KeyboardInterrupt: after the experiment was stopped in good order.
    """
    if git("rev-parse", "--verify", "--quiet", "HEAD").returncode:
        raise UserError("the project is no git repository with a commit, which DVC experiments need: commit it first")
    taken = {name for name, _ in _experiments(level)}
    name = next(name for name in _names(level) if name not in taken)
    command = ["exp", "run", "--temp", "--name", name]
    command += ["--set-param", f"sweep.method=[{level.method}]", "--set-param", f"sweep.sparsity=[{level.sparsity}]"]
    if read_yaml(PARAMS_FILE)["export"]["level"] not in (layout.CHOSEN, layout.DENSE, level.key):
        command += ["--set-param", f"export.level={layout.CHOSEN}"]  # which is not in the narrowed sweep
    for path in _unversioned(files):
        command += ["--copy-paths", path]
    status = _run_experiment([*command, f"evaluate@{level.key}"])
    found = [reference for found, reference in _experiments(level) if found == name]
    if status or not found:
        raise UserError(f"{level.key} could not be made: DVC's message is above; what it finished is kept")
    return _result(level, name, found[0])


def _run_experiment(arguments: Sequence[str]) -> int:
    """Run dvc, pass its output on, and hand Ctrl-C to it only when the workspace is not in its hands.

    DVC takes uncommitted edits off the workspace for a moment (git stash) before it starts. A process group of its
    own keeps Ctrl-C from it in that moment.
    """
    process = start_dvc(*arguments, changes={"MLFLOW_TRACKING_URI": tracking_uri()})
    assert process.stdout is not None
    running = asked = False

    def stop(*_: Any) -> None:
        nonlocal asked
        asked = True
        if running and process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)

    with stopping(stop):
        advice = False
        for line in process.stdout:
            advice |= line.startswith(ADVICE)
            if not advice:
                print(line, end="", flush=True)
            if line.startswith(RUNNING) and not running:
                running = True
                if asked:
                    stop()
        status = process.wait()
    if asked:
        raise KeyboardInterrupt
    return status


def _names(level: Level) -> Iterator[str]:
    """Names for experiments of one level: the later ones were made from other code or params."""
    yield f"search-{level.key}"
    count = 2
    while True:
        yield f"search-{level.key}-run{count}"
        count += 1


def _experiments(level: Level) -> list[tuple[str, str]]:
    """Names and git references of all experiments of a level, whatever commit they started from; newest first."""
    first = f"search-{level.key}"
    answer = git("for-each-ref", "--sort=-committerdate", "--format=%(refname)", "refs/exps/")
    found = [(reference.rpartition("/")[2], reference) for reference in answer.stdout.split()]
    return [(name, ref) for name, ref in found if name == first or name.startswith(f"{first}-run")]


def _result(level: Level, name: str, reference: str) -> Result:
    level_file, dense_file = (layout.metrics_file("evaluate", key) for key in (level.key, layout.DENSE))
    return Result(level, json.loads(_show(reference, level_file)), json.loads(_show(reference, dense_file)), name)


def _effective(text: str) -> dict[str, Any]:
    values = YAML(typ="safe").load(text)
    return {section: value for section, value in values.items() if section not in NO_EFFECT}


def _unversioned(files: Sequence[str]) -> list[str]:
    """What of these files and folders in the project git does not version, so that a copy does not have it.

    A file is named by the largest folder that holds nothing versioned: DVC copies into existing folders only. One
    with a .dvc file of its own is left out, since DVC restores it.
    """
    found: dict[str, None] = {}
    for name in files:
        if not _is_local(name):
            continue
        for other in filter(None, git("ls-files", "--others", "-z", "--", name).stdout.split("\0")):
            if not Path(f"{other}.dvc").exists():
                folders = [folder for folder in Path(other).parents[-2::-1] if not _versioned(folder.as_posix())]
                found[folders[0].as_posix() if folders else other] = None
    return list(found)


def _is_local(name: str) -> bool:
    """Whether this is a path below the working directory, as written; else it means the same in any copy."""
    return Path(name).exists() and not Path(name).is_absolute() and ".." not in Path(name).parts


@cache
def _versioned(folder: str) -> bool:
    return bool(git("ls-files", "--", folder).stdout)


def _show(reference: str, path: Path) -> str:
    answer = git("show", f"{reference}:./{path.as_posix()}")
    if answer.returncode:
        raise UserError(f"experiment {reference.rpartition('/')[2]} has no {path}: remove it with `dvc exp remove`")
    return answer.stdout
