"""The initial weights: the table INITIALIZERS has the distribution of W_l for each name.

`gain` multiplies the variance of every W. The biases are N(0, bias_variance). With n = n_{l-1} inputs and n_l units:

| name | distribution of W_ij | source |
|---|---|---|
| zeros | 0 | |
| normal | N(0, gain / n) | Schoenholz et al. 2017, sigma_w^2 = gain |
| lecun | N(0, gain / n), as in the source with gain 1 | LeCun et al. 1998 |
| glorot, glorot_uniform | normal or uniform, variance 2 gain / (n + n_l) | Glorot and Bengio 2010 |
| he, he_uniform | normal or uniform, variance 2 gain / n | He et al. 2015 |
| orthogonal | orthonormal rows or columns, times sqrt(gain) | Saxe et al. 2014 |
"""

from collections.abc import Callable

import numpy as np

from blocks.arrays import Array, check_number, choice
from blocks.parameters import Layout, split
from blocks.parametrizations import PARAMETRIZATIONS

Law = Callable[[np.random.Generator, int, int, float], Array]


def zeros(rng: np.random.Generator, n: int, n_prev: int, gain: float) -> Array:
    """W = 0"""
    return np.zeros((n, n_prev))


def _normal(variance: Callable[[int, int], float]) -> Law:
    def draw(rng: np.random.Generator, n: int, n_prev: int, gain: float) -> Array:
        return rng.normal(0, np.sqrt(gain * variance(n, n_prev)), (n, n_prev))

    return draw


def _uniform(variance: Callable[[int, int], float]) -> Law:
    def draw(rng: np.random.Generator, n: int, n_prev: int, gain: float) -> Array:
        # U(-r, r) has variance r^2 / 3.
        bound = np.sqrt(3 * gain * variance(n, n_prev))
        return rng.uniform(-bound, bound, (n, n_prev))

    return draw


def _of_inputs(n: int, n_prev: int) -> float:
    return 1 / n_prev


def _glorot(n: int, n_prev: int) -> float:
    return 2 / (n + n_prev)


def _he(n: int, n_prev: int) -> float:
    return 2 / n_prev


def orthogonal(rng: np.random.Generator, n: int, n_prev: int, gain: float) -> Array:
    """Return sqrt(gain) times the orthonormal factor of a Gaussian matrix, which is uniform over all such matrices."""
    tall = rng.normal(size=(max(n, n_prev), min(n, n_prev)))
    Q = np.sqrt(gain) * _orthonormal(np.ascontiguousarray(tall.T))
    return Q.T if n >= n_prev else Q


def _orthonormal(rows: Array) -> Array:
    """Make rows (k, n), k <= n, orthonormal in place, and return them: Q^T, where rows^T = Q R and R has a positive diagonal.

    This is Gram-Schmidt, in which each row's direction is removed from all later rows. Without a positive diagonal of R, Q would
    not be uniformly distributed (Mezzadri 2007). LAPACK is not used, since its last bits differ between versions. NumPy's own
    products and sums have the same bits in every version.
    """
    # One pass loses orthogonality in proportion to the condition number; a second pass restores it (Giraud et al. 2005).
    for _ in range(2):
        for k, row in enumerate(rows, 1):
            row /= np.sqrt((row * row).sum())
            rows[k:] -= (rows[k:] * row).sum(axis=-1, keepdims=True) * row
    return rows


INITIALIZERS: dict[str, Law] = {
    "zeros": zeros,
    "normal": _normal(_of_inputs),
    "lecun": _normal(_of_inputs),
    "glorot": _normal(_glorot),
    "glorot_uniform": _uniform(_glorot),
    "he": _normal(_he),
    "he_uniform": _uniform(_he),
    "orthogonal": orthogonal,
}


def initialize(
    layout: Layout,
    initializer: str,
    rng: np.random.Generator,
    gain: float = 1.0,
    bias_variance: float = 0.0,
    parametrization: str = "standard",
    gamma: float | None = None,
) -> Array:
    """Return the initial parameters of one network, (P,) float64. They are drawn block by block from block 1 on, W before b.

    Raises ValueError for an unknown initializer or parametrization, for a gain or a bias variance that is negative or not
    finite, and for a gamma that is not above 0 or not finite.
    """
    law = choice("initializer", initializer, INITIALIZERS)
    output_variance = choice("parametrization", parametrization, PARAMETRIZATIONS).output_variance(layout)
    check_number("gain", gain, at_least=0)
    check_number("bias_variance", bias_variance, at_least=0)
    parameters = np.zeros(layout.size)
    for joined in layout.blocks(parameters):
        W, b = split(joined)
        W[...] = law(rng, W.shape[0], W.shape[1], gain)
        if bias_variance > 0:
            b[...] = rng.normal(0, np.sqrt(bias_variance), b.shape)
    # `joined` and W are the last block's.
    W *= np.sqrt(output_variance)
    if gamma is not None:
        check_number("gamma", gamma, above=0)
        joined[...] = 0
    return parameters
