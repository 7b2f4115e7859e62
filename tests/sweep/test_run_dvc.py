"""dvc.lock is written quickly, whole, and as DVC itself writes it."""

from __future__ import annotations

import os
import random
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from dvc.utils.serialize import YAMLFileCorruptedError, dumps_yaml, modify_yaml

from stages import run_dvc, shell


def entry(number: int) -> dict[str, Any]:
    """Of a stage, with values that YAML has several ways of writing."""
    values = {
        "rate": 1e-05,
        "half": 0.5,
        "none": None,
        "yes": "yes",
        "on": True,
        "空": "你好: #x",
        "ids": [1, "1", 2.0],
    }
    path = f"outputs/models/a name with spaces, {number}/" + "long " * 30
    return {
        "cmd": f"python -m stages.prune wanda-{number} " + "--option value " * 9,
        "deps": [{"path": path, "hash": "md5", "md5": f"{number:032x}", "size": number, "nfiles": 3}],
        "params": {"params.yaml": {"prune": values, "empty": {}, "none": []}},
        "outs": [{"path": "x", "hash": "md5", "md5": "0123456789", "size": 0, "isexec": True}],
    }


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "dvc.lock"


def change(modify: Any, file: Path, name: str, value: dict[str, Any]) -> None:
    """What DVC does to record a stage."""
    with modify(os.fspath(file)) as data:
        if not data:
            data.update({"schema": "2.0"})
        data["stages"] = data.get("stages", {})
        data["stages"].update({name: value})


def test_every_change_gives_the_text_that_dvc_writes(tmp_path):
    ours, dvcs = tmp_path / "ours" / "dvc.lock", tmp_path / "dvcs" / "dvc.lock"
    modify, draw = run_dvc.modifier(modify_yaml), random.Random(1)
    names = ["train", *(f"prune@wanda-0.{n}" for n in range(9)), "evaluate@'q'-1", "a b", "null"]
    for path in (ours, dvcs):
        path.parent.mkdir()
    for _ in range(60):
        name, value = draw.choice(names), entry(draw.randrange(10))
        change(modify, ours, name, value)
        change(modify_yaml, dvcs, name, value)
        assert ours.read_text() == dvcs.read_text()
        if draw.random() < 0.2:  # as a process of its own does
            modify = run_dvc.modifier(modify_yaml)


def test_what_another_process_wrote_meanwhile_stays(file):
    first, second = run_dvc.modifier(modify_yaml), run_dvc.modifier(modify_yaml)
    for number in range(3):
        change(first, file, "a", entry(number))
        change(second, file, "b", entry(number))
    assert file.read_text() == dumps_yaml({"schema": "2.0", "stages": {"a": entry(2), "b": entry(2)}})


@pytest.mark.parametrize("text", ["", "{}\n", "schema: '2.0'\n", "# mine\nschema: '2.0'\nstages: {}\n"])
def test_a_lock_that_is_laid_out_otherwise_is_read_and_written_whole(file, text):
    file.write_text(text)
    change(run_dvc.modifier(modify_yaml), file, "a", entry(1))
    assert file.read_text() == dumps_yaml({"schema": "2.0", "stages": {"a": entry(1)}})


def test_an_edited_entry_keeps_its_text_and_datasets_stay(file):
    file.write_text("schema: '2.0'\nstages:\n  a:\n    cmd:   \"x\"  # why\n")
    change(run_dvc.modifier(modify_yaml), file, "b", {"cmd": "y"})
    assert file.read_text() == "schema: '2.0'\nstages:\n  a:\n    cmd:   \"x\"  # why\n  b:\n    cmd: y\n"
    file.write_text("schema: '2.0'\nstages:\n  a:\n    cmd: x\ndatasets:\n- name: d\n")
    change(run_dvc.modifier(modify_yaml), file, "b", {"cmd": "y"})
    assert file.read_text() == ("schema: '2.0'\nstages:\n  a:\n    cmd: x\n  b:\n    cmd: y\ndatasets:\n- name: d\n")


def test_a_broken_lock_is_dvcs_to_explain_and_a_full_disk_leaves_the_old_one(file, monkeypatch):
    file.write_text("schema: [\n")
    with pytest.raises(YAMLFileCorruptedError):
        change(run_dvc.modifier(modify_yaml), file, "a", entry(1))
    file.unlink()
    modify = run_dvc.modifier(modify_yaml)
    change(modify, file, "a", entry(1))
    whole = file.read_text()

    def full(self: Path, text: str, **options: Any) -> None:
        with self.open("w") as half:
            half.write(text[: len(text) // 2])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with suppress(OSError):
            change(modify, file, "b", entry(2))
    assert file.read_text() == whole and len(list(file.parent.iterdir())) == 1
    change(modify, file, "b", entry(2))
    assert file.read_text() == dumps_yaml({"schema": "2.0", "stages": {"a": entry(1), "b": entry(2)}})


def test_it_is_dvc_with_its_own_code_whatever_stands_in_the_folder(tmp_path, monkeypatch):
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages/__init__.py").write_text("raise SystemExit('another revision')\n")
    monkeypatch.chdir(tmp_path)
    assert shell.dvc("version").startswith("DVC version: ")
    process = shell.start_dvc("no-such-command", stderr=-1)
    _, said = process.communicate(timeout=300)
    assert process.returncode != 0 and "no-such-command" in said
    assert shell.environment()["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (
            "WARNING: old\nERROR: failed to lock: '/a/b' is busy, it is being blocked by:\n  (PID 7): dvc repro\n\n"
            "If there are no processes with such PIDs, you can manually remove 'rwlock' and try again.\n",
            "failed to lock: '/a/b' is busy, it is being blocked by: (PID 7): dvc repro If there are no processes with "
            "such PIDs, you can manually remove 'rwlock' and try again.",
        ),
        (
            "ERROR: unexpected error - [Errno 13] Permission denied: 'params.yaml'\n\n"
            "Having any troubles? Hit us up at https://dvc.org/support, we are always happy to help!\n",
            "unexpected error - [Errno 13] Permission denied: 'params.yaml'",
        ),
        ("usage: dvc\nno such thing\n\n", "no such thing"),
        ("\n", "no message"),
    ],
)
def test_the_reason_is_the_whole_error_and_nothing_else(said, why):
    assert shell.reason(said) == why


def test_after_a_dvc_that_was_killed_in_the_middle_of_its_note(again, monkeypatch):
    note = again.folder / run_dvc.NOTE
    note.write_text('{"read": {')
    monkeypatch.chdir(again.folder)
    assert shell.dvc("status").startswith("Data and pipelines are up to date")
    assert again.run(sys.executable, "-m", "dvc", "status").startswith("Data and pipelines are up to date")


def test_a_note_that_is_being_written_stays(tmp_path, monkeypatch):
    note = tmp_path / "rwlock"
    note.write_text("{")
    whole = '{"write": {}, "read": {}}'
    monkeypatch.setattr(run_dvc.time, "sleep", lambda seconds: note.write_text(whole) and None)
    run_dvc.forget_broken_note(note)
    assert note.read_text() == whole
    run_dvc.forget_broken_note(tmp_path / "none")
