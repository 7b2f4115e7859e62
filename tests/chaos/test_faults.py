"""The suite itself: what it must call lost, on a project of three files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from chaos import faults, ground, kills
from chaos.damage import flipped
from chaos.ground import Ended, Ground

OUT = "outputs/out.txt"
OBJECT = hashlib.md5(b"object").hexdigest()


class Tiny(Ground):
    """Three files, and a pipeline that makes one of them."""

    def end(self, *command: str, **environment: str) -> Ended:
        if not (self.root / OUT).exists():
            (self.root / OUT).write_text("out")
        return Ended(0, "")

    def locked(self) -> dict[str, str]:
        return {OUT: ground.sha256(self.root / OUT)}


@pytest.fixture
def undisturbed(tmp_path, monkeypatch) -> Ground:
    made = Tiny(tmp_path / "project")
    for path, text in {OUT: "out", "params.yaml": "a: 1", f"{cached()}": "object"}.items():
        (made.root / path).parent.mkdir(parents=True, exist_ok=True)
        (made.root / path).write_text(text)
    # What `copied` makes is to be as tiny; git would list the one file that is given.
    monkeypatch.setattr(ground, "Ground", Tiny)
    given = {"params.yaml": ground.sha256(made.root / "params.yaml")}
    monkeypatch.setattr(faults, "given_files", lambda at: {"params.yaml": at.sha("params.yaml")})
    made.expected, made.given, made.finished = made.locked(), given, ground.finished_files(made.root)
    return made


def cached() -> Path:
    return ground.CACHE / "files/md5" / OBJECT[:2] / OBJECT[2:]


@dataclass(frozen=True)
class Harm:
    """A fault that is a function of the project."""

    act: Callable[[Ground], Ended]
    name: str = "harm"
    how: str = "by hand"

    def inject(self, struck: Ground) -> Iterator[Ended]:
        yield self.act(struck)

    def expect(self, ended: Ended) -> Iterator[str]:
        yield from faults.error_of_one_line(ended)


SAID = Ended(1, "error: x: do y\n")


def does(act: Callable[[Ground], object]) -> Callable[[Ground], Ended]:
    return lambda struck: (act(struck) and SAID) or SAID


@pytest.mark.parametrize(
    ("act", "lost"),
    [
        (does(lambda struck: None), None),
        (does(lambda struck: (struck.root / OUT).unlink()), None),  # the pipeline makes it again
        (does(lambda struck: (struck.root / OUT).write_text("other")), "outputs/out.txt"),
        (does(lambda struck: (struck.root / "outputs/more").write_text("left")), "outputs/more"),
        (does(lambda struck: (struck.root / "params.yaml").write_text("a: 2")), "params.yaml, committed, was changed"),
        (does(lambda struck: (struck.root / cached()).unlink()), f"cached object {OBJECT} is lost"),
        (does(lambda struck: (struck.root / cached()).write_text("objecT")), f"cached object {OBJECT} does not hold"),
        (lambda struck: Ended(0, SAID.said), "exit status 0"),
        (lambda struck: Ended(1, ""), "0 lines that begin with error"),
        (lambda struck: Ended(1, SAID.said * 2), "2 lines that begin with error"),
        (lambda struck: Ended(1, f"Traceback (most recent call last):\n{SAID.said}"), "a traceback"),
    ],
)
def test_what_is_lost_is_found(act, lost, undisturbed, tmp_path):
    result = faults.tried("family", Harm(act), undisturbed, tmp_path)
    assert (result.row.times, result.row.survived, result.row.lost) == (1, lost is None, lost is not None)
    assert any(lost in loss for loss in result.losses) if lost else not result.losses
    assert not (tmp_path / "struck").exists() and undisturbed.locked() == undisturbed.expected


def test_kills_are_drawn_by_the_seed_and_leave_out_no_stage(undisturbed):
    undisturbed.seconds = {"clean": 1.0, "train": 20.0, "compare": 3.0}
    plan = kills.planned(7, undisturbed, ())
    assert plan == kills.planned(7, undisturbed, ()) != kills.planned(8, undisturbed, ())
    assert len(plan) == 3 + kills.MORE
    assert list(dict.fromkeys(kill.stage for kill in plan)) == list(undisturbed.seconds)
    assert {kill.target for kill in plan} == set(kills.TARGETS)


def test_a_kill_that_came_too_late_is_tried_again_earlier_on_the_stage_made_anew(undisturbed, monkeypatch):
    undisturbed.seconds = {"clean": 1.0}
    tries: list[tuple[float, tuple[str, ...]]] = []

    def struck(at: Ground, kill: kills.Kill, command: tuple[str, ...]) -> Ended | None:
        tries.append((kill.share, command))
        return SAID if len(tries) == 3 else None

    monkeypatch.setattr(kills, "planned", lambda *_: [kills.Kill("clean", 0.8, "all")])
    monkeypatch.setattr(kills, "struck", struck)
    assert list(kills.Kills(0).inject(undisturbed)) == [SAID]
    assert tries == [(0.8, ("dvc", "repro")), (0.4, ground.FORCE), (0.2, ground.FORCE)]
    monkeypatch.setattr(kills, "struck", lambda *_: None)
    assert not list(kills.Kills(0).inject(undisturbed))


def test_one_bit_is_flipped():
    assert flipped(b"\x00\x00", 1) == b"\x00\x01"


def test_a_command_is_waited_for_until_it_says_something(tmp_path):
    run = Ground(tmp_path).start("sh", "-c", "echo one; sleep 60")
    assert run.until("one") and run.running(0.01)
    ended = run.kill()
    assert ended.status == -9 and ended.said == "one\n" and not run.until("two")
