"""A sweep's table: what it averages, what it marks, what it says."""

import itertools
import math
from copy import deepcopy

import pytest

from experiments.pictures import table
from experiments.pictures.report import Report, Row
from experiments.run.composition import parse_config
from experiments.run.stack import initial_loss

INF = math.inf


@pytest.fixture(scope="module")
def config(composed):
    """config({key: value}) -> the default config with those values"""
    default = parse_config(composed())

    def one(values):
        changed = deepcopy(default)
        for key, value in values.items():
            group, _, name = key.rpartition(".")
            setattr(getattr(changed, group) if group else changed, name, value)
        return changed

    return one


@pytest.fixture(scope="module")
def report(config):
    """report(cells): (depth, rate, seed) -> (loss, outcome)"""

    def made(cells):
        keys = "network.depth", "optimizer.learning_rate", "seed"
        runs = [(config(dict(zip(keys, values, strict=True))), *end) for values, end in cells.items()]
        return Report([Row(*run, job) for job, run in enumerate(runs)])

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


def test_rates_in_the_order_of_a_search_are_read_from_the_smallest_to_the_largest(report):
    cells = {(depth, rate, 0): (rate * depth, "trained") for depth in (9, 2) for rate in (1.0, 0.01, 0.1)}
    lines = table.report_text(report(cells)).splitlines()[1:4]
    assert [line.split()[:4] for line in lines] == [
        ["0.01", "0.1", "1", "sensitivity"],
        ["2", "0.02*", "0.2", "2"],
        ["9", "0.09", "0.9", "9"],
    ]


def test_seeds_alone_are_one_cell(report):
    text = table.report_text(report({(2, 0.1, 0): (0.02, "trained"), (2, 0.1, 1): (0.04, "trained")}))
    assert "best cell (*): 0.03 +- 0.01, the mean of 2 seeds, at the only cell\nbest run: 0.02 at seed=0;" in text


def test_a_cell_says_how_many_of_its_seeds_trained_and_the_table_what_it_averages(report):
    lines = table.report_text(report(SEEDS)).splitlines()
    assert lines[1] == "mean +- standard deviation of 2 seeds without those that diverged; 1/2: one of them has trained"
    assert len({len(line) for line in lines[2:5]}) == 1
    # The standard deviation of 0.02 and 0.04 is 0.0141, of 2 and 2.4 it is 0.283.
    # The last column is the sensitivity.
    assert [line.split()[:-1] for line in lines[3:5]] == [
        ["2", "0.03", "+-", "0.01*", "0.001", "1/2"],
        ["9", "2.2", "+-", "0.3", "1/2", "-"],
    ]


def test_best_cell_and_best_run_are_told_apart(report):
    lines = table.report_text(report(SEEDS)).splitlines()
    assert lines[6] == "best cell (*): 0.03 +- 0.01, the mean of 2 seeds, at network.depth=2, optimizer.learning_rate=0.1"
    assert lines[7] == (
        "best run: 0.001 at network.depth=2, optimizer.learning_rate=1.0, seed=0;  4 trained, 1 stuck, 3 diverged"
    )
    assert len(lines) == 8


def test_of_each_depth_the_cell_is_drawn_of_which_the_fewest_seeds_diverged_then_that_of_the_best_mean(report):
    best = report(SEEDS | {(9, 2.0, 0): (3.0, "stuck"), (9, 2.0, 1): (0.1, "trained")}).best_cells()
    assert {down: [row.job for row in cell] for (down, _), cell in best.items()} == {2: [0, 1], 9: [8, 9]}


def test_where_a_seed_diverged_in_every_cell_there_is_no_best_one(report):
    half = {(2, 0.1, 0): (0.5, "trained"), (2, 0.1, 1): (INF, "diverged")}
    text = table.report_text(report(half))
    assert "no best cell: in each of them a seed diverged\nbest run: 0.5 at seed=0;" in text
    assert "*" not in text


def test_one_seed_has_the_table_of_the_readme(config, report):
    first = initial_loss(config({DEPTH: 9}), "train")
    text = table.report_text(report({key: value for key, value in SEEDS.items() if key[2] == 0}))
    assert text.splitlines() == [
        "final training loss, network.depth down, optimizer.learning_rate across",
        "                 0.1         1  sensitivity",
        # (0.02 + 0.001) / 2 - 0.001, and of what diverged the initial loss counts.
        "         2      0.02    0.001*       0.0095",
        f"         9         2         -  {(2 + first) / 2 - 2:>11.3g}",
        "sensitivity: the mean over the rates of min(loss, initial loss), less the smallest loss (Wortsman et al. 2023)",
        "best (*): 0.001 at network.depth=2, optimizer.learning_rate=1.0;  3 trained, 1 diverged",
    ]


def test_a_search_over_seeds_lists_its_runs_each_with_what_became_of_it(report):
    drawn = {(2, 0.13, 0): (INF, "stopped"), (3, 0.27, 1): (0.25, "trained"), (4, 0.39, 2): (INF, "diverged")}
    lines = table.report_text(report(drawn)).splitlines()
    assert [line.split() for line in lines[2:-1]] == [
        ["0.25*", "3", "0.27", "1"],
        [".", "2", "0.13", "0"],
        ["-", "4", "0.39", "2"],
    ]
    best = "best (*): 0.25 at network.depth=3, optimizer.learning_rate=0.27, seed=1;"
    assert lines[-1] == f"{best}  1 trained, 1 diverged, 1 stopped"


def test_of_accuracies_the_largest_is_the_best(config):
    cells = {(2, 0): 0.9, (2, 1): 0.5, (5, 0): 0.8, (5, 1): 0.7, (9, 0): 0.99, (9, 1): -INF}
    runs = [
        Row(config({DEPTH: depth, SEED: seed, "sweep.measure": "accuracy/validation"}), value, "trained", job)
        for job, ((depth, seed), value) in enumerate(cells.items())
    ]
    found = Report(runs)
    lines = table.report_text(found).splitlines()
    assert lines[0] == "final validation accuracy, network.depth down, optimizer.learning_rate across"
    assert lines[-2] == "best cell (*): 0.75 +- 0.07, the mean of 2 seeds, at network.depth=5"
    assert lines[-1].startswith("best run: 0.99 at network.depth=9, seed=0;")
    assert found.columns()["final/accuracy_validation"] == list(cells.values())
    best = {down: [row.job for row in cell] for (down, _), cell in found.best_cells().items()}
    assert best == {2: [0, 1], 5: [2, 3], 9: [4, 5]}


DEPTH, RATE, ACTIVATION, GAIN, SEED = "network.depth", "optimizer.learning_rate", "network.activation", "network.gain", "seed"


@pytest.mark.parametrize(
    ("swept", "lines_by"),
    [
        ({ACTIVATION: ["sigmoid", "tanh"], DEPTH: [2, 5], RATE: [0.1, 1.0]}, [ACTIVATION]),
        # Without rates, the category stands across.
        ({ACTIVATION: ["sigmoid", "tanh"], DEPTH: [2, 5]}, [ACTIVATION]),
        ({"dataset.name": ["iris", "wine"], DEPTH: [2, 5], SEED: [0, 1]}, ["dataset.name"]),
        ({ACTIVATION: ["sigmoid", "tanh"], DEPTH: [2, 5], RATE: [0.1, 1.0], GAIN: [1.0, 2.0]}, [ACTIVATION, GAIN]),
        # The best of all gains is drawn, as the best of all rates is.
        ({GAIN: [1.0, 2.0], DEPTH: [2, 5]}, []),
        ({DEPTH: [5, 2], RATE: [0.1, 1.0], SEED: [0, 1]}, []),
        # What has no order stays in the sweep's own.
        ({"training.batch_size": [8, None], RATE: [0.1, 1.0]}, []),
        ({"optimizer.block_rates": [[0.2, 0.1, 0.1], [0.1, 0.1, 0.1]]}, []),
    ],
)
def test_every_category_has_its_best_runs(config, swept, lines_by):
    places = [dict(zip(swept, values, strict=True)) for values in itertools.product(*swept.values())]
    found = Report([Row(config(place), 1.0 + number, "trained", number) for number, place in enumerate(places)])
    assert found.lines_by == lines_by
    # Of those that share depth and category, the first one has the smallest loss.
    expected, down = {}, DEPTH if DEPTH in swept else next(iter(swept))
    for number, place in enumerate(places):
        category = ", ".join(f"{place[key]:g}" if key == GAIN else place[key] for key in lines_by)
        expected.setdefault((str(place[down]), category), number)
    best = found.best_cells()
    assert {(str(value), category): cell[0].job for (value, category), cell in best.items()} == expected
    values = [value for value, _ in best]
    assert values == sorted(values) if down == DEPTH else list(map(str, values)) == list(map(str, swept[down]))
    assert table.report_text(found)
