"""CTranslate2 gives the tokens of PyTorch's `generate`, for the families that its converter knows."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from shared import SOURCES, family_section

from stages.errors import UserError
from stages.models.checkpoint import Generator
from stages.pruning.structure.axes import describe
from stages.pruning.structure.plan import Plan, whole
from stages.pruning.structure.removal import shrink
from stages.runtimes import ctranslate
from stages.runtimes import folder as runtimes

CONVERTED = ("bart", "t5", "gpt2", "llama")
LENGTH = {"max_new_tokens": 12}


def tokens(generator: Generator, **settings: Any) -> list[list[int]]:
    return generator.model.generate(**generator.prompts(SOURCES), **settings).tolist()


def cut(generator: Generator, kind: str, kept: int) -> Generator:
    """The first units of a kind alone: heads, or the width."""
    structure = describe(generator.model)
    units = {name: tuple(range(kept)) for name, axis in structure.axes.items() if axis.kind == kind}
    assert units
    return shrink(generator, Plan(whole(structure).layers, units))


@pytest.mark.parametrize("family", CONVERTED)
def test_tokens_are_those_of_pytorch(family, restless, tmp_path):
    ours = restless(family)
    runtimes.save(ours, tmp_path / "out", "ctranslate2", source=family)
    assert not list((tmp_path / "out").rglob("*.safetensors"))
    theirs = runtimes.load(tmp_path / "out")
    free = tokens(ours, **LENGTH)
    assert len({tuple(row) for row in free}) > 1, "texts that all give the same test nothing"
    end = free[0][-6]
    prompt = ours.prompts(SOURCES)["input_ids"].shape[1] if ours.kind == "causal" else 1
    for settings in (
        LENGTH,
        LENGTH | {"num_beams": 4},
        LENGTH | {"eos_token_id": end},
        {"max_new_tokens": 9, "min_new_tokens": 9},
        LENGTH | {"eos_token_id": end, "min_length": 9 + prompt},
        LENGTH | {"forced_eos_token_id": end},
        {"max_new_tokens": 1, "forced_eos_token_id": end},
    ):
        assert tokens(theirs, **settings) == tokens(ours, **settings), settings
    early = tokens(ours, **LENGTH, eos_token_id=end)
    assert early not in (free, tokens(ours, **LENGTH, eos_token_id=end, min_length=9 + prompt))
    for unknown in ({"repetition_penalty": 1.5}, {"no_repeat_ngram_size": 2}, {"bad_words_ids": [[5]]}):
        with pytest.raises(UserError, match=f"do not know {next(iter(unknown))} of the generation config"):
            tokens(theirs, **LENGTH, **unknown)
    with pytest.raises(UserError, match="greedy and beam search"):
        tokens(theirs, **LENGTH, do_sample=True)


CUT = [("llama", "heads", 1), ("llama", "width", 12), ("qwen2", "heads", 1), ("t5", "heads", 1), ("t5", "width", 12)]


@pytest.mark.parametrize(("family", "kind", "kept"), CUT)
def test_heads_need_not_divide_the_width(family, kind, kept, restless, tmp_path):
    ours = cut(restless(family), kind, kept)
    runtimes.save(ours, tmp_path / "out", "ctranslate2", source=family)
    expected = tokens(ours, **LENGTH)
    assert len({tuple(row) for row in expected}) > 1
    assert tokens(runtimes.load(tmp_path / "out"), **LENGTH) == expected


@pytest.mark.parametrize("format", ["ctranslate2", "ctranslate2-int8"])
def test_a_conversion_that_cannot_run_is_refused(format, restless, tmp_path, monkeypatch):
    monkeypatch.setattr(ctranslate, "_head_width", lambda config: None)  # the converter's own idea of it
    generator = cut(restless("t5"), "heads", 1)
    said = f"^{tmp_path / 'out'}: CTranslate2 cannot run this model of type t5: .*dimension.*; use onnx$"
    with pytest.raises(UserError, match=said):
        runtimes.save(generator, tmp_path / "out", format, source="t5")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("family", CONVERTED)
def test_a_conversion_that_writes_something_else_is_refused(family, restless, tmp_path, monkeypatch):
    """Here of a model whose queries of one block have another sign."""
    convert = ctranslate.export

    def wrongly(folder, quantization):
        weights = load_file(folder / "model.safetensors")
        name = next(name for name in weights if re.search(r"(\.q|\.q_proj|c_attn)\.weight$", name))
        save_file(weights | {name: -weights[name]}, folder / "model.safetensors", metadata={"format": "pt"})
        convert(folder, quantization)

    monkeypatch.setattr(ctranslate, "export", wrongly)
    said = (
        f"^{tmp_path / 'out'}: CTranslate2 writes other tokens than PyTorch for this model of type {family}; use onnx$"
    )
    with pytest.raises(UserError, match=said):
        runtimes.save(restless(family), tmp_path / "out", "ctranslate2", source=family)
    assert not list(tmp_path.iterdir())


def test_settings_that_the_engine_lacks_do_not_stop_the_export(restless, tmp_path):
    generator = restless("t5")
    generator.model.generation_config.update(repetition_penalty=1.5, num_beams=4)
    runtimes.save(generator, tmp_path / "out", "ctranslate2", source="t5")
    assert tokens(runtimes.load(tmp_path / "out"), **LENGTH, repetition_penalty=1.0)


@pytest.mark.parametrize("family", CONVERTED)
def test_beams_end_with_the_first_best_that_ends(family, restless, tmp_path):
    """So a text may be shorter than PyTorch's, never longer; docs/export.md says so."""
    ours = restless(family)
    runtimes.save(ours, tmp_path / "out", "ctranslate2", source=family)
    theirs = runtimes.load(tmp_path / "out")
    beams = LENGTH | {"num_beams": 4}
    differ = 0
    for end in {row[-place] for row in tokens(ours, **LENGTH) for place in (3, 6, 9)}:
        pairs = [tokens(generator, **beams, eos_token_id=end) for generator in (ours, theirs)]
        for mine, their in zip(*(map(partial(new, ours, end), rows) for rows in pairs), strict=True):
            assert len(their) <= len(mine)
            assert their == mine or their[-1] == end
            differ += their != mine
    assert differ


def new(generator: Generator, end: int, row: list[int]) -> list[int]:
    """The new tokens of a row, up to its end."""
    row = row[len(row) - LENGTH["max_new_tokens"] :] if generator.kind == "causal" else row[1:]
    return row[: row.index(end) + 1] if end in row else row


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


@pytest.mark.parametrize(("family", "why"), [("bert", "EncoderDecoderConfig; use onnx$"), ("marian", "vocabulary")])
def test_other_families_are_refused(family, why, restless, tmp_path):
    with pytest.raises(UserError, match=f"cannot be exported to CTranslate2: .*{why}") as caught:
        runtimes.save(restless(family), tmp_path / "out", "ctranslate2", source=family)
    assert str(caught.value).endswith("; use onnx")
    assert not list(tmp_path.iterdir())


def test_sides_of_other_numbers_of_heads_are_refused(build_family, tmp_path):
    config = {**family_section("bart")["config"], "decoder_attention_heads": 4, "encoder_attention_heads": 2}
    with pytest.raises(UserError, match="one number of heads for encoder and decoder, and this model two: use onnx"):
        runtimes.save(build_family("bart", config=config), tmp_path / "out", "ctranslate2", source="bart")
    assert not list(tmp_path.iterdir())


def test_damaged_files_are_refused(restless, tmp_path):
    runtimes.save(restless("t5"), tmp_path / "out", "ctranslate2", source="t5")
    Path(tmp_path / "out" / "ctranslate2" / "model.bin").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"cannot read .*: run stages\.export again"):
        runtimes.load(tmp_path / "out")
