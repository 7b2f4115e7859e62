"""The real pipeline on small data, run once."""

from __future__ import annotations

import project as small
import pytest
from project import KEYS, Project


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project after its first `dvc repro`. Leave it as it was."""
    made = small.make(tmp_path_factory.mktemp("first"))
    assert set(made.repro()) == {
        "clean", "reference", "train", "finetune_dense", "evaluate_dense", "evaluate_baseline", "compare",
        *(f"{stage}@{key}" for stage in ("prune", "finetune", "evaluate") for key in KEYS),
    }  # fmt: skip
    return made
