"""Both sides of each comparison prune the same weights of a small model: what is compared is the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.pruning import cell, measure, subjects, ways
from stages.models import anatomy

Folder = Callable[[str], Path]
MAGNITUDES = [("magnitude", "0.7"), ("magnitude", "2:4"), ("magnitude by layer", "0.5")]


def pruned(folder: Path, method: str, library: str, level: str) -> dict[str, Tensor]:
    model = subjects.load(folder)
    calibration = cell.batches(model, load_file(folder / subjects.TEXTS)["calibration"][0])
    ways.WAYS[method][library](model, calibration, level)
    plain = dict(model.named_parameters())
    assert not any(name.endswith(("_orig", "_mask", "original")) for name in plain)
    return {name: plain[name].detach() for name in anatomy.describe(model).matrices}


@pytest.mark.parametrize("family", ["llama", "bart"])
@pytest.mark.parametrize(("method", "level"), MAGNITUDES)
def test_magnitude(family: str, method: str, level: str, folder: Folder) -> None:
    place, library = folder(family), ways.other(method, level)
    assert library
    mine, other = (pruned(place, method, side, level) for side in (ways.OURS, library))
    assert list(mine) == list(other)
    assert all(torch.equal(mine[name], other[name]) for name in mine)
    zeros = sum(int((weight == 0).sum()) for weight in mine.values())
    assert zeros == pytest.approx(ways.share(level) * sum(weight.numel() for weight in mine.values()), abs=len(mine))


@pytest.mark.parametrize("family", ["llama", "bart"])
@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_what_looks_at_inputs(family: str, method: str, folder: Folder) -> None:
    """At 2:4, where both lose as many; what reaches a matrix differs in the last bits, so a few choices may."""
    pytest.importorskip("llmcompressor", reason="the extra `oracles` is not installed")
    place = folder(family)
    mine, other = (pruned(place, method, side, "2:4") for side in (ways.OURS, ways.LLMCOMPRESSOR))
    same = sum(int(((mine[name] == 0) == (other[name] == 0)).sum()) for name in mine)
    assert same >= 0.999 * sum(weight.numel() for weight in mine.values())
    first = next(iter(mine))
    torch.testing.assert_close(mine[first], other[first], rtol=0, atol=1e-5)


def test_every_level_of_every_method_has_its_sides() -> None:
    for method, sides in ways.WAYS.items():
        others = {ways.other(method, level) for level in ways.LEVELS} - {None}
        assert others | {ways.OURS} == set(sides)


@pytest.mark.parametrize("family", ["llama", "bart"])
def test_a_cell_says_what_was_pruned_and_what_is_left(family: str, folder: Folder) -> None:
    place = folder(family)
    found = cell.run(place, "magnitude", ways.OURS, "0.5", judged=True)
    assert found["zeros"] == round(0.5 * found["eligible"]) > 0
    assert found["cpu_seconds"] > 0
    assert len(found["losses"]) == 4
    dense = cell.run(place, "dense", "dense", "0", judged=True)
    assert dense["zeros"] == dense["seconds"] == 0
    assert dense["losses"] != found["losses"]


@pytest.mark.parametrize("family", ["llama", "bart"])
def test_losses_are_the_models_own_text_by_text(family: str, folder: Folder) -> None:
    place = folder(family)
    model: Any = subjects.load(place)
    held = load_file(place / subjects.TEXTS)["held"]
    found = cell.losses(model, cell.batches(model, held))
    for text, loss in zip(held, found, strict=True):
        (alone,) = cell.batches(model, text.unsqueeze(0))
        assert loss == pytest.approx(model(**alone).loss.item(), rel=1e-5)


def test_weights_of_one_magnitude_are_told_apart() -> None:
    """By hardly anything, and alike each time."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    results = []
    for _ in range(2):
        model = LlamaForCausalLM(LlamaConfig(vocab_size=64, **sizes))
        weight = model.model.layers[0].self_attn.q_proj.weight
        torch.nn.init.constant_(weight, 0.5)
        head = model.lm_head.weight.clone()
        subjects.dither(model)
        assert torch.equal(model.lm_head.weight, head)
        results.append(weight.detach())
    assert torch.equal(*results)
    assert len(results[0].unique()) > 0.9 * results[0].numel()
    torch.testing.assert_close(results[0], torch.full_like(results[0], 0.5), rtol=2.0**-12, atol=0)


@pytest.mark.parametrize("family", ["llama", "bart"])
def test_what_warms_up_is_a_smaller_one_of_the_kind(family: str, folder: Folder) -> None:
    model = subjects.load(folder(family))
    small = subjects.sibling(model)
    assert type(small) is type(model) and small.config.vocab_size == model.config.vocab_size
    assert {m.block for m in anatomy.describe(small).matrices.values()} < {
        m.block for m in anatomy.describe(model).matrices.values()
    } or family == "bart"


def test_memory_is_the_peak_above_what_there_was() -> None:
    """64 MiB are seen, though as much was given back right before."""
    size = 2**26

    def take() -> None:
        bytearray(b"x") * size

    take()
    spent = measure.cost(take)
    assert 0.97 * size < spent.extra_bytes < 1.2 * size  # the kernel counts pages in batches
    assert measure.cost(lambda: None).extra_bytes < size / 8


def test_time_asleep_is_no_time_of_the_processor() -> None:
    import time

    spent = measure.cost(lambda: time.sleep(0.2))
    assert spent.seconds >= 0.2 > 0.1 > spent.cpu_seconds
