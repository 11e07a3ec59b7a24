"""The networks of Sohl-Dickstein, "The boundary of neural network trainability is fractal", 2024: the set-up and its scoring.

    h = g(X W0 / sqrt(n))        out = h W1 / n        J = mean((out - Y)^2)

with one hidden block, no biases, full batch, a learning rate for W0 and one for W1; examples are rows here, as there.
g(z) is tanh(sqrt(2) z), sqrt(2) max(z, 0), or z. W0, W1, X and Y are N(0, 1), all networks of a map share them.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from blocks.arrays import Array, check_finite, check_shape
from blocks.shallow import shallow_losses
from experiments.run.bounded import check_arrays
from experiments.run.config import Config, UserError
from experiments.run.memory import check_memory

GAINS = {"tanh": np.sqrt(2), "relu": np.sqrt(2), "identity": 1.0}
# A loss counts as so many times the first one at most; the last so many losses decide.
WORST, LAST = 1e6, 20
OUTCOMES = TRAINED, STUCK, DIVERGED = 0, 1, 2
PIXEL = np.dtype([("outcome", "u1"), ("measure", "<f8"), ("step", "<i4")])


@dataclass(frozen=True, eq=False)
class Problem:
    """W0 (n, n), W1 (n, 1), X (m, n), Y (m, 1)."""

    W0: Array
    W1: Array
    X: Array
    Y: Array

    @classmethod
    def drawn(cls, n: int, m: int, seed: int) -> "Problem":
        """Initial weights and data, N(0, 1)."""
        rng = np.random.default_rng(seed)
        return cls(*(rng.standard_normal(shape) for shape in ((n, n), (n, 1), (m, n), (m, 1))))

    @classmethod
    def read(cls, file: str) -> "Problem":
        """Those of a .npz; raises UserError where it does not have them."""
        try:
            headers = check_arrays(Path(file))
            if any(headers[name][1].kind not in "fiu" for name in ("W0", "W1", "X", "Y")):
                raise ValueError("they must be numbers")
            with np.load(Path(file), allow_pickle=False) as saved:
                problem = cls(*(saved[name] for name in ("W0", "W1", "X", "Y")))
            m, n = problem.X.shape
            for name, shape in {"W0": (n, n), "W1": (n, 1), "Y": (m, 1)}.items():
                check_shape(name, getattr(problem, name), shape)
                check_finite(name, getattr(problem, name))
        except Exception as error:
            # What NumPy and zipfile raise for a file that is made to mislead them is not written down.
            told = " ".join(str(error).split())
            raise UserError(f"map.file is {file!r}, it must be a .npz with W0, W1, X and Y: {told}") from None
        return problem


def problem(config: Config, file: str | None) -> Problem:
    """The config's: of width n, with as many examples as free parameters, or n where the network is linear, as in the paper."""
    n = config.network.width
    if config.network.activation not in GAINS:
        raise UserError(f"network.activation is {config.network.activation!r}, the paper's set-up has {', '.join(GAINS)}")
    if file is None:
        m = n if config.network.activation == "identity" else n * n + n
        check_memory(f"network.width is {n}", 8 * (n + m) * n)
        return Problem.drawn(n, m, config.seed)
    found = Problem.read(file)
    if len(found.W0) != n:
        raise UserError(f"map.file is {file!r}, whose networks have width {len(found.W0)}: set network.width to it, it is {n}")
    return found


def losses(of: Problem, activation: str, rates: Array, steps: int, dtype: str, early_exit: bool = True) -> Array:
    """(networks, steps) J before each update. rates: (networks, 2) of W0 and W1.

    With W = c W0^T, c = gain / sqrt(n), and w = W1^T / n this is out = w g(W x): a step of W0 at rate r is one of W at
    rate c^2 r, and J is twice the engine's loss.
    """
    n = len(of.W0)
    c = GAINS[activation] / np.sqrt(n)
    scaled = rates * np.array([2 * c**2, 2 / n**2])
    W, w, x, y = (np.ascontiguousarray(array.T, dtype) for array in (c * of.W0, of.W1 / n, of.X, of.Y))
    halves = shallow_losses(W, w, x, y, scaled, activation, steps, early_exit)
    with np.errstate(over="ignore"):
        return np.multiply(halves, 2, halves)


def score(losses: Array) -> Array:
    """(networks,) PIXELs of (networks, steps) losses J.

    As in the author's code, losses that are not finite count as 1e6, the first one too; all are divided by the first and are
    1e6 at most. A network has trained where the mean of the last 20 is below 1. measure: minus their sum there, elsewhere the
    sum of their inverses. A network that has not trained is diverged from the first step on at which a loss was not finite,
    or above 1e6 times the first.
    """
    bad = ~np.isfinite(losses)
    v = np.where(bad, WORST, losses.astype(np.float64))
    v /= v[:, :1].copy()
    bad |= v > WORST
    np.minimum(v, WORST, out=v)
    trained = v[:, -LAST:].mean(axis=-1) < 1
    pixels = np.empty(len(v), PIXEL)
    pixels["measure"] = -v.sum(axis=-1)
    with np.errstate(divide="ignore", over="ignore"):
        # Of a network that fits exactly some are 0.
        pixels["measure"][~trained] = (1 / v[~trained]).sum(axis=-1)
    diverged = bad.any(axis=-1) & ~trained
    pixels["outcome"] = np.where(trained, TRAINED, np.where(diverged, DIVERGED, STUCK))
    pixels["step"] = np.where(diverged, bad.argmax(axis=-1), -1)
    return pixels


def agreement(file: Path, activation: str) -> float:
    """The share of a published map's labels that come out here. file: W0, W1, X, Y, learning_rates, steps, trainable."""
    of = Problem.read(str(file))
    with np.load(file) as theirs:
        rates, steps, labels = theirs["learning_rates"], int(theirs["steps"]), theirs["trainable"].ravel()
    trained = score(losses(of, activation, rates, steps, "float64"))["outcome"] == TRAINED
    return float((trained == labels).mean())
