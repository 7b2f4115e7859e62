"""Objects of DVC's cache that are no longer what they are called, and outputs that came of them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from dvc.repo import Repo

from stages import cache


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(cache, "dvc", lambda *arguments: f"{tmp_path}\n")
    monkeypatch.setattr(cache, "remembered", list)
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
    assert "3 objects and 0 outputs, all as they should be" in capsys.readouterr().out
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
    assert "and 1 more of 3 objects" in said and "dvc pull" in said
    assert kept.exists() and not file.exists() and not listing.exists()


@pytest.fixture
def repo(tmp_path, monkeypatch) -> Repo:
    """A project with two outputs, `file` and `folder/a`, and a remote that has both."""
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    root = tmp_path / "project"
    (root / "folder").mkdir(parents=True)
    monkeypatch.chdir(root)
    made = Repo.init(no_scm=True)
    with made.config.edit() as config:
        config["remote"] = {"shared": {"url": str(tmp_path / "remote")}}
        config["core"]["remote"] = "shared"
    made.close()
    for path in ("file", "folder/a", "folder/b"):
        Path(path).write_text(f"content of {path}")
    with Repo() as made:
        made.add(["file", "folder"])
        made.push()
    return made


@pytest.mark.parametrize("path", ["file", "folder/a"])
def test_what_a_damaged_object_was_handed_out_as_goes_too(path, repo, capsys):
    """DVC remembers it as whole, so neither `dvc status` nor `dvc checkout --force` sees it."""
    output, content = Path(path), f"content of {path}"
    name = hashlib.md5(content.encode()).hexdigest()
    kept = Path(".dvc/cache/files/md5") / name[:2] / name[2:]
    kept.chmod(0o644)
    kept.write_text(content.upper())
    kept.chmod(0o444)  # as DVC leaves them, and no longer looks into them
    output.unlink()
    with Repo() as now:
        now.checkout()
        assert output.read_text() == content.upper() and not now.status()

    with pytest.raises(SystemExit):
        cache.main([])
    said = capsys.readouterr().err
    assert f"{name[2:]} of 4 objects" in said and f"{output} of 3 outputs" in said
    assert not output.exists() and Path("folder/b").exists()
    with Repo() as now:
        now.pull()
    assert output.read_text() == content
    cache.main([])
    assert "4 objects and 3 outputs, all as they should be" in capsys.readouterr().out


def test_an_output_that_somebody_changed_stays(repo, capsys):
    Path("file").write_text("by hand")
    Path("folder/a").unlink()
    cache.main([])
    assert Path("file").read_text() == "by hand"
    assert "4 objects and 1 outputs" in capsys.readouterr().out
