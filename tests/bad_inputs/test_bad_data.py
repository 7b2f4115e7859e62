"""Data that cannot be read as it is named: one line that names the file, and nothing half-written."""

from __future__ import annotations

import gzip
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from refusals import refused
from shared import ROOT, merge

from stages import clean, params

VALUES = params.read_yaml(ROOT / "params.yaml")
PAIRS = {"act": ["inform ( name )", "bye"], "utterance": ["It is #NAME# .", "Goodbye !"]}


def parquet(table: dict[str, Any] | pa.Table = PAIRS, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table if isinstance(table, pa.Table) else pa.table(table), sink, **options)
    return sink.getvalue().to_pybytes()


def flip(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :]


WHOLE = parquet()
LINES = b'{"act": "a", "utterance": "b"}\n'
FILES: dict[str, bytes] = {
    # CSV and TSV
    "empty.csv": b"",
    "header alone.csv": b"act,utterance\n",
    "blank lines.csv": b"\n\n\n",
    "another header.csv": b"source,target\na,b\n",
    "one column of two.csv": b"act\na\n",
    "header in capitals.csv": b"ACT,UTTERANCE\na,b\n",
    "commas in a.tsv": b"act,utterance\na,b\n",
    "stray quote.csv": b'act,utterance\na,"b" c\n',
    "open quote.csv": b'act,utterance\na,"b\n',
    "open quote at the end.csv": b'act,utterance\na,b\nc,"',
    "UTF-16.csv": "act,utterance\na,b\n".encode("utf-16"),
    "Latin-1.csv": b"act,utterance\ncaf\xe9,b\n",
    "cut in a character.csv": "act,utterance\na,酒".encode()[:-1],
    "nothing but zeros.csv": bytes(100),
    "a zip.csv": b"PK\x03\x04" + bytes(60),
    "a picture.csv": b"\x89PNG\r\n\x1a\n" + bytes(range(256)),
    "column twice.csv": b"act,act,utterance\na,b,c\n",
    "empty rows.csv": b"act,utterance\n,\n,\n",
    # compressed
    "not compressed.csv.gz": b"act,utterance\na,b\n",
    "cut short.csv.gz": gzip.compress(b"act,utterance\n" + b"a,b\n" * 999, mtime=0)[:-12],
    "flipped.csv.gz": flip(gzip.compress(b"act,utterance\na,b\n" * 99, mtime=0), 20),
    "wrong sum.csv.gz": flip(gzip.compress(b"act,utterance\na,b\n", mtime=0), -8),
    "empty.csv.gz": b"",
    # JSON Lines
    "empty.jsonl": b"",
    "blank.jsonl": b"\n \n",
    "broken.jsonl": LINES + b'{"act": "a", "utterance": \n',
    "cut short.jsonl": LINES + LINES[:-9],
    "an array a line.jsonl": b'["a", "b"]\n',
    "numbers.jsonl": b"1\n2\n",
    "null.jsonl": b"null\n",
    "without the columns.jsonl": b'{"a": 1}\n',
    "only one of the columns.jsonl": b'{"act": "a"}\n',
    "two objects a line.jsonl": LINES.strip() * 2 + b"\n",
    "single quotes.jsonl": b"{'act': 'a', 'utterance': 'b'}\n",
    "Latin-1.jsonl": b'{"act": "caf\xe9", "utterance": "b"}\n',
    "UTF-16.jsonl": LINES.decode().encode("utf-16"),
    "objects as cells.jsonl": b'{"act": {"a": 1}, "utterance": ["b"]}\n',
    # JSON
    "empty.json": b"",
    "null.json": b"null",
    "a number.json": b"3",
    "text.json": b'"act"',
    "empty list.json": b"[]",
    "open list.json": b'[{"act": "a", "utterance": "b"}',
    "comma at the end.json": b'[{"act": "a", "utterance": "b"},]',
    "no comma.json": b'[{"act": "a", "utterance": "b"} {"act": "c", "utterance": "d"}]',
    "list of lists.json": b'[["a", "b"]]',
    "other keys.json": b'[{"a": "b"}]',
    "more after it.json": b'[{"act": "a", "utterance": "b"}] x',
    "too deep.json": b"[" * 100_000,
    # Parquet
    "empty.parquet": b"",
    "text.parquet": b"act,utterance\na,b\n",
    "cut short.parquet": WHOLE[: len(WHOLE) // 2],
    "cut at the end.parquet": WHOLE[:-4],
    "no start.parquet": WHOLE[4:],
    "broken footer.parquet": flip(WHOLE, len(WHOLE) - 8 - int.from_bytes(WHOLE[-8:-4], "little")),
    "broken page.parquet": flip(WHOLE, 8),
    "footer of another length.parquet": WHOLE[:-8] + b"\xff\xff\xff\x7fPAR1",
    "no rows.parquet": parquet({"act": pa.array([], pa.string()), "utterance": pa.array([], pa.string())}),
    "no columns.parquet": parquet({}),
    "another column.parquet": parquet({"act": ["a"], "target": ["b"]}),
    "lists.parquet": parquet({"act": [["a"]], "utterance": ["b"]}),
    "binary.parquet": parquet({"act": [b"\xff\xfe"], "utterance": ["b"]}),
    "all null.parquet": parquet({"act": pa.nulls(3), "utterance": pa.nulls(3)}),
    # others
    "a table.xlsx": b"PK\x03\x04",
    "no ending": b"act,utterance\na,b\n",
    "alone.source": b"a\n",
}


@pytest.fixture
def cleaned(tmp_path, monkeypatch) -> Callable[..., None]:
    """`cleaned(path, **changes)`: the clean stage on a file, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["clean"])

    def run(path: str, **changes: Any) -> None:
        values = merge(VALUES, {"data": {"path": path, **changes}, "clean": {"workers": 1}})
        Path("params.yaml").write_text(json.dumps(values))  # which is YAML too
        clean.main()

    return run


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_cannot_be_read_is_named(name, cleaned, capsys):
    Path(name).write_bytes(FILES[name])
    said = refused(capsys, lambda: cleaned(name))
    assert name in said or "no row is left" in said
    assert left_behind() == []


def left_behind() -> list[Path]:
    return [path for path in Path().rglob("*") if path.is_relative_to("outputs") and path.is_file()]


@pytest.mark.parametrize(
    ("path", "changes", "message"),
    [
        ("missing.csv", {}, "missing.csv does not exist"),
        ("empty folder", {}, "empty folder has no file"),
        ("/dev/null", {}, "/dev/null"),
        ("a" * 300, {}, "data.path"),
        ("good.csv", {"source": "question"}, "question"),
        ("good.csv", {"split": "fold"}, "fold"),
        ("one pair.csv", {}, "split"),
        ("other split.csv", {"split": "utterance"}, "'Goodbye !'|split"),
    ],
)
def test_a_place_that_is_no_data_is_named(path, changes, message, cleaned, capsys):
    Path("empty folder").mkdir()
    Path("good.csv").write_text("act,utterance\na,b\n")
    Path("one pair.csv").write_text("act,utterance\na,b\n")
    Path("other split.csv").write_text("act,utterance\na,Goodbye !\n")
    assert re.search(message, refused(capsys, lambda: cleaned(path, **changes)))
    assert left_behind() == []


KINDS = {
    "csv": b"act,utterance\na,b\n" * 20,
    "jsonl": LINES * 20,
    "json": json.dumps([{"act": "a", "utterance": "b"}]).encode(),
}
KINDS["parquet"] = parquet({"act": ["a", "b"] * 40, "utterance": ["c", "d"] * 40})
KINDS["csv.gz"] = gzip.compress(KINDS["csv"], mtime=0)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_damage_is_read_or_refused_in_one_line(data, cleaned, capsys):
    """Cut, overwritten or replaced: hypothesis looks for what ends in anything else."""
    kind = data.draw(st.sampled_from(sorted(KINDS)))
    whole = KINDS[kind]
    if data.draw(st.booleans()):
        place = data.draw(st.integers(0, len(whole)))
        put = data.draw(st.binary(max_size=6))
        content = whole[:place] + put + whole[place + data.draw(st.integers(0, 9)) :]
    else:
        content = data.draw(st.binary(max_size=60))
    Path(f"data.{kind}").write_bytes(content)
    try:
        cleaned(f"data.{kind}")
    except SystemExit as ended:
        said = capsys.readouterr().err
        assert ended.code == 1
        assert said.startswith("error: ") and said.count("\n") == 1, said
        assert f"data.{kind}" in said or "split" in said, said
    else:
        capsys.readouterr()
