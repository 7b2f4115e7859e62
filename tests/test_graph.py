"""dvc.yaml tells the truth: a stage's deps are the modules it imports, its params the sections it loads."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import grimp
import pytest
from ruamel.yaml import YAML
from shared import ROOT

from stages import code, params

STAGES: dict[str, Any] = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]


@cache
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("stages")


def script(stage: dict[str, Any]) -> str:
    return re.match(r"python -m (\S+)", stage["cmd"]).group(1)


def test_every_stage_depends_on_the_code_of_its_script():
    assert {script(stage).removeprefix("stages.") for stage in STAGES.values()} == {*code.SCRIPTS, "code"}
    for name, stage in STAGES.items():
        declared = {dep for dep in stage["deps"] if dep.startswith(("stages/", "outputs/code/"))}
        wanted = {f"outputs/code/{script(stage).removeprefix('stages.')}.json"}
        if script(stage) in ("stages.prune", "stages.finetune"):
            method = "${item.method}" if "matrix" in stage else "magnitude"
            wanted |= {f"stages/pruning/criteria/{method}.py"}
        assert name == "code" or declared == wanted


def test_code_is_looked_at_wherever_it_may_change():
    """Of a package that a stage imports the stage `code` has all, so that a new module of it is seen as well."""
    deps = {Path(dep) for dep in STAGES["code"]["deps"]}
    imports = code.imports()
    found = {Path(path) for name in code.SCRIPTS for path in code.modules_of(name, imports)}
    assert not [path for path in found if deps.isdisjoint((path, *path.parents))]
    assert Path("stages/code.py") in deps


@pytest.mark.parametrize("name", ["clean", "prune", "evaluate"])
def test_code_is_what_is_imported(name):
    """By Python itself, which has no graph; modules that are imported in functions come in addition."""
    found = code.modules_of(name, code.imports())
    program = (
        "import sys, types; live = sys.modules['stages.tracking.live'] = types.ModuleType('live'); live.track = None\n"
        f"import stages.{name}; print(*(m.__file__ for m in sys.modules.values() if 'stages' in m.__name__))"
    )
    said = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    paths = [Path(path) for path in said.split()]
    imported = {path.relative_to(ROOT).with_suffix("") for path in paths if path.is_relative_to(ROOT / "stages")}
    modules = {".".join(path.parts).removesuffix(".__init__"): path for path in imported}
    wanted = {f"{path}.py" for module, path in modules.items() if not code.WITHOUT_EFFECT.match(module)}
    assert len(wanted) >= 4
    assert wanted <= found


def test_code_has_criteria_that_are_found_by_name():
    """All that any of them imports, but not themselves: a level depends on its own alone."""
    found = code.modules_of("prune", code.imports())
    assert {"stages/pruning/hessian.py", "stages/pruning/criteria/__init__.py"} <= found
    assert not [path for path in found if "/criteria/" in path and "__init__" not in path]


@pytest.mark.parametrize("name", STAGES)
def test_params_are_the_sections_loaded(name):
    stage = STAGES[name]
    tree = ast.parse((ROOT / (script(stage).replace(".", "/") + ".py")).read_text())
    loaded = {
        argument.value
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "params.load"
        for argument in call.args
        if isinstance(argument, ast.Constant)
    } - {"tracking"}
    declared = {str(entry).split(".")[0] for entry in stage.get("params", ())}
    assert declared == loaded


@pytest.mark.parametrize("name", ["train", "prune"])
def test_only_the_knob_of_checkpoints_is_no_param(name):
    """It decides no result, so changing it must not make one again; every other key of `train` does."""
    declared = {str(entry) for entry in STAGES[name]["params"] if str(entry).startswith("train")}
    assert declared == {f"train.{key}" for key in params.Train.model_fields} - {"train.checkpoint_every"}


def test_every_section_is_loaded_by_some_command():
    text = "".join(file.read_text() for file in (ROOT / "stages").glob("*.py"))
    for section in params.Params.model_fields:
        assert f'"{section}"' in text


def test_arrows_point_one_way():
    allowed = {
        "text": set(),
        "models": set(),
        "pruning": {"models"},
        "training": {"pruning", "models"},
        "evaluation": {"models"},
        "tracking": set(),
        "runtimes": {"models"},
        "registry": {"models", "evaluation", "tracking"},
        "cluster": {"text", "tracking"},
    }
    scripts = {f"stages.{file.stem}" for file in (ROOT / "stages").glob("*.py")} - {
        f"stages.{leaf}"
        for leaf in (
            "__init__",
            "params",
            "layout",
            "files",
            "fingerprints",
            "errors",
            "bitmasks",
            "runtime",
            "lockfile",
            "machine",
            "memory",
            "pool",
            "processes",
            "scratch",
            "shell",
            "startup",
        )
    }
    for importer in graph().modules:
        room = importer.split(".")[1] if importer.count(".") else ""
        if room not in allowed:
            continue
        for imported in graph().find_modules_directly_imported_by(importer):
            other = imported.split(".")[1] if imported.count(".") else ""
            assert imported not in scripts, f"{importer} imports the script {imported}"
            assert other == room or other not in allowed or other in allowed[room], f"{importer} imports {imported}"


def test_no_file_or_function_is_too_long():
    for file in (ROOT / "stages").rglob("*.py"):
        source = file.read_text()
        assert source.count("\n") <= 400, f"{file.relative_to(ROOT)} has more than 400 lines"
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef):
                length = (node.end_lineno or 0) - node.lineno
                assert length <= 75, f"{file.relative_to(ROOT)}:{node.name} has {length} lines"
