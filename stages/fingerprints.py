"""Which code a stage runs, in one file that stands for all of it where DVC and MLflow are told of inputs.

It names the stage's modules with their md5s, and the libraries that compute for it with the versions that
constraints.txt has.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from stages import files, layout
from stages.errors import UserError

CONSTRAINTS = Path("constraints.txt")
"""Version of every library."""


def file_of(script: str) -> Path:
    """The fingerprint of a script: `finetune` for stages/finetune.py, whichever stages of dvc.yaml run it."""
    return layout.CODE / f"{script}.json"


def is_fingerprint(path: Path | str) -> bool:
    """Whether a path is that of a fingerprint."""
    return Path(path).parent == layout.CODE


def text(recorded: Mapping[str, str]) -> str:
    """What a fingerprint says: path of a module → md5, library → version, a line each, which git can compare."""
    return files.as_json(dict(sorted(recorded.items())))


def named(root: Path, fingerprint: Path | str) -> dict[str, str]:
    """What a fingerprint names, path → md5 and library → version; nothing if there is no such fingerprint.

    Raises:
        UserError: it is damaged.
    """
    if not is_fingerprint(fingerprint) or not (root / fingerprint).is_file():
        return {}
    try:
        return parse((root / fingerprint).read_text(encoding="utf-8"))
    except ValueError:
        raise UserError(f"{fingerprint} is damaged: run `dvc repro --force code`") from None


def parse(content: str) -> dict[str, str]:
    """The modules and libraries of a fingerprint's text.

    Raises:
        ValueError: it is none.
    """
    found = json.loads(content)
    if not isinstance(found, dict):
        raise ValueError(found)  # noqa: TRY004 (the text is at fault, not a type)
    return found


def md5_now(root: Path, fingerprint: Path | str) -> str:
    """md5 that a fingerprint would have if it were made now, "" if there is none.

    It is of the modules that it names: where they import others than they did, one of them is another as well.
    """
    if not (known := named(root, fingerprint)):
        return ""
    return files.md5_of(text({name: _now(root, name) for name in known}))


def edited(root: Path, fingerprint: Path | str) -> list[str]:
    """Modules and libraries that are not as a fingerprint has them, none of a path that is no fingerprint."""
    return [name for name, recorded in named(root, fingerprint).items() if _now(root, name) != recorded]


def is_library(name: str) -> bool:
    """Whether what a fingerprint names is a library, not a module's path."""
    return "/" not in name


def pins(root: Path) -> dict[str, str]:
    """Versions of all libraries, by name in small letters with hyphens; none without constraints.txt."""
    path = root / CONSTRAINTS
    return _pins(path, path.stat().st_mtime_ns) if path.is_file() else {}


@lru_cache(maxsize=8)
def _pins(path: Path, changed: int) -> dict[str, str]:
    found = re.findall(r"^([\w.-]+)==([^\s;]+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {name.lower().replace("_", "-"): version for name, version in found}


def installed_otherwise(versions: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Which of these libraries are installed in another version, and in which.

    One that is not installed is left out, as of an extra, and a local part, such as +cpu, makes no other version.
    """
    from importlib.metadata import PackageNotFoundError, version

    for name, wanted in versions.items():
        with suppress(PackageNotFoundError):
            if (installed := version(name)).partition("+")[0] != wanted.partition("+")[0]:
                yield name, installed


def refuse_other_libraries(script: str) -> None:
    """Refuse to compute with libraries of other versions than DVC would record.

    Raises:
        UserError: one that is installed is not what the script's fingerprint says.
    """
    recorded = {name: version for name, version in named(Path(), file_of(script)).items() if is_library(name)}
    for name, installed in installed_otherwise(recorded):
        raise UserError(
            f"{name} {installed} is installed, {CONSTRAINTS} has {recorded[name]}, by which results are recorded: run "
            f"`make environment`, or change {CONSTRAINTS}"
        )


def refuse_edited(script: str, imported: Collection[str] | None = None) -> None:
    """Refuse to run code that DVC would record as another, or to have run it.

    Args:
        script: whose code it is.
        imported: names of modules; those of others have been read before. None: any.

    Raises:
        UserError: a module is not what the script's fingerprint says, from which DVC tells whether a result is current.
    """
    for path in edited(Path(), file_of(script)):
        if imported is None or _name(path) in imported:
            raise UserError(f"{path} is not as {file_of(script)} has it: run `dvc repro code` first, or all of it")


def _name(path: str) -> str:
    return ".".join(Path(path).with_suffix("").parts).removesuffix(".__init__")


def _now(root: Path, name: str) -> str:
    if is_library(name):
        return pins(root).get(name, "")
    path = root / name
    return files.md5(path) if path.is_file() else ""
