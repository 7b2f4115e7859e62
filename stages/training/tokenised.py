"""Training examples, tokenised once for all levels that train on the same texts with the same tokenizer.

.scratch/tokenised/KEY.safetensors      KEY is a hash of texts, tokenizer, limits and the code that encodes
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import tokenizers
import torch
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from stages import layout
from stages.files import digest, replacing
from stages.models.checkpoint import Generator

FOLDER = layout.SCRATCH / "tokenised"
KEPT = 8
"""Files, the last that were made: splits of a few tokenizers."""
Examples = list[dict[str, list[int]]]


def encoded(generator: Generator, sources: Sequence[str], targets: Sequence[str]) -> Examples:
    """`Generator.encode`, or what it gave another stage for the same texts; the same lists either way."""
    key = _key(generator, sources, targets)
    if key is None or not sources:
        return generator.encode(sources, targets)
    file = FOLDER / f"{key}.safetensors"
    found = _read(file)
    if found is None:
        found = generator.encode(sources, targets)
        with suppress(OSError, SafetensorError):  # no room: a level is worth more
            _write(file, found)
    return found


def _key(generator: Generator, sources: Sequence[str], targets: Sequence[str]) -> str | None:
    """Digest of all that decides the token ids; None for tokenizers in Python, whose state nothing tells."""
    tokenizer = generator.tokenizer
    if not tokenizer.is_fast:
        return None
    tokenizer.backend_tokenizer.no_truncation()  # set by a call, and again by the next one
    tokenizer.backend_tokenizer.no_padding()
    given = {name: value for name, value in tokenizer.init_kwargs.items() if name != "name_or_path"}
    return digest(
        inspect.getsource(Generator),
        transformers.__version__,
        tokenizers.__version__,
        type(tokenizer).__name__,
        repr(sorted(given.items(), key=lambda item: item[0])),
        tokenizer.backend_tokenizer.to_str(),
        repr((generator.kind, generator.max_source_tokens, generator.max_target_tokens)),
        repr(generator.model.generation_config.eos_token_id),
        repr((len(sources), len(targets))),
        *("\0".join((str(len(text)), text)) for texts in (sources, targets) for text in texts),
    )


def _read(file: Path) -> Examples | None:
    """The examples of a file, None if there is none or it is not as it was written."""
    if not file.is_file():
        return None
    try:
        with safe_open(file, framework="pt") as stored:
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
            if (stored.metadata() or {}).get("digest") != _digest(tensors):
                return None
    except (OSError, SafetensorError):
        return None
    fields = {name.removesuffix(".ids") for name in tensors if name.endswith(".ids")}
    columns = {
        name: [piece.tolist() for piece in tensors[f"{name}.ids"].split(tensors[f"{name}.lengths"].tolist())]
        for name in sorted(fields)
    }
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _write(file: Path, examples: Examples) -> None:
    tensors: dict[str, Tensor] = {}
    for name in examples[0]:
        lists = [example[name] for example in examples]
        tensors[f"{name}.ids"] = torch.tensor([number for ids in lists for number in ids], dtype=torch.int32)
        tensors[f"{name}.lengths"] = torch.tensor([len(ids) for ids in lists])
    with replacing(file) as partial:
        save_file(tensors, partial, metadata={"digest": _digest(tensors)})
    for old in sorted(FOLDER.glob("*.safetensors"), key=lambda made: made.stat().st_mtime_ns, reverse=True)[KEPT:]:
        old.unlink(missing_ok=True)


def _digest(tensors: dict[str, Tensor]) -> str:
    return digest(*(part for name in sorted(tensors) for part in (name, tensors[name].numpy().tobytes())))
