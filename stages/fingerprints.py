"""Which code a stage runs, in one file that stands for all modules of it where DVC and MLflow are told of inputs."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path

from stages import files, layout
from stages.errors import UserError


def file_of(script: str) -> Path:
    """The fingerprint of a script: `finetune` for stages/finetune.py, whichever stages of dvc.yaml run it."""
    return layout.CODE / f"{script}.json"


def is_fingerprint(path: Path | str) -> bool:
    """Whether a path is that of a fingerprint."""
    return Path(path).parent == layout.CODE


def text(md5s: Mapping[str, str]) -> str:
    """What a fingerprint says: path of a module → md5, a line each, which git can compare."""
    return files.as_json(dict(sorted(md5s.items())))


def modules(root: Path, fingerprint: Path | str) -> dict[str, str]:
    """Modules that a fingerprint names, path → md5; none if there is no such fingerprint.

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
    """The modules of a fingerprint's text.

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
    if not (known := modules(root, fingerprint)):
        return ""
    now = text({path: _md5(root / path) for path in known})
    return files.md5_of(now)


def edited(root: Path, fingerprint: Path | str) -> list[str]:
    """Modules that are not as a fingerprint has them, none of a path that is no fingerprint."""
    return [path for path, md5 in modules(root, fingerprint).items() if _md5(root / path) != md5]


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


def _md5(path: Path) -> str:
    return files.md5(path) if path.is_file() else ""
