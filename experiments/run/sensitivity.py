"""How much the final loss depends on the learning rate."""

from collections.abc import Sequence

import numpy as np


def sensitivity(losses: Sequence[float], initial: float) -> float:
    """Learning-rate sensitivity: how far the loss is above that of the best rate, in the mean over the rates that were tried:

        E[min(J(alpha), J_0)] - min of J(alpha)

    losses: J(alpha), the final loss of every rate, inf where training diverged. initial: J_0, the loss of the initial weights.
    nan of a single rate, and where every one diverged. Source: Wortsman et al. 2023 (arXiv 2309.14322).
    """
    smallest = min(losses)
    if len(losses) < 2 or not np.isfinite(smallest):
        return np.nan
    return float(np.minimum(losses, initial).mean() - smallest)
