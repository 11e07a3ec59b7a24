"""Measurements of a network: sizes of updates, dead units, and gradients by example. The curvature is in hessian.py.

None of them changes a bit of the network. A lane that has diverged is no error: only its results are nan or inf. Sources:

- Goodfellow, "Efficient per-example gradient computations", 2015
- McCandlish, Kaplan, Amodei and the OpenAI Dota Team, "An empirical model of large-batch training", 2018
"""

import numpy as np

from blocks.arrays import Array, check_finite, check_number, check_shape, norm
from blocks.block import Cache
from blocks.losses import Loss
from blocks.network import Network
from blocks.parameters import SAFE, Layout, joined_gradient


def check_lanes(argument: str, array: Array, lanes: tuple[int, ...]) -> None:
    """Raise ValueError unless `array` (..., n, m) has the network's lanes, or none."""
    if array.shape[:-2] not in ((), lanes):
        raise ValueError(f"{argument} has lanes {array.shape[:-2]}, it must have none or the network's, {lanes}")


def check_inputs(network: Network, x: Array) -> Array:
    """Return x as an array. Raises ValueError where it does not fit the network."""
    x = np.asarray(x)
    check_shape("x", x, (network.layout.sizes[0], "m"))
    check_lanes("x", x, network.lanes)
    if x.shape[-1] == 0:
        raise ValueError(f"x has shape {x.shape}, it must have an example at least")
    check_finite("x", x)
    return x


def check_independent_examples(argument: str, network: Network) -> None:
    """Raise ValueError where an example's logits depend on the other examples of its batch."""
    if network.mixes_examples:
        raise ValueError(f"{argument} is of single examples, but kind {network.kind!r} mixes those of a batch")


def check_data(network: Network, x: Array, y: Array, loss: Loss) -> tuple[Array, Array]:
    """Return x, and the loss's target in the network's dtype. Raises ValueError where they do not fit the network."""
    x, y, dtype = check_inputs(network, x), np.asarray(y), network.parameters.dtype
    units, m = network.layout.sizes[-1], x.shape[-1]
    if y.shape[-1:] != (m,):
        raise ValueError(f"y has shape {y.shape}, it must be (..., {m}), an entry for each column of x")
    target = loss.target(y, units, dtype)
    check_lanes("y", target, network.lanes)
    return x, target


@np.errstate(over="ignore", invalid="ignore", divide="ignore")
def update_ratios(before: Array, after: Array, layout: Layout) -> Array:
    """Return ||W_l after - W_l before|| / ||W_l before|| of blocks 1..L, (..., L).

    Where all weights of a block were 0, it is inf if they have changed, else nan.

    before, after: (..., P) flat parameters before and after an update, float32 or float64.
    """
    check_shape("before", before, (layout.size,))
    check_shape("after", after, before.shape)
    for argument, flat in (("before", before), ("after", after)):
        if flat.dtype not in SAFE:
            raise ValueError(f"{argument} has dtype {flat.dtype}, it must be float32 or float64")
    return layout.norms(after - before)[..., 0::2] / layout.norms(before)[..., 0::2]


@np.errstate(over="ignore", invalid="ignore")
def saturated(network: Network, x: Array, threshold: float = 1e-3) -> Array:
    """Return the share of units of blocks 1..L-1 that pass no gradient for any example, (..., L - 1):

        |g'(z)| < threshold for all m examples

    With relu these are the dead units, which are 0 for every example, with any threshold; with tanh and sigmoid the saturated
    ones. leaky_relu has none for a threshold below its slope of 0.01. A residual block's units are those of x = g(a_prev),
    without the path around them.

    x: (n_0, m) data, shared by all lanes, or (..., n_0, m). threshold: above 0.
    """
    check_number("threshold", threshold, above=0)
    _, caches = network.forward(check_inputs(network, x))
    shares = np.empty((*network.lanes, network.depth - 1))
    for index, (block, cache) in enumerate(zip(network.blocks[:-1], caches[:-1], strict=True)):
        slope = block.activation.derivative(*block.activation_at(cache))
        shares[..., index] = (np.abs(slope) < threshold).all(axis=-1).mean(axis=-1)
    return shares


@np.errstate(over="ignore", invalid="ignore")
def example_gradient_norms(network: Network, x: Array, y: Array, loss: Loss) -> Array:
    """Return ||dJ_i/dW_l|| of blocks 1..L, (..., L, m), where J_i is the loss of example i (Goodfellow 2015).

        dJ_i/dW_l = dz_i a_prev_i^T          ||dJ_i/dW_l|| = ||dz_i|| ||a_prev_i||

    dz_i is m times a column of backward's dz, since J is the mean of the J_i. A residual or normalized block has x or x_hat in
    place of a_prev. Raises ValueError for a batch-normalized network, in which no example has a loss of its own.

    x: (n_0, m) data, shared by all lanes, or (..., n_0, m). y: targets as `loss` takes them.
    """
    signals = _example_signals("example_gradient_norms", network, x, y, loss)
    return np.stack([dz.shape[-1] * norm(dz, -2) * norm(cache.a_prev, -2) for dz, cache in signals], axis=-2)


@np.errstate(over="ignore", invalid="ignore", divide="ignore")
def noise_scale(network: Network, x: Array, y: Array, loss: Loss) -> Array:
    """Return the simple noise scale (...,), the batch size at which noise and gradient are equal (McCandlish et al. 2018):

        B = tr(Sigma) / |G|^2        tr(Sigma) = m / (m - 1) (S - |g|^2)        |G|^2 = |g|^2 - tr(Sigma) / m

    Sigma: the covariance of single examples' gradients g_i, W and b of all blocks. S: the mean of |g_i|^2. g: the mean of g_i,
    the gradient of all m examples. Both estimates are unbiased, those of the paper's appendix A.1 with batches of 1 and of m. The
    result is nan where the estimate of |G|^2 is not above 0: m examples are then too few to tell the gradient from its noise.

    x: (n_0, m) data, shared by all lanes, or (..., n_0, m), at least 2 examples. y: targets as `loss` takes them.
    Raises ValueError for one example, and for a batch-normalized network, in which no example has a gradient of its own.
    """
    signals = _example_signals("noise_scale", network, x, y, loss)
    m = signals[0][0].shape[-1]
    if m < 2:
        raise ValueError(f"x has shape {np.shape(x)}, noise_scale needs at least 2 examples")
    example_squares, total_square = np.zeros(network.lanes), np.zeros(network.lanes)
    for dz, cache in signals:
        example_squares += m * ((norm(dz, -2).astype(np.float64) * norm(cache.a_prev_1, -2)) ** 2).sum(axis=-1)
        total_square += (joined_gradient(dz, cache.a_prev_1).astype(np.float64) ** 2).sum(axis=(-2, -1))
    noise = m / (m - 1) * (example_squares - total_square)
    signal = total_square - noise / m
    return np.where(signal > 0, noise / signal, np.nan)


def _example_signals(argument: str, network: Network, x: Array, y: Array, loss: Loss) -> list[tuple[Array, Cache]]:
    """Return dz (..., n_l, m) and cache of blocks 1..L. m times a column of dz is the dz of that example's own loss."""
    check_independent_examples(argument, network)
    x, target = check_data(network, x, y, loss)
    logits, caches = network.forward(x)
    _, dlogits = loss.value_and_gradient(logits, target)
    dz = [dz for _, dz in network.signals(dlogits, caches)]
    return list(zip(reversed(dz), caches, strict=True))
