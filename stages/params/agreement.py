"""What sections of params.yaml ask of each other. Each rule raises ValueError, with what to change."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.layout import CHOSEN, DENSE
from stages.params.prune import Layerwise

if TYPE_CHECKING:
    from stages.params import Params


def methods_fit_the_pattern(params: Params) -> None:
    """Methods can have the pattern."""
    params.prune.check_methods({*params.sweep.method, params.search.method})


def movement_is_learnt(params: Params) -> None:
    """Movement has a schedule that learns, and sparsities that its floor allows."""
    if "movement" not in (*params.sweep.method, params.search.method):
        return
    if params.finetune.schedule != "cubic":
        raise ValueError(
            "method movement learns masks while it trains, and lets weights come back; schedule "
            f"{params.finetune.schedule} holds masks that are chosen before: set finetune.schedule to cubic"
        )
    floor = params.prune.movement.floor
    if wrong := [s for s in params.sweep.sparsity if s > 1 - floor]:
        raise ValueError(f"prune.movement.floor keeps {floor:g} of each matrix, sweep.sparsity has {wrong[0]}")


def sides_may_be_shared(params: Params) -> None:
    """Of shared sides nothing is asked that is of one of them."""
    if not params.model.share_weights:
        return
    why = "model.share_weights has one matrix for both sides: set it to false, or "
    methods = {*params.sweep.method, params.search.method}
    by_inputs = [name for name in sorted(methods) if isinstance(getattr(params.prune, name), Layerwise)]
    if by_inputs or params.prune.allocation == "owl":
        way = f"method {by_inputs[0]}" if by_inputs else "prune.allocation owl"
        raise ValueError(f"{why}choose another than {way}, which goes by what a matrix is given on one side")
    if "structured" in methods or params.prune.units:
        way = "prune.pattern units" if params.prune.units else "method structured"
        raise ValueError(f"{why}choose another than {way}, which removes parts of one side")
    if params.finetune.lora.rank:
        raise ValueError(f"{why}set finetune.lora.rank to 0, since an adapter is of one side")


def structure_trains_anew(params: Params) -> None:
    """Structured levels have something to remove, and weights to go on from."""
    if "structured" not in (*params.sweep.method, params.search.method):
        return
    if params.finetune.rewind == "weights":
        raise ValueError("method structured trains a smaller model each round: set finetune.rewind to none")
    structured = params.prune.structured
    wrong = [s for s in params.sweep.sparsity if 0 < s <= structured.zeros]
    if structured.budget == "parameters" and wrong:
        raise ValueError(f"prune.structured.zeros leave nothing to remove at sweep.sparsity {wrong[0]}: lower them")


def latency_is_of_these_threads(params: Params) -> None:
    """A latency table was measured with the threads that there are."""
    table, threads = params.prune.structured.latency, params.runtime.threads
    if params.prune.structured.budget == "latency" and table and table.threads != threads:
        raise ValueError(
            f"prune.structured.latency was measured with {table.threads} threads, runtime.threads is {threads}: "
            "run `python -m stages.latency`"
        )


def levels_fit_the_pattern(params: Params) -> None:
    """Sparsities are what an N:M pattern makes of them."""
    if params.prune.group:
        kept, group = params.prune.group
        share = 1 - kept / group
        # With matrices left out the sparsity over all is lower than the pattern's; how much, the prune stage knows.
        least = 0 if params.prune.layers else share

        def fits(sparsity: float) -> bool:
            return least - 1e-9 <= params.prune.nearest(sparsity) <= share + 1e-9

        zeros = params.prune.structured.zeros
        if zeros and "structured" in params.sweep.method and not fits(zeros):
            raise ValueError(f"prune.pattern {kept}:{group} is sparsity {share:.4g}, structured.zeros is {zeros:.10g}")
        held = set(params.sweep.method) != {"structured"}  # whose own sparsity has no pattern
        if held and (wrong := [s for s in params.sweep.sparsity if not fits(s)]):
            raise ValueError(f"prune.pattern {kept}:{group} is sparsity {share:.4g}, sweep.sparsity has {wrong[0]}")


def export_can_be_made(params: Params) -> None:
    """What is exported is made, and formats have a converter for it: the stage comes after all training."""
    level = params.export.level
    if level not in (CHOSEN, DENSE, *(made.key for made in params.sweep.levels)):
        raise ValueError(f"export.level {level} is no level of sweep: add it there, or set {CHOSEN} or {DENSE}")
    converted = [name for name in params.export.formats if name.startswith("ctranslate2")]
    if converted and params.model.kind == "encoder_decoder":
        raise ValueError(f"export.formats has {converted[0]}, which knows no model.kind encoder_decoder: take onnx")


RULES = (
    methods_fit_the_pattern,
    movement_is_learnt,
    sides_may_be_shared,
    structure_trains_anew,
    latency_is_of_these_threads,
    levels_fit_the_pattern,
    export_can_be_made,
)
