"""A pickle runs what its maker put into it: nothing reads one from a file, and checkpoints that are one are refused."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest
from shared import ROOT

MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
SENT = ROOT / "stages/cluster"
"""The processes of one Dask cluster send each other code, and so pickles; docs/cluster.md says who may reach them."""
CALLS = {"read_pickle", "load_pickle", "unsafe_load", "full_load"}


def findings(code: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.partition(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in MODULES:
            yield str(node.module)
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            given = {word.arg: ast.unparse(word.value) for word in node.keywords}
            if called in ("torch.load", "np.load", "numpy.load") and given.get("weights_only") != "True":
                yield called
            if called.rpartition(".")[2] in CALLS or "True" in (
                given.get("allow_pickle"),
                given.get("trust_remote_code"),
            ):
                yield called
            if called.rpartition(".")[2] == "YAML" and given.get("typ") not in (None, "'safe'", "'rt'"):
                yield f"{called}({given['typ']})"


@pytest.mark.parametrize(
    "code",
    [
        "import pickle", "from joblib import load", "torch.load(f)", "torch.load(f, weights_only=False)", "np.load(f)",
        "pd.read_pickle(f)", "AutoConfig.from_pretrained(f, trust_remote_code=True)", "YAML(typ='unsafe').load(f)",
    ],
)  # fmt: skip
def test_what_is_found(code: str) -> None:
    assert list(findings(code))


def test_no_module_reads_one() -> None:
    files = [path for folder in ("stages", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]
    files = [path for path in files if SENT not in path.parents]
    found = {str(path.relative_to(ROOT)): said for path in files if (said := list(findings(path.read_text())))}
    assert len(files) > 100
    assert found == {}
