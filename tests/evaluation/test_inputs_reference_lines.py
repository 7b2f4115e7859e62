import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.errors import UserError
from stages.evaluation.inputs import (
    Inputs,
    read_columns,
    read_inputs,
    read_predictions,
    read_targets,
    write_predictions,
)
from stages.evaluation.quality import Bleu, RougeL, SlotErrorRate, metrics
from stages.evaluation.reference_lines import copy_nearest, human


def write(path, rows):
    pq.write_table(pa.table({"source": [r[0] for r in rows], "target": [r[1] for r in rows]}), path)
    return path


def test_targets_are_grouped_by_source_in_order_of_first_appearance(tmp_path):
    inputs = read_inputs(write(tmp_path / "test.parquet", [("b", "1"), ("a", "2"), ("b", "3"), ("b", "1")]))
    assert inputs == Inputs(["b", "a"], [["1", "3", "1"], ["2"]])
    assert inputs.pairs == (["b", "b", "b", "a"], ["1", "3", "1", "2"])


def test_targets_are_thinned_evenly(tmp_path):
    path = write(tmp_path / "train.parquet", [("a", str(i)) for i in range(10)])
    assert read_targets(path, 10) == [str(i) for i in range(10)]
    assert read_targets(path, 4) == ["0", "3", "6", "9"]


def test_unreadable_splits_are_named(tmp_path):
    with pytest.raises(UserError, match=r"absent.parquet is missing: run `dvc repro`"):
        read_inputs(tmp_path / "absent.parquet")
    (tmp_path / "bad.parquet").write_bytes(b"not parquet at all")
    with pytest.raises(UserError, match=r"bad.parquet is damaged"):
        read_inputs(tmp_path / "bad.parquet")
    with pytest.raises(UserError, match=r"empty.parquet has no rows"):
        read_inputs(write(tmp_path / "empty.parquet", []))
    pq.write_table(pa.table({"source": ["a"]}), tmp_path / "narrow.parquet")
    with pytest.raises(UserError, match=r"narrow.parquet lacks column target"):
        read_inputs(tmp_path / "narrow.parquet")


def test_predictions_come_back_beside_references_and_signatures(tmp_path):
    test = Inputs(["b", "a"], [["1", "3"], ["2"]])
    validation = Inputs(["c"], [["4"]])
    path = tmp_path / "predictions" / "dense.parquet"
    write_predictions(path, {"test": (test, ["x", ""]), "validation": (validation, ["z"])}, {"bleu": "tok:13a"})
    first = path.read_bytes()
    write_predictions(path, {"test": (test, ["x", ""]), "validation": (validation, ["z"])}, {"bleu": "tok:13a"})
    assert path.read_bytes() == first
    table = pq.read_table(path)
    assert table.schema.metadata[b"bleu"] == b"tok:13a"
    assert table.to_pylist() == [
        {"split": "test", "source": "b", "prediction": "x", "references": ["1", "3"]},
        {"split": "test", "source": "a", "prediction": "", "references": ["2"]},
        {"split": "validation", "source": "c", "prediction": "z", "references": ["4"]},
    ]
    assert table.schema.field("references").type == pa.list_(pa.string())
    assert read_predictions(path, "test", test) == ["x", ""]
    with pytest.raises(UserError, match="made from another test split"):
        read_predictions(path, "test", validation)
    assert read_columns(path, "prediction").num_rows == 3


def test_copy_takes_the_first_utterance_of_the_most_similar_input():
    train = Inputs(["inform ( name )", "inform ( area )", "bye"], [["A name .", "other"], ["An area ."], ["Bye !"]])
    assert copy_nearest(train, ["inform ( areas )", "byebye", "inform ( name )"]) == ["An area .", "Bye !", "A name ."]


def test_copy_takes_the_first_of_inputs_that_tie(monkeypatch):
    train = Inputs(["ab", "ba", "ab "], [["first"], ["second"], ["third"]])
    assert copy_nearest(train, ["a", "b", "zz"]) == ["first"] * 3
    monkeypatch.setattr("stages.evaluation.reference_lines.BLOCK", 1)  # one source at a time
    assert copy_nearest(train, ["a", "b", "zz"]) == ["first"] * 3


def test_human_line_leaves_each_reference_out_and_weighs_inputs_alike():
    inputs = Inputs(["p", "q", "r"], [["a b", "a b", "x y"], ["c"], ["d e", "d e"]])
    # Input p: two of its three references have an equal among the others; r: both; q has one reference only.
    expected = ((1 + 1 + 0) / 3 + 1) / 2
    assert human(inputs, [RougeL("en")]) == {"rougeL": pytest.approx(100 * expected)}
    assert human(Inputs(["q"], [["c"]]), [RougeL("en")]) == {}


def test_human_line_pools_sufficient_statistics():
    texts = ["the hotel is in the north", "the hotel is in the south", "it is in the north"]
    bleu = Bleu("en")
    rows = [bleu.statistics([[t]], [[o for o in texts if o != t]])[0][0] for t in texts]
    expected = float(bleu.score(sum(rows) / 3))
    assert human(Inputs(["p"], [texts]), [bleu]) == {"bleu": pytest.approx(expected)}


def test_human_line_of_many_references_is_bounded(monkeypatch):
    scored = []

    class Counting(SlotErrorRate):
        def statistics(self, systems, references):
            scored.append((len(systems[0]), len(references[0])))
            return super().statistics(systems, references)

    human(Inputs(["bye"], [[f"#A-X# {i}" for i in range(500)]]), [Counting("#A-X#")])
    assert scored == [(10, 499)]


def test_reference_lines_have_every_metric():
    inputs = Inputs(["p"], [["at #A-X# .", "near #A-X# ."]])
    measured = metrics("en", "#A-X#", inputs.references)
    assert list(human(inputs, measured)) == ["bleu", "chrf", "rougeL", "slot_error_rate"]
