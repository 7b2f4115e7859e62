"""Calibration batches on their way through a model, block by block, and what reaches each of its matrices.

All of them go abreast: each forward pass is a coroutine that stops after every block. While all stand there, the block
may be changed by what its matrices were seen to take in; then each pass computes the block again with what is left of
it and goes on to the next. So statistics of one block are held at a time, inputs are refreshed as SparseGPT and Wanda
have it, and nothing is assumed of what blocks pass to each other.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from greenlet import getcurrent, greenlet
from torch import Tensor, nn

from stages.errors import UserError
from stages.memory import give_back
from stages.models.anatomy import Matrix
from stages.models.checkpoint import IGNORED, by
from stages.pruning.criterion import NO_CALIBRATION, Context
from stages.pruning.statistics import Statistic

Visit = Callable[[str, dict[str, Statistic]], None]
"""Called with the name of a block and what was gathered for each of its matrices; may change their weights."""


@torch.no_grad()
def walk(
    context: Context,
    statistic: Callable[[int, torch.device], Statistic],
    visit: Visit,
    names: Iterable[str] | None = None,
) -> None:
    """Take the calibration batches through the model, and call `visit` at every block that has matrices asked for.

    Blocks come in the order in which the model computes them.

    Args:
        context: the model and its calibration batches.
        statistic: makes what is gathered of a matrix's inputs.
        visit: see `Visit`.
        names: of the matrices; all that are eligible if None.

    Raises:
        UserError: there are no calibration texts, or none reaches a matrix.
    """
    model: Any = context.model
    blocks = _blocks(context.matrices[name] for name in (context.matrices if names is None else names))
    device = next(model.parameters()).device.type
    batches = list(context.batches())
    if not batches:
        raise UserError(NO_CALIBRATION)
    gathering = _Gathering(context.matrices, model, statistic)
    with context.evaluating(), torch.autocast(device, enabled=False), ExitStack() as stack:
        for name, matrices in blocks.items():
            stack.enter_context(_stopping_after(model.get_submodule(name), name, matrices, gathering))
        passes = [greenlet(_pass(model, batch, gathering)) for batch in batches]
        _abreast(passes, lambda block: visit(block, gathering.take(block, blocks[block])), len(blocks))


def _blocks(matrices: Iterable[Matrix]) -> dict[str, list[Matrix]]:
    blocks: dict[str, list[Matrix]] = {}
    for matrix in matrices:
        blocks.setdefault(matrix.block, []).append(matrix)
    return blocks


def _pass(model: Any, batch: Mapping[str, Tensor], gathering: _Gathering) -> Callable[[], None]:
    def run() -> None:
        gathering.batches[getcurrent()] = batch
        # The class's own forward: around the model's, while it is trained in bf16, is an autocast, which a pass that
        # stops would leave on, and which would go on with the casts it made of weights that have changed since.
        # Without a cache: every block is computed twice, and would be remembered twice.
        type(model).forward(model, **batch, use_cache=False)

    return run


def _abreast(passes: Sequence[greenlet], at_block: Callable[[str], None], count: int) -> None:
    """Run passes until each stands after the same block, call `at_block` with it, and go on, `count` times in all.

    Then they end where they stand.
    """
    try:
        for _ in range(count):
            stands = set()
            for one in passes:
                stands.add(one.switch())
                give_back()  # what one pass leaves between its hidden states, the next has no use for
            if len(stands) != 1 or None in stands:
                raise RuntimeError(DIFFERENT.format(stands))
            at_block(stands.pop())
            give_back()
    finally:
        for one in passes:
            if not one.dead:
                one.throw()  # unwinds the forward pass: what comes after the last block is of no use


DIFFERENT = "calibration batches took different ways through the model: {}"
NO_TOKENS = (
    "{} is given {} vectors for {} tokens (texts x length), so that padding cannot be told apart: this architecture "
    "can be pruned by magnitude or gradients only"
)


@dataclass
class _Seen:
    """A tensor that a matrix was given, and the statistic it was added to."""

    inputs: weakref.ref[Tensor]
    """Weak: what the block has no more use for is not to outlive it, beside the largest that it makes."""
    version: int
    statistic: Statistic
    alone: bool
    """Whether nothing else was ever added to it."""

    def is_of(self, inputs: Tensor) -> bool:
        """Whether it is these, unchanged since."""
        return self.inputs() is inputs and self.version == inputs._version


class _Gathering:
    """The statistics of the block that the passes are in.

    Matrices that are given the same tensor, as queries, keys and values are, have one statistic.
    """

    def __init__(
        self, matrices: Mapping[str, Matrix], model: Any, statistic: Callable[[int, torch.device], Statistic]
    ) -> None:
        self.batches: dict[greenlet, Mapping[str, Tensor]] = {}
        self._model = model
        self._new = statistic
        self._statistics: dict[str, Statistic] = {}
        self._called: list[str] = []
        """Matrices in the order they were called in this pass."""
        self._once: set[str] | None = None
        """Those of the block, once a pass has called each of them, and none twice."""
        self._memory: set[int] = set()
        """Where the block's inputs beside the hidden states lie, such as the encoder's states."""
        self._seen: list[_Seen] = []
        """What the matrices were given in this pass."""

    def run(
        self,
        block: Callable[..., Any],
        matrices: Sequence[Matrix],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> None:
        """Compute a block for what its matrices are given; no further than the last of them, where that is known.

        It is known once a pass has called each of them once. A block that calls one twice, or leaves out some, as
        experts are left out, is computed to its end.
        """
        beside = [*args[1:], *(value for key, value in kwargs.items() if key != "hidden_states")]
        self._memory = {value.data_ptr() for value in beside if isinstance(value, Tensor)}
        self._called.clear()
        try:
            block(*args, **kwargs)
            called = set(self._called)
            self._once = called if len(called) == len(self._called) == len(matrices) else None
            self._check_that_all_sharers_were_called()
        except _AllSeen:
            pass
        finally:
            self._seen.clear()

    def add(self, matrix: Matrix, inputs: Tensor) -> None:
        """Take in what a matrix is given [batch, length, in]."""
        self._take_in(matrix, inputs)
        self._called.append(matrix.name)
        if self._once is not None and self._once == set(self._called):
            raise _AllSeen

    def _take_in(self, matrix: Matrix, inputs: Tensor) -> None:
        name, again = matrix.name, matrix.name in self._called
        mine = self._statistics.get(name)
        for seen in self._seen:
            if not again and seen.is_of(inputs) and (mine is seen.statistic or (mine is None and seen.alone)):
                self._statistics[name] = seen.statistic
                return
        alone = mine is None
        if mine is None:
            weight = matrix.oriented(matrix.weight)
            mine = self._statistics[name] = self._new(weight.shape[1], weight.device)
        elif len(self._sharers(mine)) > 1 and again:
            mine = self._statistics[name] = copy.deepcopy(mine)  # until now it was given what they were
        elif len(self._sharers(mine)) > 1 and any(seen.statistic is mine for seen in self._seen):
            raise RuntimeError(DIFFERENT.format(f"the inputs of {name}"))
        for seen in self._seen:
            seen.alone = seen.alone and seen.statistic is not mine
        self._seen.append(_Seen(weakref.ref(inputs), inputs._version, mine, alone))
        flat, real = inputs.detach().flatten(0, -2), self._real(matrix, inputs)
        if len(flat) != real.numel() or (inputs.dim() == 3 and inputs.shape[:2] != real.shape):
            given, tokens = by(inputs.shape[:-1]), by(real.shape)
            raise UserError(NO_TOKENS.format(matrix.name, given, tokens))
        real = real.flatten()
        mine.add((flat if bool(real.all()) else flat[real]).float())

    def _sharers(self, statistic: Statistic) -> list[str]:
        return [name for name, other in self._statistics.items() if other is statistic]

    def _check_that_all_sharers_were_called(self) -> None:
        for name in {name for seen in self._seen for name in self._sharers(seen.statistic)} - set(self._called):
            raise RuntimeError(DIFFERENT.format(f"the inputs of {name}"))

    def take(self, block: str, matrices: Iterable[Matrix]) -> dict[str, Statistic]:
        """What was gathered since the last call."""
        found, self._statistics, self._once = self._statistics, {}, None
        for matrix in matrices:
            if matrix.name not in found or not found[matrix.name].tokens:
                raise UserError(f"no calibration text reaches {matrix.name}: protect it with prune.layers")
        return {matrix.name: found[matrix.name] for matrix in matrices}

    def _real(self, matrix: Matrix, inputs: Tensor) -> Tensor:
        """Which positions [batch, length] are no padding."""
        batch = self.batches[getcurrent()]
        source = batch["attention_mask"].bool()
        of_source = matrix.side == "encoder" or not self._model.config.is_encoder_decoder
        if of_source or inputs.data_ptr() in self._memory:
            return source
        return batch["labels"] != IGNORED


class _AllSeen(BaseException):
    """Ends a pass through a block whose matrices have all been given their inputs. No `except Exception` keeps it."""


@contextmanager
def _stopping_after(block: nn.Module, name: str, matrices: Sequence[Matrix], gathering: _Gathering) -> Iterator[None]:
    """Make a block gather statistics, stop its pass, and compute its output once it goes on."""
    original = block.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        hooks = [
            _module(block, name, matrix).register_forward_pre_hook(_adder(matrix, gathering)) for matrix in matrices
        ]
        try:
            gathering.run(original, matrices, args, kwargs)
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
