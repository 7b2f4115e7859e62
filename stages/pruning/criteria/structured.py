"""Structured: whole layers, heads, neurons and width are removed, and what is left is a smaller dense model.

Which ones, `stages.pruning.structure` says: how many of each kind a budget leaves (`choice`), and which score lowest
(`scores`, with a source for each). Nothing is set to zero, so that what `sparsity` counts is not there at all.
"""

from __future__ import annotations

from stages.pruning.criterion import Criterion

CRITERION = Criterion(structure=True)
