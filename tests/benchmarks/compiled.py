"""One network, and stacks of networks, beside JAX's compiled loops."""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np

from blocks.arrays import Array
from blocks.parameters import Layout
from experiments.run.stack import suitable_lanes
from tests.benchmarks.peers import jax_training
from tests.benchmarks.step import BATCHES, SHAPES, on_two_threads, ours, problem, time_steps, without_compiled
from tests.benchmarks.sweep import digits
from tests.benchmarks.tables import alternate, ratio, table

COMPILED_DEPTHS, EPOCHS, WIDTH, BATCH, RATE = (2, 5, 9, 33), 20, 64, 64, 1e-2
COMPILED_ROUNDS, STEADY_ROUNDS, STACK_ROUNDS = 5, 15, 7
LANES = 16
# depth, width, batch, epochs a turn.
STACKS = ((5, 16, 32, 40), (9, 64, 64, 20), (33, 64, 64, 5))


def compiled() -> None:
    """One network beside JAX's jit(scan), on all cores: a run on digits with the compilation, and a step without it."""
    task = digits()
    x, y = task.dataset.x.astype(np.float32), task.dataset.y
    for depth in COMPILED_DEPTHS:
        sizes = [x.shape[0], *[WIDTH] * (depth - 1), task.units]
        contestants = {
            "ours, with norms": ours(sizes, x, y, BATCH, EPOCHS, rate=RATE),
            "JAX jit(scan), compilation included": _jax_from_scratch(sizes, x, y, BATCH, EPOCHS),
        }
        table(
            f"a run of {EPOCHS} epochs on digits, {depth} blocks x {WIDTH}, batch {BATCH}, float32, relu",
            alternate(contestants, 1, COMPILED_ROUNDS, warm_up=False),
            "ms",
            1e3,
        )
    for depth, width, batch, epochs in SHAPES:
        sizes, x, y = problem(depth, width, batch)
        run = time_steps(sizes, x, y, batch, epochs)
        steady: dict[str, Callable[[], Any]] = {
            "ours, with norms": run,
            "ours, two threads": on_two_threads(run),
            "JAX jit(scan)": _jax(sizes, x, y, batch, epochs),
        }
        times = alternate(steady, epochs * BATCHES, STEADY_ROUNDS)
        table(f"a step of {depth} blocks x {width}, batch {batch}, float32, relu, compilation excluded", times, "us", 1e6)


def _jax_from_scratch(sizes: list[int], x: Array, y: Array, batch: int, epochs: int) -> Callable[[], None]:
    import jax

    def run() -> None:
        jax.clear_caches()
        jax.block_until_ready(jax.jit(jax_training(sizes, x, y, batch, epochs))(np.float32(RATE)))

    return run


def _jax(sizes: list[int], x: Array, y: Array, batch: int, epochs: int, lanes: int | None = None) -> Callable[[], None]:
    import jax

    training = jax_training(sizes, x, y, batch, epochs)
    rate = np.float32(RATE) if lanes is None else np.full(lanes, RATE, np.float32)
    ready = jax.jit(training if lanes is None else jax.vmap(training)).lower(rate).compile()

    def run() -> None:
        jax.block_until_ready(ready(rate))

    return run


def stacks() -> None:
    """A network's step in a stack of 16: beside 16 networks one after another, and, two stacks side by side in processes,
    beside JAX's vmap over as many networks, which takes all cores; compilation excluded.
    """
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        for depth, width, batch, epochs in STACKS:
            sizes, x, y = problem(depth, width, batch)
            single, stack = time_steps(sizes, x, y, batch, epochs), time_steps(sizes, x, y, batch, epochs, LANES)

            def loop(single: Callable[[], float] = single) -> float:
                return sum(single() for _ in range(LANES))

            suitable = suitable_lanes(Layout(sizes), batch, "float32")
            few = time_steps(sizes, x, y, batch, epochs, suitable)

            def in_stacks(few: Callable[[], float] = few, stacks: int = -(-LANES // suitable)) -> float:
                return sum(few() for _ in range(stacks))

            def side_by_side(shape: tuple[int, int, int, int] = (depth, width, batch, epochs)) -> float:
                return max(pool.map(_stack_of, [shape] * 2))

            contestants = {
                f"ours, a stack of {LANES}": stack,
                f"ours, {LANES} in a loop": loop,
                f"ours, {-(-LANES // suitable)} x {suitable} in stacks, as a sweep's": in_stacks,
                f"ours, a stack of {LANES}, NumPy alone": without_compiled(stack),
                f"ours, {LANES} in a loop, NumPy alone": without_compiled(loop),
                f"ours, two stacks of {LANES}, two processes": side_by_side,
                f"JAX vmap, {2 * LANES} networks": _jax(sizes, x, y, batch, epochs, 2 * LANES),
            }
            times = alternate(contestants, epochs * BATCHES * LANES, STACK_ROUNDS)
            names = list(times)
            times[names[2]] *= LANES / (-(-LANES // suitable) * suitable)
            for name in names[5:]:
                times[name] /= 2
            table(f"a network's step of {depth} blocks x {width}, batch {batch}, float32, relu", times, "us", 1e6)
            one, looped, sized, one_by_numpy, looped_by_numpy, two, jax_s = times.values()
            print(f"  the loop over the stack: {ratio(looped, one)}, with NumPy alone {ratio(looped_by_numpy, one_by_numpy)}")
            print(f"  over a sweep's stacks:   {ratio(looped, sized)}")
            print(f"  JAX over two stacks:     {ratio(jax_s, two)}")


_STACKS: dict[tuple[int, int, int, int], Callable[[], float]] = {}


def _stack_of(shape: tuple[int, int, int, int]) -> float:
    """Train that stack, which this process keeps."""
    if shape not in _STACKS:
        depth, width, batch, epochs = shape
        _STACKS[shape] = time_steps(*problem(depth, width, batch), batch, epochs, LANES)
    return _STACKS[shape]()
