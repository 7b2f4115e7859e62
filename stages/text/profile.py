"""What cleaning did to the data: counts, reasons, lengths, examples."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.text.cleaner import KEPT, REASON_CODES, SPLIT_CODES
from stages.text.reading import SPLITS

if TYPE_CHECKING:
    from rich.table import Table

    from stages.text.cleaned import Cleaned

SIDES = ("source", "target")
_EXAMPLES = 3
_SHOWN_CHARACTERS = 200
_BAR = 20

Profile = dict[str, Any]


def describe(rows: Cleaned, files: list[str]) -> Profile:
    """The profile of cleaned rows, ready for JSON.

    Args:
        rows: with reasons and splits decided.
        files: names of the parts.
    """
    seen = _Seen(files)
    for batch, reasons, splits in rows.batches():
        seen.add(batch, reasons, splits)
    inputs = _inputs(rows)
    reasons = np.bincount(rows.reasons, minlength=len(REASON_CODES) + 1).tolist()
    return {
        "read": len(rows),
        "kept": reasons[KEPT],
        "rejected": len(rows) - reasons[KEPT],
        "reasons": {reason: reasons[code] for reason, code in REASON_CODES.items()},
        "normalised": seen.normalised,
        "files": [
            {"file": name, "read": read, "kept": kept}
            for name, read, kept in zip(files, seen.read.tolist(), seen.kept.tolist(), strict=True)
        ],
        "splits": {
            name: {
                "rows": seen.lengths[name, "source"].total(),
                **inputs[name],
                **{f"{side}_characters": summary(seen.lengths[name, side]) for side in SIDES},
            }
            for name in SPLITS
        },
        "length_histogram": _histogram(
            *(sum((seen.lengths[name, side] for name in SPLITS), Counter[int]()) for side in SIDES)
        ),
        "examples": {
            "kept": {name: seen.examples["kept", name] for name in SPLITS},
            "normalised": seen.changes,
            "rejected": {
                reason: seen.examples["rejected", reason]
                for reason in REASON_CODES
                if seen.examples["rejected", reason]
            },
        },
    }


class _Seen:
    """What is gathered of the rows, a batch at a time."""

    def __init__(self, files: list[str]) -> None:
        self._files = files
        self.normalised = 0
        """Rows that are kept, and are not as they were read."""
        self.read, self.kept = (np.zeros(len(files), np.int64) for _ in range(2))
        """Rows of each part."""
        self.lengths: dict[tuple[str, str], Counter[int]] = {(n, s): Counter() for n in SPLITS for s in SIDES}
        """How many rows that are kept are how long, in characters, by split and side."""
        self.examples: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
        """The first rows of each split, as ("kept", split), and of each reason, as ("rejected", reason)."""
        self.changes: list[dict[str, Any]] = []
        """The first rows that normalising changed."""

    def add(self, batch: pa.RecordBatch, reasons: np.ndarray, splits: np.ndarray) -> None:
        """Take a batch into account.

        Args:
            batch: with the columns `cleaner.CLEANED`.
            reasons, splits: of its rows.
        """
        kept = reasons == KEPT
        parts = batch["part"].to_numpy()
        self.read += np.bincount(parts, minlength=len(self._files))
        self.kept += np.bincount(parts[kept], minlength=len(self._files))
        changed = kept & ~(_is_null(batch["raw_source"]) & _is_null(batch["raw_target"]))
        self.normalised += int(changed.sum())
        lengths = {side: _lengths(batch[side]) for side in SIDES}
        for name in SPLITS:
            here = kept & (splits == SPLIT_CODES[name])
            for side in SIDES:
                self.lengths[name, side].update(dict(zip(*_counted(lengths[side][here]), strict=True)))
            self._show(self.examples["kept", name], batch, here, self._example)
        for reason, code in REASON_CODES.items():
            self._show(self.examples["rejected", reason], batch, reasons == code, self._example)
        self._show(self.changes, batch, changed, self._change)

    def _show(
        self,
        shown: list[dict[str, Any]],
        batch: pa.RecordBatch,
        mask: np.ndarray,
        of: Callable[[dict[str, Any]], dict[str, Any]],
    ) -> None:
        """Add rows of a mask, until there are enough."""
        for at in np.flatnonzero(mask)[: _EXAMPLES - len(shown)].tolist():
            shown.append(of(batch.slice(at, 1).to_pylist()[0]))

    def _example(self, row: dict[str, Any]) -> dict[str, Any]:
        texts = {side: _shortened(_either(row[f"raw_{side}"], row[side])) for side in SIDES}
        return {"file": self._files[row["part"]], "row": row["row"]} | texts

    def _change(self, row: dict[str, Any]) -> dict[str, Any]:
        side = "source" if row["raw_source"] is not None else "target"
        texts = {"before": _shortened(row[f"raw_{side}"]), "after": _shortened(row[side])}
        return {"file": self._files[row["part"]], "row": row["row"], "column": side} | texts


def metrics(profile: Profile) -> dict[str, float]:
    """The numbers of a profile, flat. Lengths are in characters, after normalising."""
    flat: dict[str, float] = {f"rows_{name}": profile[name] for name in ("read", "kept", "rejected", "normalised")}
    flat |= {f"rejected_{reason}": count for reason, count in profile["reasons"].items()}
    for split, counts in profile["splits"].items():
        flat |= {f"{split}_{name}": count for name, count in counts.items() if isinstance(count, int)}
        for side in SIDES:
            flat[f"{split}_{side}_characters_mean"] = counts[f"{side}_characters"]["mean"]
    return flat


def show(profile: Profile) -> None:
    """Print the profile as tables."""
    from rich.console import Console

    console = Console(highlight=False)
    console.print(_splits_table(profile))
    console.print(_lengths_table(profile["length_histogram"]))
    if profile["rejected"]:
        console.print(_rejected_table(profile))
    console.print(
        f"{profile['read']:,} rows read = {profile['kept']:,} kept ({profile['normalised']:,} of them normalised)"
        f" + {profile['rejected']:,} rejected",
        soft_wrap=True,
    )


def _splits_table(profile: Profile) -> Table:
    table = _table("Kept", "split", "rows", "inputs", "inputs with\n>1 targets")
    for side in SIDES:
        table.add_column(f"{side} length\np50/p95/max", justify="right")
    for name, split in profile["splits"].items():
        counts = [f"{split[key]:,}" for key in ("rows", "inputs", "inputs_with_several_targets")]
        lengths = [split[f"{side}_characters"] for side in SIDES]
        table.add_row(name, *counts, *(f"{length['p50']}/{length['p95']}/{length['max']}" for length in lengths))
    return table


def _lengths_table(histogram: dict[str, list[int]]) -> Table:
    table = _table("Lengths of kept texts", "characters")
    for heading in ("sources", "targets"):
        table.add_column(heading, justify="right")
        table.add_column("")
    most = max(histogram["source"] + histogram["target"])
    edges = histogram["edges"]
    for first, end, *counts in zip(edges, edges[1:], histogram["source"], histogram["target"], strict=False):
        if any(counts):
            cells = [cell for count in counts for cell in (f"{count:,}", "█" * round(_BAR * count / most))]
            table.add_row(f"{first} to {end - 1}", *cells)
    return table


def _rejected_table(profile: Profile) -> Table:
    from rich.text import Text

    table = _table("Rejected", "reason", "rows")
    table.add_column("for example")
    for reason, (first, *_) in profile["examples"]["rejected"].items():
        # As Text, for a placeholder such as [name] would be taken for markup.
        example = Text(f"row {first['row']}: {first['source']} → {first['target']}", no_wrap=True, overflow="ellipsis")
        table.add_row(reason, f"{profile['reasons'][reason]:,}", example)
    return table


def _table(title: str, first: str, *numbers: str) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column(first, no_wrap=True)
    for heading in numbers:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _is_null(column: pa.Array) -> np.ndarray:
    return pc.is_null(column).to_numpy(zero_copy_only=False)


def _lengths(column: pa.Array) -> np.ndarray:
    return pc.fill_null(pc.utf8_length(column), 0).to_numpy()


def _counted(values: np.ndarray) -> tuple[list[int], list[int]]:
    found, counts = np.unique(values, return_counts=True)
    return found.tolist(), counts.tolist()


def _inputs(rows: Cleaned) -> dict[str, dict[str, int]]:
    """Of each split: different inputs, those with more than one target, and the most that one has."""
    found = {name: np.zeros(3, np.int64) for name in SPLITS}
    for some in rows.inputs:
        splits = rows.splits[some["row"]]
        kept = rows.reasons[some["row"]] == KEPT
        for name, (inputs, several, most) in found.items():
            _, counts = np.unique(some["input"][kept & (splits == SPLIT_CODES[name])], return_counts=True)
            found[name][:] = inputs + len(counts), several + (counts > 1).sum(), max(most, counts.max(initial=0))
    names = ("inputs", "inputs_with_several_targets", "most_targets_of_an_input")
    return {name: dict(zip(names, counts.tolist(), strict=True)) for name, counts in found.items()}


def summary(lengths: Counter[int]) -> dict[str, float]:
    """Mean, median, 95th percentile and maximum of lengths, given how often each occurs.

    Percentiles are lengths that occur, those nearest to the place; of two as near, that with the even index.
    """
    count = lengths.total()
    if not count:
        return {"mean": 0.0, "p50": 0, "p95": 0, "max": 0}
    values = sorted(lengths)
    through = np.cumsum([lengths[value] for value in values])
    p50, p95 = (values[np.searchsorted(through, round((count - 1) * share), side="right")] for share in (0.5, 0.95))
    mean = sum(value * times for value, times in lengths.items()) / count
    return {"mean": round(mean, 3), "p50": p50, "p95": p95, "max": values[-1]}


def _histogram(source: Counter[int], target: Counter[int]) -> dict[str, list[int]]:
    """Counts between powers of two, from `edges[i]` to below `edges[i + 1]` characters."""
    longest = max([1, *source, *target])
    edges = [2**power for power in range(longest.bit_length() + 1)]
    return {
        "edges": edges,
        "source": _between(edges, source),
        "target": _between(edges, target),
    }


def _between(edges: list[int], lengths: Counter[int]) -> list[int]:
    values = np.fromiter(lengths.keys(), np.int64, len(lengths))
    times = np.fromiter(lengths.values(), np.int64, len(lengths))
    return np.histogram(values, edges, weights=times)[0].tolist()


def _either(raw: str | None, text: str | None) -> str:
    return raw if raw is not None else text or ""


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"
