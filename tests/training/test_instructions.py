"""Which kernels oneDNN takes: those that other processors have too, unless params or the user say otherwise."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
import torch

from stages import machine
from stages.params import Runtime

CODE = """
import sys
from stages.params import Runtime
from stages.runtime import prepare
if sys.argv[1:]:
    prepare(Runtime(seed=1, threads=1, processes=1, precision="auto", instructions=sys.argv[1]))
import torch
matrix = torch.ones(8, 8).to_mkldnn()
matrix + matrix
"""


def kernels(*arguments: str, most: str | None = None) -> str:
    """The instructions that oneDNN says it uses."""
    variables = {name: value for name, value in os.environ.items() if name != "ONEDNN_MAX_CPU_ISA"}
    variables |= {"ONEDNN_VERBOSE": "1"} | ({"ONEDNN_MAX_CPU_ISA": most} if most else {})
    said = subprocess.run(
        [sys.executable, "-c", CODE, *arguments], env=variables, capture_output=True, text=True, check=True
    ).stdout
    found = re.search(r"info,cpu,isa:(.+)", said)
    assert found, "oneDNN says nothing of itself"
    return found[1]


def test_a_sweep_says_what_it_leaves_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def said(instructions: str, precision: str = "auto") -> str | None:
        runtime = Runtime.model_validate(
            {"seed": 1, "threads": 1, "processes": 1, "precision": precision, "instructions": instructions},
            strict=False,
        )
        return machine.left_alone(runtime)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    assert "native" in (said("portable") or "")
    assert said("native") is None and said("portable", "fp32") is None
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert said("portable") is None


def test_portable_is_what_has_no_amx_and_native_is_everything() -> None:
    portable = kernels("portable")
    assert portable == kernels(most="AVX512_CORE_BF16") and "AMX" not in portable
    assert kernels("native") == kernels()
    assert kernels("portable", most="AVX2") == kernels(most="AVX2")
