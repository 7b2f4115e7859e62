"""The bundled data is what data/raw/README.md says, and the script that derives it does what it says."""

from __future__ import annotations

import csv
import gzip
import importlib.util
import re
from types import ModuleType

import pytest
from shared import ROOT


@pytest.fixture(scope="module")
def derive() -> ModuleType:
    spec = importlib.util.spec_from_file_location("derive", ROOT / "data/raw/derive.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pairs(name: str) -> list[tuple[str, str]]:
    with gzip.open(ROOT / f"data/raw/{name}.csv.gz", "rt", encoding="utf-8", newline="") as file:
        return [(row["act"], row["utterance"]) for row in csv.DictReader(file)]


def test_repeated_slots_of_an_act_are_numbered(derive):
    assert derive.number_slots("a+b+c*x*a+b+c*y") == "a+b+c1*x*a+b+c2*y"
    assert derive.number_slots("a+b+c*x") == "a+b+c*x"


def test_placeholders_are_numbered_as_they_are_said(derive):
    assert derive.in_order("[d+x6]、[d+x4], [d+x6]; [d+y2] [d+z]") == "[d+x1]、[d+x2], [d+x1]; [d+y1] [d+z]"
    assert derive.in_order("1号[a] 2 [3]") == "1号[a] 2 [3]"


@pytest.mark.parametrize(("name", "rows", "acts"), [("multiwoz", 22693, 1932), ("crosswoz", 20688, 1390)])
def test_counts_are_those_of_the_readme(name, rows, acts):
    found = pairs(name)
    assert (len(found), len(set(found)), len({act for act, _ in found})) == (rows, rows, acts)
    text = (ROOT / "data/raw/README.md").read_text(encoding="utf-8")
    assert f"`{name}.csv.gz`" in text and f"{rows:,} | {acts:,}" in text


def test_an_act_names_every_placeholder_of_its_utterances():
    for act, utterance in pairs("crosswoz"):
        assert set(re.findall(r"\[([A-Za-z]+(?:\+[^\[\]+]+)+)\]", utterance)) <= set(act.split("*"))


def test_derivation_of_the_bundled_sets(derive, tmp_path):
    acts = {"Hotel-Inform": {"Area;Name;Name;": ["b", "a", "b"], "none;": ["  c , "]}, "general-bye": {"none;": ["d"]}}
    pairs = derive.multiwoz_pairs(acts)
    assert pairs == [
        ("Hotel-Inform (Area, Name, Name)", "b"),
        ("Hotel-Inform (Area, Name, Name)", "a"),
        ("Hotel-Inform", "  c , "),
        ("general-bye", "d"),
    ]
    assert derive.crosswoz_pairs({"": ["x"], "Inform+酒店+价格*Inform+酒店+名称": ["y", "y"]}) == [
        ("Inform+酒店+价格*Inform+酒店+名称", "y")
    ]
    derive.write_csv(tmp_path / "a.csv.gz", pairs)
    # No name (flag 8) and no time in the gzip header.
    assert (tmp_path / "a.csv.gz").read_bytes()[3:8] == bytes(5)
