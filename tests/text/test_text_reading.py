"""Every format gives the same rows, and what cannot be read says where and why."""

from __future__ import annotations

import csv
import gzip
import json
import struct
from functools import partial
from itertools import chain

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.errors import UserError
from stages.text import columnar
from stages.text.reading import BATCH_ROWS, find_parts, read_batches

PAIRS = [
    ("inform (name, area)", 'The "#NAME#" is in the #AREA# , in the centre .'),
    ("NA", "null"),
    ("007", "1.10"),
    ("告知+酒店", "推荐您去“[名称]”。"),
    ("two  spaces ", "a\ttab,\u2028a separator and a \x0c form feed"),
    ("same", ""),
]
MULTILINE = [*PAIRS, ("line", "break\nin a cell\r\nand another")]


@pytest.fixture
def data(settings):
    """`data(path, **changes)`: the data section, with columns source and target."""

    def make(path, **changes):
        return settings(data={"path": str(path), "source": "source", "target": "target", **changes}).data

    return make


def write_csv(path, pairs, delimiter=","):
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([("id", "target", "source"), *((7, t, s) for s, t in pairs)])


def write_json(path, pairs, **kwargs):
    path.write_text(json.dumps([{"source": s, "target": t} for s, t in pairs], **kwargs), encoding="utf-8")


def write_json_lines(path, pairs):
    lines = (json.dumps({"target": t, "more": [1], "source": s}, ensure_ascii=False) + "\n" for s, t in pairs)
    path.write_text("".join(lines), encoding="utf-8")


def write_parquet(path, pairs):
    source, target = zip(*pairs, strict=True)
    pq.write_table(pa.table({"source": source, "id": range(len(pairs)), "target": target}), path)


WRITERS = {
    "pairs.csv": write_csv,
    "pairs.tsv": lambda path, pairs: write_csv(path, pairs, "\t"),
    "pairs.json": write_json,
    "indented.json": lambda path, pairs: write_json(path, pairs, indent=2, ensure_ascii=False),
    "lines.json": write_json_lines,
    "pairs.jsonl": write_json_lines,
    "pairs.ndjson": write_json_lines,
    "pairs.parquet": write_parquet,
}


def read(section, cache="unused"):
    batches = read_batches(find_parts(section, cache))
    return [(row.source, row.target) for batch in batches for row in batch.rows]


@pytest.mark.parametrize("zipped", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("name", WRITERS)
def test_every_file_format_gives_the_same_rows(data, tmp_path, name, zipped):
    path = tmp_path / name
    WRITERS[name](path, MULTILINE)
    if zipped:
        packed = tmp_path / f"{name}.gz"
        packed.write_bytes(gzip.compress(path.read_bytes()))
        path = packed
    assert read(data(path)) == MULTILINE


@pytest.mark.parametrize("zipped", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("named", ["all.source", "all.target"])
def test_line_aligned_texts(data, tmp_path, named, zipped):
    for side, texts in zip(("source", "target"), zip(*PAIRS, strict=True), strict=True):
        raw = "".join(f"{text}\n" for text in texts).encode()
        (tmp_path / f"all.{side}{'.gz' if zipped else ''}").write_bytes(gzip.compress(raw) if zipped else raw)
    assert read(data(tmp_path)) == PAIRS
    named += ".gz" if zipped else ""
    with pytest.raises(
        UserError, match=rf"{named} is half of a pair.* data\.path to .* and data\.pattern to '{named}'"
    ):
        find_parts(data(tmp_path / named), tmp_path)
    write_csv(tmp_path / "other.csv", PAIRS)
    assert read(data(tmp_path, pattern=named, source="act", target="utterance")) == PAIRS
    assert read(data(tmp_path, pattern=named, swap=True)) == [(t, s) for s, t in PAIRS]


def test_line_aligned_texts_of_different_length(data, tmp_path):
    (tmp_path / "a.source").write_text("one\ntwo\nthree\n")
    (tmp_path / "a.target").write_text("one\ntwo")
    with pytest.raises(UserError, match=r"a\.target ends after line 2 and .*a\.source does not"):
        read(data(tmp_path))
    (tmp_path / "a.target").unlink()
    with pytest.raises(UserError, match=r"cannot read .*a\.target"):
        read(data(tmp_path))


def test_folder_saved_by_datasets(data, tmp_path):
    from datasets import Dataset, DatasetDict

    source, target = zip(*MULTILINE, strict=True)
    dataset = Dataset.from_dict({"source": source, "other": [[1]] * len(source), "target": target})
    dataset.save_to_disk(tmp_path / "one")
    assert read(data(tmp_path / "one")) == MULTILINE

    DatasetDict(test=dataset.select([2, 0]), dev=dataset.select([1]), train=dataset).save_to_disk(tmp_path / "all")
    parts = find_parts(data(tmp_path / "all"), tmp_path)
    assert {part.name: part.split for part in parts} == {
        f"{tmp_path}/all/{name}": split for name, split in [("dev", "validation"), ("test", "test"), ("train", "train")]
    }
    assert [row.target for part in parts if part.split == "test" for row in part.read()] == [target[2], target[0]]

    DatasetDict(dev=dataset.select([]), train=dataset).save_to_disk(tmp_path / "empty")
    with pytest.raises(UserError, match=r"^no rows for dev in .*/empty/dev: add some, or leave the split out"):
        read(data(tmp_path / "empty"))

    dataset.select([]).save_to_disk(tmp_path / "none")
    with pytest.raises(UserError, match=r"/none has no rows$"):
        read(data(tmp_path / "none"))

    DatasetDict(train=dataset, extra=dataset).save_to_disk(tmp_path / "odd")
    with pytest.raises(UserError, match="'extra': only train, validation and test"):
        find_parts(data(tmp_path / "odd"), tmp_path)
    with pytest.raises(UserError, match="no column 'nothing', its columns are 'source', 'other', 'target'"):
        read(data(tmp_path / "one", source="nothing"))
    with pytest.raises(UserError, match="column 'other' holds list<"):
        read(data(tmp_path / "one", source="other"))
    next((tmp_path / "one").glob("*.arrow")).unlink()
    with pytest.raises(UserError, match="not a readable `datasets` folder"):
        read(data(tmp_path / "one"))


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("state.json", "[]"),
        ("state.json", '{"_data_files": 1}'),
        ("dataset_info.json", "null"),
        ("dataset_info.json", '{"features": {"source": []}}'),
        ("dataset_info.json", "{"),
    ],
)
def test_damaged_folder_saved_by_datasets(data, tmp_path, file, content):
    from datasets import Dataset

    Dataset.from_dict({"source": ["a"], "target": ["b"]}).save_to_disk(tmp_path / "saved")
    (tmp_path / "saved" / file).write_text(content)
    with pytest.raises(UserError, match="not a readable `datasets` folder") as error:
        read(data(tmp_path / "saved"))
    assert "\n" not in str(error.value)


def test_damaged_texts_in_a_folder_saved_by_datasets(data, tmp_path):
    from datasets import Dataset

    Dataset.from_dict({"source": ["eleven", "one"], "target": ["b", "c"]}).save_to_disk(tmp_path / "saved")
    (file,) = (tmp_path / "saved").glob("*.arrow")
    whole, offsets = file.read_bytes(), struct.pack("<3i", 0, 6, 9)
    assert whole.count(offsets) == 1
    file.write_bytes(whole.replace(offsets, struct.pack("<3i", 0, 6, 1)))
    with pytest.raises(UserError, match=r"saved is damaged .*: save the dataset again"):
        read(data(tmp_path / "saved"))


def test_hub_id_goes_through_load_dataset(data, tmp_path, monkeypatch):
    # A local folder takes the place of a repository on the hub; the same library call loads both.
    load, there = datasets.load_dataset, {"owner/name": str(tmp_path)}
    monkeypatch.setattr("datasets.load_dataset", lambda path, *args, **kwargs: load(there[path], *args, **kwargs))
    for name in ("train", "test"):
        write_csv(tmp_path / f"{name}.csv", MULTILINE[:1])
    parts = find_parts(data("unused", hub="owner/name"), tmp_path / "cache")
    assert [(part.name, part.split) for part in parts] == [("owner/name/test", "test"), ("owner/name/train", "train")]
    assert [(row.source, row.target) for row in parts[0].read()] == MULTILINE[:1]
    assert (tmp_path / "cache").is_dir()


def test_hub_id_names_configuration_and_revision(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr("datasets.load_dataset", lambda *args, **kwargs: asked.append((args, kwargs)) or {})
    columnar.load_hub("owner/name:small@v1.0", tmp_path)
    columnar.load_hub("owner/name", tmp_path)
    assert asked == [
        (("owner/name", "small"), {"revision": "v1.0", "cache_dir": str(tmp_path)}),
        (("owner/name", None), {"revision": None, "cache_dir": str(tmp_path)}),
    ]


def test_hub_out_of_reach(data, tmp_path):
    with pytest.raises(UserError, match=r"cannot load data\.hub 'no-such-owner/nothing': "):
        find_parts(data("unused", hub="no-such-owner/nothing"), tmp_path)


def test_numbers_are_text_as_written(data, tmp_path):
    (tmp_path / "a.json").write_text('[{"source": 1.10, "target": 12345678901234567890}, {"source": NaN, "target": 0}]')
    assert read(data(tmp_path / "a.json")) == [("1.10", "12345678901234567890"), (None, "0")]
    pq.write_table(pa.table({"source": [1, None], "target": [0.5, 2.0]}), tmp_path / "a.parquet")
    assert read(data(tmp_path / "a.parquet")) == [("1", "0.5"), (None, "2")]


def test_dictionary_columns_of_parquet_are_text(data, tmp_path):
    column = pa.array(["b", None, "b"]).dictionary_encode()
    pq.write_table(
        pa.table({"source": column, "target": pa.array(["x", "y", "z"], pa.large_string())}), tmp_path / "a.parquet"
    )
    assert read(data(tmp_path / "a.parquet")) == [("b", "x"), (None, "y"), ("b", "z")]


def test_a_byte_order_mark_is_no_text(data, tmp_path):
    (tmp_path / "a.csv").write_bytes("\ufeffsource,target\r\nä,b\r\n".encode())
    (tmp_path / "a.jsonl").write_bytes('\ufeff{"source": "ä", "target": "b"}'.encode())
    (tmp_path / "a.json").write_bytes('\ufeff[{"source": "ä", "target": "b"}]'.encode())
    assert [read(data(tmp_path / name)) for name in ("a.csv", "a.jsonl", "a.json")] == [[("ä", "b")]] * 3


def test_blank_lines_of_csv_are_no_rows(data, tmp_path):
    (tmp_path / "a.csv").write_text("\nsource,target\n\na,b\n\n\nc,d")
    assert read(data(tmp_path / "a.csv")) == [("a", "b"), ("c", "d")]


@pytest.mark.parametrize("delimiter", [",", "\t"])
def test_ragged_rows_of_csv_stay_as_written(data, tmp_path, delimiter):
    written = ["only one", 'three,cells,"he said ""here"""', '"with a\r\nline break"', ' "a" ,,']
    lines = ["source,target", "a,b", written[0], "", *written[1:3], '"c\n",d', written[3]]
    path = tmp_path / ("a.csv" if delimiter == "," else "a.tsv")
    path.write_bytes("\r\n".join(lines).replace(",", delimiter).encode())
    rows = list(find_parts(data(path), tmp_path)[0].read())
    assert [row.source for row in rows if row.malformed] == [text.replace(",", delimiter) for text in written]
    assert [row[:2] for row in rows if not row.malformed] == [("a", "b"), ("c\n", "d")]


def test_a_quote_that_is_never_closed_does_not_take_in_the_file(data, tmp_path, monkeypatch, request):
    request.addfinalizer(partial(csv.field_size_limit, csv.field_size_limit()))
    monkeypatch.setattr("stages.text.delimited._MAX_CELL_CHARACTERS", 50)
    (tmp_path / "a.csv").write_text('source,target\na,b\nc,"d\n' + "e,f\n" * 1000)
    with pytest.raises(UserError, match=r"a\.csv, line 1\d, in the row that begins in line 3: field larger than"):
        read(data(tmp_path / "a.csv"))


def test_rows_are_numbered_across_batches(data, tmp_path):
    write_csv(tmp_path / "a.csv", [(f"s{i}", f"t{i}") for i in range(BATCH_ROWS + 2)])
    write_csv(tmp_path / "b.csv", [("last", "one")])
    batches = list(read_batches(find_parts(data(tmp_path), tmp_path)))
    assert [(batch.part, batch.first_row, len(batch.rows)) for batch in batches] == [
        (0, 1, BATCH_ROWS),
        (0, BATCH_ROWS + 1, 2),
        (1, 1, 1),
    ]
    assert batches[1].rows[0].source == f"s{BATCH_ROWS}"


def test_folder_reads_what_the_pattern_matches_in_name_order(data, tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("b.csv", "a.jsonl", "deep/c.csv"):
        WRITERS[f"pairs{name[name.index('.') :]}"](tmp_path / name, [(name, "text")])
    for name in ("README.md", ".hidden.csv", "notes.txt"):
        (tmp_path / name).write_text("no data")
    assert [source for source, _ in read(data(tmp_path))] == ["a.jsonl", "b.csv"]
    assert [source for source, _ in read(data(tmp_path, pattern="**/*.csv"))] == ["b.csv", "deep/c.csv"]
    with pytest.raises(UserError, match=r"no file matching data\.pattern 'x\*'"):
        read(data(tmp_path, pattern="x*"))


@pytest.mark.parametrize("pattern", ["", ".", "/", "/data/*.csv", "../*.csv"])
def test_a_pattern_that_cannot_match(data, tmp_path, pattern):
    (tmp_path / "folder").mkdir()
    write_csv(tmp_path / "a.csv", PAIRS)
    with pytest.raises(UserError, match=r"data\.pattern '.*' cannot match files below .*folder: write for example"):
        read(data(tmp_path / "folder", pattern=pattern))


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["train.csv", "dev.csv", "test.csv"], ["validation", "test", "train"]),
        (["my-Train-00000-of-00001.csv", "my_valid.csv"], ["train", "validation"]),
        (["train/a.csv", "testing/a.csv"], ["test", "train"]),
        (["latest.csv", "trainer.csv"], [None, None]),
        (["train.csv"], [None]),
    ],
)
def test_splits_in_file_names(data, tmp_path, names, splits):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_csv(tmp_path / name, [("a", "b")])
    assert [part.split for part in find_parts(data(tmp_path, pattern="**/*.csv"), tmp_path)] == splits
    assert {part.split for part in find_parts(data(tmp_path, pattern="**/*.csv", split="id"), tmp_path)} == {None}


def test_some_files_with_a_split_and_some_without(data, tmp_path):
    for name in ("train.csv", "test.csv", "more.csv"):
        write_csv(tmp_path / name, [("a", "b")])
    with pytest.raises(UserError, match=r"more\.csv does not say its split"):
        find_parts(data(tmp_path), tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "a.csv is empty"),
        ("a.csv", b"source;target\na;b\n", "a.csv has no column 'source', its columns are 'source;target'"),
        ("a.csv", b"source,source,target\n", "a.csv has 2 columns 'source'"),
        ("a.csv", b"source,target\na,b\n\xe9t\xe9,b\n", "a.csv, line 3: not UTF-8"),
        ("a.csv", "source,target\n".encode("utf-16"), "a.csv, line 1: not UTF-8"),
        ("a.csv", b'source,target\na,b\na,"b" c\n', "a.csv, line 3: "),
        ("a.csv", b'source,target\na,"b\nc', "a.csv, line 3, in the row that begins in line 2: unexpected end"),
        ("a.tsv", b"source,target\na,b\n", "a.tsv has no column 'source'"),
        ("a.csv.gz", b"source,target\n", "a.csv.gz is not a whole gzip file"),
        ("a.csv.gz", gzip.compress(b"source,target\na,b\n" * 50, mtime=0)[:-9], "a.csv.gz is not a whole gzip file"),
        ("a.json", b"", "a.json is empty"),
        ("a.json", b" \n", "a.json is empty"),
        ("a.json", b'{"data": [\n', "a.json, line 1: "),
        ("a.json", b'[{"source": "a",\n"target": "\xff"}]', "a.json, line 2: not UTF-8"),
        ("a.jsonl", b'{"source": "a", "target": "b"}\n{"source": \n', "a.jsonl, line 2: "),
        ("a.jsonl", b'{"source": "a", "target": "b"}\n[1]\n', "a.jsonl, line 2: expected an object, found '\\[1\\]'"),
        ("a.jsonl", b'{"source": "a", "utterance": "b"}\n', "a.jsonl has no column 'target'"),
        ("a.parquet", b"PAR1 not", "a.parquet is not a readable Parquet file"),
        ("a.parquet", b"", "a.parquet is not a readable Parquet file"),
        ("a.parquet.gz", gzip.compress(b"no", mtime=0), "a.parquet.gz is not a readable Parquet file"),
        ("a.xlsx", b"", "a.xlsx: unknown kind of file; known: .csv, .tsv"),
    ],
)
def test_unreadable_files(data, tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read(data(tmp_path / name))
    assert "\n" not in str(error.value)


def test_data_that_is_not_there(data, tmp_path):
    with pytest.raises(UserError, match=r"nothing\.csv does not exist: set data\.path"):
        find_parts(data(tmp_path / "nothing.csv"), tmp_path)
    with pytest.raises(UserError, match=r"cannot read data\.path x+: File name too long"):
        find_parts(data("x" * 300), tmp_path)


def test_split_column_of_plain_text(data, tmp_path):
    (tmp_path / "a.source").write_text("a\n")
    with pytest.raises(UserError, match=r"and has no column 'fold': set data\.split to null"):
        find_parts(data(tmp_path, split="fold"), tmp_path)


def test_columns_of_parquet_that_hold_no_text(data, tmp_path):
    pq.write_table(pa.table({"source": [True], "target": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="column 'source' holds bool, not text"):
        read(data(tmp_path / "a.parquet"))
    invalid = pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff"))
    pq.write_table(pa.table({"source": invalid, "target": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="column 'source' is not UTF-8"):
        read(data(tmp_path / "a.parquet"))


def test_column_names_of_parquet_that_are_no_text(data, tmp_path):
    pq.write_table(pa.table({"source": ["a"], "target": ["b"]}), tmp_path / "a.parquet", store_schema=False)
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(whole.replace(b"source", b"s\xffurce"))
    with pytest.raises(UserError, match=r"a\.parquet is not a readable Parquet file: 'utf-8' codec can't decode"):
        read(data(tmp_path / "a.parquet"))


def test_swapping(data, tmp_path):
    write_csv(tmp_path / "a.csv", PAIRS)
    assert list(chain(*read(data(tmp_path / "a.csv", swap=True)))) == [cell for s, t in PAIRS for cell in (t, s)]
