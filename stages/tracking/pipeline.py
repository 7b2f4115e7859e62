"""What dvc.yaml declares, params.yaml sets and dvc.lock records, as far as tracking needs it."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cache, partial
from pathlib import Path
from typing import Any

from stages import fingerprints, layout, params
from stages.errors import UserError
from stages.files import digest, md5
from stages.lockfile import REMEDY, refuse_damaged

CONTROLS = (layout.BASELINE, layout.DENSE)
"""Keys that are not levels."""
SETTLED_S = 1.0
"""Seconds without a change after which dvc.lock is taken to be whole."""
_TEMPLATE = re.compile(r"\$\{([^}]+)\}")


@dataclass(frozen=True)
class Inputs:
    """What a stage reads that no other stage makes: values of params, and files; of code, its fingerprint."""

    params: dict[str, Any]
    """Dotted name in params.yaml → value."""
    files: dict[str, str]
    """Path → md5."""


@dataclass(frozen=True)
class Entry:
    """One stage in dvc.lock: what went in, what came out."""

    name: str
    params: dict[str, Any]
    """Dotted name in params.yaml → value."""
    deps: dict[str, str]
    """Path → md5; a folder's ends in `.dir`."""
    outs: dict[str, str]
    """Path → md5."""
    digest: str
    """Of the whole entry."""
    stage: str = field(init=False)
    key: str | None = field(init=False)

    def __post_init__(self) -> None:
        stage, key = split_name(self.name)
        object.__setattr__(self, "stage", stage)
        object.__setattr__(self, "key", key)

    @classmethod
    def parse(cls, name: str, values: Mapping[str, Any]) -> Entry:
        """Read an entry of dvc.lock's `stages`."""
        return cls(
            name=name,
            params=dict(leaves(values.get("params", {}).get(str(params.PARAMS_FILE), {}))),
            deps={dep["path"]: str(dep.get("md5", "")) for dep in values.get("deps", ())},
            outs={out["path"]: str(out.get("md5", "")) for out in values.get("outs", ())},
            digest=digest(json.dumps(values, sort_keys=True, default=str)),
        )

    @property
    def figures(self) -> dict[str, str]:
        """Those outs that MLflow is told of, metrics files and curves: path → md5."""
        return {path: md5 for path, md5 in self.outs.items() if _is_figures(path) or path.endswith(".curve.csv")}


class Pipeline:
    """The pipeline of one workspace, as it is on disk and as dvc.lock has it."""

    def __init__(self, root: Path) -> None:
        """Read dvc.yaml, params.yaml and, if there is one, dvc.lock.

        Raises:
            UserError: one of them is missing (dvc.lock excepted) or is not valid YAML.
        """
        self.root = root
        self._values = dict(leaves(params.read_yaml(root / params.PARAMS_FILE)))
        self._stages: dict[str, Any] = (params.read_yaml(root / "dvc.yaml") or {}).get("stages") or {}
        lock = root / "dvc.lock"
        _wait_until_written(lock)
        refuse_damaged(lock)
        try:
            recorded = params.read_yaml(lock)["stages"] if lock.is_file() else {}
            self.entries = [Entry.parse(name, values) for name, values in recorded.items()]
        except (AttributeError, KeyError, TypeError):
            raise UserError(f"{lock} is not a lock file of DVC 2 or later: {REMEDY}") from None
        except UserError as error:
            raise UserError(f"{error}: {REMEDY}") from None
        self._md5 = cache(partial(_md5_now, root))

    def current_entries(self) -> list[Entry]:
        """Entries made from what their upstream stages have in the lock now, all the way up.

        The others are leftovers: an input of theirs was made again and they were not.
        """
        maker = {path: entry for entry in self.entries for path in entry.outs}
        known: dict[str, bool] = {}

        def current(entry: Entry) -> bool:
            if entry.name not in known:
                known[entry.name] = True  # DVC's graph has no cycle; a broken lock must not recurse forever
                known[entry.name] = all(
                    maker[path].outs[path] == md5 and current(maker[path])
                    for path, md5 in entry.deps.items()
                    if path in maker
                )
            return known[entry.name]

        return [entry for entry in self.entries if current(entry)]

    def has_figures(self, entry: Entry) -> bool:
        """Whether all files that MLflow is told of are there as dvc.lock has them."""
        return all(md5_of(self.root, path) == md5 for path, md5 in entry.figures.items())

    @property
    def sweep(self) -> set[str]:
        """Keys of the levels that params.yaml asks for."""
        methods, sparsities = (self._values.get(f"sweep.{name}") or () for name in ("method", "sparsity"))
        return {layout.Level(method, sparsity).key for method in methods for sparsity in sparsities}

    def inputs(self, stage: str, key: str | None = None, entry: Entry | None = None) -> Inputs:
        """What dvc.yaml says a stage reads, without what other stages make.

        Args:
            stage: its name in dvc.yaml.
            key: level to fill in where dvc.yaml says `${item.…}`, or the control whose stage `STAGE_KEY` is; None
                leaves out what depends on a level.
            entry: where to take values and md5s from; what it lacks comes from the workspace.
        """
        declared = self._stages.get(f"{stage}_{key}") or self._stages.get(stage) or {}
        body = declared.get("do", declared)
        context = _matrix_item(key)
        names = [name for item in body.get("params", ()) if (name := self._resolve(item, context))]
        paths = [path for item in body.get("deps", ()) if (path := self._resolve(item, context))]
        values = {name: value for name, value in self._values.items() if _is_under(name, names)}
        recorded = entry.deps if entry is not None else {}
        files = {path: recorded[path] if path in recorded else self._md5(path) for path in paths if _is_source(path)}
        if entry is not None:
            values |= {name: value for name, value in entry.params.items() if name in values}
        return Inputs(values, {path: md5 for path, md5 in files.items() if md5})

    def _resolve(self, item: Any, context: Mapping[str, str]) -> str | None:
        """Fill in the templates of a name or path of dvc.yaml; None where one stays open."""
        if not isinstance(item, str):
            # {path: options}; params of another file (a list) are none of ours.
            item = next((path for path, options in item.items() if isinstance(options, dict)), "${}")

        def fill(match: re.Match[str]) -> str:
            name = match[1].strip()
            value = context.get(name, self._values.get(name))
            return match[0] if value is None else str(value)

        resolved = _TEMPLATE.sub(fill, item)
        return None if _TEMPLATE.search(resolved) else resolved


def md5_of(root: Path, path: str) -> str:
    """md5 of a file or folder as dvc.lock has it; "" if there is none."""
    place = root / path
    if not place.is_dir():
        return md5(place) if place.is_file() else ""
    return md5_of_files({file.relative_to(place).as_posix(): md5(file) for file in files_in(root, path)})


def files_in(root: Path, path: str) -> Iterator[Path]:
    """Files in a folder, at any depth, but those that .dvcignore names (patterns of a name alone)."""
    file = root / ".dvcignore"
    lines = file.read_text(encoding="utf-8").split("\n") if file.is_file() else []
    patterns = [line for line in map(str.strip, lines) if line and not line.startswith("#")]
    place = root / path
    for found in place.rglob("*"):
        parts = found.relative_to(place).parts
        if found.is_file() and not any(fnmatch(part, pattern) for part in parts for pattern in patterns):
            yield found


def md5_of_files(md5s: Mapping[str, str]) -> str:
    """md5 that DVC gives a folder, of its files' md5s by their path in it."""
    files = [{"md5": md5s[path], "relpath": path} for path in sorted(md5s)]
    return f"{hashlib.md5(json.dumps(files, sort_keys=True).encode()).hexdigest()}.dir"


def _md5_now(root: Path, path: str) -> str:
    """md5 of an input, of code as it is whether its fingerprint says so or not."""
    return fingerprints.md5_now(root, path) if fingerprints.is_fingerprint(path) else md5_of(root, path)


def split_name(name: str) -> tuple[str, str | None]:
    """Stage and key of a DVC stage name.

    `prune@magnitude-0.5` is ("prune", "magnitude-0.5"), `finetune_dense` ("finetune", "dense"), `train` ("train",
    "baseline"), since what it makes is the baseline, and `clean` ("clean", None).
    """
    stage, at, key = name.partition("@")
    if at:
        return stage, key
    if name == "train":
        return name, layout.BASELINE
    for key in CONTROLS:
        if name.endswith(f"_{key}"):
            return name.removesuffix(f"_{key}"), key
    return name, None


def leaves(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of nested params; a list is a value, and so is what has keys that are no names.

    The patterns of `prune.layers` are such keys, which MLflow refuses in the name of a param.
    """
    if isinstance(values, dict) and all(part.isidentifier() for name in values for part in str(name).split(".")):
        for name, value in values.items():
            yield from leaves(value, f"{prefix}.{name}" if prefix else str(name))
    else:
        yield prefix, values


def _wait_until_written(path: Path) -> None:
    """Wait, ten seconds at most, until a file has not changed for one: DVC writes its lock file piece by piece."""
    previous = None
    for _ in range(10):
        try:
            state = path.stat()
        except FileNotFoundError:
            return
        signature = (state.st_mtime_ns, state.st_size)
        if signature == previous or time.time() - state.st_mtime > SETTLED_S:
            return
        previous = signature
        time.sleep(SETTLED_S)


def _is_under(name: str, sections: list[str]) -> bool:
    return any(name == section or name.startswith(f"{section}.") for section in sections)


def _matrix_item(key: str | None) -> dict[str, str]:
    if key is None or key in CONTROLS:
        return {}
    level = layout.Level.parse(key)
    return {"item.method": level.method, "item.sparsity": str(level.sparsity), "key": key}


def _is_figures(path: str) -> bool:
    return path.endswith(".json") and Path(path).is_relative_to(layout.METRICS)


def _is_source(path: str) -> bool:
    return fingerprints.is_fingerprint(path) or not Path(path).is_relative_to(layout.OUTPUTS)
