"""The signals by block: how z, a, da and dW are distributed, and how large a gradient and an update are beside the weights.

Nothing here changes a bit of the network. A signal that is not finite is no error: its mean and its standard deviation are nan
or inf, in its lane alone.
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

    def counts(self, values: Array, lengths: tuple[int, ...]) -> Array:
        """(L, B) how many entries of L series, one behind the other in (N,) float32 or float64, are in every bin.

        The bits of |v|, the exponent in front, are a whole number that grows with |v|. Their leading digits number the bins: a
        search among the edges takes ten times as long.
        """
        form, bits = np.finfo(values.dtype), values.view(f"i{values.itemsize}")
        # The bits of 2^low, and those of a float that are no digit of its bin's number.
        low, shift = (self.low + form.maxexp - 1) << form.nmant, form.nmant - self.digits
        numbers = bits & np.iinfo(bits.dtype).max
        # Bin 0 is the innermost. Less 1, since an edge belongs to the bin below it.
        numbers += (1 << shift) - low - 1
        numbers >>= shift
        sides = ((self.high - self.low) << self.digits) + 1
        np.clip(numbers, 0, sides, out=numbers)
        if self.signed:
            # 0 or -1, and x ^ -1 is -x - 1.
            sign = bits >> (form.bits - 1)
            numbers ^= sign
            numbers -= sign
        bins = len(self.edges) - 1
        numbers += _firsts(lengths, bins, sides if self.signed else 0, numbers.dtype)
        return np.bincount(numbers, minlength=len(lengths) * bins).reshape(-1, bins)


@lru_cache(8)
def _firsts(lengths: tuple[int, ...], bins: int, middle: int, dtype: np.dtype) -> Array:
    """(N,) for each entry the number of its series' middle bin, where the bins of all series are counted through."""
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
    """Counts of z, a, da and dW of blocks 1..L in the bins of BINS, and the NUMBERS but for the last, which takes an update.

    *_mean, *_std: over all entries, one pass in float64: of a std below 1e-8 |mean| no digit is right.
    saturated: the share of a block's activations with |g'(z)| < (1 - 0.97^2) max |g'|. With tanh these have |a| > 0.97, with
        sigmoid |2 a - 1| > 0.97, with relu they are the dead ones, z <= 0; with the identity, block L's, there are none. A
        residual block's are those of x = g(a_prev).
    grad_data: std(dW) / std(W).

    network: its lanes along one axis at most. x, target: data and what the loss is taken of, as `diagnostics.checked` gives
        them, shared by all lanes. std_W: (..., L), see `deviations`.
    Returns symbol -> (..., L, B) whole numbers, and (..., len(NUMBERS) - 1, L).
    """
    many = max(1, PART // (max(network.layout.sizes) * x.shape[-1]))
    if network.lanes and len(network.parameters) > many:
        # So many lanes at a time: arrays of more do not stay in the processor's cache.
        parts = [slice(start, start + many) for start in range(0, len(network.parameters), many)]
        found = [signals(network.with_parameters(network.parameters[k]), x, target, loss, std_W[k]) for k in parts]
        counts = {symbol: np.concatenate([each[symbol] for each, _ in found]) for symbol in BINS}
        return counts, np.concatenate([numbers for _, numbers in found])
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
    counts, numbers = {}, []
    for symbol, arrays in by_symbol.items():
        counts[symbol], *moments = _distribution(arrays, BINS[symbol])
        numbers += moments
    numbers += [_saturated(network, caches), numbers[-1] / std_W]
    return counts, np.stack(numbers, axis=-2)


@np.errstate(over="ignore", invalid="ignore")
def deviations(flat: Array, layout: Layout) -> Array:
    """The standard deviation of every W in (..., P), (..., L): of an update, std(W_l after - W_l before), as of the weights."""
    lengths = np.diff(layout.starts, append=layout.size).tolist()
    found = np.empty((*flat.shape[:-1], layout.depth))
    for lane in np.ndindex(flat.shape[:-1]):
        found[lane] = _moments(flat[lane], lengths)[1][::2]
    return found


def _distribution(arrays: Sequence[Array], bins: Bins) -> tuple[Array, Array, Array]:
    """Counts (..., L, B), means and standard deviations (..., L) of the entries of L arrays (..., n, m).

    A lane after another, and of small blocks many at once, as far as they stay in the processor's cache.
    """
    lanes, sizes = arrays[0].shape[:-2], tuple(array.shape[-2] * array.shape[-1] for array in arrays)
    counts = np.empty((*lanes, len(arrays), len(bins.edges) - 1), np.intp)
    means, stds = np.empty((2, *lanes, len(arrays)))
    many = max(1, 2 * PART // max(sizes))
    for lane in np.ndindex(lanes):
        for part in (slice(start, start + many) for start in range(0, len(arrays), many)):
            values = np.concatenate([array[lane].reshape(-1) for array in arrays[part]])
            counts[lane][part] = bins.counts(values, sizes[part])
            means[lane][part], stds[lane][part] = _moments(values, sizes[part])
    return counts, means, stds


def _moments(values: Array, lengths: Sequence[int]) -> tuple[Array, Array]:
    """Mean and standard deviation of each of L series, one behind the other in (N,): (L,) each."""
    counts = np.array(lengths)
    starts = counts.cumsum() - counts
    # In float64 no square leaves its range, and what one pass loses is seldom seen.
    values = values.astype(np.float64)
    means = np.add.reduceat(values, starts) / counts
    values *= values
    squares = np.add.reduceat(values, starts) / counts
    return means, np.sqrt(np.maximum(squares - means * means, 0))


def _saturated(network: Network, caches: Sequence[Cache]) -> Array:
    """(..., L), see `signals`."""
    shares = np.zeros((*network.lanes, network.depth))
    # Of block L's identity no entry is.
    for place, (block, cache) in enumerate(zip(network.blocks[:-1], caches[:-1], strict=True)):
        entries = saturated_entries(block, cache)
        shares[..., place] = entries.sum(axis=(-2, -1)) / (entries.shape[-2] * entries.shape[-1])
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
