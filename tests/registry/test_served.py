"""The file that MLflow serves says what `stages.generate` says, without this project, through MLflow's own protocol."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from types import SimpleNamespace

import mlflow.pyfunc
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import scoring_server
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
    for strange, said in ((3, "int"), (0, "int"), (None, "null"), (float("nan"), "null"), (["bye"], "list")):
        with pytest.raises(MlflowException, match=f"^a text is a string: input 1 is {said}$"):
            served.TextGenerator().predict(None, pd.DataFrame({"text": pd.Series(["bye", strange], dtype=object)}))


def test_a_server_refuses_in_one_line(restless, tmp_path):
    checkpoint.save(restless("bert"), tmp_path / "model")
    mlflow.pyfunc.save_model(
        tmp_path / "saved",
        python_model=served.__file__,
        artifacts={served.CHECKPOINT: str(tmp_path / "model")},
        signature=signature({"num_beams": 1, "max_new_tokens": 5}),
        pip_requirements=[],
    )
    model = mlflow.pyfunc.load_model(str(tmp_path / "saved"))

    def ask(**body: object) -> object:
        return scoring_server.invocations(
            json.dumps(body), "application/json", model, model.metadata.get_input_schema()
        )

    assert len(json.loads(ask(inputs=["bye", ""]).response)["predictions"]) == 2
    for body, said in (
        ({"inputs": ["bye", None]}, "input 1 is null"),
        ({"inputs": [0, "bye"]}, "input 0 is int"),
        ({"dataframe_records": [{"text": "bye"}, {"text": None}]}, "input 1 is null"),
        ({"inputs": ["bye"], "params": {"num_beams": 0}}, "params.num_beams is 0: give 1 or more"),
        ({"inputs": ["bye"], "params": {"max_new_tokens": -1}}, "params.max_new_tokens is -1: give 1 or more"),
    ):
        with pytest.raises(MlflowException) as refused:
            ask(**body)
        answer = json.loads(refused.value.serialize_as_json())
        assert refused.value.get_http_status_code() == 400
        assert answer["message"].endswith(said) and "stack_trace" not in answer


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
    assert [str(column.type) for column in found.outputs] == ["DataType.string"] and len(found.inputs) == 1
