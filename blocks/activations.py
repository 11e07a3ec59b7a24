"""The activations: a table name -> g and g', elementwise and stable for every finite z.

Both halves of a pair write into `out` where one is given, so that a training loop need not allocate. A derivative is
written in what backward has at hand, z and a = g(z).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from weakref import WeakValueDictionary

import numpy as np

from blocks.arrays import Array, Call, choice

LEAK = 0.01
GELU_SCALE = float(np.sqrt(2 / np.pi))
GELU_CUBIC = 0.044715
# Where |z| is larger, tanh(u(z)) is +-1 to the last bit of a float64; without the bound z u' would be inf, and 0 is right.
GELU_SATURATED = 10.0
# NumPy compares with an array of the same type faster than with a Python number.
ZERO = {np.dtype(dtype): np.zeros((), dtype) for dtype in (np.float32, np.float64)}


@dataclass(frozen=True)
class Activation:
    """A pair (g, g').

    name: the table's key.
    function: `g(z, out=None) -> a`, shapes equal.
    derivative: `g'(z, a, out=None) -> dg/dz`, shapes equal.
    needs_z: whether g' reads z; a training loop keeps a alone where it does not, and writes it over z.
    kinks: every z at which g' jumps.
    """

    name: str
    function: Callable[..., Array]
    derivative: Callable[..., Array]
    needs_z: bool = False
    kinks: tuple[float, ...] = ()

    @classmethod
    def named(cls, name: str) -> "Activation":
        """The activation of that name; raises ValueError with the list of names."""
        return choice("activation", name, ACTIVATIONS)

    def forward_calls(self, z: Array, a: Array) -> list[Call]:
        """a = g(z); z may be a where g' does not read it."""
        return [partial(self.function, z, a)]

    def backward_calls(self, da: Array, z: Array, a: Array, dz: Array) -> list[Call]:
        """dz = da * g'(z); nothing reads z after it."""
        return [partial(self.derivative, z, a, dz), partial(np.multiply, da, dz, dz)]


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


class Identity(Activation):
    """Nothing to compute where the arrays are the same."""

    def forward_calls(self, z: Array, a: Array) -> list[Call]:
        """a = z"""
        return [] if a is z else [partial(np.copyto, a, z)]

    def backward_calls(self, da: Array, z: Array, a: Array, dz: Array) -> list[Call]:
        """dz = da"""
        return [] if dz is da else [partial(np.copyto, dz, da)]


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


class Tanh(Activation):
    """In a loop the same by ufuncs alone, for `blocks.program`."""

    def forward_calls(self, z: Array, a: Array) -> list[Call]:
        """a = tanh z"""
        return [partial(np.tanh, z, a)]

    def backward_calls(self, da: Array, z: Array, a: Array, dz: Array) -> list[Call]:
        """dz = da (1 - a^2)"""
        return [partial(np.multiply, a, a, dz), partial(np.subtract, 1, dz, dz), partial(np.multiply, da, dz, dz)]


def relu(z: Array, out: Array | None = None) -> Array:
    """g(z) = max(z, 0)"""
    return np.maximum(z, ZERO[z.dtype], out=out)


def relu_derivative(z: Array, a: Array, out: Array | None = None) -> Array:
    """g'(z) = 1 where z > 0, else 0 (0 at z = 0)"""
    # a > 0 just where z > 0.
    return np.greater(a, ZERO[a.dtype], _out(a, out))


class Relu(Activation):
    """In a loop the same numbers in 60 % of the time.

    Against an array of zeros NumPy's maximum is twice as fast as against one zero. And a positive float is a positive whole
    number when its bits are read as one: min(a's bits, 1) is 1 where a > 0 and else 0, and da's bits times that are da or 0,
    while a comparison would have to be converted to floats first.
    """

    def forward_calls(self, z: Array, a: Array) -> list[Call]:
        """a = max(z, 0)"""
        return [partial(np.maximum, z, _constant(0, z.shape, z.dtype), out=a)]

    def backward_calls(self, da: Array, z: Array, a: Array, dz: Array) -> list[Call]:
        """dz = da where z > 0, else 0"""
        whole = np.dtype(f"i{a.itemsize}")
        da_bits, a_bits, dz_bits = (array.view(whole) for array in (da, a, dz))
        return [
            partial(np.minimum, a_bits, _constant(1, a.shape, whole), out=dz_bits),
            partial(np.multiply, da_bits, dz_bits, dz_bits),
        ]


# Held here as long as somebody else does: blocks of one shape share them.
CONSTANTS: WeakValueDictionary[tuple[int, tuple[int, ...], np.dtype], Array] = WeakValueDictionary()


def _constant(value: int, shape: tuple[int, ...], dtype: np.dtype) -> Array:
    """An array full of `value`, for all who read it."""
    key = value, shape, dtype
    array = CONSTANTS.get(key)
    if array is None:
        array = CONSTANTS[key] = np.full(shape, value, dtype)
        array.flags.writeable = False
    return array


def leaky_relu(z: Array, out: Array | None = None) -> Array:
    """g(z) = max(z, 0.01 z)"""
    out = np.multiply(z, LEAK, out)
    return np.maximum(z, out, out=out)


def leaky_relu_derivative(z: Array, a: Array, out: Array | None = None) -> Array:
    """g'(z) = 1 where z > 0, else 0.01"""
    # From z, since g, with z on both sides of a maximum, cannot be written over it.
    return np.maximum(relu_derivative(z, z, out), LEAK, out=out)


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


def _gelu_u(z: Array, out: Array | None = None) -> Array:
    """u = sqrt(2 / pi) (z + 0.044715 z^3)"""
    out = np.multiply(z, z, out)
    out *= GELU_CUBIC
    out += 1
    out *= z
    out *= GELU_SCALE
    return out


def gelu(z: Array, out: Array | None = None) -> Array:
    """g(z) = z (1 + tanh(sqrt(2 / pi) (z + 0.044715 z^3))) / 2, the tanh form (Hendrycks and Gimpel 2016)"""
    # Where z^3 is inf, its tanh is the right limit.
    with np.errstate(over="ignore"):
        out = _gelu_u(z, out)
    np.tanh(out, out)
    out += 1
    out *= 0.5
    out *= z
    return out


def gelu_derivative(z: Array, a: Array, out: Array | None = None, room: Array | None = None) -> Array:
    """g'(z) = (1 + t + (1 - t^2) z u') / 2,  t = tanh(u), z u' = 3 u - 2 sqrt(2 / pi) z

    room: an array to compute in, which may be z.
    """
    out = np.clip(z, -GELU_SATURATED, GELU_SATURATED, out)
    u = _gelu_u(out, room)
    out *= -2 / 3 * GELU_SCALE
    out += u
    out *= 3
    t = np.tanh(u, u)
    t += 1
    out *= t
    np.subtract(2, t, t)
    out *= t
    # 1 + t is 2 less what t is by now, 1 - t.
    out -= t
    out += 2
    out *= 0.5
    return out


class Gelu(Activation):
    """In a loop g' is computed in z."""

    def backward_calls(self, da: Array, z: Array, a: Array, dz: Array) -> list[Call]:
        """dz = da * g'(z)"""
        return [partial(self.derivative, z, a, dz, z), partial(np.multiply, da, dz, dz)]


ACTIVATIONS = {
    pair.name: pair
    for pair in (
        Identity("identity", identity, identity_derivative),
        Activation("sigmoid", sigmoid, sigmoid_derivative),
        Tanh("tanh", tanh, tanh_derivative),
        Relu("relu", relu, relu_derivative, kinks=(0.0,)),
        Activation("leaky_relu", leaky_relu, leaky_relu_derivative, needs_z=True, kinks=(0.0,)),
        Activation("softplus", softplus, softplus_derivative, needs_z=True),
        Activation("elu", elu, elu_derivative, needs_z=True),
        Gelu("gelu", gelu, gelu_derivative, needs_z=True),
    )
}
