"""CTranslate2 gives the tokens of PyTorch's `generate`, for the families that its converter knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from shared import SOURCES

from stages.errors import UserError
from stages.models.checkpoint import Generator
from stages.runtimes import folder as runtimes

CONVERTED = ("bart", "t5", "gpt2", "llama")
LENGTH = {"max_new_tokens": 12}


def tokens(generator: Generator, **settings: Any) -> list[list[int]]:
    return generator.model.generate(**generator.prompts(SOURCES), **settings).tolist()


@pytest.mark.parametrize("family", CONVERTED)
def test_tokens_are_those_of_pytorch(family, restless, tmp_path):
    ours = restless(family)
    runtimes.save(ours, tmp_path / "out", "ctranslate2", source=family)
    assert not list((tmp_path / "out").rglob("*.safetensors"))
    theirs = runtimes.load(tmp_path / "out")
    free = tokens(ours, **LENGTH)
    assert len({tuple(row) for row in free}) > 1, "texts that all give the same test nothing"
    end = free[0][-6]
    for settings in (
        LENGTH,
        LENGTH | {"num_beams": 4},
        LENGTH | {"eos_token_id": end},
        {"max_new_tokens": 9, "min_new_tokens": 9},
    ):
        assert tokens(theirs, **settings) == tokens(ours, **settings), settings
    assert tokens(ours, **LENGTH, eos_token_id=end) != free
    for unknown in ({"repetition_penalty": 1.5}, {"no_repeat_ngram_size": 2}, {"bad_words_ids": [[5]]}):
        with pytest.raises(UserError, match=f"do not know {next(iter(unknown))} of the generation config"):
            tokens(theirs, **LENGTH, **unknown)
    with pytest.raises(UserError, match="greedy and beam search"):
        tokens(theirs, **LENGTH, do_sample=True)


def test_int8_is_smaller(restless, tmp_path):
    for format in ("ctranslate2", "ctranslate2-int8"):
        runtimes.save(restless("t5"), tmp_path / format, format, source="t5")
    sizes = [
        (tmp_path / format / "ctranslate2" / "model.bin").stat().st_size
        for format in ("ctranslate2-int8", "ctranslate2")
    ]
    assert sizes[0] < sizes[1]
    found = tokens(runtimes.load(tmp_path / "ctranslate2-int8"), **LENGTH)
    assert len({tuple(row) for row in found}) > 1


@pytest.mark.parametrize(("family", "why"), [("bert", "No conversion is registered"), ("marian", "vocabulary")])
def test_other_families_are_refused(family, why, restless, tmp_path):
    with pytest.raises(UserError, match=f"cannot be exported to CTranslate2: .*{why}.*; use onnx"):
        runtimes.save(restless(family), tmp_path / "out", "ctranslate2", source=family)
    assert not list(tmp_path.iterdir())


def test_damaged_files_are_refused(restless, tmp_path):
    runtimes.save(restless("t5"), tmp_path / "out", "ctranslate2", source="t5")
    Path(tmp_path / "out" / "ctranslate2" / "model.bin").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"cannot read .*: run stages\.export again"):
        runtimes.load(tmp_path / "out")
