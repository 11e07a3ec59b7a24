"""A sweep over seeds: what a person finds of them in notebook, pictures and dashboard."""

import signal
import socket

import numpy as np
import pytest

from experiments import results
from tests.experiments.conftest import ALONE, Lab
from tests.experiments.test_show import SCREENSHOTS, chromium, names, wait_until

SWEEP = [
    *("dataset=iris", "training.epochs=4", "network.width=8", "network.depth=2,4", "optimizer.learning_rate=0.1,1e6"),
    *("seed=0,1,2", "tracking.models=none", ALONE),
]


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    lab = Lab(tmp_path_factory.mktemp("seeds"))
    lab.output = lab.run("-m", *SWEEP)
    return lab


def test_results_are_grouped_by_everything_but_the_seed(swept):
    frame, histories = results.load(None, swept.uri)
    cells, stacks = results.group_seeds(frame, histories)
    assert list(cells.columns[:5]) == ["network.depth", "optimizer.learning_rate", "runs", "diverged", "stopped"]
    places = [(2, 0.1, 3, 0, 0), (2, 1e6, 3, 3, 0), (4, 0.1, 3, 0, 0), (4, 1e6, 3, 3, 0)]
    assert [tuple(row)[:5] for row in cells.itertuples(index=False)] == places
    for (depth, rate, *_), (_, cell), stack in zip(places, cells.iterrows(), stacks, strict=True):
        same = (frame["network.depth"] == depth) & (frame["optimizer.learning_rate"] == rate)
        np.testing.assert_array_equal(stack.grad_norm, [history.grad_norm for history in histories[same]])
        values = np.array([history.measures["loss/train"][-1] for history in histories[same]])
        if rate < 1:
            assert cell["loss/train"] == pytest.approx(values.sum() / 3)
            assert cell["loss/train std"] == pytest.approx(np.sqrt(((values - values.mean()) ** 2).sum() / 2))
        else:
            assert np.isnan(cell["loss/train"])


def test_runs_that_differ_in_seed_alone_have_the_tag_of_their_cell_and_the_sweep_the_pictures_of_the_best(swept):
    cells = [run.data.tags["cell"] for run in swept.runs()]
    expected = [f"depth {depth}, rate {rate}" for depth in (2, 4) for rate in ("0.1", "1e+06") for _ in range(3)]
    assert sorted(cells) == sorted(expected)
    (parent,) = swept.runs("sweep")
    assert {"map.png", "best_curves.png", "norm_ratios.png", "grad_norm_by_block.png", "grad_norm_by_step.png"} <= names(
        swept, parent
    )
    note = parent.data.tags["mlflow.note.content"]
    assert f"viewStateShareKey={parent.info.run_id})" in note
    assert f"viewStateShareKey={parent.info.run_id}-runs)" in note


@pytest.mark.slow
def test_the_dashboard_draws_the_mean_of_each_cell_with_a_band(swept):
    browser = chromium()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = swept.start("--port", str(port), module="experiments.dashboard")
    try:
        line = process.line("http://")
        browser.get(line[line.index("http://") :].strip())
        # Of the runs that have a last loss, the lines and the bands of charts.
        assert wait_until(lambda: len(browser.find_elements("css selector", ".js-plotly-plot .fills path, path.js-fill")) >= 4)
        text = browser.find_element("css selector", "body").text
        for cell in ("depth 2, rate 0.1", "depth 4, rate 1e+06"):
            assert f"Group: {cell}" in text
        assert "seed 0\n" not in text
        assert "(0)" not in text
        SCREENSHOTS.mkdir(exist_ok=True)
        browser.save_screenshot(str(SCREENSHOTS / "cells.png"))
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
        browser.quit()
