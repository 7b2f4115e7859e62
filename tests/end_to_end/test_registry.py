"""Finished levels of the real pipeline: card, version in the registry, and what `mlflow models serve` answers."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from project import Project
from servers import free_port, running, wait_for

KEY, SMALLER = "magnitude-0.6", "structured-0.6"
TEXTS = ["Hotel-Inform (phone, post)", "", "你好，请问 [名称] 的地址", "Hotel-Inform (type, area, name)"]


@pytest.fixture(scope="module")
def project(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The finished project, its results committed."""
    copy = Project(tmp_path_factory.mktemp("registry") / "project")
    shutil.copytree(finished.root, copy.root, symlinks=True)
    copy.commit("results")
    return copy


@pytest.fixture
def here(project: Project, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In its folder, with no variable that leads elsewhere."""
    for name in ("DVC_ROOT", "DVC_STAGE", "MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(project.root)
    return project.root


@pytest.fixture
def nowhere(tmp_path: Path) -> dict[str, str]:
    """Environment of a process that cannot import this project, installed for development or not."""
    (tmp_path / "hidden/stages").mkdir(parents=True)
    (tmp_path / "hidden/stages/__init__.py").write_text("raise ModuleNotFoundError('this project is not here')")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "DVC_"))}
    kept |= {"PYTHONPATH": str(tmp_path / "hidden"), "OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
    found = subprocess.run([sys.executable, "-c", "import stages"], env=kept, cwd=tmp_path, capture_output=True)
    assert b"this project is not here" in found.stderr
    return kept


def read(path: str) -> Any:
    return json.loads(Path(path).read_text(encoding="utf-8"))


def refused(main: Any, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    assert stopped.value.code == 1
    return capsys.readouterr().err


def generated(key: str, *texts: str, **options: Any) -> list[str]:
    """What `stages.generate` says to texts."""
    from stages import layout
    from stages.evaluation.generation import stream
    from stages.runtimes import folder

    said = stream(folder.load(layout.model_folder(key)), texts, batch_size=100, seed=0, options=options)
    return [output for _, output in said]


@contextmanager
def serving(model: str, environment: dict[str, str], folder: Path) -> Iterator[str]:
    """Address of a server that answers with a model; nothing of it is left afterwards."""
    port = free_port()
    options = ("--env-manager", "local", "--host", "127.0.0.1", "--port", str(port))
    command = (sys.executable, "-m", "mlflow", "models", "serve", "-m", model, *options)
    log = folder / "serve.log"
    with running(command, log, environment, folder) as process:
        address = f"http://127.0.0.1:{port}"
        wait_for(f"{address}/ping", process, log)
        yield address


def ask(address: str, request: Any) -> list[str]:
    """What a server answers to a request."""
    body = json.dumps(request).encode()
    headers = {"Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(f"{address}/invocations", body, headers), timeout=300) as answer:
        return json.load(answer)["predictions"]


@pytest.mark.parametrize("key", [KEY, SMALLER])
def test_a_card_holds_what_the_files_say(key, here, project, nowhere, tmp_path):
    from huggingface_hub import ModelCard

    from stages import card

    page = tmp_path / "README.md"
    card.main([key, "--output", str(page)])
    made = ModelCard.load(page)
    figures, dense = (read(f"outputs/metrics/evaluate/{name}.json") for name in (key, "dense"))
    assert (made.data.language, made.data.library_name) == ("en", "transformers")
    assert {"pruning", key.rpartition("-")[0]} <= set(made.data.tags)
    stated = {result.metric_type: result.metric_value for result in made.data.eval_results}
    assert stated == {"bleu": figures["bleu"], "chrf": figures["chrf"], "rouge": figures["rougeL"]}
    row = next(line for line in made.text.splitlines() if line.startswith(f"| **{key}** |"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1] == f"{figures['bleu']:.1f} ({figures['bleu_low']:.1f}–{figures['bleu_high']:.1f})"
    assert cells[-5:-1] == [
        f"{figures['bleu_delta']:+.1f} ({figures['bleu_delta_low']:+.1f} to {figures['bleu_delta_high']:+.1f})",
        f"{figures['bleu_p']:.3f}",
        f"{figures['parameters']:,}",
        f"{figures['nonzero_parameters']:,}",
    ]
    assert f"before pruning {dense['parameters']:,}." in made.text
    assert f"60 % asked, {100 * figures['sparsity']:.4f} %" in made.text
    assert "72 of 74, after cleaning" in made.text and "apache-2.0, see `data/raw/README.md`" in made.text
    head = project.run("git", "rev-parse", "HEAD").stdout.strip()
    assert f"git checkout {head}\ndvc repro evaluate@{key}\npython -m stages.verify {key}" in made.text
    assert "uncommitted" not in made.text
    lines = Path("outputs/benchmark/speed.csv").read_text().splitlines()
    timed = {row["key"]: row for row in csv.DictReader(lines)}
    middle, faster = (float(timed[key][name]) for name in ("latency_ms_p50", "speedup"))
    assert re.search(rf"\| {key} \| pytorch \| {middle:.1f} \(.*\) \| {faster:.2f} \|", made.text)
    assert "| dense | pytorch |" in made.text
    timings = made.text.partition("## Speed")[2]
    assert f"| {key} | pytorch | {middle:.1f}" in timings and f"| {cells[1]} |" in timings
    assert "precision" not in timings
    if key == SMALLER:
        config = read(f"outputs/models/finetuned/{key}/config.json")["decoder"]
        assert f"neurons {config['intermediate_size']} of " in made.text and "tokens, not trimmed" in made.text
        assert "group_lasso.strength" not in made.text

    program = re.search(r"```python\n(.*?)```", made.text, re.DOTALL).group(1)
    folder = f"outputs/models/finetuned/{key}"
    said = subprocess.run([sys.executable, "-c", program], cwd=folder, env=nowhere, capture_output=True, text=True)
    text = re.search(r"tokenizer\('(.*?)', trunc", program).group(1)
    assert [said.stdout.rstrip("\n")] == generated(key, text), said.stderr


def test_what_cannot_be_reproduced_is_said_or_refused(here, capsys, tmp_path):
    from stages import card, register

    params, code = Path("params.yaml"), Path("stages/finetune.py")
    weights = Path(f"outputs/models/finetuned/{KEY}/config.json")
    assert "not evaluated in dvc.lock, which has" in refused(card.main, capsys, "magnitude-0.1")
    (tmp_path / "page.md").write_text("# Mine\n")
    assert "no model card of ours" in refused(card.main, capsys, KEY, "--output", str(tmp_path / "page.md"))
    before = {path: path.read_bytes() for path in (params, code, weights)}
    try:
        params.write_bytes(before[params] + b"# a comment changes no value\n")
        (tmp_path / "page.md").write_text("---\ntags: [espalier]\n---\n\n# Of another commit\n")
        card.main([KEY, "--output", str(tmp_path / "page.md")])
        assert "**Made with uncommitted changes** (`params.yaml`)" in (tmp_path / "page.md").read_text()
        code.write_bytes(before[code] + b"# changed\n")
        for main in (card.main, register.main):
            assert f"{KEY} was made before stages/finetune.py changed" in refused(main, capsys, KEY)
        code.write_bytes(before[code])
        weights.unlink()  # a link into DVC's cache, or the file
        weights.write_bytes(before[weights] + b"\n")
        assert "is not the one that dvc.lock has" in refused(register.main, capsys, KEY)
    finally:
        for path, content in before.items():
            path.unlink(missing_ok=True)
            path.write_bytes(content)
    assert "--alias" in refused(register.main, capsys, KEY, "--alias", "v2")


def test_a_level_has_one_version_and_answers_as_it_does_here(here, project, nowhere, capsys, tmp_path):
    import mlflow

    from stages import register

    for alias in ("candidate", "champion"):
        register.main([KEY, "--alias", alias])
    said = capsys.readouterr().out.splitlines()
    assert "registered, espalier version 1, alias candidate" in said[0]
    assert "registered already, espalier version 1, alias champion" in said[1]
    register.main([SMALLER, "--alias", "champion"])
    uri = f"sqlite:///{here / 'mlflow.db'}"
    client = mlflow.MlflowClient(uri)
    assert len(client.search_model_versions("name = 'espalier'")) == 2
    aliases = client.get_registered_model("espalier").aliases
    assert {alias: int(version) for alias, version in aliases.items()} == {"candidate": 1, "champion": 2}

    version = client.get_model_version_by_alias("espalier", "candidate")
    run = client.get_run(version.run_id)
    assert run.info.run_name == KEY and run.info.status == "FINISHED"
    assert version.tags["method"] == "magnitude" and version.tags["sparsity"] == "0.6"
    assert version.tags["dvc.finetune.lock"] == run.data.tags["dvc.finetune.lock"]
    assert version.tags["commit"] == project.run("git", "rev-parse", "HEAD").stdout.strip()
    about = version.description
    assert about.startswith("A generator of English text (bert2bert, 2 + 2 layers of width 16), 60 % ")
    assert "## Reproduce" in about

    expected = generated(KEY, *TEXTS)
    with serving("models:/espalier@candidate", nowhere | {"MLFLOW_TRACKING_URI": uri}, tmp_path) as address:
        assert ask(address, {"inputs": TEXTS}) == expected and len(set(expected)) > 2
        table = {"columns": ["text"], "data": [[text] for text in TEXTS]}
        assert ask(address, {"dataframe_split": table}) == expected
        beams = generated(KEY, TEXTS[0], num_beams=4)
        assert ask(address, {"inputs": TEXTS[:1], "params": {"num_beams": 4}}) == beams
        with pytest.raises(urllib.error.HTTPError, match="400"):
            ask(address, {"inputs": TEXTS, "params": {"num_beams": "many"}})
