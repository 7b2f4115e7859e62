"""Files that are cut short, or in which one bit is another: by hand, by a disk, by a copy that was broken off."""

from __future__ import annotations

import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chaos.faults import Fault, error_of_one_line, no_error
from chaos.ground import CACHE, FORCE, Ended, Ground
from stages import files

HARMS: Mapping[str, Callable[[bytes], bytes]] = {
    "cut short": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "one bit flipped in the middle": lambda content: flipped(content, len(content) // 2),
    "one bit flipped at the start": lambda content: flipped(content, 0),
    "one bit flipped at the end": lambda content: flipped(content, len(content) - 1),
}


def flipped(content: bytes, place: int) -> bytes:
    """The same but for the lowest bit of one byte."""
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def damage(path: Path, harm: str) -> None:
    """Damage a file in place as a disk does: nobody may have been allowed to write it, and its mode stays."""
    content = HARMS[harm](path.read_bytes())
    mode = path.stat().st_mode
    path.chmod(0o644)
    path.write_bytes(content)
    path.chmod(mode)


@contextmanager
def kept(*paths: Path) -> Iterator[None]:
    """Have files as they were after the block, whatever becomes of them in it."""
    before = {path: path.read_bytes() for path in paths}
    try:
        yield
    finally:
        for path, content in before.items():
            path.write_bytes(content)


@dataclass(frozen=True)
class Input:
    """A finished file that later stages read, and that is damaged in the workspace."""

    name: str
    path: str
    commands: tuple[tuple[str, ...], ...]
    """Those that read it, past DVC, which would notice by itself."""
    params: Mapping[str, Any] = field(default_factory=dict)
    """Changes with which it is read."""
    harms: tuple[str, ...] = ("cut short", "empty", "one bit flipped at the start")
    how: str = "real: cut short, emptied, a bit flipped where the format tells; read by the stage itself, past DVC"

    def inject(self, ground: Ground) -> Iterator[Ended | None]:
        """Damage it in every way, and read it by every command."""
        file = ground.root / self.path
        settings = ground.root / "params.yaml"
        for harm in self.harms:
            for command in self.commands:
                with kept(file, settings):
                    ground.set(**self.params)
                    damage(file, harm)
                    ended = ground.end(*command, ESPALIER_TRACKING="off")
                yield ended

    def expect(self, ended: Ended | None) -> Iterator[str]:
        """It is named."""
        path = Path(self.path)
        yield from error_of_one_line(ended, rf"{re.escape(path.name)}|{re.escape(str(path.parent))}")


@dataclass(frozen=True)
class Unnoticed:
    """As `Input`, but with a bit flipped where no format would tell: DVC has to."""

    name: str = "a bit flipped amid an output; `dvc repro` is to make it again"
    how: str = "real: one bit in the middle of each file that the cache has"

    def inject(self, ground: Ground) -> Iterator[Ended | None]:
        """Flip one bit of each kind of output, then run the pipeline."""
        for path in (
            "outputs/data/train.parquet",
            "outputs/models/baseline/model.safetensors",
            "outputs/models/pruned/magnitude-0.6/masks.safetensors",
            "outputs/predictions/dense.parquet",
        ):
            damage(ground.root / path, "one bit flipped in the middle")
            ended = ground.end("dvc", "repro")
            same = ground.sha(path) == ground.finished[path]
            yield ended if same else Ended(1, f"{ended.said}{path} has other bits")

    def expect(self, ended: Ended | None) -> Iterator[str]:
        """The file is as it was."""
        yield from no_error(ended)


@dataclass(frozen=True)
class Cached:
    """An object of DVC's cache is damaged, and wanted."""

    name: str = "damaged object in DVC's cache"
    how: str = "real: cut short, emptied, a bit flipped; then `dvc checkout`, `dvc repro` and `python -m stages.cache`"

    def inject(self, ground: Ground) -> Iterator[Ended | None]:
        """Lose outputs, and find their objects damaged."""
        objects = {}
        for path, harm in (
            ("outputs/data/train.parquet", "cut short"),
            ("outputs/data/test.parquet", "one bit flipped in the middle"),
            ("outputs/predictions/dense.parquet", "empty"),
        ):
            md5 = ground.locked()[path]
            objects[path] = ground.root / CACHE / "files/md5" / md5[:2] / md5[2:]
            damage(objects[path], harm)
            ground.cached.discard(md5)
            (ground.root / path).unlink()
        ground.end("dvc", "checkout")  # which does not look into objects
        made = ground.end("dvc", "repro")
        told = ground.end("python", "-m", "stages.cache")
        again = ground.end("dvc", "repro")
        for path, file in objects.items():
            right = ground.sha(path) == ground.finished[path] == ground.sha(str(file.relative_to(ground.root)))
            whole = right and not made.status and not again.status and told.status == 1 and "and 2 more" in told.said
            yield Ended(not whole, f"{made.said}{told.said}{again.said}")

    def expect(self, ended: Ended | None) -> Iterator[str]:
        """Output and object are as they were."""
        yield from no_error(ended)


@dataclass(frozen=True)
class HandedOut:
    """A damaged object became an output, which DVC then takes for whole; the remote has the right one."""

    name: str = "damaged object handed out as an output; `python -m stages.cache` and `dvc pull` are to mend it"
    how: str = "real: one bit flipped; then `dvc checkout`, after which `dvc status` sees nothing wrong"

    def inject(self, ground: Ground) -> Iterator[Ended | None]:
        """Damage objects of a file and of a folder's file that a remote has."""
        remote = ground.root.with_name("remote")
        ground.run("dvc", "remote", "add", "--local", "--default", "whole", str(remote))
        ground.run("dvc", "push")
        try:
            for path in ("outputs/data/train.parquet", "outputs/models/baseline/model.safetensors"):
                md5 = files.md5(ground.root / path)
                damage(ground.root / CACHE / "files/md5" / md5[:2] / md5[2:], "one bit flipped in the middle")
                ground.cached.discard(md5)
                (ground.root / path).unlink()
                ground.end("dvc", "checkout")
                handed_out = ground.sha(path) not in ("", ground.finished[path])
                told = ground.end("python", "-m", "stages.cache")
                ended = ground.end("dvc", "pull")
                mended = handed_out and told.status == 1 and path in told.said and not ended.status
                right = ground.sha(path) == ground.finished[path]
                yield Ended(not (mended and right), f"{told.said}{ended.said}")
        finally:
            ground.run("dvc", "remote", "remove", "--local", "whole")
            shutil.rmtree(remote, ignore_errors=True)

    def expect(self, ended: Ended | None) -> Iterator[str]:
        """The output is as it was."""
        yield from no_error(ended)


@dataclass(frozen=True)
class Checkpoint:
    """The checkpoint that a killed training would go on from is damaged."""

    name: str = "damaged checkpoint of a training that was killed"
    how: str = "real: another of its files each time, cut short, emptied or a bit flipped"

    def inject(self, ground: Ground) -> Iterator[Ended | None]:
        """Kill a training, damage what it left, go on."""
        for number, harm in enumerate(("cut short", "one bit flipped in the middle", "empty")):
            home = ground.root / ".scratch/checkpoints"
            shutil.rmtree(home, ignore_errors=True)  # of the run before, which stay until a later stage begins
            run = ground.start(*FORCE, "train")
            deadline = time.monotonic() + 300
            while len(steps := sorted(home.glob("train/*/step-*"))) < 2 and run.running(0.002):
                if time.monotonic() > deadline:
                    raise TimeoutError("no two checkpoints")
            run.process.send_signal(signal.SIGSTOP)
            run.kill()
            files = sorted(path for path in steps[-1].rglob("*") if path.is_file())
            damage(files[number % len(files)], harm)
            yield ground.force("train")

    def expect(self, ended: Ended | None) -> Iterator[str]:
        """The one before it is gone on from."""
        yield from no_error(ended, "is damaged .*it is not used", "going on from step")


@dataclass(frozen=True)
class Params:
    """params.yaml, as an editor or a disk leaves it when it fails."""

    name: str = "damaged params.yaml"
    how: str = "real: cut short at ten places, emptied, bits flipped at ten places"

    def inject(self, ground: Ground) -> Iterator[Ended | None]:
        """Run a stage with each; one that reads as the same values is none."""
        file = ground.root / "params.yaml"
        whole = file.read_bytes()
        broken = [b"", *(whole[: len(whole) * n // 11] for n in range(1, 11))]
        broken += [flipped(whole, whole.index(b":", len(whole) * n // 11)) for n in range(10)]
        for content in broken:
            with kept(file):
                file.write_bytes(content)
                ended = ground.end("python", "-m", "stages.clean")
            yield ended

    def expect(self, ended: Ended | None) -> Iterator[str]:
        """It is refused by name, or says the same."""
        assert ended
        if ended.status:
            yield from error_of_one_line(ended, "params.yaml")


@dataclass(frozen=True)
class Metrics:
    """A metrics file is damaged; git has it, DVC's cache too."""

    name: str = "damaged metrics JSON"
    how: str = "real: cut short, then `compare` and `sync`"

    def inject(self, ground: Ground) -> Iterator[Ended | None]:
        """Read it by what reads it."""
        file = ground.root / "outputs/metrics/evaluate/dense.json"
        for command in ("compare", "sync"):
            with kept(file):
                damage(file, "cut short")
                ended = ground.end("python", "-m", f"stages.{command}")
            yield ended

    def expect(self, ended: Ended | None) -> Iterator[str]:
        """It is named."""
        yield from error_of_one_line(ended, r"dense\.json")


@dataclass(frozen=True)
class Lock:
    """dvc.lock, as plain `dvc` leaves it when it is killed while it rewrites it."""

    name: str = "dvc.lock cut short; `git checkout dvc.lock` and `dvc repro` are to mend it"
    how: str = "real: cut within a key, after a value, at the end of a line, emptied; then `sweep`, `check`, `sync`"

    def inject(self, ground: Ground) -> Iterator[Ended | None]:
        """Read each by our commands, then let plain `dvc repro` meet it, then do as the message says."""
        file = ground.root / "dvc.lock"
        whole = file.read_bytes()
        middle = len(whole) // 2
        for place in (
            whole.index(b"    deps:", middle) + 6,
            whole.index(b"md5: ", middle) + 20,
            whole.index(b"\n      md5: ", middle) + 1,
            0,
        ):
            for command in ("sweep", "check", "sync"):
                file.write_bytes(whole[:place])
                yield ground.end("python", "-m", f"stages.{command}")
            ground.end("dvc", "repro")  # which refuses it, or makes it anew from its run cache
            ground.end("git", "checkout", "dvc.lock")

    def expect(self, ended: Ended | None) -> Iterator[str]:
        """It is named, with what to do."""
        yield from error_of_one_line(ended, "dvc.lock", "git checkout dvc.lock.*dvc repro")


def faults(seed: int) -> list[Fault]:
    """All of this family."""

    def stage(name: str, *arguments: str) -> tuple[str, ...]:
        return ("python", "-m", f"stages.{name}", *arguments)

    return [
        Input(
            "damaged Parquet",
            "outputs/data/train.parquet",
            (stage("train"), stage("prune", "magnitude-0.6")),
            harms=("cut short", "empty", "one bit flipped at the end"),
        ),
        Input(
            "damaged safetensors of a model",
            "outputs/models/baseline/model.safetensors",
            (stage("prune", "magnitude-0.6"), stage("generate", "--model", "baseline", "--text", "a")),
        ),
        Input(
            "damaged masks",
            "outputs/models/pruned/magnitude-0.6/masks.safetensors",
            (stage("finetune", "magnitude-0.6"),),
            {"finetune": {"schedule": "one_shot"}},
        ),
        Unnoticed(),
        Cached(),
        HandedOut(),
        Checkpoint(),
        Params(),
        Lock(),
        Metrics(),
    ]
