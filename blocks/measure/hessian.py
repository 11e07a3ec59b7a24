"""The curvature of the loss: its Hessian in the parameters times a vector, exactly.

Nothing here changes a bit of the network. A lane that has diverged is no error: it comes out as nan or inf, and alone.
Source: Pearlmutter, "Fast exact multiplication by the Hessian", 1994.
"""

import numpy as np

from blocks.arrays import Array, check_finite, check_shape
from blocks.losses import Loss
from blocks.measure.diagnostics import checked
from blocks.network import Network
from blocks.tape.recorder import Tape
from blocks.tape.replay import Replay
from blocks.tape.tangent import tangent


class Hessian:
    """The Hessian H of J in the parameters of a network, as they are at the last `update`.

    H v is the tangent along v of the gradient: forward and backward are recorded, and every operation differentiated.

    directions: axes of vectors in front of the network's lanes.
    v, product: (*directions, *lanes, P) in the network's dtype, what `times` reads and writes.
    scale: (*lanes, P) s, None for 1: `times` is then that of the matrix with the entries s_i H_ij s_j, and leaves s v in v.
    """

    scale: Array | None = None

    def __init__(self, network: Network, x: Array, y: Array, loss: Loss, directions: tuple[int, ...] = ()) -> None:
        self.network = network
        x, target = checked(network, x, y, loss)
        shape, dtype = network.parameters.shape, network.parameters.dtype
        self.v = np.empty((*directions, *shape), dtype)
        # Without the axes of a single direction: products of two matrices then, which are faster than stacked ones.
        v = self.v if np.prod(directions) != 1 else self.v.reshape(shape)
        tape = Tape()
        parameters = tape.watch(network.parameters)
        recorded = network.with_parameters(parameters)
        logits, caches = recorded.forward(np.asarray(x, dtype))
        _, dlogits = loss.value_and_gradient(logits, target)
        moved = tangent(tape, parameters, tape.watch(v), recorded.gradient(dlogits, caches))
        self.replay = Replay(tape, [moved])
        self.product = self.replay.array(moved).reshape(self.v.shape)
        self.update()

    @np.errstate(over="ignore", invalid="ignore", divide="ignore")
    def update(self) -> None:
        """Take the network's parameters as they are now."""
        self.replay(0)

    def times(self) -> Array:
        """`product` = H v."""
        if self.scale is None:
            self.replay(1)
        else:
            self.v *= self.scale
            self.replay(1)
            self.product *= self.scale
        return self.product


@np.errstate(over="ignore", invalid="ignore")
def hessian_vector_product(network: Network, x: Array, y: Array, loss: Loss, v: Array) -> Array:
    """H v, H the Hessian of J in the parameters: exact, the tangent of the gradient (Pearlmutter 1994).

    With relu and leaky_relu H is the Hessian where it exists, off the kinks: g'' = 0 there, and what is left is the curvature
    of the loss and the products of weights of different blocks.

    x: (n_0, m) data, shared by all lanes, or (..., n_0, m). y: targets as `loss` takes them.
    v: (..., P) with the network's lanes; axes in front of those are further directions.
    Returns H v in the shape of v and the network's dtype.
    """
    v = np.asarray(v)
    check_shape("v", v, network.parameters.shape)
    check_finite("v", v)
    hessian = Hessian(network, x, y, loss, v.shape[: v.ndim - network.parameters.ndim])
    np.copyto(hessian.v, v)
    return hessian.times()
