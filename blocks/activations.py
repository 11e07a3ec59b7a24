"""The activations: a table name -> g and g', elementwise and stable for every finite z.

Both halves of a pair write into `out` where one is given, so that a training loop need not allocate. A derivative is
written in what backward has at hand, z and a = g(z).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from blocks.arrays import Array, choice

LEAK = 0.01
GELU_SCALE = float(np.sqrt(2 / np.pi))
GELU_CUBIC = 0.044715
# Where |z| is larger, tanh(u(z)) is +-1 to the last bit of a float64; without the bound z^3 would overflow.
GELU_SATURATED = 10.0
# NumPy compares with an array of the same type faster than with a Python number.
ZERO = {np.dtype(dtype): np.zeros((), dtype) for dtype in (np.float32, np.float64)}


@dataclass(frozen=True)
class Activation:
    """A pair (g, g').

    name: the table's key.
    function: `g(z, out=None) -> a`, shapes equal.
    derivative: `g'(z, a, out=None) -> dg/dz`, shapes equal.
    needs_z: whether g' reads z; a training loop keeps a alone where it does not.
    """

    name: str
    function: Callable[..., Array]
    derivative: Callable[..., Array]
    needs_z: bool = False

    @classmethod
    def named(cls, name: str) -> "Activation":
        """The activation of that name; raises ValueError with the list of names."""
        return choice("activation", name, ACTIVATIONS)


def _out(z: Array, out: Array | None) -> Array:
    return np.empty_like(z) if out is None else out


def identity(z: Array, out: Array | None = None) -> Array:
    """g(z) = z"""
    return np.positive(z, out)


def identity_derivative(z: Array, a: Array, out: Array | None = None) -> Array:
    """g'(z) = 1"""
    out = _out(z, out)
    out.fill(1)
    return out


def sigmoid(z: Array, out: Array | None = None) -> Array:
    """g(z) = 1 / (1 + e^-z)"""
    out = np.negative(z, out)
    # For z below about -88 (float32) e^-z is inf, and 1 / inf is the right limit.
    with np.errstate(over="ignore"):
        np.exp(out, out)
    out += 1
    return np.reciprocal(out, out)


def sigmoid_derivative(z: Array, a: Array, out: Array | None = None) -> Array:
    """g'(z) = a (1 - a)"""
    out = np.subtract(1, a, out)
    out *= a
    return out


def tanh(z: Array, out: Array | None = None) -> Array:
    """g(z) = tanh z"""
    return np.tanh(z, out)


def tanh_derivative(z: Array, a: Array, out: Array | None = None) -> Array:
    """g'(z) = 1 - a^2"""
    out = np.multiply(a, a, out)
    return np.subtract(1, out, out)


def relu(z: Array, out: Array | None = None) -> Array:
    """g(z) = max(z, 0)"""
    # Against an array of zeros NumPy's loop is three times faster than against the scalar.
    out = _out(z, out)
    out.fill(0)
    return np.maximum(z, out, out=out)


def relu_derivative(z: Array, a: Array, out: Array | None = None) -> Array:
    """g'(z) = 1 where z > 0, else 0 (0 at z = 0)"""
    # a > 0 just where z > 0.
    return np.greater(a, ZERO[a.dtype], _out(a, out))


def leaky_relu(z: Array, out: Array | None = None) -> Array:
    """g(z) = max(z, 0.01 z)"""
    out = np.multiply(z, LEAK, out)
    return np.maximum(z, out, out=out)


def leaky_relu_derivative(z: Array, a: Array, out: Array | None = None) -> Array:
    """g'(z) = 1 where z > 0, else 0.01"""
    return np.maximum(relu_derivative(z, a, out), LEAK, out=out)


def softplus(z: Array, out: Array | None = None) -> Array:
    """g(z) = log(1 + e^z)"""
    return np.logaddexp(0, z, out=out, dtype=z.dtype)


def softplus_derivative(z: Array, a: Array, out: Array | None = None) -> Array:
    """g'(z) = sigmoid(z)"""
    return sigmoid(z, out)


def elu(z: Array, out: Array | None = None) -> Array:
    """g(z) = z where z > 0, else e^z - 1 (Clevert et al. 2016, alpha = 1)"""
    out = np.minimum(z, 0, out=out)
    np.expm1(out, out)
    # e^z - 1 >= z everywhere, so the larger of the two is the right branch on both sides.
    return np.maximum(z, out, out=out)


def elu_derivative(z: Array, a: Array, out: Array | None = None) -> Array:
    """g'(z) = 1 where z > 0, else e^z"""
    out = np.minimum(z, 0, out=out)
    return np.exp(out, out)


def _gelu_tanh(z: Array, out: Array | None = None) -> Array:
    """tanh(u), u = sqrt(2 / pi) (z + 0.044715 z^3)"""
    z = np.clip(z, -GELU_SATURATED, GELU_SATURATED)
    out = np.multiply(z, z, out)
    out *= GELU_CUBIC
    out += 1
    out *= z
    out *= GELU_SCALE
    return np.tanh(out, out)


def gelu(z: Array, out: Array | None = None) -> Array:
    """g(z) = z (1 + tanh(sqrt(2 / pi) (z + 0.044715 z^3))) / 2, the tanh form (Hendrycks and Gimpel 2016)"""
    out = _gelu_tanh(z, out)
    out += 1
    out *= 0.5
    out *= z
    return out


def gelu_derivative(z: Array, a: Array, out: Array | None = None) -> Array:
    """g'(z) = (1 + t) / 2 + z (1 - t^2) u' / 2,  t = tanh(u), u' = sqrt(2 / pi) (1 + 3 0.044715 z^2)"""
    t = _gelu_tanh(z)
    z = np.clip(z, -GELU_SATURATED, GELU_SATURATED)
    out = np.multiply(z, z, out)
    out *= 3 * GELU_CUBIC
    out += 1
    out *= GELU_SCALE
    out *= z
    out *= 1 - t * t
    out += t
    out += 1
    out *= 0.5
    return out


ACTIVATIONS = {
    pair.name: pair
    for pair in (
        Activation("identity", identity, identity_derivative),
        Activation("sigmoid", sigmoid, sigmoid_derivative),
        Activation("tanh", tanh, tanh_derivative),
        Activation("relu", relu, relu_derivative),
        Activation("leaky_relu", leaky_relu, leaky_relu_derivative),
        Activation("softplus", softplus, softplus_derivative, needs_z=True),
        Activation("elu", elu, elu_derivative, needs_z=True),
        Activation("gelu", gelu, gelu_derivative, needs_z=True),
    )
}
