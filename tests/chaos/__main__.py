"""Inject the faults, and print what became of each.

    python -m chaos                          # all: fault, times, survived, lost
    python -m chaos disks tracking           # some families
    python -m chaos --only 'read-only'       # the faults whose name holds a text
    python -m chaos --report                 # and put the latest row of each fault into docs/faults.md

It works on copies of a small project in a temporary folder, in a mount namespace of its own, so that nothing it mounts
outlives it. Exit status 1 if anything was lost.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from importlib import import_module
from pathlib import Path

from rich.console import Console

from benchmarks import rows
from chaos import ground, report
from chaos.faults import Fault, Result, Row, Skipped, tried

FAMILIES = ("kills", "disks", "damage", "trackers", "remotes", "meanwhile")
CSV = Path(".scratch/chaos.csv")
INSIDE = "ESPALIER_CHAOS_NAMESPACE"


def main() -> None:
    """Run."""
    args = _parse()
    _enter_namespace()
    console = Console(stderr=True)
    results: list[Result] = []
    with tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as folder:
        scratch = Path(folder)
        if args.finished:
            undisturbed = ground.adopted(scratch / "project", args.finished)
        else:
            console.print("the pipeline, undisturbed …")
            undisturbed = ground.undisturbed(scratch / "project")
        for family, fault in _chosen(args):
            console.print(f"{family}: {fault.name} …", highlight=False)
            try:
                results.append(tried(family, fault, undisturbed, scratch))
                rows.append(args.csv, results[-1].row)
                for loss in results[-1].losses:
                    console.print(f"    lost: {loss}", markup=False, highlight=False)
            except Skipped as why:
                console.print(f"    not tried here: {why}", markup=False, highlight=False)
    report.show(results, Console())
    if args.report:
        report.rewrite(report.PAGE, rows.read(args.csv, Row))
    sys.exit(any(result.row.lost for result in results))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m chaos", description="Inject faults into the real pipeline.")
    parser.add_argument("family", nargs="*", metavar="FAMILY", help=f"of {', '.join(FAMILIES)}: these only")
    parser.add_argument("--only", action="append", help="faults whose name holds this; may be repeated")
    parser.add_argument("--seed", type=int, default=0, help="of what is random")
    parser.add_argument("--finished", type=Path, help="a small project whose pipeline ran, to save that")
    parser.add_argument("--csv", type=Path, default=CSV, help="add the rows to this file")
    parser.add_argument("--report", action="store_true", help=f"put the latest row of each fault into {report.PAGE}")
    args = parser.parse_args()
    if unknown := sorted(set(args.family) - set(FAMILIES)):
        parser.error(f"{unknown[0]} is no family of faults: choose from {', '.join(FAMILIES)}")
    return args


def _chosen(args: argparse.Namespace) -> list[tuple[str, Fault]]:
    families = args.family or FAMILIES
    found = [(family, fault) for family in families for fault in import_module(f"chaos.{family}").faults(args.seed)]
    return [
        (family, fault) for family, fault in found if not args.only or any(text in fault.name for text in args.only)
    ]


def _enter_namespace() -> None:
    """Start anew where mounts are nobody else's and end with this process; where that is not allowed, go on."""
    if INSIDE in os.environ or not (unshare := shutil.which("unshare")):
        return
    os.environ[INSIDE] = "1"
    options = ["--mount", "--propagation", "private", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    if not os.spawnv(os.P_WAIT, unshare, [unshare, *options, "true"]):
        os.execv(unshare, [unshare, *options, sys.executable, "-m", "chaos", *sys.argv[1:]])


if __name__ == "__main__":
    main()
