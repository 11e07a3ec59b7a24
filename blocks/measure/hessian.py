"""The curvature of the loss: exact products of its Hessian in the parameters with vectors.

Nothing here changes a bit of the network. A lane that has diverged is no error: only its results are nan or inf.
Source: Pearlmutter, "Fast exact multiplication by the Hessian", 1994.
"""

import numpy as np

from blocks.arrays import Array, check_finite, check_shape
from blocks.losses import Loss
from blocks.measure.diagnostics import check_data
from blocks.network import Network
from blocks.tape.recorder import Tape
from blocks.tape.replay import Replay, collector_off
from blocks.tape.tangent import tangent


class Hessian:
    """The Hessian H of J in the parameters of a network, with their values at the last `update`.

    H v is the tangent of the gradient along v: forward and backward are recorded, and every operation is differentiated.

    directions: the axes of the vectors in front of the network's lanes.
    v, product: (*directions, *lanes, P) in the network's dtype; `times` reads v and writes product.
    scale: (*lanes, P) s, None for 1. `times` then multiplies by the matrix with the entries s_i H_ij s_j, and changes v to s v.
    """

    scale: Array | None = None

    @collector_off()
    def __init__(self, network: Network, x: Array, y: Array, loss: Loss, directions: tuple[int, ...] = ()) -> None:
        self.network = network
        x, target = check_data(network, x, y, loss)
        shape, dtype = network.parameters.shape, network.parameters.dtype
        self.v = np.empty((*directions, *shape), dtype)
        # A single direction needs no axes: products of two matrices are faster than stacked ones.
        v = self.v if np.prod(directions) != 1 else self.v.reshape(shape)
        tape = Tape()
        parameters = tape.watch(network.parameters)
        recorded_network = network.with_parameters(parameters)
        logits, caches = recorded_network.forward(np.asarray(x, dtype))
        _, dlogits = loss.value_and_gradient(logits, target)
        tangent_of_gradient = tangent(tape, parameters, tape.watch(v), recorded_network.gradient(dlogits, caches))
        self.replay = Replay(tape, [tangent_of_gradient])
        self.product = self.replay.array(tangent_of_gradient).reshape(self.v.shape)
        self.update()

    @np.errstate(over="ignore", invalid="ignore", divide="ignore")
    def update(self) -> None:
        """Use the current values of the network's parameters."""
        self.replay(0)

    def times(self) -> Array:
        """Compute `product` = H v, and return it."""
        if self.scale is None:
            self.replay(1)
        else:
            self.v *= self.scale
            self.replay(1)
            self.product *= self.scale
        return self.product


@np.errstate(over="ignore", invalid="ignore")
def hessian_vector_product(network: Network, x: Array, y: Array, loss: Loss, v: Array) -> Array:
    """Return H v, where H is the Hessian of J in the parameters. It is exact: the tangent of the gradient (Pearlmutter 1994).

    With relu and leaky_relu, the Hessian exists off the kinks, where g'' = 0. It then has the curvature of the loss and the
    products of weights of different blocks.

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
