"""The Jacobian of the hidden blocks, and its singular values, which show how much backward scales an error in each direction.

Under dynamical isometry all singular values are near 1, so that no direction is lost. Sources:

- Saxe, McClelland, Ganguli, "Exact solutions to the nonlinear dynamics of learning in deep linear neural networks", 2013
- Pennington, Schoenholz, Ganguli, "Resurrecting the sigmoid in deep learning through dynamical isometry", 2017
"""

import numpy as np

from blocks.arrays import Array
from blocks.measure.diagnostics import check_independent_examples, check_inputs
from blocks.network import Network


@np.errstate(over="ignore", invalid="ignore")
def jacobian(network: Network, x: Array) -> Array:
    """Return the Jacobian da_{L-1}/da_1 of every example, (..., m, n_{L-1}, n_1).

    Each row is computed by backward, from one unit vector at the output of block L-1 down to block 2.

    x: (n_0, m) data, shared by all lanes, or (..., n_0, m) with its own data for each lane.
    Raises ValueError where x does not fit the network, and for a network without hidden blocks. It also does so for a
    batch-normalized network, since an example's output depends on the whole batch there.
    """
    check_independent_examples("jacobian", network)
    if network.depth == 1:
        raise ValueError("jacobian is of hidden blocks, the network has none")
    _, caches = network.forward(check_inputs(network, x))
    a = caches[-2].a
    # da has shape (n_{L-1}, ..., n_{L-1}, m), and its first axis counts the unit vectors.
    units = np.eye(a.shape[-2], dtype=a.dtype).reshape(-1, *[1] * (a.ndim - 2), a.shape[-2], 1)
    da = np.broadcast_to(units, (len(units), *a.shape))
    for block, cache in zip(network.blocks[-2:0:-1], caches[-2:0:-1], strict=True):
        _, da = block.backpropagate(da, cache)
    return np.moveaxis(da, (-1, 0), (-3, -2))


def singular_values(network: Network, x: Array) -> Array:
    """Return the singular values of `jacobian`, the largest first, (..., k) with k = min(n_1, n_{L-1}).

    The i-th value is the mean over the examples of their i-th singular values. A value below the largest times the dtype's
    epsilon is only a rounding error. A lane whose Jacobian is not finite has nan.

    network, x: see `jacobian`, which also says what is raised.
    """
    jacobians = jacobian(network, x)
    finite: Array = np.asarray(np.isfinite(jacobians).all(axis=(-3, -2, -1)))
    values = np.linalg.svd(np.where(finite[..., None, None, None], jacobians, 0), compute_uv=False).mean(axis=-2)
    return np.where(finite[..., None], values, np.nan)
