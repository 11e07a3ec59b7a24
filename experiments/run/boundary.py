"""Where a map's labels change: its boundary pixels, and how many boxes of each size they fill."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from blocks.arrays import Array

# The largest boxes must be so many along a side at least: fewer are no sample of the boundary.
LEAST_BOXES = 8
RESAMPLED = 2000


def beside(labels: Array) -> Array:
    """(rows, columns) bool: pixels with another label than one of their four neighbours."""
    found = np.zeros(labels.shape, bool)
    down, across = labels[1:] != labels[:-1], labels[:, 1:] != labels[:, :-1]
    found[1:] |= down
    found[:-1] |= down
    found[:, 1:] |= across
    found[:, :-1] |= across
    return found


def cells(labels: Array) -> Array:
    """(rows - 1, columns - 1) bool: squares between four pixels that have both labels."""
    four = np.stack([labels[1:, 1:], labels[:-1, 1:], labels[1:, :-1], labels[:-1, :-1]])
    return np.asarray(four.any(axis=0) & ~four.all(axis=0))


@dataclass(frozen=True)
class Dimension:
    """A box-counting dimension and its protocol.

    sizes: of the boxes, in pixels. counts: of boxes with a boundary in them.
    value: minus the slope of log count over log size, by least squares. lower, upper: its 95 % interval, from the largest
    boxes drawn again with replacement. All nan where fewer than two of the largest boxes have a boundary in them.
    resolution: (rows, columns) of the map.
    """

    sizes: tuple[int, ...]
    counts: tuple[int, ...]
    value: float
    lower: float
    upper: float
    resolution: tuple[int, int]

    def __str__(self) -> str:
        if not self.sizes or np.isnan(self.value):
            return f"no dimension: too little boundary in {self.resolution[1]} x {self.resolution[0]} pixels"
        return (
            f"box-counting dimension {self.value:.3f} (95 % interval {self.lower:.3f} to {self.upper:.3f}), "
            f"boxes of {self.sizes[0]} to {self.sizes[-1]} pixels in {self.resolution[1]} x {self.resolution[0]}"
        )


def box_sizes(shape: tuple[int, int]) -> list[int]:
    """1, 2, 4, ... pixels, the largest at least 8 times in the shorter side."""
    largest = max(min(shape) // LEAST_BOXES, 1)
    return [2**power for power in range(largest.bit_length())]


def dimension(bands: Iterable[Array], shape: tuple[int, int]) -> Dimension:
    """Of a map of (rows, columns) labels, given as bands from top to bottom.

    bands: bool labels, each of as many rows as the largest box has, and one more, the next band's first; the last one shorter.
    """
    sizes = box_sizes(shape)
    filled = np.concatenate([np.zeros((0, len(sizes)), int), *(rows for rows in _count(bands, sizes))])
    counts = filled.sum(axis=0)
    result = Dimension(tuple(sizes), tuple(int(count) for count in counts), np.nan, np.nan, np.nan, shape)
    if len(sizes) < 2 or len(filled) < 2:
        return result
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(len(filled), np.full(len(filled), 1 / len(filled)), RESAMPLED) @ filled
    value, slopes = _slope(sizes, counts), _slope(sizes, drawn)
    lower, upper = np.quantile(slopes, [0.025, 0.975])
    return Dimension(tuple(sizes), result.counts, float(value), float(lower), float(upper), shape)


def _count(bands: Iterable[Array], sizes: list[int]) -> Iterator[Array]:
    """(largest boxes with a boundary in them, sizes): boxes of each size in each, band by band."""
    largest = sizes[-1]
    for labels in bands:
        # Beyond the last row and column everything goes on as it is: then there are as many cells as pixels.
        is_last = len(labels) <= largest
        found = cells(np.pad(labels, ((0, int(is_last)), (0, 1)), mode="edge"))
        rows, columns = (-(-count // largest) * largest for count in found.shape)
        padded = np.zeros((rows, columns), bool)
        padded[: found.shape[0], : found.shape[1]] = found
        counted = []
        for size in sizes:
            boxes = padded.reshape(rows // size, size, columns // size, size).any(axis=(1, 3))
            per = largest // size
            counted.append(boxes.reshape(rows // largest, per, columns // largest, per).sum(axis=(1, 3)).ravel())
        filled = np.stack(counted, axis=-1)
        yield filled[filled[:, -1] > 0]


def _slope(sizes: list[int], counts: Array) -> Array:
    """Minus the slope of log count over log size: (...) from (..., sizes)."""
    x = np.log(sizes) - np.log(sizes).mean()
    return np.asarray(-(np.log(counts) @ x) / (x @ x))
