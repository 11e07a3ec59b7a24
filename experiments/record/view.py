"""The dashboard's saved view of a sweep: its runs alone, the columns and charts that matter.

MLflow keeps shared chart views in experiment tags, `mlflow.sharedViewState.<key>`, whose form is not documented: this is
what the client code of MLflow 3.16 to 3.18 reads. A version that does not know it shows its plain page of runs.
"""

import base64
import json
import time
import zlib
from collections.abc import Sequence
from typing import Any

from blocks.instruments import INSTRUMENTS

TAG = "mlflow.sharedViewState."
RATE, LOG_RATE, DEPTH, FINAL = "optimizer.learning_rate", "optimizer.log10_learning_rate", "network.depth", "final/loss_train"
MOST_RUNS = 200


def norm_key(symbol: str, block: int, depth: int) -> str:
    """grad_norm/W_01 and so on, of block 0..L-1."""
    return _numbered("grad_norm", symbol, block, depth)


def quantity_key(name: str, index: int, count: int) -> str:
    """sharpness/lambda_01 and so on, of the numbers 0..count-1 that the instrument of that name measures."""
    return _numbered(name, INSTRUMENTS[name].symbol, index, count)


def _numbered(name: str, symbol: str, index: int, count: int) -> str:
    # Zero-padded, so that the names sort by depth.
    return f"{name}/{symbol}_{index + 1:0{max(2, len(str(count)))}}"


def link(experiment_id: str, key: str = "") -> str:
    """The page that opens the view of that key, or without one the experiment's runs; what follows the server's address.

    Sorted by a metric, MLflow's page shows a sweep's runs; sorted by date it hides them behind their parent. A view has an
    order of its own, which one in the link would put out of force, with all the rest of the view.
    """
    shown = f"viewStateShareKey={key}" if key else "orderByKey=metrics.%60final%2Floss_train%60&orderByAsc=true"
    return f"#/experiments/{experiment_id}/runs?workflowType=machine_learning&compareRunsMode=CHART&{shown}"


def run_link(experiment_id: str, run_id: str) -> str:
    """The page of one run, as `link` has it."""
    return f"#/experiments/{experiment_id}/runs/{run_id}"


def saved_view(name: str, parent: str, swept: Sequence[str], score: str, blocks: Sequence[str], measured: Sequence[str]) -> str:
    """The tag's value: the view of the sweep whose parent run that is.

    swept: the keys that differ between its runs. score: accuracy or r2. blocks: names of the gradient norms' metrics.
    measured: names of the instruments' metrics.
    """
    axes = [LOG_RATE if key == RATE else key for key in swept]
    sections = {
        "losses": "Losses, log scale",
        "sweep": "What was swept, and what came of it",
        "norms": "Gradient norms by block, log scale",
        "instruments": "Instruments",
    }
    charts = [
        _line("losses", "loss/train", log=True),
        _line("losses", "loss/validation", log=True),
        _line("losses", f"{score}/validation"),
        _chart("PARALLEL", "sweep", selectedParams=axes, selectedMetrics=[FINAL], showAllRuns=True),
    ]
    if len(axes) > 1:
        across, down = (axes[1], axes[0]) if axes[0] == DEPTH else (axes[0], axes[1])
        places = {"xaxis": _axis("PARAM", across), "yaxis": _axis("PARAM", down), "zaxis": _axis("METRIC", FINAL)}
        charts.append(_chart("CONTOUR", "sweep", **places))
    charts.append(_chart("BAR", "sweep", metricKey=FINAL, displayName="final training loss"))
    charts += [_line("norms", key, log=True) for key in blocks]
    charts += [_line("instruments", key) for key in measured]
    state = {
        "searchFilter": f"tags.`mlflow.parentRunId` = '{parent}'",
        "orderByKey": f"metrics.`{FINAL}`",
        "orderByAsc": True,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": [*(f"params.`{key}`" for key in swept), "tags.`outcome`", f"metrics.`{FINAL}`"],
        "columnOrder": [],
        "columnWidths": {},
        "runsHiddenMode": "SHOW_ALL",
        "viewMaximized": False,
        "runListHidden": False,
        "isAccordionReordered": True,
        "useGroupedValuesInCharts": False,
        "hideEmptyCharts": True,
        "groupBy": None,
        "groupsExpanded": {},
        "compareRunCharts": charts,
        "compareRunSections": [
            {"uuid": key, "name": title, "display": True, "isReordered": True, "deleted": False, "isGenerated": False}
            for key, title in sections.items()
        ],
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
    }
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
    now = int(1000 * time.time())
    return json.dumps({"name": name, "createdAt": now, "updatedAt": now, "state": f"deflate;{packed}"})


def _axis(kind: str, key: str) -> dict[str, str]:
    return {"key": key, "type": kind}


def _chart(kind: str, section: str, **more: Any) -> dict[str, Any]:
    named = "-".join([kind, section, str(more.get("metricKey", ""))])
    own = {"uuid": named, "type": kind, "metricSectionId": section, "runsCountToCompare": MOST_RUNS}
    return {**own, "deleted": False, "isGenerated": False, **more}


def _line(section: str, metric: str, log: bool = False) -> dict[str, Any]:
    return _chart(
        "LINE",
        section,
        metricKey=metric,
        selectedMetricKeys=[metric],
        xAxisKey="step",
        selectedXAxisMetricKey="",
        yAxisKey="metric",
        yAxisExpressions=[],
        xAxisScaleType="linear",
        scaleType="log" if log else "linear",
        range={},
        lineSmoothness=0,
        useGlobalLineSmoothing=True,
        useGlobalXaxisKey=True,
        ignoreOutliers=False,
    )
