"""What is one run, what is another, and that both sides of tracking agree on it."""

from __future__ import annotations

from pathlib import Path

import pytest
from sweep_on_disk import LEVELS, REPOSITORY, Sweep

from stages.errors import UserError
from stages.tracking.identity import Run, in_lock, on_disk
from stages.tracking.pipeline import Entry, Pipeline, md5_of, split_name


def lock_runs(sweep: Sweep) -> list[Run]:
    return in_lock(Pipeline(sweep.root))


def identities(sweep: Sweep) -> dict[str | None, str]:
    runs = lock_runs(sweep)
    assert len({run.revision.identity for run in runs}) == 1
    return {run.key: run.identity for run in runs}


def revisions(sweep: Sweep) -> list[set[str | None]]:
    """Keys in each revision, in the order of the lock."""
    found: dict[str, set[str | None]] = {}
    for run in lock_runs(sweep):
        found.setdefault(run.revision.identity, set()).add(run.key)
    return list(found.values())


@pytest.mark.parametrize("key", ["baseline", "dense", *LEVELS])
def test_before_the_run_and_from_the_lock_it_is_the_same(sweep: Sweep, key: str) -> None:
    after = identities(sweep)
    (sweep.root / "dvc.lock").unlink()
    sweep.lock = {}
    sweep.run("clean")
    revision, run = on_disk(Pipeline(sweep.root), key)
    assert (revision.identity, run.identity) == (after[None], after[key])
    assert run.entries == ()


def test_one_run_a_level_in_one_revision(sweep: Sweep) -> None:
    assert revisions(sweep) == [{None, "baseline", "dense", *LEVELS}]
    assert len(set(identities(sweep).values())) == 3 + len(LEVELS)


def test_another_sparsity_joins_the_revision(sweep: Sweep) -> None:
    before = identities(sweep)
    sweep.set("sweep.sparsity", [0.5, 0.7, 0.9])
    sweep.run("prune@magnitude-0.7", "finetune@magnitude-0.7", "evaluate@magnitude-0.7")
    after = identities(sweep)
    assert after.pop("magnitude-0.7")
    assert after == before


@pytest.mark.parametrize(
    ("name", "value"), [("train.epochs", 9), ("finetune.epochs", 2.0), ("prune.scope", "layer"), ("runtime.seed", 1)]
)
def test_a_shared_param_starts_a_revision(sweep: Sweep, name: str, value: object) -> None:
    before = identities(sweep)
    sweep.set(name, value)
    sweep.run_all()
    assert not set(before.values()) & set(identities(sweep).values())


@pytest.mark.parametrize(
    "name", ["stages/train.py", "stages/evaluate.py", "data/raw/multiwoz.csv.gz", "data/checkpoints/own/config.json"]
)
def test_shared_code_and_data_start_a_revision(sweep: Sweep, name: str) -> None:
    before = identities(sweep)
    sweep.write(name, "changed")
    sweep.run_all()
    assert not set(before.values()) & set(identities(sweep).values())


@pytest.mark.parametrize("name", ["stages/compare.py", "stages/reference.py"])
def test_what_no_level_is_made_from_changes_nothing(sweep: Sweep, name: str) -> None:
    before = identities(sweep)
    sweep.write(name, "changed")
    sweep.run_all()
    assert identities(sweep) == before


@pytest.mark.parametrize("change", ["param", "code"])
def test_what_one_method_reads_changes_its_levels_only(sweep: Sweep, change: str) -> None:
    before = identities(sweep)
    if change == "param":
        sweep.set("prune.l1.strength", 0.2)
    else:
        sweep.write("stages/criteria/l1.py", "changed")
    sweep.run_all()
    after = identities(sweep)
    assert {key for key in before if before[key] != after[key]} == {"l1-0.5", "l1-0.9"}


def test_a_level_made_with_other_params_is_in_a_revision_of_its_own(sweep: Sweep) -> None:
    sweep.set("finetune.epochs", 2.0)
    sweep.run("finetune@l1-0.9", "evaluate@l1-0.9")
    old = {None, "baseline", "dense", *LEVELS} - {"l1-0.9"}
    # The dense control there is was fine-tuned for one epoch: it is no control of this level.
    assert revisions(sweep) == [old, {None, "baseline", "l1-0.9"}]


def test_a_control_evaluated_in_another_way_is_as_far_in_the_revision_as_it_fits(sweep: Sweep) -> None:
    sweep.set("evaluate.num_beams", 4)
    sweep.run("evaluate_dense", *(f"evaluate@{key}" for key in LEVELS))
    made = {run.key: [entry.name for entry in run.entries] for run in lock_runs(sweep)}
    assert made["dense"] == ["finetune_dense", "evaluate_dense"]
    assert made["baseline"] == ["train"]


def test_leftovers_of_an_older_baseline_are_left_out(sweep: Sweep) -> None:
    before = identities(sweep)
    sweep.set("train.epochs", 9)
    sweep.run("train")
    assert revisions(sweep) == [{None, "baseline"}]
    baseline = next(run for run in lock_runs(sweep) if run.key == "baseline")
    assert [entry.name for entry in baseline.entries] == ["train"]
    assert baseline.identity not in before.values()


def test_an_unsaved_edit_does_not_touch_what_is_in_the_lock(sweep: Sweep) -> None:
    before = identities(sweep)
    sweep.set("finetune.epochs", 5.0)
    sweep.set("prune.l1.strength", 5.0)
    sweep.write("stages/prune.py", "edited")
    assert identities(sweep) == before


def test_a_run_is_of_the_code_as_it_is_before_dvc_has_written_down_which(sweep: Sweep) -> None:
    """A stage that is run by hand belongs to the revision that DVC's will."""
    before, _ = on_disk(Pipeline(sweep.root), "l1-0.5")
    sweep.write("stages/prune.py", "edited")
    edited, _ = on_disk(Pipeline(sweep.root), "l1-0.5")
    assert edited.identity != before.identity
    sweep.run_all()
    assert edited.identity in identities(sweep).values()


def test_a_level_in_the_making_brings_its_finished_stages(sweep: Sweep) -> None:
    del sweep.lock["evaluate@l1-0.5"]
    sweep.write_lock()
    _, run = on_disk(Pipeline(sweep.root), "l1-0.5")
    assert [entry.name for entry in run.entries] == ["prune@l1-0.5", "finetune@l1-0.5"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("prune@magnitude-0.5", ("prune", "magnitude-0.5")),
        ("finetune_dense", ("finetune", "dense")),
        ("evaluate_baseline", ("evaluate", "baseline")),
        ("train", ("train", "baseline")),
        ("clean", ("clean", None)),
    ],
)
def test_stage_names(name: str, expected: tuple[str, str | None]) -> None:
    assert split_name(name) == expected


def test_the_lock_may_be_empty_but_not_broken(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = sweep.root / "dvc.lock"
    lock.unlink()
    assert lock_runs(sweep) == []
    lock.write_text("schema: '2.0'\nstages: {}\n")
    assert lock_runs(sweep) == []
    monkeypatch.setattr("stages.lockfile.WRITING_S", 0.0)
    whole = "outs: [{path: a, md5: 2}]"
    for text, why in (
        ("schema: '2.0'\n", "no stages"),
        ("schema: '2.0'\nstages: [1, 2]\n", "no stages"),
        ("stages: {}\n", "no schema"),
        ("schema: '2.0'\nstages: {prune: {deps: [{md5: 1}]}}\n", "cut short"),
        (f"schema: '2.0'\nstages: {{prune: {{deps: [{{md5: 1}}], {whole}}}}}\n", "lock file"),
    ):
        lock.write_text(text)
        with pytest.raises(UserError, match=f"{why}.*git checkout dvc.lock"):
            lock_runs(sweep)


def test_an_entry_is_read_whole() -> None:
    params = {"params.yaml": {"prune.scope": "global", "prune.l1": {"strength": 0.1}, "prune.magnitude": {}}}
    deps = [{"path": "a.py", "hash": "md5", "md5": "1" * 32, "size": 3}]
    entry = Entry.parse("prune@l1-0.5", {"cmd": "x", "deps": deps, "params": params, "outs": [{"path": "o"}]})
    assert entry.params == {"prune.scope": "global", "prune.l1.strength": 0.1}
    assert (entry.deps, entry.outs) == ({"a.py": "1" * 32}, {"o": ""})
    assert entry.digest != Entry.parse("prune@l1-0.5", {"cmd": "y"}).digest


def test_the_project_s_own_pipeline_is_understood() -> None:
    pipeline = Pipeline(REPOSITORY)
    shared = pipeline.inputs("prune")
    level = pipeline.inputs("prune", "l1-0.5")
    assert {name for name in level.params if name not in shared.params} == {
        "prune.l1.strength",
        "prune.l1.epochs",
        "prune.l1.learning_rate",
    }
    assert {path for path in level.files if path not in shared.files} == {"stages/pruning/criteria/l1.py"}
    assert {"train.epochs", "runtime.seed"} <= set(pipeline.inputs("train").params)
    for stage in ("train", "prune", "finetune", "evaluate"):
        assert f"outputs/code/{stage}.json" in pipeline.inputs(stage).files
        assert not any(name.startswith(("sweep", "tracking")) for name in pipeline.inputs(stage).params)


def test_a_folder_has_the_md5_that_dvc_gives_it(tmp_path: Path) -> None:
    (tmp_path / "own/b").mkdir(parents=True)
    (tmp_path / "own/b/x").write_text("1\n")
    (tmp_path / "own/b-c").write_text("2\n")
    assert md5_of(tmp_path, "own") == "a0b2188fe747f012c065662de137c83a.dir"  # by DVC 3.67
    assert md5_of(tmp_path, "none") == ""


def test_a_mapping_by_patterns_is_one_param():
    from stages.tracking.content import as_text
    from stages.tracking.pipeline import leaves

    values = {"prune": {"scope": "layer", "layers": {"decoder.*.crossattention.*": 0, "encoder.*": 0.9}}}
    assert {name: as_text(value) for name, value in leaves(values)} == {
        "prune.scope": "layer",
        "prune.layers": '{"decoder.*.crossattention.*": 0, "encoder.*": 0.9}',
    }
