"""The boundary between the labels of a map, and its box-counting dimension."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from blocks.arrays import Array

# The largest boxes are so small that at least this many fit along a side. Fewer boxes would be no sample of the boundary.
MIN_BOXES_PER_SIDE = 8
N_RESAMPLES = 2000


def boundary_pixels(labels: Array) -> Array:
    """Return a mask (rows, columns), True where one of a pixel's four neighbours has another label.

    labels: (rows, columns) bool.
    """
    is_boundary = np.zeros(labels.shape, bool)
    down, across = labels[1:] != labels[:-1], labels[:, 1:] != labels[:, :-1]
    is_boundary[1:] |= down
    is_boundary[:-1] |= down
    is_boundary[:, 1:] |= across
    is_boundary[:, :-1] |= across
    return is_boundary


def boundary_cells(labels: Array) -> Array:
    """Return a mask (rows - 1, columns - 1), True where the four pixels around a cell do not all have the same label.

    labels: (rows, columns) bool.
    """
    corners = np.stack([labels[1:, 1:], labels[:-1, 1:], labels[1:, :-1], labels[:-1, :-1]])
    return np.asarray(corners.any(axis=0) & ~corners.all(axis=0))


@dataclass(frozen=True)
class Dimension:
    """A box-counting dimension, and how it was measured.

    sizes: the boxes' sides in pixels, ascending. counts: the number of boxes of each size that contain a part of the boundary.
    value: the dimension, minus the slope of log count over log size, by least squares.
    lower, upper: its 95 % interval, by the bootstrap over the largest boxes.
    All three are nan where fewer than two of the largest boxes contain a part of the boundary.
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
    """Return the boxes' sides 1, 2, 4, ... in pixels. At least 8 of the largest boxes fit along the shorter side."""
    largest = max(min(shape) // MIN_BOXES_PER_SIDE, 1)
    return [2**power for power in range(largest.bit_length())]


def box_counting_dimension(bands: Iterable[Array], shape: tuple[int, int]) -> Dimension:
    """Return the box-counting dimension of a map's boundary.

    bands: the map's labels (rows, columns), bool, in bands from top to bottom. A band has as many rows as the largest box, and
    the first row of the next band; the last band has fewer.
    shape: (rows, columns) of the map.
    """
    sizes = box_sizes(shape)
    filled = np.concatenate([np.zeros((0, len(sizes)), int), *(rows for rows in _count_boxes(bands, sizes))])
    counts = filled.sum(axis=0)
    result = Dimension(tuple(sizes), tuple(int(count) for count in counts), np.nan, np.nan, np.nan, shape)
    if len(sizes) < 2 or len(filled) < 2:
        return result
    rng = np.random.default_rng(0)
    resampled_counts = rng.multinomial(len(filled), np.full(len(filled), 1 / len(filled)), N_RESAMPLES) @ filled
    value, slopes = _slope(sizes, counts), _slope(sizes, resampled_counts)
    lower, upper = np.quantile(slopes, [0.025, 0.975])
    return Dimension(tuple(sizes), result.counts, float(value), float(lower), float(upper), shape)


def _count_boxes(bands: Iterable[Array], sizes: list[int]) -> Iterator[Array]:
    """Yield of each band, for each of the largest boxes that contains a part of the boundary, the counts: (boxes, sizes).

    A count says how many boxes of one size, within that largest box, contain a part of the boundary.
    """
    largest = sizes[-1]
    for labels in bands:
        # The last row and column are repeated: then there are as many cells as pixels.
        is_last = len(labels) <= largest
        is_boundary = boundary_cells(np.pad(labels, ((0, int(is_last)), (0, 1)), mode="edge"))
        rows, columns = (-(-count // largest) * largest for count in is_boundary.shape)
        padded = np.zeros((rows, columns), bool)
        padded[: is_boundary.shape[0], : is_boundary.shape[1]] = is_boundary
        counts_by_size = []
        for size in sizes:
            boxes = padded.reshape(rows // size, size, columns // size, size).any(axis=(1, 3))
            boxes_per_side = largest // size
            counts_by_size.append(
                boxes.reshape(rows // largest, boxes_per_side, columns // largest, boxes_per_side).sum(axis=(1, 3)).ravel()
            )
        filled = np.stack(counts_by_size, axis=-1)
        yield filled[filled[:, -1] > 0]


def _slope(sizes: list[int], counts: Array) -> Array:
    """Return minus the slope of log count over log size, (...), by least squares. counts: (..., sizes)."""
    x = np.log(sizes) - np.log(sizes).mean()
    return np.asarray(-(np.log(counts) @ x) / (x @ x))
