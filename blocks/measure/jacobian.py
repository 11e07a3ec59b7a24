"""The input-output Jacobian of the hidden blocks, and its singular values: is an error passed on whatever its direction?

Sources, on dynamical isometry, where all singular values are near 1:

- Saxe, McClelland, Ganguli, "Exact solutions to the nonlinear dynamics of learning in deep linear neural networks", 2013
- Pennington, Schoenholz, Ganguli, "Resurrecting the sigmoid in deep learning through dynamical isometry", 2017
"""

import numpy as np

from blocks.arrays import Array
from blocks.measure.diagnostics import check_independent_examples, check_inputs
from blocks.network import Network


@np.errstate(over="ignore", invalid="ignore")
def jacobian(network: Network, x: Array) -> Array:
    """da_{L-1}/da_1 of every example, (..., m, n_{L-1}, n_1): backward from each unit vector at block L-1 down to block 2.

    x: (n_0, m) data, shared by all lanes, or (..., n_0, m). Raises ValueError for a network without hidden blocks, and for a
    batch-normalized one, in which no example has a Jacobian of its own.
    """
    check_independent_examples("jacobian", network)
    if network.depth == 1:
        raise ValueError("jacobian is of hidden blocks, the network has none")
    _, caches = network.forward(check_inputs(network, x))
    a = caches[-2].a
    # (n_{L-1} directions, ..., n_{L-1}, m)
    units = np.eye(a.shape[-2], dtype=a.dtype).reshape(-1, *[1] * (a.ndim - 2), a.shape[-2], 1)
    da = np.broadcast_to(units, (len(units), *a.shape))
    for block, cache in zip(network.blocks[-2:0:-1], caches[-2:0:-1], strict=True):
        _, da = block.backpropagate(da, cache)
    return np.moveaxis(da, (-1, 0), (-3, -2))


def singular_values(network: Network, x: Array) -> Array:
    """The singular values of `jacobian`, the largest first, each its mean over the examples: (..., k), k = min(n_1, n_{L-1}).

    nan in a lane whose Jacobian is not finite. Those below the dtype's epsilon times the largest are its rounding.
    """
    J = jacobian(network, x)
    finite: Array = np.asarray(np.isfinite(J).all(axis=(-3, -2, -1)))
    values = np.linalg.svd(np.where(finite[..., None, None, None], J, 0), compute_uv=False).mean(axis=-2)
    return np.where(finite[..., None], values, np.nan)
