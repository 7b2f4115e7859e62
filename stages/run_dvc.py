"""DVC, with a dvc.lock that is quick to write and never half written.

    python -m stages.run_dvc ARGUMENTS        (does what `dvc ARGUMENTS` does)

To record one stage, DVC reads all of dvc.lock with a parser that keeps comments, and writes all of it anew, in place.
Both are pure Python: seconds a stage in a sweep of a dozen levels, half a minute in one of a hundred. The file is
made by DVC and holds no comments. Here it is read by the plain parser, not at all while no other process has changed
it, and written as it was but for the entries that differ: the same text, under another name first.

A DVC that is killed while it notes which files it uses leaves that note empty, and no DVC works any more until it is
gone; here it is removed.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stages.files import replacing
from stages.startup import collect_rarely

LOCK = "dvc.lock"
NOTE = Path(".dvc/tmp/rwlock")
NOTE_S = 2.0
"""Seconds that a note may stay half written: writing it takes a thousandth of one."""
HEAD = "schema: '2.0'\nstages:\n"
_ENTRY = re.compile(r"^  (\S.*):\n", re.MULTILINE)
Lock = dict[str, Any]


def main() -> int:
    """Run DVC; its exit status."""
    collect_rarely()
    forget_broken_note(next((f for f in (Path.cwd(), *Path.cwd().parents) if (f / ".dvc").is_dir()), Path()) / NOTE)
    import dvc.dvcfile
    from dvc.cli import main as dvc_main

    dvc.dvcfile.modify_yaml = modifier(dvc.dvcfile.modify_yaml)
    return dvc_main(sys.argv[1:])


def forget_broken_note(note: Path) -> None:
    """Remove what a killed DVC has left of its note of files in use, which nobody can read."""
    until = time.monotonic() + NOTE_S
    while True:
        try:
            json.loads(note.read_text(encoding="utf-8"))
            return
        except OSError:  # none
            return
        except ValueError:
            if time.monotonic() > until:
                note.unlink(missing_ok=True)
                return
            time.sleep(0.05)


def modifier(slow: Any) -> Any:
    """DVC's `modify_yaml`, with a way of its own for dvc.lock.

    Args:
        slow: DVC's, which has everything else and says what is wrong with a lock that cannot be read.
    """
    text, known = "", {}

    @contextmanager
    def modify(path: str, fs: Any = None) -> Iterator[Lock]:
        nonlocal text, known
        file = Path(path)
        now = _read(file) if file.name == LOCK else None
        if now is None:
            with slow(path, fs=fs) as data:
                yield data
            return
        if now != text:
            text, known = now, parse(now, path)
        data = {**known, "stages": dict(known["stages"])} if "stages" in known else dict(known)
        yield data
        new = written(text, known, data)
        if new != text:
            with replacing(file) as partial:
                partial.write_text(new, encoding="utf-8")
        text, known = new, data

    return modify


def parse(text: str, path: str) -> Lock:
    """A lock's content, by libyaml if ruamel.yaml has it.

    Raises:
        dvc.utils.serialize.ParseError: it is not YAML.
    """
    from dvc.utils.serialize import parse_yaml

    return parse_yaml(text, path)


def written(old: str, before: Lock, after: Lock) -> str:
    """A lock as DVC writes it.

    Args:
        old: the text of `before`.
        before: the lock as it was.
        after: as it is to be; entries that equal those of `before` keep their text.
    """
    if list(after) != ["schema", "stages"]:  # datasets, or none yet
        return _dumped(after)
    kept = blocks(old) if list(before) == list(after) and before["schema"] == after["schema"] else {}
    if list(kept) != list(before.get("stages", {})):  # not as DVC lays it out
        return _dumped(after)
    parts = [HEAD]
    for name, entry in after["stages"].items():
        same = name in kept and before["stages"][name] == entry
        parts.append(kept[name] if same else _dumped({"stages": {name: entry}}).removeprefix("stages:\n"))
    return "".join(parts)


def blocks(text: str) -> dict[str, str]:
    """Entries of a lock by name, as they stand in its text; none if that is not as DVC writes it."""
    if not text.startswith(HEAD):
        return {}
    starts = list(_ENTRY.finditer(text, len(HEAD)))
    ends = [*(match.start() for match in starts), len(text)][1:]
    return {match[1]: text[match.start() : end] for match, end in zip(starts, ends, strict=True)}


def _dumped(data: Lock) -> str:
    from dvc.utils.serialize import dumps_yaml

    return dumps_yaml(data)


def _read(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):  # none yet, or DVC is to say what is wrong
        return None


if __name__ == "__main__":
    sys.exit(main())
