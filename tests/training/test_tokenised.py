"""Examples that were tokenised before are those that tokenising gives."""

from __future__ import annotations

import pytest
from shared import FAMILIES, SOURCES, TARGETS

from stages.files import digest
from stages.models import checkpoint
from stages.training import tokenised
from stages.training.tokenised import encoded


def files() -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in tokenised.FOLDER.glob("*.safetensors")}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_lists_from_another_process_s_file(family, build_family, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint.save(build_family(family), "before")
    one, again = checkpoint.load("before"), checkpoint.load("before")  # as levels have it, one after another
    wanted = one.encode(SOURCES, TARGETS)
    assert encoded(one, SOURCES, TARGETS) == wanted
    made = files()
    assert bool(made) == one.tokenizer.is_fast
    monkeypatch.setattr(type(again), "encode", lambda *texts: pytest.fail("tokenised again") if made else wanted)
    assert encoded(again, SOURCES, TARGETS) == wanted
    assert files() == made
    checkpoint.save(again, "after")  # which was never called
    assert digest(tmp_path / "before") == digest(tmp_path / "after")


def test_another_text_limit_or_tokenizer_is_another_file(build_family, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    generator = build_family("bert")
    for change in (
        lambda: None,
        lambda: setattr(generator, "max_target_tokens", generator.max_target_tokens - 1),
        lambda: setattr(generator, "max_source_tokens", 3),
        lambda: generator.tokenizer.add_tokens(["hotel-name"]),
    ):
        change()
        assert encoded(generator, SOURCES, TARGETS) == generator.encode(SOURCES, TARGETS)
    assert encoded(generator, TARGETS, SOURCES) == generator.encode(TARGETS, SOURCES)
    assert len(files()) == 5


@pytest.mark.parametrize("damage", [b"", b"x" * 40, "flip"])
def test_a_damaged_file_is_made_anew(damage, build_family, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    generator = build_family("gpt2")
    wanted = encoded(generator, SOURCES, TARGETS)
    (file,) = tokenised.FOLDER.iterdir()
    whole = bytearray(file.read_bytes())
    whole[-1] ^= 1
    file.write_bytes(whole if damage == "flip" else damage)
    assert encoded(generator, SOURCES, TARGETS) == wanted
    whole[-1] ^= 1
    assert file.read_bytes() == whole


def test_no_room_is_no_harm_and_few_are_kept(build_family, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    generator = build_family("bert")
    monkeypatch.setattr(tokenised, "KEPT", 2)
    for count in range(1, 5):
        encoded(generator, SOURCES[:1] * count, TARGETS[:1] * count)
    assert len(files()) == 2

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tokenised, "save_file", full)
    assert encoded(generator, SOURCES, TARGETS) == generator.encode(SOURCES, TARGETS)
    assert encoded(generator, [], []) == []
