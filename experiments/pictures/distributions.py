"""The distributions of a run's pre-activations, activations and gradients, block by block, in bins that can be drawn."""

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from blocks.arrays import Array
from blocks.history import History, evenly_spaced

# The instrument that has them.
SIGNALS = "signals"
# Of these |v| is drawn, on a log axis: they span decades.
GRADIENTS = ("da", "dW")
# Bins across, an odd number, so that 0 is inside of one; blocks; the share of entries that may lie on a side of what is drawn.
BINS, BLOCKS, BESIDE = 65, 12, 0.005
# Of a normal density that is narrower than what was measured.
HIGHEST = 1.25


@dataclass(frozen=True)
class Distribution:
    """How one signal is distributed at E steps in some of the blocks.

    at: (E,) steps. blocks: (B,) of 1..L. edges: (BINS + 1,), of v, or of |v| on a log scale. shares: (E, B, BINS) of all
    entries, 0 where nothing was measured.
    """

    at: Array
    blocks: Array
    edges: Array
    shares: Array
    is_logarithmic: bool

    @property
    def largest(self) -> Array:
        """(E, B, 1) the largest share of each block and step, 1 where nothing was measured.

        Of a signal with a sign the bin around 0 is not looked at for it, where all dead units of relu are.
        """
        seen = self.shares if self.is_logarithmic else np.delete(self.shares, BINS // 2, axis=-1)
        largest = seen.max(axis=-1, keepdims=True)
        # All entries may be 0.
        largest = np.where(largest > 0, largest, self.shares.max(axis=-1, keepdims=True))
        return np.where(largest > 0, largest, 1)

    @property
    def heights(self) -> Array:
        """(E, B, BINS) the shares over the largest one of each block and step, at most 1."""
        heights: Array = np.minimum(self.shares / self.largest, 1)
        return heights

    @np.errstate(divide="ignore")
    def normal_heights(self, variances: Array) -> Array:
        """(B, BINS) what the heights of the first step would be if each block's v were N(0, its variance), at most HIGHEST.

        variances: (L,) of blocks 1..L.
        """
        below = ndtr(self.edges / np.sqrt(variances[self.blocks - 1, None]))
        return np.minimum(np.diff(below) / self.largest[0], HIGHEST)


def distributions(history: History) -> dict[str, Distribution]:
    """symbol -> distribution of z, a, da and dW of a single lane; none where the run had no such instrument."""
    measured = history.quantities.get(SIGNALS)
    if measured is None:
        return {}
    return {symbol: _distribution(symbol, measured.at, h.edges, h.counts) for symbol, h in measured.histograms.items()}


def _distribution(symbol: str, at: Array, edges: Array, counts: Array) -> Distribution:
    """Of histograms with fine bins. edges: (N + 1,), the outermost may be infinite. counts: (E, L, N)."""
    blocks = evenly_spaced(counts.shape[1], BLOCKS)
    counts = counts[:, blocks].astype(np.float64)
    total = np.maximum(counts.sum(axis=-1, keepdims=True), 1)
    inner = np.isfinite(edges[:-1]) & np.isfinite(edges[1:])
    logarithmic = symbol in GRADIENTS
    if logarithmic:
        inner &= edges[:-1] > 0
    ends = np.append(edges[:-1][inner], edges[1:][inner][-1])
    scaled = np.log10(ends) if logarithmic else ends
    # (E, B, N + 1) share below each edge: within a bin the entries are spread evenly.
    below = np.concatenate([np.zeros((*counts.shape[:2], 1)), (counts[..., inner] / total).cumsum(axis=-1)], axis=-1)
    low, high = _range(scaled, below, logarithmic)
    drawn = np.linspace(low, high, BINS + 1)
    shares = np.diff(np.array([[np.interp(drawn, scaled, row) for row in step] for step in below]), axis=-1)
    return Distribution(at, blocks + 1, 10**drawn if logarithmic else drawn, shares, logarithmic)


def _range(edges: Array, below: Array, logarithmic: bool) -> tuple[float, float]:
    """Between which edges all but BESIDE of the entries lie, on either side, every block and step as one; of signals around 0."""
    rows = below.reshape(-1, len(edges))
    rows = rows[rows[:, -1] > 0]
    if not len(rows):
        return -1.0, 1.0
    under = (rows / rows[:, -1:]).mean(axis=0)
    first, last = edges[under <= BESIDE].max(), edges[under >= 1 - BESIDE].min()
    if logarithmic:
        return float(first), float(last)
    reach = float(max(abs(first), abs(last)))
    return -reach, reach
