"""Runs killed by SIGKILL at random moments, started again: the bytes of a run that nobody stopped."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from ruamel.yaml import YAML
from safetensors.torch import load_file, save_file
from shared import SOURCES, family_section
from transformers import Trainer

import stages
from stages import files, finetune, layout, prune, train
from stages.files import read_json
from stages.training import checkpoints, loop, resuming

Stage = Callable[[], None]


def killed(stage: Stage, monkeypatch: pytest.MonkeyPatch, moment: str, count: int) -> None:
    """Run a stage in a process of its own, which gets SIGKILL at the `count`-th time that something happens in it.

    The moments: `step` before an optimizer step, `batch` between batches, `write` while a checkpoint is on its way
    to the disk.
    """
    owner, name = {
        "step": (torch.optim.AdamW, "step"),
        "batch": (Trainer, "training_step"),
        "write": (files, "_sync"),
    }[moment]
    original, left = getattr(owner, name), [count]

    def fatal(*args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    child = os.fork()
    if not child:
        try:
            monkeypatch.setattr(owner, name, fatal)
            stage()
        finally:
            os._exit(7)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, status


def left_behind() -> dict[str, bytes]:
    """All that stages left, but for the predictions and models that a test began with."""
    return {str(file): file.read_bytes() for file in sorted(layout.OUTPUTS.rglob("*")) if file.is_file()}


def kept() -> list[Path]:
    return sorted((layout.SCRATCH / "checkpoints").rglob("step-*"))


def set_every(steps: int) -> None:
    yaml = YAML()
    values = yaml.load(Path("params.yaml"))
    values["train"]["checkpoint_every"] = steps
    yaml.dump(values, Path("params.yaml"))


def compare(stage: Stage, monkeypatch: pytest.MonkeyPatch, capsys: Any, every: int, *ends: tuple[str, int]) -> None:
    """Run a stage whole, without checkpoints; then with them, killed at each of `ends` and started again."""
    monkeypatch.setattr(loop, "LOGS_PER_RUN", 4)  # so that a checkpoint falls between two points of the loss curve
    before = Path("before")
    shutil.copytree(layout.OUTPUTS, before)
    set_every(0)
    stage()
    whole = left_behind()
    assert not kept()
    shutil.rmtree(layout.OUTPUTS)
    shutil.move(before, layout.OUTPUTS)
    set_every(every)
    for moment, count in ends:
        killed(stage, monkeypatch, moment, count)
    assert kept()
    capsys.readouterr()
    stage()
    assert "going on from step" in capsys.readouterr().err
    again = left_behind()
    assert again.keys() == whole.keys()
    assert [name for name in whole if again[name] != whole[name]] == []
    record_what_ended()
    checkpoints.remove_recorded()
    assert not kept()


def record_what_ended() -> None:
    """Have dvc.lock say what DVC puts there once a stage has ended."""
    outs = [read_json(path) for path in (layout.SCRATCH / "checkpoints").glob(f"*/{checkpoints.ENDED}")]
    entries = [{"path": out["path"], "hash": "md5", "md5": out["md5"], "size": 1} for out in outs]
    YAML().dump({"schema": "2.0", "stages": {"a": {"cmd": "a", "outs": entries}}}, Path(checkpoints.LOCK))


def test_checkpoints_stay_until_dvc_has_recorded_the_stage(project, capsys):
    """DVC may be killed, or find its cache full, when the stage has ended; a stage that is forced begins anew."""
    project(finetune={**SHORT, "schedule": "one_shot"})
    prune.main(["random-0.6"])
    set_every(4)
    finetune.main(["random-0.6"])
    whole = left_behind()
    Path(checkpoints.LOCK).write_text("schema: '2.0'\nstages: {}\n")
    capsys.readouterr()
    finetune.main(["random-0.6"])
    assert "going on from step 16 of 18" in capsys.readouterr().err
    assert left_behind() == whole and kept()

    record_what_ended()
    finetune.main(["random-0.6"])
    assert "going on" not in capsys.readouterr().err
    assert left_behind() == whole


def drop_out() -> dict[str, Any]:
    """A model with dropout, so that the generators matter."""
    section = family_section("bert")
    side = {**section["encoder"], "config": {**section["encoder"]["config"], "hidden_dropout_prob": 0.1}}
    return {**section, "encoder": side, "decoder": side}


SHORT = {"batch_size": 5, "gradient_accumulation": 2, "epochs": 6.0, "learning_rate": 0.02}
"""18 steps, three an epoch, the last of which has one batch where the others have two."""


def random_ends(seed: int) -> list[tuple[str, int]]:
    draw = random.Random(seed)
    return [("step", draw.randint(5, 12)), ("write", draw.randint(1, 12)), ("batch", draw.randint(1, 12))]


@pytest.mark.parametrize(("every", "bucket"), [(4, True), (3, True), (4, False)])
def test_train_ends_in_the_same_bits(every, bucket, project, monkeypatch, capsys):
    """With dropout, and the best weights kept; every three steps is where epochs end and are evaluated."""
    project(model=drop_out(), train={**SHORT, "bucket_by_length": bucket, "early_stopping_patience": 2})
    shutil.rmtree(layout.model_folder("baseline"))
    compare(train.main, monkeypatch, capsys, every, *random_ends(every + bucket))


def test_train_ends_with_the_best_weights_of_before_it_was_killed(project, monkeypatch, capsys):
    """What is learnt makes the validation split less likely: the first epoch is the best."""
    project(train={**SHORT, "early_stopping_patience": 4})
    unlike = pa.table({"source": SOURCES, "target": ["0123456789"] * len(SOURCES)})
    pq.write_table(unlike, layout.DATA / "validation.parquet")
    compare(train.main, monkeypatch, capsys, 4, ("step", 10))
    metrics = json.loads(layout.metrics_file("train").read_text())
    assert metrics["steps"] == 15, "stops four evaluations after the first"


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("magnitude-0.6", {"schedule": "cubic", "refresh_steps": 3}),
        ("movement-0.6", {"schedule": "cubic"}),
        ("taylor-0.6", {"schedule": "rounds"}),
        ("sparsegpt-0.6", {"schedule": "rounds", "rewind": "weights"}),
        ("random-0.6", {"schedule": "one_shot", "distillation": {"weight": 0.5, "hidden_weight": 0.5}}),
        ("magnitude-0.6", {"schedule": "one_shot", "lora": {"rank": 2}}),
        ("structured-0.4", {"schedule": "rounds", "rounds": 2, "distillation": {"hidden_weight": 0.5}}),
        ("dense", {"schedule": "cubic", "bucket_by_length": False}),
    ],
)
def test_finetune_ends_in_the_same_bits(key, changes, project, monkeypatch, capsys):
    project(model=drop_out(), finetune={**SHORT, **changes}, prune={"structured": {"zeros": 0.2}})
    if key != "dense":
        prune.main([key])
    compare(lambda: finetune.main([key]), monkeypatch, capsys, 4, *random_ends(len(str(changes))))


@pytest.mark.parametrize("key", ["l1-0.6", "structured-0.4"])
def test_a_penalty_ends_in_the_same_bits(key, project, monkeypatch, capsys):
    lasso = {"score": "group_lasso", "group_lasso": {"epochs": 6.0}}
    project(train=SHORT, prune={"l1": {"epochs": 6.0}, "structured": lasso})

    def stage() -> None:
        shutil.rmtree(layout.SCRATCH / "penalised", ignore_errors=True)
        prune.main([key])

    compare(stage, monkeypatch, capsys, 4, *random_ends(0))


@pytest.fixture
def interrupted(project, monkeypatch, tmp_path, tmp_path_factory) -> Stage:
    """`finetune`, killed before the 13th of its 18 steps: checkpoints of the 8th and the 12th are there."""

    def stage() -> None:
        finetune.main(["random-0.6"])

    once = tmp_path_factory.getbasetemp() / "interrupted"
    if once.exists():
        shutil.copytree(once, tmp_path, dirs_exist_ok=True)
        return stage
    project(finetune={**SHORT, "schedule": "one_shot"})
    prune.main(["random-0.6"])
    set_every(4)
    killed(stage, monkeypatch, "step", 13)
    assert [folder.name for folder in kept()] == ["step-000000008", "step-000000012"]
    shutil.copytree(tmp_path, once)
    return stage


@pytest.mark.parametrize("harm", ["cut", "flip", "missing", "manifest", "more"])
def test_a_damaged_checkpoint_is_passed_over(harm, interrupted, capsys):
    last = kept()[-1]
    file = last / checkpoints.MANIFEST if harm == "manifest" else last / "optimizer.pt"
    content = bytearray(file.read_bytes())
    if harm == "more":
        (last / "pytorch_model.bin").write_bytes(b"a pickle")
    elif harm == "missing":
        file.unlink()
    elif harm == "flip":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    else:
        file.write_bytes(content[:-9])
    interrupted()
    said = capsys.readouterr().err
    assert f"{last} is damaged" in said and "going on from step 8 of 18" in said
    record_what_ended()
    checkpoints.remove_recorded()
    assert not kept()


@pytest.mark.parametrize("change", ["params", "data", "weights", "masks", "code", "version"])
def test_a_checkpoint_of_other_inputs_is_not_used(change, interrupted, monkeypatch, capsys, tmp_path):
    if change == "params":
        text = Path("params.yaml").read_text()
        Path("params.yaml").write_text(text.replace("weight_decay: 0.01", "weight_decay: 0.02"))
    elif change == "data":
        pairs = pq.read_table(layout.DATA / "train.parquet")
        pq.write_table(pairs.slice(0, 23), layout.DATA / "train.parquet")
    elif change == "weights":
        file = layout.model_folder("baseline") / "model.safetensors"
        tensors = load_file(file)
        next(iter(tensors.values())).view(-1)[0] += 1
        save_file(tensors, file, metadata={"format": "pt"})
    elif change == "masks":
        prune.main(["magnitude-0.6"])
        shutil.copy(layout.pruned_folder("magnitude-0.6") / "masks.safetensors", layout.pruned_folder("random-0.6"))
    elif change == "code":
        (tmp_path / "stages").mkdir()
        (tmp_path / "stages" / "new.py").touch()
        monkeypatch.setattr(stages, "__file__", str(tmp_path / "stages" / "__init__.py"))
    else:
        monkeypatch.setattr(resuming, "transformers", types.SimpleNamespace(__version__="9"))
    interrupted()
    assert "going on" not in capsys.readouterr().err


@pytest.mark.parametrize("every", [3, 0])
def test_how_often_checkpoints_are_kept_may_change(every, interrupted, capsys):
    set_every(every)
    interrupted()
    assert ("going on from step 12 of 18" in capsys.readouterr().err) == bool(every)


def test_ctrl_c_says_how_to_go_on(interrupted, monkeypatch, capsys):
    step = torch.optim.AdamW.step
    left = [3]

    def stopped(*args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return step(*args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", stopped)
    with pytest.raises(SystemExit) as ended:
        interrupted()
    said = capsys.readouterr().err
    assert ended.value.code == 130
    assert "stopped after step 14 of 18" in said and str(kept()[-1]) in said and "run the same command to go on" in said


def test_only_tensors_are_loaded(interrupted, monkeypatch):
    """`torch.load` reads pickles unless it is told to take weights only."""
    load, calls = torch.load, []
    monkeypatch.setattr(torch, "load", lambda *a, **k: calls.append(k.get("weights_only")) or load(*a, **k))
    interrupted()
    assert len(calls) == 3 and all(calls)
    assert not [path for path in layout.SCRATCH.rglob("*") if path.suffix in (".bin", ".pkl")]


def test_a_full_disk_costs_the_checkpoint_and_not_the_run(interrupted, monkeypatch, capsys):
    sync = files._sync

    def full(path: Path) -> None:
        if "checkpoints" in path.parts:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(path)

    monkeypatch.setattr(files, "_sync", full)
    interrupted()
    said = capsys.readouterr().err
    assert "no checkpoint of step 16 (is the disk full?), the one before it is kept: [Errno 28]" in said
    assert layout.model_folder("random-0.6").is_dir() and not kept()


def test_two_processes_go_on_together(tmp_path):
    """One of two gloo processes is killed, which ends the other; started again, both end in the same bits."""
    (tmp_path / "two.py").write_text(
        "import sys; sys.path.insert(0, sys.argv[1])\nfrom two_processes import main; main(*sys.argv[2:])\n"
    )

    def run(name: str, *options: str) -> tuple[int, str]:
        (tmp_path / name).mkdir(exist_ok=True)
        launch = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
        arguments = (str(tmp_path / "two.py"), str(Path(__file__).parent), "movement", "cubic", str(tmp_path / name))
        ended = subprocess.run((*launch, *arguments, *options), capture_output=True, text=True, timeout=300)
        return ended.returncode, ended.stderr

    assert run("whole")[0] == 0
    assert run("killed", "4", "10")[0] != 0
    status, said = run("killed", "4")
    assert status == 0 and "going on from step 8 of 12" in said
    for rank in "01":
        assert (tmp_path / "killed" / f"{rank}.json").read_text() == (tmp_path / "whole" / f"{rank}.json").read_text()
