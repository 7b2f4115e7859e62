"""dvc.yaml tells the truth: a stage's deps are the modules it imports, its params the sections it loads."""

from __future__ import annotations

import ast
import re
from functools import cache
from typing import Any, get_args

import grimp
import pytest
from ruamel.yaml import YAML
from shared import ROOT

from stages import params

# These cannot change a bit of any output: they refuse, report, show progress or describe.
WITHOUT_EFFECT = re.compile(
    r"stages(\.(params(\..*)?|errors|restore|tracking(\..*)?|training\.progress|text\.progress))?$"
)
STAGES: dict[str, Any] = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]


@cache
def graph(*, only_at_run_time: bool = False) -> grimp.ImportGraph:
    return grimp.build_graph("stages", exclude_type_checking_imports=only_at_run_time)


def script(stage: dict[str, Any]) -> str:
    return re.match(r"python -m (\S+)", stage["cmd"]).group(1)


def modules_of(name: str) -> set[str]:
    """Files of all modules a script runs, directly or not, packages' __init__ included."""
    closure = {name, *graph(only_at_run_time=True).find_upstream_modules(name)}
    closure = {module for module in closure if not WITHOUT_EFFECT.match(module)}
    files = set()
    for module in closure:
        path = module.replace(".", "/")
        files.add(f"{path}/__init__.py" if (ROOT / path).is_dir() else f"{path}.py")
        parent = module.rpartition(".")[0]
        if parent and not WITHOUT_EFFECT.match(parent):
            files.add(f"{parent.replace('.', '/')}/__init__.py")
    return files


def wanted_modules(stage: dict[str, Any]) -> set[str]:
    """Module deps of a stage: its imports, and the criterion it finds by name with what all criteria import."""
    wanted = modules_of(script(stage))
    if "stages/pruning/criterion.py" not in wanted:
        return wanted
    for method in get_args(params.Method):
        wanted |= {file for file in modules_of(f"stages.pruning.criteria.{method}") if "/criteria/" not in file}
    method = "${item.method}" if "matrix" in stage else "magnitude"
    return wanted | {f"stages/pruning/criteria/{method}.py", "stages/pruning/criteria/__init__.py"}


@pytest.mark.parametrize("name", STAGES)
def test_deps_are_the_modules_imported(name):
    declared = {dep for dep in STAGES[name]["deps"] if dep.startswith("stages/")}
    wanted = wanted_modules(STAGES[name])
    assert declared == wanted, (
        f"{name}: add {sorted(wanted - declared)}, remove {sorted(declared - wanted)}; tests/write_deps.py does it"
    )


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
    declared = {str(entry).split(".")[0] for entry in stage["params"]}
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
            "errors",
            "bitmasks",
            "runtime",
            "lockfile",
            "machine",
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
