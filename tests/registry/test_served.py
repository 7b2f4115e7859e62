"""The file that MLflow serves says what `stages.generate` says, without this project, through MLflow's own protocol."""

from __future__ import annotations

import ast
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from shared import FAMILIES, SOURCES

from stages.evaluation.generation import stream
from stages.models import checkpoint
from stages.registry import served
from stages.registry.package import requirements, signature

TEXTS = [*SOURCES, "", "inform ( name , area , food ) and a text that is longer than the model reads " * 3, " ", "bye"]


@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_are_those_of_generate(family, restless, tmp_path, monkeypatch):
    generator = restless(family)
    checkpoint.save(generator, tmp_path / "model")
    model = served.TextGenerator()
    model.load_context(SimpleNamespace(artifacts={served.CHECKPOINT: str(tmp_path / "model")}))
    monkeypatch.setattr(served, "BATCH_SIZE", 3)
    table = pd.DataFrame({"any name": TEXTS})
    for options in ({}, {"num_beams": 3, "max_new_tokens": 9}):
        expected = [output for _, output in stream(generator, TEXTS, batch_size=3, seed=0, options=options)]
        assert model.predict(None, table, options) == expected
        assert expected[4] == expected[6] == ""
        assert len(set(expected)) > 2 or family == "marian"  # whose bytes are all no UTF-8


def test_batches_are_as_large_as_those_of_generate():
    from stages.generate import _parser

    assert _parser().parse_args(["--model", "m"]).batch_size == served.BATCH_SIZE


def test_what_is_no_text_is_refused():
    with pytest.raises(ValueError, match="a text is a string, not int"):
        served.TextGenerator().predict(None, pd.DataFrame({"text": ["bye", 3]}))


def test_it_imports_nothing_of_this_project():
    tree = ast.parse(Path(served.__file__).read_text())
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert not [name for name in imported if name.startswith("stages")]


def test_requirements_are_releases(tmp_path):
    assert not any("+" in line or "==" not in line for line in requirements(tmp_path))
    (tmp_path / "source.spm").touch()
    assert any(line.startswith("sentencepiece==") for line in requirements(tmp_path))


def test_a_request_may_change_what_the_signature_has():
    found = signature({"num_beams": 4, "max_new_tokens": 64})
    assert {param.name: param.default for param in found.params} == {"num_beams": 4, "max_new_tokens": 64}
    assert [str(column.type) for column in found.inputs] == ["DataType.string"]
