"""Training: same bits twice, masks held against momentum, schedules reached, penalties that shrink."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from shared import SOURCES, TARGETS
from transformers import EncoderDecoderModel, TrainerCallback

from stages.bitmasks import Masks
from stages.errors import UserError
from stages.models import anatomy, checkpoint
from stages.pruning import criterion, engine, masks, schedules
from stages.training import calibration
from stages.training.loop import total_steps, train
from stages.training.report import write_curve
from stages.training.sparsity import HoldMasks, Shrink


def md5(model: torch.nn.Module) -> str:
    state = hashlib.md5()
    for name, tensor in sorted(model.state_dict().items()):
        state.update(name.encode() + tensor.numpy().tobytes())
    return state.hexdigest()


def examples(generator: Any) -> list[dict[str, list[int]]]:
    return generator.encode(SOURCES * 8, TARGETS * 8)


def fit(generator: Any, settings: Any, tmp_path: Path, callbacks: Any = (), **finetune: Any) -> Any:
    torch.manual_seed(7)
    section = {"batch_size": 8, "gradient_accumulation": 1, "epochs": 5.0, "learning_rate": 0.01, **finetune}
    made = settings(finetune=section)
    return train(
        generator,
        examples(generator),
        examples(generator)[:4],
        made.finetune,
        made.runtime,
        tmp_path / "scratch",
        callbacks=callbacks,
    )


@pytest.mark.parametrize("family", ["bert", "t5", "gpt2"])
def test_training_learns_and_repeats_bit_for_bit(family, build_family, settings, tmp_path):
    first, second = build_family(family), build_family(family)
    outcome = fit(first, settings, tmp_path)
    fit(second, settings, tmp_path)
    assert md5(first.model) == md5(second.model)
    assert outcome.steps == 20 and outcome.curve[-1]["validation_loss"] == outcome.validation_loss
    losses = [point["loss"] for point in outcome.curve if "loss" in point]
    assert losses[-1] < losses[0] - 0.5
    assert not first.model.training and not (tmp_path / "scratch").exists()
    assert first.model.config.to_dict() == build_family(family).model.config.to_dict()


@pytest.mark.parametrize("family", ["bert", "t5", "gpt2"])
def test_a_model_trained_in_bf16_computes_as_the_same_one_loaded(family, build_family, settings, tmp_path):
    trained, loaded = build_family(family), build_family(family)
    made = settings(runtime={"precision": "bf16"})
    train(trained, examples(trained), examples(trained)[:4], made.finetune, made.runtime, tmp_path / "scratch")
    loaded.model.load_state_dict(trained.model.state_dict())
    loaded.model.eval()
    batch = trained.collate(examples(trained)[:4])
    with torch.no_grad():
        assert torch.equal(trained.model(**batch).logits, loaded.model(**batch).logits)


class Saved(TrainerCallback):
    """Notes the weights at each save of a best checkpoint."""

    def __init__(self) -> None:
        self.md5s: list[str] = []

    def on_save(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
        self.md5s.append(md5(model))


@pytest.mark.parametrize("share", [False, True])
def test_the_best_weights_are_kept_and_shared_sides_stay_shared(share, build_family, settings, tmp_path):
    generator = build_family("bert", share_weights=share)
    described = anatomy.describe(generator.model)
    made = settings(train={"batch_size": 8, "gradient_accumulation": 1, "epochs": 3.0, "learning_rate": 0.02})
    # Learning makes these less likely, so the first epoch is the best.
    unlike = generator.encode(SOURCES, ["0123456789"] * 4)
    saved = Saved()
    outcome = train(
        generator,
        examples(generator),
        unlike,
        made.train,
        made.runtime,
        tmp_path / "s",
        callbacks=[saved],
        keep_best=True,
    )
    losses = [point["validation_loss"] for point in outcome.curve if "validation_loss" in point]
    assert outcome.validation_loss == min(losses) < losses[-1]
    assert md5(generator.model) == saved.md5s[-1]
    assert anatomy.describe(generator.model).parameters == described.parameters

    checkpoint.save(generator, tmp_path / "m")
    again = checkpoint.load(tmp_path / "m")
    assert anatomy.describe(again.model).weights.keys() == described.weights.keys()
    stock = EncoderDecoderModel.from_pretrained(tmp_path / "m")
    assert md5(generator.model) == md5(again.model) == md5(stock)


@pytest.mark.parametrize(
    "changes",
    [{"label_smoothing": 0.1}, {"gradient_accumulation": 2}, {"bucket_by_length": False, "decay": "cosine"}],
)
def test_options_train(changes, build_family, settings, tmp_path):
    assert fit(build_family("bert"), settings, tmp_path, epochs=1.0, **changes).steps in (2, 4)


def test_gradient_accumulation_equals_the_larger_batch(build_family, settings, tmp_path):
    changes = {"bucket_by_length": False, "epochs": 1.0}
    config = {
        "architecture": "bert",
        "config": {**_small(), "hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0},
    }
    one, two = (build_family("bert", encoder=config, decoder=config) for _ in range(2))
    whole = fit(one, settings, tmp_path, batch_size=16, **changes)
    summed = fit(two, settings, tmp_path, batch_size=8, gradient_accumulation=2, **changes)
    assert summed.curve[0]["loss"] == pytest.approx(whole.curve[0]["loss"], rel=0.01)
    assert summed.validation_loss == pytest.approx(whole.validation_loss, rel=0.001)


def _small() -> dict[str, int]:
    from shared import SMALL

    return SMALL["bert"]


class Watch(HoldMasks):
    """Counts revived weights at the end of every step."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        masks.check_held(self.weights, self.masks)
        self.history = [*getattr(self, "history", []), self.masks.sparsity]


def context_of(generator: Any, made: Any, method: str) -> criterion.Context:
    return criterion.Context(
        model=generator.model,
        matrices=anatomy.describe(generator.model).matrices,
        batches=calibration.sample(generator, SOURCES, TARGETS, made.prune.calibration, 0),
        seed=0,
        settings=getattr(made.prune, method),
    )


@pytest.mark.parametrize("schedule", ["one_shot", "rounds", "cubic"])
@pytest.mark.parametrize("method", ["magnitude", "gradient", "random"])
def test_masks_hold_after_every_step_and_reach_the_target(schedule, method, build_family, settings, tmp_path):
    generator = build_family("bert")
    made = settings(finetune={"schedule": schedule, "refresh_steps": 3})
    context, chosen = context_of(generator, made, method), criterion.find(method)
    weights = context.weights
    plan = schedules.plan(made.finetune, 0.7, 20)

    def choose(sparsity: float, held: Masks | None = None) -> Masks:
        return engine.choose(context, chosen, sparsity, made.prune, held=held)

    holder = Watch(weights, masks.keep_all(weights) if plan else choose(0.7), plan, choose)
    fit(generator, settings, tmp_path, [holder])
    masks.check_held(weights, holder.masks)
    assert holder.masks.pruned == round(0.7 * holder.masks.numel)
    assert holder.history == sorted(holder.history)
    assert len(set(holder.history)) == {"one_shot": 1, "rounds": 3, "cubic": 5}[schedule]


def test_without_the_mask_momentum_revives_weights(build_family, settings, tmp_path):
    """The trap that `HoldMasks` is for: it must be able to fail."""
    generator = build_family("bert")
    context = context_of(generator, settings(), "magnitude")
    weights = context.weights
    chosen = engine.choose(context, criterion.find("magnitude"), 0.5, settings().prune)
    masks.apply(weights, chosen)
    fit(generator, settings, tmp_path, epochs=1.0)
    with pytest.raises(RuntimeError, match="masked weights"):
        masks.check_held(weights, chosen)


@pytest.mark.parametrize("method", ["l1", "l2"])
def test_penalties_shrink_weights(method, build_family, settings, tmp_path):
    plain, penalised = build_family("bert"), build_family("bert")
    fit(plain, settings, tmp_path, weight_decay=0.0)
    weights = anatomy.describe(penalised.model).weights
    shrink = criterion.find(method).shrink
    assert shrink

    def step(rate: float) -> None:
        for weight in weights.values():
            shrink(weight, rate, {"l1": 0.5, "l2": 3.0}[method])

    fit(penalised, settings, tmp_path, [Shrink(step)], weight_decay=0.0)
    before = sum(float(w.detach().abs().sum()) for w in anatomy.describe(plain.model).weights.values())
    after = sum(float(w.detach().abs().sum()) for w in weights.values())
    assert after < 0.9 * before
    zeros = sum(int((w == 0).sum()) for w in weights.values())
    assert (zeros > 500) == (method == "l1"), "only the proximal L1 step reaches exact zeros"


def test_calibration_is_seeded_and_bounded(build_family, settings):
    generator = build_family("bert")
    section = settings(prune={"calibration": {"samples": 3, "batch_size": 2}}).prune.calibration
    one = calibration.sample(generator, SOURCES, TARGETS, section, 1)()
    two = calibration.sample(generator, SOURCES, TARGETS, section, 1)()
    assert [len(batch["labels"]) for batch in one] == [2, 1]
    assert all(torch.equal(a["labels"], b["labels"]) for a, b in zip(one, two, strict=True))


def test_divergence_ends_in_one_clear_line(build_family, settings, tmp_path):
    with pytest.raises(UserError, match=r"not finite.*learning rate"):
        fit(build_family("bert"), settings, tmp_path, learning_rate=1e30, max_grad_norm=1e30, warmup_ratio=0.0)


def test_no_examples_end_in_one_clear_line(build_family, settings, tmp_path):
    made = settings()
    with pytest.raises(UserError, match="no examples"):
        train(build_family("bert"), [], [], made.finetune, made.runtime, tmp_path / "s")


def test_steps_round_up(settings):
    section = settings(finetune={"batch_size": 8, "gradient_accumulation": 2, "epochs": 1.5}).finetune
    assert total_steps(17, section) == 3 and total_steps(1, section) == 2


def test_curve_leaves_cells_empty(tmp_path):
    write_curve(tmp_path / "c.csv", [{"step": 1, "epoch": 0.5, "loss": 2.0}, {"step": 2, "validation_loss": 1.0}])
    rows = list(csv.DictReader((tmp_path / "c.csv").open()))
    assert rows[0]["validation_loss"] == "" and rows[1]["validation_loss"] == "1"


def test_steps_of_like_lengths_hold_the_examples_of_a_random_step():
    from stages.training.bucketing import StepBucketSampler

    lengths = [(7 * i) % 13 for i in range(25)]
    sampler = StepBucketSampler(lengths, 8, seed=3)
    first, again = list(sampler), list(sampler)
    assert first == again and sorted(first) == list(range(25)) and len(sampler) == 25
    for start in range(0, 25, 8):
        step = [lengths[i] for i in first[start : start + 8]]
        assert step == sorted(step)
    sampler.set_epoch(1)
    assert list(sampler) != first


@pytest.mark.parametrize(
    ("method", "schedule"), [("magnitude", "one_shot"), ("magnitude", "cubic"), ("movement", "cubic")]
)
def test_two_processes_train_as_one(method, schedule, build_family, settings, tmp_path):
    """Two gloo processes of half the batch: the same masks on both, and one process's loss within rounding."""
    import json
    import subprocess
    import sys

    script = tmp_path / "two.py"
    script.write_text(
        "import sys; sys.path.insert(0, sys.argv[1])\nfrom two_processes import main; main(*sys.argv[2:])\n"
    )
    here = str(Path(__file__).parent)

    def losses(count: int) -> list[dict[str, Any]]:
        out = tmp_path / f"{count}"
        out.mkdir()
        launch = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count))
        subprocess.run(
            (*launch, str(script), here, method, schedule, str(out)), check=True, capture_output=True, timeout=300
        )
        return [json.loads(file.read_text()) for file in sorted(out.glob("*.json"))]

    (alone,), (first, second) = losses(1), losses(2)
    assert first["masks"] == second["masks"] and first["weights"] == second["weights"]
    assert first["sparsity"] == alone["sparsity"] == pytest.approx(0.5, abs=1e-3)
    assert first["loss"] == pytest.approx(alone["loss"], rel=0.02)
