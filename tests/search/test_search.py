"""The search command on a small DVC project, with DVC and git as they are."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from stages import experiments, params
from stages.experiments import Result
from stages.layout import Level
from stages.params import Search
from stages.search import bisect, bounds, grid

ROOT = Path(__file__).parents[2]


def test_finds_the_sparsest_level_that_holds(searched: tuple[Any, str]) -> None:
    project, out = searched
    # 20 * s**4 points are lost: 0.51 at 0.4, 1.25 at 0.5.
    assert "▶ magnitude-0.4 is the sparsest level that holds" in out
    assert "add 0.4 to sweep.sparsity in params.yaml" in out
    assert "dvc exp apply search-magnitude-0.4" in out
    # 0.5 was known from the sweep, so that 0.6 and 0.8 need not be tried.
    assert project.tries[5:] == ["magnitude-0.2", "magnitude-0.4"]
    assert "workspace" in out


def test_every_try_is_an_experiment_that_dvc_shows(searched: tuple[Any, str]) -> None:
    project, _ = searched
    assert project.experiments() == ["search-magnitude-0.2", "search-magnitude-0.4"]
    assert project.metric("search-magnitude-0.4", "magnitude-0.4") == pytest.approx(50 - 20 * 0.4**4)


def test_stages_are_told_where_the_projects_mlflow_is(searched: tuple[Any, str]) -> None:
    project, _ = searched
    _, folder, uri = project.log.read_text().splitlines()[-1].split()
    assert Path(folder) != project.folder
    assert uri == f"sqlite:///{project.folder}/mlflow.db"


def test_workspace_is_left_as_it_was(searched: tuple[Any, str]) -> None:
    project, _ = searched
    assert project.run("git", "status", "--short") == ""


def test_what_is_known_is_not_made_again(again: Any) -> None:
    status, out, _ = again.search()
    assert status == 0
    assert "▶ magnitude-0.4" in out
    assert again.tries == []
    assert again.experiments() == ["search-magnitude-0.2", "search-magnitude-0.4"]


def test_found_level_joins_the_sweep_without_being_made_again(again: Any) -> None:
    again.set("sweep", "sparsity", [0.4, 0.5, 0.9])
    again.dvc("repro")
    assert again.tries == ["taylor-0.4"]
    status, out, _ = again.search()
    assert status == 0
    assert "▶ magnitude-0.4" in out
    assert "To keep it" not in out


def test_other_params_are_another_level(again: Any) -> None:
    again.set("evaluate", "num_beams", 4)
    status, out, err = again.search()
    assert status == 0, out + err
    # Nothing of the workspace is up to date either, so the search starts from the bounds in params.
    assert again.tries == ["dense", "magnitude-0.4", "magnitude-0.6"]
    assert {"search-magnitude-0.4", "search-magnitude-0.4-run2"} <= set(again.experiments())
    assert "num_beams: 4" in again.params


def test_other_code_or_data_is_another_level_but_docs_and_target_are_not(
    again: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(again.folder)
    level, files = Level("magnitude", 0.4), ["data/raw.txt", "bert-base-uncased"]
    again.write("docs/page.md", "text")
    again.set("target", "max_drop", 2.0)
    found = experiments.earlier(level, files)
    assert found is not None
    assert found.experiment == "search-magnitude-0.4"
    assert found.figures["validation_bleu"] == pytest.approx(50 - 20 * 0.4**4)
    assert experiments.earlier(Level("magnitude", 0.04), files) is None
    elsewhere = again.folder.parent / "elsewhere.txt"
    elsewhere.touch()
    assert experiments.earlier(level, [str(elsewhere)]) is None
    for name in ("code/evaluate.py", "data/raw.txt"):
        before = (again.folder / name).read_text()
        again.write(name, before + "#")
        assert experiments.earlier(level, files) is None
        again.write(name, before)
    assert experiments.earlier(level, files) is not None


def test_an_exported_level_of_the_sweep_does_not_stop_the_search(again: Any, tmp_path: Path) -> None:
    again.set("export", "level", "magnitude-0.5")
    again.set("search", "resolution", 0.3)
    for _ in range(2):
        status, out, err = again.search("--method", "taylor")
        assert status == 0, out + err
        assert again.tries == ["taylor-0.3"]  # export is no part of a level, so it is known the second time
    reference = again.run("git", "for-each-ref", "--format=%(refname)", "refs/exps/**/search-taylor-0.3").strip()
    (tmp_path / "params.yaml").write_text(again.run("git", "show", f"{reference}:params.yaml"))
    found = params.load("export", "sweep", path=tmp_path / "params.yaml")
    assert (found.export.level, found.sweep.sparsity) == ("chosen", [0.3])
    assert again.section("export")["level"] == "magnitude-0.5"


def test_another_method_by_option(again: Any) -> None:
    again.set("target", "metric", "chrf")
    again.set("target", "max_drop", 0.55)
    again.set("search", "resolution", 0.3)
    status, out, _ = again.search("--method", "taylor")
    assert status == 0
    assert "chrF" in out
    # chrF falls by the sparsity itself: 0.5 (of the sweep) holds, 0.6 does not.
    assert again.tries == ["taylor-0.6"]
    assert "▶ taylor-0.5 is the sparsest level that holds" in out


@pytest.mark.parametrize("moment", ["stage", "start"])
def test_interrupt_keeps_uncommitted_work(again: Any, tmp_path: Path, moment: str) -> None:
    again.set("evaluate", "num_beams", 3)
    again.write("code/train.py", (again.folder / "code/train.py").read_text() + "# edited\n")
    before = again.params
    marker = tmp_path / "waiting"
    process = again.start(WAIT=str(marker))
    if moment == "stage":
        deadline = time.monotonic() + 300
        while not marker.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
    else:
        assert process.stdout is not None
        while "making it" not in process.stdout.readline():
            pass
        time.sleep(0.6)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "interrupted" in err
    assert again.params == before
    assert (again.folder / "code/train.py").read_text().endswith("# edited\n")
    assert again.run("git", "symbolic-ref", "HEAD").strip() == "refs/heads/main"
    assert again.run("git", "stash", "list") == ""
    assert again.experiments() == ["search-magnitude-0.2", "search-magnitude-0.4"]
    assert not list((again.folder / ".dvc/tmp/exps/standalone").glob("tmp*"))


def test_a_failing_stage_ends_the_search(again: Any) -> None:
    status, _, err = again.search("--method", "taylor", FAIL="taylor-0.2")
    assert status == 1
    assert "out of memory" in err
    assert err.strip().endswith("error: taylor-0.2 could not be made: DVC's message is above; what it finished is kept")
    assert "Traceback" not in err
    assert again.experiments() == ["search-magnitude-0.2", "search-magnitude-0.4"]


def test_data_that_git_does_not_carry(project: Any) -> None:
    project.write("own/raw.txt", "mine")
    project.write(".gitignore", "/own/\n")
    project.commit()
    project.set("data", "path", "own/raw.txt")
    project.set("search", "high", 0.3)
    status, out, err = project.search()
    assert status == 0, out + err
    assert project.tries == ["dense", "magnitude-0.2"]
    assert "Nothing sparser was tried: raise search.high" in out
    project.write("own/raw.txt", "mine, changed")
    status, out, err = project.search()
    assert status == 0, out + err
    assert project.tries[2:] == ["dense", "magnitude-0.2"]


def test_data_and_checkpoints_under_dvc(project: Any) -> None:
    project.write("own/raw.txt", "mine")
    project.write("own/bert/config.json", "{}")
    project.dvc("add", "-q", "own/raw.txt", "own/bert")
    project.set("data", "path", "own/raw.txt")
    project.set("model", "tokenizer", {**project.section("model")["tokenizer"], "checkpoint": "own/bert"})
    project.set("search", "high", 0.3)
    project.write(
        "code/train.py", "assert open('own/bert/config.json').read() == '{}'\n" + project.read("code/train.py")
    )
    project.commit()
    status, out, err = project.search()
    assert status == 0, out + err
    assert project.tries == ["dense", "magnitude-0.2"]


def test_what_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = [
        "data/raw/README.md",
        "data/raw/mine.csv",
        "data/all/a.csv",
        "data/all/deep/b.csv",
        "big.csv",
        "big.csv.dvc",
    ]
    names += ["bert/config.json", "bert.dvc", "mixed/tracked.csv", "mixed/new/a.csv", "ünusual/ä b.csv"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    subprocess.run(["git", "init", "-q"], check=True)
    subprocess.run(["git", "add", "data/raw/README.md", "big.csv.dvc", "bert.dvc", "mixed/tracked.csv"], check=True)
    experiments._versioned.cache_clear()
    expected = {
        "data/raw/README.md": [],
        "data/raw/mine.csv": ["data/raw/mine.csv"],
        "data/raw": ["data/raw/mine.csv"],
        "data/all": ["data/all"],
        "data/all/deep/b.csv": ["data/all"],
        "big.csv": [],
        "bert": ["bert"],
        "mixed": ["mixed/new"],
        "ünusual/ä b.csv": ["ünusual"],
        "bert-base-uncased": [],
        str(tmp_path / "data/all"): [],
    }
    assert {name: experiments._unversioned([name]) for name in expected} == expected
    assert experiments._unversioned(["data/all", "data/all/a.csv"]) == ["data/all"]


def test_no_level_holds(again: Any) -> None:
    again.set("target", "max_drop", 0.0)
    status, out, _ = again.search()
    assert status == 0
    assert "No level of magnitude between 0 and 0.99 is within 0 BLEU of dense" in out
    assert "▶" not in out
    assert again.tries == []


def test_bad_method_and_no_commit(project: Any) -> None:
    status, _, err = project.search("--method", "wand")
    assert (status, err) == (1, "error: wand is no pruning method: " + err.split("pruning method: ")[1])
    project.run("git", "update-ref", "-d", "HEAD")
    status, _, err = project.search()
    assert status == 1
    assert "commit it first" in err
    assert "Traceback" not in err


def test_graph_lets_dvc_keep_runs_in_its_cache() -> None:
    """DVC keeps no run of a stage with a plain out that is `cache: false`: a found level would be made again."""
    graph = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())
    uncached = {
        name: [
            out
            for out in stage.get("outs", [])
            if isinstance(out, dict) and not next(iter(out.values())).get("cache", True)
        ]
        for name, stage in graph["stages"].items()
        # of all levels together; what they leave is small, and in git
        if name not in ("code", "compare", "benchmark")
    }
    assert {name: outs for name, outs in uncached.items() if outs} == {}


def result(sparsity: float) -> Result:
    return Result(Level("l1", sparsity), {"bleu": -sparsity}, {}, None)


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        ([], (0.0, 0.95)),
        ([0.5, 0.7, 0.9], (0.5, 0.7)),
        ([0.5], (0.5, 0.95)),
        ([0.9], (0.0, 0.9)),
        ([0.97], (0.0, 0.95)),
    ],
)
def test_bounds(known: list[float], expected: tuple[float, float]) -> None:
    search = Search(method="l1", low=0.0, high=0.95, resolution=0.02)
    assert bounds(search, [result(s) for s in known], lambda r: r.level.sparsity < 0.6) == expected


@pytest.mark.parametrize(
    ("resolution", "low", "high", "expected"),
    [
        (0.1, 0.0, 0.4, [0.1, 0.2, 0.3]),
        (0.3, 0.0, 0.99, [0.3, 0.6, 0.9]),
        (0.02, 0.9, 0.96, [0.92, 0.94]),
        (0.015, 0.95, 0.99, [0.96, 0.975]),
        (0.5, 0.5, 0.9, []),
        (0.00001, 0.5, 0.5003, [0.5001, 0.5002]),
    ],
)
def test_grid(resolution: float, low: float, high: float, expected: list[float]) -> None:
    assert grid(resolution, low, high) == expected


@pytest.mark.parametrize("threshold", range(17))
def test_bisect_finds_any_threshold_in_few_tries(threshold: int) -> None:
    tried: list[float] = []

    def attempt(candidate: float) -> bool:
        tried.append(candidate)
        return candidate < threshold

    bisect(range(16), attempt)
    assert len(tried) == len(set(tried)) <= 5
    held = max((candidate for candidate in tried if candidate < threshold), default=None)
    assert held == (threshold - 1 if threshold else None)
    assert threshold == 16 or threshold in tried
