"""`python -m stages.benchmark` on small generators: the stage's files, and the table of a command."""

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ruamel.yaml import YAML

from stages import benchmark, layout
from stages.evaluation import pareto
from stages.evaluation.comparison import write_csv
from stages.files import write_json
from stages.models import checkpoint
from stages.runtimes import folder

pytest_plugins = ["evaluation_fixtures"]

KEYS = ["dense", "baseline", "random-0.5"]


@pytest.fixture
def project(tmp_path, monkeypatch, make_generator, settings) -> Path:
    """A sweep of one level, and a test split."""
    monkeypatch.chdir(tmp_path)
    changes = {
        "sweep": {"method": ["random"], "sparsity": [0.5]},
        "evaluate": {"bootstrap_samples": 100},
        "export": {"formats": ["safetensors"]},
        "benchmark": {"rounds": 3, "batch_sizes": [1, 2], "num_beams": [1, 2], "tokens": 4},
    }
    YAML().dump(settings(**changes).model_dump(), tmp_path / "params.yaml")
    layout.DATA.mkdir(parents=True)
    rows = {"source": ["inform ( name )", "bye"], "target": ["It is #NAME# .", "Goodbye !"]}
    pq.write_table(pa.table(rows), layout.DATA / "test.parquet")
    generator = make_generator("bert")
    for key in KEYS:
        checkpoint.save(generator, layout.model_folder(key))
    scores = {"bleu": 40.0, "bleu_low": 38.0, "bleu_high": 43.0}
    write_csv(layout.COMPARE / "levels.csv", [{"key": key, "compressed_bytes": 9000} | scores for key in KEYS])
    exported = scores | {"compressed_bytes": 9000, "size_bytes": 20_000}
    write_json(layout.metrics_file("export"), {f"safetensors/{name}": value for name, value in exported.items()})
    write_json(layout.COMPARE / "chosen.json", {"key": "random-0.5"})
    folder.save(generator, layout.EXPORT / "safetensors", "safetensors", source="random-0.5")
    return tmp_path


def test_the_stage_measures_dense_levels_and_exports(project, capsys, monkeypatch):
    drawn = []
    draw = pareto.draw
    monkeypatch.setattr(pareto, "draw", lambda path, points, *rest: drawn.extend(points) or draw(path, points, *rest))
    benchmark.main([])
    # A level and its export of the same weights are as large as each other: one measure for both.
    assert [point.megabytes for point in drawn] == [0.009] * 4
    rows = list(csv.DictReader((layout.BENCHMARK / "speed.csv").open()))
    assert [row["key"] for row in rows] == [*KEYS, "safetensors"]
    assert [(row["level"], row["runtime"]) for row in rows][2:] == [("random-0.5", "pytorch")] * 2
    for row in rows:
        for name in ("latency_ms", "batch2_tokens_per_second", "batch1_beams2_tokens_per_second"):
            assert 0 < float(row[f"{name}_p25"]) <= float(row[f"{name}_p50"]) <= float(row[f"{name}_p75"])
        assert float(row["load_seconds"]) > 0 and float(row["peak_memory_bytes"]) > 1e7
    assert rows[0]["speedup"] == rows[0]["batch2_beams2_speedup"] == "1.0"
    assert rows[3]["size_bytes"] == rows[2]["size_bytes"]
    assert (layout.BENCHMARK / "pareto.png").read_bytes().startswith(b"\x89PNG")
    machine = json.loads((layout.BENCHMARK / "machine.json").read_text())
    assert machine["rounds"] == 3 and machine["threads"] == 1
    assert {"torch", "device", "training_precision", "cores", "cpu_features"} <= machine.keys()
    assert "precision" not in machine  # generation computes in fp32, whatever training does
    assert "Speed, dense first" in capsys.readouterr().out


def test_the_command_prints_quality_too_and_writes_nothing(project, capsys):
    benchmark.main(["random-0.5", str(layout.EXPORT / "safetensors"), "--rounds", "1"])
    shown = capsys.readouterr().out
    assert "Speed, random-0.5 first" in shown and "outputs/export/safetensors" in shown
    assert shown.count("100.0%") == 2 and "BLEU" in shown
    assert not layout.BENCHMARK.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["magnitude-0.9"], "magnitude-0.9: no such checkpoint; give a folder, or one of"),
        (["dense", "--rounds", "0"], "--rounds 0: give 1 or more"),
    ],
)
def test_mistakes_end_in_one_line(project, capsys, arguments, message):
    with pytest.raises(SystemExit):
        benchmark.main(arguments)
    assert capsys.readouterr().err.startswith(f"error: {message}")
