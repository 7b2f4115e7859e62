"""A finished sweep in a folder of its own: the files `compare` reads, with made-up figures."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
LAYERS = [
    f"{side}.layer.{i}.{part}.weight" for side in ("encoder", "decoder") for i in (0, 1) for part in ("query", "dense")
]
LOSS_PER_METHOD = {"magnitude": 9.0, "taylor": 7.0, "l1": 11.0, "random": 40.0, "gradient": 12.0, "l2": 10.0}
DENSE = {"bleu": 48.25, "chrf": 68.5, "rougeL": 60.0, "slot_error_rate": 0.08}


def figures(method: str | None, sparsity: float) -> dict[str, float]:
    """Figures of the evaluate stage; scores fall with the fourth power of the sparsity."""
    fall = 0.0 if method is None else LOSS_PER_METHOD[method] * sparsity**4
    result: dict[str, float] = {"loss": 1.5 + fall / 20, "perplexity": 4.5 + fall}
    for name, top in DENSE.items():
        score = top + 0.01 * fall if name == "slot_error_rate" else top - fall
        width = 0.01 if name == "slot_error_rate" else 1.3
        result |= {name: score, f"{name}_low": score - width, f"{name}_high": score + width}
        if method is not None:
            delta = score - top
            result |= {f"{name}_delta": delta, f"{name}_delta_low": delta - width / 2}
            result |= {f"{name}_delta_high": delta + width / 2, f"{name}_p": 0.5 if fall < 1 else 0.001}
    result |= {"length_ratio": 0.97, "exact_match": 0.11, "validation_loss": 1.4 + fall / 20}
    result |= {f"validation_{name}": DENSE[name] + 0.5 - fall for name in ("bleu", "chrf", "rougeL")}
    kept = round(900_000 * (1 - sparsity))
    sizes = {"parameters": 1_600_000, "nonzero_parameters": 700_000 + kept, "eligible_parameters": 900_000}
    return result | sizes | {"sparsity": sparsity, "size_bytes": 6_400_000, "compressed_bytes": 2_000_000 + 4 * kept}


class Project:
    """The folder, and how to change what is in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copy(ROOT / "params.yaml", folder / "params.yaml")
        self.set(["sweep", "method"], ["magnitude", "taylor", "random"])
        self.set(["sweep", "sparsity"], [0.5, 0.7, 0.9])
        self.write_json(
            "metrics/references.json",
            {
                "copy_bleu": 33.0,
                "copy_chrf": 55.0,
                "copy_rougeL": 45.0,
                "copy_slot_error_rate": 0.3,
                "human_bleu": 52.0,
                "human_chrf": 66.0,
                "human_rougeL": 58.0,
                "human_slot_error_rate": 0.05,
                "human_inputs": 99,
                "test_inputs": 3,
                "test_references": 6,
            },
        )
        self.entry("dense", None, 0.0)
        self.entry("baseline", "magnitude", 0.0)
        for method in ("magnitude", "taylor", "random"):
            for sparsity in (0.5, 0.7, 0.9):
                self.entry(f"{method}-{sparsity}", method, sparsity)

    def set(self, keys: list[str], value: Any) -> None:
        """Change one key of params.yaml."""
        yaml = YAML()
        file = self.folder / "params.yaml"
        values = yaml.load(file.read_text())
        section = values
        for key in keys[:-1]:
            section = section[key]
        section[keys[-1]] = value
        with file.open("w") as handle:
            yaml.dump(values, handle)

    def write_json(self, name: str, value: Any) -> None:
        """Write a file under outputs/."""
        file = self.folder / "outputs" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(value))

    def entry(self, key: str, method: str | None, sparsity: float, **changes: float) -> None:
        """Write all that belongs to one key."""
        self.write_json(f"metrics/evaluate/{key}.json", figures(method, sparsity) | changes)
        self.write_json(f"metrics/prune/{key}.json", {"validation_loss": 3.0 + sparsity})
        tune = self.folder / "outputs/metrics/finetune"
        tune.mkdir(parents=True, exist_ok=True)
        lines = [f"{name},100,{round(100 - 100 * sparsity)},{sparsity}" for name in LAYERS]
        (tune / f"{key}.layers.csv").write_text("layer,parameters,nonzero,sparsity\n" + "\n".join(lines) + "\n")
        (tune / f"{key}.curve.csv").write_text(
            "step,epoch,loss,validation_loss,learning_rate,sparsity\n1,0.1,3.5,,0.001,0\n2,0.2,,2.5,,\n4,0.4,,2.25,,\n"
        )
        self.predictions(key, [f"{key} says a | b", "second", ""])

    def predictions(self, key: str, outputs: list[str], sources: tuple[str, ...] = ("act ( a )", "bye", "hi")) -> None:
        """Write predictions: a test row each, and one of validation."""
        file = self.folder / f"outputs/predictions/{key}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        rows = {
            "split": ["test"] * len(outputs) + ["validation"],
            "source": [*sources, "only in validation"],
            "prediction": [*outputs, "never shown"],
            "references": [["second one", "b"], ["second"], ["three", "four", "five"], ["x"]],
        }
        table = pa.table(rows).replace_schema_metadata({"bleu": "nrefs:var|case:mixed", "chrf": "nrefs:var|nc:6"})
        pq.write_table(table, file)

    def read(self, name: str) -> str:
        """Text of a file under outputs/."""
        return (self.folder / "outputs" / name).read_text(encoding="utf-8")

    def rows(self, name: str) -> list[dict[str, str]]:
        """Rows of a CSV file under outputs/compare/."""
        return list(csv.DictReader(self.read(f"compare/{name}").splitlines()))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A finished sweep of three methods at three sparsities, entered."""
    monkeypatch.chdir(tmp_path)
    return Project(tmp_path)


@pytest.fixture
def compare(project: Project, capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """Run the command in the project and return what a person sees."""
    from stages.compare import main

    def run() -> str:
        main([])
        return capsys.readouterr().out

    return run
