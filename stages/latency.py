"""Measure what the parts of the baseline add to the time of a reply on this machine: what `budget: latency` goes by.

    python -m stages.latency                          measures, and writes prune.structured.latency in params.yaml
    python -m stages.latency --check structured-0.5   finished levels: speed by that table, and as it is
    python -m stages.latency --speedup 2              the level that is twice as fast (--latency-ms 30: as fast as that)

In:  outputs/models/baseline, outputs/data/{train,validation}.parquet; params `prune`, `runtime`, `sweep`.
Out: in params.yaml, milliseconds by part; levels of `budget: latency` are chosen by them and by nothing else, so that
     they are the same bits on every machine. It is printed how well they foretell structures they are not fitted to.

A reply is greedy, of one validation input, and as long as targets are in the mean. Each structure takes turns with the
whole model text by text, and counts by how many times as long it takes, by the first quartile of either: what else the
machine does slows both, and only ever adds. With one thread the processor's time counts, which is the time of a reply
where nothing else runs; with more, or a GPU, the wall clock's.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from stages import layout, machine, params, recipe
from stages.errors import UserError, command
from stages.params.prune import Latency
from stages.runtime import prepare
from stages.text.pairs import read_pairs

if TYPE_CHECKING:
    from stages.models.checkpoint import Generator
    from stages.pruning.structure.grid import Point

WARM_UP = 2
"""Texts generated of each structure before the clock starts."""
COLUMNS = 100
"""Width of the table at least, which a file gets as well."""
TIMES = "\N{MULTIPLICATION SIGN}"
QUICK = 0.25
"""Quantile of times that counts."""
TOLERANCE = 0.15
"""Share of a time by which the table may be off, at a structure it is not fitted to."""


@command
def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, check or look up."""
    parser = argparse.ArgumentParser(prog="python -m stages.latency", description="Measure what latency is made of.")
    parser.add_argument("--texts", type=int, default=20, help="replies that each structure is timed on (20)")
    does = parser.add_mutually_exclusive_group()
    does.add_argument("--check", nargs="+", metavar="LEVEL", help="time finished levels against the baseline")
    does.add_argument("--speedup", type=float, help="say which level is so many times as fast as the baseline")
    does.add_argument("--latency-ms", type=float, help="say which level takes so many milliseconds a reply")
    args = parser.parse_args(arguments)
    if args.texts < 1:
        raise UserError(f"--texts has to be at least 1, not {args.texts}")
    if args.speedup is not None:
        _target(args.speedup)
    elif args.latency_ms is not None:
        table = _table(params.load("prune"))
        _target(table.baseline_ms / args.latency_ms if args.latency_ms > 0 else math.inf)
    elif args.check:
        _check(args.check, args.texts)
    else:
        _measure(args.texts)


def _measure(count: int) -> None:
    settings = _unmeasured()
    prepare(settings.runtime)

    from stages.models import checkpoint
    from stages.pruning.structure import grid, latency
    from stages.pruning.structure.axes import describe
    from stages.pruning.structure.removal import shrink

    baseline = checkpoint.load(layout.model_folder(layout.BASELINE))
    structure = describe(baseline.model)
    replies = _Replies(baseline, count)
    points = grid.grid(structure, settings.prune.structured)
    print(f"{len(points)} structures, {count} replies of {replies.tokens} tokens each", flush=True)
    ratios = [replies.ratio(shrink(baseline, point.plan)) for point in points[1:]]
    whole = replies.whole_ms
    times = [whole, *(whole * ratio for ratio in ratios)]
    amount_of = latency.amounts(baseline.model, structure)
    amounts = [amount_of(point.plan) for point in points]
    fitted = [number for number, point in enumerate(points) if point.fitted]
    milliseconds = grid.fit([amounts[n] for n in fitted], [times[n] for n in fitted])
    table = Latency(
        device=str(machine.describe(settings.runtime)["device"]),
        threads=settings.runtime.threads,
        source_tokens=round(replies.source_tokens, 1),
        target_tokens=replies.tokens,
        baseline_ms=round(whole, 2),
        sizes=latency.sizes(baseline.model, structure),
        milliseconds=milliseconds,
    )
    told = [latency.total(milliseconds, found) for found in amounts]
    worst = _show(points, times, told)
    for part, value in milliseconds.items():
        print(f"{part:22} {value:8.3f} ms {_unit(part)}")
    if worst > TOLERANCE:
        raise UserError(
            f"structures that were not fitted take up to {worst:.0%} more or less than the table has it, which is too "
            "much to go by: let the machine do nothing else, or time more replies with --texts"
        )
    recipe.write([f"prune.structured.latency={json.dumps(table.model_dump())}"])


class _Replies:
    """Times smaller models against the whole one."""

    def __init__(self, baseline: Generator, count: int) -> None:
        from stages.evaluation.timing import spread
        from stages.models.checkpoint import IGNORED

        training, validation = (read_pairs(layout.DATA / f"{split}.parquet") for split in ("train", "validation"))
        if not validation.sources:
            raise UserError("the validation split has no texts to reply to: lower clean.split.train")
        self.texts = spread(validation.sources, count)
        examples = baseline.encode(training.sources, training.targets)
        labels = sum(label != IGNORED for example in examples for label in example["labels"])
        self.tokens = min(max(round(labels / max(len(examples), 1)), 1), baseline.max_target_tokens)
        self.source_tokens = sum(baseline.prompts([text])["input_ids"].shape[1] for text in self.texts) / count
        self._baseline = baseline
        self._taken: list[float] = []

    def ratio(self, smaller: Generator) -> float:
        """How many times as long it takes as the whole model: first quartiles over texts, in turns."""
        import numpy as np

        options = {"num_beams": 1, "do_sample": False, "min_new_tokens": self.tokens, "max_new_tokens": self.tokens}
        pair = (smaller, self._baseline)
        for text in self.texts[:WARM_UP]:
            for generator in pair:
                seconds(generator, text, options)
        taken = np.empty((len(self.texts), 2))
        for i, text in enumerate(self.texts):
            for which in (i % 2, 1 - i % 2):  # neither always runs on the caches the other has left
                taken[i, which] = seconds(pair[which], text, options)
        self._taken += taken[:, 1].tolist()
        quick = np.quantile(taken, QUICK, axis=0)
        return float(quick[0] / quick[1])

    @property
    def whole_ms(self) -> float:
        """First quartile of the whole model's times, over all turns so far."""
        import numpy as np

        return float(np.quantile(self._taken, QUICK)) * 1000


def seconds(generator: Generator, text: str, options: dict[str, Any]) -> float:
    """Time of one reply, from text to text."""
    import torch

    from stages.evaluation.generation import generate_batch

    alone = torch.get_num_threads() == 1 and generator.device.type == "cpu"
    clock = time.process_time if alone else time.perf_counter
    start = clock()
    generate_batch(generator, [text], options)
    return clock() - start


def _check(keys: Sequence[str], count: int) -> None:
    """Print what the table says of levels, and what they take."""
    settings = params.load("prune", "runtime")
    table = _table(settings)
    prepare(settings.runtime)

    from stages.models import checkpoint
    from stages.pruning.structure.axes import describe
    from stages.pruning.structure.latency import check_measured, predicted
    from stages.pruning.structure.plan import whole

    def told(generator: Generator) -> float:
        structure = describe(generator.model)
        return predicted(table, generator.model, structure)(whole(structure))

    baseline = checkpoint.load(layout.model_folder(layout.BASELINE))
    check_measured(table, baseline.model, describe(baseline.model))
    _compare_devices(table, settings)
    replies = _Replies(baseline, count)
    print(f"{count} replies of {replies.tokens} tokens, each level in turns with the baseline")
    print(f"{'':24} {'by the table':>12} {'measured':>9}")
    for key in keys:
        level = checkpoint.load(layout.model_folder(key))
        ratio = replies.ratio(level)
        print(f"{key:24} {told(baseline) / told(level):11.2f}{TIMES} {1 / ratio:8.2f}{TIMES}")
    print(f"baseline: {told(baseline):.1f} ms by the table, {replies.whole_ms:.1f} ms measured")


def sparsity(speedup: float) -> float:
    """Share of the time that goes if a reply is so many times as fast, rounded up to what a level's name holds."""
    return math.ceil(round((1 - 1 / speedup) * 1e4, 6)) / 1e4


def _target(speedup: float) -> None:
    """Print the level that meets a target, and how to make it."""
    if not 1 < speedup < 1e4:
        raise UserError(f"a level is to be faster than the baseline, not {speedup:.3g} times as fast")
    settings = params.load("prune", "runtime", "sweep")
    table = _table(settings)
    level = layout.Level("structured", sparsity(speedup))

    from stages.models import checkpoint
    from stages.pruning.structure.axes import describe
    from stages.pruning.structure.choice import least
    from stages.pruning.structure.latency import check_measured, predicted
    from stages.pruning.structure.plan import whole

    baseline = checkpoint.load(layout.model_folder(layout.BASELINE))
    structure = describe(baseline.model)
    check_measured(table, baseline.model, structure)
    _compare_devices(table, settings)
    there = predicted(table, baseline.model, structure)(whole(structure))
    left = (_trimmed(baseline) if settings.prune.structured.vocabulary else baseline).model
    share = least(structure, predicted(table, left, structure), settings.prune.structured) / there
    if 1 - level.sparsity < share:
        raise UserError(
            f"{share * table.baseline_ms:.1f} of {table.baseline_ms:.1f} ms are there whatever goes: ask for a level "
            f"that is less than {1 / share:.1f} times as fast, or let more go (prune.structured)"
        )
    faster = f"{1 / (1 - level.sparsity):.3g}{TIMES} as fast as the baseline"
    print(
        f"{level.key}: {faster}, {table.baseline_ms * (1 - level.sparsity):.1f} of {table.baseline_ms:.1f} ms a reply"
    )
    missing = [] if settings.prune.structured.budget == "latency" else ["set prune.structured.budget to latency"]
    missing += [] if level.method in settings.sweep.method else [f"add {level.method} to sweep.method"]
    missing += [] if level.sparsity in settings.sweep.sparsity else [f"add {level.sparsity} to sweep.sparsity"]
    if missing:
        print(f"In params.yaml: {', '.join(missing)}.")
    print(f"Then: dvc repro evaluate@{level.key}")


def _trimmed(baseline: Generator) -> Generator:
    """The baseline with the tokens alone that a level of `prune.structured.vocabulary` keeps."""
    from stages.pruning.structure.vocabulary import seen, trim

    training, validation = (read_pairs(layout.DATA / f"{split}.parquet") for split in ("train", "validation"))
    return trim(baseline, seen(baseline, training.sources + validation.sources, training.targets + validation.targets))


def _compare_devices(table: Latency, settings: params.Params) -> None:
    """Say so if the table was measured elsewhere: what is chosen by it is the same, but not how fast that is here."""
    here = machine.describe(settings.runtime)["device"]
    if table.device != here:
        print(f"note: the table was measured on {table.device}, and this is {here}")


def _table(settings: params.Params) -> Latency:
    table = settings.prune.structured.latency
    if table is None:
        raise UserError("prune.structured.latency is null: measure it first, with python -m stages.latency")
    return table


def _show(points: Sequence[Point], times: Sequence[float], told: Sequence[float]) -> float:
    """Print every structure; return by which share the worst of those that were not fitted is off."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("what is left", overflow="fold")
    for header in ("measured\nms", "by the parts\nms", "off"):
        table.add_column(header, justify="right", no_wrap=True)
    worst, fitted = 0.0, True
    for point, measured, sum_of_parts in zip(points, times, told, strict=True):
        if fitted and not point.fitted:
            table.add_section()
            table.add_row("not fitted:", style="dim")
        fitted = point.fitted
        off = sum_of_parts / measured - 1
        worst = worst if fitted else max(worst, abs(off))
        table.add_row(point.label, f"{measured:.1f}", f"{sum_of_parts:.1f}", f"{off:+.0%}")
    console = Console()
    console.width = max(console.width, COLUMNS)
    console.print(table)
    return worst


def _unit(part: str) -> str:
    if part == "reply":
        return "whatever the model is"
    return "a layer" if part.endswith("_layers") else "a million weights"


def _unmeasured() -> params.Params:
    """Params as they are but for what was measured before, which need not fit any more."""
    values = params.read_yaml(params.PARAMS_FILE)
    with suppress(KeyError, TypeError, AttributeError):  # then the rest is not valid either, and refused for it
        values["prune"]["structured"] |= {"budget": "parameters", "latency": None}
    return params.validate(values, str(params.PARAMS_FILE))


if __name__ == "__main__":
    main()
