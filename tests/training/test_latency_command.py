"""`python -m stages.latency` on a tiny baseline, and levels that are chosen by what it writes.

Replies are really generated; the clock is one that shows what the parts of a known table add up to.
"""

from __future__ import annotations

import json
import re

import pytest

from stages import finetune, latency, layout, params, prune, recipe
from stages.models import checkpoint
from stages.params import PARAMS_FILE
from stages.params.prune import Latency
from stages.pruning.structure.axes import describe
from stages.pruning.structure.latency import amounts, predicted
from stages.pruning.structure.plan import PLAN_FILE, Plan, whole

MILLISECONDS = {"reply": 2.0, "encoder_layers": 1.0, "decoder_layers": 4.0, "decoder_feed_forward": 900.0}


@pytest.fixture
def clock(monkeypatch):
    """What each reply took, and how many tokens it had to have at least and at most."""
    seconds = latency.seconds
    shown = []

    def known(generator, text, options):
        assert seconds(generator, text, options) > 0
        structure = describe(generator.model)
        parts = amounts(generator.model, structure)(whole(structure))
        took = sum(MILLISECONDS.get(part, 0.0) * amount for part, amount in parts.items()) / 1000
        shown.append((took, options["min_new_tokens"], options["max_new_tokens"]))
        return took

    monkeypatch.setattr(latency, "seconds", known)
    return shown


def table() -> Latency:
    found = params.load("prune").prune.structured.latency
    assert found is not None
    return found


def told(generator) -> float:
    structure = describe(generator.model)
    return predicted(table(), generator.model, structure)(whole(structure))


@pytest.mark.parametrize("family", ["bert", "t5", "gpt2"])
def test_measured_chosen_and_checked(family, project, clock, capsys):
    project(family, prune={"structured": {"layer_score": "output", "score": "norm"}})
    latency.main(["--texts", "3"])
    out = capsys.readouterr().out
    assert "not fitted:" in out and "prune.structured.latency" in out and "whole" in out
    baseline = checkpoint.load(layout.model_folder("baseline"))
    tokens = table().target_tokens
    assert {(least, most) for _, least, most in clock} == {(tokens, tokens)} and tokens <= baseline.max_target_tokens
    assert table().baseline_ms == pytest.approx(told(baseline), rel=2e-3)
    assert table().milliseconds["decoder_layers"] > table().milliseconds.get("encoder_layers", 0)

    # Twice over: what was measured before is no hindrance, whatever it was of.
    before = table()
    recipe.write(["prune.structured.budget=latency"])
    latency.main(["--texts", "3"])
    assert table() == before

    capsys.readouterr()
    latency.main(["--speedup", "1.4"])
    out = capsys.readouterr().out
    assert "structured-0.2858: 1.4" in out and "add 0.2858 to sweep.sparsity" in out
    assert "prune.structured.budget" not in out and "dvc repro evaluate@structured-0.2858" in out
    prune.main(["structured-0.2858"])
    finetune.main(["structured-0.2858"])
    level = checkpoint.load(layout.model_folder("structured-0.2858"))
    assert told(level) <= told(baseline) / 1.4 < told(level) * 2
    plan = Plan.load(layout.pruned_folder("structured-0.2858") / PLAN_FILE)
    structure = describe(baseline.model)
    assert predicted(table(), baseline.model, structure)(plan) <= told(baseline) / 1.4

    capsys.readouterr()
    latency.main(["--check", "structured-0.2858", "--texts", "3"])
    found = re.search(r"^structured-0.2858 +([\d.]+)× +([\d.]+)×$", capsys.readouterr().out, re.M)
    assert found and float(found[1]) == pytest.approx(float(found[2]), abs=0.02) and float(found[1]) >= 1.4


def test_the_level_of_a_target(project, clock, capsys):
    project()
    latency.main(["--texts", "2"])
    for target in (["--speedup", "1.5"], ["--latency-ms", f"{table().baseline_ms / 1.5}"]):
        capsys.readouterr()
        latency.main(target)
        out = capsys.readouterr().out
        assert "structured-0.3334: 1.5× as fast as the baseline" in out
        assert "set prune.structured.budget to latency, add structured to sweep.method, add 0.3334" in out


@pytest.mark.parametrize(("speedup", "share"), [(2, 0.5), (3, 0.6667), (4, 0.75), (1.25, 0.2), (10, 0.9)])
def test_a_level_is_no_slower_than_asked_for(speedup, share):
    assert latency.sparsity(speedup) == share
    assert 1 / (1 - share) >= speedup - 1e-9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--speedup", "2"], "prune.structured.latency is null: measure it first, with python -m stages.latency"),
        (["--latency-ms", "2"], "prune.structured.latency is null"),
        (["--check", "dense"], "prune.structured.latency is null"),
        (["--texts", "0"], "--texts has to be at least 1"),
    ],
)
def test_nothing_measured(arguments, message, project, capsys):
    project()
    with pytest.raises(SystemExit):
        latency.main(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--speedup", "1"], ["--speedup", "-2"], ["--latency-ms", "0"]])
def test_targets_that_make_no_sense(arguments, project, clock, capsys):
    project()
    latency.main(["--texts", "1"])
    with pytest.raises(SystemExit):
        latency.main(arguments)
    assert "a level is to be faster than the baseline" in capsys.readouterr().err


def test_a_table_that_foretells_badly_is_not_written(project, monkeypatch, capsys):
    """Half the time for all structures of one decoder layer that are cut further: no sum of parts."""
    project()

    def uneven(generator, text, options):
        decoder = generator.model.config.decoder
        narrow = decoder.hidden_size < 16 and decoder.intermediate_size < 32 and decoder.num_hidden_layers < 2
        return 0.002 if narrow else 0.020

    monkeypatch.setattr(latency, "seconds", uneven)
    before = PARAMS_FILE.read_bytes()
    with pytest.raises(SystemExit):
        latency.main(["--texts", "1"])
    assert "more or less than the table has it" in capsys.readouterr().err
    assert PARAMS_FILE.read_bytes() == before


@pytest.mark.parametrize("arguments", [["--speedup", "1.1"], ["--check", "baseline"], ["prune"]])
def test_a_table_of_another_model_is_refused(arguments, project, clock, capsys):
    project()
    latency.main(["--texts", "1"])
    measured = table().model_dump()
    measured["sizes"]["encoder.intermediate_size"] += 8
    recipe.write([f"prune.structured.latency={json.dumps(measured)}", "prune.structured.budget=latency"])
    with pytest.raises(SystemExit):
        prune.main(["structured-0.1"]) if arguments == ["prune"] else latency.main(arguments)
    assert "with encoder.intermediate_size 40, this one has 32: measure this one" in capsys.readouterr().err


def test_what_no_level_reaches_is_refused_at_once(project, clock, capsys):
    project()
    latency.main(["--texts", "1"])
    measured = table().model_dump() | {"device": "an abacus"}
    recipe.write([f"prune.structured.latency={json.dumps(measured)}"])
    with pytest.raises(SystemExit):
        latency.main(["--speedup", "900"])
    said = capsys.readouterr()
    limit = re.search(r"ms are there whatever goes: ask for a level that is less than ([\d.]+) times as fast", said.err)
    assert limit
    latency.main(["--speedup", f"{float(limit[1]) - 0.1}"])
    with pytest.raises(SystemExit):
        latency.main(["--speedup", f"{float(limit[1]) + 0.1}"])
    assert "the table was measured on an abacus, and this is" in said.out


def test_trimming_is_in_what_can_be_reached(project, clock, capsys, monkeypatch):
    """A level that nothing but trimming makes: it is not refused, and nothing else is removed for it."""
    monkeypatch.setitem(MILLISECONDS, "head", 1000.0)
    kinds = dict.fromkeys(("decoder_layers", "width", "neurons"), 0)
    project("gpt2", prune={"structured": {"vocabulary": True, "score": "norm", **kinds}})
    generator = checkpoint.load(layout.model_folder("baseline"))
    generator.model.resize_token_embeddings(4000, mean_resizing=False)
    checkpoint.save(generator, layout.model_folder("baseline"))
    latency.main(["--texts", "1"])
    recipe.write(["prune.structured.budget=latency"])
    latency.main(["--speedup", "3"])
    assert "structured-0.6667: 3" in capsys.readouterr().out
    prune.main(["structured-0.6667"])
    plan = Plan.load(layout.pruned_folder("structured-0.6667") / PLAN_FILE)
    assert plan == whole(describe(generator.model))
    recipe.write(["prune.structured.vocabulary=false"])
    with pytest.raises(SystemExit):
        latency.main(["--speedup", "3"])
    assert "ms are there whatever goes" in capsys.readouterr().err
