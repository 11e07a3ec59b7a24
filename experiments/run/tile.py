"""The training of a map's pixels: the networks of pairs of values -> outcome, measure and step of divergence of each."""

import math
from dataclasses import replace

import numpy as np
from threadpoolctl import threadpool_limits

from blocks.arrays import Array
from experiments.run import paper
from experiments.run.config import SweepConfig, UserError
from experiments.run.data import load_task
from experiments.run.grid import BLOCK_RATES, Grid, MappedConfig, corners, key_type, pixel_configs
from experiments.run.memory import check_memory
from experiments.run.paper import DIVERGED, PIXEL, STUCK, TRAINED
from experiments.run.stack import check_size, plan, train_stack

OUTCOMES = {"trained": TRAINED, "stuck": STUCK, "diverged": DIVERGED}
# Large stacks suit a map's networks, which are small and many. A sweep's stacks have fewer lanes, so that runs end one by one.
MAX_LANES = 256
OTHER_DTYPE = {"float64": "float32", "float32": "float64"}


def check_trainable(config: MappedConfig) -> None:
    """Raise UserError unless the networks at the map's corners can be trained, and no key is set that only a sweep has."""
    sweep, default = config.sweep, SweepConfig()
    for name in ("study", "measure", "halving"):
        if (value := getattr(sweep, name)) != (required_value := getattr(default, name)):
            raise UserError(f"sweep.{name} is {value!r}, which a map does not have: it must be {required_value or 'null'}")
    if config.map.setup == "paper":
        _rates(config, np.ones(1), np.ones(1))
        paper.create_problem(config, config.map.file)
        check_memory(f"training.epochs is {config.training.epochs}", 8 * config.map.tile**2 * config.training.epochs)
        return
    if config.map.file is not None:
        raise UserError(f"map.file is {config.map.file!r}, which is for map.setup=paper alone")
    for corner in corners(config):
        check_size(corner, load_task(corner))


def train_tile(config: MappedConfig, grid: Grid, tile: tuple[slice, slice]) -> Array:
    """Train a tile and return its pixels, (rows, columns) of dtype PIXEL. tile: its slices (rows, columns)."""
    pixels = train_pixels(config, *grid.pixels(tile))
    return pixels.reshape(tile[0].stop - tile[0].start, tile[1].stop - tile[1].start)


def train_pixels(config: MappedConfig, x: Array, y: Array) -> Array:
    """Train the networks of some pixels and return their outcome, measure and step, (pixels,) of dtype PIXEL.

    For the paper's networks see `run.paper.score`. For a run's config, the measure is the final training loss, inf where it
    diverged, and the step is that of divergence, -1 where it did not diverge.

    x, y: (pixels,) the values of the two keys.
    """
    if config.map.setup == "paper":
        with threadpool_limits(config.training.threads, user_api="blas"):
            return paper.score(
                paper.losses(
                    paper.create_problem(config, config.map.file),
                    config.network.activation,
                    _rates(config, x, y),
                    config.training.epochs,
                    config.dtype,
                    config.map.early_exit,
                )
            )
    configs = pixel_configs(config, x, y)
    tasks = [load_task(config) for config in configs]
    pixels = np.empty(len(configs), PIXEL)
    for stack in plan(configs, tasks, max_lanes=MAX_LANES):
        for index, run in zip(stack, train_stack([configs[k] for k in stack], tasks[stack[0]]), strict=True):
            loss = run.final("loss/train")
            step = int(run.history.diverged_step)
            pixels[index] = OUTCOMES[run.outcome], loss if math.isfinite(loss) else math.inf, step
    return pixels


def _rates(config: MappedConfig, x: Array, y: Array) -> Array:
    """Return the learning rates of W0 and W1, (pixels, 2). Raises UserError for an axis with another key."""
    rates = np.tile(np.array(config.optimizer.block_rates or [config.optimizer.learning_rate] * 2), (len(x), 1))
    for name, axis, values in (("map.x", config.map.x, x), ("map.y", config.map.y, y)):
        if axis.key not in (f"{BLOCK_RATES}1", f"{BLOCK_RATES}2"):
            raise UserError(f"{name}.key is {axis.key!r}, the paper's set-up maps {BLOCK_RATES}1 and {BLOCK_RATES}2")
        rates[:, int(axis.key.removeprefix(BLOCK_RATES)) - 1] = values
    return rates


def floor_tile(config: MappedConfig, grid: Grid, tile: tuple[slice, slice], labels: Array, boundary: Array) -> Array:
    """Train the boundary's pixels of a tile again, and return which labels depend on rounding: (rows, columns), uint8.

    0: not on the boundary. 1: the label stays the same. 2: it changes in the other precision. 3: it changes with values one
    rounding away, which are x (1 + eps) and y (1 + eps), eps = 2^-52 in float64 and 2^-23 in float32; whole numbers stay.
    4: it changes in both cases.

    tile: its slices (rows, columns). labels: (rows, columns) bool, True where the network has trained.
    boundary: (rows, columns) bool, True where a pixel is trained again.
    """
    floor = np.zeros(labels.shape, np.uint8)
    if boundary.any():
        x, y = (values[boundary.ravel()] for values in grid.pixels(tile))
        factor = 1 + float(np.finfo(config.dtype).eps)
        nudged_values = [
            values if key_type(config, axis.key) is int else values * factor
            for axis, values in ((config.map.x, x), (config.map.y, y))
        ]
        other_config = replace(config, dtype=OTHER_DTYPE[config.dtype])
        flips_by_rounding = (train_pixels(config, *nudged_values)["outcome"] == TRAINED) != labels[boundary]
        flips_by_precision = (train_pixels(other_config, x, y)["outcome"] == TRAINED) != labels[boundary]
        floor[boundary] = 1 + flips_by_precision + 2 * flips_by_rounding
    return floor
