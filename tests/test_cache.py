"""Objects of DVC's cache that are no longer what they are called."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from stages import cache


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(cache, "dvc", lambda *arguments: f"{tmp_path}\n")
    return tmp_path


def put(folder: Path, content: bytes, ending: str = "") -> Path:
    md5 = hashlib.md5(content).hexdigest()
    path = folder / "files" / "md5" / md5[:2] / f"{md5[2:]}{ending}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_whole_objects_stay(folder, capsys):
    kept = [put(folder, b"text"), put(folder, b"[]", ".dir"), put(folder, b"")]
    passing = kept[0].with_name(".x.tmp")
    passing.write_bytes(b"on its way")
    cache.main([])
    assert "3 objects, all as their names say" in capsys.readouterr().out
    assert all(path.exists() for path in [*kept, passing])


@pytest.mark.parametrize("damage", [b"", b"tex", b"texu"])
def test_damaged_objects_go(damage, folder, capsys):
    kept, file, listing = put(folder, b"other"), put(folder, b"text"), put(folder, b"[{}]", ".dir")
    for path in (file, listing):
        path.write_bytes(damage)
        path.chmod(0o444)  # as DVC leaves them
    with pytest.raises(SystemExit) as ended:
        cache.main([])
    said = capsys.readouterr().err
    assert ended.value.code == 1 and said.count("\n") == 1
    assert "and 1 more of 3 objects" in said and "dvc fetch" in said
    assert kept.exists() and not file.exists() and not listing.exists()
