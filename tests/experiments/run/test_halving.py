import numpy as np
import pytest

from blocks.history import History
from experiments.run.composition import parse_config
from experiments.run.config import UserError
from experiments.run.halving import Halving, run_cost
from experiments.run.measure import MEASURES
from experiments.run.stack import TrainedRun, train_stack


def configs(composed, count, *overrides):
    return [parse_config(composed(*overrides, f"seed={seed}")) for seed in range(count)]


@pytest.mark.parametrize(
    ("factor", "epochs", "evaluations", "count", "rungs", "most"),
    [
        # Li et al. 2018, table 1, bracket s = 2 of R = 81, eta = 3: 9 runs for 9 epochs, 3 for 27, 1 for 81.
        pytest.param(3, 81, 82, 9, [9, 27], [3, 1], id="a bracket of Hyperband's"),
        # log3(8) is below 2: one rung, though the epochs would have room for two.
        pytest.param(3, 81, 82, 8, [27], [2], id="few runs"),
        # 20/3 and 20/9 epochs are 6.7 and 2.2.
        pytest.param(3, 20, 21, 100, [2, 6], [33, 11], id="few epochs"),
        # Measured after 0, 2, 7, 20 epochs: of 10, 5 and 2.5 epochs, the latter two have one evaluation, and are one rung.
        pytest.param(2, 20, 4, 100, [2, 7], [50, 25], id="few evaluations"),
        pytest.param(1.5, 2, 3, 3, [1], [2], id="a factor below 2"),
        # Every power of it that matters is right before the next evaluation.
        pytest.param(1 + 1e-9, 20, 21, 100, [18, 19], [99, 99], id="a factor next to 1"),
    ],
)
def test_rungs_are_geometric(composed, factor, epochs, evaluations, count, rungs, most):
    training = [f"training.epochs={epochs}", f"training.evaluations={evaluations}", f"sweep.halving={factor}"]
    (config,) = configs(composed, 1, *training)
    halving = Halving([config] * count)
    assert [halving.end_epoch(0, rung + 1) for rung in range(halving.count)] == rungs
    assert [halving.n_survivors(rung + 1) for rung in range(halving.count)] == most
    assert halving.end_epoch(0, halving.count + 1) is None


def test_runs_of_other_lengths_have_as_many_rungs_at_the_same_shares(composed):
    jobs = configs(composed, 8, "sweep.halving=2", "training.evaluations=200", "training.epochs=16")
    jobs += configs(composed, 8, "sweep.halving=2", "training.evaluations=200", "training.epochs=160")
    halving = Halving(jobs)
    assert halving.count == 2
    assert [[halving.end_epoch(job, rung) for rung in (1, 2)] for job in (0, 8)] == [[4, 8], [40, 80]]


@pytest.mark.parametrize(
    ("count", "overrides", "line"),
    [
        (3, ["sweep.halving=4"], "sweep.halving is 4, but the sweep has 3 runs: it must be 3 at most"),
        (1, ["sweep.halving=4"], "sweep.halving is 4, but the sweep has 1 run: it must be 1 at most"),
        (9, ["sweep.halving=3", "training.epochs=2"], "with training.epochs=2 and training.evaluations=10 nothing is measured"),
        (9, ["sweep.halving=3", "training.evaluations=2"], "nothing is measured in the first 1/3 of the epochs"),
    ],
)
def test_a_sweep_without_rungs_is_refused(composed, count, overrides, line):
    with pytest.raises(UserError) as error:
        Halving(configs(composed, count, *overrides))
    assert line in str(error.value)


def run(config, loss, outcome="stopped"):
    """A run with that training loss after 2 of 3 epochs of one step each."""
    history = History(np.full(3, np.nan), np.empty((3, 1)), np.empty((3, 1)), np.ones(3, int), 1, np.arange(4))
    history.measures["loss/train"] = np.array([9.0, 8.0, loss, np.nan])
    return TrainedRun(config, history, np.empty(0), outcome, 0.0, 0.0, {})


@pytest.fixture
def three(composed):
    """Six runs of which three go on from the first rung."""
    return Halving(configs(composed, 6, "sweep.halving=2", "training.epochs=3", "training.batch_size=null"))


def test_the_best_go_on_the_first_of_equals_and_what_is_not_finite_last(composed, three):
    losses = [0.5, np.nan, 0.2, 0.2, 0.2, 0.1]
    three.epochs = [[2]] * 6
    trained = {job: run(three.configs[job], loss) for job, loss in enumerate(losses)}
    assert three.survivors(1, trained, {}) == [2, 3, 5]
    # A run that has diverged goes nowhere, whatever was measured before.
    trained[5] = run(three.configs[5], 0.1, "diverged")
    assert three.survivors(1, trained, {}) == [2, 3, 4]
    few = {job: trained[job] for job in (0, 1, 5)}
    assert three.survivors(1, few, {}) == [0, 1]
    assert run_cost(trained[1].history, 2, MEASURES["loss/train"]) == np.inf


@pytest.mark.parametrize(
    ("tags", "went_on"),
    [
        ({"outcome": "trained"}, True),
        ({"outcome": "stuck"}, True),
        ({"outcome": "stopped", "rung": "1"}, False),
        ({"outcome": "stopped", "rung": "2"}, True),
        ({"outcome": "diverged", "diverged_step": "0"}, False),
        ({"outcome": "diverged", "diverged_step": "1"}, True),
    ],
)
def test_what_an_earlier_start_has_let_go_on_has_its_place(three, tags, went_on):
    trained = {job: run(three.configs[job], 0.1 * job) for job in range(1, 6)}
    three.epochs = [[1], *[[2]] * 5]
    assert three.survivors(1, trained, {0: tags}) == [1, 2] if went_on else [1, 2, 3]


def test_a_run_is_judged_by_its_training_loss_at_the_rung(composed):
    (config,) = configs(composed, 1, "sweep.halving=4", "training.epochs=4")
    (whole,), (part,) = train_stack([config]), train_stack([config], until=2)
    assert part.outcome == "stopped"
    assert run_cost(part.history, 2, MEASURES["loss/train"]) == whole.history.measures["loss/train"][2]
    assert np.isnan(part.final("loss/train"))
