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

from stages import fingerprints, layout, params
from stages.errors import UserError, command
from stages.files import md5, replacing

if TYPE_CHECKING:
    from grimp import ImportGraph

STAGE = "code"
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
    """Write the fingerprints of all scripts.

    Raises:
        UserError: a module is no Python, or would be edited without this stage noticing.
    """
    import grimp
    from grimp.exceptions import SourceSyntaxError

    argparse.ArgumentParser(prog="python -m stages.code", description="Write which code each stage runs.").parse_args(
        arguments
    )
    try:
        graph = grimp.build_graph("stages", exclude_type_checking_imports=True, cache_dir=None)
    except SourceSyntaxError as error:
        raise UserError(f"stages cannot be read: {error}: mend it") from None
    seen = {Path(dep) for dep in params.read_yaml(Path("dvc.yaml"))["stages"][STAGE]["deps"]}
    for path in sorted({path for script in SCRIPTS for path in modules_of(script, graph)}):
        if seen.isdisjoint((Path(path), *Path(path).parents)):
            raise UserError(
                f"{path} is imported, and dvc.yaml does not say so: add it to the deps of the stage {STAGE}"
            )
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
    """Modules that these import, directly or not; not those that only modules without effect do."""
    found: set[str] = set()
    left = list(modules)
    while left:
        module = left.pop()
        if module not in found:
            found.add(module)
            if not WITHOUT_EFFECT.match(module):
                left += graph.find_modules_directly_imported_by(module)
    return found


def _path(module: str) -> str:
    path = module.replace(".", "/")
    return f"{path}/__init__.py" if Path(path).is_dir() else f"{path}.py"


if __name__ == "__main__":
    main()
