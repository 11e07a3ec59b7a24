"""The training of thousands of networks with two blocks and without biases, to find which learning rates train.

    out = w g(W x)        J = 1/(2m) sum of (out - y)^2        W := W - alpha_1 dW        w := w - alpha_2 dw

The batch is full, there is one output, and every lane has its own two rates. A step uses a fifth of the memory of the general
cycle: it has no norms and no biases, and records only the loss. A lane's bits do not depend on its neighbours.
"""

import numpy as np

from blocks.activations import Activation
from blocks.arrays import Array, check_finite, check_number, check_shape, quiet, transpose, whole_number
from blocks.shallow.tanh import TableTanh
from blocks.tape.recorder import Tape
from blocks.tape.replay import Replay, collector_off

# So many lanes are trained together that a call costs little per lane, and that a step fits in the processor's cache; measured.
CACHE_BYTES, MIN_LANES = 384 * 2**10, 32
LINEAR_LANES = 1024
# The number of updates after which lanes are first removed whose later losses are certain. It doubles for every next check.
FIRST_CHECK = 4


def shallow_losses(
    W: Array, w: Array, x: Array, y: Array, rates: Array, activation: str, steps: int, early_exit: bool = True
) -> Array:
    """Return J before each update, (lanes, steps). From the step on at which no later loss of a lane can be finite, it is inf.

    W: (n, n_0), w: (1, n) initial weights, which all lanes share; their dtype, float32 or float64, is the training's.
    x: (n_0, m), y: (1, m) data, one example a column.
    rates: (lanes, 2) alpha_1 and alpha_2 of each lane, at least 0.
    activation: g, a name from the table.
    early_exit: stop a lane once none of its later losses can be finite, and train only w once W cannot change any more. No
        finite loss depends on it.
    Raises ValueError for shapes that do not match, for values that are not finite, and for an unknown activation.
    """
    function = Activation.named(activation)
    steps = whole_number("steps", steps, at_least=1)
    check_shape("W", W, ("n", x.shape[0]))
    check_shape("w", w, (1, W.shape[0]))
    check_shape("y", y, (1, x.shape[-1]))
    check_shape("rates", rates, ("lanes", 2))
    for name, values in {"W": W, "w": w, "x": x, "y": y}.items():
        check_finite(name, values)
    check_number("rates", rates, at_least=0)
    dtype = W.dtype
    cycles: _Linear | _Hidden = (_Linear if activation == "identity" else _Hidden)(
        W, w, x.astype(dtype), y.astype(dtype), function
    )
    losses = np.full((len(rates), steps), np.inf, dtype)
    live, rates = np.arange(len(rates)), rates.astype(dtype)
    W, w = (np.broadcast_to(initial, (live.size, *initial.shape)).copy() for initial in (cycles.W, cycles.w))
    step = 0
    # Networks that diverge overflow. This is a result, not an error.
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        while step < steps and live.size:
            stop = min(steps, max(FIRST_CHECK, 2 * step)) if early_exit else steps
            is_still = np.zeros(live.size, bool)
            for part in _parts(live.size, cycles.lanes):
                losses[live[part], step:stop], is_still[part] = cycles.run(W[part], w[part], rates[live[part]], stop - step)
            step = stop
            if early_exit:
                is_lost = _cannot_recover(W, w)
                if isinstance(cycles, _Hidden):
                    ends = np.flatnonzero(is_still & ~is_lost)
                    for part in _parts(len(ends), cycles.lanes):
                        lanes = ends[part]
                        losses[live[lanes], step:] = cycles.run(
                            W[lanes], w[lanes], rates[live[lanes]], steps - step, second=True
                        )[0]
                mask = ~(is_lost | is_still)
                live, W, w = live[mask], W[mask], w[mask]
    return quiet(losses)


def _parts(count: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, count, size)]


def _cannot_recover(W: Array, w: Array) -> Array:
    """Return a mask (lanes,), True where every later loss is nan or inf.

    A weight that is nan or inf never becomes finite again. A w that is not finite makes every output nan or inf, even where it
    is multiplied by zero; so does a nan in W. An infinite W does not: its tanh is 1.
    """
    return np.asarray(~np.isfinite(w).all(axis=(-2, -1)) | np.isnan(W).any(axis=(-2, -1)))


class _Hidden:
    """Cycles of any activation. Lanes are the first axis of stacked products: each lane has the bits of the lane alone."""

    def __init__(self, W: Array, w: Array, x: Array, y: Array, activation: Activation) -> None:
        self.W, self.w, self.x, self.y, self.activation = W, w, x, y, activation
        self.x_T = np.ascontiguousarray(x.T)
        self.lanes = max(CACHE_BYTES // (2 * W.shape[0] * x.shape[-1] * W.itemsize), MIN_LANES)
        self.tables = activation.name == "tanh" and W.dtype == np.float64
        self.cycles: dict[tuple[int, bool], _Cycle] = {}

    def run(self, W: Array, w: Array, rates: Array, steps: int, second: bool = False) -> tuple[Array, Array]:
        """Train W (lanes, n, n_0) and w (lanes, 1, n) in place. Returns losses (lanes, steps), and which lanes' W cannot change.

        W cannot change any more where g' is 0 for every unit and example: dW is then 0, and the same W has the same g' again.
        second: whether only w is trained.
        """
        key = len(W), second
        if key not in self.cycles:
            self.cycles[key] = _Cycle(self, *key)
        losses = self.cycles[key].run(W, w, rates, steps)
        z = W @ self.x
        return losses, np.asarray(~self.activation.derivative(z, self.activation.function(z)).any(axis=(-2, -1)))


class _Cycle:
    """A cycle for a number of lanes, recorded once and replayed.

        e = w g(W x) - y        dw = e a^T / m        dW = w^T ((e * g'(z)) x^T) / m

    The product with w comes after the sum over the examples, where it has n_0 instead of m values.
    """

    @collector_off()
    def __init__(self, networks: _Hidden, lanes: int, second: bool) -> None:
        W, w, x, y, activation = networks.W, networks.w, networks.x, networks.y, networks.activation
        self.m = x.shape[-1]
        self.W, self.w = np.empty((lanes, *W.shape), W.dtype), np.empty((lanes, *w.shape), w.dtype)
        self.alpha_1, self.alpha_2 = np.empty((2, lanes, 1, 1), W.dtype)
        tape = Tape()
        W, w, alpha_1, alpha_2 = (tape.watch(array) for array in (self.W, self.w, self.alpha_1, self.alpha_2))
        z = W @ x
        a = tape.input(z.shape, z.dtype) if networks.tables else activation.function(z)
        tape.stage = 1
        e = w @ a - y
        loss = np.vecdot(e[:, 0], e[:, 0])
        dw = e @ transpose(a)
        if not second:
            # The factors are multiplied one by one: 0 times (alpha w) would be nan where alpha w has overflowed.
            dz = activation.backward(np.broadcast_to(e, z.shape), z, a)
            W[...] = W - dz @ networks.x_T * transpose(w) * alpha_1
        w[...] = w - dw * alpha_2
        self.replay = Replay(tape, [z, a, loss])
        self.z, self.a, self.loss = map(self.replay.array, (z, a, loss))
        self.tanh = TableTanh(self.z.shape) if networks.tables else None
        self.second = second

    def run(self, W: Array, w: Array, rates: Array, steps: int) -> Array:
        """Train W and w in place. Returns losses (lanes, steps)."""
        self.W[...], self.w[...] = W, w
        for alpha, rate in zip((self.alpha_1, self.alpha_2), rates.T, strict=True):
            alpha[:, 0, 0] = rate / W.dtype.type(self.m)
        losses = np.empty((steps, len(W)), W.dtype)
        for step, loss in enumerate(losses):
            if step == 0 or not self.second:
                self.replay(0)
                if self.tanh:
                    self.tanh(self.z, self.a)
            self.replay(1)
            loss[...] = self.loss
        W[...], w[...] = self.W, self.w
        losses /= 2 * self.m
        return losses.T


class _Linear:
    """Cycles where g is the identity: out = u x with the vector u = w W. Lanes are the last axis of elementwise operations.

    With x = U S V^T, gradient descent on W U and y V takes the same path, where the data are the diagonal S:

        e = u S - y        s = e S / m        dw = s W^T        dW = w^T s
    """

    def __init__(self, W: Array, w: Array, x: Array, y: Array, activation: Activation) -> None:
        U, S, V_T = np.linalg.svd(x.astype(np.float64), full_matrices=False)
        self.W, self.w = (W @ U).astype(W.dtype), w
        self.S, y_S = S.astype(W.dtype)[:, None], y @ V_T.T
        self.y = np.ascontiguousarray(y_S.T.astype(W.dtype))
        self.m = x.shape[-1]
        # The part of the loss that no u can reduce.
        self.constant_loss = W.dtype.type(max(float((y**2).sum() - (y_S**2).sum()), 0.0) if self.m > len(S) else 0)
        self.lanes = LINEAR_LANES

    def run(self, W: Array, w: Array, rates: Array, steps: int) -> tuple[Array, Array]:
        """Train W (lanes, n, n_0) and w (lanes, 1, n) in place. Returns losses (lanes, steps), and that every W can change."""
        outputs, (_, k), lanes = (W, w), self.W.shape, len(W)
        W, w = np.ascontiguousarray(W.transpose(1, 2, 0)), np.ascontiguousarray(w[:, 0].T)
        products = np.empty_like(W)
        over_n, over_k = _pairs(products), _pairs(products.swapaxes(0, 1))
        u, dw = products[0], products[:, 0]
        e, s, squares = np.empty((3, k, lanes), W.dtype)
        over_squares = _pairs(squares)
        w_column = w[:, None]
        alpha_1, alpha_2 = np.ascontiguousarray(rates.T)
        losses = np.empty((steps, lanes), W.dtype)
        for loss in losses:
            np.multiply(W, w_column, products)
            _add(over_n)
            np.multiply(u, self.S, e)
            e -= self.y
            np.multiply(e, e, squares)
            _add(over_squares)
            loss[...] = squares[0]
            np.multiply(e, self.S / self.m, s)
            np.multiply(W, s, products)
            _add(over_k)
            step = np.multiply(dw, alpha_2)
            s *= alpha_1
            np.multiply(w_column, s, products)
            W -= products
            w -= step
        outputs[0][...], outputs[1][:, 0] = W.transpose(2, 0, 1), w.T
        losses += self.constant_loss
        losses /= 2 * self.m
        return losses.T, np.zeros(lanes, bool)


def _pairs(values: Array) -> list[tuple[Array, Array]]:
    """Return the pairs that `_add` adds, after which values[0] is the sum over the first axis. Its length decides the order."""
    pairs, count = [], len(values)
    while count > 1:
        half = count // 2
        pairs.append((values[:half], values[count - half : count]))
        count -= half
    return pairs


def _add(pairs: list[tuple[Array, Array]]) -> None:
    for total, more in pairs:
        np.add(total, more, total)
