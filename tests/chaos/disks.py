"""A full disk while each kind of file is written, and outputs that cannot be written to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from chaos import mounts
from chaos.faults import Fault, error_of_one_line, no_error
from chaos.ground import FORCE, RUNNING, Ended, Ground

NO_SPACE = "No space left on device"


@dataclass(frozen=True)
class Full:
    """No byte is left where a stage writes, from when it has started."""

    name: str
    folder: str
    """What is on the full disk."""
    stages: tuple[str, ...]
    how: str = "real: a small tmpfs with the folder's content, filled once the stage runs"

    def inject(self, ground: Ground) -> Iterator[Ended | None]:
        """Fill it while each stage runs."""
        for stage in self.stages:
            with mounts.small(ground.root / self.folder) as disk:
                run = ground.start(*FORCE, stage)
                run.until(RUNNING)
                disk.fill()
                yield run.wait()
            ground.run("dvc", "checkout", "--force")  # what docs/faults.md says to do

    def expect(self, ended: Ended | None) -> Iterator[str]:
        """It is said."""
        yield from error_of_one_line(ended, NO_SPACE)


class FullCache(Full):
    """What a stage made cannot be kept."""

    def inject(self, ground: Ground) -> Iterator[Ended | None]:
        """Fill the disk of a cache that lacks what the stages make."""
        for stage in self.stages:
            ground.forget(stage)
        yield from super().inject(ground)


class FullCheckpoints(Full):
    """Training is worth more than a checkpoint."""

    def expect(self, ended: Ended | None) -> Iterator[str]:
        """It goes on without."""
        yield from no_error(ended, r"no checkpoint of step \d+ \(is the disk full\?\), the one before it is kept")


@dataclass(frozen=True)
class FullDatabase:
    """MLflow's database cannot grow."""

    name: str = "disk full: mlflow.db"
    how: str = "real: mlflow.db on a full tmpfs"

    def inject(self, ground: Ground) -> Iterator[Ended | None]:
        """Train, then sync."""
        home = ground.root / ".scratch/tracking"
        with mounts.small(home) as disk:
            uri = {"MLFLOW_TRACKING_URI": f"sqlite:///{home}/mlflow.db"}
            ground.run("python", "-m", "stages.sync", **uri)
            disk.fill()
            yield ground.force("evaluate_dense", **uri)

    def expect(self, ended: Ended | None) -> Iterator[str]:
        """A stage is not stopped by it."""
        yield from no_error(ended, "not tracked: .*stages.sync")


@dataclass(frozen=True)
class ReadOnly:
    """Where a stage writes nobody may."""

    name: str
    folder: str
    stages: tuple[str, ...]
    how: str = "real: a read-only bind mount, which holds for root as well"

    def inject(self, ground: Ground) -> Iterator[Ended | None]:
        """Run each stage."""
        for stage in self.stages:
            with mounts.read_only(ground.root / self.folder):
                yield ground.force(stage)

    def expect(self, ended: Ended | None) -> Iterator[str]:
        """It is said."""
        yield from error_of_one_line(ended, "Read-only file system|[Rr]ead-only|Permission denied")


class ReadOnlyCache(ReadOnly):
    """What a stage made cannot be kept."""

    def inject(self, ground: Ground) -> Iterator[Ended | None]:
        """Run each stage with a cache that lacks what it makes."""
        for stage in self.stages:
            ground.forget(stage)
        yield from super().inject(ground)


def faults(seed: int) -> list[Fault]:
    """All of this family."""
    return [
        Full("disk full: Parquet of cleaned data", "outputs/data", ("clean",)),
        Full("disk full: Parquet of predictions", "outputs/predictions", ("evaluate@magnitude-0.6",)),
        Full("disk full: metrics, CSV and JSON", "outputs/metrics", ("reference", "prune@magnitude-0.6")),
        Full("disk full: table and pictures", "outputs/compare", ("compare",)),
        Full("disk full: safetensors of a model", "outputs/models", ("train", "finetune@l1-0.6")),
        Full("disk full: masks", "outputs/models/pruned", ("prune@magnitude-0.6", "prune@l1-0.6")),
        FullCheckpoints("disk full: checkpoints of a training", ".scratch/checkpoints", ("train",)),
        FullCache("disk full: DVC's cache", ".dvc/cache", ("clean",)),
        FullDatabase(),
        ReadOnly("read-only outputs", "outputs", ("clean", "prune@magnitude-0.6")),
        ReadOnlyCache("read-only cache", ".dvc/cache", ("clean",)),
    ]
