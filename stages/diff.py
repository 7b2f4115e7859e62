"""Compare two revisions: their data, params and code, and what came of every level.

    python -m stages.diff main                        from main to the workspace; or: make diff REV=main
    python -m stages.diff v1.0 v2.0                   from one commit to another
    python -m stages.diff origin/main --markdown      for a pull request

In:  dvc.lock, params.yaml, dvc.yaml and metrics of both revisions. All are in git: no data and no models are needed.
Out: a report on the terminal, or as Markdown.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages import fingerprints, layout
from stages.errors import UserError, command
from stages.files import md5_of
from stages.lockfile import refuse_damaged
from stages.scratch import commit_of
from stages.shell import dvc, git
from stages.tracking.content import as_text
from stages.tracking.pipeline import Entry

if TYPE_CHECKING:
    from rich.text import Text

ROWS = ("rows_read", "rows_kept", "rows_rejected", "train_rows", "validation_rows", "test_rows")
"""Counts of the clean stage that are shown if any of its figures changed; of others, those that did."""
SHORT = 7
"""Digits of commits and md5s that are shown."""
WIDTH = 120
Change = Mapping[str, Any]
"""`old` and `new` value of a figure or param, None where there is none, as DVC's `diff --json` has it."""


@dataclass(frozen=True)
class Section:
    """A part of the report: a sentence, a table, or both. Cells in `**` stand out."""

    title: str
    text: str = ""
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = field(default_factory=list)


@command
def main(arguments: Sequence[str] | None = None) -> None:
    """Print the report."""
    parser = argparse.ArgumentParser(prog="python -m stages.diff", description="Compare two revisions.")
    parser.add_argument("before", metavar="REV", help="commit, branch or tag to compare with")
    parser.add_argument("now", metavar="REV2", nargs="?", help="commit to describe (default: the workspace)")
    parser.add_argument("--markdown", action="store_true", help="as Markdown, for a pull request")
    args = parser.parse_args(arguments)
    names = [_named(args.before), _named(args.now) if args.now else "the workspace"]
    revisions = [args.before, *([args.now] if args.now else [])]

    metrics = _diff("metrics", "--all", *revisions)
    locks = [_lock(args.before), _lock(args.now)]
    chosen = [_chosen(args.before), _chosen(args.now)]
    sections = [
        _data(locks, metrics.get(layout.metrics_file("clean").as_posix(), {})),
        _params(_diff("params", *revisions)),
        _code([_modules(revision, lock) for revision, lock in zip((args.before, args.now), locks, strict=True)]),
        _levels(locks, metrics, chosen),
    ]
    title = f"From {names[0]} to {names[1]}"
    if args.markdown:
        print(_markdown(title, sections))
    else:
        _show(title, sections)


def _named(revision: str) -> str:
    commit = commit_of(revision)
    return commit[:SHORT] if commit.startswith(revision) else f"{revision} ({commit[:SHORT]})"


def _diff(what: str, *arguments: str) -> dict[str, dict[str, Change]]:
    """What `dvc metrics diff` or `dvc params diff` says: file → dotted name → change."""
    answer = json.loads(dvc(what, "diff", "--json", *arguments) or "{}")
    return {Path(path).as_posix(): changes for path, changes in answer.items() if isinstance(changes, dict)}


def _read(revision: str | None, path: Path) -> str:
    """A file that git has, as text; empty if there is none.

    Args:
        revision: None for the workspace.
        path: of the file in the project.
    """
    if revision is not None:
        return git("show", f"{revision}:./{path.as_posix()}").stdout
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _lock(revision: str | None) -> dict[str, Entry]:
    """The entries of dvc.lock by stage; none if the revision has no such file."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    if revision is None:
        refuse_damaged()
    try:
        stages = (YAML(typ="safe").load(_read(revision, Path("dvc.lock"))) or {}).get("stages") or {}
        return {name: Entry.parse(name, values) for name, values in stages.items()}
    except (YAMLError, AttributeError, KeyError, TypeError):
        raise UserError(f"dvc.lock of {revision or 'the workspace'} is no lock file of DVC: run `dvc repro`") from None


def _chosen(revision: str | None) -> str:
    """The level that met the target."""
    try:
        return str(json.loads(_read(revision, layout.CHOSEN_FILE))["key"] or "none")
    except (ValueError, KeyError, TypeError):
        return "none"


def _data(locks: Sequence[Mapping[str, Entry]], figures: Mapping[str, Change]) -> Section:
    """Files that cleaning read and made, and rows that it kept and rejected."""
    files: list[dict[str, str]] = []
    for lock in locks:
        clean = lock.get("clean")
        inputs = {path: md5 for path, md5 in clean.deps.items() if not _is_code(path)} if clean else {}
        splits = {path: md5 for path, md5 in clean.outs.items() if path.endswith(".parquet")} if clean else {}
        files.append(inputs | splits)
    rows = [[path, *(f"`{md5[:SHORT]}`" if md5 else "" for md5 in pair)] for path, pair in _changed(*files)]
    if any(change["old"] != change["new"] for change in figures.values()):
        shown = [name for name in figures if name in ROWS or figures[name]["old"] != figures[name]["new"]]
        for name in sorted(shown, key=lambda name: ROWS.index(name) if name in ROWS else len(ROWS)):
            rows.append([name, *_pair(figures[name]), _less(figures[name])])
    kept, rejected = (figures.get(name, {}).get("new") for name in ("rows_kept", "rows_rejected"))
    text = "" if rows else f"Unchanged: {kept} rows kept, {rejected} rejected."
    return Section("Data", text, ("", "before", "now", "Δ"), [[*row, ""][:4] for row in rows])


def _params(changes: Mapping[str, Mapping[str, Change]]) -> Section:
    rows = [
        [name if file == "params.yaml" else f"{file}: {name}", *_pair(change)]
        for file, names in changes.items()
        for name, change in sorted(names.items())
    ]
    return Section("Params", "" if rows else "Unchanged.", ("", "before", "now"), rows)


def _modules(revision: str | None, lock: Mapping[str, Entry]) -> dict[str, str]:
    """What a revision's stages ran, module → md5 and library → version: dvc.lock and its fingerprints name them."""
    deps = {path: md5 for entry in lock.values() for path, md5 in entry.deps.items()}
    found = {path: md5 for path, md5 in deps.items() if path.endswith(".py")}
    for path in filter(fingerprints.is_fingerprint, deps):
        text = _read(revision, Path(path))
        if md5_of(text) == deps[path]:
            found |= fingerprints.parse(text)
        else:
            found[path] = deps[path]  # of which nobody knows any more what it said
    return found


def _how(name: str, pair: Sequence[str | None]) -> str:
    """How a module or a library was changed: of a library, from which version to which."""
    before, now = pair
    if before and now:
        return f" {before} → {now}" if fingerprints.is_library(name) else ""
    return " (new)" if now else " (gone)"


def _code(modules: Sequence[Mapping[str, str]]) -> Section:
    """Modules and libraries that stages ran and that are not what they were."""
    changed = [f"`{name}`{_how(name, pair)}" for name, pair in _changed(*modules)]
    return Section("Code that stages ran", f"{', '.join(changed)}." if changed else "Unchanged.")


def _levels(
    locks: Sequence[Mapping[str, Entry]], metrics: Mapping[str, Mapping[str, Change]], chosen: Sequence[str]
) -> Section:
    """A row a level: scores, size, and whether its model has the same bits."""
    from stages.evaluation.comparison import NAMES, number

    folder = layout.metrics_file("evaluate", "x").parent
    figures = {Path(path).stem: changes for path, changes in metrics.items() if Path(path).parent == folder}
    if not figures:
        return Section("Levels", "There are no figures; if there should be, `dvc metrics diff` says more.")
    scores = [name for name in NAMES if any(name in changes for changes in figures.values())]
    rows = []
    for key in sorted(figures, key=_place):
        changes = figures[key]
        cells = [_figure(changes, name, partial(number, name=name)) for name in scores]
        cells += [_figure(changes, name, _million) for name in ("nonzero_parameters", "compressed_bytes")]
        rows.append([key, *cells, _state(key, locks, changes)])
    choice = f"Chosen: {chosen[1]}, as before." if chosen[0] == chosen[1] else f"Chosen: **{chosen[0]} → {chosen[1]}**."
    text = f"{choice} In brackets: the difference; bold: the score before is outside the interval now."
    header = ("level", *(NAMES[name] for name in scores), "weights ≠ 0", "MB", "model")
    return Section("Levels on the test split", text, header, rows)


def _figure(changes: Mapping[str, Change], name: str, written: Callable[[float], str]) -> str:
    """A figure, with its difference if that is not 0 as written: `48.4 (−1.0)`; the old one of a level that is gone."""
    change = changes.get(name, {})
    old, new = change.get("old"), change.get("new")
    if old is None or new is None or old == new:
        known = old if new is None else new
        return "" if known is None else written(known)
    size = written(abs(new - old))
    text = written(new) if size == written(0) else f"{written(new)} ({'+' if new > old else '−'}{size})"
    low, high = (changes.get(f"{name}_{end}", {}).get("new") for end in ("low", "high"))
    return f"**{text}**" if low is not None and high is not None and not low <= old <= high else text


def _million(value: float) -> str:
    return f"{value / 1e6:.2f}"


def _state(key: str, locks: Sequence[Mapping[str, Entry]], changes: Mapping[str, Change]) -> str:
    path = layout.model_folder(key).as_posix()
    md5s = [next((entry.outs[path] for entry in lock.values() if path in entry.outs), None) for lock in locks]
    if all(change["old"] is None for change in changes.values()):
        return "**new**"
    if all(change["new"] is None for change in changes.values()):
        return "**gone**"
    return "same bits" if md5s[0] == md5s[1] else "other"


def _place(key: str) -> tuple[int, str, float]:
    """Sorts dense, then baseline, then levels by method and sparsity."""
    if key in (layout.DENSE, layout.BASELINE):
        return (0 if key == layout.DENSE else 1, key, 0.0)
    level = layout.Level.parse(key)
    return (2, level.method, level.sparsity)


def _is_code(path: str) -> bool:
    return path.startswith("stages/") or fingerprints.is_fingerprint(path)


def _changed(before: Mapping[str, str], now: Mapping[str, str]) -> Iterator[tuple[str, tuple[str, str]]]:
    """Paths whose md5 is another, with both; the md5 of a file that is not there is empty."""
    for path in sorted(before.keys() | now.keys()):
        pair = (before.get(path, ""), now.get(path, ""))
        if pair[0] != pair[1]:
            yield path, pair


def _pair(change: Change) -> list[str]:
    return ["" if change[side] is None else as_text(change[side]) for side in ("old", "new")]


def _less(change: Change) -> str:
    """The new number less the old one; nothing if one is missing."""
    numbers = [change[side] for side in ("old", "new")]
    if not all(isinstance(number, int | float) for number in numbers):
        return ""
    return f"{numbers[1] - numbers[0]:+,g}"


def _markdown(title: str, sections: Sequence[Section]) -> str:
    lines = [f"## {title}", ""]
    for section in sections:
        lines += [f"### {section.title}", ""]
        if section.text:
            lines += [section.text, ""]
        if section.rows:
            table = [section.header, [":--", *["--:"] * (len(section.header) - 1)], *section.rows]
            lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in table] + [""]
    return "\n".join(lines)


def _show(title: str, sections: Sequence[Section]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    console.width = max(console.width, WIDTH)  # a file or a narrow window gets whole figures all the same
    console.print(title, style="bold")
    for section in sections:
        console.print(f"\n{section.title}", style="bold")
        if section.text:
            console.print(_styled(section.text))
        if section.rows:
            table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
            for column, name in enumerate(section.header):
                table.add_column(name, justify="right" if column else "left", overflow="fold")
            for row in section.rows:
                table.add_row(*map(_styled, row))
            console.print(table)


def _styled(text: str) -> Text:
    """Text for the terminal of what is Markdown in a report: `**` and backquotes."""
    from rich.text import Text

    styled = Text()
    for place, part in enumerate(text.replace("`", "").split("**")):
        styled.append(part, style="bold" if place % 2 else "")
    return styled


if __name__ == "__main__":
    main()
