"""What the figures of overhead are taken of: real commands, on made-up rows and placeholders."""

from __future__ import annotations

import csv
import json
import subprocess
import sys

import pytest
from shared import ROOT

from benchmarks.overhead import cleaning, graph, processes, sweep
from stages.errors import UserError


def test_cost_counts_processor_time_memory_and_children_and_says_what_failed(tmp_path):
    burn = "import os, time\nwhile time.process_time() < 0.4: pass\n"
    code = f"import subprocess, sys; block = b'x' * 300_000_000; subprocess.run([sys.executable, '-c', {burn!r}])"
    taken = processes.cost([sys.executable, "-c", code], tmp_path)
    assert taken.wall_s >= 0.4 <= taken.cpu_s and taken.peak_bytes > 300_000_000
    slept = processes.cost([sys.executable, "-c", "import time; time.sleep(1)"], tmp_path)
    assert slept.wall_s >= 1 > slept.cpu_s
    with pytest.raises(UserError, match=r"failed: no\. 7$"):
        processes.cost([sys.executable, "-c", "raise SystemExit('no. 7')"], tmp_path)


def test_rows_are_as_many_as_asked_for_the_same_each_time_and_cleaned(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(cleaning, "CHUNK", 70)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        cleaning.write_rows(tmp_path / name / "rows.csv", 200)
    assert (tmp_path / "a/rows.csv").read_bytes() == (tmp_path / "b/rows.csv").read_bytes()
    rows = list(csv.DictReader((tmp_path / "a/rows.csv").open()))
    assert len(rows) == 200 and 20 < len({row["act"] for row in rows}) <= 40
    assert all(len(row["utterance"].split()) == cleaning.WORDS for row in rows)
    cleaning.write_params(tmp_path / "a", 0.9)
    processes.cost([sys.executable, "-m", "stages.clean"], tmp_path / "a")
    counted = json.loads((tmp_path / "a/outputs/metrics/clean.json").read_text())
    assert counted["rows_read"] == 200 and counted["rows_kept"] > 150


def test_the_curve_is_drawn_the_same_each_time(tmp_path):
    for name in ("a.png", "b.png"):
        cleaning.draw([(1_000_000, 300_000_000), (10_000_000, 310_000_000)], tmp_path / "new" / name)
    first, second = (path.read_bytes() for path in sorted((tmp_path / "new").iterdir()))
    assert first == second and first.startswith(b"\x89PNG")


def test_a_graph_of_placeholders_is_up_to_date(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert graph.make(tmp_path, 3) == 4
    processes.cost([sys.executable, "-P", "-m", "stages.run_dvc", "commit", "--force", "--quiet"], tmp_path)
    said = subprocess.run(
        [sys.executable, "-m", "dvc", "status"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert said.stdout.startswith("Data and pipelines are up to date")
    assert (tmp_path / "dvc.lock").read_text().count("finetune@") == 4


def test_side_by_side_takes_two_levels_and_two_cores(monkeypatch):
    monkeypatch.chdir(ROOT)
    for levels, jobs, said in ((["magnitude-0.5"], 2, "1 levels"), ([], 10**4, "cores"), (["no"], 2, "no level")):
        with pytest.raises(UserError, match=said):
            sweep.measure_cores(levels, jobs)
