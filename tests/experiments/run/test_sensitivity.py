"""Learning-rate sensitivity, in numbers worked out by hand, and where a sweep says it."""

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from experiments import results
from experiments.pictures import table
from experiments.pictures.report import Report, Row
from experiments.run.composition import parse_config
from experiments.run.config import UserError
from experiments.run.data import load_task
from experiments.run.sensitivity import sensitivity
from experiments.run.stack import check_size, initial_loss, train_stack

INF = math.inf


@pytest.mark.parametrize(
    ("losses", "initial", "expected"),
    [
        # min(J, J_0): 1, 0.5, 2, 2; their mean is 1.375.
        ([1.0, 0.5, 3.0, INF], 2.0, 0.875),
        ([0.5, 0.5], 2.0, 0.0),
        ([INF, INF], 2.0, math.nan),
        ([0.5], 2.0, math.nan),
    ],
)
def test_it_is_the_mean_distance_from_the_best_rate(losses, initial, expected):
    assert sensitivity(losses, initial) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("kind", ["plain", "batch_normalized"])
def test_the_initial_loss_is_the_first_of_the_history(composed, kind):
    config = parse_config(composed("dataset=iris", "training.epochs=1", f"network.kind={kind}", "network.depth=3"))
    (trained,) = train_stack([config])
    for part in ("train", "validation"):
        assert initial_loss(config, part) == pytest.approx(trained.history.measures[f"loss/{part}"][0], rel=1e-5)


@pytest.fixture
def report(composed):
    def made(values, *overrides):
        runs = []
        for (depth, rate), value in values.items():
            axes = ["dataset=iris", f"network.depth={depth}", f"optimizer.learning_rate={rate}"]
            outcome = "diverged" if value == INF else "trained"
            runs.append(Row(parse_config(composed(*axes, *overrides)), value, outcome, len(runs)))
        return Report(runs)

    return made


def test_it_is_the_last_column_of_a_sweep_over_rates(report):
    runs = {(2, 0.1): 0.5, (2, 1.0): 0.1, (9, 0.1): 0.3, (9, 1.0): INF}
    found = report(runs)
    first = initial_loss(found.rows[2].config, "train")
    expected = [0.2, 0.2, (0.3 + first) / 2 - 0.3, (0.3 + first) / 2 - 0.3]
    np.testing.assert_allclose(found.columns()["sensitivity"], expected)
    lines = table.report_text(found).splitlines()
    assert [line.split()[-1] for line in lines[1:4]] == ["sensitivity", "0.2", f"{expected[2]:.3g}"]
    assert lines[4].startswith("sensitivity: the mean over the rates of min(loss, initial loss), less the smallest loss")
    assert list(found.columns())[-3:] == ["sensitivity", "final/loss_train", "outcome"]
    for other in (report({(2, 0.1): 0.5, (9, 0.1): 0.1}), report(runs, "sweep.measure=accuracy/train")):
        assert "sensitivity" not in table.report_text(other)
        assert "sensitivity" not in other.columns()


def test_notebooks_have_it_by_what_else_differs():
    frame = pd.DataFrame(
        {
            "network.depth": [2, 2, 9, 9],
            "optimizer.learning_rate": [0.1, 1.0, 0.1, 1.0],
            "outcome": ["trained"] * 3 + ["diverged"],
            "run_name": "",
            "run_id": "",
            "loss/train": [0.5, 0.1, 0.3, np.nan],
        }
    )
    histories = np.array([SimpleNamespace(measures={"loss/train": np.array([first])}) for first in (2.0, 2.0, 3.0, 3.0)])
    found = results.sensitivity(frame, histories)
    assert found[["network.depth", "rates"]].to_numpy().tolist() == [[2, 2], [9, 2]]
    # (0.5 + 0.1) / 2 - 0.1, (0.3 + 3) / 2 - 0.3
    np.testing.assert_allclose(found["sensitivity"], [0.2, 1.35])


def test_a_warm_up_longer_than_the_training_is_one_line(composed):
    config = parse_config(composed("dataset=iris", "training.epochs=2", "training.batch_size=60", "optimizer.warmup=5"))
    with pytest.raises(UserError, match=r"optimizer\.warmup is 5, it must be at most 4, the updates of the training"):
        check_size(config, load_task(config))
