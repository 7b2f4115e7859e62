"""The program on a card, as a reader runs it in the folder of a checkpoint, and its table of timings."""

from __future__ import annotations

import json

import pytest
from shared import SOURCES

from stages.evaluation.generation import stream
from stages.models import checkpoint
from stages.registry import speed
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
    header, cells = speed.table([row])
    assert header[4:] == ["tokens/s of 1", "tokens/s of 32, 4 beams", "load, s", "memory, MB"]
    assert cells == [["taylor-0.5", "onnx", "12.5 (10.0–15.0)", "4.64", "80", "1,234", "0.25", "493"]]
