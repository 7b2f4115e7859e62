"""Write ready-made sets of params into params.yaml.

    python -m stages.recipe                            lists the recipes
    python -m stages.recipe crosswoz                   writes recipes/crosswoz.yaml into params.yaml
    python -m stages.recipe multiwoz bart train.epochs=5 'sweep.sparsity=[0.6, 0.8]'

In:  params.yaml, recipes/NAME.yaml (the keys a recipe sets, nested as in params.yaml).
Out: params.yaml with these values in place, its comments and the order of its keys kept; written only if the result
     is valid. `git diff params.yaml` shows the same, `git checkout params.yaml` undoes it.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import YAMLError

from stages import params
from stages.errors import UserError, command
from stages.files import replacing
from stages.params import PARAMS_FILE

RECIPES = Path("recipes")
COMMENT_COLUMN = 30
"""Where the comments of params.yaml stand; a changed value leaves its comment there, or moves it aside."""
FREE_FORM = ("config", "latency")
"""Keys of params whose value may have any fields, as a config of transformers has: replaced as a whole."""

Changes = list[tuple[str, Any, Any]]
"""Dotted key, value before, value after."""


@command
def main(arguments: Sequence[str] | None = None) -> None:
    """List recipes, or write some into params.yaml."""
    parser = argparse.ArgumentParser(
        prog="python -m stages.recipe", description="Write ready-made sets of params into params.yaml."
    )
    parser.add_argument(
        "items", nargs="*", metavar="NAME | KEY=VALUE", help="a recipe, or one value, as in train.epochs=5"
    )
    items = parser.parse_args(arguments).items
    if not items:
        _list()
    else:
        write(items)


def write(items: Sequence[str]) -> None:
    """Write recipes and single values into params.yaml, and print what changed.

    Args:
        items: names of recipes, and `KEY=VALUE`.

    Raises:
        UserError: one is not known, or the result is not valid.
    """
    values = _load(PARAMS_FILE)
    changes: Changes = []
    # Names before values, in the order given: a value on the command line has the last word.
    for name in [item for item in items if "=" not in item]:
        changes += merge(values, _load(find(name)), f"{RECIPES / name}.yaml")
    for item in [item for item in items if "=" in item]:
        changes += merge(values, _nested(item, values), "the command line")
    text = _dump(values)
    params.validate(YAML(typ="safe").load(text), origin=" + ".join(items))
    changes = _net(changes)
    if changes:
        with replacing(PARAMS_FILE) as partial:
            partial.write_text(text, encoding="utf-8")
    _show(changes)


def find(name: str) -> Path:
    """The file of a recipe.

    Raises:
        UserError: there is none of that name.
    """
    path = RECIPES / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(file.stem for file in _files())
        raise UserError(f"{name} is no recipe: choose from {known}; a single value is written KEY=VALUE")
    return path


def merge(values: CommentedMap, overlay: Any, origin: str, prefix: str = "") -> Changes:
    """Set the values of `overlay` in `values`, in place, and return what was set.

    Args:
        values: params as ruamel.yaml reads them, with comments.
        overlay: part of params, nested alike.
        origin: of the overlay, for messages.
        prefix: dotted key of `values` within params.

    Raises:
        UserError: the overlay has a key that params.yaml has not, or a value where params.yaml has a section.
    """
    if not isinstance(overlay, dict):
        raise UserError(
            f"{origin}: {prefix.rstrip('.') or 'params'} is a section: expected keys, found {overlay!r:.40}"
        )
    changes: Changes = []
    for key, value in overlay.items():
        name = f"{prefix}{key}"
        if key not in values:
            raise UserError(f"{origin}: {name} is no key of params.yaml (see the comments there)")
        if isinstance(values[key], dict) and key not in FREE_FORM:
            changes += merge(values[key], value, origin, f"{name}.")
            continue
        changes.append((name, values[key], value))
        if values[key] != value:
            _set(values, key, value)
    return changes


def _set(values: CommentedMap, key: str, value: Any) -> None:
    if isinstance(value, dict | list):
        value = CommentedMap(value) if isinstance(value, dict) else CommentedSeq(value)
        value.fa.set_flow_style()
    values[key] = value
    comment = values.ca.items.get(key, (None, None, None))[2]
    if comment is not None:
        comment.start_mark.column = COMMENT_COLUMN


def _nested(item: str, values: CommentedMap) -> dict[str, Any]:
    """`a.b=1` as `{a: {b: 1}}`; of a free-form config, with its other fields as they are in `values`."""
    key, _, text = item.partition("=")
    try:
        value = _yaml().load(text) if text.strip() else None
    except YAMLError:
        raise UserError(f"{key}: {text} is not a YAML value: quote it, as in {key}='\"{text}\"'") from None
    parts = key.split(".")
    if set(FREE_FORM) & set(parts[:-1]):
        field = parts.pop()
        present: Any = values
        for part in parts:
            present = present.get(part) if isinstance(present, dict) else None
        value = {**(present or {}), field: value}
    nested = {parts.pop(): value}
    while parts:
        nested = {parts.pop(): nested}
    return nested


def _net(changes: Changes) -> Changes:
    """What changed in the end, each key once."""
    first: dict[str, Any] = {}
    last: dict[str, Any] = {}
    for name, before, after in changes:
        first.setdefault(name, before)
        last[name] = after
    return [(name, first[name], after) for name, after in last.items() if first[name] != after]


def _load(path: Path) -> CommentedMap:
    params.read_yaml(path)  # for its messages
    loaded = _yaml().load(path.read_text(encoding="utf-8"))
    return CommentedMap() if loaded is None else loaded


def _dump(values: CommentedMap) -> str:
    stream = io.StringIO()
    _yaml().dump(values, stream)
    return stream.getvalue()


def _yaml() -> YAML:
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 100_000  # never folds a line
    yaml.representer.add_representer(
        type(None), lambda representer, _: representer.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    return yaml


def _files() -> list[Path]:
    return sorted(RECIPES.glob("*.yaml"), key=lambda file: file.stem)


def _list() -> None:
    """Print each recipe with the comment on its first line."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("recipe", no_wrap=True)
    table.add_column("what it sets up")
    for file in _files():
        first, *_ = file.read_text(encoding="utf-8").splitlines() or [""]
        table.add_row(file.stem, first.removeprefix("#").strip())
    console = Console()
    console.print(table)
    console.print("python -m stages.recipe NAME … writes them into params.yaml.", highlight=False)


def _show(changes: Changes) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not changes:
        console.print("params.yaml has these values already.")
        return
    table = Table(box=box.SIMPLE_HEAD)
    for header in ("params.yaml", "before", "now"):
        table.add_column(header, overflow="fold")
    for name, before, after in changes:
        table.add_row(name, Text(_shown(before), style="red"), Text(_shown(after), style="green"))
    console.print(table)
    console.print("Next: dvc repro   (undo: git checkout params.yaml)", highlight=False)


def _shown(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


if __name__ == "__main__":
    main()
