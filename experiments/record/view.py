"""The saved views of a sweep on the dashboard: which runs, columns and charts MLflow's page shows.

MLflow stores shared views in the experiment's tags, `mlflow.sharedViewState.<key>`. Their form is not documented; this is what
the client code of MLflow 3.16 to 3.18 reads. A version that does not know it shows its plain page of runs.
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
from experiments.run.config import CELL, Config, schedules
from experiments.run.measure import MEASURES
from experiments.run.naming import SEED, cell_name, differing_keys, flatten

TAG = "mlflow.sharedViewState."
RATE, LOG_RATE, DEPTH = "optimizer.learning_rate", "optimizer.log10_learning_rate", "network.depth"
# The instrument whose numbers are fractions, many of them 0, so that its charts have no log scale.
SHARE = "saturated"
# The numbers of the instrument `signals` that become metrics.
SIGNALS = ("update_data", "grad_data", "a_std", SHARE)
RATIO = "norm_ratio/first_over_last"
MAX_RUNS = 200
# The number of runs that MLflow's page loads at first, and with every click on `Load more`.
PAGE = 100
# The most metrics of an instrument with open charts, and the most further ones with charts in a folded section.
MAX_CHARTS, MAX_FOLDED_CHARTS = 4, 60


def norm_key(symbol: str, block: int, depth: int) -> str:
    """Return the metric's name of a gradient norm, such as grad_norm/W_01. symbol: W or b. block: 0..L-1. depth: L."""
    return _numbered_key("grad_norm", symbol, block, depth)


def norm_keys(depth: int, blocks: int | None) -> dict[int, str]:
    """Return block 0..L-1 -> the metric of its gradient norm. blocks: the most blocks, evenly spaced; None is all."""
    return {block: norm_key("W", block, depth) for block in evenly_spaced(depth, blocks or depth).tolist()}


def quantity_keys(name: str, count: int, blocks: int | None) -> dict[int, str]:
    """Return number 0..count-1 of an instrument -> its metric, such as sharpness/lambda_01.

    Of signals there are a few numbers of a few blocks, of parameters none.

    name: of the instrument. count: how many numbers it measures at a step. blocks: as in `norm_keys`.
    """
    if name == "parameters":
        return {}
    if name != "signals":
        symbol = INSTRUMENTS[name].symbol
        return {index: _numbered_key(name, symbol, index, count) for index in evenly_spaced(count, blocks or count).tolist()}
    depth = count // len(NUMBERS)
    keys: dict[int, str] = {}
    for number in SIGNALS:
        # The last block has no saturated units.
        viewed_blocks = evenly_spaced(depth - (number == SHARE), min(blocks or depth, MAX_CHARTS)).tolist()
        keys |= {NUMBERS.index(number) * depth + block: _numbered_key(name, number, block, depth) for block in viewed_blocks}
    return keys


def _numbered_key(name: str, symbol: str, index: int, count: int) -> str:
    # The number is zero-padded, so that the names sort by depth.
    return f"{name}/{symbol}_{index + 1:0{max(2, len(str(count)))}}"


def link(experiment_id: str, key: str = "") -> str:
    """Return the path, after the server's address, of the page with the view of that key, or with all runs of the experiment.

    The runs are sorted by a metric, since sorted by date MLflow's page hides a sweep's runs behind their parent. A view has
    its own order; an order in the link would disable the whole view.
    """
    query = f"viewStateShareKey={key}" if key else "orderByKey=metrics.%60final%2Floss_train%60&orderByAsc=true"
    return f"#/experiments/{experiment_id}/runs?workflowType=machine_learning&compareRunsMode=CHART&{query}"


def run_link(experiment_id: str, run_id: str) -> str:
    """Return the path of the page of one run, see `link`."""
    # MLflow's page has two workflow types; this is the one for trainings.
    return f"#/experiments/{experiment_id}/runs/{run_id}?workflowType=machine_learning"


def sweep_views(
    name: str, parent: str, configs: Sequence[Config], score: str, blocks: int | None, pictures: Sequence[str] = ()
) -> dict[str, str]:
    """Return the views of a sweep: key -> value of the experiment's tag. The key of the main view is the parent run's id.

    Where runs differ only in their seed, the main view shows them as one, and another view shows every run by itself. A sweep
    with more runs than MLflow's page loads at first also has a view for each of `outcomes_with_view`, since such runs are last
    in the main view.

    name: of the sweep. parent: the id of its parent run. configs: of its runs. score: accuracy or r2.
    blocks: the most blocks whose norms are recorded, None is all.
    pictures: the keys of the images of the best run, which are shown in the views that have this run.
    """
    measure, swept_keys = MEASURES[configs[0].sweep.measure], _swept_keys(configs)
    charts, sections = _charts(configs, swept_keys, score, blocks)
    images = [_chart("IMAGE", "pictures", imageKeys=[key], step=0, showRunParams=False) for key in pictures]
    sections_with_images = {"pictures": ("Pictures", True), **sections} if images else sections
    columns = [*(f"params.`{key}`" for key in swept_keys), "tags.`outcome`", f"metrics.`{measure.metric}`"]
    state = {"orderByKey": f"metrics.`{measure.metric}`", "orderByAsc": measure.is_loss, "selectedColumns": columns}
    title = f"the best {PAGE} of {len(configs)} runs: {name}" if len(configs) > PAGE else name
    views = {parent: _view(title, parent, "", state, [*images, *charts], sections_with_images)}
    if len(configs) > PAGE:
        for outcome in outcomes_with_view(configs[0]):
            views[view_key(parent, outcome)] = _view(f"{outcome} runs: {name}", parent, outcome, state, charts, sections)
    elif SEED in swept_keys:
        # MLflow shows no images of runs within a group.
        views[view_key(parent, "runs")] = _view(f"every run: {name}", parent, "", state, [*images, *charts], sections_with_images)
        charts, sections = _charts(configs, [key for key in swept_keys if key != SEED], score, blocks)
        views[parent] = _view(name, parent, "", {**state, **_grouping(configs, swept_keys)}, charts, sections)
    return views


def outcomes_with_view(config: Config) -> list[str]:
    """Return the outcomes that have their own view in a large sweep with that config."""
    return ["stuck", "diverged", *([] if config.sweep.halving is None else ["stopped"])]


def view_key(parent: str, outcome: str = "") -> str:
    """Return the key of a sweep's view. outcome: "" for the main view, `runs` for the view of every run by itself."""
    return f"{parent}-{outcome}" if outcome else parent


def _swept_keys(configs: Sequence[Config]) -> list[str]:
    return differing_keys([flatten(config) for config in configs])


def _grouping(configs: Sequence[Config], swept_keys: Sequence[str]) -> dict[str, Any]:
    """Return the part of a view's state with which MLflow shows runs that differ only in their seed as one folded group.

    Its curves are the mean with the range as a band.
    """
    cells = dict.fromkeys(cell_name(config, swept_keys) for config in configs)
    return {
        "groupBy": {"aggregateFunction": "average", "groupByKeys": [{"mode": "tag", "groupByData": CELL}]},
        "groupsExpanded": {f"tag.{CELL}.{cell}": False for cell in cells},
        "useGroupedValuesInCharts": True,
    }


def _charts(
    configs: Sequence[Config], swept_keys: Sequence[str], score: str, blocks: int | None
) -> tuple[list[dict[str, Any]], dict[str, tuple[str, bool]]]:
    """Return the charts of a sweep, and their sections: key -> title and whether it is unfolded.

    MLflow adds a chart for every metric without one, in the section with the name of the first part of the metric's name.
    """
    measure = MEASURES[configs[0].sweep.measure]
    axes = [LOG_RATE if key == RATE else key for key in swept_keys]
    numbers = [key for key in swept_keys if key != SEED and all(_is_number(flatten(config).get(key)) for config in configs)]
    norms = [list(norm_keys(config.network.depth, blocks).values()) for config in configs]
    charted_norms = _choose_evenly(_common_metrics(norms))
    instrument_metrics = {name: _instrument_metrics(configs, name, blocks) for name in INSTRUMENTS}
    bounds = {"yMin": 0 if score == "accuracy" else -1, "yMax": 1}
    charts = [
        _line("losses", "loss/train", log=True),
        _line("losses", "loss/validation", log=True),
        _line("losses", f"{score}/validation", range=bounds),
        _line("losses", "loss/batch", log=True),
        _chart("PARALLEL", "sweep", selectedParams=axes, selectedMetrics=[measure.log_metric], showAllRuns=True),
    ]
    if len(numbers) > 1:
        # Where they are swept, the depth is the vertical axis and the rate the horizontal one.
        y_key, x_key = sorted(numbers, key=lambda key: {DEPTH: -1, RATE: 1}.get(key, 0))[:: len(numbers) - 1]
        axes_of_chart = {"xaxis": _axis("PARAM", LOG_RATE if x_key == RATE else x_key), "yaxis": _axis("PARAM", y_key)}
        charts.append(_chart("CONTOUR", "sweep", **axes_of_chart, zaxis=_axis("METRIC", measure.log_metric)))
    charts.append(_bar("sweep", f"best/{score}_validation" if measure.is_loss else measure.metric))
    charts += [_line("norms", key, log=True) for key in (RATIO, "grad_norm/all", *charted_norms)]
    common_keys = {name: _common_metrics(keys) for name, keys in instrument_metrics.items()}
    charts += [_line("instruments", keys[0], log=name != SHARE) for name, keys in common_keys.items() if keys]
    for part, prefix in itertools.product(("train", "validation"), ("final", "best")):
        charts.append(_bar(prefix, f"{prefix}/{score}_{part}"))
        # A bar's axis is linear, so that only the largest loss could be seen. MLflow does not add a deleted chart again.
        charts.append(_bar(prefix, f"{prefix}/loss_{part}", deleted=True))
    charts += [_bar("final", loss.log_metric) for loss in MEASURES.values() if loss.is_loss]
    charted_metrics = {chart.get("metricKey") for chart in charts}
    charts.append(_line(score, f"{score}/train", range=bounds))
    for section, keys in {"grad_norm": norms, **instrument_metrics}.items():
        more_metrics = [key for key in dict.fromkeys(itertools.chain(*keys)) if key not in charted_metrics]
        charts += [_line(section, key, log=SHARE not in key) for key in more_metrics[:MAX_FOLDED_CHARTS]]
    sections = {
        "losses": ("Losses, log scale", True),
        "sweep": ("What was swept", True),
        "norms": ("Gradient norms, log scale", True),
        "instruments": ("Instruments", True),
        # These are the names that MLflow uses, so that the charts that it adds are folded, too.
        **{key: (key, False) for key in ("final", "best", score, "grad_norm", *INSTRUMENTS)},
    }
    section_keys = {chart["metricSectionId"] for chart in charts}
    return charts, {key: section for key, section in sections.items() if key in section_keys}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _common_metrics(names: Sequence[Sequence[str]]) -> list[str]:
    """Return those of the first run's metrics that every run has. names: the metrics of each run."""
    common = set(names[0]).intersection(*names[1:]) if names else set()
    return [name for name in names[0] if name in common] if names else []


def _choose_evenly(names: Sequence[str]) -> list[str]:
    """Return at most MAX_CHARTS of the names, evenly spaced."""
    return [names[index] for index in evenly_spaced(len(names), MAX_CHARTS)]


def _instrument_metrics(configs: Sequence[Config], name: str, blocks: int | None) -> list[list[str]]:
    """Return the metrics of the instrument of that name, for every run that has it."""
    runs = [config for config in configs if name in schedules(config)]
    counts = [_count_numbers(run, name) for run in runs]
    return [list(quantity_keys(name, count, blocks).values()) for count in counts]


def _count_numbers(config: Config, name: str) -> int:
    """Return how many numbers the instrument of that name measures at a step."""
    depth = config.network.depth
    counts = {"sharpness": config.instruments.eigenvalues, "saturated": depth - 1, "signals": len(NUMBERS) * depth}
    counts["noise_scale"] = 1
    return counts.get(name, depth)


def _view(
    name: str,
    parent: str,
    outcome: str,
    own_state: dict[str, Any],
    charts: Sequence[dict[str, Any]],
    sections: dict[str, tuple[str, bool]],
) -> str:
    """Return the tag's value of one view.

    outcome: of the runs that it shows, "" for all. own_state: the part of the page's state that differs between views.
    """
    outcome_filter = f" and tags.outcome = '{outcome}'" if outcome else ""
    state = {
        "searchFilter": f"tags.`mlflow.parentRunId` = '{parent}'{outcome_filter}",
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
                "display": is_open,
                **({"columns": 3, "cardHeight": 400} if key == "pictures" else {"columns": 2}),
                "isReordered": True,
                "deleted": False,
                "isGenerated": False,
            }
            for key, (title, is_open) in sections.items()
        ],
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
        **own_state,
    }
    encoded_state = base64.b64encode(zlib.compress(json.dumps(state).encode(), 9)).decode()
    now = int(1000 * time.time())
    return json.dumps({"name": name, "createdAt": now, "updatedAt": now, "state": f"deflate;{encoded_state}"})


def _axis(kind: str, key: str) -> dict[str, str]:
    return {"key": key, "type": kind}


def _chart(kind: str, section: str, **options: Any) -> dict[str, Any]:
    name = "-".join([kind, section, str(options.get("metricKey", options.get("imageKeys", "")))])
    defaults = {"uuid": name, "type": kind, "metricSectionId": section, "runsCountToCompare": MAX_RUNS}
    return {**defaults, "deleted": False, "isGenerated": False, **options}


def _bar(section: str, metric: str, **options: Any) -> dict[str, Any]:
    return _chart("BAR", section, metricKey=metric, displayName=metric, **options)


def _line(section: str, metric: str, log: bool = False, **options: Any) -> dict[str, Any]:
    defaults = {
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
    return _chart("LINE", section, **{**defaults, **options})
