"""How the experiment opens in the MLflow UI: a saved view that shows levels side by side.

MLflow's own default shows no metric at all. The view is a tag of the experiment, as the UI writes for a shared link;
its content is the UI's own business (MLflow 3.17), and a UI that does not know it shows its default.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, get_args

from stages.params import Method
from stages.tracking.pipeline import CONTROLS

VIEW = "levels"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
COLOR_TAG = "mlflow.runColor"
COLUMNS = (
    "params.`method`",
    *(
        f"metrics.`{name}`"
        for name in (
            "sparsity",
            "bleu",
            "bleu_delta",
            "chrf",
            "rougeL",
            "loss",
            "slot_error_rate",
            "compressed_bytes",
            "latency_ms_p50",
        )
    ),
)
AGAINST_SPARSITY = ("bleu", "slot_error_rate", "loss", "compressed_bytes", "latency_ms_p50")
# Okabe and Ito's colours, told apart with any kind of colour vision, then Tol's.
_COLORS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#882255", "#999933", "#332288")
_CONTROL_COLORS = ("#999999", "#222222")


def state() -> str:
    """The view, as MLflow's UI stores one: columns, order and charts."""
    return json.dumps(
        {
            "orderByKey": "metrics.`bleu`",
            "orderByAsc": False,
            "selectedColumns": COLUMNS,
            "runsHiddenMode": "SHOWALL",
            "isAccordionReordered": True,
            "compareRunSections": [{"uuid": VIEW, "name": "Levels", "display": True, "isReordered": True}],
            "compareRunCharts": list(_charts()),
        }
    )


def color(key: str) -> str:
    """Colour of a level's run: one a method, greys for baseline and dense."""
    if key in CONTROLS:
        return _CONTROL_COLORS[CONTROLS.index(key)]
    methods = get_args(Method)
    method = key.rpartition("-")[0]
    return _COLORS[(methods.index(method) if method in methods else len(methods)) % len(_COLORS)]


def link(server: str, experiment_id: str) -> str:
    """Address of the view, as charts.

    Args:
        server: address of an MLflow server.
        experiment_id: id of the experiment there.
    """
    options = f"viewStateShareKey={VIEW}&compareRunsMode=CHART&workflowType=machine_learning"
    return f"{server.rstrip('/')}/#/experiments/{experiment_id}/runs?{options}"


def _charts() -> Iterable[dict[str, Any]]:
    for name in AGAINST_SPARSITY:
        axes = {"xaxis": {"key": "sparsity", "type": "METRIC"}, "yaxis": {"key": name, "type": "METRIC"}}
        yield _chart("SCATTER", name) | axes
    curve = "finetune/loss"
    yield _chart("LINE", curve) | {
        "metricKey": curve,
        "selectedMetricKeys": [curve],
        "xAxisKey": "step",
        "xAxisScaleType": "linear",
        "yAxisKey": "metric",
        "scaleType": "linear",
        "lineSmoothness": 0,
        "useGlobalXaxisKey": True,
        "useGlobalLineSmoothing": True,
    }


def _chart(kind: str, name: str) -> dict[str, Any]:
    return {
        "type": kind,
        "uuid": f"{VIEW}-{name}",
        "metricSectionId": VIEW,
        "runsCountToCompare": 100,
        "deleted": False,
        "isGenerated": False,
    }
