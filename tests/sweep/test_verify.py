"""What verify says of a commit, on stages of half a second; tests/end_to_end has the real ones."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from half_second_stages import KEYS, STAGES, Project

from stages import machine

LEVEL = {"prune@taylor-0.5", "evaluate@taylor-0.5"}


def commit(project: Project) -> str:
    (project.folder / "outputs/compare/chosen.json").write_text('{"key": "taylor-0.5"}')
    project.commit("made")
    return project.run("git", "rev-parse", "--short=7", "HEAD").strip()


def verify(project: Project, *arguments: str, **variables: str) -> tuple[int, str, str]:
    """Exit status, output and errors; no clone is left, and the cache is as it was."""
    cached = files(project.folder / ".dvc/cache")
    project.forget()
    process = project.start(sys.executable, "-m", "stages.verify", *arguments, **variables)
    out, err = process.communicate(timeout=300)
    assert files(project.folder / ".dvc/cache") == cached and "Traceback" not in err
    assert not list((project.folder / ".scratch/verify").glob("clone-*"))
    return process.returncode, out, err


def files(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_the_chosen_level_is_made_again_and_identical(again):
    name = commit(again)
    status, out, err = verify(again)
    assert status == 0 and again.times().keys() == LEVEL, out + err
    assert f"{name}: identical" in out and "evaluate@taylor-0.5  identical  1 outs" in out


def test_targets(again):
    commit(again)
    assert verify(again, "evaluate@magnitude-0.9", "dense")[0] == 0
    assert again.times().keys() == {"evaluate@magnitude-0.9", "evaluate_dense"}
    again.run("git", "rm", "-q", "--cached", "input.txt")
    again.run(sys.executable, "-m", "dvc", "add", "-q", "input.txt")  # and from here on data is DVC's
    again.commit("data")
    assert verify(again, "--from-data", "prune@magnitude-0.9")[0] == 0
    assert again.times().keys() == {"train", "prune@magnitude-0.9"}
    assert verify(again, "--all", "-j", "2")[0] == 0
    assert again.times().keys() == STAGES


def test_what_is_not_reproducible_is_named_with_what_follows_from_it(again):
    code = again.folder / "stage.py"
    lines = [
        "text = sys.argv[1]",
        "if sys.argv[1] == 'prune@taylor-0.5': text += str(time.time())",
        "if stage == 'evaluate': text += pathlib.Path('outputs/prune', key).read_text()",
        "out.write_text(text)",
    ]
    code.write_text(code.read_text().replace("out.write_text(sys.argv[1])", "\n".join(lines)))
    again.run(sys.executable, "-m", "dvc", "repro", "--force", "evaluate@taylor-0.5", "evaluate@magnitude-0.5")
    (again.folder / "outputs/benchmark").mkdir()
    (again.folder / "outputs/benchmark/machine.json").write_text('{"torch": "2.0.1", "threads": 1}')
    name = commit(again)
    status, out, _ = verify(again, "taylor-0.5", "magnitude-0.5", MKL_CBWR="AVX2")
    where = "outputs/prune/taylor-0.5: byte "
    assert status == 1 and "evaluate@magnitude-0.5  identical" in out
    assert "prune@taylor-0.5        differs    1 of 1 outs\n" in out and where in out
    assert "evaluate@taylor-0.5     differs    1 of 1 outs, as prune@taylor-0.5 does, which it is made from" in out
    assert f"{name}: differs first in prune@taylor-0.5: {where}" in out
    assert f"torch: {torch.__version__} here, 2.0.1 where the benchmark of that commit was run" in out
    assert "threads:" not in out and "MKL_CBWR=AVX2 is set" in out and "here: torch" in out


def test_an_older_commit_by_its_own_code_and_params(again):
    params = again.folder / "params.yaml"
    today = params.read_text()
    params.write_text(today.replace("\nsearch:", "\nhunt:"))
    first = commit(again)
    params.write_text(today)
    commit(again)
    again.run("git", "checkout", "-q", "--detach")
    (again.folder / "stage.py").write_text("raise SystemExit('broken')")
    status, _, err = verify(again)
    assert status == 1 and "uncommitted changes (stage.py): commit them" in err and again.times() == {}
    commit(again)
    assert verify(again, "prune@taylor-0.5")[0] == 1
    assert verify(again, "--rev", first)[0] == 0 and again.times().keys() == LEVEL


def test_interrupted_it_leaves_nothing(again):
    commit(again)
    again.forget()
    process = again.start(sys.executable, "-m", "stages.verify", WAIT="prune@taylor-0.5")
    deadline = time.monotonic() + 300
    while not again.log.exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130 and err.startswith("interrupted: nothing was compared") and not out
    assert not list((again.folder / ".scratch/verify").glob("clone-*")) and again.times() == {}


def test_mistakes_end_in_one_line(again):
    status, _, err = verify(again)
    assert status == 1 and "no commit" in err
    commit(again)
    for arguments, message in (
        (["taylor-0.6"], f"taylor-0.6 is no stage and no level of that commit; it has baseline, {KEYS[0]}, "),
        (["--rev", "v9"], "v9 is no commit"),
        (["-j", "0"], "--jobs 0"),
        (["--all", "dense"], "--all is every stage"),
    ):
        status, _, err = verify(again, *arguments)
        assert status == 1 and message in err and len(err.splitlines()) == 1, err


def test_a_lock_that_is_not_up_to_date_is_refused(again):
    (again.folder / "input.txt").write_text("other")
    commit(again)
    status, _, err = verify(again, "baseline")
    assert status == 1 and "train is out of date" in err and "input.txt" in err and again.times() == {}
    again.set_sweep(sparsity=[0.5, 0.6])
    commit(again)
    status, _, err = verify(again, "taylor-0.6")
    assert status == 1 and "has no evaluate@taylor-0.6" in err


def test_what_the_cache_lacks(again):
    commit(again)
    for path in (again.folder / ".dvc/cache/files/md5").rglob("*"):
        if path.is_file() and path.read_text() == "train":
            path.unlink()
    status, _, err = verify(again)
    assert status == 1 and "outputs/train/all is not in DVC's cache" in err and "dvc pull" in err


def test_a_stage_that_fails_is_reported(again):
    commit(again)
    status, out, err = verify(again, "taylor-0.5", "dense", FAIL="prune@taylor-0.5")
    assert status == 1 and "identical" not in out and "no memory left for this one" in err
    assert "not recomputed: prune@taylor-0.5, evaluate@taylor-0.5; logs are in" in err


def test_packages_unlike_their_pins(tmp_path: Path):
    base = torch.__version__.partition("+")[0]
    constraints = tmp_path / "constraints.txt"
    constraints.write_text(f"torch=={base}\nleft-out==1\n")
    assert list(machine.unlike_pins(tmp_path)) == []
    constraints.write_text("# numpy==1\nsome-other==1.0.0\ntorch==1.0.0+cpu\n")
    assert list(machine.unlike_pins(tmp_path)) == [
        f"torch: {torch.__version__} is installed, constraints.txt has 1.0.0+cpu"
    ]
    constraints.unlink()
    assert list(machine.unlike_pins(tmp_path)) == []


def test_variables_that_choose_kernels(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    monkeypatch.setenv("MKL_NUM_THREADS", "1")
    found = list(machine.variables())
    assert "ONEDNN_MAX_CPU_ISA=AVX2" in found and not any("THREADS" in line for line in found)
