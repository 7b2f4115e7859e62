"""The whole clean stage: what it writes for small data, and the command itself."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pandera.errors import SchemaErrors
from ruamel.yaml import YAML

from stages.errors import UserError
from stages.text import reading
from stages.text.cleaning import OUTPUTS, clean_pairs
from stages.text.normalise import comparable
from stages.text.profile import metrics, show
from stages.text.schema import PAIRS, pairs_checks
from stages.text.writing import PairWriter

ROOT = Path(__file__).parents[2]


class Cleaned(NamedTuple):
    """What a cleaning wrote: rows of each output as dicts, and the profile."""

    train: list[dict[str, Any]]
    validation: list[dict[str, Any]]
    test: list[dict[str, Any]]
    rejected: list[dict[str, Any]]
    profile: dict[str, Any]

    @property
    def kept(self) -> list[dict[str, Any]]:
        rows = [*self.train, *self.validation, *self.test]
        return sorted(rows, key=lambda row: (row["file"], row["row"]))

    @property
    def reasons(self) -> dict[int, str]:
        return {row["row"]: row["reason"] for row in self.rejected}

    @property
    def split_of(self) -> dict[str, str]:
        return {row["source"]: name for name in ("train", "validation", "test") for row in getattr(self, name)}


@pytest.fixture
def data(settings):
    """`data(path, **changes)`: the data section, with columns source and target."""

    def make(path, **changes):
        return settings(data={"path": str(path), "source": "source", "target": "target", **changes}).data

    return make


@pytest.fixture
def clean(settings, data, tmp_path):
    """`clean(path, {…}, **steps)`: clean a file or folder in one process."""

    def run(path, data_changes=None, **steps):
        folder = tmp_path / "cleaned"
        folder.mkdir(exist_ok=True)
        outputs = {name: folder / f"{name}.parquet" for name in OUTPUTS}
        section = settings(clean={"workers": 1, **steps}).clean
        profile = clean_pairs(data(path, **(data_changes or {})), section, outputs, folder, lambda rows: None)
        tables = {name: pq.read_table(file).to_pylist() for name, file in outputs.items()}
        return Cleaned(**tables, profile=profile)

    return run


def many(count, prefix="input"):
    """Pairs with distinct inputs, enough of them to fill every split."""
    return [(f"{prefix} {i}", f"A text that says {i} .") for i in range(count)]


def write(path, rows, header=("source", "target")):
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def test_every_row_is_kept_or_rejected_with_its_reason(clean, tmp_path):
    rows = [
        ("Say  hello", "Hello&nbsp;there <b>!</b>"),  # 1: normalised
        ("bye", ""),
        ("bye", " \u200b<br> "),
        ("", "Goodbye ."),
        ("Say hello", "Hello there !"),  # 5: equal to 1 once both are normalised
        ("Say hello", "HELLO THERE !"),
        ("a", "Too short a source ."),
        ("long", "x" * 31),
        ("x" * 31, "long"),
        ("only one cell",),  # 10
    ]
    path = write(tmp_path / "a.csv", [*rows, *many(60)])
    cleaned = clean(path, min_characters=2, max_source_characters=30, max_target_characters=30)
    assert cleaned.reasons == {
        2: "target_empty",
        3: "target_empty",
        4: "source_empty",
        5: "duplicate",
        7: "source_too_short",
        8: "target_too_long",
        9: "source_too_long",
        10: "malformed",
    }
    assert cleaned.profile["read"] == 70 == len(cleaned.kept) + len(cleaned.rejected)
    assert cleaned.kept[0] == {"source": "Say hello", "target": "Hello there !", "file": str(path), "row": 1}
    assert [row["row"] for row in cleaned.kept] == [1, 6, *range(11, 71)]
    # Rejected texts stand as they were read.
    assert cleaned.rejected[1] == {
        "source": "bye",
        "target": " \u200b<br> ",
        "file": str(path),
        "row": 3,
        "reason": "target_empty",
    }
    assert cleaned.rejected[-1]["source"] == "only one cell"


def test_cells_that_are_no_text(clean, tmp_path):
    odd = [
        {"source": ["\ud800", 2.0], "target": "b"},
        {"source": "a", "target": {"b": 1.50}},
        {"source": True, "target": None},
    ]
    rows = [*odd, {"source": 3, "target": 1.50}, *({"source": s, "target": t} for s, t in many(60))]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)).replace("1.5", "1.50"))
    cleaned = clean(tmp_path / "a.jsonl")
    assert cleaned.reasons == {1: "source_not_text", 2: "target_not_text", 3: "source_not_text"}
    assert [row["source"] for row in cleaned.rejected] == [r'["\ud800", 2.0]', "a", "true"]
    assert cleaned.rejected[1]["target"] == '{"b": 1.50}'
    assert (cleaned.kept[0]["source"], cleaned.kept[0]["target"]) == ("3", "1.50")


def test_steps_that_are_off_change_nothing(clean, tmp_path):
    rows = [(" a\u200b ", "cafÃ© &amp;  e\u0301 <b>"), (" a\u200b ", "cafÃ© &amp;  e\u0301 <b>"), *many(60)]
    steps = ("repair_encoding", "strip_control", "strip_html", "collapse_whitespace", "drop_duplicates")
    cleaned = clean(write(tmp_path / "a.csv", rows), unicode_form=None, **dict.fromkeys(steps, False))
    assert [(row["source"], row["target"]) for row in cleaned.kept] == rows
    assert cleaned.profile["normalised"] == 0


def test_near_duplicates_and_language(clean, tmp_path):
    english = "There are several restaurants in the centre of town that serve good food"
    rows = [("near", f"{english} ."), ("near", f"{english} !"), ("other", f"{english} .")]
    rows += [("french", "Il y a plusieurs restaurants dans le centre de la ville qui sont ouverts .")]
    rows += [(f"{i} {'abcdefghij'[i % 10] * 9}", f"{english} {i} {'klmnopqrst'[i // 10] * 40}") for i in range(60)]
    cleaned = clean(write(tmp_path / "a.csv", rows), near_duplicates=0.9, language_filter="en")
    assert cleaned.reasons == {2: "near_duplicate", 4: "target_language"}


def test_chinese(clean, tmp_path):
    rows = [("告知+酒店", "您好，  推荐\u200b您去“[告知+酒店]”。"), ("告知＋酒店", "您好！"), ("告知+酒店", "您好！")]
    rows += [(f"告知+酒店+{i}", f"评分是{i}分。") for i in range(60)]
    cleaned = clean(write(tmp_path / "a.csv", rows))
    assert [row["target"] for row in cleaned.kept[:3]] == ["您好， 推荐您去“[告知+酒店]”。", "您好！", "您好！"]
    # NFC keeps the full-width plus sign, but it makes no other input.
    assert cleaned.kept[1]["source"] == "告知＋酒店"
    assert cleaned.split_of["告知＋酒店"] == cleaned.split_of["告知+酒店"]


@pytest.mark.parametrize("name", ["multiwoz", "crosswoz"])
def test_bundled_sets(clean, name):
    cleaned = clean(ROOT / f"data/raw/{name}.csv.gz", {"source": "act", "target": "utterance"})
    assert set(Counter(row["reason"] for row in cleaned.rejected)) <= {"duplicate"}
    inputs = {name: {row["source"] for row in getattr(cleaned, name)} for name in ("train", "validation", "test")}
    total = {"m": 1932, "c": 1390}[name[0]]
    assert sum(map(len, inputs.values())) == len(set.union(*inputs.values())) == total
    assert all(len(inputs[name]) > 0.08 * total for name in inputs)


def test_adding_rows_moves_no_row_to_another_split(clean, tmp_path):
    before = clean(write(tmp_path / "a.csv", many(80))).split_of
    after = clean(write(tmp_path / "a.csv", [*many(50, "new"), *many(80), *many(50, "newer")])).split_of
    assert {source: after[source] for source in before} == before


def test_prefix_and_swap(clean, tmp_path):
    path = write(tmp_path / "a.csv", many(80))
    plain, prefixed = clean(path), clean(path, {"prefix": "say it: "}, max_source_characters=8)
    assert [row["source"] for row in prefixed.kept] == [f"say it: input {i}" for i in range(80)]
    assert {source.removeprefix("say it: "): split for source, split in prefixed.split_of.items()} == plain.split_of
    swapped = clean(path, {"swap": True})
    assert [(row["target"], row["source"]) for row in swapped.kept] == many(80)


def test_split_column(clean, tmp_path):
    names = ["train", "TRAINING", "dev", "Validation", "test", "testing "]
    rows = [(*pair, names[i % 6]) for i, pair in enumerate(many(60))]
    # Another wording for a test input is in train: it goes, and test stays whole.
    rows += [("INPUT 4", "In train too .", "train"), ("input 2", "In test too .", "test")]
    cleaned = clean(write(tmp_path / "a.csv", rows, ("source", "target", "fold")), {"split": "fold"})
    assert {row["row"] for row in cleaned.validation} == set(range(3, 61, 6)) - {3} | set(range(4, 61, 6))
    assert {row["row"] for row in cleaned.test} == {*range(5, 61, 6), *range(6, 61, 6), 62}
    assert cleaned.reasons == {61: "input_in_other_split", 3: "input_in_other_split"}


def test_a_repeat_of_a_test_row_in_train_leaves_test_whole(clean, tmp_path):
    rows = [("a", "b", "train"), ("a", "b", "test"), ("c", "d", "train"), ("e", "f", "dev")]
    cleaned = clean(write(tmp_path / "a.csv", rows, ("source", "target", "fold")), {"split": "fold"})
    assert (cleaned.reasons, [row["row"] for row in cleaned.test]) == ({1: "input_in_other_split"}, [2])


def test_files_named_train_and_test_get_a_validation_split_from_train(clean, tmp_path):
    (tmp_path / "data").mkdir()
    write(tmp_path / "data/train.csv", many(80))
    write(tmp_path / "data/test.csv", many(5, "held out"))
    cleaned = clean(tmp_path / "data")
    assert [row["source"] for row in cleaned.test] == [f"held out {i}" for i in range(5)]
    assert {row["file"] for row in cleaned.validation} == {f"{tmp_path}/data/train.csv"}
    assert [file["read"] for file in cleaned.profile["files"]] == [5, 80]


@hypothesis_settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.sampled_from("aAbBcCｃ"), st.sampled_from("xyz"), st.sampled_from(["train", "dev", "test"])))
)
def test_no_input_is_in_two_ready_made_splits(clean, tmp_path, rows):
    rows = [*rows, ("1", "x", "train"), ("2", "x", "dev"), ("3", "x", "test")]
    cleaned = clean(write(tmp_path / "a.csv", rows, ("source", "target", "fold")), {"split": "fold"})
    inputs = [
        {comparable(row["source"]) for row in getattr(cleaned, split)} for split in ("train", "validation", "test")
    ]
    assert len(set.union(*inputs)) == sum(map(len, inputs))
    assert len(cleaned.kept) + len(cleaned.rejected) == len(rows)


@pytest.mark.parametrize("workers", [2, 3])
def test_any_number_of_workers_writes_the_same_bytes(settings, data, tmp_path, monkeypatch, workers):
    monkeypatch.setattr(reading, "BATCH_ROWS", 7)
    path = write(tmp_path / "a.csv", [*many(100), *many(40), ("", "empty"), *((s, f"{t} !") for s, t in many(30))])

    def run(count):
        folder = tmp_path / str(count)
        folder.mkdir()
        outputs = {name: folder / name for name in OUTPUTS}
        section = settings(clean={"workers": count, "near_duplicates": 0.8}).clean
        profile = clean_pairs(data(path), section, outputs, folder, lambda rows: None)
        return profile, {name: file.read_bytes() for name, file in outputs.items()}

    assert run(workers) == run(1)


def test_an_error_in_a_worker_is_the_error(settings, data, tmp_path):
    path = write(
        tmp_path / "a.csv", [(*pair, "train") for pair in many(3)] + [("a", "b", "7")], ("source", "target", "fold")
    )
    section = settings(clean={"workers": 2}).clean
    outputs = {name: tmp_path / name for name in OUTPUTS}
    with pytest.raises(UserError, match=r"a\.csv, row 4: '7' in the column data\.split is no split"):
        clean_pairs(data(path, split="fold"), section, outputs, tmp_path, lambda rows: None)


def test_files_have_the_columns_that_other_stages_read(clean, tmp_path):
    clean(write(tmp_path / "a.csv", many(80)))
    columns = {"source": pa.string(), "target": pa.string(), "file": pa.string(), "row": pa.int64()}
    for name in ("train", "validation", "test"):
        assert pq.read_schema(tmp_path / f"cleaned/{name}.parquet") == pa.schema(columns)
    assert pq.read_schema(tmp_path / "cleaned/rejected.parquet") == pa.schema({**columns, "reason": pa.string()})


def test_profile_and_metrics(clean, tmp_path, capsys):
    rows = [*many(80), *many(80), ("input 0", "Another ."), ("[name]", "")]
    profile = clean(write(tmp_path / "a.csv", rows)).profile
    flat = metrics(profile)
    assert {key: flat[key] for key in ("rows_read", "rows_kept", "rows_rejected", "rejected_duplicate")} == {
        "rows_read": 162,
        "rows_kept": 81,
        "rows_rejected": 81,
        "rejected_duplicate": 80,
    }
    assert sum(flat[f"{split}_rows"] for split in ("train", "validation", "test")) == 81
    assert sum(flat[f"{split}_inputs"] for split in ("train", "validation", "test")) == 80
    assert sum(flat[f"{split}_inputs_with_several_targets"] for split in ("train", "validation", "test")) == 1
    assert all(isinstance(value, (int, float)) for value in flat.values())
    # "input 7" and "input 42" have 7 and 8 characters, "A text that says 7 ." has 20 or 21, "Another ." has 9.
    assert profile["length_histogram"] == {
        "edges": [1, 2, 4, 8, 16, 32],
        "source": [0, 0, 11, 70, 0],
        "target": [0, 0, 0, 1, 80],
    }
    show(profile)
    printed = capsys.readouterr().out
    assert "162 rows read = 81 kept (0 of them normalised) + 81 rejected" in printed
    assert "[name]" in printed


def test_rows_that_break_the_schema_are_not_written(settings, tmp_path):
    columns = [["a", ""], ["b", "c"], ["file", "file"], [1, 0]]
    path = tmp_path / "a.parquet"
    with pytest.raises(SchemaErrors) as error, PairWriter(path, PAIRS, pairs_checks(settings().clean, "")) as writer:
        writer.write([pa.array(column) for column in columns])
    assert '"column": "source"' in str(error.value)
    assert '"column": "row"' in str(error.value)


@pytest.mark.parametrize(
    ("rows", "steps", "message"),
    [
        ([], {}, r"a\.csv has no rows"),
        ([("a", ""), ("", "b")], {}, r"no row is left of 2 \(1 source_empty, 1 target_empty\)"),
        ([("a", "b"), ("a", "c")], {}, "no rows for .* and .*: 1 distinct inputs were divided"),
    ],
)
def test_too_little_data(clean, tmp_path, rows, steps, message):
    with pytest.raises(UserError, match=message):
        clean(write(tmp_path / "a.csv", rows), **steps)


@pytest.mark.parametrize("empty", ["train", "dev", "test"])
def test_a_ready_made_split_of_a_header_alone_is_refused(clean, tmp_path, empty):
    for name in ("train", "dev", "test"):
        write(tmp_path / f"{name}.csv", [] if name == empty else many(60, name))
    split = {"dev": "validation"}.get(empty, empty)
    with pytest.raises(UserError, match=rf"^no rows for {split} in {tmp_path}/{empty}\.csv: add some"):
        clean(tmp_path)
    write(tmp_path / f"{empty}-2.csv", many(60, empty))  # of a split in several files one may be empty
    assert len(clean(tmp_path).kept) == 180


@pytest.fixture
def project(tmp_path, default_values):
    """A folder with params.yaml and data, in which the command can run; `run(**data)` runs it."""
    write(tmp_path / "mine.csv", many(80))

    def run(**data):
        base = {"path": "mine.csv", "source": "source", "target": "target"}
        values = {**default_values, "data": {**default_values["data"], **base, **data}}
        YAML().dump(values, tmp_path / "params.yaml")
        command = [sys.executable, "-m", "stages.clean"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)

    return run


def outputs_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted((folder / "outputs").rglob("*.*"))}


def test_command_publishes_all_or_nothing(project, tmp_path):
    done = project()
    assert done.returncode == 0, done.stderr
    assert "80 rows read = 80 kept" in done.stdout
    first = outputs_of(tmp_path)
    assert sorted(first) == [
        *(f"outputs/data/{name}" for name in ("profile.json", "rejected.parquet", "test.parquet", "train.parquet")),
        "outputs/data/validation.parquet",
        "outputs/metrics/clean.json",
    ]
    assert pq.read_table(tmp_path / "outputs/data/train.parquet")["file"][0].as_py() == "mine.csv"
    assert project().returncode == 0
    assert outputs_of(tmp_path) == first

    write(tmp_path / "mine.csv", many(3))
    failed = project()
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: no rows for ") and failed.stderr.count("\n") == 1
    wrong = project(target="reply")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (1, 1)
    assert "mine.csv has no column 'reply', its columns are 'source', 'target'" in wrong.stderr
    assert outputs_of(tmp_path) == first
    assert list((tmp_path / ".scratch").iterdir()) == []


def test_cleaning_imports_nothing_heavy():
    check = "import sys, stages.clean; print({'torch', 'transformers', 'datasets', 'mlflow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
