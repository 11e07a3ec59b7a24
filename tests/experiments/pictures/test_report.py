"""A sweep's table: what it averages, what it marks, what it says."""

import math

import pytest

from experiments.pictures.report import Report, Row
from experiments.run.config import typed

INF = math.inf


@pytest.fixture(scope="module")
def report(composed):
    """report(cells): (depth, rate, seed) -> (loss, outcome)"""

    def made(cells):
        rows = []
        for job, ((depth, rate, seed), (loss, outcome)) in enumerate(cells.items()):
            config = typed(composed(f"network.depth={depth}", f"optimizer.learning_rate={rate}", f"seed={seed}"))
            rows.append(Row(config, loss, outcome, job))
        return Report(rows)

    return made


# The luckiest seed is at rate 1, where another one diverged; the best mean, at 0.1.
SEEDS = {
    (2, 0.1, 0): (0.02, "trained"),
    (2, 0.1, 1): (0.04, "trained"),
    (2, 1.0, 0): (0.001, "trained"),
    (2, 1.0, 1): (INF, "diverged"),
    (9, 0.1, 0): (2.0, "trained"),
    (9, 0.1, 1): (2.4, "stuck"),
    (9, 1.0, 0): (INF, "diverged"),
    (9, 1.0, 1): (INF, "diverged"),
}


def test_a_cell_says_how_many_of_its_seeds_trained_and_the_table_what_it_averages(report):
    lines = report(SEEDS).text().splitlines()
    assert lines[1] == "mean of 2 seeds without those that diverged; 1/2: one of them has trained"
    assert [line.split() for line in lines[3:5]] == [["2", "0.03*", "0.001", "1/2"], ["9", "2.2", "1/2", "-"]]


def test_best_cell_and_best_run_are_told_apart(report):
    lines = report(SEEDS).text().splitlines()
    assert lines[5] == "best cell (*): 0.03, the mean of 2 seeds, at network.depth=2, optimizer.learning_rate=0.1"
    assert lines[6] == (
        "best run: 0.001 at network.depth=2, optimizer.learning_rate=1.0, seed=0;  4 trained, 1 stuck, 3 diverged"
    )
    assert len(lines) == 7


def test_where_a_seed_diverged_in_every_cell_there_is_no_best_one(report):
    half = {(2, 0.1, 0): (0.5, "trained"), (2, 0.1, 1): (INF, "diverged")}
    text = report(half).text()
    assert "no best cell: in each of them a seed diverged\nbest run: 0.5 at seed=0;" in text
    assert "*" not in text


def test_one_seed_has_the_table_of_the_readme(report):
    text = report({key: value for key, value in SEEDS.items() if key[2] == 0}).text()
    assert text.splitlines() == [
        "final training loss, network.depth down, optimizer.learning_rate across",
        "                 0.1         1",
        "         2      0.02    0.001*",
        "         9         2         -",
        "best (*): 0.001 at network.depth=2, optimizer.learning_rate=1.0;  3 trained, 1 diverged",
    ]


@pytest.mark.parametrize(
    ("swept", "lines_by"),
    [
        (("network.activation=sigmoid,tanh", "network.depth=2,5", "optimizer.learning_rate=0.1,1.0"), ["network.activation"]),
        # Without rates, the category stands across.
        (("network.activation=sigmoid,tanh", "network.depth=2,5"), ["network.activation"]),
        (("dataset=iris,wine", "network.depth=2,5", "seed=0,1"), ["dataset.name"]),
        # The best of all gains is drawn, as the best of all rates is.
        (("network.gain=1.0,2.0", "network.depth=2,5"), []),
        (("network.depth=2,5", "optimizer.learning_rate=0.1,1.0", "seed=0,1"), []),
    ],
)
def test_every_category_has_its_best_runs(composed, swept, lines_by):
    parts = [(key, values.split(",")) for key, _, values in (of.partition("=") for of in swept)]
    rows = []
    for number in range(2 ** len(parts)):
        chosen = [f"{key}={values[number >> place & 1]}" for place, (key, values) in enumerate(parts)]
        rows.append(Row(typed(composed(*chosen)), 1.0 + number, "trained", number))
    found = Report(rows)
    assert found.lines_by == lines_by
    categories = parts[0][1] if lines_by else [""]
    best = found.best_runs()
    assert set(best) == {(depth, category) for depth in (2, 5) for category in categories}
    # Of those that share depth and category, the first made has the smallest loss.
    assert all(row.loss == min(other.loss for other in rows if row.values[lines_by[0]] == other.values[lines_by[0]]
               and row.values["network.depth"] == other.values["network.depth"]) for row in best.values() if lines_by)  # fmt: skip
