"""What is known of a network before it is trained: mean-field maps, the critical gain, the largest stable learning rate.

Mean-field theory describes z_l = W_l g(z_{l-1}) + b_l in the limit of wide blocks, W_ij ~ N(0, sigma_w^2 / n_{l-1}) and
b ~ N(0, sigma_b^2): z_l is then Gaussian, and what two examples' z_l have in common is three numbers, their variances q
and their correlation c. Sources:

- Poole, Lahiri, Raghu, Sohl-Dickstein, Ganguli, "Exponential expressivity in deep neural networks through transient
  chaos", 2016: the variance map, the correlation map, chi_1
- Schoenholz, Gilmer, Ganguli, Sohl-Dickstein, "Deep information propagation", 2017: depth scales, gradients
- He, Zhang, Ren, Sun, "Delving deep into rectifiers", 2015: relu, where chi_1 = sigma_w^2 / 2
- Yang, Pennington, Rao, Sohl-Dickstein, Schoenholz, "A mean field theory of batch normalization", 2019: pi / (pi - 1)
- Pennington, Schoenholz, Ganguli, "Resurrecting the sigmoid in deep learning through dynamical isometry", 2017: Jacobians
- LeCun, Bottou, Orr, Mueller, "Efficient BackProp", 1998: the learning rate 2 / lambda_max
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from blocks.activations import Activation
from blocks.arrays import Array, check_finite, check_number, choice, whole_number

# sigma_w^2 = n_{l-1} Var W_ij at gain 1 and equal widths, of the laws in blocks/initializers.py.
WEIGHT_VARIANCES = {
    "zeros": 0.0,
    "normal": 1.0,
    "lecun": 1.0,
    "glorot": 1.0,
    "glorot_uniform": 1.0,
    "he": 2.0,
    "he_uniform": 2.0,
    "orthogonal": 1.0,
}

# What differs by less is equal: the quadrature's rounding errors are about 1e-15.
ROUNDING = 1e-13
# Stands for an infinite variance, and its inverse for 0: every activation is at its limit there, to 1e-14.
LARGEST_Q = 1e28


def _nodes() -> tuple[Array, Array]:
    """Nodes x and weights of tanh-sinh quadrature on (0, 1) (Takahasi and Mori 1974), sum of f(x) weight = integral of f.

    The nodes crowd towards both ends: there lie the kinks of relu, leaky_relu and elu, and the step that a sigmoid
    becomes where q is large. Gauss-Hermite nodes would lie across both. With this step the means of the table's g^2 and
    g'^2 have relative errors below 1e-13 for q to 100, and below 1e-9 for q to 1e6.
    """
    step = 0.03
    t = step * np.arange(-107, 108)
    x = 1 / (1 + np.exp(-np.pi * np.sinh(t)))
    return x, step * np.pi * np.cosh(t) * x * x[::-1]


X, X_WEIGHTS = _nodes()
# The radius beyond which a Gaussian's mass is below 1e-21.
RADIUS = 10.0
R = RADIUS * X
R_WEIGHTS = RADIUS * X_WEIGHTS * R * np.exp(-R * R / 2) / (2 * np.pi)
Z = np.concatenate([-R[::-1], R])
Z_WEIGHTS = np.concatenate([X_WEIGHTS[::-1], X_WEIGHTS]) * RADIUS * np.exp(-Z * Z / 2) / np.sqrt(2 * np.pi)


def _mean_of_pairs(f: Callable[[Array], Array], q: float, c: float) -> float:
    """E[f(u1) f(u2)], u1 and u2 Gaussian with mean 0, variance q and correlation c.

    In polar coordinates, u1 = sqrt(q) r cos(theta) and u2 = sqrt(q) r cos(theta - phi) with c = cos(phi): f's kink at 0
    lies on the borders of four sectors, in each of which all is smooth.
    """
    phi = np.arccos(c)
    starts = np.array([phi - np.pi / 2, np.pi / 2, phi + np.pi / 2, 3 * np.pi / 2])[:, None]
    widths = np.array([np.pi - phi, phi, np.pi - phi, phi])[:, None]
    theta = (starts + widths * X).reshape(-1, 1)
    r = np.sqrt(q) * R
    means = (f(r * np.cos(theta)) * f(r * np.cos(theta - phi))) @ R_WEIGHTS
    return float(means @ (widths * X_WEIGHTS).ravel())


def _border(holds: Callable[[float], bool], low: float, high: float) -> float:
    """Where `holds` turns from true (at low) to false (at high), by bisection; the end returned is high's."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return high


def _depth_scale(factor: float) -> float:
    """xi with factor^l = e^(-l / xi); inf where nothing decays."""
    if factor > 1 - ROUNDING:
        return np.inf
    return float(-1 / np.log(factor)) if factor > 0 else 0.0


@dataclass(frozen=True)
class VarianceMap:
    """The variance q of z, from block to block, of a wide network of one activation before training.

    activation: g, a name from the table.
    weight_variance: sigma_w^2 = n_{l-1} Var W_ij, above 0; see `weight_variance`.
    bias_variance: sigma_b^2, at least 0.
    Raises ValueError for an unknown activation and for variances out of range.
    """

    activation: str
    weight_variance: float
    bias_variance: float = 0.0

    def __post_init__(self) -> None:
        Activation.named(self.activation)
        check_number("weight_variance", self.weight_variance, above=0)
        check_number("bias_variance", self.bias_variance, at_least=0)

    def _g(self, u: Array) -> Array:
        return Activation.named(self.activation).function(u)

    def _derivative(self, u: Array) -> Array:
        pair = Activation.named(self.activation)
        return pair.derivative(u, pair.function(u))

    def variance_map(self, q: ArrayLike) -> Array:
        """The variance of z_l from that of z_{l-1} (Poole et al. 2016):

        V(q) = sigma_w^2 E[g(sqrt(q) z)^2] + sigma_b^2

        q: any shape, at least 0. Returns V of the same shape.
        """
        check_number("q", q, at_least=0)
        u = np.sqrt(np.asarray(q, dtype=np.float64))[..., None] * Z
        return self.weight_variance * (self._g(u) ** 2 @ Z_WEIGHTS) + self.bias_variance

    @cached_property
    def fixed_point(self) -> float:
        """q* = V(q*), where q <- V(q) leads to from q = 1, the variance of standardised data.

        The start decides where there are several: for gelu without biases and sigma_w^2 between 2 and 4, small q vanish and
        large ones explode. At relu's sigma_w^2 = 2 without biases every q is fixed, and q* = 1. inf where q grows without
        bound, as with relu above that. For each activation of the table V rises with q, so that the way from 1 to q* has
        one direction and ends where V(q) - q first changes its sign.
        """

        def growth(log_q: ArrayLike) -> Array:
            q = np.exp(log_q)
            return self.variance_map(q) / q - 1

        at_1 = float(growth(0.0))
        if abs(at_1) <= ROUNDING:
            return 1.0
        direction = np.sign(at_1)
        log_q = np.linspace(0, direction * np.log(LARGEST_Q), 600)
        has_turned = direction * growth(log_q) < -ROUNDING
        if not has_turned.any():
            return np.inf if direction > 0 else float(self.variance_map(0.0))
        end = int(has_turned.argmax())
        return float(np.exp(_border(lambda x: bool(direction * growth(x) > 0), log_q[end - 1], log_q[end])))

    @cached_property
    def _q(self) -> float:
        return float(np.clip(self.fixed_point, 1 / LARGEST_Q, LARGEST_Q))


@dataclass(frozen=True)
class MeanField(VarianceMap):
    """What a wide network before training does to gradients, and to what two examples have in common.

    E is the mean over z ~ N(0, 1). Where q* is 0 or inf, what is taken at q* is its limit.
    """

    @cached_property
    def chi_1(self) -> float:
        """The factor by which squared gradients change from block to block, going down (Schoenholz et al. 2017):

        chi_1 = sigma_w^2 E[g'(sqrt(q*) z)^2]

        Below 1 gradients vanish and examples become alike, above 1 gradients explode and examples part.
        """
        return float(self.weight_variance * (self._derivative(np.sqrt(self._q) * Z) ** 2 @ Z_WEIGHTS))

    @cached_property
    def normalized_chi_1(self) -> float:
        """chi_1 where every block standardises its input, over its units or over the examples of a large batch, without biases:

        chi_1 = sigma_w^2 E[g'(sigma_w z)^2] / (E[g(sigma_w z)^2] - E[g(sigma_w z)]^2)

        What is standardised has variance 1, and examples of it become uncorrelated from block to block: z_l ~ N(0, sigma_w^2),
        and da_{l-1} is divided by g's variance. For relu it is pi / (pi - 1) at any sigma_w, as where W_l a_{l-1} is what is
        standardised over a batch (Yang et al. 2019).
        """
        u = np.sqrt(self.weight_variance) * Z
        a = self._g(u)
        slope = self.weight_variance * (self._derivative(u) ** 2 @ Z_WEIGHTS)
        return float(slope / (a**2 @ Z_WEIGHTS - (a @ Z_WEIGHTS) ** 2))

    @cached_property
    def jacobian_spread(self) -> float:
        """What a block of orthogonal weights adds to variance / mean^2 of the Jacobian's squared singular values:

        E[g'(sqrt(q*) z)^4] / E[g'(sqrt(q*) z)^2]^2 - 1

        Normal weights add 1 more (Pennington et al. 2017: S-transforms of free factors multiply). 0 is dynamical isometry at any
        depth; relu has 1.
        """
        squares = self._derivative(np.sqrt(self._q) * Z) ** 2
        return float((squares**2 @ Z_WEIGHTS) / (squares @ Z_WEIGHTS) ** 2 - 1)

    def gradient_ratio(self, blocks: ArrayLike) -> Array:
        """E ||dJ/dz_l||^2 / E ||dJ/dz_L||^2 = chi_1^(L - l), of one example and equal widths (Schoenholz et al. 2017).

        The weights' gradients dJ/dW_l = dJ/dz_l a_{l-1}^T have the same ratio where z_l has come to its variance q*.

        blocks: L - l, any shape. Returns the ratio of the same shape.
        """
        with np.errstate(over="ignore", under="ignore"):
            return np.power(self.chi_1, blocks)

    def correlation_map(self, c: ArrayLike) -> Array:
        """The correlation of two examples' z_l from that of their z_{l-1}, both of variance q* (Poole et al. 2016):

        C(c) = (sigma_w^2 E[g(u1) g(u2)] + sigma_b^2) / q*
        u1 = sqrt(q*) z1        u2 = sqrt(q*) (c z1 + sqrt(1 - c^2) z2)

        c: any shape, from -1 to 1. Returns C of the same shape.
        """
        c = np.asarray(c, dtype=np.float64)
        if not (np.abs(c) <= 1).all():
            raise ValueError(f"c is {c}, it must be from -1 to 1")
        means = np.array([_mean_of_pairs(self._g, self._q, number) for number in c.flat]).reshape(c.shape)
        # V(q*) is q*, and in the limits of 0 and inf the variance that z_l has.
        return (self.weight_variance * means + self.bias_variance) / self.variance_map(self._q)

    def _chi(self, c: float) -> float:
        """sigma_w^2 E[g'(u1) g'(u2)], which is C'(c) at q*."""
        return self.weight_variance * _mean_of_pairs(self._derivative, self._q, c)

    @cached_property
    def correlation_fixed_point(self) -> float:
        """c* = C(c*), where c <- C(c) leads to from any c of 0 to 1 but 1 itself (Poole et al. 2016).

        C(1) = 1, and C is convex on [0, 1], its power series having no negative coefficient. So c* = 1 where C'(1) <= 1
        (chi_1 <= 1), and else it is the one other place where C(c) = c.
        """
        if self.chi_1 * self._q / self.variance_map(self._q) <= 1 + ROUNDING:
            return 1.0
        return _border(lambda c: bool(self.correlation_map(c) > c + ROUNDING), 0.0, 1.0)

    @cached_property
    def variance_depth_scale(self) -> float:
        """xi_q: q_l nears q* as e^(-l / xi_q) (Schoenholz et al. 2017):

        1 / xi_q = -log(chi_1 + sigma_w^2 E[g''(sqrt(q*) z) g(sqrt(q*) z)]) = -log V'(q*)
        V'(q) = sigma_w^2 E[z g(sqrt(q) z) g'(sqrt(q) z)] / sqrt(q)

        The second form is the first by Stein's lemma, E[z f(z)] = E[f'(z)], and needs no g''. inf where V'(q*) >= 1.
        """
        u = np.sqrt(self._q) * Z
        return _depth_scale(float(self.weight_variance * ((Z * self._g(u) * self._derivative(u)) @ Z_WEIGHTS) / np.sqrt(self._q)))

    @cached_property
    def correlation_depth_scale(self) -> float:
        """xi_c: c_l nears c* as e^(-l / xi_c) (Schoenholz et al. 2017):

        1 / xi_c = -log(sigma_w^2 E[g'(u1) g'(u2)])        u1, u2 of variance q* and correlation c*

        inf at the critical point.
        """
        return _depth_scale(self._chi(self.correlation_fixed_point))

    @property
    def trainable_depth(self) -> float:
        """6 xi_c, about the number of blocks up to which networks train (Schoenholz et al. 2017)."""
        return 6 * self.correlation_depth_scale


def weight_variance(initializer: str, gain: float = 1.0) -> float:
    """sigma_w^2 = n_{l-1} Var W_ij between blocks of equal width: gain, and 2 gain under he.

    initializer, gain: see `blocks.initializers`; its bias_variance is sigma_b^2.
    """
    check_number("gain", gain, at_least=0)
    return gain * choice("initializer", initializer, WEIGHT_VARIANCES)


def critical_gain(activation: str, bias_variance: float = 0.0, search: tuple[float, float] = (0.01, 1000.0)) -> float:
    """The sigma_w^2 with chi_1 = 1, by bisection: the `gain` at which the initializer `normal` is critical.

    search: the smallest and the largest sigma_w^2 looked at.
    Raises ValueError where chi_1 is not 1 between them, as for gelu without biases: q* jumps from 0 to inf there, and chi_1
    from 0.6 to 1.2.
    """

    def vanishes(log_gain: float) -> bool:
        return MeanField(activation, float(np.exp(log_gain)), bias_variance).chi_1 < 1 - ROUNDING

    check_number("search", search, above=0)
    low, high = np.log(search)
    if vanishes(low) and not vanishes(high):
        # Only that many digits are known, and relu's critical gain is then 2.
        gain = round(float(np.exp(_border(vanishes, low, high))), 12)
        if abs(MeanField(activation, gain, bias_variance).chi_1 - 1) < 1e-6:
            return gain
    raise ValueError(
        f"activation {activation!r} with bias_variance {bias_variance} has chi_1 = 1 at no sigma_w^2 from "
        f"{search[0]:g} to {search[1]:g}"
    )


def largest_curvature(x: Array) -> float:
    """lambda_max(X X^T / m), X = x above a row of ones, which stands for the bias.

    It is the largest eigenvalue of the Hessian of half the mean squared error of a linear model, z = W x + b.

    x: (n_x, m) data, one example a column.
    """
    x = np.asarray(x, dtype=np.float64)
    if x.ndim != 2 or x.shape[-1] == 0:
        raise ValueError(f"x has shape {x.shape}, it must be (n_x, m), an example a column")
    check_finite("x", x)
    m = x.shape[-1]
    return float(np.linalg.norm(np.vstack([x, np.ones(m)]), 2) ** 2 / m)


def largest_stable_rate(x: Array) -> float:
    """2 / lambda_max(X X^T / m), X = x above a row of ones (LeCun et al. 1998).

    Full-batch gradient descent on half the mean squared error of a linear model diverges if and only if its learning
    rate is larger.

    x: (n_x, m) data, one example a column, without the row of ones.
    """
    return 2 / largest_curvature(x)


def softmax_sharpness(x: Array, classes: int) -> float:
    """lambda_max(X X^T / m) / K, the largest eigenvalue of the Hessian of softmax regression at W = 0, b = 0.

    The Hessian is (diag(p) - p p^T) (x) X X^T / m where every example has the same p, and at 0 all p_k = 1 / K.

    x: (n_x, m) data, one example a column, without the row of ones. classes: K, at least 2.
    """
    return largest_curvature(x) / whole_number("classes", classes, at_least=2)
