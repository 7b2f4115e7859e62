"""Write down which code each stage runs.

    python -m stages.code

In:  the modules in stages.
Out: outputs/code/SCRIPT.json: path and md5 of every module that the script imports, directly or not, and that can
     change what it makes. It is a dep of the stages that run it, so that an edit makes those anew that it concerns.

stages/params is no part of it: it holds no defaults, so it cannot change a result, and the values that it reads are
params of the stages. Nor are the modules of criteria, of which each level has its own as a dep of its own.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stages import fingerprints, layout
from stages.errors import command
from stages.files import md5, replacing

if TYPE_CHECKING:
    from grimp import ImportGraph

SCRIPTS = ("clean", "reference", "train", "prune", "finetune", "evaluate", "compare", "export", "benchmark")
WITHOUT_EFFECT = re.compile(
    r"stages(\.(params(\..*)?|errors|fingerprints|restore|tracking(\..*)?|training\.progress|text\.progress))?$"
)
"""Modules that cannot change a bit of any output: they refuse, report, show progress or describe."""
CRITERIA = "stages.pruning.criteria"
BY_NAME = "stages.pruning.criterion"
"""Finds a criterion by name, which no import tells of."""


@command
def main(arguments: Sequence[str] | None = None) -> None:
    """Write the fingerprints of all scripts."""
    import grimp

    argparse.ArgumentParser(prog="python -m stages.code", description="Write which code each stage runs.").parse_args(
        arguments
    )
    graph = grimp.build_graph("stages", exclude_type_checking_imports=True, cache_dir=None)
    with replacing(layout.CODE) as folder:
        folder.mkdir()
        for script in SCRIPTS:
            modules = {path: md5(Path(path)) for path in modules_of(script, graph)}
            (folder / fingerprints.file_of(script).name).write_text(fingerprints.text(modules), encoding="utf-8")


def modules_of(script: str, graph: ImportGraph) -> set[str]:
    """Paths of the modules that a script runs whatever the level, packages' __init__ included.

    Args:
        script: its name in stages.
        graph: of the imports in stages, without those for types alone.
    """
    found = _imported([f"stages.{script}"], graph)
    if BY_NAME in found:
        found |= _imported(graph.find_children(CRITERIA), graph)
    found = {module for module in found if not WITHOUT_EFFECT.match(module)}
    found |= {parent for module in found if not WITHOUT_EFFECT.match(parent := module.rpartition(".")[0])}
    return {_path(module) for module in found if module.rpartition(".")[0] != CRITERIA}


def _imported(modules: Iterable[str], graph: ImportGraph) -> set[str]:
    return {other for module in modules for other in (module, *graph.find_upstream_modules(module))}


def _path(module: str) -> str:
    path = module.replace(".", "/")
    return f"{path}/__init__.py" if Path(path).is_dir() else f"{path}.py"


if __name__ == "__main__":
    main()
