"""Which cells the study has, in the order they are made: benchmarks/study.yaml."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from stages.errors import UserError
from stages.layout import DENSE, Level
from stages.params import Method, read_yaml
from stages.params.section import Section, Sparsity

ONE_SHOT = "one_shot"
"""The regime that is no training: the masks of the prune stage on the baseline."""


@dataclass(frozen=True)
class Cell:
    """One figure of the study: a level, or the dense control, of one baseline under one regime."""

    language: str
    seed: int
    method: str
    """A pruning method, or `dense`, whose sparsity is 0."""
    sparsity: float
    regime: str

    @property
    def key(self) -> str:
        """The level's, as stages name it."""
        return DENSE if self.method == DENSE else Level(self.method, self.sparsity).key

    def __str__(self) -> str:
        return f"{self.language}, seed {self.seed}, {self.key}, {self.regime}"


class Regime(Section):
    """How a level is trained after pruning."""

    params: dict[str, Any] = Field(default_factory=dict)
    """Over params.yaml, nested alike; those of `one_shot` may concern pruning alone."""
    control: str | None = None
    """Regime whose dense control is as good: it differs in what concerns sparse levels alone. None: this one."""


class Block(Section):
    """Cells that belong together: the product of these lists."""

    language: Annotated[list[str], Field(min_length=1)]
    seed: Annotated[list[int], Field(min_length=1)]
    sparsity: Annotated[list[Sparsity], Field(min_length=1)]
    method: Annotated[list[Method], Field(min_length=1)]
    regime: Annotated[list[str], Field(min_length=1)]


class Plan(Section):
    """The whole of study.yaml."""

    languages: dict[str, list[str]]
    """Recipes of each language."""
    params: dict[str, Any]
    """Over params.yaml and recipe, of every cell."""
    later: dict[str, Any] = Field(default_factory=dict)
    """Params, by dotted name, that came after rows were made: with this value a cell is what it was without them."""
    regimes: dict[str, Regime]
    blocks: Annotated[list[Block], Field(min_length=1)]

    @model_validator(mode="after")
    def _names_are_known(self) -> Plan:
        named = {name for block in self.blocks for name in block.regime} | {ONE_SHOT}
        named |= {regime.control for regime in self.regimes.values() if regime.control}
        if unknown := sorted(named - self.regimes.keys()):
            raise ValueError(f"{unknown[0]} is no regime: add it to regimes")
        if unknown := sorted({name for block in self.blocks for name in block.language} - self.languages.keys()):
            raise ValueError(f"{unknown[0]} is no language: add it to languages")
        return self

    def control(self, regime: str) -> str:
        """The regime whose dense control levels of this one are compared with."""
        return self.regimes[regime].control or regime

    def cells(self) -> list[Cell]:
        """All cells in the order they are made, each once: by block, seed and sparsity, a control before its levels."""
        found = (cell for block in self.blocks for cell in self._of(block))
        return list(dict.fromkeys(found))

    def _of(self, block: Block) -> Iterator[Cell]:
        for language in block.language:
            for seed in block.seed:
                for regime in block.regime:
                    yield Cell(language, seed, DENSE, 0, self.control(regime))
                for sparsity in block.sparsity:
                    for method in block.method:
                        for regime in block.regime:
                            yield Cell(language, seed, method, sparsity, regime)


def load(path: Path) -> Plan:
    """Read a plan.

    Raises:
        UserError: it is missing, or a value is wrong.
    """
    values = read_yaml(path)
    try:
        return Plan.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "the plan"
        raise UserError(f"{path}: {key}: {first['msg'].removeprefix('Value error, ')}") from None
