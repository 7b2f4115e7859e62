"""Each format's first difference, named in its own terms; every case is made by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from stages.bitmasks import MASKS_FILE, Masks
from stages.differences import first_difference


@pytest.fixture
def pair(tmp_path: Path):
    """`pair(name)`: where two versions of a file go."""

    def make(name: str) -> tuple[Path, Path]:
        for side in ("before", "now"):
            (tmp_path / side).mkdir(exist_ok=True)
        return tmp_path / "before" / name, tmp_path / "now" / name

    return make


def tensors(**changes: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"a.weight": torch.zeros(2, 3), "b.weight": torch.arange(6.0).reshape(2, 3), **changes}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"b.weight": torch.tensor([[0.0, 1.0, 2.5], [3.0, 4.25, 5.0]])},
            "tensor b.weight: 2 of 6 elements differ, by 0.5 at most",
        ),
        ({"a.weight": torch.full((2, 3), -0.0)}, "tensor a.weight: 6 of 6 elements differ, by 0 at most"),
        ({"b.weight": torch.zeros(3, 2)}, "tensor b.weight: shape (2, 3) became (3, 2)"),
        ({"a.weight": torch.zeros(2, 3, dtype=torch.bfloat16)}, "tensor a.weight: dtype torch.float32 became torch.bf"),
        ({"a.bias": torch.zeros(1)}, "tensor a.bias is new"),
    ],
)
def test_tensors(pair, changes, words):
    before, now = pair("model.safetensors")
    save_file(tensors(), before)
    save_file(tensors(**changes), now)
    assert first_difference(before, now).startswith(words)


def test_a_missing_tensor_metadata_and_a_nan(pair):
    before, now = pair("model.safetensors")
    save_file(tensors(), before, metadata={"format": "pt"})
    save_file({"a.weight": torch.zeros(2, 3)}, now)
    assert first_difference(before, now) == "tensor b.weight is missing"
    save_file(tensors(), now, metadata={"format": "np"})
    assert first_difference(before, now) == "metadata format: pt became np"
    for path in (before, now):
        save_file({"a": torch.tensor([float("nan"), 1.0 if path == before else 2.0], dtype=torch.bfloat16)}, path)
    assert first_difference(before, now) == "tensor a: 1 of 2 elements differ, by 1 at most"


def test_masks_are_counted_in_weights(pair):
    before, now = pair(MASKS_FILE)
    mask = torch.ones(4, 5, dtype=torch.bool)
    Masks({"w": mask}).save(before)
    mask[0, 1] = mask[0, 2] = mask[3, 4] = False
    Masks({"w": mask}).save(now)
    assert first_difference(before, now) == "tensor w: 3 weights have another mask"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.assign(score=[1.0, None, 3.5]), "row 2, column score: 3.0 became 3.5"),
        (lambda t: t.assign(text=["a", "B", "c"], score=[1.0, None, 9.0]), "row 1, column text: b became B"),
        (lambda t: t.assign(score=[1.0, 2.0, 3.0]), "row 1, column score: null became 2.0"),
        (lambda t: t.iloc[:2], "3 rows became 2; the first 2 are the same"),
        (lambda t: t.rename(columns={"text": "answer"}), "columns text, score, all became answer, score, all"),
        (lambda t: t.assign(score=["1", None, "3"]), "column score: type double became string"),
        (lambda t: t.assign(all=[["a"], [], ["x", "z"]]), 'row 2, column all: ["x", "y"] became ["x", "z"]'),
    ],
)
def test_tables(pair, change, words):
    before, now = pair("test.parquet")
    table = pd.DataFrame({"text": ["a", "b", "c"], "score": [1.0, None, 3.0], "all": [["a"], [], ["x", "y"]]})
    schema = pa.schema([("text", pa.string()), ("score", pa.float64()), ("all", pa.list_(pa.string()))])
    pq.write_table(pa.Table.from_pandas(table, schema, preserve_index=False).replace_schema_metadata(None), before)
    changed = change(table)
    types = {"text": pa.string(), "answer": pa.string(), "all": pa.list_(pa.string())}
    types["score"] = pa.string() if isinstance(changed.score[0], str) else pa.float64()
    schema = pa.schema([(name, types[name]) for name in changed.columns])
    pq.write_table(pa.Table.from_pandas(changed, schema, preserve_index=False).replace_schema_metadata(None), now)
    assert first_difference(before, now) == words


def test_metadata_of_a_table(pair):
    before, now = pair("predictions.parquet")
    table = pa.table({"x": [1, 2]})
    pq.write_table(table.replace_schema_metadata({"bleu": "nrefs:1"}), before)
    pq.write_table(table.replace_schema_metadata({"bleu": "nrefs:2"}), now)
    assert first_difference(before, now) == "metadata bleu: nrefs:1 became nrefs:2"


def test_json(pair):
    before, now = pair("level.json")
    before.write_text(json.dumps({"loss": 1.5, "bleu": 40.0, "sizes": {"kept": [1, 2]}}))
    now.write_text(json.dumps({"loss": 1.5, "bleu": 40.25, "sizes": {"kept": [1, 3]}}))
    assert first_difference(before, now) == "bleu: 40.0 became 40.25 (2 of 4 differ)"
    now.write_text(json.dumps({"loss": 1.5, "bleu": 40.0, "sizes": {"kept": [1, 2]}, "steps": 7}))
    assert first_difference(before, now) == "steps: nothing became 7"
    now.write_text(json.dumps({"loss": 1.5, "bleu": 40.0, "sizes": {"kept": [1, 2]}}, indent=2))
    assert first_difference(before, now).startswith("byte 1 is the first that differs; ")  # same values, other spacing


def test_csv(pair):
    before, now = pair("curve.csv")
    before.write_text("step,loss\n1,2.5\n2,2.25\n")
    now.write_text("step,loss\n1,2.5\n2,2.125\n")
    assert first_difference(before, now) == "row 2, column loss: 2.25 became 2.125"
    now.write_text("step,loss\n1,2.5\n")
    assert first_difference(before, now) == "row 2 is missing"
    now.write_text("step,bleu\n1,2.5\n2,2.25\n")
    assert first_difference(before, now) == "columns step, loss became step, bleu"


def test_anything_else_and_damaged_files(pair):
    before, now = pair("quality.png")
    before.write_bytes(bytes(2**20 + 9))
    content = np.zeros(2**20 + 9, np.uint8)
    content[2**20 + 5] = 1
    now.write_bytes(content.tobytes())
    assert first_difference(before, now) == "byte 1,048,581 is the first that differs"
    before, now = pair("masks.safetensors")
    Masks({"w": torch.ones(8, dtype=torch.bool)}).save(before)
    now.write_bytes(before.read_bytes()[:-1])
    assert first_difference(before, now).startswith(f"byte {now.stat().st_size:,} is the first that differs; ")


def test_folders(pair):
    before, now = pair("model")
    for folder, names in ((before, "abd"), (now, "abcd")):
        for name in names:
            (folder / name).mkdir(parents=True)
            (folder / name / "config.json").write_text('{"layers": 2}')
    assert first_difference(before, now) == "c/config.json: is new"
    (now / "b" / "config.json").write_text('{"layers": 3}')
    assert first_difference(before, now) == "b/config.json: layers: 2 became 3 (and 1 more of 4 files)"


def test_what_is_the_same(pair):
    before, now = pair("model.safetensors")
    save_file(tensors(), before)
    save_file(tensors(), now)
    assert first_difference(before, now) is None and first_difference(before.parent, now.parent) is None
