"""The evaluation of a network on a whole data set: its loss, and its accuracy or r2."""

import numpy as np

from blocks.arrays import Array
from blocks.losses import r2
from blocks.network import Network
from blocks.workspace import Examples, Workspaces


def evaluate(network: Network, workspaces: Workspaces, examples: Examples, batch_size: int) -> tuple[Array, Array]:
    """Return the loss of all lanes over a whole data set, and their accuracy or r2. It is computed batch by batch."""
    m, loss, target = len(examples.rows), workspaces.loss, examples.target
    total, right = np.zeros(network.lanes), np.zeros(network.lanes)
    residual = np.zeros((*network.lanes, network.layout.sizes[-1]))
    for start in range(0, m, batch_size):
        batch = workspaces.gathered(network, examples, np.arange(start, min(start + batch_size, m)))
        batch.forward()
        logits = batch.logits
        total += batch.value * np.float64(logits.shape[-1])
        if loss.decides:
            # Minus one half, the encoded target decides for its own label in every encoding.
            right += (loss.decides(logits) == loss.decides(batch.target - 0.5)).sum(axis=-1)
        else:
            errors = np.subtract(logits, batch.target, dtype=np.float64)
            residual += np.vecdot(errors, errors)
    score = right / m if loss.decides else r2(residual, m * target.astype(np.float64).var(axis=-1), m)
    return total / m, score
