"""Which kernels oneDNN takes: those that other processors have too, unless params or the user say otherwise."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

CODE = """
import sys
from stages.params import Runtime
from stages.runtime import prepare
if sys.argv[1:]:
    prepare(Runtime(seed=1, threads=1, precision="auto", instructions=sys.argv[1]))
import torch
matrix = torch.ones(32, 32, dtype=torch.bfloat16)
matrix @ matrix
"""


def kernels(*arguments: str, most: str | None = None) -> str:
    """The instructions that oneDNN says it uses."""
    variables = {name: value for name, value in os.environ.items() if name != "ONEDNN_MAX_CPU_ISA"}
    variables |= {"ONEDNN_VERBOSE": "1"} | ({"ONEDNN_MAX_CPU_ISA": most} if most else {})
    said = subprocess.run(
        [sys.executable, "-c", CODE, *arguments], env=variables, capture_output=True, text=True, check=True
    ).stdout
    found = re.search(r"info,cpu,isa:(.+)", said)
    if found is None:
        pytest.skip("bf16 is not computed by oneDNN here")
    return found[1]


def test_portable_is_what_has_no_amx_and_native_is_everything() -> None:
    portable = kernels("portable")
    assert portable == kernels(most="AVX512_CORE_BF16") and "AMX" not in portable
    assert kernels("native") == kernels()
    assert kernels("portable", most="AVX2") == kernels(most="AVX2")
