"""The program on a card, as a reader runs it in the folder of a checkpoint, and its table of timings."""

from __future__ import annotations

import json
import re

import pytest
from shared import FAMILIES, SOURCES

from stages.evaluation.generation import stream
from stages.models import checkpoint
from stages.pruning.structure.axes import describe
from stages.pruning.structure.plan import Plan
from stages.pruning.structure.removal import shrink
from stages.registry import card, speed, structure
from stages.registry.card import program

LONG = "inform ( name , area , food ) and a text that is longer than the model reads " * 3


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("family", ["bert", "bart", "t5", "gpt2", "llama"])
def test_the_program_says_what_generate_says(family, beams, restless, tmp_path, monkeypatch, capsys):
    generator = restless(family)
    checkpoint.save(generator, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    monkeypatch.chdir(tmp_path)
    options = {"num_beams": beams, "do_sample": False}
    texts = [SOURCES[0], LONG, SOURCES[3]]
    for text in texts:
        capsys.readouterr()
        exec("\n".join(program(config, text, generator.max_source_tokens, options)), {})
        ours = next(output for _, output in stream(generator, [text], batch_size=1, seed=0, options=options))
        assert capsys.readouterr().out.rstrip("\n") == ours.rstrip("\n")


def test_timings_by_hand():
    row = {"key": "onnx", "level": "taylor-0.5", "runtime": "onnx", "speedup": "4.6432", "load_seconds": "0.251"}
    row |= {"peak_memory_bytes": "493400000", "size_bytes": "7300000"}
    row |= {"latency_ms_p25": "10.04", "latency_ms_p50": "12.5", "latency_ms_p75": "15.0"}
    row |= {"batch1_tokens_per_second_p25": "1", "batch1_tokens_per_second_p50": "80.4"}
    row |= {"batch32_beams4_tokens_per_second_p50": "1234.5", "batch32_beams4_speedup": "3"}
    plain = row | {"key": "taylor-0.5", "runtime": "pytorch"}
    header, cells = speed.table([row, plain, plain | {"key": "safetensors"}], {"onnx": "48.4 (45.2–52.2)"})
    assert header[4:] == ["tokens/s of 1", "tokens/s of 32, 4 beams", "load, s", "memory, MB", "BLEU"]
    same = ["12.5 (10.0–15.0)", "4.64", "80", "1,234", "0.25", "493"]
    assert cells[0] == ["taylor-0.5", "onnx", *same, "48.4 (45.2–52.2)"]
    # The level, and its export that runs in PyTorch too.
    assert [row[:2] for row in cells[1:]] == [["taylor-0.5", "pytorch"], ["taylor-0.5", "pytorch (safetensors)"]]


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_left_of_a_cut_model(family, build_family, tmp_path):
    generator = build_family(family)
    checkpoint.save(generator, tmp_path / "whole")
    whole = list(structure.left(tmp_path / "whole", tmp_path / "whole"))
    sides = ["model"] if generator.kind == "causal" else ["encoder", "decoder"]
    assert [line.partition(":")[0] for line in whole] == [*(f"Left of the {side}" for side in sides), "Vocabulary"]
    sizes = [re.findall(r"(\w+) (\d+) of (\d+)", line) for line in whole[:-1]]
    assert all([name for name, *_ in row] == ["layers", "heads", "neurons", "width"] for row in sizes)
    assert all(now == before for row in sizes for _, now, before in row) and "not trimmed" in whole[-1]
    plan = Plan(dict.fromkeys(describe(generator.model).stacks, (0,)))
    checkpoint.save(shrink(generator, plan), tmp_path / "less")
    less = list(structure.left(tmp_path / "whole", tmp_path / "less"))
    assert [re.findall(r"layers (\d+) of (\d+)", line) for line in less[:-1]] == [[("1", row[0][2])] for row in sizes]


def test_knobs_without_effect_are_left_out():
    values = {"prune.structured.score": "taylor", "prune.structured.group_lasso.strength": 0.2}
    values |= {"prune.structured.budget": "parameters", "prune.structured.latency": None}
    assert card._used(values).keys() == {"prune.structured.score", "prune.structured.budget"}
    trained = values | {"prune.structured.score": "group_lasso", "prune.structured.budget": "latency"}
    assert card._used(trained) == trained


def test_the_difference_has_its_interval():
    figures = {"bleu_delta": -1.06, "bleu_delta_low": -2.47, "bleu_delta_high": 0.17, "bleu_p": 0.104}
    assert card._difference(figures, "bleu") == ["-1.1 (-2.5 to +0.2)", "0.104"]
    assert card._difference({}, "bleu") == ["", ""]
