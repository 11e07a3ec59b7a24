"""Successive halving: at rungs, all runs of a sweep are judged together, and the worst are stopped.

With a factor eta, n runs and R epochs, rung k = 1..s is after R / eta^(s + 1 - k) epochs, and the best n / eta^k runs go on
from there (Jamieson and Talwalkar 2016; the schedule of Hyperband's inner loop, Li et al. 2018, algorithm 1, with s = 2, or 1
where there is no room for two). A rung is where the whole data were measured last until then, so that a run is judged by what
its history has.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from blocks.history import History, log_spaced
from experiments.run.config import Config, UserError
from experiments.run.data import load_task
from experiments.run.measure import MEASURES, Measure
from experiments.run.naming import format_value
from experiments.run.stack import STOPPED, Trained, steps_of

# Earlier than at 1/eta^2 of the epochs the order of the runs says little of their last: with all rungs there is room for, the
# best run of `benchmark halving` is lost.
MOST_RUNGS = 2


def judged_by(history: History, epochs: int, measure: Measure) -> float:
    """What a run is judged by after so many epochs, the smaller the better: its measure, inf where that is not finite."""
    (at,) = np.flatnonzero(history.evaluated == epochs * history.steps_an_epoch)
    value = float(history.measures[measure.name][at])
    return measure.cost(value) if math.isfinite(value) else math.inf


class Halving:
    """The rungs of a sweep of those configs, all with one `sweep.halving`.

    Raises UserError where there is none: fewer runs than the factor, or an epoch that comes too early.
    """

    def __init__(self, configs: Sequence[Config]) -> None:
        factor = configs[0].sweep.halving
        assert factor is not None
        self.configs, self.factor, self.runs = configs, factor, len(configs)
        self.measure = MEASURES[configs[0].sweep.measure]
        name = f"sweep.halving is {format_value(factor)}"
        count = 0
        while count < MOST_RUNGS and self.runs >= factor ** (count + 1):
            count += 1
        if not count:
            raise UserError(f"{name}, but the sweep has {self.runs} run{'s' * (self.runs > 1)}: it must be {self.runs} at most")
        places = [_evaluations(config, factor) for config in configs]
        for config, epochs in zip(configs, places, strict=True):
            if not epochs:
                training = config.training
                raise UserError(
                    f"{name}, but with training.epochs={training.epochs} and training.evaluations={training.evaluations} "
                    f"nothing is measured in the first 1/{format_value(factor)} of the epochs: there must be an evaluation"
                )
        self.count = min(count, *map(len, places))
        self.epochs = [epochs[-self.count :] for epochs in places]

    def until(self, job: int, rung: int) -> int | None:
        """The epochs that the job makes up to that rung, counted from 1; None, all, behind the last one."""
        return self.epochs[job][rung - 1] if rung <= self.count else None

    def most(self, rung: int) -> int:
        """How many runs go on from that rung."""
        return int(self.runs / self.factor**rung)

    def survivors(self, rung: int, trained: Mapping[int, Trained], recorded: Mapping[int, Mapping[str, str]]) -> list[int]:
        """The jobs that go on from that rung, in order.

        trained: up to it, by job. recorded: the tags of the jobs that an earlier start has judged and finished; those that
        went on there have their places.
        """
        places = self.most(rung) - sum(self._passed(job, rung, tags) for job, tags in recorded.items())
        costs = {
            job: judged_by(run.history, self.epochs[job][rung - 1], self.measure)
            for job, run in trained.items()
            if run.outcome == STOPPED
        }
        return sorted(sorted(costs, key=lambda job: (costs[job], job))[: max(places, 0)])

    def _passed(self, job: int, rung: int, tags: Mapping[str, str]) -> bool:
        """Whether a finished run went on from that rung."""
        if tags["outcome"] == STOPPED:
            return int(tags["rung"]) > rung
        config = self.configs[job]
        steps = steps_of(config, load_task(config)) * self.epochs[job][rung - 1] // config.training.epochs
        return tags["outcome"] != "diverged" or int(tags["diverged_step"]) >= steps


def _evaluations(config: Config, factor: float) -> list[int]:
    """The epochs that may be rungs, in order: where the whole data were measured last before 1/factor, 1/factor^2, ... of all,
    of which the last MOST_RUNGS that differ.
    """
    training = config.training
    evaluated, power = log_spaced(training.epochs + 1, training.evaluations)[1:], 1
    places: set[int] = set()
    while len(places) < MOST_RUNGS and (before := evaluated[evaluated <= training.epochs / factor**power]).size:
        places.add(int(before[-1]))
        # The first power that is earlier than that evaluation: with a factor near 1 there are millions between.
        power = max(power, math.floor(math.log(training.epochs / before[-1], factor))) + 1
    return sorted(places)
