"""A fingerprint stands for the modules that a script runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stages import fingerprints, layout
from stages.errors import UserError, command
from stages.files import md5

HERE = Path()
MODULE, OTHER = "stages/one.py", "stages/two.py"


@pytest.fixture
def fingerprint(tmp_path, monkeypatch) -> Path:
    """Of two modules, in a project that the working directory is in."""
    monkeypatch.chdir(tmp_path)
    for name in (MODULE, OTHER):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(f"# {name}\n")
    file = fingerprints.file_of("test_fingerprints")
    file.parent.mkdir(parents=True)
    file.write_text(fingerprints.text({name: md5(Path(name)) for name in (OTHER, MODULE)}))
    return file


def test_it_is_sorted_and_a_line_a_module(fingerprint):
    lines = fingerprint.read_text().splitlines()
    assert [line.split('"')[1] for line in lines[1:-1]] == [MODULE, OTHER]
    assert json.loads(fingerprint.read_text())[MODULE] == md5(Path(MODULE))


def test_its_md5_follows_the_modules(fingerprint):
    assert fingerprints.md5_now(HERE, fingerprint) == md5(fingerprint)
    Path(OTHER).write_text("edited")
    assert fingerprints.md5_now(HERE, fingerprint) != md5(fingerprint)
    assert fingerprints.edited(HERE, fingerprint) == [OTHER]
    fingerprint.write_text(fingerprints.text({name: md5(Path(name)) for name in (MODULE, OTHER)}))
    assert fingerprints.md5_now(HERE, fingerprint) == md5(fingerprint)


def test_a_module_that_is_gone_is_edited(fingerprint):
    Path(MODULE).unlink()
    assert fingerprints.edited(HERE, fingerprint) == [MODULE]


@pytest.mark.parametrize("path", ["outputs/metrics/train.json", MODULE, "outputs/code/other.json"])
def test_other_files_name_no_modules(path, fingerprint):
    assert fingerprints.modules(HERE, path) == {}
    assert fingerprints.edited(HERE, path) == []
    assert fingerprints.md5_now(HERE, path) == ""


def test_a_stage_of_dvc_does_not_begin_with_edited_code(fingerprint, monkeypatch, capsys):
    done = []
    stage = command(lambda: done.append("ran"))
    Path(MODULE).write_text("edited")
    stage()  # by hand: nothing is recorded
    monkeypatch.setenv("DVC_STAGE", "train")
    with pytest.raises(SystemExit) as stopped:
        stage()
    assert stopped.value.code == 1 and done == ["ran"]
    assert f"error: {MODULE} is not as {layout.CODE}/test_fingerprints.json has it" in capsys.readouterr().err
    Path(MODULE).write_text(f"# {MODULE}\n")
    stage()
    assert done == ["ran", "ran"]


def test_a_damaged_one_says_what_to_do(fingerprint):
    fingerprint.write_text("{")
    with pytest.raises(UserError, match=r"outputs/code/test_fingerprints\.json is not valid JSON"):
        fingerprints.refuse_edited("test_fingerprints")
