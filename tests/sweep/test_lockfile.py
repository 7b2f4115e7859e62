"""A dvc.lock that a killed DVC left: told from a whole one wherever it was cut, in one line that says what to do."""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from pathlib import Path

import pytest
from dvc.utils.serialize import loads_yaml
from shared import ROOT

from stages import lockfile
from stages.errors import UserError
from stages.run_dvc import HEAD
from stages.tracking.pipeline import Pipeline

WHOLE = (ROOT / "dvc.lock").read_text()


def cut(file: Path, text: str) -> None:
    """Leave this, some time ago."""
    file.write_text(text)
    os.utime(file, (time.time() - 60,) * 2)


def test_a_cut_anywhere_but_between_two_entries_or_outs_is_told():
    start = WHOLE.index("\n  train:\n") + 1
    entry = WHOLE[start : re.compile(r"^  \S", re.MULTILINE).search(WHOLE, start + 3).start()]  # type: ignore[union-attr]
    outs = entry.index("    outs:\n")
    passed = [n for n in range(1, len(entry) + 1) if lockfile.fault(HEAD + entry[:n]) is None]
    ends = [match.start() for match in re.finditer("    - path", entry) if match.start() > outs + 15]
    assert passed == [*ends, len(entry)] and len(ends) > 1
    assert all(lockfile.fault(HEAD[:n]) for n in range(len(HEAD) + 1))


@pytest.mark.parametrize("text", ["schema: '2.0'\n", "schema: '2.0'\nstages:\n", "stages: {}\n", "[]\n", "a: [\n"])
def test_what_is_no_lock(text):
    assert lockfile.fault(text)


def test_whole_ones_pass(tmp_path):
    assert lockfile.fault(WHOLE) is None and lockfile.fault(WHOLE, thoroughly=True) is None
    assert lockfile.fault(f"{WHOLE}datasets:\n- name: d\n") is None
    assert lockfile.fault("schema: '2.0'\nstages: {}\n") is None
    lockfile.refuse_damaged(tmp_path / "none")


def test_one_that_is_being_written_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(lockfile, "WRITING_S", 0.5)
    file = tmp_path / "dvc.lock"
    file.write_text(WHOLE[:5000])
    writer = threading.Timer(0.2, file.write_text, (WHOLE,))
    writer.start()
    lockfile.refuse_damaged(file)
    assert file.read_text() == WHOLE
    writer.join()
    file.write_text(WHOLE[:5000])
    with pytest.raises(UserError, match="cut short"):
        lockfile.refuse_damaged(file)


def test_damage_in_the_middle_is_named_with_the_remedy(tmp_path):
    for name in ("dvc.yaml", "params.yaml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    cut(tmp_path / "dvc.lock", WHOLE.replace("\n  train:\n", "\n<<<<<<< HEAD\n  train:\n"))
    with pytest.raises(UserError, match=r"not valid YAML.*git checkout dvc\.lock"):
        Pipeline(tmp_path)


def test_every_command_says_so_in_one_line_and_the_remedy_brings_back_what_was_made_since(again):
    again.commit("made")
    again.set_sweep(sparsity=[0.5, 0.9, 0.7])
    assert again.sweep("-j", "2")[0] == 0
    lock = again.folder / "dvc.lock"
    made = lock.read_text()
    again.forget()
    in_a_key = made.index("    deps:", len(made) // 2) + 6
    by_luck = made.index("      md5: ", len(made) // 2) + 20
    for text in ("", made[:in_a_key], made[:by_luck]):
        for command in (["sweep"], ["check"], ["sync"], ["diff", "HEAD"]):
            cut(lock, text)
            process = again.start(sys.executable, "-m", f"stages.{command[0]}", *command[1:])
            _, err = process.communicate(timeout=300)
            assert process.returncode == 1 and len(err.splitlines()) == 1, (command, err)
            assert "git checkout dvc.lock" in err and "then `dvc repro`" in err, (command, err)
    again.run("git", "checkout", "-q", "dvc.lock")
    assert "magnitude-0.7" not in lock.read_text()
    again.run(sys.executable, "-m", "dvc", "repro")
    assert loads_yaml(lock.read_text()) == loads_yaml(made) and again.times() == {}
