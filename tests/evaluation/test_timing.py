"""Turns, tokens and quartiles on a clock of the test's own; load time and memory of a real generator."""

import os
from functools import partial

import pytest

from stages.errors import UserError
from stages.evaluation import timing
from stages.evaluation.footprint import footprint
from stages.evaluation.timing import Setting, orders, spread, timings

pytest_plugins = ["evaluation_fixtures"]

GREEDY = {"num_beams": 1, "do_sample": False}


class Fake:
    """Stands for a generator that takes so many seconds for each character of the first text."""

    def __init__(self, cost, max_target_tokens=30):
        self.cost, self.max_target_tokens = cost, max_target_tokens


@pytest.fixture
def asked(monkeypatch):
    """What generators were asked for; time goes by as they say, not by the machine's clock, which others use."""
    calls = []
    clock = [0.0]

    def batch(generator, texts, options):
        calls.append((generator, tuple(texts), options))
        clock[0] += generator.cost * len(texts[0])

    monkeypatch.setattr(timing, "generate_batch", batch)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])
    return calls


def test_generators_take_turns_on_the_same_texts(asked):
    a, b, c = Fake(0.001), Fake(0.002), Fake(0.004)
    texts = ["x" * length for length in range(1, 9)]
    found = timings([a, b, c], texts, [Setting(2, 1, None, rounds=4)])
    # Batches begin with texts of 1 to 4 characters.
    assert [found[0][f"latency_ms_{share}"] for share in ("p25", "p50", "p75")] == pytest.approx([1.75, 2.5, 3.25])
    assert found[2]["latency_ms_p50"] == pytest.approx(10)
    assert [row["speedup"] for row in found] == pytest.approx([1, 0.5, 0.25])
    timed = asked[3:]
    turns = [[generator for generator, _, _ in timed[i : i + 3]] for i in range(0, 12, 3)]
    assert turns == [[[a, b, c][which] for which in order] for order in orders(3, 4)]
    assert [batch for _, batch, _ in timed[::3]] == [(texts[i], texts[i + 4]) for i in range(4)]
    assert all(timed[i][1] == timed[i + 1][1] == timed[i + 2][1] for i in range(0, 12, 3))
    assert all(options == GREEDY for _, _, options in asked)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 16])
@pytest.mark.parametrize("rounds", [2, 3, 4, 7, 60])
def test_no_generator_goes_earlier_than_another(count, rounds):
    turns = orders(count, rounds)
    assert len(turns) == rounds and all(sorted(order) == list(range(count)) for order in turns)
    places = [sum(order.index(which) for order in turns) for which in range(count)]
    assert max(places) - min(places) <= 1
    if count == 16 and rounds > 2:  # nor is one always warmed up by the same other
        before = [{tuple(order[i : i + 2]) for i in range(count - 1)} for order in turns]
        assert not set.intersection(*before)
    assert turns == orders(count, rounds)


def test_throughput_is_of_as_many_tokens_of_each(asked, settings):
    quick, short = Fake(0.5), Fake(1.0, max_target_tokens=10)
    section = {"batch_sizes": [1, 8], "num_beams": [1, 4], "tokens": 16, "rounds": 5, "throughput_rounds": 3}
    found = timings([short, quick], ["x"], timing.settings(settings(benchmark=section).benchmark))
    # What the shorter one can write at most: 10 tokens for each of 8 texts in half a second.
    assert found[1]["batch8_tokens_per_second_p50"] == pytest.approx(10 * 8 / 0.5)
    assert found[1]["batch8_beams4_speedup"] == pytest.approx(2)
    assert {(len(batch), options["num_beams"], options.get("max_new_tokens")) for _, batch, options in asked} == {
        (1, 1, None), (1, 1, 10), (8, 1, 10), (1, 4, 10), (8, 4, 10),
    }  # fmt: skip
    assert all(options.get("min_new_tokens") == options.get("max_new_tokens") for _, _, options in asked)
    latency = [options for _, _, options in asked if "max_new_tokens" not in options]
    assert len(latency) == 2 * (1 + 5) and len(asked) - len(latency) == 2 * 4 * (1 + 3)


def test_a_real_generator_writes_as_many_tokens_as_it_is_told(generator):
    options = Setting(1, 4, 7, rounds=1).options([generator])
    prompts = generator.prompts(["inform ( name )"])
    ids = generator.model.generate(**prompts, **options)[0].tolist()
    start = prompts["input_ids"].shape[1] if generator.kind == "causal" else 1
    assert len(ids) - start == 7


def test_memory_and_load_time_are_of_a_process_of_its_own(make_generator):
    import numpy as np

    def load(extra):
        np.ones(extra, dtype=np.uint8)
        return make_generator("bert")

    small = footprint(partial(load, 1), ["bye"], GREEDY)
    large = footprint(partial(load, 300_000_000), ["bye"], GREEDY)
    assert small["load_seconds"] > 0
    assert 200e6 < large["peak_memory_bytes"] - small["peak_memory_bytes"] < 400e6


class _Unpicklable(ValueError):
    def __init__(self, message: str, more: int) -> None:
        super().__init__(message)


def _fail(message: str, **_: object) -> None:
    raise _Unpicklable(message, 3)


def test_what_cannot_be_measured_is_said(make_generator, capfd):
    def fail():
        raise UserError("no such thing")

    def broken():
        generator = make_generator("bert")
        generator.model.name_or_path = "exported/t5"
        generator.model.generate = partial(_fail, "axis 2 has dimension 64\nbut expected 256")
        return generator

    said = "could not be measured: _Unpicklable: axis 2 has dimension 64 but expected 256$"
    for load, name in ((broken, "exported/t5"), (lambda: broken().model.generate(), "a generator")):
        with pytest.raises(UserError, match=f"^{name} {said}"):
            footprint(load, ["bye"], GREEDY)
    assert "Traceback" not in capfd.readouterr().err

    with pytest.raises(UserError, match="no such thing"):
        footprint(fail, ["bye"], GREEDY)
    with pytest.raises(UserError, match="its process ended with 7, perhaps for want of memory"):
        footprint(lambda: os._exit(7), ["bye"], GREEDY)


def test_spread_takes_texts_evenly_or_again():
    assert spread(list("abcdefgh"), 4) == list("aceg")
    assert spread(list("ab"), 5) == list("ababa")
    assert spread(list("abc"), 3) == list("abc")
