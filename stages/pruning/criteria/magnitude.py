"""Magnitude: |w|. Han et al. 2015, Learning both Weights and Connections, section 3."""

from __future__ import annotations

from stages.pruning.criterion import Criterion
from stages.pruning.scores import magnitudes

CRITERION = Criterion(magnitudes)
