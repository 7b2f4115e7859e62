"""A tiny project in a folder of its own, for the commands that train."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ruamel.yaml import YAML
from shared import SOURCES, TARGETS

from stages import layout


@pytest.fixture
def project(tmp_path, monkeypatch, settings, build_family) -> Callable[..., None]:
    """`project(family, **params)`: sets up params, data and a baseline in an empty folder, which is the current one."""
    monkeypatch.chdir(tmp_path)

    def make(family: str = "bert", **params: Any) -> None:
        small = {"batch_size": 8, "gradient_accumulation": 1, "epochs": 3.0, "refresh_steps": 2, "learning_rate": 0.01}
        made = {**params, "finetune": {**small, **params.get("finetune", {})}}
        YAML().dump(settings(**made).model_dump(), tmp_path / "params.yaml")
        layout.DATA.mkdir(parents=True)
        for split, times in {"train": 6, "validation": 1}.items():
            columns = {"source": SOURCES * times, "target": TARGETS * times}
            pq.write_table(pa.table(columns), layout.DATA / f"{split}.parquet")
        from stages.models import checkpoint

        checkpoint.save(build_family(family), layout.model_folder("baseline"))

    return make
