"""Successive halving: at rungs, all runs of a sweep are compared, and the worst are stopped.

With a factor eta, n runs and R epochs, rung k = 1..s comes after R / eta^(s + 1 - k) epochs, and the best n / eta^k runs go on
from there (Jamieson and Talwalkar 2016). This is the schedule of Hyperband's inner loop (Li et al. 2018, algorithm 1) with
s = 2, or s = 1 where there are too few runs or epochs for two rungs. A rung moves back to the last evaluation of all examples
before it, so that the run's history has the loss that is compared.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from blocks.history import History, log_spaced
from experiments.run.config import Config, UserError
from experiments.run.data import load_task
from experiments.run.measure import MEASURES, Measure
from experiments.run.naming import format_value
from experiments.run.stack import STOPPED, TrainedRun, steps_of

# Before 1/eta^2 of the epochs, the order of the runs says little about their order at the end: with as many rungs as possible,
# `benchmark halving` loses its best run.
MAX_RUNGS = 2


def run_cost(history: History, epochs: int, measure: Measure) -> float:
    """Return what runs are compared by after that number of epochs: the smallest is the best, and inf is one that is not finite.

    epochs: one after which the history has an evaluation.
    """
    (index,) = np.flatnonzero(history.evaluated == epochs * history.steps_an_epoch)
    value = float(history.measures[measure.name][index])
    return measure.cost(value) if math.isfinite(value) else math.inf


class Halving:
    """The rungs of a sweep.

    configs: the runs' configs, which all have the same `sweep.halving`.

    factor: eta. runs: n, their number. measure: what they are compared by. count: s, the number of rungs.
    epochs: for each run the epochs after which its rungs come.

    Raises UserError where no rung is possible: there are fewer runs than the factor, or no evaluation comes early enough.
    """

    def __init__(self, configs: Sequence[Config]) -> None:
        factor = configs[0].sweep.halving
        assert factor is not None
        self.configs, self.factor, self.runs = configs, factor, len(configs)
        self.measure = MEASURES[configs[0].sweep.measure]
        name = f"sweep.halving is {format_value(factor)}"
        count = 0
        while count < MAX_RUNGS and self.runs >= factor ** (count + 1):
            count += 1
        if not count:
            raise UserError(f"{name}, but the sweep has {self.runs} run{'s' * (self.runs > 1)}: it must be {self.runs} at most")
        rung_epochs = [_rung_epochs(config, factor) for config in configs]
        for config, epochs in zip(configs, rung_epochs, strict=True):
            if not epochs:
                training = config.training
                raise UserError(
                    f"{name}, but with training.epochs={training.epochs} and training.evaluations={training.evaluations} "
                    f"nothing is measured in the first 1/{format_value(factor)} of the epochs: there must be an evaluation"
                )
        self.count = min(count, *map(len, rung_epochs))
        self.epochs = [epochs[-self.count :] for epochs in rung_epochs]

    def end_epoch(self, job: int, rung: int) -> int | None:
        """Return the number of epochs after which the job comes to that rung; None, all epochs, after the last rung.

        rung: counted from 1.
        """
        return self.epochs[job][rung - 1] if rung <= self.count else None

    def n_survivors(self, rung: int) -> int:
        """Return how many runs go on from that rung."""
        return int(self.runs / self.factor**rung)

    def survivors(self, rung: int, runs: Mapping[int, TrainedRun], recorded_tags: Mapping[int, Mapping[str, str]]) -> list[int]:
        """Return the jobs that go on from that rung, in ascending order.

        runs: the runs that are trained up to it, by job.
        recorded_tags: the tags of the runs that an earlier start of the sweep has finished, by job. Those that went on from
        this rung are among its survivors already.
        """
        n_places = self.n_survivors(rung) - sum(self._went_on(job, rung, tags) for job, tags in recorded_tags.items())
        costs = {
            job: run_cost(run.history, self.epochs[job][rung - 1], self.measure)
            for job, run in runs.items()
            if run.outcome == STOPPED
        }
        return sorted(sorted(costs, key=lambda job: (costs[job], job))[: max(n_places, 0)])

    def _went_on(self, job: int, rung: int, tags: Mapping[str, str]) -> bool:
        """Return whether a finished run with those tags went on from that rung."""
        if tags["outcome"] == STOPPED:
            return int(tags["rung"]) > rung
        config = self.configs[job]
        steps = steps_of(config, load_task(config)) * self.epochs[job][rung - 1] // config.training.epochs
        return tags["outcome"] != "diverged" or int(tags["diverged_step"]) >= steps


def _rung_epochs(config: Config, factor: float) -> list[int]:
    """Return the epochs after which a run may have rungs, at most MAX_RUNGS, in ascending order.

    They are those of the last evaluation before 1/factor, 1/factor^2, ... of all epochs.
    """
    training = config.training
    evaluated, power = log_spaced(training.epochs + 1, training.evaluations)[1:], 1
    rung_epochs: set[int] = set()
    while len(rung_epochs) < MAX_RUNGS and (earlier := evaluated[evaluated <= training.epochs / factor**power]).size:
        rung_epochs.add(int(earlier[-1]))
        # This goes at once to the first power before that evaluation: with a factor near 1, millions may lie in between.
        power = max(power, math.floor(math.log(training.epochs / earlier[-1], factor))) + 1
    return sorted(rung_epochs)
