"""What cleaning did to the data: counts, reasons, lengths, examples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.text.cleaner import KEPT, REASON_CODES, SPLIT_CODES
from stages.text.reading import SPLITS

if TYPE_CHECKING:
    from rich.table import Table

_EXAMPLES = 3
_SHOWN_CHARACTERS = 200
_BAR = 20

Profile = dict[str, Any]


def describe(rows: pa.Table, reasons: np.ndarray, splits: np.ndarray, files: list[str]) -> Profile:
    """The profile of cleaned rows, ready for JSON.

    Args:
        rows: table with the columns `cleaner.CLEANED`.
        reasons: why each row is rejected (0: it is kept), shape (rows,).
        splits: split of each row, shape (rows,).
        files: names of the parts.
    """
    kept = reasons == KEPT
    parts, inputs = rows["part"].to_numpy(), rows["input"].to_numpy()
    changed = ~(_is_null(rows["raw_source"]) & _is_null(rows["raw_target"]))
    lengths = {name: _lengths(rows[name]) for name in ("source", "target")}
    in_split = {name: kept & (splits == SPLIT_CODES[name]) for name in SPLITS}
    return {
        "read": len(rows),
        "kept": int(kept.sum()),
        "rejected": int((~kept).sum()),
        "reasons": {reason: int((reasons == code).sum()) for reason, code in REASON_CODES.items()},
        "normalised": int((kept & changed).sum()),
        "files": [
            {"file": name, "read": int((parts == part).sum()), "kept": int((kept & (parts == part)).sum())}
            for part, name in enumerate(files)
        ],
        "splits": {
            name: {
                "rows": int(mask.sum()),
                **_targets_of_inputs(inputs[mask]),
                "source_characters": _summary(lengths["source"][mask]),
                "target_characters": _summary(lengths["target"][mask]),
            }
            for name, mask in in_split.items()
        },
        "length_histogram": _histogram(lengths["source"][kept], lengths["target"][kept]),
        "examples": {
            "kept": {name: _examples(rows, mask, files) for name, mask in in_split.items()},
            "normalised": _changes(rows, kept & changed, files),
            "rejected": {
                reason: _examples(rows, reasons == code, files)
                for reason, code in REASON_CODES.items()
                if (reasons == code).any()
            },
        },
    }


def metrics(profile: Profile) -> dict[str, float]:
    """The numbers of a profile, flat. Lengths are in characters, after normalising."""
    flat: dict[str, float] = {f"rows_{name}": profile[name] for name in ("read", "kept", "rejected", "normalised")}
    flat |= {f"rejected_{reason}": count for reason, count in profile["reasons"].items()}
    for split, counts in profile["splits"].items():
        flat |= {f"{split}_{name}": count for name, count in counts.items() if isinstance(count, int)}
        for side in ("source", "target"):
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
    for side in ("source", "target"):
        table.add_column(f"{side} length\np50/p95/max", justify="right")
    for name, split in profile["splits"].items():
        counts = [f"{split[key]:,}" for key in ("rows", "inputs", "inputs_with_several_targets")]
        lengths = [split[f"{side}_characters"] for side in ("source", "target")]
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


def _is_null(column: pa.ChunkedArray) -> np.ndarray:
    return pc.is_null(column).to_numpy()


def _lengths(column: pa.ChunkedArray) -> np.ndarray:
    return pc.fill_null(pc.utf8_length(column), 0).to_numpy()


def _targets_of_inputs(inputs: np.ndarray) -> dict[str, int]:
    _, counts = np.unique(inputs, return_counts=True)
    return {
        "inputs": len(counts),
        "inputs_with_several_targets": int((counts > 1).sum()),
        "most_targets_of_an_input": int(counts.max(initial=0)),
    }


def _summary(lengths: np.ndarray) -> dict[str, float]:
    if not len(lengths):
        return {"mean": 0.0, "p50": 0, "p95": 0, "max": 0}
    p50, p95 = np.percentile(lengths, [50, 95], method="nearest")
    return {
        "mean": round(float(lengths.mean()), 3),
        "p50": int(p50),
        "p95": int(p95),
        "max": int(lengths.max()),
    }


def _histogram(source: np.ndarray, target: np.ndarray) -> dict[str, list[int]]:
    """Counts between powers of two, from `edges[i]` to below `edges[i + 1]` characters."""
    longest = int(max(source.max(initial=1), target.max(initial=1)))
    edges = [2**power for power in range(longest.bit_length() + 1)]
    return {
        "edges": edges,
        "source": np.histogram(source, edges)[0].tolist(),
        "target": np.histogram(target, edges)[0].tolist(),
    }


def _examples(rows: pa.Table, mask: np.ndarray, files: list[str]) -> list[dict[str, Any]]:
    return [
        {"file": files[row["part"]], "row": row["row"]}
        | {side: _shortened(_either(row[f"raw_{side}"], row[side])) for side in ("source", "target")}
        for row in _first(rows, mask)
    ]


def _changes(rows: pa.Table, mask: np.ndarray, files: list[str]) -> list[dict[str, Any]]:
    found = []
    for row in _first(rows, mask):
        side = "source" if row["raw_source"] is not None else "target"
        texts = {"before": _shortened(row[f"raw_{side}"]), "after": _shortened(row[side])}
        found.append({"file": files[row["part"]], "row": row["row"], "column": side} | texts)
    return found


def _first(rows: pa.Table, mask: np.ndarray) -> list[dict[str, Any]]:
    return [rows.slice(at, 1).to_pylist()[0] for at in np.flatnonzero(mask)[:_EXAMPLES].tolist()]


def _either(raw: str | None, text: str | None) -> str:
    return raw if raw is not None else text or ""


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"
