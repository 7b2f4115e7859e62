"""params.yaml as it should not be: every section, values of every wrong kind, and what hypothesis finds."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from refusals import refused
from ruamel.yaml import YAML
from shared import ROOT

from stages import clean, params
from stages.errors import UserError

WRONG: dict[str, list[Any]] = {
    "runtime.seed": [-1, 2**32, "a", 1.5, None, True],
    "runtime.threads": [0, "two", None, 100_000, 10**10],
    "runtime.precision": ["fp16", None, 1],
    "data.path": [None, 3, ["a"], "../pairs.csv", "data/../../pairs.csv", ".."],
    "data.source": [None, "utterance"],
    "data.language": ["fr", None],
    "data.placeholder": ["(", "[a", "*"],
    "clean": [{"\n": None}, {"\x1b[31m": 1}, []],  # a line break as a key is what hypothesis found
    "clean.workers": [0, -1, 1.5, 5000],
    "clean.unicode_form": ["NFD", 1],
    "clean.near_duplicates": [0, 1.01, float("nan"), "often"],
    "clean.split": [None, {}, {"train": 0.5, "validation": 0.1, "test": 0.1}, {"train": 1, "validation": 0, "test": 0}],
    "model.kind": ["decoder", None],
    "model.checkpoint": ["somewhere", 3],
    "model.encoder.checkpoint": ["../model"],
    "model.tokenizer.checkpoint": ["../tokenizer"],
    "model.encoder": [None, [], {"architecture": "bert"}],
    "model.tokenizer.vocab_size": [0, 299, "large", 10**9, 10**20],
    "train.epochs": [0, -1, float("inf"), float("nan"), "four"],
    "train.batch_size": [0, 2.5, None, 10**22],
    "train.learning_rate": [0, -0.1, float("nan"), "fast"],
    "train.warmup_ratio": [-0.1, 1.1],
    "train.label_smoothing": [1, -0.1],
    "train.checkpoint_every": [-1, 0.5],
    "sweep.method": [[], ["magnitude", "magnitude"], ["best"], "magnitude", None],
    "sweep.sparsity": [[], [1], [-0.1], [0.5, 0.5], [1e-9], ["half"], 0.5],
    "prune.pattern": ["5:4", "0:4", "2:0", "x4", "dense", 24],
    "prune.scope": ["all", None],
    "prune.calibration.samples": [0, -1],
    "prune.sparsegpt.damping": [-1, 0, float("nan")],
    "finetune.schedule": ["linear", None],
    "finetune.ramp": [0, 1.5],
    "finetune.distillation.temperature": [0, -1],
    "finetune.lora.rank": [-1, 8],
    "evaluate.num_beams": [0, 1001],
    "evaluate.confidence": [0.5, 1],
    "export.level": ["best", "magnitude", "best-0.5", None],
    "export.formats": [["gguf"], ["onnx", "onnx"], "onnx", None],
    "benchmark.rounds": [2, 0, 3.5],
    "benchmark.batch_sizes": [[], [0], [8, 8], 8],
    "benchmark.tokens": [0, None],
    "target.metric": ["rouge", None],
    "search.low": [0.99, 1],
    "tracking.experiment": ["", None],
    "more": [1],
    "train.learing_rate": [0.1],
}


def cases() -> Iterator[Any]:
    for key, values in WRONG.items():
        for value in values:
            yield pytest.param(key, value, id=f"{key}={value!r}")


def put(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        values = values[section]
    values[last] = value


@pytest.mark.parametrize(("key", "value"), list(cases()))
def test_a_wrong_value_is_refused_by_the_name_of_its_key(key, value, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["clean"])
    yaml = YAML()
    values = yaml.load(ROOT / "params.yaml")
    put(values, key, value)
    yaml.dump(values, Path("params.yaml"))
    said = refused(capsys, clean.main)
    assert said.startswith("error: params.yaml: ")
    # A mistake between two keys is said of the section that has both.
    assert any(part in said for part in (key, key.rpartition(".")[0], key.partition(".")[0]))
    assert not Path("outputs").exists()


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


def leaves(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in values.items():
        yield f"{prefix}{name}"
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")


VALUES = params.read_yaml(ROOT / "params.yaml")
KEYS = sorted(leaves(VALUES))


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_value_of_any_key_is_taken_or_refused_in_one_line(data):
    values = copy.deepcopy(VALUES)
    for key in data.draw(st.lists(st.sampled_from(KEYS), min_size=1, max_size=2)):
        section = key.rpartition(".")[0]
        if not isinstance(lookup(values, section), dict):
            continue
        put(values, key, data.draw(JUNK))
    try:
        params.validate(values, "params.yaml")
    except UserError as error:
        assert "\n" not in str(error) and str(error).startswith("params.yaml: ")


def lookup(values: Any, key: str) -> Any:
    for name in filter(None, key.split(".")):
        values = values.get(name) if isinstance(values, dict) else None
    return values


TEXT = (ROOT / "params.yaml").read_bytes()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, len(TEXT) - 1), content=st.binary(max_size=4), cut=st.booleans())
@example(place=0, content=b"\xff\xfe", cut=False)
@example(place=9, content=b"\x00", cut=True)
@example(place=0, content=b"&a [*a, *a]\n", cut=True)
@example(place=0, content=b"!!python/object:os.system x\n", cut=True)
@example(place=0, content=b"a: 1\na: 2\n", cut=True)
def test_any_damage_to_the_file_is_taken_or_refused_in_one_line(place, content, cut, tmp_path):
    file = tmp_path / "params.yaml"
    file.write_bytes(TEXT[:place] + content + (b"" if cut else TEXT[place + len(content) :]))
    try:
        params.load("data", path=file)
    except UserError as error:
        assert "\n" not in str(error) and "params.yaml" in str(error)
