"""Write down which code each stage runs.

    python -m stages.code

In:  the modules in stages, constraints.txt.
Out: outputs/code/SCRIPT.json: path and md5 of every module that the script imports, directly or not, and that can
     change what it makes, and the versions that constraints.txt has of the libraries that these import. It is a dep of
     the stages that run it, so that an edit makes those anew that it concerns.

stages/params is no part of it: it holds no defaults, so it cannot change a result, and the values that it reads are
params of the stages. Nor are the modules of criteria, of which each level has its own as a dep of its own.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stages import fingerprints, layout, params
from stages.errors import UserError, command
from stages.files import md5, replacing

if TYPE_CHECKING:
    from grimp import ImportGraph

STAGE = "code"
"""What dvc.yaml calls this one."""
SCRIPTS = ("clean", "reference", "train", "prune", "finetune", "evaluate", "compare", "export", "benchmark")
WITHOUT_EFFECT = re.compile(
    r"stages(\.(params(\..*)?|errors|fingerprints|restore|tracking(\..*)?|training\.progress|text\.progress))?$"
)
"""Modules that cannot change a bit of any output: they refuse, report, show progress or describe."""
NO_BITS = {"greenlet", "pydantic", "rich", "ruamel.yaml"}
"""Libraries that compute nothing of an output."""
DISTRIBUTIONS = {"ruamel": "ruamel.yaml"}
"""Of packages that are not imported by their distribution's name."""
COMPANIONS = {"transformers": ("safetensors", "tokenizers")}
"""Libraries that compute for one that is imported."""
CRITERIA = "stages.pruning.criteria"
BY_NAME = "stages.pruning.criterion"
"""Finds a criterion by name, which no import tells of."""


@command
def main(arguments: Sequence[str] | None = None) -> None:
    """Write the fingerprints of all scripts.

    Raises:
        UserError: a module is no Python, or would be edited without this stage noticing.
    """
    argparse.ArgumentParser(prog="python -m stages.code", description="Write which code each stage runs.").parse_args(
        arguments
    )
    graph = imports()
    modules = {script: modules_of(script, graph) for script in SCRIPTS}
    seen = {Path(dep) for dep in params.read_yaml(Path("dvc.yaml"))["stages"][STAGE]["deps"]}
    for path in sorted(set().union(*modules.values())):
        if seen.isdisjoint((Path(path), *Path(path).parents)):
            raise UserError(
                f"{path} is imported, and dvc.yaml does not say so: add it to the deps of the stage {STAGE}"
            )
    with replacing(layout.CODE) as folder:
        folder.mkdir()
        for script, paths in modules.items():
            named = {path: md5(Path(path)) for path in paths} | libraries_of(script, graph)
            text = fingerprints.text(named)
            (folder / fingerprints.file_of(script).name).write_text(text, encoding="utf-8")


def imports() -> ImportGraph:
    """Which module of stages imports which, for more than types; modules without effect import none.

    Raises:
        UserError: a module is no Python.
    """
    import grimp
    from grimp.exceptions import SourceSyntaxError

    try:
        graph = grimp.build_graph(
            "stages", include_external_packages=True, exclude_type_checking_imports=True, cache_dir=None
        )
    except SourceSyntaxError as error:
        raise UserError(f"stages cannot be read: {error}: mend it") from None
    for module in filter(WITHOUT_EFFECT.match, graph.modules):
        for imported in graph.find_modules_directly_imported_by(module):
            graph.remove_import(importer=module, imported=imported)
    return graph


def modules_of(script: str, graph: ImportGraph) -> set[str]:
    """Paths of the modules that a script runs whatever the level, packages' __init__ included.

    Args:
        script: its name in stages.
        graph: of `imports`.
    """
    reached = _reached(script, graph)
    found = {module for module in reached if _is_ours(module) and not WITHOUT_EFFECT.match(module)}
    found |= {parent for module in found if not WITHOUT_EFFECT.match(parent := module.rpartition(".")[0])}
    return {_path(module) for module in found if module.rpartition(".")[0] != CRITERIA}


def libraries_of(script: str, graph: ImportGraph) -> dict[str, str]:
    """Libraries that a script computes with whatever the level, and their versions.

    Args:
        script: its name in stages.
        graph: of `imports`.
    """
    pins = fingerprints.pins(Path())
    found = {module for module in _reached(script, graph) if not _is_ours(module)}
    found |= {companion for module in found for companion in COMPANIONS.get(module, ())}
    names = {DISTRIBUTIONS.get(module, module).lower().replace("_", "-") for module in found} - NO_BITS
    return {name: pins[name] for name in names if name in pins}  # others are Python's own


def _reached(script: str, graph: ImportGraph) -> set[str]:
    found = _imported([f"stages.{script}"], graph)
    if BY_NAME in found:
        found |= _imported(graph.find_children(CRITERIA), graph)
    return found


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] == "stages"


def _imported(modules: Iterable[str], graph: ImportGraph) -> set[str]:
    return {other for module in modules for other in (module, *graph.find_upstream_modules(module))}


def _path(module: str) -> str:
    path = module.replace(".", "/")
    return f"{path}/__init__.py" if Path(path).is_dir() else f"{path}.py"


if __name__ == "__main__":
    main()
