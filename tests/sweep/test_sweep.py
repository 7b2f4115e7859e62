"""Levels side by side: order, bounds, failures, interruption; through real `dvc repro` processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock
from half_second_stages import KEYS, STAGES
from rich.console import Console

from stages.board import table
from stages.pool import Pool, Task, ordered
from stages.processes import Processes


def overlap(times: dict[str, tuple[float, float]]) -> int:
    """The largest number of stages that ran at one time."""
    return max(sum(a <= start < b for a, b in times.values()) for start, _ in times.values())


def test_all_stages_run_once_after_what_they_need_two_at_a_time(swept):
    project, out = swept
    times = project.times()
    assert times.keys() == STAGES and len(project.log.read_text().splitlines()) == 2 * len(STAGES)
    for key in KEYS:
        assert times["train"][1] < times[f"prune@{key}"][0] < times[f"evaluate@{key}"][0]
        assert times["evaluate_dense"][1] < times[f"evaluate@{key}"][0]
    assert max(start for start, _ in times.values()) == times["compare"][0]
    assert overlap(times) == 2
    assert f"{len(STAGES)} stages made" in out
    assert project.run(sys.executable, "-m", "dvc", "status").startswith("Data and pipelines are up to date")


def test_methods_take_turns(swept):
    times = swept[0].times()
    starts = sorted(KEYS, key=lambda key: times[f"prune@{key}"])
    assert {key.rpartition("-")[2] for key in starts[:2]} == {"0.5"}


def test_nothing_to_do_starts_nothing(again):
    assert again.sweep() == (0, "Data and pipelines are up to date.\n", "")
    assert again.times() == {}


def test_a_new_level_runs_its_stages_and_compare_only(again):
    again.set_sweep(sparsity=[0.5, 0.9, 0.7])
    status, out, err = again.sweep("-j", "2", "evaluate@taylor-0.7")
    assert status == 0 and again.times().keys() == {"prune@taylor-0.7", "evaluate@taylor-0.7"}, out + err
    again.forget()
    assert again.sweep("-j", "2")[0] == 0
    assert again.times().keys() == {"prune@magnitude-0.7", "evaluate@magnitude-0.7", "compare"}


def test_what_dvc_restores_is_not_run(again):
    out = again.folder / "outputs/prune/taylor-0.5"
    out.unlink()
    (again.folder / "dvc.lock").unlink()  # the run cache knows all the same
    status, said, _ = again.sweep("-j", "2")
    assert status == 0 and again.times() == {}
    assert "prune@taylor-0.5 kept" in said and "0 stages made" in said and out.exists()


def test_what_cannot_be_restored_has_failed(monkeypatch, tmp_path):
    """DVC says `cached` before it fetches the outs, which may fail: the cache is damaged, the disk full."""

    def cached_then_fails(*arguments: str, **options: Any) -> subprocess.Popen[str]:
        code = f"print(\"Stage '{arguments[-2]}' is cached - skipping run\"); raise SystemExit(1)"
        return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True)

    monkeypatch.setattr("stages.processes.start_dvc", cached_then_fails)
    tasks = [Task("prune@a-0.5", frozenset(), "a-0.5"), Task("finetune@a-0.5", frozenset({"prune@a-0.5"}), "a-0.5")]
    Pool(tasks, Processes(1, lambda: 0, []), logs=tmp_path, show=lambda now: None).run()
    assert [task.state for task in tasks] == ["failed", "skipped"]


def test_a_failure_is_reported_and_the_others_are_made(again):
    (again.folder / "input.txt").write_text("other text")
    code = again.folder / "stage.py"
    code.write_text(code.read_text().replace("write_text(sys.argv[1])", "write_text(sys.argv[1] + '2')"))
    status, _, err = again.sweep("-j", "2", FAIL="prune@magnitude-0.9")
    assert status == 1 and "Traceback" not in err
    assert "error: no memory left for this one" in err
    assert "failed: prune@magnitude-0.9; not made, since they need it: evaluate@magnitude-0.9, compare" in err
    missing = {"prune@magnitude-0.9", "evaluate@magnitude-0.9", "compare"}
    assert again.times().keys() == STAGES - missing
    again.forget()
    assert again.sweep("-j", "2")[0] == 0 and again.times().keys() == missing


def test_interrupted_it_stops_and_goes_on_later(again):
    again.set_sweep(sparsity=[0.5, 0.9, 0.7])
    process = again.start(sys.executable, "-m", "stages.sweep", "-j", "2", WAIT="prune@taylor-0.7")
    deadline = time.monotonic() + 300
    while "prune@magnitude-0.7" not in again.times():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130 and "interrupted" in err and "Traceback" not in err
    assert "prune@taylor-0.7" not in again.times()
    status, out, err = again.sweep("-j", "2")
    assert status == 0, out + err
    assert {"prune@taylor-0.7", "evaluate@taylor-0.7", "evaluate@magnitude-0.7", "compare"} <= again.times().keys()


def test_what_a_killed_sweep_ran_ends_with_it_and_is_not_recorded(again):
    again.set_sweep(sparsity=[0.5, 0.9, 0.7])
    process = again.start(sys.executable, "-m", "stages.sweep", "-j", "1", WAIT="prune@magnitude-0.7")
    deadline = time.monotonic() + 300
    while not again.log.exists() or "start prune@magnitude-0.7" not in again.log.read_text():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    left = psutil.Process(process.pid).children(recursive=True)
    assert any("stage.py" in part.cmdline() for part in left) and any("repro" in part.cmdline() for part in left)
    process.kill()
    assert psutil.wait_procs(left, timeout=30)[1] == []
    process.communicate()
    assert "magnitude-0.7" not in (again.folder / "dvc.lock").read_text()
    # Nor does DVC's run cache have it: it is made.
    status, out, err = again.sweep("-j", "1", "prune@magnitude-0.7")
    assert status == 0 and again.times().keys() == {"prune@magnitude-0.7"}, out + err


def test_a_second_sweep_is_refused(again):
    again.set_sweep(sparsity=[0.5, 0.9, 0.7])
    with FileLock(again.folder / ".scratch/sweep/lock"):
        status, _, err = again.sweep()
    assert status == 1 and "another sweep" in err and again.times() == {}


def test_mistakes_end_in_one_line(again):
    for arguments, message in ((["-j", "0"], "--jobs 0"), (["evaluate@taylor-0.6"], "is no stage")):
        status, _, err = again.sweep(*arguments)
        assert status == 1 and message in err and len(err.splitlines()) == 1
    (again.folder / "dvc.yaml").write_text("stages: 3")
    status, _, err = again.sweep()
    assert status == 1 and "dvc dag" in err and "Traceback" not in err


def test_memory_bounds_the_processes(again, monkeypatch, tmp_path):
    """With no memory for a second process, one at a time is run."""
    monkeypatch.chdir(again.folder)
    monkeypatch.setenv("LOG", str(again.log))
    again.set_sweep(sparsity=[0.6])
    tasks = [Task(f"prune@{method}-0.6", frozenset(), f"{method}-0.6") for method in ("magnitude", "taylor")]
    seen: list[int] = []

    def show(now: Any) -> None:
        seen.append(sum(task.state in ("queued", "running") for task in now))

    for need, most in ((2**60, 1), (0, 2)):
        for file in Path("outputs/prune").glob("*-0.6"):
            file.unlink()
        again.forget()
        seen.clear()
        for task in tasks:
            task.state = "waiting"
        Pool(tasks, Processes(2, lambda n=need: n, ["--force"]), logs=tmp_path, show=show).run()
        assert max(seen) == most
        assert {task.state for task in tasks} == {"done"} and overlap(again.times()) <= most


def test_ordered_puts_needs_first():
    needs = {"c": frozenset({"b", "a"}), "a": frozenset(), "b": frozenset({"a"}), "d": frozenset()}
    assert ordered(needs) == ["a", "b", "c", "d"]


def test_the_board_has_a_row_a_level():
    tasks = [
        Task("train", frozenset(), "", "done", seconds=65),
        Task("finetune_dense", frozenset(), "", "running", started=10),
        Task("finetune@l1-0.5", frozenset(), "l1-0.5", "failed"),
        Task("evaluate@l1-0.5", frozenset(), "l1-0.5", "skipped"),
    ]
    console = Console(width=60, record=True, file=Path(os.devnull).open("w"))  # noqa: SIM115
    console.print(table(tasks, 22.0))
    lines = [line.split() for line in console.export_text().splitlines()]
    assert lines == [
        ["train", "1:05"],
        ["level", "finetune", "evaluate"],
        ["dense", "0:12"],
        ["l1-0.5", "failed", "–"],
    ]
