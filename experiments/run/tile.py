"""A map's pixels, trained: the networks of some pairs of values -> outcome, measure and step of divergence of each."""

import math
from dataclasses import replace

import numpy as np
from threadpoolctl import threadpool_limits

from blocks.arrays import Array
from experiments.run import paper
from experiments.run.config import SweepConfig, UserError
from experiments.run.data import load_task
from experiments.run.grid import BLOCK_RATES, Grid, MappedConfig, corners, key_type, runs_at
from experiments.run.memory import check_memory
from experiments.run.paper import DIVERGED, PIXEL, STUCK, TRAINED
from experiments.run.stack import check_size, plan, train_stack

OUTCOMES = {"trained": TRAINED, "stuck": STUCK, "diverged": DIVERGED}
# A map's networks are small and many: a call then costs less a lane than in a sweep's stacks, which are to end one by one.
LANES = 256
OTHER = {"float64": "float32", "float32": "float64"}


def check_trainable(config: MappedConfig) -> None:
    """Raise UserError unless the networks at the map's corners can be made, and are not asked for what a sweep has alone."""
    asked, default = config.sweep, SweepConfig()
    for name in ("study", "measure", "halving"):
        if (value := getattr(asked, name)) != (allowed := getattr(default, name)):
            raise UserError(f"sweep.{name} is {value!r}, which a map does not have: it must be {allowed or 'null'}")
    if config.map.setup == "paper":
        _rates(config, np.ones(1), np.ones(1))
        paper.problem(config, config.map.file)
        check_memory(f"training.epochs is {config.training.epochs}", 8 * config.map.tile**2 * config.training.epochs)
        return
    if config.map.file is not None:
        raise UserError(f"map.file is {config.map.file!r}, which is for map.setup=paper alone")
    for corner in corners(config):
        check_size(corner, load_task(corner))


def train_tile(config: MappedConfig, grid: Grid, place: tuple[slice, slice]) -> Array:
    """(rows, columns) PIXELs of a tile."""
    trained = train_pixels(config, *grid.pixels(place))
    return trained.reshape(place[0].stop - place[0].start, place[1].stop - place[1].start)


def train_pixels(config: MappedConfig, x: Array, y: Array) -> Array:
    """(pixels,) PIXELs of the networks with those values, (pixels,) each.

    measure: the paper's, see `run.paper.score`; of a run's config the final training loss, inf where it diverged.
    step: of divergence, -1 where there is none.
    """
    if config.map.setup == "paper":
        with threadpool_limits(config.training.threads, user_api="blas"):
            return paper.score(
                paper.losses(
                    paper.problem(config, config.map.file),
                    config.network.activation,
                    _rates(config, x, y),
                    config.training.epochs,
                    config.dtype,
                    config.map.early_exit,
                )
            )
    configs = runs_at(config, x, y)
    tasks = [load_task(config) for config in configs]
    pixels = np.empty(len(configs), PIXEL)
    for stack in plan(configs, tasks, most=LANES):
        for index, trained in zip(stack, train_stack([configs[k] for k in stack], tasks[stack[0]]), strict=True):
            loss = trained.final("loss/train")
            step = int(trained.history.diverged_step)
            pixels[index] = OUTCOMES[trained.outcome], loss if math.isfinite(loss) else math.inf, step
    return pixels


def _rates(config: MappedConfig, x: Array, y: Array) -> Array:
    """(pixels, 2) the rates of W0 and W1."""
    rates = np.tile(np.array(config.optimizer.block_rates or [config.optimizer.learning_rate] * 2), (len(x), 1))
    for name, axis, values in (("map.x", config.map.x, x), ("map.y", config.map.y, y)):
        if axis.key not in (f"{BLOCK_RATES}1", f"{BLOCK_RATES}2"):
            raise UserError(f"{name}.key is {axis.key!r}, the paper's set-up maps {BLOCK_RATES}1 and {BLOCK_RATES}2")
        rates[:, int(axis.key.removeprefix(BLOCK_RATES)) - 1] = values
    return rates


def floor_tile(config: MappedConfig, grid: Grid, place: tuple[slice, slice], labels: Array, boundary: Array) -> Array:
    """(rows, columns) of a tile: 0 off the boundary, else 1, 2, 3 or 4: its label stays, or flips in the other precision
    alone, with values one rounding away alone, in both.

    Values times 1 + eps, eps = 2^-52 in float64 and 2^-23 in float32; whole numbers stay.
    labels, boundary: (rows, columns) bool, which pixels have trained, and which are trained again.
    """
    floor = np.zeros(labels.shape, np.uint8)
    if boundary.any():
        x, y = (values[boundary.ravel()] for values in grid.pixels(place))
        nudge = 1 + float(np.finfo(config.dtype).eps)
        nudged = [
            values if key_type(config, axis.key) is int else values * nudge
            for axis, values in ((config.map.x, x), (config.map.y, y))
        ]
        other = replace(config, dtype=OTHER[config.dtype])
        by_rounding = (train_pixels(config, *nudged)["outcome"] == TRAINED) != labels[boundary]
        by_precision = (train_pixels(other, x, y)["outcome"] == TRAINED) != labels[boundary]
        floor[boundary] = 1 + by_precision + 2 * by_rounding
    return floor
