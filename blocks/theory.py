"""Theory that predicts, before training, how signals and gradients change with depth, and which learning rates are stable.

Mean-field theory is about wide blocks z_l = W_l g(z_{l-1}) + b_l, with random W_ij ~ N(0, sigma_w^2 / n_{l-1}) and
b ~ N(0, sigma_b^2). In the limit of infinite width z_l is Gaussian. The z_l of two examples are then described by three
numbers: the variance q of each, and their correlation c. chi_1 is the growth of squared gradients per block. Sources:

- Poole, Lahiri, Raghu, Sohl-Dickstein, Ganguli, "Exponential expressivity in deep neural networks through transient
  chaos", 2016: the variance map, the correlation map, chi_1
- Schoenholz, Gilmer, Ganguli, Sohl-Dickstein, "Deep information propagation", 2017: depth scales, gradients
- He, Zhang, Ren, Sun, "Delving deep into rectifiers", 2015: relu, where chi_1 = sigma_w^2 / 2
- Yang, Pennington, Rao, Sohl-Dickstein, Schoenholz, "A mean field theory of batch normalization", 2019: normalized_chi_1
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

# Initializer -> sigma_w^2 = n_{l-1} Var W_ij at gain 1, where all blocks have the same width; see blocks/initializers.py.
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

# Numbers that differ by less count as equal. The rounding errors of the integrals are about 1e-15.
ROUNDING = 1e-13
# This variance stands for infinity, and its inverse for 0. Every activation is within 1e-14 of its limit there.
LARGEST_Q = 1e28


def _nodes() -> tuple[Array, Array]:
    """Return nodes x and weights w for which sum f(x) w is the integral of f over (0, 1), up to a small error.

    The rule is tanh-sinh quadrature (Takahasi and Mori 1974). Its nodes are densest at both ends. One end is put where relu,
    leaky_relu and elu have a kink, and where sigmoid becomes a step for large q. Gauss-Hermite nodes do not resolve these.
    For every activation, the means of g^2 and g'^2 have relative errors below 1e-13 up to q = 100, and below 1e-9 up to q = 1e6.
    """
    step = 0.03
    t = step * np.arange(-107, 108)
    x = 1 / (1 + np.exp(-np.pi * np.sinh(t)))
    return x, step * np.pi * np.cosh(t) * x * x[::-1]


X, X_WEIGHTS = _nodes()
# Less than 1e-21 of a Gaussian's mass lies beyond this radius.
RADIUS = 10.0
# Nodes for means: R for the radius of a pair of independent N(0, 1), Z for z ~ N(0, 1). The weights include the density.
R = RADIUS * X
R_WEIGHTS = RADIUS * X_WEIGHTS * R * np.exp(-R * R / 2) / (2 * np.pi)
Z = np.concatenate([-R[::-1], R])
Z_WEIGHTS = np.concatenate([X_WEIGHTS[::-1], X_WEIGHTS]) * RADIUS * np.exp(-Z * Z / 2) / np.sqrt(2 * np.pi)


def _mean_of_pairs(f: Callable[[Array], Array], q: float, c: float) -> float:
    """Return E[f(u1) f(u2)], where u1 and u2 are Gaussian with mean 0, variance q and correlation c.

    In polar coordinates u1 = sqrt(q) r cos(theta) and u2 = sqrt(q) r cos(theta - phi), with c = cos(phi). The lines u1 = 0
    and u2 = 0 cut the plane into four sectors. f may have a kink at 0, and is smooth inside each sector.
    """
    phi = np.arccos(c)
    starts = np.array([phi - np.pi / 2, np.pi / 2, phi + np.pi / 2, 3 * np.pi / 2])[:, None]
    widths = np.array([np.pi - phi, phi, np.pi - phi, phi])[:, None]
    theta = (starts + widths * X).reshape(-1, 1)
    r = np.sqrt(q) * R
    means = (f(r * np.cos(theta)) * f(r * np.cos(theta - phi))) @ R_WEIGHTS
    return float(means @ (widths * X_WEIGHTS).ravel())


def _border(holds: Callable[[float], bool], low: float, high: float) -> float:
    """Return where `holds` changes from true at low to false at high, by bisection. At the returned number it is false."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return high


def _depth_scale(factor: float) -> float:
    """Return xi, in blocks, for which factor^l = e^(-l / xi). It is inf where nothing decays, and 0 for a factor of at most 0."""
    if factor > 1 - ROUNDING:
        return np.inf
    return float(-1 / np.log(factor)) if factor > 0 else 0.0


@dataclass(frozen=True)
class VarianceMap:
    """How the variance q of z changes from block to block, in a wide network before training.

    activation: name of g, from the table in blocks/activations.py. All blocks have the same.
    weight_variance: sigma_w^2 = n_{l-1} Var W_ij, above 0; see the function `weight_variance`.
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
        """Return the variance of z_l where z_{l-1} has variance q (Poole et al. 2016):

        V(q) = sigma_w^2 E[g(sqrt(q) z)^2] + sigma_b^2        z ~ N(0, 1)

        q: any shape, at least 0. V has the same shape.
        """
        check_number("q", q, at_least=0)
        u = np.sqrt(np.asarray(q, dtype=np.float64))[..., None] * Z
        return self.weight_variance * (self._g(u) ** 2 @ Z_WEIGHTS) + self.bias_variance

    @cached_property
    def fixed_point(self) -> float:
        """q* = V(q*), the limit of repeated q <- V(q). The start is q = 1, the variance of standardised data.

        There may be several fixed points. For gelu without biases and sigma_w^2 between 2 and 4, a small q goes to 0 and a
        large one to inf. For relu without biases and sigma_w^2 = 2, every q is fixed, and q* is 1. Above 2, q* is inf.
        For every activation in the table V rises with q. From 1, q therefore only rises or only falls, up to the first
        place where V(q) - q changes its sign.
        """

        def growth(log_q: ArrayLike) -> Array:
            q = np.exp(log_q)
            return self.variance_map(q) / q - 1

        growth_at_1 = float(growth(0.0))
        if abs(growth_at_1) <= ROUNDING:
            return 1.0
        direction = np.sign(growth_at_1)
        log_q = np.linspace(0, direction * np.log(LARGEST_Q), 600)
        has_turned = direction * growth(log_q) < -ROUNDING
        if not has_turned.any():
            return np.inf if direction > 0 else float(self.variance_map(0.0))
        end = int(has_turned.argmax())
        return float(np.exp(_border(lambda x: bool(direction * growth(x) > 0), log_q[end - 1], log_q[end])))

    @cached_property
    def _q(self) -> float:
        """q*, or the finite number that stands for it where it is 0 or inf."""
        return float(np.clip(self.fixed_point, 1 / LARGEST_Q, LARGEST_Q))


@dataclass(frozen=True)
class MeanField(VarianceMap):
    """How gradients, and the correlation of two examples, change from block to block in a wide network before training.

    E is the mean over independent z, z1, z2 ~ N(0, 1). Where q* is 0 or inf, a formula with q* means its limit.
    """

    @cached_property
    def chi_1(self) -> float:
        """The factor by which backward multiplies squared gradients, from block l to l - 1 (Schoenholz et al. 2017):

        chi_1 = sigma_w^2 E[g'(sqrt(q*) z)^2]

        Below 1, gradients vanish and examples become alike. Above 1, gradients explode and similar examples become different.
        """
        return float(self.weight_variance * (self._derivative(np.sqrt(self._q) * Z) ** 2 @ Z_WEIGHTS))

    @cached_property
    def normalized_chi_1(self) -> float:
        """chi_1 without biases, where every block standardises its input, over its units or the examples of a large batch:

        chi_1 = sigma_w^2 E[g'(sigma_w z)^2] / (E[g(sigma_w z)^2] - E[g(sigma_w z)]^2)

        The standardised input has variance 1, and from block to block the examples become uncorrelated. So z_l ~ N(0, sigma_w^2).
        The denominator is the variance of g(z), by which backward divides squared gradients. relu has pi / (pi - 1) at any
        sigma_w. Yang et al. 2019 have the same number, though they standardise W_l a_{l-1} over a batch.
        """
        u = np.sqrt(self.weight_variance) * Z
        a = self._g(u)
        slope = self.weight_variance * (self._derivative(u) ** 2 @ Z_WEIGHTS)
        return float(slope / (a**2 @ Z_WEIGHTS - (a @ Z_WEIGHTS) ** 2))

    @cached_property
    def jacobian_spread(self) -> float:
        """How much each block spreads the squared singular values of the input-output Jacobian:

        E[g'(sqrt(q*) z)^4] / E[g'(sqrt(q*) z)^2]^2 - 1

        A block with orthogonal weights adds this to variance / mean^2 of these values. Normal weights add 1 more (Pennington et
        al. 2017, since S-transforms of free factors multiply). With 0 a network of any depth has dynamical isometry. relu has 1.
        """
        squares = self._derivative(np.sqrt(self._q) * Z) ** 2
        return float((squares**2 @ Z_WEIGHTS) / (squares @ Z_WEIGHTS) ** 2 - 1)

    def gradient_ratio(self, blocks: ArrayLike) -> Array:
        """Return E ||dJ/dz_l||^2 / E ||dJ/dz_L||^2 = chi_1^(L - l) for one example (Schoenholz et al. 2017).

        All blocks have the same width. The gradients dJ/dW_l = dJ/dz_l a_{l-1}^T have the same ratio once z_l has variance q*.

        blocks: L - l, the number of blocks between the two, any shape. The ratio has the same shape.
        """
        with np.errstate(over="ignore", under="ignore"):
            return np.power(self.chi_1, blocks)

    def correlation_map(self, c: ArrayLike) -> Array:
        """Return the correlation of z_l of two examples whose z_{l-1} have correlation c and variance q* (Poole et al. 2016):

        C(c) = (sigma_w^2 E[g(u1) g(u2)] + sigma_b^2) / q*
        u1 = sqrt(q*) z1        u2 = sqrt(q*) (c z1 + sqrt(1 - c^2) z2)

        c: any shape, from -1 to 1. C has the same shape.
        """
        c = np.asarray(c, dtype=np.float64)
        if not (np.abs(c) <= 1).all():
            raise ValueError(f"c is {c}, it must be from -1 to 1")
        means = np.array([_mean_of_pairs(self._g, self._q, number) for number in c.flat]).reshape(c.shape)
        # z_l has variance V(q*). This is q* itself, except where a number stands for a q* of 0 or inf.
        return (self.weight_variance * means + self.bias_variance) / self.variance_map(self._q)

    def _chi(self, c: float) -> float:
        """Return sigma_w^2 E[g'(u1) g'(u2)], which is the derivative C'(c), with u1 and u2 as in `correlation_map`."""
        return self.weight_variance * _mean_of_pairs(self._derivative, self._q, c)

    @cached_property
    def correlation_fixed_point(self) -> float:
        """c* = C(c*), the limit of repeated c <- C(c) from any c with 0 <= c < 1 (Poole et al. 2016).

        C(1) is 1, and C is convex on [0, 1], since its power series has no negative coefficient. Where C'(1) = chi_1 is at
        most 1, c* is therefore 1. Otherwise C(c) = c has exactly one other solution, and c* is that.
        """
        if self.chi_1 * self._q / self.variance_map(self._q) <= 1 + ROUNDING:
            return 1.0
        return _border(lambda c: bool(self.correlation_map(c) > c + ROUNDING), 0.0, 1.0)

    @cached_property
    def variance_depth_scale(self) -> float:
        """xi_q, in blocks: the distance of q_l from q* shrinks as e^(-l / xi_q) (Schoenholz et al. 2017):

        1 / xi_q = -log(chi_1 + sigma_w^2 E[g''(sqrt(q*) z) g(sqrt(q*) z)]) = -log V'(q*)
        V'(q) = sigma_w^2 E[z g(sqrt(q) z) g'(sqrt(q) z)] / sqrt(q)

        V' is computed by the second line, which needs no g''. The two agree by Stein's lemma, E[z f(z)] = E[f'(z)].
        Where V'(q*) >= 1, xi_q is inf.
        """
        u = np.sqrt(self._q) * Z
        return _depth_scale(float(self.weight_variance * ((Z * self._g(u) * self._derivative(u)) @ Z_WEIGHTS) / np.sqrt(self._q)))

    @cached_property
    def correlation_depth_scale(self) -> float:
        """xi_c, in blocks: the distance of c_l from c* shrinks as e^(-l / xi_c) (Schoenholz et al. 2017):

        1 / xi_c = -log(sigma_w^2 E[g'(u1) g'(u2)])        u1, u2: Gaussian with variance q* and correlation c*

        At the critical point, chi_1 = 1, xi_c is inf.
        """
        return _depth_scale(self._chi(self.correlation_fixed_point))

    @property
    def trainable_depth(self) -> float:
        """6 xi_c, in blocks. Schoenholz et al. 2017 observe that networks train up to about this depth."""
        return 6 * self.correlation_depth_scale


def weight_variance(initializer: str, gain: float = 1.0) -> float:
    """Return sigma_w^2 = n_{l-1} Var W_ij where all blocks have the same width: 2 gain for he, 0 for zeros, else gain.

    initializer, gain: see `blocks.initializers`.
    """
    check_number("gain", gain, at_least=0)
    return gain * choice("initializer", initializer, WEIGHT_VARIANCES)


def critical_gain(activation: str, bias_variance: float = 0.0, search: tuple[float, float] = (0.01, 1000.0)) -> float:
    """Return the sigma_w^2 at which chi_1 = 1. It is the critical `gain` of the initializer `normal`.

    activation, bias_variance: see `VarianceMap`. search: the smallest and the largest sigma_w^2 of the bisection.
    Raises ValueError where chi_1 is nowhere 1 between them. An example is gelu without biases, for which q* jumps from 0 to
    inf, and chi_1 from 0.6 to 1.2.
    """

    def vanishes(log_gain: float) -> bool:
        return MeanField(activation, float(np.exp(log_gain)), bias_variance).chi_1 < 1 - ROUNDING

    check_number("search", search, above=0)
    low, high = np.log(search)
    if vanishes(low) and not vanishes(high):
        # Further decimals are not reliable. Without them relu's critical gain is exactly 2.
        gain = round(float(np.exp(_border(vanishes, low, high))), 12)
        if abs(MeanField(activation, gain, bias_variance).chi_1 - 1) < 1e-6:
            return gain
    raise ValueError(
        f"activation {activation!r} with bias_variance {bias_variance} has chi_1 = 1 at no sigma_w^2 from "
        f"{search[0]:g} to {search[1]:g}"
    )


def largest_curvature(x: Array) -> float:
    """Return lambda_max(X X^T / m), where X is x above a row of ones, which stands for the bias.

    It is the largest eigenvalue of the Hessian of a linear model z = W x + b, whose loss is half the mean squared error.

    x: (n_x, m) data, one example per column. Raises ValueError for another shape, m = 0, or data that are not finite.
    """
    x = np.asarray(x, dtype=np.float64)
    if x.ndim != 2 or x.shape[-1] == 0:
        raise ValueError(f"x has shape {x.shape}, it must be (n_x, m), an example a column")
    check_finite("x", x)
    m = x.shape[-1]
    return float(np.linalg.norm(np.vstack([x, np.ones(m)]), 2) ** 2 / m)


def largest_stable_rate(x: Array) -> float:
    """Return 2 / lambda_max, with lambda_max from `largest_curvature` (LeCun et al. 1998).

    Full-batch gradient descent on half the mean squared error of a linear model diverges if and only if its learning
    rate is larger.

    x: (n_x, m) data, one example per column, without the row of ones.
    """
    return 2 / largest_curvature(x)


def softmax_sharpness(x: Array, classes: int) -> float:
    """Return lambda_max / K, the largest eigenvalue of the Hessian of softmax regression at W = 0, b = 0.

    lambda_max is that of `largest_curvature`. Where every example has the same probabilities p, the Hessian is the Kronecker
    product of diag(p) - p p^T and X X^T / m. At W = 0, b = 0 every p_k is 1 / K.

    x: (n_x, m) data, one example per column, without the row of ones. classes: K, at least 2.
    """
    return largest_curvature(x) / whole_number("classes", classes, at_least=2)
