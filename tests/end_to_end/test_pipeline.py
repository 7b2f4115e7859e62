"""The real graph on small data: everything a README promises, through `dvc repro`."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import project as small
import pytest
from project import KEYS, MASKED, Project


def read(project: Project, path: str) -> dict:
    return json.loads((project.root / path).read_text())


def test_levels_are_compared(finished):
    rows = list(csv.DictReader((finished.root / "outputs/compare/levels.csv").open()))
    assert [row["key"] for row in rows] == ["dense", "baseline", *KEYS]
    assert read(finished, "outputs/metrics/compare.json")
    for name in ("quality.png", "layers.png"):
        assert (finished.root / "outputs/compare" / name).read_bytes().startswith(b"\x89PNG")
    clean = read(finished, "outputs/metrics/clean.json")
    assert (clean["rows_read"], clean["rows_kept"], clean["rows_rejected"]) == (74, 72, 2)


@pytest.mark.parametrize("key", MASKED)
def test_sparsity_is_exact_and_held(finished, key):
    from stages.bitmasks import MASKS_FILE, Masks
    from stages.models import anatomy, checkpoint
    from stages.pruning import masks

    folder = finished.root / "outputs/models/finetuned" / key
    weights = anatomy.describe(checkpoint.load(folder).model).weights
    held = Masks.load(folder / MASKS_FILE)
    masks.check_held(weights, held)
    total = sum(weight.numel() for weight in weights.values())
    pruned = sum(int((weight == 0).sum()) for weight in weights.values())
    assert sum(int((~mask).sum()) for mask in held.values()) == round(0.6 * total) <= pruned
    metrics = read(finished, f"outputs/metrics/evaluate/{key}.json")
    assert metrics["sparsity"] == pytest.approx(pruned / total) and metrics["bleu_p"] >= 0


def test_a_structured_level_is_a_smaller_model_that_needs_none_of_this_project(finished):
    program = (
        "import sys; from transformers import AutoTokenizer, EncoderDecoderModel\n"
        "model = EncoderDecoderModel.from_pretrained(sys.argv[1])\n"
        "tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])\n"
        "ids = tokenizer('inform ( name )', return_tensors='pt').input_ids\n"
        "print(model.num_parameters(), tokenizer.decode(model.generate(ids)[0], skip_special_tokens=True))\n"
        "assert not any(name.startswith('stages') for name in sys.modules)"
    )
    folder = "outputs/models/finetuned/structured-0.6"
    count, _, text = finished.run("python", "-I", "-c", program, folder).stdout.strip().partition(" ")
    ours = finished.run(
        "python", "-m", "stages.generate", "--model", "structured-0.6", "--text", "inform ( name )"
    ).stdout
    assert json.loads(ours)["output"].strip() == text.strip()
    figures = {name: read(finished, f"outputs/metrics/evaluate/{name}.json") for name in ("dense", "structured-0.6")}
    dense, smaller = figures["dense"], figures["structured-0.6"]
    assert smaller["parameters"] == int(count) < dense["parameters"]
    assert smaller["eligible_parameters"] == dense["eligible_parameters"] and 0.6 <= smaller["sparsity"] < 0.75
    assert smaller["size_bytes"] < dense["size_bytes"]
    layers = list(csv.DictReader((finished.root / "outputs/metrics/finetune/structured-0.6.layers.csv").open()))
    assert sum(int(row["parameters"]) for row in layers) == dense["eligible_parameters"]
    left = sum(int(row["nonzero"]) for row in layers)
    assert left == pytest.approx((1 - smaller["sparsity"]) * dense["eligible_parameters"], abs=1)


def test_levels_and_exports_are_timed_side_by_side(finished):
    rows = list(csv.DictReader((finished.root / "outputs/benchmark/speed.csv").open()))
    chosen = read(finished, "outputs/compare/chosen.json")["key"] or "dense"
    assert [row["key"] for row in rows] == ["dense", "baseline", *KEYS, "onnx", "onnx-int8"]
    assert [row["level"] for row in rows[-2:]] == [chosen] * 2
    figures = read(finished, "outputs/metrics/export.json")
    assert figures["onnx/same_outputs"] == 1
    assert figures["onnx/bleu"] == read(finished, f"outputs/metrics/evaluate/{chosen}.json")["bleu"]
    shown = finished.run("python", "-m", "stages.compare", "--show").stdout
    assert re.search(r"onnx-int8 .*×", shown)


def test_nothing_runs_twice(finished):
    assert finished.repro() == []


def test_every_run_is_tracked_and_sync_changes_nothing(finished):
    import mlflow

    first = finished.run("python", "-m", "stages.sync").stdout
    again = finished.run("python", "-m", "stages.sync").stdout
    assert "up to date" in again, f"{first}\n{again}"
    client = mlflow.MlflowClient(f"sqlite:///{finished.root}/mlflow.db")
    experiment = client.get_experiment_by_name("espalier")
    names = [run.info.run_name for run in client.search_runs([experiment.experiment_id])]
    assert set(KEYS) | {"dense", "baseline"} <= set(names) and len(names) == len(set(names)) == len(KEYS) + 3


def test_what_a_killed_stage_was_writing_concerns_nobody(finished):
    """Restored by DVC, its outputs may be whole while the beginning of one still lies beside them."""
    left = [finished.root / "outputs" / name for name in ("data/.a.parquet.1.partial", "predictions/.b.1.partial")]
    folder = finished.root / "outputs/models/finetuned/.c.1.partial"
    folder.mkdir()
    try:
        for file in (*left, folder / "model.safetensors"):
            file.write_text("half")
        assert json.loads(finished.run("dvc", "status", "--json").stdout) == {}
        assert ".partial" not in finished.run("git", "status", "--porcelain", "-uall").stdout
    finally:
        shutil.rmtree(folder)
        for file in left:
            file.unlink()


def test_outputs_and_runs_come_back_without_training(finished, tmp_path):
    copy = Project(tmp_path / "copy")
    shutil.copytree(finished.root, copy.root, symlinks=True)
    before = {p: p.read_bytes() for p in (copy.root / "outputs").rglob("*") if p.is_file() and p.name != ".gitignore"}
    for path in before:
        if path.suffix in (".parquet", ".safetensors"):
            path.unlink()
    (copy.root / "mlflow.db").unlink()
    copy.run("dvc", "checkout", "--force")
    assert all(path.read_bytes() == content for path, content in before.items())
    copy.run("python", "-m", "stages.sync")
    assert (copy.root / "mlflow.db").exists() and copy.repro() == []


def test_a_new_sparsity_runs_its_stages_and_compare_only(finished):
    try:
        finished.set(sweep={"sparsity": [0.6, 0.3]})
        assert finished.repro("evaluate@magnitude-0.3") == [
            f"{stage}@magnitude-0.3" for stage in ("prune", "finetune", "evaluate")
        ]
    finally:
        finished.set(sweep={"sparsity": [0.6]})
    assert set(finished.repro()) <= {"compare"}


def test_a_pattern_by_calibration_kept_without_its_zeros(finished):
    before = (finished.root / "params.yaml").read_text()
    try:
        finished.set(
            prune={"pattern": "2:4"}, sweep={"method": ["wanda"], "sparsity": [0.5]}, finetune={"storage": "sparse"}
        )
        assert "finetune@wanda-0.5" in finished.repro("evaluate@wanda-0.5")
        finished.run("python", "-m", "stages.densify", "wanda-0.5", "--output", "plain")
    finally:
        (finished.root / "params.yaml").write_text(before)
    from stages.models import anatomy, checkpoint

    weights = anatomy.describe(checkpoint.load(finished.root / "plain").model).weights
    for weight in weights.values():
        # Fine-tuned, and still two of every four inputs.
        assert bool(((weight.reshape(len(weight), -1, 4) != 0).sum(-1) <= 2).all())
    figures = read(finished, "outputs/metrics/evaluate/wanda-0.5.json")
    plain = (finished.root / "plain/model.safetensors").stat().st_size
    assert figures["sparsity"] >= 0.5 and figures["size_bytes"] < plain
    assert set(finished.repro()) <= {"compare"}  # the sweep of before is restored


def test_touching_a_criterion_leaves_clean_and_train_alone(finished):
    path = finished.root / "stages/pruning/criteria/magnitude.py"
    source = path.read_text()
    try:
        path.write_text(source + "# touched\n")
        status = json.loads(finished.run("dvc", "status", "--json").stdout)
    finally:
        path.write_text(source)
    changed = {stage for stage, why in status.items() if path.name in json.dumps(why)}
    assert changed == {"prune@magnitude-0.6", "finetune@magnitude-0.6", "finetune_dense"}


def test_an_edited_module_concerns_the_stages_that_import_it(finished):
    path = finished.root / "stages/evaluation/significance.py"
    unused = finished.root / "stages/pruning/shards.py"
    before = {path: path.read_text(), unused: unused.read_text()}
    try:
        unused.write_text(before[unused] + "# edited\n")
        assert finished.repro() == ["code"]
        path.write_text(before[path] + "# edited\n")
        refused = finished.run("dvc", "repro", "--force", "--single-item", "reference", check=False)
        said = "error: stages/evaluation/significance.py is not as outputs/code/reference.json has it: run `dvc repro"
        assert refused.returncode and said in refused.stderr
        assert finished.repro("code") == ["code"]
        status = json.loads(finished.run("dvc", "status", "--json").stdout)
    finally:
        for file, source in before.items():
            file.write_text(source)
        assert finished.repro() == ["code"]
    code = {stage for stage, why in status.items() if "outputs/code/" in json.dumps(why)}
    levels = {name for key in KEYS for name in [f"evaluate@{key}"]}
    assert code == {"reference", "evaluate_dense", "evaluate_baseline", *levels, "compare", "export", "benchmark"}


def test_another_checkpoint_to_start_from_trains_anew(finished):
    path = finished.root / "data/checkpoints/own/config.json"
    path.parent.mkdir()
    try:
        path.write_text("{}")
        status = json.loads(finished.run("dvc", "status", "--json").stdout)
    finally:
        shutil.rmtree(path.parent)
    assert status.keys() == {"train"}


def test_another_clone_gives_the_same_bits_also_side_by_side(finished, tmp_path):
    other = small.make(tmp_path)
    other.run("python", "-m", "stages.sweep", "-j", "2")
    ours, theirs = finished.locked(), other.locked()
    assert {path for path in theirs if ours.get(path) != theirs[path]} == set()
    assert len(theirs) > 20


@pytest.mark.parametrize("command", [("python", "-m", "stages.clean"), ("dvc", "repro")], ids=["stage", "repro"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"target": "answer"}}, "answer"),
        ({"clean": {"min_characters": 900}}, "no row is left"),
        ({"sweep": {"sparsity": [1.5]}}, r"less than 1|in \[0, 1\)"),
        ({"train": {"epochs": "many"}}, "train.epochs"),
        ({"train": {"epochs": 2, "learning_rate": 1e30}}, "not finite"),
    ],
)
def test_mistakes_end_in_one_clear_line_and_harm_nothing(finished, changes, message, command):
    if command[0] == "python" and "not finite" in message:
        command = ("python", "-m", "stages.train")
    path = finished.root / "params.yaml"
    before = path.read_text()
    outputs = everything(finished)
    try:
        finished.set(**changes)
        done = finished.run(*command, check=False)
    finally:
        path.write_text(before)
    assert done.returncode and re.search(message, done.stderr)
    assert "Traceback" not in done.stderr and [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert everything(finished) == outputs
    assert finished.repro() == []


def everything(project: Project) -> dict[Path, bytes]:
    """Every file the pipeline made."""
    return {path: path.read_bytes() for path in (project.root / "outputs").rglob("*") if path.is_file()}


def test_generate_answers_in_order(finished):
    texts = [f"Hotel-Inform ({name})" for name in small.NAMES] * 14
    source = finished.root / "texts.txt"
    Path(source).write_text("\n".join(texts) + "\n")
    done = finished.run("python", "-m", "stages.generate", "--model", "magnitude-0.6", "--input", "texts.txt")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["input"] for row in rows] == texts
