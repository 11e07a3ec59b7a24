"""The signals of every block: the distributions of z, a, da and dW, and the sizes of gradients and updates over the weights'.

Nothing here changes a bit of the network. A signal that is not finite is no error: only its lane's mean and standard deviation
are nan or inf.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from blocks.activations import Activation
from blocks.arrays import PART, Array, transpose
from blocks.block import Block, Cache
from blocks.losses import Loss
from blocks.network import Network
from blocks.parameters import Layout, joined_gradient, split

# A unit of tanh is saturated where |tanh z| is above this value.
SATURATION = 0.97


@dataclass(frozen=True)
class Bins:
    """Bins that are finer for smaller |v|: every octave from 2^low to 2^high has 2^digits bins of equal width.

    A bin contains its edge with the larger |v|, and not the other one. The innermost bin is |v| <= 2^low, the outermost
    |v| > 2^high.

    signed: v and -v have different bins, except for the innermost one; else the bins are of |v|.
    """

    low: int
    high: int
    digits: int
    signed: bool

    @cached_property
    def edges(self) -> Array:
        """The edges of all bins, (B + 1,), ascending: from -inf, or from 0 for bins of |v|, to inf."""
        octaves = 2.0 ** np.arange(self.low, self.high)[:, None] * (1 + np.arange(2**self.digits) / 2**self.digits)
        above = np.concatenate([octaves.ravel(), [2.0**self.high, np.inf]])
        return np.concatenate([-above[::-1], above] if self.signed else [[0.0], above])

    def counts(self, values: Array, lengths: tuple[int, ...]) -> Array:
        """Return how many entries of each series are in every bin, (L, B).

        The bits of |v|, whose first ones are the exponent, are a whole number that grows with |v|. Their leading digits are the
        number of the bin. A search among the edges takes ten times as long.

        values: (N,) float32 or float64, L series one behind the other. lengths: of the series.
        """
        float_info, bits = np.finfo(values.dtype), values.view(f"i{values.itemsize}")
        # The bits of 2^low, and the number of a float's bits that are not part of its bin's number.
        low, shift = (self.low + float_info.maxexp - 1) << float_info.nmant, float_info.nmant - self.digits
        numbers = bits & np.iinfo(bits.dtype).max
        # Bin 0 is the innermost. 1 is subtracted, since an edge belongs to the bin below it.
        numbers += (1 << shift) - low - 1
        numbers >>= shift
        sides = ((self.high - self.low) << self.digits) + 1
        np.clip(numbers, 0, sides, out=numbers)
        if self.signed:
            # 0 or -1, and x ^ -1 is -x - 1.
            sign = bits >> (float_info.bits - 1)
            numbers ^= sign
            numbers -= sign
        bins = len(self.edges) - 1
        numbers += _middle_bins(lengths, bins, sides if self.signed else 0, numbers.dtype)
        return np.bincount(numbers, minlength=len(lengths) * bins).reshape(-1, bins)


@lru_cache(8)
def _middle_bins(lengths: tuple[int, ...], bins: int, middle: int, dtype: np.dtype) -> Array:
    """Return (N,) for each entry the number of its series' middle bin, where the bins of all series are numbered in one row."""
    return np.repeat(np.arange(len(lengths), dtype=dtype) * bins + dtype.type(middle), lengths)


# z and a from 1/64 to 64, eight bins an octave; gradients, which span decades, from 1e-30 to 1e6, two bins an octave.
VALUES, GRADIENTS = Bins(-6, 6, 3, signed=True), Bins(-100, 20, 1, signed=False)
BINS = {"z": VALUES, "a": VALUES, "da": GRADIENTS, "dW": GRADIENTS}
NUMBERS = (
    *(f"{symbol}_{moment}" for symbol in BINS for moment in ("mean", "std")),
    *("saturated", "grad_data", "update_data"),
)


@np.errstate(over="ignore", invalid="ignore", divide="ignore")
def signals(network: Network, x: Array, target: Array, loss: Loss, std_W: Array) -> tuple[dict[str, Array], Array]:
    """Return counts of z, a, da and dW of blocks 1..L in the bins of BINS, and all NUMBERS but the last, which needs an update.

    *_mean, *_std: over all entries, in one pass in float64. No digit of a std below 1e-8 |mean| is right.
    saturated: the share of a block's activations with |g'(z)| < (1 - 0.97^2) max |g'|. With tanh these have |a| > 0.97, with
        sigmoid |2 a - 1| > 0.97, and with relu z <= 0; the identity of block L has none. For a residual block they are those of
        x = g(a_prev).
    grad_data: std(dW) / std(W).

    network: has its lanes along one axis at most. x, target: data and the loss's target, as `diagnostics.check_data` returns
        them, shared by all lanes. std_W: (..., L), see `deviations`.
    Returns symbol -> (..., L, B) whole numbers, and (..., len(NUMBERS) - 1, L).
    """
    max_count = max(1, PART // (max(network.layout.sizes) * x.shape[-1]))
    if network.lanes and len(network.parameters) > max_count:
        # Only so many lanes are computed at a time that their arrays stay in the processor's cache.
        parts = [slice(start, start + max_count) for start in range(0, len(network.parameters), max_count)]
        results = [signals(network.with_parameters(network.parameters[k]), x, target, loss, std_W[k]) for k in parts]
        counts = {symbol: np.concatenate([counts[symbol] for counts, _ in results]) for symbol in BINS}
        return counts, np.concatenate([numbers for _, numbers in results])
    logits, caches = network.forward(x)
    _, dlogits = loss.value_and_gradient(logits, target)
    gradients = list(network.signals(dlogits, caches))[::-1]
    joined = [joined_gradient(dz, cache.a_prev_1) for (_, dz), cache in zip(gradients, caches, strict=True)]
    by_symbol = {
        "z": [cache.z for cache in caches],
        "a": [cache.a for cache in caches],
        "da": [da for da, _ in gradients],
        # dW is transposed, which is its order in memory.
        "dW": [transpose(split(gradient)[0]) for gradient in joined],
    }
    counts, numbers = {}, []
    for symbol, arrays in by_symbol.items():
        counts[symbol], *moments = _distribution(arrays, BINS[symbol])
        numbers += moments
    numbers += [_saturated(network, caches), numbers[-1] / std_W]
    return counts, np.stack(numbers, axis=-2)


@np.errstate(over="ignore", invalid="ignore")
def deviations(flat: Array, layout: Layout) -> Array:
    """Return the standard deviation of every W, (..., L). flat: (..., P), the parameters or an update of them."""
    lengths = np.diff(layout.starts, append=layout.size).tolist()
    stds = np.empty((*flat.shape[:-1], layout.depth))
    for lane in np.ndindex(flat.shape[:-1]):
        stds[lane] = _moments(flat[lane], lengths)[1][::2]
    return stds


def _distribution(arrays: Sequence[Array], bins: Bins) -> tuple[Array, Array, Array]:
    """Return counts (..., L, B), means and standard deviations (..., L) of the entries of L arrays (..., n, m).

    Lanes are computed one by one, and small blocks together, as many as stay in the processor's cache.
    """
    lanes, sizes = arrays[0].shape[:-2], tuple(array.shape[-2] * array.shape[-1] for array in arrays)
    counts = np.empty((*lanes, len(arrays), len(bins.edges) - 1), np.intp)
    means, stds = np.empty((2, *lanes, len(arrays)))
    max_count = max(1, 2 * PART // max(sizes))
    for lane in np.ndindex(lanes):
        for part in (slice(start, start + max_count) for start in range(0, len(arrays), max_count)):
            values = np.concatenate([array[lane].reshape(-1) for array in arrays[part]])
            counts[lane][part] = bins.counts(values, sizes[part])
            means[lane][part], stds[lane][part] = _moments(values, sizes[part])
    return counts, means, stds


def _moments(values: Array, lengths: Sequence[int]) -> tuple[Array, Array]:
    """Return mean and standard deviation, (L,) each, of L series that are one behind the other in values (N,)."""
    counts = np.array(lengths)
    starts = counts.cumsum() - counts
    # In float64 no square of a float32 overflows, and the rounding error of one pass seldom matters.
    values = values.astype(np.float64)
    means = np.add.reduceat(values, starts) / counts
    values *= values
    squares = np.add.reduceat(values, starts) / counts
    return means, np.sqrt(np.maximum(squares - means * means, 0))


def _saturated(network: Network, caches: Sequence[Cache]) -> Array:
    """Return the shares of saturated activations, (..., L), see `signals`."""
    shares = np.zeros((*network.lanes, network.depth))
    # The identity of block L has no saturated entries.
    for place, (block, cache) in enumerate(zip(network.blocks[:-1], caches[:-1], strict=True)):
        entries = saturated_entries(block, cache)
        shares[..., place] = entries.sum(axis=(-2, -1)) / (entries.shape[-2] * entries.shape[-1])
    return shares


def saturated_entries(block: Block, cache: Cache) -> Array:
    """Return a mask of a block's saturated activations, see `signals`, in the shape of what g was applied to."""
    slope = np.abs(block.activation.derivative(*block.activation_at(cache)))
    return slope < (1 - SATURATION**2) * _steepest(block.activation)


@lru_cache
def _steepest(activation: Activation) -> float:
    """Return max |g'|, which every activation of the table has, or approaches, between -20 and 20."""
    z = np.linspace(-20, 20, 4001)
    return float(np.abs(activation.derivative(z, activation.function(z))).max())
