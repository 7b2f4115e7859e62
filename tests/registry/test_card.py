"""The program on a card, as a reader runs it in the folder of a checkpoint."""

from __future__ import annotations

import json

import pytest
from shared import SOURCES

from stages.evaluation.generation import stream
from stages.models import checkpoint
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
