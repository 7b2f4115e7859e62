"""Outputs of several generators side by side, for people to read."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow.parquet as pq

from stages.errors import UserError
from stages.evaluation.inputs import read_columns
from stages.evaluation.quality import RougeL


def read_test(path: Path) -> tuple[list[str], list[str], list[list[str]]]:
    """Test-split sources, predictions and references of a predictions file.

    Raises:
        UserError: the file is missing, damaged or lacks a column.
    """
    rows = read_columns(path, "split", "source", "prediction", "references").to_pylist()
    test = [row for row in rows if row["split"] == "test"]
    return (
        [row["source"] for row in test],
        [row["prediction"] for row in test],
        [row["references"] for row in test],
    )


def read_signatures(path: Path) -> dict[str, str]:
    """How each metric was computed, from the metadata of a predictions file."""
    metadata = pq.read_schema(path).metadata or {}
    return {name.decode(): value.decode() for name, value in metadata.items()}


def side_by_side(files: Mapping[str, Path], language: str, count: int) -> str:
    """A Markdown page of outputs, from inputs the first generator does best to those it does worst.

    Inputs are ranked by the sentence ROUGE-L of the first generator and taken evenly spaced, so that the page
    shows neither only the easy nor only the hard ones, and the same ones every time.

    Args:
        files: predictions files by the name to show; all of one test split.
        language: en or zh, of ROUGE-L.
        count: inputs to show.

    Raises:
        UserError: a file cannot be read, or was made from another test split.
    """
    first, *_ = files
    sources, predictions, references = read_test(files[first])
    outputs = {}
    for key, path in files.items():
        found, outputs[key], _ = read_test(path)
        if found != sources:
            raise UserError(f"{path} was made from another test split than {files[first]}: run `dvc repro`")
    rouge = RougeL(language)
    scores = rouge.score(rouge.statistics([predictions], references)[0]).tolist()
    lines = [
        "# Sample outputs",
        "",
        f"{min(count, len(sources))} of {len(sources)} test inputs, evenly spaced from those {first} does best to "
        "those it does worst (in brackets the ROUGE-L of its output).",
    ]
    for place, i in enumerate(spread(scores, count), start=1):
        lines += ["", f"## {place}. {escape(sources[i])} ({scores[i]:.0f})", "", "| | text |", "|:--|:--|"]
        several = f" (1 of {len(references[i])})" if len(references[i]) > 1 else ""
        lines.append(f"| reference{several} | {escape(references[i][0])} |")
        lines += [f"| {key} | {escape(texts[i]) or '*(empty)*'} |" for key, texts in outputs.items()]
    return "\n".join([*lines, ""])


def spread(scores: Sequence[float], count: int) -> list[int]:
    """Indices of at most `count` items evenly spaced over the ranking from the highest score to the lowest.

    Items that tie keep their order.
    """
    ranking = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    taken = min(count, len(ranking))
    return [ranking[(2 * i + 1) * len(ranking) // (2 * taken)] for i in range(taken)]


def escape(text: str) -> str:
    """Text on one line that Markdown shows as it is, also in a table cell."""
    return re.sub(r"([\\`*_{}\[\]<>|#~&])", r"\\\1", " ".join(text.split()))
