"""JSON in pieces: what is no text stays as written, and broken or endless text is told without reading on."""

from __future__ import annotations

import json
from unittest.mock import Mock

import pytest

from stages.errors import UserError
from stages.text import json_rows
from stages.text.json_rows import read_json, read_json_lines
from stages.text.rows import Columns, NotText

PAIRS = [
    ("inform (name)", 'The "#NAME#" \\ is\nin {the} [centre] .'),
    ("告知+酒店", "推荐您去“[名称]”。"),
    ("same", ""),
]


def read(path):
    reader = read_json if path.suffix == ".json" else read_json_lines
    return [(row.source, row.target) for row in reader(path, Columns("source", "target", None))]


@pytest.fixture
def array(tmp_path, monkeypatch):
    """`array(pieces)`: a file that is read in these pieces."""
    (tmp_path / "a.json").touch()

    def make(pieces):
        # It is begun twice: to see that it is an array, and to read it.
        monkeypatch.setattr(json_rows, "read_chunks", lambda path: pieces())
        return tmp_path / "a.json"

    return make


def test_keys_may_be_left_out_of_some_objects(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"source": "a"}\n\n{"source": null, "target": "\\ud800!"}\n')
    assert read(tmp_path / "a.jsonl") == [("a", None), (None, "\ufffd!")]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
@pytest.mark.parametrize(
    "written", ['[1.10, "\\ud800", {"b": [1e5]}]', '{"target": "\\" }", "b": -0}', "[ ]", "true", '[{"a": {}} , "文"]']
)
def test_what_is_no_text_stays_as_written(tmp_path, name, written):
    row = f'{{ "target":"b", "source": "no, the last of equal keys", "more" : [[]],"source" : {written} }}'
    (tmp_path / name).write_text(f"[{row}]" if name == "a.json" else f"\n  {row}\r\n")
    assert read(tmp_path / name) == [(NotText(written), "b")]
    (row,) = read_json(tmp_path / name, Columns("more", "target", "source"))
    assert row.split == written


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_nested_too_deep(tmp_path, name):
    deep = '{"source": "a", "target": ' + "[" * 100_000 + "]" * 100_000 + "}"
    text = f'{{"source": "a", "target": "b"}}\n{deep}'
    (tmp_path / name).write_text(f"[{text}]".replace("\n", ",") if name == "a.json" else text)
    with pytest.raises(UserError, match=rf"{name}, row 2: lists or objects nested too deep"):
        read(tmp_path / name)


@pytest.mark.parametrize("chunk", [1, 2, 7])
def test_array_read_in_pieces(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr("stages.text.rows._CHUNK_BYTES", chunk)
    objects = [{"source": source, "target": target} for source, target in PAIRS]
    (tmp_path / "a.json").write_text(json.dumps(objects, indent=1, ensure_ascii=False))
    assert read(tmp_path / "a.json") == PAIRS
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(UserError, match=r"a\.json is empty"):
        read(tmp_path / "a.json")


def test_array_cut_at_every_place(array):
    text = r'[{"source": "\ud83d\ude00 \u00e9 \"", "target": -1.5e+10, "more": [true, -Infinity, {"a": []}]} ] '
    for cut in range(1, len(text)):
        assert read(array(lambda cut=cut: iter([text[:cut], *text[cut:]]))) == [('😀 é "', "-1.5e+10")]


def test_a_broken_element_is_told_without_reading_on(array):
    def pieces():
        yield '[{"source": "a", "target": "b"},\n{"source": "c" "target": "d"},'
        yield from ('\n{"source": "e", "target": "f"},' for _ in range(100))
        pytest.fail("the rest of the file was read")

    with pytest.raises(UserError, match=r"a\.json, line 2: element 2 of the array is broken \(Expecting ',' delimiter"):
        read(array(pieces))


def test_an_element_without_end_is_not_held_in_memory(array, monkeypatch):
    def pieces():
        yield '[{"source": "a'
        yield from ("a" * 10 for _ in range(1000))
        pytest.fail("the rest of the file was read")

    monkeypatch.setattr(json_rows, "_MAX_ELEMENT_CHARACTERS", 1000)
    with pytest.raises(UserError, match=r"a\.json, line 1: element 1 .* \(no end within 1,000 characters\)"):
        read(array(pieces))


def test_a_long_element_is_decoded_a_few_times_only(array, monkeypatch):
    decoder = Mock(wraps=json_rows._decoder)
    monkeypatch.setattr(json_rows, "_decoder", decoder)
    text = json.dumps([{"source": "a" * 5000, "target": "b"}])
    assert read(array(lambda: iter(text))) == [("a" * 5000, "b")]
    assert decoder.raw_decode.call_count < 20


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"source": 1}, 2]', "line 1: element 2 of the array is not an object"),
        ('[{"source": 1}', "line 1: expected a comma or ']' after element 1"),
        ('[{"source": 1}\n {"source": 2}]', "line 2: expected a comma or ']' after element 1"),
        ('[{"source": ]', "line 1: element 1 of the array is broken (Expecting value)"),
        ('[\n{"source": 1},\n{"source": "a', "line 3: element 2 of the array is broken (Unterminated string"),
        ('[{"source": 1}]\n[{"source": 2}]', "line 2: expected the end of the file after the array, found '['"),
        ('[{"source": 1, "target": 2}] x', "line 1: expected the end of the file after the array, found 'x'"),
        ("[]\n\n,", "line 3: expected the end of the file after the array, found ','"),
    ],
)
def test_broken_arrays(tmp_path, content, message):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UserError) as error:
        read(tmp_path / "a.json")
    assert str(error.value).startswith(f"{tmp_path}/a.json, {message}")
    assert "\n" not in str(error.value)
