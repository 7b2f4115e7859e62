"""`python -m stages.export` as the stage: what params ask for, its quality, and the same bytes every time."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ruamel.yaml import YAML

from stages import export, layout
from stages.evaluation.generation import decoding, generate
from stages.evaluation.inputs import read_inputs, write_predictions
from stages.evaluation.size import compressed
from stages.files import read_json, write_json
from stages.models import checkpoint
from stages.runtimes import folder
from stages.runtimes.description import Description

KEY = "magnitude-0.5"
SOURCES = ["inform ( name )", "bye", "request ( food , area )"]


@pytest.fixture
def project(tmp_path, monkeypatch, restless, settings) -> Path:
    """A level and dense, which are one model, with what both write for the test split."""
    monkeypatch.chdir(tmp_path)
    values = settings(evaluate={"bootstrap_samples": 100})
    YAML().dump(values.model_dump(), tmp_path / "params.yaml")
    layout.DATA.mkdir(parents=True)
    pq.write_table(pa.table({"source": SOURCES, "target": ["a", "b", "c"]}), layout.DATA / "test.parquet")
    generator = restless("bert")
    test = read_inputs(layout.DATA / "test.parquet")
    outputs = generate(generator, test.sources, batch_size=64, seed=0, options=decoding(values.evaluate))
    for key in (KEY, layout.DENSE):
        checkpoint.save(generator, layout.model_folder(key))
        write_predictions(layout.predictions_file(key), {"test": (test, outputs)}, {})
    write_json(layout.COMPARE / "chosen.json", {"key": KEY, "why": ""})
    return tmp_path


def ask(**values: object) -> None:
    yaml = YAML()
    params = yaml.load(Path("params.yaml"))
    params["export"] |= values
    yaml.dump(params, Path("params.yaml"))


def test_the_chosen_level_is_exported_and_measured(project, capsys):
    export.main([])
    assert capsys.readouterr().out.startswith(f"outputs/export/onnx: {KEY}, ")
    assert [path.name for path in sorted(layout.EXPORT.iterdir())] == ["onnx", "onnx-int8"]
    assert all(Description.load(layout.EXPORT / name).source == KEY for name in ("onnx", "onnx-int8"))
    figures = json.loads(layout.metrics_file("export").read_text())
    assert figures["onnx/same_outputs"] == 1 and figures["onnx/bleu_delta"] == 0
    assert figures["onnx-int8/bleu_low"] <= figures["onnx-int8/bleu_high"]
    assert figures["onnx/size_bytes"] == sum(path.stat().st_size for path in (layout.EXPORT / "onnx").glob("*.onnx"))
    # As levels are measured, so that one can be compared with the other.
    graphs = (layout.EXPORT / "onnx").glob("*.onnx")
    assert figures["onnx/compressed_bytes"] == sum(map(compressed, graphs)) < figures["onnx/size_bytes"]
    # The same weights in a quarter of the bits, beside graphs that do not shrink.
    assert 0 < figures["onnx-int8/size_bytes"] < figures["onnx/size_bytes"]
    # An address in memory would make every process write other bytes.
    assert not [path for path in layout.EXPORT.rglob("*.onnx") if b" at 0x" in path.read_bytes()]


def test_int8_of_given_graphs_is_int8_of_graphs_traced_anew(project):
    generator = checkpoint.load(layout.model_folder(KEY))
    folder.save(generator, Path("float"), "onnx", source=KEY)
    folder.save(generator, Path("given"), "onnx-int8", source=KEY, graphs_in=Path("float"))
    folder.save(generator, Path("anew"), "onnx-int8", source=KEY)
    files = sorted(path.name for path in Path("anew").iterdir())
    assert files == sorted(path.name for path in Path("given").iterdir())
    assert all((Path("anew") / name).read_bytes() == (Path("given") / name).read_bytes() for name in files)


def test_dense_if_no_level_was_chosen_and_nothing_if_nothing_is_asked_for(project, capsys):
    write_json(layout.COMPARE / "chosen.json", {"key": None, "why": ""})
    ask(formats=["safetensors"])
    export.main([])
    assert "No level meets the target: dense is exported." in capsys.readouterr().out
    assert Description.load(layout.EXPORT / "safetensors").source == "dense"
    weights = layout.model_folder(layout.DENSE) / "model.safetensors"
    assert read_json(layout.metrics_file("export"))["safetensors/compressed_bytes"] == compressed(weights)
    ask(formats=[])
    export.main([])
    assert not list(layout.EXPORT.iterdir()) and read_json(layout.metrics_file("export")) == {}


def test_a_level_that_is_not_there(project, capsys):
    for level, why in (("magnitude-0.9", "is missing: run `dvc repro`"), ("magnitude-0.99", "is no level of sweep")):
        ask(level=level)
        with pytest.raises(SystemExit):
            export.main([])
        said = capsys.readouterr().err
        assert f"export.level {level}" in said and why in said
    assert not layout.EXPORT.exists()


def test_half_of_the_command(capsys):
    with pytest.raises(SystemExit):
        export.main([KEY, "--to", "onnx"])
    assert "give a level, --to and --output; or none of them" in capsys.readouterr().err
