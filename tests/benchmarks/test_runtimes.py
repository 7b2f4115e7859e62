"""`python -m benchmarks.runtimes`: turns, and the table."""

from __future__ import annotations

import pytest

from benchmarks import runtimes
from stages.evaluation import timing


def test_generators_take_turns_on_the_same_texts(monkeypatch):
    asked = []
    cost = {"a": 0.001, "b": 0.002, "c": 0.004}

    def seconds(generator, texts, options):
        asked.append((generator, tuple(texts)))
        assert options == {"num_beams": 1, "do_sample": False}
        return cost[generator] * len(texts[0])

    monkeypatch.setattr(timing, "seconds", seconds)
    texts = ["x" * length for length in range(1, 9)]
    found = runtimes.latencies(list(cost), texts, batches=4, batch_size=2)
    # batches begin with texts of 1 to 4 characters
    assert found[0] == pytest.approx((1.75, 2.5, 3.25))
    assert found[2] == pytest.approx((7, 10, 13))
    timed = asked[3 * runtimes.WARM_UP :]
    assert [generator for generator, _ in timed] == [*"abc", *"bca", *"cab", *"abc"]
    assert [batch for _, batch in timed[::3]] == [(texts[i], texts[i + 4]) for i in range(4)]
    assert all(timed[i][1] == timed[i + 1][1] == timed[i + 2][1] for i in range(0, 12, 3))


def test_rows_stand_beside_the_first():
    rows = [
        runtimes.Row("dense", (8.0, 10.0, 12.0), ["a", "b", "c", "d"], 50.0),
        runtimes.Row("int8", (3.0, 4.0, 5.0), ["a", "b", "x", "d"], 49.5),
    ]
    lines = runtimes.table(rows).splitlines()
    assert lines[2] == "| dense | 10.0 (8.0–12.0) | 1.0 | 100.0% | 50.00 | +0.00 |"
    assert lines[3] == "| int8 | 4.0 (3.0–5.0) | 2.5 | 75.0% | 49.50 | -0.50 |"
