"""The networks of Sohl-Dickstein, "The boundary of neural network trainability is fractal", 2024: the set-up and its scoring.

    h = g(X W0 / sqrt(n))        out = h W1 / n        J = mean((out - Y)^2)

The network has one hidden block and no biases. It is trained on the full batch, with one learning rate for W0 and one for W1.
Examples are rows here, as in the paper. g(z) is tanh(sqrt(2) z), sqrt(2) max(z, 0), or z. W0, W1, X and Y are drawn from
N(0, 1), and are the same for all networks of a map.
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
# A loss counts as at most this multiple of the first loss. The mean of the last losses, this many, decides the outcome.
MAX_RELATIVE_LOSS, N_LAST_LOSSES = 1e6, 20
OUTCOMES = TRAINED, STUCK, DIVERGED = 0, 1, 2
PIXEL = np.dtype([("outcome", "u1"), ("measure", "<f8"), ("step", "<i4")])


@dataclass(frozen=True, eq=False)
class Problem:
    """Initial weights W0 (n, n) and W1 (n, 1), inputs X (m, n) and targets Y (m, 1)."""

    W0: Array
    W1: Array
    X: Array
    Y: Array

    @classmethod
    def random(cls, n: int, m: int, seed: int) -> "Problem":
        """Return initial weights and data drawn from N(0, 1)."""
        rng = np.random.default_rng(seed)
        return cls(*(rng.standard_normal(shape) for shape in ((n, n), (n, 1), (m, n), (m, 1))))

    @classmethod
    def read(cls, file: str) -> "Problem":
        """Return the arrays W0, W1, X and Y of a .npz file. Raises UserError where it does not have them."""
        try:
            headers = check_arrays(Path(file))
            if any(headers[name][1].kind not in "fiu" for name in ("W0", "W1", "X", "Y")):
                raise ValueError("they must be numbers")
            with np.load(Path(file), allow_pickle=False) as arrays:
                problem = cls(*(arrays[name] for name in ("W0", "W1", "X", "Y")))
            m, n = problem.X.shape
            for name, shape in {"W0": (n, n), "W1": (n, 1), "Y": (m, 1)}.items():
                check_shape(name, getattr(problem, name), shape)
                check_finite(name, getattr(problem, name))
        except Exception as error:
            # NumPy and zipfile do not document what they raise for a file that is made to mislead them.
            message = " ".join(str(error).split())
            raise UserError(f"map.file is {file!r}, it must be a .npz with W0, W1, X and Y: {message}") from None
        return problem


def create_problem(config: Config, file: str | None) -> Problem:
    """Return the problem that a config describes, read from `file`, or drawn at random where that is None.

    The network has width n. As in the paper, there are as many examples as parameters, but only n for a linear network.
    Raises UserError where activation, width or file do not fit.
    """
    n = config.network.width
    if config.network.activation not in GAINS:
        raise UserError(f"network.activation is {config.network.activation!r}, the paper's set-up has {', '.join(GAINS)}")
    if file is None:
        m = n if config.network.activation == "identity" else n * n + n
        check_memory(f"network.width is {n}", 8 * (n + m) * n)
        return Problem.random(n, m, config.seed)
    problem = Problem.read(file)
    if len(problem.W0) != n:
        raise UserError(f"map.file is {file!r}, whose networks have width {len(problem.W0)}: set network.width to it, it is {n}")
    return problem


def losses(problem: Problem, activation: str, rates: Array, steps: int, dtype: str, early_exit: bool = True) -> Array:
    """Return J before each update, (networks, steps).

    With W = c W0^T, c = gain / sqrt(n), and w = W1^T / n, the network is out = w g(W x). A step of W0 at rate r is then a step
    of W at rate c^2 r, and J is twice the engine's loss.

    rates: (networks, 2) the learning rates of W0 and W1. early_exit: stop networks whose later losses cannot be finite.
    """
    n = len(problem.W0)
    c = GAINS[activation] / np.sqrt(n)
    scaled_rates = rates * np.array([2 * c**2, 2 / n**2])
    W, w, x, y = (np.ascontiguousarray(array.T, dtype) for array in (c * problem.W0, problem.W1 / n, problem.X, problem.Y))
    half_losses = shallow_losses(W, w, x, y, scaled_rates, activation, steps, early_exit)
    with np.errstate(over="ignore"):
        return np.multiply(half_losses, 2, half_losses)


def score(losses: Array) -> Array:
    """Return the outcome, measure and step of each network, (networks,) of dtype PIXEL. losses: J, (networks, steps).

    The rules are those of the author's code:

    - A loss that is not finite counts as 1e6, the first one too. All losses are divided by the first, and are at most 1e6.
    - outcome: a network has trained where the mean of the last 20 losses is below 1. One that has not trained has diverged
      where a loss was not finite, or above 1e6 times the first; else it is stuck.
    - measure: minus the sum of the losses where the network has trained, else the sum of their inverses.
    - step: the first step with such a loss where the network has diverged, else -1.
    """
    exceeds_bound = ~np.isfinite(losses)
    relative_losses = np.where(exceeds_bound, MAX_RELATIVE_LOSS, losses.astype(np.float64))
    relative_losses /= relative_losses[:, :1].copy()
    exceeds_bound |= relative_losses > MAX_RELATIVE_LOSS
    np.minimum(relative_losses, MAX_RELATIVE_LOSS, out=relative_losses)
    is_trained = relative_losses[:, -N_LAST_LOSSES:].mean(axis=-1) < 1
    pixels = np.empty(len(relative_losses), PIXEL)
    pixels["measure"] = -relative_losses.sum(axis=-1)
    with np.errstate(divide="ignore", over="ignore"):
        # A network that fits exactly has losses of 0.
        pixels["measure"][~is_trained] = (1 / relative_losses[~is_trained]).sum(axis=-1)
    is_diverged = exceeds_bound.any(axis=-1) & ~is_trained
    pixels["outcome"] = np.where(is_trained, TRAINED, np.where(is_diverged, DIVERGED, STUCK))
    pixels["step"] = np.where(is_diverged, exceeds_bound.argmax(axis=-1), -1)
    return pixels


def label_agreement(file: Path, activation: str) -> float:
    """Return the share of a published map's labels that are reproduced here.

    file: .npz with the arrays W0, W1, X, Y, learning_rates, steps and trainable.
    """
    problem = Problem.read(str(file))
    with np.load(file) as published:
        rates, steps, labels = published["learning_rates"], int(published["steps"]), published["trainable"].ravel()
    is_trained = score(losses(problem, activation, rates, steps, "float64"))["outcome"] == TRAINED
    return float((is_trained == labels).mean())
