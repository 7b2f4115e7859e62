"""Whether dvc.lock is up to date, told in clones without data."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from half_second_stages import Project
from ruamel.yaml import YAML

from stages.check import UNKNOWN, _as_locked
from stages.tracking.pipeline import md5_of


@pytest.fixture
def clone(again: Project) -> Project:
    """What git has of a finished project: no cache, no outs."""
    again.commit("made")
    again.run("git", "clean", "-qfdx")
    assert not list((again.folder / "outputs").rglob("*-*")) and (again.folder / "outputs/evaluate/.gitignore").exists()
    return again


def check(project: Project) -> str:
    """What it says, which is one line."""
    process = project.start(sys.executable, "-m", "stages.check")
    out, err = process.communicate(timeout=300)
    assert process.returncode == (0 if out else 1) and len((out or err).splitlines()) == 1, out + err
    return out or err.removeprefix("error: dvc.lock is out of date: ")


def test_without_data_with_a_new_level_and_with_a_leftover_of_one(clone):
    assert check(clone) == "dvc.lock is up to date.\n"
    clone.set_sweep(sparsity=[0.5, 0.9, 0.7])
    # What compare reads is not said to have changed: nobody knows yet what the new levels are.
    assert check(clone).startswith(
        "prune@magnitude-0.7 (never made); prune@taylor-0.7 (never made); evaluate@magnitude-0.7 (never made); "
        "evaluate@taylor-0.7 (never made): run `dvc repro`"
    )
    clone.set_sweep(sparsity=[0.5])
    assert check(clone).startswith("compare (outputs/evaluate): run")


def test_changed_data_and_a_changed_command(clone):
    (clone.folder / "input.txt").write_text("other")
    assert check(clone).startswith("train (input.txt): run")
    clone.run("git", "checkout", "-q", "input.txt")
    graph = clone.folder / "dvc.yaml"
    graph.write_text(graph.read_text().replace("stage.py compare", "stage.py  compare"))
    assert check(clone).startswith("compare (changed command): run")


@pytest.mark.parametrize(
    ("changed", "stale"),
    [
        ("train", "prune@magnitude-0.5 (outputs/train/all); prune@magnitude-0.9 (outputs/train/all); "),
        ("evaluate@taylor-0.5", "compare (outputs/evaluate): run"),
    ],
)
def test_a_lock_put_together_from_two_branches(clone, changed, stale):
    """What one stage made is not what the next ones were given, though neither is here."""
    path = Path(clone.folder / "dvc.lock")
    lock = YAML(typ="safe").load(path)
    lock["stages"][changed]["outs"][0]["md5"] = "0" * 32
    YAML().dump(lock, path)
    assert check(clone).startswith(stale)


def test_data_that_dvc_keeps(clone):
    clone.run("git", "rm", "-q", "--cached", "input.txt")
    clone.run(sys.executable, "-m", "dvc", "add", "-q", "input.txt")
    (clone.folder / "input.txt").unlink()
    assert check(clone) == "dvc.lock is up to date.\n"
    file = clone.folder / "input.txt.dvc"
    file.write_text(file.read_text().replace("md5: ", "md5: 0", 1))
    assert check(clone).startswith("train (input.txt): run")


def test_a_folder_of_folders_is_known_only_where_all_are_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for key in ("a", "b"):
        (tmp_path / "models" / key).mkdir(parents=True)
        (tmp_path / "models" / key / "weights").write_text(key)
    made = {f"models/{key}": md5_of(tmp_path, f"models/{key}") for key in ("a", "b")}
    assert _as_locked("models", made) == md5_of(tmp_path, "models")
    (tmp_path / "models/b/weights").unlink()
    (tmp_path / "models/b").rmdir()
    assert _as_locked("models", made) == UNKNOWN
