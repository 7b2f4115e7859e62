"""python data/raw/derive.py convlab-3.0.1.tar.gz

In: the source distribution of convlab 3.0.1 (`pip download --no-deps --no-binary :all: convlab==3.0.1`).
Out, beside this script: multiwoz.csv.gz, crosswoz.csv.gz, LICENSE-convlab and NOTICE-convlab.
Deterministic: no time or name is written into the gzip header.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import re
import sys
import tarfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

SHA256 = "911ee742a84885542db9404d82cb9162c37aa22e38f569ba6d8735aaf8677c2b"
ROOT = "convlab-3.0.1"
TEMPLATES = ROOT + "/convlab/nlg/template/{}/auto_system_template_nlg.json"
HERE = Path(__file__).parent

Pair = tuple[str, str]


def multiwoz_pairs(templates: dict[str, dict[str, list[str]]]) -> list[Pair]:
    """Distinct (act, utterance) of {"Hotel-Inform": {"Area;Name;": [utterance, …]}}, in file order.

    An act reads `Hotel-Inform (Area, Name)`, or just `general-bye` where it has no slots.
    """
    pairs = []
    for act, by_slots in templates.items():
        for slots, utterances in by_slots.items():
            names = [name for name in slots.split(";") if name and name != "none"]
            key = f"{act} ({', '.join(names)})" if names else act
            pairs += [(key, utterance) for utterance in utterances]
    return list(dict.fromkeys(pairs))


def crosswoz_pairs(templates: dict[str, list[str]]) -> list[Pair]:
    """Distinct (act, utterance) of {"Inform+酒店+名称*Inform+酒店+价格": [utterance, …]}, in file order.

    Utterances without an act are left out: nothing says what they should have expressed.
    """
    pairs = [(number_slots(act), in_order(text)) for act, texts in templates.items() if act for text in texts]
    return list(dict.fromkeys(pairs))


def number_slots(act: str) -> str:
    """The act with repeated slots numbered from 1, as the placeholders of its utterances are: `…+名称1*…+名称2`."""
    slots = act.split("*")
    repeated = {slot for slot, count in Counter(slots).items() if count > 1}
    met = Counter[str]()
    for index, slot in enumerate(slots):
        met[slot] += 1
        if slot in repeated:
            slots[index] = f"{slot}{met[slot]}"
    return "*".join(slots)


def in_order(utterance: str) -> str:
    """The utterance with the numbered placeholders of a slot numbered in the order in which they are first said.

    The source numbers them by its annotation, which says `[…+推荐菜6]、[…+推荐菜4]` of a list that starts there. An act
    has no values, so which of its dishes is the sixth is a name like any other.
    """
    numbers: dict[str, dict[str, int]] = {}

    def renumber(match: re.Match[str]) -> str:
        known = numbers.setdefault(match["slot"], {})
        return f"[{match['slot']}{known.setdefault(match['number'], len(known) + 1)}]"

    return re.sub(r"\[(?P<slot>[^\[\]\d]+)(?P<number>\d+)\]", renumber, utterance)


def write_csv(path: Path, pairs: Iterable[Pair]) -> None:
    """Write pairs as gzipped CSV without the name and time that gzip would put into its header."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("act", "utterance"))
    writer.writerows(pairs)
    with path.open("wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as file:
        file.write(text.getvalue().encode())


def main(archive: Path) -> None:
    """Derive both sets from the archive."""
    with archive.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != SHA256:
            sys.exit(f"error: {archive} is not the source distribution of convlab 3.0.1 (sha256 {SHA256})")
    with tarfile.open(archive) as sdist:

        def read(name: str) -> bytes:
            member = sdist.extractfile(name)
            assert member is not None, name
            return member.read()

        multiwoz = multiwoz_pairs(json.loads(read(TEMPLATES.format("multiwoz"))))
        crosswoz = crosswoz_pairs(json.loads(read(TEMPLATES.format("crosswoz"))))
        for name in ("LICENSE", "NOTICE"):
            (HERE / f"{name}-convlab").write_bytes(read(f"{ROOT}/{name}"))
    for name, pairs in (("multiwoz", multiwoz), ("crosswoz", crosswoz)):
        path = HERE / f"{name}.csv.gz"
        write_csv(path, pairs)
        print(f"{path}: {len(pairs):,} pairs, {len({act for act, _ in pairs}):,} acts")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
