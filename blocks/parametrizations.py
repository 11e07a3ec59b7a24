"""Parametrizations: a table name -> what multiplies initial weights and learning rates, block by block.

`standard` leaves all as it is. `mup`, the maximal update parametrization, keeps the best learning rate the same at every width,
and, of residual blocks, whose branches are times 1 / sqrt(L), at every depth. With w_l = n_l / 64 of hidden blocks, and 1 of the
data and of block L, whose sizes are the task's:

| mup multiplies | W_l, l = 1..L | b_l |
|---|---|---|
| the variance of the initial W_L by | 1 / w_{L-1} | |
| the rates of gradient descent and momentum by | w_l / w_{l-1} | w_l |
| the rates of Adam and RMSProp by | 1 / w_{l-1} | 1 |
| and in residual blocks these two by | 1 / sqrt(L) | 1 / sqrt(L) |

Forward and backward are the same for both. At width 64 the two differ by the last line alone. A weight decay is not multiplied.

With either, `gamma`, the strength of feature learning, divides the outputs, and these begin at 0:

    z_L = (W_L a_{L-1} + b_L) / gamma        W_L = 0, b_L = 0 at first

In the parameters W_L / gamma and b_L / gamma, which stand in the network, that is a rate of block L times 1 / gamma^2, and times
1 / gamma with Adam and RMSProp. Small ones leave the hidden blocks as they are, "lazy"; with large ones these learn, too.

Sources, for width, for depth and for gamma:

- Yang, Hu et al., "Tensor Programs V: Tuning large neural networks via zero-shot hyperparameter transfer", 2022, table 3
- Yang, Yu, Zhu and Hayou, "Tensor Programs VI: Feature learning in infinite-depth neural networks", 2023, table 1;
  Bordelon et al., "Depthwise hyperparameter transfer in residual networks", 2023, with the same branches
- Atanasov, Meterez, Simon and Pehlevan, "The optimization landscape of SGD across the feature learning strength", 2024
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from blocks.arrays import Array, choice
from blocks.parameters import Layout

BASE_WIDTH = 64


@dataclass(frozen=True)
class Parametrization:
    """What multiplies initial weights and learning rates.

    output_variance: layout -> the factor of the variance of the initial W_L.
    rates: layout, kind, whether the optimizer is scale-free -> (L,) the factors of the rates of W_1, ..., W_L, and of
        b_1, ..., b_L.
    """

    output_variance: Callable[[Layout], float]
    rates: Callable[[Layout, str, bool], tuple[Array, Array]]


def _relative_widths(layout: Layout) -> Array:
    """(L + 1,) w_0, ..., w_L."""
    w = np.array(layout.sizes) / BASE_WIDTH
    w[[0, -1]] = 1
    return w


def _mup_rates(layout: Layout, kind: str, scale_free: bool) -> tuple[Array, Array]:
    w = _relative_widths(layout)
    w_prev, w = w[:-1], w[1:]
    if not scale_free:
        return w / w_prev, w
    branch = np.ones(layout.depth)
    if kind == "residual":
        branch[1:-1] = layout.depth**-0.5
    return branch / w_prev, branch


PARAMETRIZATIONS = {
    "standard": Parametrization(lambda layout: 1.0, lambda layout, *_: (np.ones(layout.depth), np.ones(layout.depth))),
    "mup": Parametrization(lambda layout: 1 / _relative_widths(layout)[-2], _mup_rates),
}


def rate_factors(layout: Layout, kind: str, scale_free: bool, parametrization: str, gamma: float | None = None) -> Array:
    """(P,) what multiplies the learning rate of every parameter of a network of that kind.

    scale_free: of the optimizer, see `Optimizer`. gamma: None divides by nothing.
    Raises ValueError for an unknown parametrization.
    """
    W, b = choice("parametrization", parametrization, PARAMETRIZATIONS).rates(layout, kind, scale_free)
    if gamma is not None:
        for rates in (W, b):
            rates[-1] *= gamma ** (-1 if scale_free else -2)
    return np.where(layout.is_weight, layout.of_blocks(W), layout.of_blocks(b))
