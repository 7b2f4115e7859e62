"""Write a generator as ONNX graphs.

`encoder.onnx` (not of a causal generator) reads `input_ids` and `attention_mask` and returns `cross.N.key` and
`cross.N.value` of each decoder block; `decoder.onnx` reads `input_ids`, `attention_mask`, `position_ids` (causal only),
`past.N.…` and `cross.N.…`, and returns the `logits` of the next token and `present.N.…`. One graph serves every step:
batch, source and past length are free, and the first step has a past of length 0.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from stages.errors import UserError
from stages.models.checkpoint import Generator, one_line
from stages.runtimes.graphs import Causal, Decoder, Encoder, flat

OPSET = 20
ENCODER, DECODER = "encoder.onnx", "decoder.onnx"
PROTOBUF_LIMIT = 1_500_000_000
"""Bytes of weights above which they lie beside the graph, since a file of protobuf ends at 2 GiB."""
PAST = 5
"""Past tokens to trace with. Sizes have to differ from each other, and from 0 and 1, to be left open."""


def export(generator: Generator, folder: Path, leave_out: Callable[[Any], object] | None = None) -> dict[str, str]:
    """Write the graphs into a folder that exists.

    Args:
        generator: what to write.
        folder: to write to.
        leave_out: takes away of a model, in place, what changes no logit. Blocks may become unlike each other by it.

    Returns:
        File names by what the graphs compute: `decoder`, and `encoder` if there is one.

    Raises:
        UserError: the exporter cannot trace this model.
    """
    model = copy.deepcopy(generator.model).to(device="cpu", dtype=torch.float32).eval()
    # The fused kernel takes a Python bool that depends on the number of tokens, which a graph leaves open.
    model.set_attn_implementation("eager")
    if leave_out:
        leave_out(model)
    tokens = torch.tensor([[1, 1, 1], [1, 1, 1]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    write = {"causal": _write_causal}.get(generator.kind, _write_encoder_decoder)
    try:
        with _quiet(), torch.no_grad():
            return write(model, tokens, mask, folder)
    except UserError:
        raise
    except Exception as error:  # of torch.export, onnxscript and the model, each of its own kinds
        raise UserError(
            f"a model of type {model.config.model_type} cannot be exported to ONNX: {one_line(error)}"
        ) from error


def _write_encoder_decoder(model: Any, tokens: Tensor, mask: Tensor, folder: Path) -> dict[str, str]:
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    model(input_ids=tokens, attention_mask=mask, decoder_input_ids=tokens.new_ones(2, PAST), past_key_values=cache)
    past, cross = flat(cache.self_attention_cache), flat(cache.cross_attention_cache)
    names = _names("cross", cross)
    source = {0: "batch", 1: "source"}
    _write(Encoder(model), (tokens, mask), (source, source), ["input_ids", "attention_mask"], names, folder / ENCODER)
    _write(
        Decoder(model),
        (tokens[:, :1], mask, past, cross),
        ({0: "batch"}, source, [{0: "batch", 2: "past"}] * len(past), [{0: "batch", 2: "source"}] * len(cross)),
        ["input_ids", "attention_mask", *_names("past", past), *names],
        ["logits", *_names("present", past)],
        folder / DECODER,
    )
    return {"encoder": ENCODER, "decoder": DECODER}


def _write_causal(model: Any, tokens: Tensor, mask: Tensor, folder: Path) -> dict[str, str]:
    cache = DynamicCache()
    model(input_ids=tokens.new_ones(2, PAST), past_key_values=cache)
    past = flat(cache)
    whole = torch.cat([mask.flip(1), mask.new_ones(2, PAST)], dim=1)
    positions = torch.arange(PAST, PAST + tokens.shape[1]).expand_as(tokens)
    new, cached = {0: "batch", 1: "new"}, {0: "batch", 2: "past"}
    _write(
        Causal(model),
        (tokens, whole, positions, past),
        (new, {0: "batch", 1: "length"}, new, [cached] * len(past)),
        ["input_ids", "attention_mask", "position_ids", *_names("past", past)],
        ["logits", *_names("present", past)],
        folder / DECODER,
    )
    return {"decoder": DECODER}


def _write(
    module: nn.Module,
    arguments: tuple[Any, ...],
    shapes: tuple[Any, ...],
    inputs: Sequence[str],
    outputs: Sequence[str],
    path: Path,
) -> None:
    program = torch.onnx.export(
        module,
        arguments,
        dynamo=True,
        opset_version=OPSET,
        input_names=inputs,
        output_names=outputs,
        dynamic_shapes=shapes,
        verbose=False,
    )
    assert program is not None  # it is for the old exporter alone
    # What the tracer notes of each node has addresses in memory, which differ from run to run.
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()
    program.model.graph.metadata_props.clear()
    size = sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())
    program.save(path, external_data=size > PROTOBUF_LIMIT)


def too_large_for_protobuf(graph: Path) -> bool:
    """Whether a graph's weights lie beside it."""
    return graph.with_name(f"{graph.name}.data").exists()


def _names(prefix: str, tensors: Sequence[Tensor]) -> list[str]:
    return [f"{prefix}.{block}.{what}" for block in range(len(tensors) // 2) for what in ("key", "value")]


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns of packages that are not installed and of names that it has not used."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
