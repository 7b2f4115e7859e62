"""`python -m stages.evaluate` and `stages.reference` on a tiny generator, in a folder of their own."""

import json
import math
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from ruamel.yaml import YAML
from sacrebleu.metrics import BLEU
from test_inputs_reference_lines import write

from stages import evaluate, layout, reference
from stages.models import checkpoint
from stages.models.anatomy import describe
from stages.runtimes import folder as runtimes

pytest_plugins = ["evaluation_fixtures"]

ROWS = {
    "train": [
        ("inform ( name )", "It is #A-NAME# ."),
        ("bye", "Goodbye now !"),
        ("request ( food )", "What food ?"),
    ],
    "validation": [("inform ( area )", "It is in the #A-AREA# .")],
    "test": [
        ("inform ( area , name )", "#A-NAME# is in the #A-AREA# ."),
        ("bye bye", "Goodbye and have a nice day !"),
        ("inform ( area , name )", "The #A-AREA# has #A-NAME# ."),
        ("request ( price )", "How much ?"),
    ],
}
SCORES = ("bleu", "chrf", "rougeL", "slot_error_rate")


@pytest.fixture
def project(tmp_path, monkeypatch, make_generator, settings) -> Path:
    """A folder with params, data, a baseline, a control and one level of half its eligible weights."""
    monkeypatch.chdir(tmp_path)
    changes = {"data": {"placeholder": "#[A-Z]+-[A-Z]+#"}, "evaluate": {"bootstrap_samples": 100}}
    YAML().dump(settings(**changes).model_dump(), tmp_path / "params.yaml")
    layout.DATA.mkdir(parents=True)
    for split, rows in ROWS.items():
        write(layout.DATA / f"{split}.parquet", rows)
    generator = make_generator("bert")
    checkpoint.save(generator, layout.model_folder("baseline"))
    checkpoint.save(generator, layout.model_folder("dense"))
    with torch.no_grad():
        for weight in describe(generator.model).weights.values():
            weight.view(-1)[::2] = 0
    checkpoint.save(generator, layout.model_folder("random-0.5"))
    return tmp_path


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def test_evaluates_a_control_and_a_level(project, capsys):
    evaluate.main(["dense"])
    evaluate.main(["random-0.5"])
    dense, level = (read(layout.metrics_file("evaluate", key)) for key in ("dense", "random-0.5"))

    assert all(isinstance(value, int | float) and math.isfinite(value) for value in level.values())
    assert not any("delta" in name or name.endswith("_p") for name in dense)
    for name in SCORES:
        assert level[f"{name}_low"] <= level[name] <= level[f"{name}_high"]
        assert level[f"{name}_delta"] == pytest.approx(level[name] - dense[name], abs=2e-6)
        assert level[f"{name}_delta_low"] <= level[f"{name}_delta_high"]
        assert 0 < level[f"{name}_p"] <= 1
        assert f"validation_{name}" in level
    assert level["perplexity"] == pytest.approx(math.exp(level["loss"]), rel=1e-4)
    assert level["sparsity"] == 0.5
    assert level["parameters"] - level["nonzero_parameters"] >= level["eligible_parameters"] / 2
    assert level["size_bytes"] == dense["size_bytes"]
    assert level["compressed_bytes"] < dense["compressed_bytes"]
    more = {"fluency_perplexity", "repetition", "distinct_1", "distinct_2", "length_ratio", "exact_match"}
    assert more <= level.keys()
    assert {"validation_loss", "loss"} <= level.keys()

    table = pq.read_table(layout.predictions_file("random-0.5"))
    rows = table.to_pylist()
    assert [row["split"] for row in rows] == ["test"] * 3 + ["validation"]
    assert rows[0]["references"] == ["#A-NAME# is in the #A-AREA# .", "The #A-AREA# has #A-NAME# ."]
    streams = [[row["references"][0] for row in rows[:3]], [rows[0]["references"][1], None, None]]
    bleu = BLEU(tokenize="13a")
    expected = bleu.corpus_score([row["prediction"] for row in rows[:3]], streams).score
    assert level["bleu"] == pytest.approx(expected, abs=1e-6)
    assert table.schema.metadata[b"bleu"].decode() == str(bleu.get_signature())

    assert not layout.BENCHMARK.exists()
    shown = capsys.readouterr().out
    assert "random-0.5: test split" in shown
    assert "less dense" in shown


def test_same_bits_again_and_a_twin_of_dense_does_not_differ(project):
    evaluate.main(["dense"])
    outputs = [layout.metrics_file("evaluate", "dense"), layout.predictions_file("dense")]
    first = [path.read_bytes() for path in outputs]
    evaluate.main(["dense"])
    assert [path.read_bytes() for path in outputs] == first
    evaluate.main(["baseline"])  # here the same weights
    twin = read(layout.metrics_file("evaluate", "baseline"))
    assert all(twin[f"{name}_delta"] == 0 and twin[f"{name}_p"] == 1 for name in SCORES)
    assert twin["loss"] == read(outputs[0])["loss"]


def test_no_slot_error_rate_without_placeholders(project):
    params = project / "params.yaml"
    text, changed = re.subn("placeholder: .*", "placeholder: null", params.read_text())
    assert changed == 1
    params.write_text(text)
    evaluate.main(["dense"])
    assert not any("slot" in name for name in read(layout.metrics_file("evaluate", "dense")))


@pytest.mark.parametrize(
    ("key", "break_it", "message"),
    [
        ("magnitude-0.5", None, "outputs/predictions/dense.parquet is missing"),
        ("dense", lambda: (layout.DATA / "test.parquet").unlink(), "outputs/data/test.parquet is missing"),
        (
            "dense",
            lambda: (layout.model_folder("dense") / "config.json").unlink(),
            "outputs/models/finetuned/dense holds no checkpoint",
        ),
    ],
)
def test_what_is_missing_is_named_in_one_line(project, capsys, key, break_it, message):
    if break_it:
        break_it()
    with pytest.raises(SystemExit) as stopped:
        evaluate.main([key])
    assert stopped.value.code == 1
    shown = capsys.readouterr().err
    assert shown.startswith(f"error: {message}")
    assert shown.count("\n") == 1
    assert not layout.METRICS.exists()


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("../baseline", "../baseline is no level"),
        ("../random-0.5", "../random is no pruning method"),
        ("chosen", "chosen is"),
    ],
)
def test_a_key_is_baseline_dense_or_a_level(project, capsys, key, message):
    evaluate.main(["dense"])
    before = set(Path("outputs").rglob("*"))
    with pytest.raises(SystemExit):
        evaluate.main([key])
    assert capsys.readouterr().err.startswith(f"error: {message}")
    assert set(Path("outputs").rglob("*")) == before


def test_a_level_has_one_name(project):
    evaluate.main(["dense"])
    evaluate.main(["random-0.50"])
    assert layout.metrics_file("evaluate", "random-0.5").exists()


def test_a_diverged_generator_is_refused(project, capsys):
    generator = checkpoint.load(layout.model_folder("dense"))
    with torch.no_grad():
        next(generator.model.parameters()).fill_(float("nan"))
    checkpoint.save(generator, layout.model_folder("dense"))
    with pytest.raises(SystemExit):
        evaluate.main(["dense"])
    assert "the loss is not finite" in capsys.readouterr().err
    assert not layout.predictions_file("dense").exists()


def test_reference_lines(project, capsys):
    reference.main([])
    figures = read(layout.metrics_file("references"))
    assert figures["test_inputs"] == 3
    assert figures["test_references"] == 4
    assert figures["human_inputs"] == 1
    assert figures["human_slot_error_rate"] == 0
    assert figures["copy_slot_error_rate"] == pytest.approx(1 / 2)  # of the first input's two slots one is copied
    assert {f"{line}_{name}" for line in ("copy", "human") for name in SCORES} <= figures.keys()
    assert capsys.readouterr().out.startswith("copy: bleu ")


def test_no_human_line_with_single_references(project, capsys):
    write(layout.DATA / "test.parquet", [("bye", "Goodbye !")])
    reference.main([])
    figures = read(layout.metrics_file("references"))
    assert figures["human_inputs"] == 0
    assert not any(name.startswith("human_") for name in figures if name != "human_inputs")
    assert "human: no input has two references" in capsys.readouterr().out


def cells(capsys) -> dict[str, tuple[str, ...]]:
    """Cells of the table that was printed, by the name that a row begins with."""
    rows = [re.findall(r"[^│\s][^│]*", line) for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    return {name.strip(): tuple(cell.strip() for cell in row) for name, *row in rows}


def test_scores_of_a_folder_are_printed_and_nothing_is_written(project, capsys):
    evaluate.main(["dense"])
    runtimes.save(checkpoint.load(layout.model_folder("random-0.5")), Path("exported"), "onnx", source="random-0.5")
    evaluate.main(["random-0.5"])
    level = cells(capsys)
    before = {path: path.read_bytes() for path in layout.OUTPUTS.rglob("*") if path.is_file()}
    for folder in ("exported", str(layout.model_folder("random-0.5"))):
        evaluate.main([folder])
        rows = cells(capsys)
        assert rows.keys() == {*SCORES, "fluency_perplexity"} and rows.items() <= level.items()
    assert {path: path.read_bytes() for path in layout.OUTPUTS.rglob("*") if path.is_file()} == before
