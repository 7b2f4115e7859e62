"""Tests of a file run on one worker of pytest-xdist, so that what they share is made once."""

from __future__ import annotations

import pytest


def test_tests_of_a_file_stay_together(request: pytest.FixtureRequest):
    """With versions that do not fit each other, groups are dropped without a word, and the suite takes longer."""
    grouped = request.config.getoption("loadgroup", default=False)
    assert request.node.nodeid.endswith("@test_workers") == grouped
