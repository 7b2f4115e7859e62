"""Pruning a model block by block, each by the inputs that the pruned blocks before it give.

The calibration batches go through the model once, all of them abreast: each forward pass is a coroutine that stops
after every block. While all stand there, the block is pruned by what its matrices were seen to take in; then each
pass computes the block again with what is left of it and goes on to the next. So statistics of one block are held at
a time, inputs are refreshed as SparseGPT and Wanda have it, and nothing is assumed of what blocks pass to each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from greenlet import getcurrent, greenlet
from torch import Tensor, nn

from stages.bitmasks import Masks
from stages.errors import UserError
from stages.models.anatomy import Matrix
from stages.pruning import quota
from stages.pruning.criterion import Context
from stages.pruning.masks import keep_whole
from stages.pruning.patterns import Pattern
from stages.pruning.selection import keep_lowest_in_rows_out, keep_lowest_out
from stages.pruning.statistics import Norms, Statistic

Visit = Callable[[str, dict[str, Statistic]], None]
"""Called with the name of a block and what was gathered for each of its matrices; may change their weights."""


@dataclass
class Layer:
    """One matrix, as a layer-by-layer criterion is given it."""

    name: str
    weight: Tensor
    """[out, in]; a criterion that updates weights changes it in place."""
    statistic: Any
    """Of the criterion's kind, over the inputs."""
    count: int
    """Units of the pattern to prune."""
    pattern: Pattern
    rows: bool
    """Whether each row loses as many."""
    held: Tensor | None
    """[out, in]: False where a weight is pruned already, and stays so; None if none is."""
    settings: Any
    """The criterion's own section of params `prune`."""

    def keep(self, scores: Tensor, start: int = 0) -> Tensor:
        """Mask of the weights to keep by the lowest scores.

        Args:
            scores: [out, columns] of a window of columns, or of the whole matrix. Windows lose their share of the
                count, so that they sum to it.
            start: the window's first column; it and the window's end have to be multiples of the pattern's columns.
        """
        inputs, width = self.weight.shape[1], scores.shape[1]
        if self.held is not None:
            scores = scores.masked_fill(~self.held[:, start : start + width], -math.inf)
        units = self.pattern.scores(scores).contiguous()
        if width == inputs:
            kept = keep_lowest_out(units, self.count, rows=self.rows, name=self.name)
        else:
            first = start * units.shape[1] // width
            counts = self._quota.of(first, first + units.shape[1])
            if self.rows:
                kept = keep_lowest_in_rows_out(units, counts.to(units.device), name=self.name)
            else:
                kept = keep_lowest_out(units, int(counts), rows=False, name=self.name)
        return self.pattern.expand(kept)

    @cached_property
    def _quota(self) -> quota.Quota:
        return quota.divide(self.count, self.weight.shape, self.pattern, self.held, rows=self.rows)


@dataclass(frozen=True)
class Layerwise:
    """A criterion that prunes matrix after matrix."""

    statistic: Callable[[int, torch.device], Statistic]
    """What it needs to know of a matrix's inputs."""
    prune: Callable[[Layer], Tensor]
    """The mask [out, in] of a layer; may change the weights that it keeps."""
    updates: bool = False
    """Whether it does."""


@torch.no_grad()
def prune_in_order(
    context: Context, criterion: Layerwise, counts: Mapping[str, int], pattern: Pattern, held: Masks | None
) -> Masks:
    """Prune block after block, in place, and return the masks.

    Args:
        context: the model and its calibration batches.
        criterion: what prunes a matrix.
        counts: units of the pattern that each matrix is to lose.
        pattern: which weights go together.
        held: weights already pruned.

    Raises:
        UserError: there are no calibration texts, or none reaches a matrix.
    """
    found: dict[str, Tensor] = {}

    def visit(block: str, statistics: dict[str, Statistic]) -> None:
        for name, statistic in statistics.items():
            matrix = context.matrices[name]
            weight = matrix.oriented(matrix.weight.detach())
            already = None if held is None else matrix.oriented(held[name]).to(weight.device)
            rows = context.settings.scope == "row"
            layer = Layer(name, weight, statistic, counts[name], pattern, rows, already, context.settings)
            if not layer.count:
                found[name] = keep_whole(matrix.weight)
                continue
            kept = criterion.prune(layer)
            weight.masked_fill_(~kept, 0.0)
            found[name] = matrix.oriented(kept).contiguous()

    walk(context, criterion.statistic, visit)
    return Masks({name: found[name] for name in context.matrices})


@torch.no_grad()
def outlier_ratios(context: Context, threshold: float) -> dict[str, float]:
    """Share of |w|*|x| above `threshold` times their mean, of the block that each matrix is in.

    Yin et al. 2024, OWL, equation 1, of the dense model.
    """
    ratios: dict[str, float] = {}

    def visit(block: str, statistics: dict[str, Statistic]) -> None:
        scores = []
        for name, statistic in statistics.items():
            matrix = context.matrices[name]
            assert isinstance(statistic, Norms)
            scores.append((matrix.oriented(matrix.weight.detach()).abs() * statistic.norms).flatten())
        mean = sum(float(s.double().sum()) for s in scores) / sum(s.numel() for s in scores)
        above = sum(int((s > threshold * mean).sum()) for s in scores)
        ratio = above / sum(s.numel() for s in scores)
        ratios.update(dict.fromkeys(statistics, ratio))

    walk(context, Norms, visit)
    return ratios


@torch.no_grad()
def walk(context: Context, statistic: Callable[[int, torch.device], Statistic], visit: Visit) -> None:
    """Take the calibration batches through the model, and call `visit` at every block that has eligible matrices.

    Blocks come in the order in which the model computes them.

    Raises:
        UserError: there are no calibration texts, or none reaches a matrix.
    """
    model: Any = context.model
    blocks = _blocks(context)
    batches = list(context.batches())
    if not batches:
        raise UserError("no calibration examples: the training split is empty, or prune.calibration.samples is 0")
    gathering = _Gathering(context.matrices, model, statistic)
    training = model.training
    model.eval()
    try:
        with ExitStack() as stack:
            for name, matrices in blocks.items():
                stack.enter_context(_stopping_after(model.get_submodule(name), name, matrices, gathering))
            passes = [greenlet(_pass(model, batch, gathering)) for batch in batches]
            _abreast(passes, lambda block: visit(block, gathering.take(block, blocks[block])), len(blocks))
    finally:
        model.train(training)


def _blocks(context: Context) -> dict[str, list[Matrix]]:
    blocks: dict[str, list[Matrix]] = {}
    for matrix in context.matrices.values():
        blocks.setdefault(matrix.block, []).append(matrix)
    return blocks


def _pass(model: Any, batch: Mapping[str, Tensor], gathering: _Gathering) -> Callable[[], None]:
    def run() -> None:
        gathering.batches[getcurrent()] = batch
        # Without a cache: every block is computed twice, and would be remembered twice.
        model(**batch, use_cache=False)

    return run


def _abreast(passes: Sequence[greenlet], at_block: Callable[[str], None], count: int) -> None:
    """Run passes until each stands after the same block, call `at_block` with it, and go on, `count` times in all."""
    try:
        for _ in range(count):
            stands = {one.switch() for one in passes}
            if len(stands) != 1 or None in stands:
                raise RuntimeError(f"calibration batches took different ways through the model: {stands}")
            at_block(stands.pop())
        for one in passes:
            one.switch()
    finally:
        for one in passes:
            if not one.dead:
                one.throw()  # unwinds the forward pass


IGNORED = -100
"""Label of a position that is no token of the target."""


class _Gathering:
    """The statistics of the block that the passes are in."""

    def __init__(
        self, matrices: Mapping[str, Matrix], model: Any, statistic: Callable[[int, torch.device], Statistic]
    ) -> None:
        self.batches: dict[greenlet, Mapping[str, Tensor]] = {}
        self.memory: set[int] = set()
        """Where the block's inputs beside the hidden states lie, such as the encoder's states."""
        self._model = model
        self._new = statistic
        self._statistics: dict[str, Statistic] = {}

    def add(self, matrix: Matrix, inputs: Tensor) -> None:
        """Take in what a matrix is given [batch, length, in]."""
        weight = matrix.oriented(matrix.weight)
        found = self._statistics.setdefault(matrix.name, self._new(weight.shape[1], weight.device))
        real = self._real(matrix, inputs)
        found.add(inputs.detach()[real].float())

    def take(self, block: str, matrices: Iterable[Matrix]) -> dict[str, Statistic]:
        """What was gathered since the last call."""
        found, self._statistics = self._statistics, {}
        for matrix in matrices:
            if matrix.name not in found or not found[matrix.name].tokens:
                raise UserError(f"no calibration text reaches {matrix.name}: protect it with prune.layers")
        return {matrix.name: found[matrix.name] for matrix in matrices}

    def _real(self, matrix: Matrix, inputs: Tensor) -> Tensor:
        """Which positions [batch, length] are no padding."""
        batch = self.batches[getcurrent()]
        source = batch["attention_mask"].bool()
        of_source = matrix.side == "encoder" or not self._model.config.is_encoder_decoder
        if of_source or inputs.data_ptr() in self.memory:
            return source
        return batch["labels"] != IGNORED


@contextmanager
def _stopping_after(block: nn.Module, name: str, matrices: Sequence[Matrix], gathering: _Gathering) -> Iterator[None]:
    """Make a block gather statistics, stop its pass, and compute its output once it goes on."""
    original = block.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        beside = [*args[1:], *(value for key, value in kwargs.items() if key != "hidden_states")]
        gathering.memory = {value.data_ptr() for value in beside if isinstance(value, Tensor)}
        hooks = [
            _module(block, name, matrix).register_forward_pre_hook(_adder(matrix, gathering)) for matrix in matrices
        ]
        try:
            original(*args, **kwargs)
        finally:
            for hook in hooks:
                hook.remove()
        getcurrent().parent.switch(name)
        return original(*args, **kwargs)

    block.forward = forward
    try:
        yield
    finally:
        del block.forward


def _adder(matrix: Matrix, gathering: _Gathering) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def add(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        gathering.add(matrix, inputs[0])

    return add


def _module(block: nn.Module, name: str, matrix: Matrix) -> nn.Module:
    return block.get_submodule(matrix.name.removeprefix(f"{name}.").removesuffix(".weight"))
