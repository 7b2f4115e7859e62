"""ONNX graphs give the tokens of PyTorch's `generate`, for every family."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from shared import FAMILIES, SOURCES
from torch import nn

from stages.models.checkpoint import Generator
from stages.runtimes import folder as runtimes
from stages.runtimes import greedy, onnx_model
from stages.runtimes.model import Parts
from stages.runtimes.quantise import quantise

LENGTH = {"max_new_tokens": 12}
SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": LENGTH,
    "beams": LENGTH | {"num_beams": 4},
    "penalised": LENGTH | {"repetition_penalty": 1.5},
    "no-repeat": LENGTH | {"num_beams": 4, "no_repeat_ngram_size": 2, "length_penalty": 0.5},
    "exactly": {"max_new_tokens": 9, "min_new_tokens": 9},
    "forced": LENGTH | {"forced_eos_token_id": 7, "bad_words_ids": [[5], [6]]},
}
LEAN = ("greedy", "exactly", "forced")


@pytest.fixture(scope="module")
def _exported() -> dict[str, tuple[Generator, Path]]:
    return {}


@pytest.fixture
def exported(
    restless: Callable[[str], Generator], tmp_path_factory: pytest.TempPathFactory, _exported: dict[str, Any]
) -> Callable[[str], tuple[Generator, Path]]:
    """A generator of a family and the folder it was exported to, once for all tests."""

    def get(family: str) -> tuple[Generator, Path]:
        if family not in _exported:
            generator = restless(family)
            folder = tmp_path_factory.mktemp(family) / "onnx"
            runtimes.save(generator, folder, "onnx", source=family)
            _exported[family] = generator, folder
        return _exported[family]

    return get


def tokens(generator: Generator, texts: list[str], **settings: Any) -> list[list[int]]:
    return generator.model.generate(**generator.prompts(texts), **settings).tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_those_of_pytorch(family, exported, monkeypatch):
    ours, folder = exported(family)
    graphs = runtimes.load(folder)
    assert graphs.kind == ours.kind
    assert (graphs.max_source_tokens, graphs.max_target_tokens) == (ours.max_source_tokens, ours.max_target_tokens)
    searched = []
    search = greedy.search
    monkeypatch.setattr(greedy, "search", lambda *given: searched.append(given) or search(*given))
    for name, settings in SETTINGS.items():
        expected = tokens(ours, SOURCES, **settings)
        assert len({tuple(row) for row in expected}) > 1, "texts that all give the same test nothing"
        searched.clear()
        assert tokens(graphs, SOURCES, **settings) == expected, name
        assert bool(searched) == (name in LEAN), name


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_that_end_early_are_padded_as_pytorch_does(family, exported):
    ours, folder = exported(family)
    graphs = runtimes.load(folder)
    free = ours.model.generate(**ours.prompts(SOURCES), **LENGTH)
    end = free[0, -6].item()
    for beams in (1, 4):
        settings = LENGTH | {"eos_token_id": end, "num_beams": beams}
        expected = tokens(ours, SOURCES, **settings)
        if beams == 1:
            assert expected != free.tolist()
        assert tokens(graphs, SOURCES, **settings) == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_leaves_a_text_as_it_is(family, exported):
    _, folder = exported(family)
    graphs = runtimes.load(folder)
    together = tokens(graphs, SOURCES, **LENGTH)
    for text, row in zip(SOURCES, together, strict=True):
        alone = tokens(graphs, [text], **LENGTH)[0]
        assert alone == row[len(row) - len(alone) :]


def test_blocks_may_differ_in_heads_and_widths(restless, tmp_path):
    """As structural pruning leaves them: no config of `transformers` describes such a model."""
    generator = restless("bert")
    for side, block in ((generator.model.encoder, 0), (generator.model.decoder.bert, 1)):
        layer = side.encoder.layer[block]
        keep_neurons(layer, 20 + block)
        keep_one_head(layer.attention)
    keep_one_head(generator.model.decoder.bert.encoder.layer[0].crossattention)
    runtimes.save(generator, tmp_path / "onnx", "onnx", source="cut")
    graphs = runtimes.load(tmp_path / "onnx")
    for settings in (SETTINGS["greedy"], SETTINGS["beams"]):
        assert tokens(graphs, SOURCES, **settings) == tokens(generator, SOURCES, **settings)


def keep_one_head(attention: Any) -> None:
    heads = attention.self
    size = heads.attention_head_size
    for matrix in (heads.query, heads.key, heads.value):
        matrix.weight, matrix.bias = nn.Parameter(matrix.weight[:size]), nn.Parameter(matrix.bias[:size])
    attention.output.dense.weight = nn.Parameter(attention.output.dense.weight[:, :size])
    heads.num_attention_heads, heads.all_head_size = 1, size


def keep_neurons(layer: Any, count: int) -> None:
    first, second = layer.intermediate.dense, layer.output.dense
    first.weight, first.bias = nn.Parameter(first.weight[:count]), nn.Parameter(first.bias[:count])
    second.weight = nn.Parameter(second.weight[:, :count])


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_int8_is_close_and_smaller(family, exported, tmp_path):
    """With weights of seven bits, whose products no processor's instructions overflow by: 2 · 64 · 255 < 2^15."""
    import onnx

    ours, folder = exported(family)
    small, large = {}, {}
    for graph in folder.glob("*.onnx"):
        quantise(graph, tmp_path / graph.name)
        small[graph.stem] = onnx_model.session(tmp_path / graph.name)
        large[graph.stem] = onnx_model.session(graph)
        before, after = onnx.load(graph), onnx.load(tmp_path / graph.name)
        kinds = [node.op_type for node in after.graph.node]
        constant = {tensor.name for tensor in before.graph.initializer}
        constant |= {
            n.output[0] for n in before.graph.node if n.op_type == "Transpose" and n.input[0] in constant
        }  # tied
        matrices = [n for n in before.graph.node if n.op_type in ("MatMul", "Gemm") and n.input[1] in constant]
        assert kinds.count("MatMulInteger") == len(matrices) > 0
        integers = [onnx.numpy_helper.to_array(weight) for weight in after.graph.initializer]
        assert max(abs(weight.astype(int)).max() for weight in integers if str(weight.dtype) == "int8") == 64
        assert (tmp_path / graph.name).stat().st_size < graph.stat().st_size
    parts = Parts.load(folder)
    step = {"input_ids": ours.prompts(SOURCES)["input_ids"], "attention_mask": ours.prompts(SOURCES)["attention_mask"]}
    if ours.kind == "causal":
        step["position_ids"] = (step["attention_mask"].cumsum(1) - 1).clamp(min=0)
    found = []
    for sessions in (large, small):
        model = onnx_model.OnnxModel(parts, sessions)
        rest = {"encoder_outputs": model.get_encoder()(**step)} if ours.kind != "causal" else {}
        rest |= {"decoder_input_ids": torch.ones(len(SOURCES), 1, dtype=torch.long)} if rest else {}
        found.append(model(**step, **rest, past_key_values=onnx_model.DynamicCache()).logits)
    error = (found[1] - found[0]).norm() / found[0].norm()
    assert 0 < error < 0.1
