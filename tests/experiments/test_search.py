"""Searches: the command with hydra/sweeper=random and hydra/sweeper=optuna, and the store that it writes."""

import numpy as np
import optuna
import pytest

from tests.experiments.conftest import ALONE

TINY = ["dataset=iris", "network.width=8", "training.epochs=2", "tracking.pictures=none", "tracking.models=none"]
SPACE = ["network.depth=2,3", "optimizer.learning_rate=tag(log,interval(1e-3,1))"]
RATE = "optimizer.learning_rate"


def trials(lab):
    """(depth, rate, final loss) of every run, in the order of the jobs."""
    runs = sorted(lab.runs(), key=lambda run: int(run.data.tags["job"]))
    return [
        (int(run.data.params["network.depth"]), float(run.data.params[RATE]), run.data.metrics["final/loss_train"])
        for run in runs
    ]


def test_a_random_search_is_one_sweep_with_its_best_first_and_the_same_again(lab):
    command = ["-m", "hydra/sweeper=random", "hydra.sweeper.n_trials=12", "hydra.sweeper.seed=3", *TINY, *SPACE, ALONE]
    output = lab.run(*command)
    found = trials(lab)
    shares = np.random.default_rng(3).random((12, 2))
    assert [depth for depth, _, _ in found] == [2 + int(2 * share) for share, _ in shares]
    np.testing.assert_allclose([rate for _, rate, _ in found], 10 ** (-3 + 3 * shares[:, 1]), rtol=1e-5)
    assert [run.info.status for run in lab.runs("sweep")] == ["FINISHED"]
    header = output.splitlines().index("final training loss, the best 10 of 12 runs")
    losses = [float(line.split()[0].strip("*")) for line in output.splitlines()[header + 2 : header + 12]]
    assert losses == pytest.approx(sorted(loss for _, _, loss in found)[:10], rel=1e-3)
    again = lab.run(*command)
    assert "12 of 12 runs are in the record already" in again
    assert len(lab.runs()) == 12


def expected(n_trials, batch_size, results):
    """What Optuna proposes where it is told those results, by its own API."""
    study, proposed = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=1)), []
    while len(proposed) < n_trials:
        batch = [study.ask() for _ in range(min(batch_size, n_trials - len(proposed)))]
        for trial in batch:
            depth = trial.suggest_categorical("network.depth", ("2", "3"))
            proposed.append((int(depth), float(f"{trial.suggest_float(RATE, 1e-3, 1, log=True):.6g}")))
        for trial in batch:
            study.tell(trial, results[trial.number])
    return proposed


def test_optuna_s_batches_are_one_sweep_and_it_is_told_of_every_run(lab):
    # Ten trials are random: of the third batch the sampler's own.
    sweeper = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=14", "hydra.sweeper.batch_size=6", "hydra.sweeper.seed=1"]
    command = ["-m", *sweeper, *TINY, *SPACE]
    output = lab.run(*command, "hydra/launcher=basic")
    assert "14 trials over network.depth, optimizer.learning_rate, proposed 6 at a time" in output
    found = trials(lab)
    assert [(depth, rate) for depth, rate, _ in found] == expected(14, 6, [loss for _, _, loss in found])
    (parent,) = lab.runs("sweep")
    assert parent.info.status == "FINISHED"
    assert {run.data.tags["mlflow.parentRunId"] for run in lab.runs()} == {parent.info.run_id}
    assert "14 runs" in parent.info.run_name
    # As after a kill: what is missing is trained again, now in stacks, and nothing else is.
    for run in lab.runs()[7:]:
        lab.client().delete_run(run.info.run_id)
    again = lab.run(*command, ALONE)
    assert "7 of 14 runs are in the record already" in again
    assert trials(lab) == found
    assert len(lab.runs("sweep")) == 1


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["optimizer.learning_rate=interval(0.1,1)"], "is an interval, of which a grid has no values: hydra/sweeper=random"),
        (["hydra/sweeper=random", "hydra.sweeper.n_trials=0"], "hydra.sweeper.n_trials is 0, it must be at least 1"),
        (["hydra/sweeper=optuna", "hydra.sweeper.batch_size=0"], "hydra.sweeper.batch_size is 0, it must be at least 1"),
        (["hydra/sweeper=optuna", "hydra.sweeper.sampler=gpt"], "'gpt' is unknown, allowed: tpe, qmc, random"),
        (
            ["hydra/sweeper=optuna", "optimizer.learning_rate=interval(-1,1)"],
            "optimizer.learning_rate is -1.0, it must be finite and above 0",
        ),
        (["hydra/sweeper=random", "optimizer.learning_rate=interval(1,0)"], "from a smaller number to a larger one"),
        (
            # Of two ends and one batch, which is no less of a search.
            ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=4", "optimizer.learning_rate=interval(0.1,1)", "sweep.halving=3"],
            "sweep.halving is 3, but this search proposes its runs batch by batch: it must be null, or hydra/sweeper=random",
        ),
    ],
)
def test_what_cannot_be_searched_is_one_line_before_anything_is_made(lab, typed, said):
    output = lab.run("-m", *typed, status=1)
    assert said in output
    assert len(output.splitlines()) == 1
    assert not list(lab.folder.iterdir())


def test_optuna_that_is_not_installed_names_the_extra(lab):
    (lab.folder / "optuna.py").write_text("raise ImportError")
    output = lab.run("-m", "hydra/sweeper=optuna", *SPACE, status=1)
    assert output == "error: hydra/sweeper=optuna is not installed: pip install 'depth-laboratory[optuna]'\n"
