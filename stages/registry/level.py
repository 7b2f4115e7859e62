"""What is known of one finished level: its files, each proved to be the one that dvc.lock has, and their origin."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from stages import fingerprints, layout, params
from stages.errors import UserError
from stages.files import read_json
from stages.params import Evaluate
from stages.tracking.client import git
from stages.tracking.identity import Run, in_lock
from stages.tracking.pipeline import CONTROLS, Entry, Pipeline, md5_of

FILES = ("dvc.yaml", "dvc.lock", str(params.PARAMS_FILE), "constraints.txt")
"""What a commit needs to make a level again, beside the files that dvc.lock names."""
Figures = Mapping[str, Any]


@dataclass(frozen=True)
class Finished:
    """A level, dense or baseline as dvc.lock and the files have it."""

    pipeline: Pipeline
    run: Run
    """In MLflow."""
    revision: Run
    """The parent of it."""

    @classmethod
    def find(cls, key: str, root: Path) -> Finished:
        """The level of that key; `chosen` is the one that `compare` chose.

        Args:
            key: a level, `dense`, `baseline` or `chosen`.
            root: the folder with dvc.yaml.

        Raises:
            UserError: dvc.lock has no such level, not up to its evaluation, or not as the workspace's code, params and
                data make it.
        """
        if key == layout.CHOSEN:
            key = layout.chosen(root)
        elif key not in CONTROLS:
            key = layout.Level.parse(key).key
        pipeline = Pipeline(root)
        runs = in_lock(pipeline)
        run = next((run for run in runs if run.key == key and "evaluate" in {e.stage for e in run.entries}), None)
        if run is None:
            have = ", ".join(dict.fromkeys(run.key for run in runs if run.key)) or "none"
            raise UserError(f"{key} is not evaluated in dvc.lock, which has {have}: run `dvc repro {target(key)}`")
        identity = run.revision.identity
        found = cls(pipeline, run, next(r for r in runs if r.key is None and r.revision.identity == identity))
        if changed := found._changed():
            more = f" and {len(changed) - 1} more" * (len(changed) > 1)
            raise UserError(
                f"{key} was made before {changed[0]}{more} changed, and is not what this commit makes: run `dvc repro "
                f"{target(key)}`, or check out the commit that it was made by"
            )
        return found

    @property
    def key(self) -> str:
        """Its key."""
        assert self.run.key is not None
        return self.run.key

    @property
    def level(self) -> layout.Level | None:
        """Method and sparsity; None for dense and baseline."""
        return None if self.key in CONTROLS else layout.Level.parse(self.key)

    @cached_property
    def entries(self) -> dict[str, Entry]:
        """What dvc.lock has of what it is made by: `clean`, `train`, and its own stages."""
        of_others = {e.stage: e for e in self.pipeline.current_entries() if e.name in ("clean", "train")}
        return of_others | {entry.stage: entry for entry in self.run.entries}

    @cached_property
    def params(self) -> dict[str, Any]:
        """Dotted name → value, of all these stages."""
        return {name: value for entry in self.entries.values() for name, value in entry.params.items()}

    @property
    def maker(self) -> str:
        """The stage that leaves its checkpoint."""
        return "train" if self.key == layout.BASELINE else "finetune"

    @cached_property
    def checkpoint(self) -> Path:
        """The folder of the model.

        Raises:
            UserError: it is missing, or is not the one that dvc.lock has.
        """
        return self.proved(self.entries[self.maker], layout.model_folder(self.key))

    @cached_property
    def baseline(self) -> Path:
        """The folder of the model before any pruning.

        Raises:
            UserError: as for the checkpoint.
        """
        return self.proved(self.entries["train"], layout.model_folder(layout.BASELINE))

    @property
    def checkpoint_md5(self) -> str:
        """As dvc.lock has it."""
        return self.entries[self.maker].outs[str(layout.model_folder(self.key))]

    @cached_property
    def figures(self) -> Figures:
        """Of its evaluation."""
        return self._read(self.entries["evaluate"], layout.metrics_file("evaluate", self.key))

    @cached_property
    def baseline_parameters(self) -> int:
        """Parameters of the model before any pruning."""
        return self._read(self.entries["train"], layout.metrics_file("train"))["parameters"]

    @property
    def is_smaller(self) -> bool:
        """Whether parts of it were removed."""
        return self.figures["parameters"] < self.baseline_parameters

    @cached_property
    def controls(self) -> dict[str, Figures]:
        """Of dense's and the baseline's evaluation, where dvc.lock has them."""
        made = {e.key: e for e in self.pipeline.current_entries() if e.stage == "evaluate" and e.key in CONTROLS}
        return {
            key: self._read(made[key], layout.metrics_file("evaluate", key))
            for key in (layout.DENSE, layout.BASELINE)
            if key in made
        }

    @cached_property
    def cleaned(self) -> Figures:
        """What cleaning counted."""
        return self._read(self.entries["clean"], layout.metrics_file("clean"))

    @cached_property
    def references(self) -> Figures:
        """The reference lines; none if dvc.lock has none."""
        entry = next((e for e in self.pipeline.current_entries() if e.name == "reference"), None)
        return {} if entry is None else self._read(entry, layout.metrics_file("references"))

    @cached_property
    def predictions(self) -> Path:
        """Its outputs for the test split.

        Raises:
            UserError: as for the checkpoint.
        """
        return self.proved(self.entries["evaluate"], layout.predictions_file(self.key))

    @cached_property
    def config(self) -> dict[str, Any]:
        """The config of its model."""
        return json.loads((self.checkpoint / "config.json").read_text(encoding="utf-8"))

    @cached_property
    def evaluation(self) -> dict[str, Any]:
        """The params of its evaluation, by their names in that section."""
        values = self.pipeline.inputs("evaluate", self.key, self.entries["evaluate"]).params
        prefix = "evaluate."
        return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}

    @cached_property
    def decoding(self) -> dict[str, Any]:
        """Arguments of `model.generate` that it was evaluated with."""
        from stages.evaluation.generation import decoding

        return decoding(Evaluate.model_construct(**self.evaluation))

    @cached_property
    def signatures(self) -> dict[str, str]:
        """How each metric was computed."""
        from stages.evaluation.samples import read_signatures

        return read_signatures(self.predictions)

    def answers(self, count: int) -> tuple[list[str], list[str]]:
        """The first inputs of the test split, and its outputs."""
        from stages.evaluation.samples import read_test

        sources, outputs, _ = read_test(self.predictions)
        return sources[:count], outputs[:count]

    def inputs(self, count: int) -> list[str]:
        """The first inputs of the test split."""
        return self.answers(count)[0]

    @property
    def lock(self) -> str:
        """Hash of what dvc.lock has of that stage."""
        return self.entries[self.maker].digest

    @cached_property
    def commit(self) -> str:
        """HEAD; nothing outside git."""
        return git("rev-parse", "HEAD", folder=self.pipeline.root)

    @cached_property
    def uncommitted(self) -> list[str]:
        """What it is made by that is not as HEAD has it: code, params, data that git keeps, dvc.lock, versions."""
        paths = {path for entry in self.entries.values() for path in entry.deps}
        sources = [path for path in paths if not Path(path).is_relative_to(layout.OUTPUTS)]
        code = [path for path in paths if fingerprints.is_fingerprint(path)]
        named = (name for path in code for name in fingerprints.named(self.pipeline.root, path))
        sources += [*code, *(name for name in named if not fingerprints.is_library(name))]
        sources += [f"{path}.dvc" for path in sources]
        lines = git("status", "--porcelain", "-uall", "--", *FILES, *sources, folder=self.pipeline.root).splitlines()
        return sorted(line.split(maxsplit=1)[1] for line in lines)

    def _changed(self) -> list[str]:
        """Params and files that are not as they were when its stages ran."""
        changed: dict[str, None] = {}
        for entry in self.entries.values():
            now = self.pipeline.inputs(entry.stage, entry.key)
            changed |= dict.fromkeys(name for name, value in now.params.items() if entry.params.get(name) != value)
            lost = [path for path in entry.deps if fingerprints.is_fingerprint(path) and path not in now.files]
            for path in (*lost, *(path for path, md5 in now.files.items() if entry.deps.get(path) != md5)):
                changed |= dict.fromkeys(fingerprints.edited(self.pipeline.root, path) or [path])
        return list(changed)

    def _read(self, entry: Entry, path: Path) -> Figures:
        return read_json(self.proved(entry, path))

    def proved(self, entry: Entry, path: Path) -> Path:
        """A path in the workspace, if what is there is what an entry of dvc.lock has.

        Raises:
            UserError: it is not, or is missing.
        """
        root = self.pipeline.root
        if not (root / path).exists():
            raise UserError(f"{path} is missing: run `dvc pull {entry.name}`, or `dvc repro {entry.name}`")
        if md5_of(root, str(path)) != entry.outs.get(str(path)):
            raise UserError(
                f"{path} is not the one that dvc.lock has: run `dvc checkout --force {path}`, or `dvc repro`"
            )
        return root / path


def target(key: str) -> str:
    """The DVC stage that ends with a key's evaluation."""
    return f"evaluate_{key}" if key in CONTROLS else f"evaluate@{key}"
