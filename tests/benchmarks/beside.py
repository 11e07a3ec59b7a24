"""Two versions of the engine in one process: this checkout's beside another's, such as an earlier version's."""

import pkgutil
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib import import_module, invalidate_caches
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from blocks.arrays import Array
from experiments.run.config import UserError
from tests.benchmarks.command import ROUNDS as COMMAND_ROUNDS
from tests.benchmarks.command import RUNS, time_command
from tests.benchmarks.compiled import STACKS
from tests.benchmarks.step import BATCHES, CLASSES, SHAPES, ours, problem, time_steps, without_compiled
from tests.benchmarks.sweep import digits
from tests.benchmarks.tables import alternate, ratio

ROOT = Path(__file__).parents[2]
ROUNDS = 15
# Time that other processes take is not the engine's.
CLOCK = time.process_time
# Depth, width, batch, epochs.
Shape = tuple[int, int, int, int]
SHAPE = SHAPES[0]
PRODUCTS, NETWORKS, UPDATES, EVERY = 200, 4096, 100, 10


class Engine:
    """The package `blocks` of a checkout, and its modules by the last part of their names, wherever they lie.

    path: the checkout. Raises UserError where there is none.
    """

    def __init__(self, path: Path) -> None:
        self.path = folder = path.resolve()
        saved_modules = _loaded()
        for name in saved_modules:
            del sys.modules[name]
        sys.path.insert(0, str(folder))
        invalidate_caches()
        try:
            self.blocks: Any = import_module("blocks")
            for module in pkgutil.walk_packages(self.blocks.__path__, "blocks."):
                import_module(module.name)
            self.modules: dict[str, Any] = {name.rpartition(".")[2]: module for name, module in _loaded().items()}
            if not {"training", "hessian", "shallow", "program"} <= self.modules.keys():
                raise ImportError("it has no engine to lay beside this one")
            if folder / "blocks" not in map(Path, self.blocks.__path__):
                raise ImportError("it has no folder blocks")
        except Exception as error:
            raise UserError(f"PATH is {str(path)!r}, it must be a checkout of this project, 0.4.0 or later: {error}") from None
        finally:
            sys.path.remove(str(folder))
            for name in _loaded():
                del sys.modules[name]
            sys.modules.update(saved_modules)


def _loaded() -> dict[str, ModuleType]:
    return {name: module for name, module in sys.modules.items() if name.split(".")[0] == "blocks"}


class Case(NamedTuple):
    """What is measured: `prepare(engine)` gives a run that returns its number, in that unit."""

    title: str
    unit: str
    prepare: Callable[[Engine], Callable[[], float]]
    rounds: int = ROUNDS


def beside(other: Engine) -> None:
    """Another checkout's engine and this one's: medians of both, and the median of the ratios, below 1 where this is ahead."""
    engines = {"there": other, "here": Engine(ROOT)}
    print(f"\n{'float32, one thread':<52}{'there':>10}{'here':>10}{'':>6}{'here over there':>24}")
    for case in (*cases(), *commands()):
        runs = {name: case.prepare(engine) for name, engine in engines.items()}
        their_times, our_times = alternate(runs, 1, case.rounds).values()
        print(
            f"  {case.title:<50}{np.median(their_times):10.2f}{np.median(our_times):10.2f} {case.unit:<5}"
            f"{ratio(our_times, their_times):>24}",
            flush=True,
        )


def commands() -> Iterator[Case]:
    """The whole command, process start, record and pictures included."""
    yield Case(
        f"{RUNS} runs end to end, tracked, all processes", "s", lambda engine: partial(time_command, engine.path), COMMAND_ROUNDS
    )


def cases() -> Iterator[Case]:
    """Every case of the engine alone."""
    for how, compiled in (("", True), (", NumPy alone", False)):
        for shape in SHAPES:
            yield Case(f"a step, {_name(shape)}, relu{how}", "us", partial(_step, compiled, shape))
        for stack, shape in ((4, SHAPE), (16, STACKS[0])):
            yield Case(f"a step, {stack} x ({_name(shape)}), relu{how}", "us", partial(_step, compiled, shape, lanes=stack))
        for activation in ("gelu", "elu", "softplus", "sigmoid"):
            yield Case(f"a step, {_name(SHAPE)}, {activation}{how}", "us", partial(_step, compiled, SHAPE, activation=activation))
        for kind in ("residual", "normalized"):
            yield Case(f"a step, {_name(SHAPE)}, {kind}{how}", "us", partial(_step, compiled, SHAPE, kind=kind))
    for depth, width in ((9, 64), (5, 16)):
        yield Case(f"H v, {depth} x {width}, batch 64, relu", "us", partial(_hessian_product, depth, width))
    for activation in ("tanh", "relu", "identity"):
        title = f"a map's {NETWORKS} networks, n = 8, {UPDATES} updates, {activation}"
        yield Case(title, "ms", partial(_map, activation), 5)
    for depth, activation in product((9, 33), ("relu", "gelu")):
        yield Case(f"a training's start, {depth} x 64, {activation}", "ms", partial(_start, depth, activation))
        yield Case(f"a Hessian's start, {depth} x 64, {activation}", "ms", partial(_hessian_start, depth, activation))
    yield Case(f"sharpness at every {EVERY}th update over none", "x", _sharpness)
    networks: Iterable[tuple[str, list[int], int, int, int | None]] = (
        ("784-128-128-10, 6000 examples", [784, 128, 128], 6000, 128, None),
        ("9 x 64, 1437 examples", [64] * 9, 1437, 64, None),
        ("33 x 64, 1437 examples", [64] * 33, 1437, 64, None),
        ("16 x (9 x 64), 1437 examples", [64] * 9, 1437, 64, 16),
        ("9 x 64, 1437 examples at once", [64] * 9, 1437, 1437, None),
    )
    for title, sizes, m, batch, lanes in networks:
        yield Case(f"peak memory, {title}", "MiB", partial(_peak, [*sizes, CLASSES], m, batch, lanes), 1)


def _name(shape: Shape) -> str:
    depth, width, batch, _ = shape
    return f"{depth} x {width}, batch {batch}"


def _step(compiled: bool, shape: Shape, engine: Engine, **more: Any) -> Callable[[], float]:
    depth, width, batch, epochs = shape
    steps = time_steps(*problem(depth, width, batch), batch, epochs, clock=CLOCK, engine=engine.blocks, **more)
    run = steps if compiled else without_compiled(steps, engine.modules["program"])
    return lambda: run() / (epochs * BATCHES) * 1e6


def _start(depth: int, activation: str, engine: Engine) -> Callable[[], float]:
    """Of one step with its recording, what is more than one of a hundred."""
    sizes, x, y = problem(depth, 64, 64, batches=1)
    first = ours(sizes, x, y, 64, 1, engine=engine.blocks, activation=activation)
    hundred = ours(sizes, x, y, 64, 101, engine=engine.blocks, activation=activation)
    return lambda: (1.01 * _seconds(first) - 0.01 * _seconds(hundred)) * 1e3


def _hessian(depth: int, width: int, activation: str, engine: Engine) -> Callable[[], Any]:
    sizes, x, y = problem(depth, width, 64, batches=1)
    network = engine.blocks.Network.create(sizes, activation, rng=np.random.default_rng(1), dtype=np.float32)
    return partial(engine.modules["hessian"].Hessian, network, x, y, engine.blocks.losses.softmax_cross_entropy, (1,))


def _hessian_start(depth: int, activation: str, engine: Engine) -> Callable[[], float]:
    start = _hessian(depth, 64, activation, engine)
    return lambda: _seconds(start) * 1e3


def _hessian_product(depth: int, width: int, engine: Engine) -> Callable[[], float]:
    hessian = _hessian(depth, width, "relu", engine)()
    hessian.v[...] = np.random.default_rng(2).standard_normal(hessian.v.shape)

    def run() -> None:
        for _ in range(PRODUCTS):
            hessian.times()

    return lambda: _seconds(run) / PRODUCTS * 1e6


def _map(activation: str, engine: Engine) -> Callable[[], float]:
    rng = np.random.default_rng(0)
    W, w, x, y = (rng.standard_normal(shape) for shape in ((8, 8), (1, 8), (8, 16), (1, 16)))
    rates = 10 ** rng.uniform(-2, 2, (NETWORKS, 2))
    run = partial(engine.modules["shallow"].shallow_losses, W, w, x, y, rates, activation, UPDATES)
    return lambda: _seconds(run) * 1e3


def _sharpness(engine: Engine) -> Callable[[], float]:
    task = digits()
    x: Array = task.dataset.x.astype(np.float32)
    problem = [len(x), *[64] * 8, task.units], x, task.dataset.y, 64, 20, None, 0.05
    unwatched, watched = (
        ours(*problem, engine=engine.blocks, instruments=instruments)
        for instruments in ([], [engine.blocks.Instrument("sharpness", str(EVERY))])
    )
    return lambda: _seconds(watched) / _seconds(unwatched)


def _peak(sizes: list[int], m: int, batch: int, lanes: int | None, engine: Engine) -> Callable[[], float]:
    """The most memory that two epochs have in use beside the network, whose first training has imported what it needs."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((sizes[0], m), np.float32), rng.integers(0, CLASSES, m)
    training = ours(sizes, x, y, batch, 2, lanes, engine=engine.blocks)

    def run() -> float:
        tracemalloc.start()
        try:
            training()
            return tracemalloc.get_traced_memory()[1] / 2**20
        finally:
            tracemalloc.stop()

    return run


def _seconds(run: Callable[[], Any]) -> float:
    start = CLOCK()
    run()
    return CLOCK() - start
