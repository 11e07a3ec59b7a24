"""The dashboard's saved views of a sweep: its runs, the columns and charts that matter.

MLflow keeps shared chart views in experiment tags, `mlflow.sharedViewState.<key>`, whose form is not documented: this is
what the client code of MLflow 3.16 to 3.18 reads. A version that does not know it shows its plain page of runs.
"""

import base64
import itertools
import json
import time
import zlib
from collections.abc import Sequence
from typing import Any

from blocks.history import evenly_spaced
from blocks.measure.instruments import INSTRUMENTS
from blocks.measure.signals import NUMBERS
from experiments.run.config import CELL, SEED, Config, cell_name, flat, schedules, varied
from experiments.run.measure import MEASURES

TAG = "mlflow.sharedViewState."
RATE, LOG_RATE, DEPTH = "optimizer.learning_rate", "optimizer.log10_learning_rate", "network.depth"
# The instrument whose numbers are shares, many of them 0.
SHARE = "saturated"
# Those of the instrument `signals` that are metrics.
SIGNALS = ("update_data", "grad_data", "a_std", SHARE)
RATIO = "norm_ratio/first_over_last"
MOST_RUNS = 200
# MLflow's page fetches so many runs, and then more with every click on `Load more`.
PAGE = 100
# Gradient norms of so many blocks have a chart, of so many more in a section that is folded.
VIEWED, FOLDED = 4, 60


def norm_key(symbol: str, block: int, depth: int) -> str:
    """grad_norm/W_01 and so on, of block 0..L-1."""
    return _numbered("grad_norm", symbol, block, depth)


def norm_keys(depth: int, blocks: int | None) -> dict[int, str]:
    """Block 0..L-1 -> the metric of its gradient norm: at most `blocks` of them, evenly spaced; None is all."""
    return {block: norm_key("W", block, depth) for block in evenly_spaced(depth, blocks or depth).tolist()}


def quantity_keys(name: str, count: int, blocks: int | None) -> dict[int, str]:
    """`norm_keys` of the numbers 0..count-1 that the instrument of that name measures at a step: sharpness/lambda_01 and so on.

    Of signals a few numbers of a few blocks, of parameters none.
    """
    if name == "parameters":
        return {}
    if name != "signals":
        symbol = INSTRUMENTS[name].symbol
        return {index: _numbered(name, symbol, index, count) for index in evenly_spaced(count, blocks or count).tolist()}
    depth = count // len(NUMBERS)
    keys: dict[int, str] = {}
    for number in SIGNALS:
        # Of the last block nothing can be saturated.
        drawn = evenly_spaced(depth - (number == SHARE), min(blocks or depth, VIEWED)).tolist()
        keys |= {NUMBERS.index(number) * depth + block: _numbered(name, number, block, depth) for block in drawn}
    return keys


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
    # Of the two faces of MLflow's page the one that has trainings.
    return f"#/experiments/{experiment_id}/runs/{run_id}?workflowType=machine_learning"


def sweep_views(
    name: str, parent: str, configs: Sequence[Config], score: str, blocks: int | None, pictures: Sequence[str] = ()
) -> dict[str, str]:
    """Key -> the tag's value of the views of the sweep whose parent run that is; the key of the first is the parent's id.

    Where runs differ in seed alone the first view shows them as one, and another one every run by itself.
    A sweep of more runs than MLflow's page shows at once has a view of the runs of each of the `outcomes_apart` too, which
    stand behind the others in the first.
    configs: of its runs. score: accuracy or r2. blocks: as many blocks' norms are recorded at most; None is all.
    pictures: the keys of the images that its best run has, which is in the view of the best runs alone.
    """
    measure, swept = MEASURES[configs[0].sweep.measure], _swept(configs)
    charts, sections = _charts(configs, swept, score, blocks)
    images = [_chart("IMAGE", "pictures", imageKeys=[key], step=0, showRunParams=False) for key in pictures]
    with_images = {"pictures": ("Pictures", True), **sections} if images else sections
    columns = [*(f"params.`{key}`" for key in swept), "tags.`outcome`", f"metrics.`{measure.metric}`"]
    own = {"orderByKey": f"metrics.`{measure.metric}`", "orderByAsc": measure.is_loss, "selectedColumns": columns}
    every = f"the best {PAGE} of {len(configs)} runs: {name}" if len(configs) > PAGE else name
    views = {parent: _view(every, parent, "", own, [*images, *charts], with_images)}
    if len(configs) > PAGE:
        for outcome in outcomes_apart(configs[0]):
            views[view_key(parent, outcome)] = _view(f"{outcome} runs: {name}", parent, outcome, own, charts, sections)
    elif SEED in swept:
        # MLflow draws no picture of a run within a group.
        views[view_key(parent, "runs")] = _view(f"every run: {name}", parent, "", own, [*images, *charts], with_images)
        charts, sections = _charts(configs, [key for key in swept if key != SEED], score, blocks)
        views[parent] = _view(name, parent, "", {**own, **_grouping(configs, swept)}, charts, sections)
    return views


def outcomes_apart(config: Config) -> list[str]:
    """The outcomes that have a view of their own in a large sweep of such runs."""
    return ["stuck", "diverged", *([] if config.sweep.halving is None else ["stopped"])]


def view_key(parent: str, which: str = "") -> str:
    """The key of a sweep's view: the first one, that of an outcome, or with `runs` that of every run by itself."""
    return f"{parent}-{which}" if which else parent


def _swept(configs: Sequence[Config]) -> list[str]:
    return varied([flat(config) for config in configs])


def _grouping(configs: Sequence[Config], swept: Sequence[str]) -> dict[str, Any]:
    """What of a view's state makes MLflow show runs that differ in seed alone as one, folded: curves of the mean with the range
    as a band.
    """
    cells = dict.fromkeys(cell_name(config, swept) for config in configs)
    return {
        "groupBy": {"aggregateFunction": "average", "groupByKeys": [{"mode": "tag", "groupByData": CELL}]},
        "groupsExpanded": {f"tag.{CELL}.{cell}": False for cell in cells},
        "useGroupedValuesInCharts": True,
    }


def _charts(
    configs: Sequence[Config], swept: Sequence[str], score: str, blocks: int | None
) -> tuple[list[dict[str, Any]], dict[str, tuple[str, bool]]]:
    """The charts of what was swept, and their sections: key -> title and whether it is unfolded.

    For what no chart shows MLflow adds one, to the section that is named as the first part of the metric's name.
    """
    measure = MEASURES[configs[0].sweep.measure]
    axes = [LOG_RATE if key == RATE else key for key in swept]
    numbers = [key for key in swept if key != SEED and all(_is_number(flat(config).get(key)) for config in configs)]
    norms = [list(norm_keys(config.network.depth, blocks).values()) for config in configs]
    viewed = _spread(_recorded_by_all(norms))
    measured = {name: _measured(configs, name, blocks) for name in INSTRUMENTS}
    bounds = {"yMin": 0 if score == "accuracy" else -1, "yMax": 1}
    charts = [
        _line("losses", "loss/train", log=True),
        _line("losses", "loss/validation", log=True),
        _line("losses", f"{score}/validation", range=bounds),
        _line("losses", "loss/batch", log=True),
        _chart("PARALLEL", "sweep", selectedParams=axes, selectedMetrics=[measure.log_metric], showAllRuns=True),
    ]
    if len(numbers) > 1:
        # The depth up, and the rate across, where they are swept.
        down, across = sorted(numbers, key=lambda key: {DEPTH: -1, RATE: 1}.get(key, 0))[:: len(numbers) - 1]
        places = {"xaxis": _axis("PARAM", LOG_RATE if across == RATE else across), "yaxis": _axis("PARAM", down)}
        charts.append(_chart("CONTOUR", "sweep", **places, zaxis=_axis("METRIC", measure.log_metric)))
    charts.append(_bar("sweep", f"best/{score}_validation" if measure.is_loss else measure.metric))
    charts += [_line("norms", key, log=True) for key in (RATIO, "grad_norm/all", *viewed)]
    common = {name: _recorded_by_all(keys) for name, keys in measured.items()}
    charts += [_line("instruments", keys[0], log=name != SHARE) for name, keys in common.items() if keys]
    for part, end in itertools.product(("train", "validation"), ("final", "best")):
        charts.append(_bar(end, f"{end}/{score}_{part}"))
        # A bar's axis is linear: of losses the largest alone would be seen. A chart that is deleted MLflow does not add again.
        charts.append(_bar(end, f"{end}/loss_{part}", deleted=True))
    charts += [_bar("final", loss.log_metric) for loss in MEASURES.values() if loss.is_loss]
    shown = {chart.get("metricKey") for chart in charts}
    charts.append(_line(score, f"{score}/train", range=bounds))
    for section, keys in {"grad_norm": norms, **measured}.items():
        others = [key for key in dict.fromkeys(itertools.chain(*keys)) if key not in shown]
        charts += [_line(section, key, log=SHARE not in key) for key in others[:FOLDED]]
    sections = {
        "losses": ("Losses, log scale", True),
        "sweep": ("What was swept", True),
        "norms": ("Gradient norms, log scale", True),
        "instruments": ("Instruments", True),
        # MLflow's own names, so that what it adds is folded, too.
        **{key: (key, False) for key in ("final", "best", score, "grad_norm", *INSTRUMENTS)},
    }
    used = {chart["metricSectionId"] for chart in charts}
    return charts, {key: section for key, section in sections.items() if key in used}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _recorded_by_all(names: Sequence[Sequence[str]]) -> list[str]:
    """Those of the first run's metrics that every run has."""
    common = set(names[0]).intersection(*names[1:]) if names else set()
    return [name for name in names[0] if name in common] if names else []


def _spread(names: Sequence[str]) -> list[str]:
    """VIEWED of them, evenly spaced."""
    return [names[place] for place in evenly_spaced(len(names), VIEWED)]


def _measured(configs: Sequence[Config], name: str, blocks: int | None) -> list[list[str]]:
    """The metrics of the instrument of that name, for every run that has it."""
    runs = [config for config in configs if name in schedules(config)]
    counts = [_count(run, name) for run in runs]
    return [list(quantity_keys(name, count, blocks).values()) for count in counts]


def _count(config: Config, name: str) -> int:
    """How many numbers the instrument of that name measures at a step, where its keys depend on them."""
    depth = config.network.depth
    others = {"sharpness": config.instruments.eigenvalues, "saturated": depth - 1, "signals": len(NUMBERS) * depth}
    others["noise_scale"] = 1
    return others.get(name, depth)


def _view(
    name: str,
    parent: str,
    outcome: str,
    own: dict[str, Any],
    charts: Sequence[dict[str, Any]],
    sections: dict[str, tuple[str, bool]],
) -> str:
    """The tag's value of one view. own: the part of the page's state that is not the same in every view."""
    which = f" and tags.outcome = '{outcome}'" if outcome else ""
    state = {
        "searchFilter": f"tags.`mlflow.parentRunId` = '{parent}'{which}",
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
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
            {
                "uuid": key,
                "name": title,
                "display": unfolded,
                **({"columns": 3, "cardHeight": 400} if key == "pictures" else {"columns": 2}),
                "isReordered": True,
                "deleted": False,
                "isGenerated": False,
            }
            for key, (title, unfolded) in sections.items()
        ],
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
        **own,
    }
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode(), 9)).decode()
    now = int(1000 * time.time())
    return json.dumps({"name": name, "createdAt": now, "updatedAt": now, "state": f"deflate;{packed}"})


def _axis(kind: str, key: str) -> dict[str, str]:
    return {"key": key, "type": kind}


def _chart(kind: str, section: str, **more: Any) -> dict[str, Any]:
    named = "-".join([kind, section, str(more.get("metricKey", more.get("imageKeys", "")))])
    own = {"uuid": named, "type": kind, "metricSectionId": section, "runsCountToCompare": MOST_RUNS}
    return {**own, "deleted": False, "isGenerated": False, **more}


def _bar(section: str, metric: str, **more: Any) -> dict[str, Any]:
    return _chart("BAR", section, metricKey=metric, displayName=metric, **more)


def _line(section: str, metric: str, log: bool = False, **more: Any) -> dict[str, Any]:
    own = {
        "metricKey": metric,
        "selectedMetricKeys": [metric],
        "xAxisKey": "step",
        "selectedXAxisMetricKey": "",
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "xAxisScaleType": "linear",
        "scaleType": "log" if log else "linear",
        "range": {},
        "lineSmoothness": 0,
        "useGlobalLineSmoothing": True,
        "useGlobalXaxisKey": True,
        "ignoreOutliers": False,
    }
    return _chart("LINE", section, **{**own, **more})
