"""The signals by block: how z, a, da and dW are distributed, and how large a gradient and an update are beside the weights.

Nothing here changes a bit of the network. A signal that is not finite is no error: its mean and its standard deviation are nan
or inf, in its lane alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from blocks.activations import Activation
from blocks.arrays import Array, transpose
from blocks.block import Block, Cache
from blocks.losses import Loss
from blocks.measure.diagnostics import checked
from blocks.network import Network
from blocks.parameters import Layout, joined_gradient, split

# Where |tanh z| is above it, a unit is saturated.
SATURATION = 0.97


@dataclass(frozen=True)
class Bins:
    """Bins that are as fine as |v| is small: from 2^low to 2^high, each octave in 2^digits of equal width.

    A bin holds its edge of larger |v| and not the other one. The innermost bin is |v| <= 2^low, the outermost |v| > 2^high.

    signed: v and -v have bins of their own, but for the innermost one; else |v| alone is looked at.
    """

    low: int
    high: int
    digits: int
    signed: bool

    @cached_property
    def edges(self) -> Array:
        """(B + 1,) of all bins, ascending: from -inf, or from 0 where no sign is looked at, to inf."""
        octaves = 2.0 ** np.arange(self.low, self.high)[:, None] * (1 + np.arange(2**self.digits) / 2**self.digits)
        above = np.concatenate([octaves.ravel(), [2.0**self.high, np.inf]])
        return np.concatenate([-above[::-1], above] if self.signed else [[0.0], above])

    def counts(self, arrays: Sequence[Array]) -> Array:
        """(..., L, B) how many entries of L arrays (..., n, m), float32 or float64, are in every bin.

        A positive float is a positive whole number when its bits are read as one, the exponent in front: the leading bits number
        the bins of all exponents, and those out of range are added up. A search among the edges takes ten times as long.
        """
        form, lanes = np.finfo(arrays[0].dtype), arrays[0].shape[:-2]
        unsigned, bits = np.dtype(f"u{form.bits // 8}").type, f"i{form.bits // 8}"
        slots = 2 << (form.nexp + self.digits)
        rows = np.arange(0, int(np.prod(lanes)) * slots, slots)[:, None]
        found = np.empty((*lanes, len(arrays), slots), np.intp)
        for place, array in enumerate(arrays):
            # Less 1, since an edge belongs to the bin below it.
            leading = array.view(unsigned).reshape(len(rows), -1) - unsigned(1)
            leading >>= unsigned(form.nmant - self.digits)
            numbers = leading.view(bits) + rows if lanes else leading.view(bits)
            found[..., place, :] = np.bincount(numbers.ravel(), minlength=len(rows) * slots).reshape(*lanes, slots)
        return self._folded(found.reshape(*found.shape[:-1], 2, -1), form.maxexp - 1)

    def _folded(self, found: Array, bias: int) -> Array:
        """(..., B) from counts by sign and by the leading bits of |v|, (..., 2, S)."""
        low, high = ((exponent + bias) << self.digits for exponent in (self.low, self.high))
        # Less 1, the bits of 0 are those of the largest |v|.
        innermost = (found[..., :low].sum(axis=-1) + found[..., -1]).sum(axis=-1, keepdims=True)
        outermost = found[..., high:-1].sum(axis=-1, keepdims=True)
        sides = np.concatenate([found[..., low:high], outermost], axis=-1)
        above, below = sides[..., 0, :], sides[..., 1, :]
        return np.concatenate([below[..., ::-1], innermost, above] if self.signed else [innermost, above + below], axis=-1)


# z and a from 1/64 to 64, eight bins an octave; gradients, which span decades, from 1e-30 to 1e6, two bins an octave.
VALUES, GRADIENTS = Bins(-6, 6, 3, signed=True), Bins(-100, 20, 1, signed=False)
BINS = {"z": VALUES, "a": VALUES, "da": GRADIENTS, "dW": GRADIENTS}
NUMBERS = (
    *(f"{symbol}_{moment}" for symbol in BINS for moment in ("mean", "std")),
    *("saturated", "grad_data", "update_data"),
)


@np.errstate(over="ignore", invalid="ignore", divide="ignore")
def signals(network: Network, x: Array, y: Array, loss: Loss) -> tuple[dict[str, Array], Array]:
    """Counts of z, a, da and dW of blocks 1..L in the bins of BINS, and the NUMBERS but for the last, which takes an update.

    *_mean, *_std: over all entries, one pass in float64: of a std below 1e-8 |mean| no digit is right.
    saturated: the share of a block's activations with |g'(z)| < (1 - 0.97^2) max |g'|. With tanh these have |a| > 0.97, with
        sigmoid |2 a - 1| > 0.97, with relu they are the dead ones, z <= 0; with the identity, block L's, there are none. A
        residual block's are those of x = g(a_prev).
    grad_data: std(dW) / std(W).

    x: (n_0, m) data, shared by all lanes, or (..., n_0, m). y: targets as `loss` takes them.
    Returns symbol -> (..., L, B) whole numbers, and (..., len(NUMBERS) - 1, L).
    """
    x, target = checked(network, x, y, loss)
    logits, caches = network.forward(x)
    _, dlogits = loss.value_and_gradient(logits, target)
    gradients = list(network.signals(dlogits, caches))[::-1]
    joined = [joined_gradient(dz, cache.a_prev_1) for (_, dz), cache in zip(gradients, caches, strict=True)]
    by_symbol = {
        "z": [cache.z for cache in caches],
        "a": [cache.a for cache in caches],
        "da": [da for da, _ in gradients],
        # Transposed, as they lie in memory.
        "dW": [transpose(split(each)[0]) for each in joined],
    }
    moments = {symbol: _moments(arrays) for symbol, arrays in by_symbol.items()}
    deviations = moments["dW"][1] / _deviations(network.parameters, network.layout)
    numbers = [*(part for pair in moments.values() for part in pair), _saturated(network, caches), deviations]
    return {symbol: BINS[symbol].counts(arrays) for symbol, arrays in by_symbol.items()}, np.stack(numbers, axis=-2)


@np.errstate(over="ignore", invalid="ignore", divide="ignore")
def update_to_data(before: Array, after: Array, layout: Layout) -> Array:
    """update_data of blocks 1..L, (..., L): std(W_l after - W_l before) / std(W_l before).

    before, after: (..., P) flat parameters.
    """
    return _deviations(after - before, layout) / _deviations(before, layout)


def _moments(arrays: Sequence[Array]) -> tuple[Array, Array]:
    """Mean and standard deviation of the entries of L arrays (..., n, m), (..., L) each."""
    means, squares = (np.empty((*arrays[0].shape[:-2], len(arrays))) for _ in range(2))
    for place, array in enumerate(arrays):
        # In float64 no square leaves its range, and what one pass loses is seldom seen.
        values = array.reshape(*array.shape[:-2], -1).astype(np.float64)
        means[..., place] = values.sum(axis=-1) / values.shape[-1]
        squares[..., place] = np.vecdot(values, values) / values.shape[-1]
    return means, np.sqrt(np.maximum(squares - means * means, 0))


def _deviations(flat: Array, layout: Layout) -> Array:
    """The standard deviation of every W in (..., P), (..., L)."""
    return _moments([transpose(split(joined)[0]) for joined in layout.blocks(flat)])[1]


def _saturated(network: Network, caches: Sequence[Cache]) -> Array:
    """(..., L), see `signals`."""
    shares = np.empty((*network.lanes, network.depth))
    for place, (block, cache) in enumerate(zip(network.blocks, caches, strict=True)):
        shares[..., place] = saturated_entries(block, cache).reshape(*network.lanes, -1).mean(axis=-1)
    return shares


def saturated_entries(block: Block, cache: Cache) -> Array:
    """Which of a block's activations are saturated, see `signals`; True or False in the shape of what g was applied to."""
    slope = np.abs(block.activation.derivative(*block.activation_at(cache)))
    return slope < (1 - SATURATION**2) * _steepest(block.activation)


@lru_cache
def _steepest(activation: Activation) -> float:
    """max |g'|, which each of the table has, or comes to, between -20 and 20."""
    z = np.linspace(-20, 20, 4001)
    return float(np.abs(activation.derivative(z, activation.function(z))).max())
