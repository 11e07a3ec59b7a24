"""Maps of trainability, in networks a second, beside the same map under JAX."""

from collections.abc import Callable
from typing import Any

import numpy as np

from blocks.arrays import Array
from experiments.run.grid import Grid, MappedConfig, grid, parse_map
from experiments.run.paper import GAINS, Problem, create_problem
from experiments.run.tile import train_tile
from tests.benchmarks.tables import alternate, table

ROUNDS = 3
# Pixels a side: work for some seconds each.
SIDES = {"identity": 256, "relu": 128, "tanh": 128}
# Networks that one call of JAX trains: what was fastest for it among 512 to 16384.
TOGETHER = {"identity": 4096, "relu": 1024, "tanh": 1024}


def trainability() -> None:
    """The paper's maps at n = 8, 100 updates, float64, all cores: ours in tiles, beside JAX's jit(vmap(scan)).

    The first turn starts our processes and compiles JAX's code, and is not counted.
    """
    for activation, side in SIDES.items():
        config = _config(activation, side)
        pixels = grid(config)
        times = alternate({"ours": _ours(config, pixels), "JAX jit(vmap(scan))": _jax(config, pixels)}, 1, rounds=ROUNDS)
        table(f"a map of {side} x {side} {activation} networks", times, "s ", 1)
        for name, seconds in times.items():
            print(f"  {name}: {side**2 / np.median(seconds):.0f} networks a second")


def _config(activation: str, side: int) -> MappedConfig:
    from experiments.run.composition import compose_config, register

    register("base_map", MappedConfig)
    return parse_map(compose_config("trainability", [f"trainability=fractal_{activation}", f"map.resolution={side}"]))


def _ours(config: MappedConfig, pixels: Grid) -> Callable[[], None]:
    from joblib import Parallel, delayed

    from experiments.run.pool import cores

    def run() -> None:
        # joblib's processes live on from turn to turn.
        tiles = Parallel(n_jobs=cores())(delayed(train_tile)(config, pixels, place) for place in pixels.tiles())
        assert sum(tile.size for tile in tiles) == len(pixels.x) * len(pixels.y)

    return run


def _jax(config: MappedConfig, pixels: Grid) -> Callable[[], None]:
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)
    problem: Problem = create_problem(config, None)
    n, gain = len(problem.W0), GAINS[config.network.activation]
    g = {"tanh": jnp.tanh, "relu": jax.nn.relu, "identity": lambda z: z}[config.network.activation]
    start = jnp.asarray(problem.W0), jnp.asarray(problem.W1)

    def loss(theta: Any) -> Any:
        return jnp.mean((g(problem.X @ theta[0] * (gain / jnp.sqrt(n))) @ theta[1] / n - problem.Y) ** 2)

    def losses(rate: Any) -> Any:
        def cycle(theta: Any, _: None) -> Any:
            value, gradient = jax.value_and_grad(loss)(theta)
            return (theta[0] - rate[0] * gradient[0], theta[1] - rate[1] * gradient[1]), value

        return jax.lax.scan(cycle, start, length=config.training.epochs)[1]

    train = jax.jit(jax.vmap(losses))
    rates: Array = np.stack(np.meshgrid(pixels.x, pixels.y), axis=-1).reshape(-1, 2)
    together = TOGETHER[config.network.activation]

    def run() -> None:
        for first in range(0, len(rates), together):
            assert np.asarray(train(rates[first : first + together])).size

    return run
