"""How a command refuses what it is given."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest


def refused(capsys: pytest.CaptureFixture[str], run: Callable[[], Any]) -> str:
    """What a command says as it refuses: one line, and an exit status other than 0; argparse adds its usage."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        run()
    said = capsys.readouterr().err
    assert ended.value.code not in (0, None), said
    assert "Traceback" not in said
    usage = re.match(r"usage: .*?(?=^\S+( -m \S+)?: error: )", said, re.DOTALL | re.MULTILINE)
    line = said[usage.end() :] if usage else said
    assert line.count("\n") == 1 and re.match(r"(\S+ -m \S+: )?error: \S", line), said
    return line.strip()
