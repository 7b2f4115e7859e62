"""Compute the two lines that every generator's scores are read against: the copy floor and the human line.

    python -m stages.reference

In: outputs/data/{train,test}.parquet.
Out: outputs/metrics/references.json. `copy_*` scores the first utterance of the most similar training input;
`human_*` scores each reference of an input against the others (inputs with two or more references, counted in
`human_inputs`). Scores are those of the evaluate stage.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from stages import layout, params
from stages.errors import command
from stages.files import write_json


@command
def main(arguments: Sequence[str] | None = None) -> None:
    """Score copying and people on the test split."""
    parser = argparse.ArgumentParser(prog="python -m stages.reference", description="Compute the reference lines.")
    parser.parse_args(arguments)
    data = params.load("data").data

    from stages.evaluation.figures import rounded, scores
    from stages.evaluation.inputs import read_inputs
    from stages.evaluation.quality import metrics
    from stages.evaluation.reference_lines import copy_nearest, human

    train = read_inputs(layout.DATA / "train.parquet")
    test = read_inputs(layout.DATA / "test.parquet")
    measured = metrics(data.language, data.placeholder, test.references)
    copied = scores(measured, copy_nearest(train, test.sources), test.references)
    people = human(test, measured)
    figures = {f"copy_{name}": score for name, score in copied.items()}
    figures |= {f"human_{name}": score for name, score in people.items()}
    figures["human_inputs"] = sum(len(many) > 1 for many in test.references)
    figures["test_inputs"] = len(test.sources)
    figures["test_references"] = sum(len(many) for many in test.references)
    write_json(layout.metrics_file("references"), rounded(figures))
    for line in ("copy", "human"):
        shown = [f"{name} {figures[f'{line}_{name}']:.2f}" for name in copied if f"{line}_{name}" in figures]
        print(f"{line}: {', '.join(shown) or 'no input has two references'}")


if __name__ == "__main__":
    main()
