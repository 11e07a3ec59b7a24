"""How much the final loss depends on the learning rate."""

from collections.abc import Sequence

import numpy as np


def sensitivity(losses: Sequence[float], initial: float) -> float:
    """Return the learning-rate sensitivity: how much the loss exceeds that of the best rate, in the mean over all rates.

        E[min(J(alpha), J_0)] - min of J(alpha)

    It is nan for a single rate, and where training diverged at every rate. Source: Wortsman et al. 2023 (arXiv 2309.14322).

    losses: J(alpha), the final loss at every rate, inf where training diverged. initial: J_0, the loss of the initial weights.
    """
    smallest = min(losses)
    if len(losses) < 2 or not np.isfinite(smallest):
        return np.nan
    return float(np.minimum(losses, initial).mean() - smallest)
