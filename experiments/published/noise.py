"""The gradient noise scale: how much the noise of a batch reduces the progress of one update."""

from collections.abc import Iterator

import numpy as np

from blocks import Network, losses
from blocks.arrays import Array
from blocks.measure.diagnostics import noise_scale as measured_scale
from experiments.published.row import Row

MCCANDLISH = "McCandlish et al. 2018"
# The number of batches of each size.
BATCHES = 4000


def noise_scale() -> Iterator[Row]:
    """J_i = |b - y_i|^2 / 2, whose Hessian is the identity: one update of gradient descent with batches of size B."""
    rng = np.random.default_rng(0)
    network = Network.create([1, 8], "identity", "zeros", rng=rng)
    y = 4 * rng.standard_normal((8, 20_000)) + 1
    scale = float(measured_scale(network, np.zeros((1, y.shape[1])), y, losses.half_mean_squared_error))
    # G and the trace are exact for the 20,000 examples: b is 0, and the other parameters have no gradient.
    G, trace = -y.mean(axis=1), float(y.var(axis=1, ddof=1).sum())
    exact = trace / (G @ G - trace / y.shape[1])
    yield Row("quadratic loss: the noise scale, tr(Sigma) / |G|^2", MCCANDLISH, exact, scale, 1e-9 * exact)
    for batch in (round(scale / 4), round(scale), round(4 * scale)):
        gradients = _gradients(network, y, batch, rng)
        # An update decreases J by alpha G.g - alpha^2 |g|^2 / 2.
        mean_projection, mean_square = float((gradients @ G).mean()), float((gradients**2).sum(axis=-1).mean())
        share = 1 / (1 + scale / batch)
        setting = f"quadratic loss, batches of {batch}"
        yield Row(
            f"{setting}: best rate, in that of all examples", MCCANDLISH, share, mean_projection / mean_square, 0.03 * share
        )
        progress = mean_projection**2 / mean_square / (G @ G)
        yield Row(f"{setting}: mean progress there, in that of all", MCCANDLISH, share, progress, 0.03 * share)


def _gradients(network: Network, y: Array, batch: int, rng: np.random.Generator) -> Array:
    """Return the gradients (BATCHES, 8) with respect to the last block's b. Each random batch of examples is a lane."""
    lanes = network.with_parameters(np.broadcast_to(network.parameters, (BATCHES, network.layout.size)).copy())
    targets = np.moveaxis(y[:, rng.integers(0, y.shape[1], (BATCHES, batch))], 0, 1)
    logits, caches = lanes.forward(np.zeros((1, batch)))
    _, dlogits = losses.half_mean_squared_error(logits, targets)
    *_, (_, db) = lanes.backward(dlogits, caches)
    return db[..., 0]
