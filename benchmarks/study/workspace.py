"""One baseline's workspace: a folder the stages run in, with its own params.yaml and outputs, outside git.

    MODELS/LANGUAGE/SEED/{params.yaml,data,outputs}

The stages are the pipeline's, called as its commands call them; only params differ.
"""

from __future__ import annotations

import functools
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from ruamel.yaml import YAML

from benchmarks.study.measure import figures
from benchmarks.study.plan import ONE_SHOT, Cell, Plan
from benchmarks.study.results import Row
from stages import clean, finetune, layout, params, prune, recipe, train
from stages.files import digest, read_json, replacing, write_json
from stages.params import PARAMS_FILE, Method, Params

_NOT_OF_A_CELL = {"sweep", "search", "target", "tracking", "export", "benchmark"}
_TIMES = "made.json"
"""Beside masks: which params they were made with, and how long it took."""


def settings(plan: Plan, cell: Cell, project: Path) -> Params:
    """The params of a cell: the project's, with the language's recipes, the plan's, the regime's, and the level.

    Raises:
        UserError: a recipe or the plan has a key that params.yaml has not, or a value is wrong.
    """
    values = YAML().load((project / PARAMS_FILE).read_text(encoding="utf-8"))
    for name in plan.languages[cell.language]:
        recipe.merge(values, params.read_yaml(project / recipe.RECIPES / f"{name}.yaml"), f"recipe {name}")
    recipe.merge(values, plan.params, "the plan's params")
    recipe.merge(values, plan.regimes[cell.regime].params, f"regime {cell.regime}")
    level: dict[str, Any] = {"runtime": {"seed": cell.seed}}
    if cell.method != layout.DENSE:
        level |= {"sweep": {"method": [cell.method], "sparsity": [cell.sparsity]}, "search": {"method": cell.method}}
        level |= {"export": {"level": layout.CHOSEN}}  # the project's may be a level that this sweep has not
    recipe.merge(values, level, str(cell))
    return params.validate(values, f"params of {cell}")


def fingerprint(plan: Plan, made: Params, cell: Cell) -> str:
    """Digest of the params that decide a cell, but the seed: other methods' knobs have no say, nor what reports do."""
    values = made.model_dump(exclude=_NOT_OF_A_CELL)
    for name, value in plan.later.items():
        *sections, key = name.split(".")
        section = functools.reduce(lambda found, part: found.get(part, {}), sections, values)
        if key in section and section[key] == value:
            del section[key]
    del values["runtime"]["seed"]
    for name in get_args(Method):
        if name != cell.method:
            del values["prune"][name]
    if cell.method == layout.DENSE:
        del values["prune"]
    if cell.regime == ONE_SHOT:
        del values["finetune"]
    return digest(repr(values))[:12]


def make(plan: Plan, cell: Cell, models: Path, project: Path) -> Row:
    """Make a cell in this process, whose working directory becomes the workspace.

    Args:
        plan: the plan.
        cell: what to make.
        models: folder of all workspaces.
        project: the checkout, with params.yaml, recipes and data.

    Raises:
        UserError: params are wrong.
        SystemExit: a stage failed, which it has said why.
    """
    made = settings(plan, cell, project)
    workspace = models / cell.language / str(cell.seed)
    _enter(workspace, project)
    _prepare(made, models / cell.language)
    _write_params(made)
    chosen = {"seconds": 0.0}
    if cell.method != layout.DENSE:
        chosen = _pruned(made, cell)
    tuned, seconds = {"steps": 0}, 0.0
    if cell.regime != ONE_SHOT:
        seconds = _timed(lambda: finetune.main([cell.key]))
        tuned = read_json(layout.metrics_file("finetune", cell.key))
    measured = figures(made, cell)
    if cell.regime != ONE_SHOT:
        shutil.rmtree(layout.model_folder(cell.key))  # as large as the baseline, and never read again
    return Row(
        language=cell.language,
        seed=cell.seed,
        method=cell.method,
        sparsity=cell.sparsity,
        regime=cell.regime,
        **measured,
        steps=tuned["steps"],
        prune_seconds=round(chosen["seconds"], 1),
        finetune_seconds=round(seconds, 1),
        params=fingerprint(plan, made, cell),
    )


def _enter(workspace: Path, project: Path) -> None:
    workspace.mkdir(parents=True, exist_ok=True)
    os.chdir(workspace)
    # A folder of its own, since params take no link that leads out of a project.
    if Path("data").is_symlink():
        Path("data").unlink()
    shutil.rmtree("data", ignore_errors=True)
    shutil.copytree(project / "data", "data", copy_function=_link)


def _link(source: str, target: str) -> None:
    """A second name for a file, or a copy where it is on another disk."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _prepare(made: Params, shared: Path) -> None:
    """Clean, unless another seed of the language has, and train, unless that is done with these params."""
    by = digest(repr(made.data), repr(made.clean))
    data = shared / f"data-{by[:12]}"
    if not data.is_dir():
        _write_params(made)
        clean.main()
        try:
            layout.DATA.rename(data)
        except OSError:  # it is there by now: another seed has cleaned beside this one, to the same bytes
            if not data.is_dir():
                raise
            shutil.rmtree(layout.DATA)
    if not layout.DATA.is_symlink() or layout.DATA.resolve() != data.resolve():
        layout.DATA.unlink(missing_ok=True)
        layout.DATA.parent.mkdir(parents=True, exist_ok=True)
        layout.DATA.symlink_to(data)
    baseline = digest(by, repr(made.model), repr(made.train), repr(made.runtime))
    kept = layout.model_folder(layout.BASELINE).with_name("baseline.json")
    if not kept.is_file() or read_json(kept) != baseline:
        shutil.rmtree(layout.MODELS, ignore_errors=True)
        _write_params(made)
        train.main()
        write_json(kept, baseline)


def _pruned(made: Params, cell: Cell) -> dict[str, Any]:
    """Run the prune stage, unless the regime before this one has, and return what it took."""
    by = digest(repr(made.prune), repr(made.runtime), repr(made.train))
    kept = layout.pruned_folder(cell.key) / _TIMES
    if not kept.is_file() or read_json(kept)["params"] != by:
        seconds = _timed(lambda: prune.main([cell.key]))
        write_json(kept, {"params": by, "seconds": seconds})
    found: dict[str, Any] = read_json(kept)
    return found


def _timed(run: Callable[[], None]) -> float:
    """CPU seconds of this process, which a busy machine does not stretch as it does those on the wall."""
    start = time.process_time()
    run()
    return time.process_time() - start


def _write_params(made: Params) -> None:
    with replacing(PARAMS_FILE) as partial:
        YAML().dump(made.model_dump(), partial)
