"""Bring the module deps in dvc.yaml up to date with the imports.

python tests/write_deps.py
"""

from __future__ import annotations

from ruamel.yaml import YAML
from test_graph import ROOT, wanted_modules

if __name__ == "__main__":
    yaml = YAML()
    yaml.width = 120
    yaml.indent(mapping=2, sequence=4, offset=2)
    graph = yaml.load(ROOT / "dvc.yaml")
    for stage in graph["stages"].values():
        others = [dep for dep in stage["deps"] if not dep.startswith("stages/")]
        wanted = sorted(wanted_modules(stage))
        stage["deps"].clear()
        stage["deps"].extend(others + wanted)
    yaml.dump(graph, ROOT / "dvc.yaml")
