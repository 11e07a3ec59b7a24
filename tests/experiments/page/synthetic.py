"""Sweeps that were never trained, with curves in closed form: a thousand runs in a second."""

import itertools
import math
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np

from blocks.history import History, Quantity
from experiments.page.content import Heading, page_content
from experiments.pictures.report import Report, Row
from experiments.run.config import Config, DatasetConfig, UserError
from experiments.run.measure import MEASURES

DIGITS = DatasetConfig("digits", {"_target_": "sklearn.datasets.load_digits"})
STEPS = 100


@dataclass
class Kept:
    """What a page asks of a record."""

    run_id: str
    name: str
    history: History

    def files(self):
        environment = {"python": "3.11", "git.commit": "c0ffee", "git.branch": "of nobody's concern"}
        return SimpleNamespace(history=self.history, environment=environment)


@dataclass(frozen=True)
class Measured(Quantity):
    """With the histograms of the signals."""

    histograms: dict | None = None


def history(depth, rate, seed, diverged=False, signals=False):
    """loss exp(-rate t / 10), norms 10^(l - depth) exp(-rate t / 10), of block l."""
    steps = np.arange(STEPS)
    falling = np.exp(-rate * steps / 10) * (1 + 0.1 * seed)
    norms = falling[:, None] * 10.0 ** (np.arange(1, depth + 1) - depth)
    if diverged:
        falling[5:] = norms[5:] = np.nan
    evaluated = np.array([0, 25, 50, 75, 100])
    whole = np.append(falling, falling[-1])[evaluated]
    measures = dict.fromkeys(("loss/train", "loss/validation", "accuracy/train", "accuracy/validation"), whole)
    at = (np.array(5), np.array(depth)) if diverged else (np.array(-1), np.array(-1))
    made = History(falling, norms, norms, np.full(STEPS, 64), 25, evaluated, measures, {}, *at)
    if signals:
        made.quantities["signals"] = measured(depth)
    return made


def measured(depth):
    """z and a uniform on [-l, l] in bins of width 1/8, da and dW all of 2^-(l + step) < |v| < 2^(1 - l - step)."""
    at = np.array([0, 10, 99])
    edges = np.concatenate([[-np.inf], np.arange(-16, 16.1, 1 / 8), [np.inf]])
    inside = [np.where((edges[:-1] >= -block) & (edges[1:] <= block), 10, 0) for block in range(1, depth + 1)]
    powers = np.concatenate([[0.0], 2.0 ** np.arange(-100, 20.0), [np.inf]])
    gradients = [[(powers[1:] == 2.0 ** (1 - block - place)) * 1000 for block in range(1, depth + 1)] for place in range(3)]
    histograms = {symbol: SimpleNamespace(edges=edges, counts=np.array([inside] * 3)) for symbol in ("z", "a")}
    histograms |= {symbol: SimpleNamespace(edges=powers, counts=np.array(gradients)) for symbol in ("da", "dW")}
    return Measured(at, np.zeros((3, 1)), None, histograms)


@dataclass
class Damaged(Kept):
    """One whose files are not what was recorded."""

    def files(self):
        raise UserError(f"history.npz of job {int(self.run_id, 16)} is damaged")


def sweep(
    depths=(2, 5), rates=(0.1, 1.0), seeds=(0,), diverged=lambda depth, rate, seed: False, signals=False, damaged=(), **texts
):
    """The content of a page of that grid. damaged: jobs. texts: dataset, name, verdict, measure."""
    measure = MEASURES[texts.get("measure", "loss/train")]
    rows, runs = [], {}
    data = replace(DIGITS, name=texts.get("dataset", "digits"))
    for job, (depth, rate, seed) in enumerate(itertools.product(depths, rates, seeds)):
        config = Config(dataset=data, seed=seed)
        config.network.depth, config.optimizer.learning_rate, config.sweep.measure = depth, rate, measure.name
        made = history(depth, rate, seed, diverged(depth, rate, seed), signals)
        value = made.final(measure.name)
        lost = math.isnan(value)
        rows.append(Row(config, measure.worst if lost else value, "diverged" if lost else "trained", job))
        runs[job] = (Damaged if job in damaged else Kept)(f"{job:032x}", f"depth {depth}, rate {rate:g}, seed {seed}", made)
    heading = Heading("f" * 32, texts.get("name", "a sweep"), texts.get("verdict", ""))
    return page_content(heading, Report(rows), runs)
