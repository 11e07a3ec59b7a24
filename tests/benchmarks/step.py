"""One update of a network, beside its bare products, PyTorch and scikit-learn."""

import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, TypeVar
from unittest.mock import patch

import numpy as np
from threadpoolctl import threadpool_limits

import blocks
from blocks.arrays import Array, transpose
from blocks.parameters import Layout
from blocks.tape import program
from blocks.tape.recorder import Tape
from blocks.tape.replay import Replay
from tests.benchmarks.peers import scikit_learn, torch_loop
from tests.benchmarks.tables import alternate, ratio, table

T = TypeVar("T")
# depth, width, batch, epochs a turn: short, so that a busy machine slows all contestants alike.
SHAPES = ((9, 64, 64, 20), (33, 64, 64, 5), (5, 512, 256, 1), (5, 16, 32, 40))
BATCHES, ROUNDS = 22, 15
TOGETHER = 11
INPUTS, CLASSES = 64, 10


def step() -> None:
    """One update, every block's gradient norms included, beside bare products, PyTorch's eager loop and scikit-learn."""
    for depth, width, batch, epochs in SHAPES:
        sizes, x, y = problem(depth, width, batch)
        steps = epochs * BATCHES
        contestants = {
            "ours, with norms": time_steps(sizes, x, y, batch, epochs),
            "ours, NumPy alone": without_compiled(time_steps(sizes, x, y, batch, epochs)),
            "bare np.matmul": bare(sizes, batch, steps),
            "the norms alone": _norms(sizes, steps),
            "the norms, checked to be finite": _norms(sizes, steps, checked=True),
            "PyTorch eager, with norms": torch_loop(sizes, x, y, batch, True, epochs),
            "PyTorch eager, without norms": torch_loop(sizes, x, y, batch, False, epochs),
            "scikit-learn, without norms": scikit_learn(sizes, x, y, batch, epochs),
        }
        times_of = alternate(contestants, steps, ROUNDS)
        table(f"a step of {depth} blocks x {width}, batch {batch}, float32, relu, one thread", times_of, "us", 1e6)
        ours_times, bare_products = times_of["ours, with norms"], times_of["bare np.matmul"]
        print(f"  ours over the bare products: {ratio(ours_times, bare_products)}")
        print(f"  with NumPy alone:            {ratio(times_of['ours, NumPy alone'], bare_products)}")
        print(f"  the norms' part of ours:     {ratio(times_of['the norms alone'], ours_times)}")
        print(f"  with the check:              {ratio(times_of['the norms, checked to be finite'], ours_times)}")


def problem(depth: int, width: int, batch: int, inputs: int = INPUTS, batches: int = BATCHES) -> tuple[list[int], Array, Array]:
    """sizes, x and y of a network and data for it, float32."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((inputs, batches * batch), np.float32)
    return [inputs, *[width] * (depth - 1), CLASSES], x, rng.integers(0, CLASSES, batches * batch)


def ours(
    sizes: list[int],
    x: Array,
    y: Array,
    batch: int,
    epochs: int,
    lanes: int | None = None,
    rate: float = 1e-3,
    *,
    engine: Any = blocks,
    watch: Callable[..., None] | None = None,
    instruments: Sequence[Any] = (),
    **network: str,
) -> Callable[[], None]:
    """A training, the whole sets not measured. engine: the package `blocks`, this one or an earlier version's."""
    trained = engine.Network.create(sizes, rng=np.random.default_rng(1), dtype=np.float32, lanes=lanes, **network)
    start = trained.parameters.copy()
    orders = engine.reshuffled(np.random.default_rng(2), x.shape[1])
    rule = engine.GradientDescent(rate if lanes is None else np.full(lanes, rate))

    def run() -> None:
        trained.parameters[...] = start
        engine.train(
            trained,
            x,
            y,
            loss=engine.losses.softmax_cross_entropy,
            optimizer=rule,
            epochs=epochs,
            batch_size=batch,
            orders=orders,
            evaluations=0,
            watch=watch,
            instruments=instruments,
        )

    return run


def time_steps(
    sizes: list[int],
    x: Array,
    y: Array,
    batch: int,
    epochs: int,
    lanes: int | None = None,
    *,
    clock: Callable[[], float] = time.perf_counter,
    **more: Any,
) -> Callable[[], float]:
    """Seconds of so many epochs of a training: one before them, in which it records, and what comes after are not counted."""
    ends: list[float] = []
    training = ours(sizes, x, y, batch, epochs + 1, lanes, watch=lambda step, history: ends.append(clock()), **more)

    def run() -> float:
        ends.clear()
        training()
        return ends[-1] - ends[0]

    return run


def without_compiled(run: Callable[[], T], engine_program: Any = program) -> Callable[[], T]:
    """The same without the extra `compiled`. engine_program: the module that makes one program of many calls."""

    def run_without_compiled() -> T:
        with patch.object(engine_program, "_machine", lambda: None):
            return run()

    return run_without_compiled


def on_two_threads(run: Callable[[], T]) -> Callable[[], T]:
    """The same with two threads for every product."""

    def run_on_two() -> T:
        with threadpool_limits(2, user_api="blas"):
            return run()

    return run_on_two


def _norms(sizes: list[int], repeats: int, checked: bool = False) -> Callable[[], None]:
    """All blocks' gradient norms; checked: with what tells a training that a lane has diverged."""
    layout, tape = Layout(sizes), Tape()
    gradient = np.random.default_rng(1).standard_normal(layout.size, np.float32)
    # In a step they are part of a longer program, and cost no call of their own.
    flat = tape.watch(gradient)
    squares = [layout.squares(flat) for _ in range(TOGETHER)]
    norms = [np.sqrt(square) for square in squares]
    replay = Replay(tape, [*squares, *norms])
    measured = [(replay.array(norm), replay.array(square)) for norm, square in zip(norms, squares, strict=True)]

    def run() -> None:
        for _ in range(repeats // TOGETHER):
            replay()
            for norm, square in measured * checked:
                layout.rescale(norm, square, gradient)

    return run


def bare(sizes: list[int], batch: int, repeats: int) -> Callable[[], None]:
    """The products no step can do without: W a_prev, dz a_prev^T and, above block 1, W^T dz."""
    rng = np.random.default_rng(3)

    def matrix(*shape: int) -> Array:
        return rng.standard_normal(shape).astype(np.float32)

    products = []
    for index, (n_prev, n) in enumerate(pairwise(sizes)):
        W, a_prev, z = matrix(n, n_prev), matrix(n_prev, batch), matrix(n, batch)
        products += [(W, a_prev, z.copy()), (z, transpose(a_prev), W.copy())]
        if index:
            products.append((transpose(W), z, a_prev.copy()))

    def run() -> None:
        for _ in range(repeats):
            for left, right, out in products:
                np.matmul(left, right, out=out)

    return run
