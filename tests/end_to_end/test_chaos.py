"""A few of the faults of `make chaos`, injected into the finished project; all of them take half an hour."""

from __future__ import annotations

import csv
import os
import subprocess
import sys

from shared import ROOT

FAULTS = {
    "disk full: Parquet of cleaned data": 1,
    "read-only outputs": 2,
    "damaged masks": 3,
    "SIGKILL while finished stages are made anew": 3,
}


def test_a_few_faults_cost_nothing(finished, tmp_path):
    rows = tmp_path / "rows.csv"
    only = [option for name in FAULTS for option in ("--only", name)]
    ended = subprocess.run(
        [sys.executable, "-m", "chaos", "--finished", str(finished.root), "--csv", str(rows), *only],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": "tests"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = {row["fault"]: row for row in csv.DictReader(rows.open())}
    tried = {name: int(row["times"]) for name, row in found.items()}
    # Where mounting is not allowed, the first two are left out.
    assert tried.keys() >= set(list(FAULTS)[2:]) and tried.items() <= FAULTS.items()
    assert all(row["lost"] == "0" for row in found.values())
