"""A project that looks as if the whole pipeline had run, without having run it."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from stages import fingerprints
from stages.tracking.pipeline import leaves, md5_of

REPOSITORY = Path(__file__).parents[2]
DATA = [f"outputs/data/{split}.parquet" for split in ("train", "validation", "test")]
BASELINE = "outputs/models/baseline"
LEVEL = "${item.method}-${item.sparsity}"
STAGES: dict[str, Any] = {
    "clean": {
        "cmd": "python -m stages.clean",
        "deps": ["outputs/code/clean.json", "${data.path}"],
        "params": ["data", "clean"],
        "outs": [*DATA, "outputs/metrics/clean.json"],
    },
    "train": {
        "cmd": "python -m stages.train",
        "deps": ["outputs/code/train.json", "data/checkpoints", *DATA[:2]],
        "params": ["model", "train", "runtime"],
        "outs": [BASELINE, "outputs/metrics/train.json", "outputs/metrics/train.curve.csv"],
    },
    "reference": {
        "cmd": "python -m stages.reference",
        "deps": ["outputs/code/reference.json", *DATA],
        "params": ["data.language"],
        "outs": ["outputs/metrics/references.json"],
    },
    "prune": {
        "matrix": {"method": "${sweep.method}", "sparsity": "${sweep.sparsity}"},
        "cmd": "python -m stages.prune ${key}",
        "deps": ["outputs/code/prune.json", "stages/criteria/${item.method}.py", BASELINE, *DATA[:2]],
        "params": ["runtime", "prune.scope", "prune.calibration", "prune.${item.method}"],
        "outs": [f"outputs/models/pruned/{LEVEL}", f"outputs/metrics/prune/{LEVEL}.json"],
    },
    "finetune": {
        "matrix": {"method": "${sweep.method}", "sparsity": "${sweep.sparsity}"},
        "cmd": "python -m stages.finetune ${key}",
        "deps": ["outputs/code/finetune.json", BASELINE, f"outputs/models/pruned/{LEVEL}", *DATA[:2]],
        "params": ["runtime", "prune.scope", "finetune"],
        "outs": [
            f"outputs/models/finetuned/{LEVEL}",
            f"outputs/metrics/finetune/{LEVEL}.json",
            f"outputs/metrics/finetune/{LEVEL}.curve.csv",
        ],
    },
    "finetune_dense": {
        "cmd": "python -m stages.finetune dense",
        "deps": ["outputs/code/finetune.json", BASELINE, *DATA[:2]],
        "params": ["runtime", "finetune"],
        "outs": [
            "outputs/models/finetuned/dense",
            "outputs/metrics/finetune/dense.json",
            "outputs/metrics/finetune/dense.curve.csv",
        ],
    },
    "evaluate_dense": {
        "cmd": "python -m stages.evaluate dense",
        "deps": ["outputs/code/evaluate.json", "outputs/models/finetuned/dense", *DATA],
        "params": ["runtime", "evaluate"],
        "outs": ["outputs/metrics/evaluate/dense.json", "outputs/predictions/dense.parquet"],
    },
    "evaluate_baseline": {
        "cmd": "python -m stages.evaluate baseline",
        "deps": ["outputs/code/evaluate.json", BASELINE, "outputs/predictions/dense.parquet", *DATA],
        "params": ["runtime", "evaluate"],
        "outs": ["outputs/metrics/evaluate/baseline.json"],
    },
    "evaluate": {
        "matrix": {"method": "${sweep.method}", "sparsity": "${sweep.sparsity}"},
        "cmd": "python -m stages.evaluate ${key}",
        "deps": [
            "outputs/code/evaluate.json",
            f"outputs/models/finetuned/{LEVEL}",
            "outputs/predictions/dense.parquet",
            *DATA,
        ],
        "params": ["runtime", "evaluate"],
        "outs": [f"outputs/metrics/evaluate/{LEVEL}.json"],
    },
    "compare": {"cmd": "python -m stages.compare", "deps": ["outputs/code/compare.json"], "outs": ["outputs/compare"]},
    "export": {
        "cmd": "python -m stages.export",
        "deps": ["outputs/code/export.json"],
        "outs": ["outputs/export", "outputs/metrics/export.json"],
    },
    "benchmark": {
        "cmd": "python -m stages.benchmark",
        "deps": ["outputs/code/benchmark.json", "outputs/export"],
        "outs": ["outputs/benchmark/speed.csv"],
    },
}
SCRIPTS = ("clean", "train", "reference", "prune", "finetune", "evaluate", "compare", "export", "benchmark")
LEVELS = [f"{method}-{sparsity}" for method in ("magnitude", "l1") for sparsity in (0.5, 0.9)]
ALL = 3 + len(LEVELS)
"""Runs of a sweep: the revision's, baseline's, dense's, and those of its levels."""


class Sweep:
    """A workspace with dvc.yaml, params.yaml, code, metrics files and the dvc.lock that goes with them."""

    def __init__(self, root: Path, levels: list[str] | None = None) -> None:
        self.root = root
        self.levels = LEVELS if levels is None else levels
        root.mkdir(parents=True, exist_ok=True)
        self.params: dict[str, Any] = YAML(typ="safe").load(REPOSITORY / "params.yaml")
        self._save("params.yaml", self.params)
        self._save("dvc.yaml", {"stages": STAGES})
        for script in SCRIPTS:
            self.write(f"stages/{script}.py", f"# {script}\n")
        for method in {level.rpartition("-")[0] for level in self.levels}:
            self.write(f"stages/criteria/{method}.py", f"# {method}\n")
        self.write("data/raw/multiwoz.csv.gz", "rows")
        self.write("data/checkpoints/README.md", "none")
        self.lock: dict[str, Any] = {}

    def write(self, path: str, text: str) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text)

    def set(self, name: str, value: Any) -> None:
        """Change a param, as an edit of params.yaml does."""
        *path, last = name.split(".")
        section = self.params
        for part in path:
            section = section[part]
        section[last] = value
        self._save("params.yaml", self.params)

    def run_all(self) -> None:
        self.run("clean", "train", "reference", "finetune_dense", "evaluate_dense", "evaluate_baseline")
        self.run(*(f"{stage}@{key}" for key in self.levels for stage in ("prune", "finetune", "evaluate")))
        self.run("compare", "export", "benchmark")

    def run(self, *names: str) -> None:
        """Record stages as DVC would after running them, with the code as it is."""
        self.write_fingerprints()
        for name in names:
            self._record(name)
        self.write_lock()

    def write_fingerprints(self) -> None:
        """As the stage `code` does."""
        for script in SCRIPTS:
            module = f"stages/{script}.py"
            self.write(f"outputs/code/{script}.json", fingerprints.text({module: md5_of(self.root, module)}))

    def write_lock(self) -> None:
        self._save("dvc.lock", {"schema": "2.0", "stages": self.lock})

    def _save(self, path: str, value: Any) -> None:
        # JSON is YAML, and written much faster.
        self.write(path, json.dumps(value) + "\n")

    def _record(self, name: str) -> None:
        """Outputs that depend on all inputs, and the lock entry."""
        stage, _, key = name.partition("@")
        method, _, sparsity = key.rpartition("-")
        values = {"${item.method}": method, "${item.sparsity}": sparsity, "${key}": key}
        values["${data.path}"] = self.params["data"]["path"]

        def fill(text: str) -> str:
            for template, value in values.items():
                text = text.replace(template, value)
            return text

        declared = STAGES[stage]
        names = [fill(item) for item in declared.get("params", ())]
        params = {n: v for n, v in leaves(self.params) if any(f"{n}.".startswith(f"{name}.") for name in names)}
        deps = [self._md5(fill(path)) for path in declared["deps"]]
        cause = json.dumps([params, deps], sort_keys=True, default=str)
        outs = []
        for path in map(fill, declared["outs"]):
            self.write(path, output(path, cause))
            outs.append(self._md5(path))
        self.lock[name] = {"cmd": fill(declared["cmd"]), "deps": deps, "outs": outs}
        if params:
            self.lock[name]["params"] = {"params.yaml": params}

    def _md5(self, path: str) -> dict[str, Any]:
        if (self.root / path).is_dir():
            return {"path": path, "hash": "md5", "md5": md5_of(self.root, path), "size": 1, "nfiles": 1}
        data = (self.root / path).read_bytes()
        return {"path": path, "hash": "md5", "md5": hashlib.md5(data).hexdigest(), "size": len(data)}


def output(path: str, cause: str) -> str:
    key = Path(path).name.removesuffix(".json").removesuffix(".curve.csv")
    noise = int(hashlib.md5(cause.encode()).hexdigest()[:4], 16) / 65536
    sparsity = float(key.rpartition("-")[2]) if key.rpartition("-")[2].startswith("0.") else 0.0
    figures = _figures(path, sparsity, noise)
    if path.endswith(".curve.csv"):
        return _curve(noise)
    if path.endswith("speed.csv"):
        rows = [(key, key, "pytorch", 31 + noise, 6_600_000) for key in ("dense", "baseline", *LEVELS)]
        rows.append(("onnx", LEVELS[0], "onnx", 7 + noise, 7_300_000))
        lines = [",".join(map(str, row)) for row in rows]
        return "\n".join(["key,level,runtime,latency_ms_p50,size_bytes", *lines]) + "\n"
    return json.dumps(figures) if path.endswith(".json") else f"{path} {cause}"


def _figures(path: str, sparsity: float, noise: float) -> dict[str, float]:
    counts = {"sparsity": sparsity, "parameters": 1_648_720, "nonzero_parameters": 1_648_720 - int(sparsity * 1e6)}
    if "clean" in path:
        return {"read": 22_500, "kept": 22_490, "rejected": 10}
    if "references" in path:
        return {"copy_bleu": 12.1 + noise, "human_bleu": 61.0}
    if "/prune/" in path:
        return counts | {"validation_loss_before": 1.1, "validation_loss_after": 1.1 + 4 * sparsity + noise}
    if "/finetune/" in path:
        return counts | {"loss": 1.12 + sparsity**3, "steps": 282}
    if "export" in path:
        return {"onnx/bleu": 30 + noise, "onnx/same_outputs": 1.0}
    if "train" in path:
        return {"loss": 1.1 + noise / 9, "steps": 2250, "epochs": 8.0, "parameters": 1_648_720}
    bleu = 31 - 9 * sparsity**4 + noise
    scores = {"bleu": bleu, "bleu_low": bleu - 1, "bleu_high": bleu + 1, "chrf": bleu + 22, "rougeL": bleu + 18}
    scores |= {"loss": 1.15 + sparsity**3, "perplexity": math.exp(1.15 + sparsity**3), "slot_error_rate": 0.04}
    return scores | counts | {"size_bytes": 6_600_000, "compressed_bytes": int(6_000_000 * (1 - 0.8 * sparsity))}


def _curve(noise: float) -> str:
    rows = ["step,epoch,loss,validation_loss,learning_rate,sparsity"]
    for step in range(7, 283, 7):
        validation = f"{1.1 + noise / 9 + 2 / step:.7g}" if step % 140 == 0 else ""
        rows.append(f"{step},{step / 282:.7g},{1.1 + noise / 9 + 3 / step:.7g},{validation},{1e-3 / step:.7g},")
    return "\n".join(rows) + "\n"
