"""A project after a sweep, and copies of it to change."""

from __future__ import annotations

from pathlib import Path

import pytest
from half_second_stages import Project
from shared import copy_of


@pytest.fixture(scope="session")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, str]:
    """A project swept by two processes, and what that printed. Do not change."""
    project = Project(tmp_path_factory.mktemp("swept") / "project")
    status, out, err = project.sweep("-j", "2")
    assert status == 0, out + err
    return project, out


@pytest.fixture
def again(swept: tuple[Project, str], tmp_path: Path) -> Project:
    """A copy of `swept`, to change; its log is empty."""
    return copy_of(swept[0], tmp_path / "project", tmp_path / "project.log")
