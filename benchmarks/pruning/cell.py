"""One measurement: a model pruned once, by one library, in a process of its own, on one thread.

    python -m benchmarks.pruning.cell --folder .scratch/benchmark/smollm2 --method wanda --library espalier --level 0.5

Its last line on standard output is JSON. `python -m benchmarks.pruning` runs these.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.pruning import measure, subjects, ways
from benchmarks.pruning.results import DENSE
from stages.errors import command
from stages.models import anatomy

BATCH = 8
"""Texts a batch."""


@command
def main(arguments: Sequence[str] | None = None) -> None:
    """Measure one cell."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pruning.cell", description="Prune a model once, and say what it took."
    )
    parser.add_argument("--folder", type=Path, required=True, help="of a model with its texts")
    parser.add_argument("--method", choices=(*ways.WAYS, DENSE), required=True)
    parser.add_argument("--library", required=True)
    parser.add_argument("--level", required=True, help="a sparsity, or 2:4")
    parser.add_argument("--repeat", type=int, default=0, help="which decides the calibration texts (default: 0)")
    parser.add_argument("--judge", action="store_true", help="what is left of the model as well")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    chosen = options.folder, options.method, options.library, options.level, options.repeat
    print(json.dumps(run(*chosen, judged=options.judge)))


def run(folder: Path, method: str, library: str, level: str, repeat: int = 0, *, judged: bool) -> dict[str, Any]:
    """What pruning took, how many eligible weights are zero afterwards, and the losses of held texts."""
    from safetensors.torch import load_file

    model = subjects.load(folder)
    texts = load_file(folder / subjects.TEXTS)
    calibration = batches(model, texts["calibration"][repeat % subjects.DRAWS])
    spent = measure.Cost(0.0, 0.0, 0)
    if method != DENSE:
        way = ways.WAYS[method][library]
        _warm_up(way, model, calibration, level)
        spent = measure.cost(lambda: way(model, calibration, level))
    matrices = anatomy.describe(model).matrices.values()
    return asdict(spent) | {
        "model_bytes": sum(p.numel() * p.element_size() for p in model.parameters()),
        "zeros": sum(m.weight.numel() - anatomy.count_nonzero(m.weight) for m in matrices),
        "eligible": sum(m.weight.numel() for m in matrices),
        "losses": losses(model, batches(model, texts["held"])) if judged else [],
    }


def batches(model: Any, texts: Tensor) -> list[dict[str, Tensor]]:
    """Texts [count, tokens] as batches without padding; of an encoder-decoder the second half is the target."""
    made = []
    for ids in texts.split(BATCH):
        source, target = ids.chunk(2, dim=1) if model.config.is_encoder_decoder else (ids, ids)
        source, target = source.contiguous(), target.contiguous()
        made.append({"input_ids": source, "attention_mask": torch.ones_like(source), "labels": target})
    return made


def _warm_up(way: ways.Way, model: Any, calibration: ways.Batches, level: str) -> None:
    """Prune a small model the same way: what a library imports and sets up at its first call is no cost of pruning."""
    first = {name: tensor[:1] for name, tensor in calibration[0].items()}
    way(subjects.sibling(model), [first], level)
    with torch.inference_mode():
        model(**first)


@torch.inference_mode()
def losses(model: Any, prepared: Sequence[Mapping[str, Tensor]]) -> list[float]:
    """Of each text, the mean loss of a token in nats: of all its tokens but the first, or of the target's."""
    found: list[float] = []
    for batch in prepared:
        logits, labels = model(**batch, use_cache=False).logits, batch["labels"]
        if not model.config.is_encoder_decoder:
            logits, labels = logits[:, :-1], labels[:, 1:]
        nats = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), reduction="none")
        found += nats.double().reshape(labels.shape).mean(1).tolist()
    return found


if __name__ == "__main__":
    main()
