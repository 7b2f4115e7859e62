"""A fingerprint stands for the modules that a script runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from shared import ROOT

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
    assert fingerprints.named(HERE, path) == {}
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
    with pytest.raises(UserError, match=r"outputs/code/test_fingerprints\.json is damaged: run"):
        fingerprints.refuse_edited("test_fingerprints")


def test_a_stage_that_imported_edited_code_is_refused_in_the_end(fingerprint, monkeypatch, capsys):
    """Modules that were imported before are what they were when the stage began."""

    def run(name: str) -> None:
        Path(OTHER).write_text("edited")
        sys.modules[name] = ModuleType(name)

    monkeypatch.setenv("DVC_STAGE", "train")
    monkeypatch.setitem(sys.modules, "stages.two", ModuleType("stages.two"))
    command(run)("stages.two")
    Path(OTHER).write_text(f"# {OTHER}\n")
    monkeypatch.delitem(sys.modules, "stages.two")
    with pytest.raises(SystemExit):
        command(run)("stages.two")
    assert f"error: {OTHER} is not as" in capsys.readouterr().err


def test_a_list_is_damaged_too(fingerprint):
    fingerprint.write_text("[1]")
    with pytest.raises(UserError, match="is damaged"):
        fingerprints.edited(HERE, fingerprint)


def test_versions_of_libraries_are_part_of_it(fingerprint, monkeypatch, capsys):
    import safetensors

    def pin(version: str) -> None:
        fingerprints.CONSTRAINTS.write_text(f"# all\nother==1\nSafeTensors=={version}\n")
        os.utime(fingerprints.CONSTRAINTS, ns=(0, int(version.partition(".")[2].partition(".")[0])))

    def record() -> None:
        named = {MODULE: md5(Path(MODULE)), "safetensors": fingerprints.pins(HERE)["safetensors"]}
        fingerprint.write_text(fingerprints.text(named))

    pin(safetensors.__version__)
    record()
    assert fingerprints.md5_now(HERE, fingerprint) == md5(fingerprint) and not fingerprints.edited(HERE, fingerprint)
    monkeypatch.setenv("DVC_STAGE", "train")
    done = []
    stage = command(lambda: done.append("ran"))
    stage()
    pin("0.0.1")
    assert fingerprints.edited(HERE, fingerprint) == ["safetensors"]
    with pytest.raises(SystemExit):
        stage()
    assert "error: safetensors is not as outputs/code/test_fingerprints.json has it" in capsys.readouterr().err
    record()
    with pytest.raises(SystemExit):
        stage()
    said = capsys.readouterr().err
    assert f"error: safetensors {safetensors.__version__} is installed, constraints.txt has 0.0.1" in said
    assert done == ["ran"]


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """This project's code and graph."""
    shutil.copytree(ROOT / "stages", tmp_path / "stages", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def make_code(project: Path) -> subprocess.CompletedProcess[str]:
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    call = [sys.executable, "-m", "stages.code"]
    return subprocess.run(call, cwd=project, env=variables, capture_output=True, text=True, check=False)


def test_a_module_that_is_no_python_is_named(project):
    (project / "stages/pruning/engine.py").write_text("def (")
    made = make_code(project)
    assert made.returncode == 1 and made.stderr.startswith("error: stages cannot be read: ")
    assert "engine.py" in made.stderr and "Traceback" not in made.stderr


def test_a_module_that_dvc_does_not_watch_is_named(project):
    (project / "stages/extra.py").touch()
    with (project / "stages/evaluation/quality.py").open("a") as file:
        file.write("\nfrom stages import extra\n")
    made = make_code(project)
    assert made.returncode == 1
    assert made.stderr.startswith("error: stages/extra.py is imported, and dvc.yaml does not say so")
    (project / "stages/extra.py").rename(project / "stages/evaluation/extra.py")
    quality = project / "stages/evaluation/quality.py"
    quality.write_text(quality.read_text().replace("from stages import extra", "from stages.evaluation import extra"))
    assert not make_code(project).returncode
    assert "stages/evaluation/extra.py" in (project / "outputs/code/evaluate.json").read_text()
    assert "stages/evaluation/extra.py" not in (project / "outputs/code/prune.json").read_text()


def test_libraries_that_compute_are_named_with_what_is_pinned(project):
    made = make_code(project)
    assert not made.returncode, made.stderr
    pins = fingerprints.pins(project)
    train, compare = (json.loads((project / f"outputs/code/{name}.json").read_text()) for name in ("train", "compare"))
    for name in ("torch", "transformers", "tokenizers", "accelerate", "safetensors", "numpy"):
        assert train[name] == pins[name]
    assert compare["matplotlib"] == pins["matplotlib"] and "torch" not in compare
    assert not {"rich", "pydantic", "mlflow", "dvc"} & {*train, *compare}


def test_what_only_tracking_imports_is_none_of_it(project):
    """MLflow is told by it, and no output."""
    made = make_code(project)
    assert not made.returncode, made.stderr
    assert "stages/bitmasks.py" in (project / "outputs/code/train.json").read_text()
    assert "stages/lockfile.py" not in (project / "outputs/code/train.json").read_text()
