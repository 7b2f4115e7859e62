"""Run by torchrun: fine-tune a small level and write what each process ended with."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1]))

from shared import ROOT, SOURCES, TARGETS, family_section, merge

from stages import params


def main(method: str, schedule: str, out: str, every: str = "0", killed_at: str = "0") -> None:
    """Train for a few steps of 16 examples over all processes, with checkpoints; rank 1 is killed before a step."""
    processes = int(os.environ["WORLD_SIZE"])
    config = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    section = family_section("bert")
    side = {**section["encoder"], "config": {**section["encoder"]["config"], **config}}
    changes = {
        "runtime": {"threads": 1, "precision": "fp32"},
        "model": {**section, "encoder": side, "decoder": side},
        "finetune": {
            "batch_size": 16 // processes,
            "gradient_accumulation": 1,
            "epochs": 3.0,
            "schedule": schedule,
            "refresh_steps": 2,
            "bucket_by_length": True,
        },
    }
    settings = params.validate(merge(params.read_yaml(ROOT / "params.yaml"), changes), "params.yaml")
    from stages.bitmasks import Masks
    from stages.runtime import prepare

    prepare(settings.runtime)
    from transformers import TrainerCallback

    from stages.models import anatomy
    from stages.models.build import build
    from stages.pruning import criterion, engine, masks, schedules
    from stages.training.checkpoints import Checkpoints
    from stages.training.loop import total_steps, train
    from stages.training.movement import LearnMasks
    from stages.training.sparsity import HoldMasks

    generator = build(settings.model, SOURCES + TARGETS)
    matrices = anatomy.describe(generator.model).matrices
    context = criterion.Context(generator.model, matrices, list, 0, getattr(settings.prune, method))
    weights, chosen = context.weights, criterion.find(method)

    def choose(sparsity: float, held: Masks | None = None) -> Masks:
        return engine.choose(context, chosen, sparsity, settings.prune, held=held)

    def choose_by(sparsity: float, scores: Any) -> Masks:
        return engine.choose(replace(context, learnt=scores), chosen, sparsity, settings.prune)

    examples = generator.encode(SOURCES * 16, TARGETS * 16)
    plan = schedules.plan(settings.finetune, 0.5, total_steps(len(examples), settings.finetune))
    first = masks.keep_all(weights) if plan else choose(0.5)
    if chosen.learn:
        holder: HoldMasks = LearnMasks(weights, first, plan, choose_by, chosen.learn)
    else:
        holder = HoldMasks(weights, first, plan, choose)
    os.chdir(out)

    class Kill(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == int(killed_at) and os.environ["RANK"] == "1":
                os.kill(os.getpid(), signal.SIGKILL)

    outcome = train(
        generator,
        examples,
        examples[:8],
        settings.finetune,
        settings.runtime,
        Path(out) / "scratch",
        callbacks=[holder, *([Kill()] if int(killed_at) else [])],
        checkpoints=Checkpoints("two", int(every)),
    )
    masks.check_held(weights, holder.masks)
    ended = {
        "loss": outcome.validation_loss,
        "sparsity": holder.masks.sparsity,
        "masks": _digest(list(holder.masks.values())),
        "weights": _digest(list(weights.values())),
    }
    (Path(out) / f"{os.environ['RANK']}.json").write_text(json.dumps(ended))


def _digest(tensors: list) -> str:
    return hashlib.md5(b"".join(tensor.detach().numpy().tobytes() for tensor in tensors)).hexdigest()
