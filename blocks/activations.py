"""The activations: a table name -> g and g', elementwise and stable for every finite z.

Each pair is written plainly. A derivative is written in what backward has at hand, z and a = g(z). A new activation is a pair of
functions and a line in the table: what else is computed with it, its Hessian too, follows from these.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from blocks.arrays import Array, choice

LEAK = 0.01
GELU_SCALE = float(np.sqrt(2 / np.pi))
GELU_CUBIC = 0.044715
# Where |z| is larger, tanh(u(z)) is +-1 to the last bit of a float64; without the bound z u' would be inf, and 0 is right.
GELU_SATURATED = 10.0


@dataclass(frozen=True)
class Activation:
    """A pair (g, g').

    name: the table's key.
    function: `g(z) -> a`, shapes equal.
    derivative: `g'(z, a) -> dg/dz`, shapes equal.
    kinks: every z at which g' jumps.
    product: `(da, z, a) -> da * g'(z)` where that is quicker than to multiply by g'; None where it is not.
    """

    name: str
    function: Callable[[Array], Array]
    derivative: Callable[[Array, Array], Array]
    kinks: tuple[float, ...] = ()
    product: Callable[[Array, Array, Array], Array] | None = None

    def backward(self, da: Array, z: Array, a: Array) -> Array:
        """dz = da * g'(z)"""
        return da * self.derivative(z, a) if self.product is None else self.product(da, z, a)

    @classmethod
    def named(cls, name: str) -> "Activation":
        """The activation of that name; raises ValueError with the list of names."""
        return choice("activation", name, ACTIVATIONS)


def identity(z: Array) -> Array:
    """g(z) = z"""
    return z


def identity_derivative(z: Array, a: Array) -> Array:
    """g'(z) = 1"""
    return np.ones_like(z)


def identity_product(da: Array, z: Array, a: Array) -> Array:
    """dz = da"""
    return da


def sigmoid(z: Array) -> Array:
    """g(z) = 1 / (1 + e^-z)"""
    # For z below about -88 (float32) e^-z is inf, and 1 / inf is the right limit.
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-z))


def sigmoid_derivative(z: Array, a: Array) -> Array:
    """g'(z) = a (1 - a)"""
    return a * (1 - a)


def tanh(z: Array) -> Array:
    """g(z) = tanh z"""
    return np.tanh(z)


def tanh_derivative(z: Array, a: Array) -> Array:
    """g'(z) = 1 - a^2"""
    return 1 - a * a


def relu(z: Array) -> Array:
    """g(z) = max(z, 0)"""
    return np.maximum(z, 0)


def relu_derivative(z: Array, a: Array) -> Array:
    """g'(z) = 1 where z > 0, else 0 (0 at z = 0): the sign of a"""
    return np.sign(a)


def relu_product(da: Array, z: Array, a: Array) -> Array:
    """dz = da where z > 0, else 0

    A positive float is a positive whole number when its bits are read as one: min(a's bits, 1) is 1 where a > 0 and else 0, and
    da's bits times that are da or 0, in half the time of a product of floats.
    """
    integer = f"i{a.itemsize}"
    return (da.view(integer) * np.minimum(a.view(integer), 1)).view(da.dtype)


def leaky_relu(z: Array) -> Array:
    """g(z) = max(z, 0.01 z)"""
    return np.maximum(z, LEAK * z)


def leaky_relu_derivative(z: Array, a: Array) -> Array:
    """g'(z) = 1 where z > 0, else 0.01"""
    return np.maximum(np.sign(z), LEAK)


def softplus(z: Array) -> Array:
    """g(z) = log(1 + e^z)"""
    return np.logaddexp(0, z)


def softplus_derivative(z: Array, a: Array) -> Array:
    """g'(z) = sigmoid(z)"""
    return sigmoid(z)


def elu(z: Array) -> Array:
    """g(z) = z where z > 0, else e^z - 1 (Clevert et al. 2016, alpha = 1)"""
    # e^z - 1 >= z everywhere, so the larger of the two is the right branch on both sides.
    return np.maximum(z, np.expm1(np.minimum(z, 0)))


def elu_derivative(z: Array, a: Array) -> Array:
    """g'(z) = 1 where z > 0, else e^z"""
    return np.exp(np.minimum(z, 0))


def _gelu_u(z: Array) -> Array:
    """u = sqrt(2 / pi) (z + 0.044715 z^3)"""
    return GELU_SCALE * (z * (1 + GELU_CUBIC * (z * z)))


def gelu(z: Array) -> Array:
    """g(z) = z (1 + tanh u) / 2,  u = sqrt(2 / pi) (z + 0.044715 z^3), the tanh form (Hendrycks and Gimpel 2016)"""
    # Where z^3 is inf, its tanh is the right limit.
    with np.errstate(over="ignore"):
        return z * (0.5 * (1 + np.tanh(_gelu_u(z))))


def gelu_derivative(z: Array, a: Array) -> Array:
    """g'(z) = (1 + t + (1 - t^2) z u') / 2,  t = tanh(u), z u' = 3 u - 2 sqrt(2 / pi) z"""
    z = np.minimum(np.maximum(z, -GELU_SATURATED), GELU_SATURATED)
    u = _gelu_u(z)
    above = 1 + np.tanh(u)
    below = 2 - above
    return 0.5 * (2 + (below * (above * (3 * (u - 2 / 3 * GELU_SCALE * z))) - below))


def swish(z: Array) -> Array:
    """g(z) = z sigmoid(z)  (Ramachandran et al. 2017, beta = 1; SiLU)"""
    return z * sigmoid(z)


def swish_derivative(z: Array, a: Array) -> Array:
    """g'(z) = s + a (1 - s),  s = sigmoid(z)"""
    s = sigmoid(z)
    return s + a * (1 - s)


ACTIVATIONS = {
    pair.name: pair
    for pair in (
        Activation("identity", identity, identity_derivative, product=identity_product),
        Activation("sigmoid", sigmoid, sigmoid_derivative),
        Activation("tanh", tanh, tanh_derivative),
        Activation("relu", relu, relu_derivative, kinks=(0.0,), product=relu_product),
        Activation("leaky_relu", leaky_relu, leaky_relu_derivative, kinks=(0.0,)),
        Activation("softplus", softplus, softplus_derivative),
        Activation("elu", elu, elu_derivative),
        Activation("gelu", gelu, gelu_derivative),
        Activation("swish", swish, swish_derivative),
    )
}
