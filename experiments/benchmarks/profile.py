"""Where the time of a step goes, block by block, with NumPy alone."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np

from blocks import GradientDescent, Network, losses, reshuffled, train
from blocks.activations import Activation
from blocks.arrays import Array, Call, product
from blocks.optimizers import Optimizer
from blocks.parameters import Norms
from blocks.training import Workspace
from experiments.benchmarks.step import BATCHES, SHAPES, by_numpy_alone, ours, problem
from experiments.benchmarks.tables import alternate

ROUNDS = 15
# Of a deep network this many blocks at either end are shown.
SHOWN = 3


def profile() -> None:
    """Where the time of a step goes: every product, activation and derivative of every block, loss, norms, update, batch,
    and what is left for the Python between them; with NumPy alone, and what the extra `compiled` makes of it.
    """
    for depth, width, batch, epochs in SHAPES:
        sizes, x, y = problem(depth, width, batch)
        steps = epochs * BATCHES
        seconds: list[dict[str, Array]] = []

        def parts(problem: Any = (sizes, x, y, batch, epochs), seconds: list[dict[str, Array]] = seconds) -> None:
            seconds.append(_parts(*problem))

        own = ours(sizes, x, y, batch, epochs)
        turns = {"whole": by_numpy_alone(own), "compiled": own, "parts": by_numpy_alone(parts)}
        # Processor time of the whole: what other processes take from it would all seem to lie between the parts.
        times = alternate(turns, steps, ROUNDS, clock=time.thread_time)
        medians = {name: np.median([turn[name] for turn in seconds[1:]], axis=0) * 1e6 for name in seconds[0]}
        whole, compiled = (float(np.median(times[name])) * 1e6 for name in ("whole", "compiled"))
        _page(f"{depth} blocks x {width}, batch {batch}, float32, relu: us of a step", medians, whole, compiled)


def _parts(sizes: list[int], x: Array, y: Array, batch: int, epochs: int) -> dict[str, Array]:
    """name -> seconds a step, (L,) for what every block does."""
    depth = len(sizes) - 1
    with _timed() as clock:
        network = Network.create(sizes, rng=np.random.default_rng(1), dtype=np.float32)
        softmax = losses.softmax_cross_entropy
        train(
            network,
            x,
            y,
            loss=replace(softmax, calls=_as_one(clock, "loss", softmax.calls)),
            optimizer=GradientDescent(1e-3),
            epochs=epochs,
            batch_size=batch,
            orders=reshuffled(np.random.default_rng(2), x.shape[1]),
            evaluations=0,
        )
    steps = epochs * BATCHES
    taken = {name: np.median(np.reshape(seconds, (steps, -1)), axis=0) for name, seconds in clock.seconds.items()}
    # Forward from block 1 to L, then for each block from L down dz a_prev^T and, above block 1, W^T dz.
    products, backward = taken.pop("product"), taken.pop("dz")
    down = np.append(products[depth:], 0).reshape(depth, 2)[::-1]
    return {
        "W a_prev": products[:depth],
        "g(z)": taken.pop("a"),
        "da * g'(z)": backward[::-1],
        "dz a_prev^T": down[:, 0],
        "W^T dz": down[:, 1],
        **{name: seconds.sum() for name, seconds in taken.items()},
    }


class _Clock:
    """How long calls take, in the order of the calls."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, list[float]] = defaultdict(list)
        nothing = self.timed("nothing", lambda: None)
        for _ in range(1000):
            nothing()
        self.own = float(np.median(self.seconds.pop("nothing")))

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its calls timed."""
        add, now = self.seconds[name].append, time.perf_counter
        own = getattr(self, "own", 0.0)

        def call(*arguments: Any) -> Any:
            start = now()
            result = function(*arguments)
            add(now() - start - own)
            return result

        return call


@contextmanager
def _timed() -> Iterator[_Clock]:
    """The engine with every part's calls timed, from outside."""
    clock = _Clock()
    with ExitStack() as patches:
        patches.enter_context(patch("blocks.block.product", lambda *matrices: clock.timed("product", product(*matrices))))
        for kind in (Activation, *Activation.__subclasses__()):
            for method, name in (("forward_calls", "a"), ("backward_calls", "dz")):
                if method in vars(kind):
                    patches.enter_context(patch.object(kind, method, _as_one(clock, name, vars(kind)[method])))
        patches.enter_context(patch("blocks.training.Norms", lambda *arguments: _timed_norms(clock, Norms(*arguments))))
        for kind, method, name in ((Workspace, "gather", "batch"), (Optimizer, "update", "update")):
            patches.enter_context(patch.object(kind, method, clock.timed(name, getattr(kind, method))))
        yield clock


def _as_one(clock: _Clock, name: str, calls_of: Callable[..., list[Call]]) -> Callable[..., list[Call]]:
    """What makes the calls, to make one of them, timed."""
    return lambda *arrays: [clock.timed(name, _chained(calls_of(*arrays)))]


def _timed_norms(clock: _Clock, norms: Norms) -> Norms:
    norms.calls = [clock.timed("norms", _chained(norms.calls))]
    return norms


def _chained(calls: list[Call]) -> Call:
    def call() -> None:
        for each in calls:
            each()

    return call


def _page(title: str, parts: dict[str, Array], whole: float, compiled: float) -> None:
    columns = {name: values for name, values in parts.items() if np.ndim(values)}
    depth = len(next(iter(columns.values())))
    print(f"\n{title}")
    print(f"  {'block':<12}" + "".join(f"{name:>13}" for name in columns))
    for block in range(depth):
        if SHOWN <= block < depth - SHOWN:
            if block == SHOWN:
                print("  ...")
            continue
        print(f"  {block + 1:<12}" + "".join(f"{values[block]:13.2f}" for values in columns.values()))
    print(f"  {'all':<12}" + "".join(f"{values.sum():13.2f}" for values in columns.values()))
    once = {name: float(np.sum(values)) for name, values in parts.items() if name not in columns}
    once["turning dz, Python"] = whole - sum(float(np.sum(values)) for values in parts.values())
    for name, microseconds in {**once, "the step": whole, "the step, compiled": compiled}.items():
        print(f"  {name:<22}{microseconds:10.2f}   {100 * microseconds / whole:5.1f} %")
