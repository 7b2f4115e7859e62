"""The compare command on a finished sweep with made-up figures."""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stages.compare import main
from stages.evaluation.samples import spread

Run = Callable[[], str]


def digests(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def test_levels_stand_dense_first_then_baseline_then_as_in_params(project: Any, compare: Run) -> None:
    compare()
    keys = [row["key"] for row in project.rows("levels.csv")]
    levels = [f"{method}-{share}" for method in ("magnitude", "taylor", "random") for share in (0.5, 0.7, 0.9)]
    assert keys == ["dense", "baseline", *levels]
    dense, _, level, *_ = project.rows("levels.csv")
    assert (dense["method"], dense["sparsity"], dense["bleu"], dense["bleu_delta"]) == ("dense", "0.0", "48.25", "")
    # 48.25 - 9 * 0.5**4
    assert (level["method"], level["sparsity"], level["bleu"]) == ("magnitude", "0.5", "47.6875")
    assert (level["bleu_delta"], level["bleu_p"], level["validation_loss_pruned"]) == ("-0.5625", "0.5", "3.5")
    assert {"size_bytes", "compressed_bytes", "nonzero_parameters", "slot_error_rate_high"} <= set(level)


def test_speed_and_exports_are_shown_once_they_are_measured(
    project: Any, compare: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    compare()
    before = digests(project.folder / "outputs/compare")
    main(["--show"])
    assert "faster" not in capsys.readouterr().out
    figures = json.loads(project.read("metrics/evaluate/taylor-0.7.json")) | {"bleu": 47.5, "bleu_delta": -0.75}
    figures |= {"size_bytes": 7_300_000, "compressed_bytes": 6_400_000}
    project.write_json("metrics/export.json", {f"onnx/{name}": value for name, value in figures.items()})
    (project.folder / "outputs/benchmark").mkdir()
    rows = "key,speedup\ndense,1.0\ntaylor-0.7,1.256\nonnx,7.5\n"
    (project.folder / "outputs/benchmark/speed.csv").write_text(rows)
    main(["--show"])
    shown = capsys.readouterr().out
    assert re.search(r"taylor-0.7 .* 1\.26×", shown) and re.search(r"onnx +47\.5 .* -0\.8 .* 6\.40 +7\.50×", shown)
    # The stage itself comes before both, and has nothing of timings.
    assert "faster" not in compare()
    assert digests(project.folder / "outputs/compare") == before


def test_running_again_gives_the_same_bytes(
    project: Any, compare: Run, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare()
    before = digests(project.folder / "outputs/compare")
    # A person's own matplotlib settings and window have no say.
    (project.folder / "matplotlibrc").write_text("font.size: 30\nsavefig.dpi: 50\n")
    monkeypatch.setenv("COLUMNS", "40")
    compare()
    assert digests(project.folder / "outputs/compare") == before


def test_orphans_of_an_earlier_sweep_are_left_out(project: Any, compare: Run) -> None:
    project.entry("l1-0.99", "l1", 0.99)
    project.set(["sweep", "sparsity"], [0.5])
    models = project.folder / "outputs/models/finetuned"
    for key in ("dense", "taylor-0.5", "l1-0.99"):
        (models / key).mkdir(parents=True)
    shown = compare()
    text = "".join(project.read(f"compare/{name}") for name in ("levels.csv", "layers.csv", "losses.csv", "levels.md"))
    assert "l1-0.99" not in text + shown
    assert "taylor-0.9" not in text + shown
    # The stage depends on the folders they lay in; another clone never had them.
    assert "not in the sweep" in shown
    left = {path.name.partition(".json")[0] for path in (project.folder / "outputs/metrics/evaluate").iterdir()}
    assert left == {"dense", "baseline", *(f"{method}-0.5" for method in ("magnitude", "taylor", "random"))}
    assert not list((project.folder / "outputs").rglob("l1-0.99*"))
    # One made by hand is not in DVC's cache: its model is moved.
    assert {path.name for path in models.iterdir()} == {"dense", "taylor-0.5"}
    assert (project.folder / ".scratch/left/l1-0.99").is_dir()
    assert "not in the sweep" not in compare()


def test_the_sparsest_level_within_the_target_on_validation_is_chosen(project: Any, compare: Run) -> None:
    # Dense has 48.75 on validation: 47.75 just holds, 47.749 does not.
    project.entry("taylor-0.9", "taylor", 0.9, validation_bleu=47.75, bleu=30.0)
    project.entry("magnitude-0.9", "magnitude", 0.9, validation_bleu=47.749, bleu=48.0)
    shown = compare()
    chosen = json.loads(project.read("compare/chosen.json"))
    assert chosen["key"] == "taylor-0.9"
    assert "47.75 against 48.75" in chosen["why"]
    assert "30.00" in chosen["why"]
    assert re.search(r"▶ taylor-0.9 +30\.0", shown)
    metrics = json.loads(project.read("metrics/compare.json"))
    assert metrics["chosen_sparsity"] == 0.9
    assert metrics["chosen_nonzero_parameters"] == 790_000
    assert (metrics["chosen_bleu"], metrics["dense_bleu"]) == (30.0, 48.25)
    assert all(isinstance(value, int | float) for value in metrics.values())
    assert "| **taylor-0.9** |" in project.read("compare/levels.md")


def test_a_tie_goes_to_the_better_on_validation_not_on_test(project: Any, compare: Run) -> None:
    project.entry("magnitude-0.9", "magnitude", 0.9, validation_bleu=48.5, bleu=40.0)
    project.entry("taylor-0.9", "taylor", 0.9, validation_bleu=48.4, bleu=48.0)
    compare()
    assert json.loads(project.read("compare/chosen.json"))["key"] == "magnitude-0.9"


def test_the_target_may_be_another_metric(project: Any, compare: Run) -> None:
    project.set(["target", "metric"], "chrf")
    project.set(["target", "max_drop"], 3.0)
    shown = compare()
    # Of chrF taylor loses 7 * 0.7**4 = 1.7 at 70 %, 4.6 at 90 %; magnitude 2.2 at 70 %.
    assert json.loads(project.read("compare/chosen.json"))["key"] == "taylor-0.7"
    assert "| Δ chrF | p |" in project.read("compare/levels.md")
    assert "within 3 chrF" in shown


def test_no_level_within_the_target_is_said_plainly(project: Any, compare: Run) -> None:
    project.set(["target", "max_drop"], 0.1)
    shown = compare()
    chosen = json.loads(project.read("compare/chosen.json"))
    assert chosen["key"] is None
    assert "no level is within 0.1 BLEU of dense" in chosen["why"]
    assert "taylor-0.5" in chosen["why"]
    assert "No level chosen" in shown
    assert "▶" not in shown
    assert not [name for name in json.loads(project.read("metrics/compare.json")) if name.startswith("chosen")]


def test_page_shows_signatures_copy_floor_and_human_line(project: Any, compare: Run) -> None:
    shown = compare()
    page = project.read("compare/levels.md")
    assert "- BLEU: `nrefs:var|case:mixed`" in page
    assert "| copy floor |  | 33.0 | 55.0 |" in page
    assert "| human line |  | 52.0 | 66.0 |" in page
    assert "99 inputs have several" in page
    assert "copy floor" in shown
    assert "outputs/compare/quality.png" in shown
    assert "make ui" in shown
    assert "…" not in shown, "a figure was cut off"


def test_without_placeholders_or_several_references(project: Any, compare: Run) -> None:
    for file in (project.folder / "outputs/metrics/evaluate").iterdir():
        figures = json.loads(file.read_text())
        kept = {name: value for name, value in figures.items() if not name.startswith("slot")}
        file.write_text(json.dumps(kept))
    project.write_json(
        "metrics/references.json", {"copy_bleu": 3.0, "human_inputs": 0, "test_inputs": 3, "test_references": 3}
    )
    shown = compare()
    assert "slot" not in shown + project.read("compare/levels.md")
    assert "human line |" not in project.read("compare/levels.md")


def test_a_control_below_the_copy_floor_is_pointed_out(project: Any, compare: Run) -> None:
    assert "not learnt" not in compare() + project.read("compare/levels.md")
    references = json.loads(project.read("metrics/references.json"))
    project.write_json("metrics/references.json", references | {"copy_bleu": 48.3})
    shown = " ".join(compare().split())
    sentence = "Dense (48.2 BLEU) is below the copy floor (48.3)"
    assert sentence in shown
    assert sentence in project.read("compare/levels.md")


def test_long_tables_for_plots(project: Any, compare: Run) -> None:
    compare()
    curve = [(row["method"], row["sparsity"], row["bleu"]) for row in project.rows("quality.csv")]
    assert curve[:2] == [("magnitude", "0.0", "48.25"), ("magnitude", "0.5", "47.6875")]
    assert curve[4] == ("taylor", "0.0", "48.25")
    assert len(curve) == 3 * 4
    layers = project.rows("layers.csv")
    assert list(layers[0]) == ["layer", "key", "sparsity"]
    assert len(layers) == 9 * 8
    losses = project.rows("losses.csv")
    assert losses[:2] == [
        {"key": "dense", "step": "1", "loss": "3.5", "validation_loss": ""},
        {"key": "dense", "step": "2", "loss": "", "validation_loss": "2.5"},
    ]
    assert len(losses) == 10 * 3


@pytest.mark.parametrize("name", ["quality.png", "layers.png"])
def test_pictures_are_wide_enough_to_read_and_carry_no_date(project: Any, compare: Run, name: str) -> None:
    compare()
    data = (project.folder / "outputs/compare" / name).read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    assert width >= 1000
    assert height >= 400
    assert b"tEXt" not in data
    assert b"tIME" not in data


def test_one_level_of_sparsity_zero(project: Any, compare: Run) -> None:
    project.set(["sweep", "method"], ["magnitude"])
    project.set(["sweep", "sparsity"], [0])
    project.entry("magnitude-0", "magnitude", 0.0)
    compare()
    assert json.loads(project.read("compare/chosen.json"))["key"] == "magnitude-0"


def test_all_methods_at_many_sparsities(project: Any, compare: Run) -> None:
    methods = ["magnitude", "taylor", "random", "gradient", "l1", "l2"]
    shares = [0.1, 0.5, 0.8, 0.9, 0.95, 0.96, 0.97, 0.98, 0.99]
    project.set(["sweep", "method"], methods)
    project.set(["sweep", "sparsity"], shares)
    for method in methods:
        for share in shares:
            project.entry(f"{method}-{share}", method, share)
    compare()
    assert len(project.rows("levels.csv")) == 2 + 6 * 9


def test_samples_are_of_the_chosen_method_and_spread_over_the_scores(project: Any, compare: Run) -> None:
    compare()
    page = project.read("compare/samples.md")
    assert "| taylor-0.9 | taylor-0.9 says a \\| b |" in page
    assert "magnitude" not in page
    assert "never shown" not in page
    assert "*(empty)*" in page
    assert "reference (1 of 2) | second one" in page
    # Dense has `bye` word for word, shares one word with a reference of `act`, and has nothing for `hi`.
    order = [page.index(f". {title} (") for title in ("bye", "act ( a )", "hi")]
    assert order == sorted(order)


@pytest.mark.parametrize(
    ("scores", "count", "expected"),
    [
        ([], 3, []),
        ([5.0], 3, [0]),
        ([1.0, 3.0, 2.0], 3, [1, 2, 0]),
        ([7.0, 7.0, 7.0, 7.0], 2, [1, 3]),
        ([9.0, 8.0, 7.0, 6.0, 5.0, 4.0], 3, [1, 3, 5]),
    ],
)
def test_spread(scores: list[float], count: int, expected: list[int]) -> None:
    assert spread(scores, count) == expected


@pytest.mark.parametrize(
    "missing",
    [
        "metrics/evaluate/taylor-0.7.json",
        "metrics/references.json",
        "metrics/finetune/random-0.5.layers.csv",
        "metrics/finetune/dense.curve.csv",
        "predictions/taylor-0.7.parquet",
    ],
)
def test_a_missing_file_is_named(project: Any, missing: str, capsys: pytest.CaptureFixture[str]) -> None:
    (project.folder / "outputs" / missing).unlink()
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 1
    error = capsys.readouterr().err
    assert missing in error
    assert "dvc repro" in error


def test_figures_of_an_older_layout_are_refused(project: Any, capsys: pytest.CaptureFixture[str]) -> None:
    project.write_json("metrics/evaluate/dense.json", {"sparsity": 0.0, "nonzero_parameters": 1})
    with pytest.raises(SystemExit):
        main([])
    assert "evaluate/dense.json lacks compressed_bytes" in capsys.readouterr().err


def test_predictions_of_another_split_are_refused(project: Any, capsys: pytest.CaptureFixture[str]) -> None:
    project.predictions("taylor-0.9", ["a", "b", "c"], sources=("x", "y", "z"))
    with pytest.raises(SystemExit):
        main([])
    assert "taylor-0.9.parquet was made from another test split" in capsys.readouterr().err
