"""Two revisions made by hand: the real dvc.yaml and params, figures and locks of a few lines."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from shared import ROOT, merge

from stages import diff
from stages.files import md5

GIT = ("git", "-c", "user.name=t", "-c", "user.email=t@example.com")
RAW = "data/raw/multiwoz.csv.gz"


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def write(path: str, value: Any) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(f"{json.dumps(value)}\n")


def scores(bleu: float, *, nonzero: int = 1_600_000) -> dict[str, float]:
    figures = {"bleu": bleu, "bleu_low": bleu - 1, "bleu_high": bleu + 1}
    return figures | {"slot_error_rate": 0.25, "nonzero_parameters": nonzero, "compressed_bytes": 5_950_000}


def entry(outs: dict[str, str], deps: dict[str, str]) -> dict[str, Any]:
    return {
        "cmd": "python",
        "deps": [{"path": path, "hash": "md5", "md5": md5.ljust(32, "0")} for path, md5 in deps.items()],
        "outs": [{"path": path, "hash": "md5", "md5": md5.ljust(32, "0"), "size": 1} for path, md5 in outs.items()],
    }


def lock(**stages: dict[str, Any]) -> None:
    write("dvc.lock", {"schema": "2.0", "stages": {name.replace("_at_", "@"): value for name, value in stages.items()}})


def revise(levels: dict[str, dict[str, float]], chosen: str | None, **params: Any) -> None:
    shutil.rmtree("outputs", ignore_errors=True)
    for key, figures in levels.items():
        write(f"outputs/metrics/evaluate/{key}.json", figures)
    write("outputs/compare/chosen.json", {"key": chosen})
    yaml = YAML()
    yaml.dump(merge(yaml.load(ROOT / "params.yaml"), params), Path("params.yaml"))


def commit(tag: str) -> None:
    run("git", "add", "-A")
    run(*GIT, "commit", "-qm", tag)
    run("git", "tag", tag)


@pytest.fixture(scope="module")
def revised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with the tags `before` and `now`, and a workspace that is neither."""
    folder = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run("git", "init", "-q")
        run(sys.executable, "-m", "dvc", "init", "-q")
        shutil.copy(ROOT / "dvc.yaml", folder)
        levels = {
            "dense": scores(50.0),
            "magnitude-0.5": scores(49.0, nonzero=1_146_064),
            "magnitude-0.7": scores(48.0),
        }
        sweep = {"method": ["magnitude"], "sparsity": [0.5, 0.7]}
        revise(levels, "magnitude-0.7", sweep=sweep, train={"epochs": 4})
        write("outputs/metrics/clean.json", {"rows_read": 110, "rows_kept": 100, "rows_rejected": 10, "lost_html": 1})
        split, model = "outputs/data/test.parquet", "outputs/models/finetuned/magnitude-0.5"
        write("outputs/code/clean.json", {"stages/files.py": "f", "stages/old.py": "o1"})
        code = {"stages/clean.py": "c1", "outputs/code/clean.json": md5(folder / "outputs/code/clean.json")}
        lock(
            clean=entry({split: "s111111"}, {RAW: "r111111", **code}),
            finetune_at_dense=entry({"outputs/models/finetuned/dense": "d1"}, {}),
            finetune_at_x=entry({model: "m1"}, {}),
        )
        commit("before")

        levels = {
            "dense": scores(50.0),
            "magnitude-0.5": scores(46.5, nonzero=1_246_064),
            "magnitude-0.9": scores(31.0),
        }
        sweep = {"method": ["magnitude"], "sparsity": [0.5, 0.9]}
        revise(levels, "magnitude-0.5", sweep=sweep, train={"epochs": 6})
        write("outputs/metrics/clean.json", {"rows_read": 1300, "rows_kept": 1290, "rows_rejected": 10, "lost_html": 3})
        write("outputs/code/clean.json", {"stages/files.py": "f", "stages/new.py": "n1"})
        code = {"stages/clean.py": "c2", "outputs/code/clean.json": md5(folder / "outputs/code/clean.json")}
        lock(
            clean=entry({split: "s222222"}, {RAW: "r222222", **code}),
            finetune_at_dense=entry({"outputs/models/finetuned/dense": "d1"}, {}),
            finetune_at_x=entry({model: "m2"}, {}),
        )
        commit("now")
        write("outputs/metrics/evaluate/dense.json", scores(50.75))
    return folder


@pytest.fixture
def report(revised: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """`report(*arguments)`: what the command prints."""
    monkeypatch.chdir(revised)

    def make(*arguments: str) -> str:
        diff.main(list(arguments))
        return capsys.readouterr().out

    return make


def rows(markdown: str) -> dict[str, list[str]]:
    """Cells of all tables by their first one."""
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in markdown.splitlines() if line[:1] == "|"]
    return {row[0]: row[1:] for row in cells if row[0] not in ("", ":--")}


def test_between_two_commits(report):
    said = report("before", "now", "--markdown")
    assert said.startswith("## From before (")
    table = rows(said)
    assert table[RAW] == ["`r111111`", "`r222222`", ""]
    assert table["outputs/data/test.parquet"] == ["`s111111`", "`s222222`", ""]
    assert table["rows_read"] == ["110", "1300", "+1,190"] and table["rows_rejected"] == ["10", "10", "+0"]
    assert table["lost_html"] == ["1", "3", "+2"]
    assert table["train.epochs"] == ["4", "6"] and table["sweep.sparsity"] == ["[0.5, 0.7]", "[0.5, 0.9]"]
    assert set(table) - {"level", RAW} == {
        "outputs/data/test.parquet", "rows_read", "rows_kept", "rows_rejected", "lost_html", "train.epochs",
        "sweep.sparsity", "dense", "magnitude-0.5", "magnitude-0.7", "magnitude-0.9",
    }  # fmt: skip
    assert "`stages/clean.py`, `stages/new.py` (new), `stages/old.py` (gone)." in said
    assert "Chosen: **magnitude-0.7 → magnitude-0.5**." in said
    assert table["level"] == ["BLEU", "slot errors", "weights ≠ 0", "MB", "model"]
    assert table["dense"] == ["50.0", "0.250", "1.60", "5.95", "same bits"]
    # 49.0 is above 46.5 + 1.
    assert table["magnitude-0.5"] == ["**46.5 (−2.5)**", "0.250", "1.25 (+0.10)", "5.95", "other"]
    assert table["magnitude-0.7"] == ["48.0", "0.250", "1.60", "5.95", "**gone**"]
    assert table["magnitude-0.9"] == ["31.0", "0.250", "1.60", "5.95", "**new**"]


def test_to_the_workspace_on_a_terminal(report):
    said = report("now")
    assert "to the workspace" in said and "1290 rows kept, 10 rejected" in said
    assert "Params\nUnchanged." in said and "Chosen: magnitude-0.5, as before." in said
    assert next(line.split() for line in said.splitlines() if "dense" in line)[:3] == ["dense", "50.8", "(+0.8)"]
    assert "**" not in said and "`" not in said


def test_a_commit_with_itself(report):
    table = rows(said := report("now", "now", "--markdown"))
    assert said.count("Unchanged") == 3
    assert {row[-1] for key, row in table.items() if key != "level"} <= {"same bits"} and "(" not in str(table)


def test_what_is_no_commit(report, capsys):
    with pytest.raises(SystemExit) as ended:
        report("v9")
    assert ended.value.code == 1 and capsys.readouterr().err == "error: v9 is no commit of this repository\n"
