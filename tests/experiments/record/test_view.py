"""The saved views: what they ask for is recorded, and they fit into a tag."""

import base64
import itertools
import json
import zlib
from dataclasses import replace

import numpy as np
import pytest

from blocks import INSTRUMENTS
from blocks.history import History, Quantity
from blocks.measure.signals import NUMBERS
from experiments.record.metrics import curves, summary
from experiments.record.view import quantity_keys, sweep_views
from experiments.run.composition import parse_config
from experiments.run.config import InstrumentsConfig, SweepConfig
from experiments.run.naming import cell_name

# Of set_experiment_tag, see mlflow.utils.validation.
LONGEST_TAG = 20000


@pytest.fixture(scope="module")
def configs(composed):
    """configs(depths, **instruments) -> the configs of a sweep over those depths."""
    config = parse_config(composed())

    def sweep(depths, **instruments):
        asked = InstrumentsConfig(**instruments)
        return [replace(config, network=replace(config.network, depth=depth), instruments=asked) for depth in depths]

    return sweep


def state(view):
    packed = json.loads(view)["state"].removeprefix("deflate;")
    return json.loads(zlib.decompress(base64.b64decode(packed)))


def charts(view):
    """The charts of a view: section -> metric keys, and whether the section is unfolded."""
    found = state(view)
    sections = {section["uuid"]: section["display"] for section in found["compareRunSections"]}
    keys = {}
    for chart in found["compareRunCharts"]:
        keys.setdefault(chart["metricSectionId"], []).append(chart.get("metricKey"))
    assert keys.keys() == sections.keys()
    return keys, sections


def recorded(config, blocks):
    """The metrics that a run of that config logs."""
    depth = config.network.depth
    widths = {"sharpness": config.instruments.eigenvalues, "saturated": depth - 1}
    asked = [name for name in INSTRUMENTS if getattr(config.instruments, name)]
    shapes = {name: (2, widths.get(name, depth)) for name in asked} | {"signals": (2, len(NUMBERS), depth)}
    history = History(
        np.ones(2),
        np.ones((2, depth)),
        np.ones((2, depth)),
        np.ones(2, int),
        2,
        np.array([0, 2]),
        {f"{name}/{part}": np.ones(2) for name in ("loss", "accuracy") for part in ("train", "validation")},
        {name: Quantity(np.arange(2), np.ones(shapes[name])) for name in asked},
    )
    return {metric.key for metric in curves(history, 2, 20, blocks, 0, lambda step: 0)} | summary(history).keys()


DEPTHS = [[depth] for depth in (1, 2, 3, 5, 9, 12, 13, 33, 99, 100, 101, 200)] + [
    [2, 3, 5, 9, 17, 33],
    [2, 5, 9],
    [99, 100],
    [1, 200],
    list(range(1, 201)),
]


@pytest.mark.parametrize("depths", DEPTHS, ids=lambda depths: f"{depths[0]} to {depths[-1]}")
@pytest.mark.parametrize("blocks", [12, 2, None])
def test_what_is_viewed_is_recorded_at_every_depth(configs, depths, blocks):
    asked = {"sharpness": "log", "update_ratio": "log", "saturated": "1", "signals": "log", "parameters": "log"}
    sweep = configs(depths, **asked)
    (view, *_) = sweep_views("a sweep", "p" * 32, sweep, "accuracy", blocks).values()
    assert len(view) < LONGEST_TAG
    keys, unfolded = charts(view)
    runs = [recorded(config, blocks) for config in sweep]
    by_all, by_some = set.intersection(*runs), set.union(*runs)
    for section, names in keys.items():
        assert set(names) - {None} <= (by_all if unfolded[section] else by_some), section
    # Of one depth, all of what is recorded has a chart, and none has two of one kind.
    norms = [name for section in ("norms", "grad_norm") for name in keys.get(section, [])]
    assert len(norms) == len(set(norms))
    if len(depths) == 1 and blocks:
        assert set(norms) == {name for name in by_all if name.startswith(("grad_norm", "norm_ratio"))}
    assert {"norm_ratio/first_over_last", "grad_norm/all"} <= set(keys["norms"])
    assert ("grad_norm/W_01" in keys["norms"]) == (max(depths) < 100)


def test_four_blocks_of_one_depth_are_viewed_the_first_and_the_last_among_them(configs):
    (view,) = sweep_views("a sweep", "p", configs([33, 33]), "accuracy", 12).values()
    keys, _ = charts(view)
    # A dozen of 33 evenly spaced are 1, 4, 7, 10, 13, 16, 18, 21, 24, 27, 30, 33; four of them the 1st, 5th, 8th, 12th.
    assert keys["norms"][2:] == ["grad_norm/W_01", "grad_norm/W_13", "grad_norm/W_21", "grad_norm/W_33"]
    assert "instruments" not in keys


def test_of_signals_four_numbers_of_four_blocks_are_metrics():
    # Of mean and standard deviation of four symbols, saturated, grad_data and update_data.
    keys = quantity_keys("signals", 11 * 9, 12)
    assert sorted(keys.values()) == sorted(
        [f"signals/{number}_0{block}" for number in ("update_data", "grad_data", "a_std") for block in (1, 4, 6, 9)]
        # Nothing is saturated in the last block.
        + [f"signals/saturated_0{block}" for block in (1, 3, 6, 8)]
    )
    assert {NUMBERS[index // 9]: index % 9 for index in keys}["update_data"] == 8
    assert sorted(quantity_keys("signals", 11, None).values()) == [
        f"signals/{n}_01" for n in ("a_std", "grad_data", "update_data")
    ]


def test_no_chart_has_a_linear_axis_of_numbers_over_many_decades(configs):
    asked = dict.fromkeys(INSTRUMENTS, "log")
    (view,) = sweep_views("a sweep", "p", configs([9, 9], **asked), "accuracy", 12).values()
    drawn = [chart for chart in state(view)["compareRunCharts"] if not chart["deleted"]]
    linear = {chart["metricKey"] for chart in drawn if chart["type"] == "BAR" or chart.get("scaleType") == "linear"}
    assert {key for key in linear if not key.startswith(("accuracy/", "saturated/", "signals/saturated"))} == {
        *(f"{end}/accuracy_{part}" for end in ("final", "best") for part in ("train", "validation")),
        *(f"final/log10_loss_{part}" for part in ("train", "validation")),
    }


@pytest.mark.parametrize(
    ("measure", "order", "drawn"),
    [
        ("loss/train", ("metrics.`final/loss_train`", True), "final/log10_loss_train"),
        ("loss/validation", ("metrics.`final/loss_validation`", True), "final/log10_loss_validation"),
        ("accuracy/validation", ("metrics.`final/accuracy_validation`", False), "final/accuracy_validation"),
    ],
)
def test_the_measure_orders_the_runs_and_colours_the_charts(composed, measure, order, drawn):
    swept = ["network.depth=2", "network.depth=5"], ["optimizer.learning_rate=0.1", "optimizer.learning_rate=0.2"]
    runs = [parse_config(composed(*axes, f"sweep.measure={measure}")) for axes in itertools.product(*swept)]
    (view,) = sweep_views("a sweep", "p", runs, "accuracy", 12).values()
    found = state(view)
    assert (found["orderByKey"], found["orderByAsc"]) == order
    assert found["selectedColumns"][-1] == order[0]
    by_type = {chart["type"]: chart for chart in found["compareRunCharts"]}
    assert by_type["PARALLEL"]["selectedMetrics"] == [drawn]
    assert by_type["CONTOUR"]["zaxis"] == {"type": "METRIC", "key": drawn}
    assert drawn in recorded(runs[0], 12)


def test_the_pictures_stand_first_in_the_view_that_has_the_best_run(configs):
    (bare,) = sweep_views("a sweep", "p", configs([2]), "r2", 12).values()
    assert "pictures" not in charts(bare)[1]
    views = sweep_views("a sweep", "p", configs([2] * 101), "r2", 12, ["map", "best_curves"])
    with_pictures = {key: state(view)["compareRunSections"][0]["name"] == "Pictures" for key, view in views.items()}
    assert with_pictures == {"p": True, "p-stuck": False, "p-diverged": False}
    first = state(views["p"])["compareRunCharts"][:2]
    assert [(chart["type"], chart["imageKeys"]) for chart in first] == [("IMAGE", ["map"]), ("IMAGE", ["best_curves"])]
    assert len({chart["uuid"] for chart in first}) == 2


def test_what_a_diverged_run_s_instruments_measure_last_stretches_no_axis():
    measured = Quantity(np.arange(4), np.array([[3.0, 2.0], [np.nan, 1e4], [2.9e4, 1e5], [1e25, 1.0]]))
    shares = Quantity(np.arange(2), np.array([[0.0], [1.0]]))
    history = History(
        np.ones(4),
        np.ones((4, 2)),
        np.ones((4, 2)),
        np.ones(4, int),
        4,
        np.array([0, 4]),
        {},
        {"sharpness": measured, "saturated": shares},
    )
    drawn = {}
    for metric in curves(history, 4, 20, None, 0, lambda step: 0):
        drawn.setdefault(metric.key, []).append((metric.step, metric.value))
    # 10,000 times 3, the largest of the first ones.
    assert drawn["sharpness/lambda_01"] == [(0, 3.0), (2, 2.9e4)]
    assert drawn["sharpness/lambda_02"] == [(0, 2.0), (1, 1e4), (3, 1.0)]
    assert drawn["saturated/a_01"] == [(0, 0.0), (1, 1.0)]


@pytest.mark.parametrize(
    ("swept", "axes"),
    [
        (("network.depth=2,5", "optimizer.learning_rate=0.1,0.2"), ("optimizer.log10_learning_rate", "network.depth")),
        (("network.activation=relu,tanh", "network.depth=2,5", "network.gain=1,2"), ("network.gain", "network.depth")),
        (("network.activation=relu,tanh", "network.depth=2,5"), None),
        (("network.depth=2,5", "seed=0,1"), None),
    ],
)
def test_the_contour_has_axes_of_numbers_alone(composed, swept, axes):
    parts = [[f"{key}={value}" for value in values.split(",")] for key, _, values in (of.partition("=") for of in swept)]
    runs = [parse_config(composed(*(of[k] for of in parts))) for k in (0, 1)]
    (view, *_) = sweep_views("a sweep", "p", runs, "accuracy", 12).values()
    found = [chart for chart in state(view)["compareRunCharts"] if chart["type"] == "CONTOUR"]
    assert [(chart["xaxis"]["key"], chart["yaxis"]["key"]) for chart in found] == ([axes] if axes else [])


def test_runs_that_differ_in_seed_alone_are_one_group_of_the_first_view_and_themselves_in_another(composed):
    parts = ["network.depth=2", "network.depth=5"], ["seed=0", "seed=1", "seed=2"]
    runs = [parse_config(composed(*axes)) for axes in itertools.product(*parts)]
    views = sweep_views("a sweep", "p", runs, "accuracy", 12, ["map"])
    assert list(views) == ["p", "p-runs"]
    together, alone = map(state, views.values())
    assert together["groupBy"] == {"aggregateFunction": "average", "groupByKeys": [{"mode": "tag", "groupByData": "cell"}]}
    assert together["groupsExpanded"] == {"tag.cell.depth 2": False, "tag.cell.depth 5": False}
    assert (together["useGroupedValuesInCharts"], alone["useGroupedValuesInCharts"]) == (True, False)
    assert alone["groupBy"] is None
    for found, axes in ((together, ["network.depth"]), (alone, ["network.depth", "seed"])):
        (parallel,) = [chart for chart in found["compareRunCharts"] if chart["type"] == "PARALLEL"]
        assert parallel["selectedParams"] == axes
        assert found["searchFilter"] == "tags.`mlflow.parentRunId` = 'p'"
    # A group has no picture.
    assert ["pictures" in charts(view)[1] for view in views.values()] == [False, True]


def test_a_page_that_has_not_all_seeds_of_a_group_does_not_average_them(composed):
    runs = [parse_config(composed("dataset=iris", f"seed={seed}")) for seed in range(101)]
    assert {state(view)["groupBy"] for view in sweep_views("a sweep", "p", runs, "accuracy", 12).values()} == {None}


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        (["network.depth", "optimizer.learning_rate", "seed"], "depth 3, rate 0.1234567"),
        (["seed"], "depth 3, rate 0.1234567"),
        (["network.depth"], ""),
        (["training.epochs", "dataset.loader.as_frame", "seed"], "epochs 20"),
    ],
)
def test_a_cell_has_the_name_of_what_its_runs_share_to_the_last_digit(composed, keys, name):
    assert cell_name(parse_config(composed("optimizer.learning_rate=0.1234567")), keys) == name


def test_a_sweep_of_more_runs_than_a_page_has_a_view_of_the_stuck_and_of_the_diverged(configs):
    views = sweep_views("network.depth=...", "p", configs([2] * 101), "r2", 12)
    assert list(views) == ["p", "p-stuck", "p-diverged"]
    titles = [json.loads(view)["name"] for view in views.values()]
    assert titles[0] == "the best 100 of 101 runs: network.depth=..."
    filters = [state(view)["searchFilter"] for view in views.values()]
    assert filters[0] == "tags.`mlflow.parentRunId` = 'p'"
    assert filters[2] == "tags.`mlflow.parentRunId` = 'p' and tags.outcome = 'diverged'"
    assert list(sweep_views("a sweep", "p", configs([2] * 100), "r2", 12)) == ["p"]
    halved = [replace(config, sweep=SweepConfig(halving=2.0)) for config in configs([2] * 101)]
    assert list(sweep_views("a sweep", "p", halved, "r2", 12)) == ["p", "p-stuck", "p-diverged", "p-stopped"]
