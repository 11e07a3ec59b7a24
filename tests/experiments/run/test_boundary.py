"""Boundaries whose dimension is known, counted in boxes."""

import numpy as np
import pytest

from experiments.run.boundary import boundary_cells, boundary_pixels, box_counting_dimension, box_sizes


def in_bands(labels):
    """As a map is read: bands of the largest box, each with the next one's first row."""
    largest = box_sizes(labels.shape)[-1]
    return (labels[start : start + largest + 1] for start in range(0, len(labels), largest))


def counted(labels):
    return box_counting_dimension(in_bands(labels), labels.shape)


side = 256
row, column = np.mgrid[:side, :side]


@pytest.mark.parametrize(
    ("labels", "least", "most"),
    [
        (row < 101, 0.999, 1.001),
        (column < 77, 0.999, 1.001),
        (row < column, 0.95, 1.05),
        (row < 30 + column // 3, 0.95, 1.05),
        (np.hypot(row - 120, column - 130) < 90, 0.95, 1.05),
        ((row + column) % 2 == 0, 1.999, 2.001),
        (np.random.default_rng(0).random((side, side)) < 0.5, 1.95, 2.001),
        # Pascal's triangle modulo 2 is Sierpinski's: log 3 / log 2 = 1.585; cells across two boxes' edge count in both.
        ((row & column) == 0, 1.585, 1.7),
    ],
    ids=["row", "column", "diagonal", "slope", "circle", "chequered", "noise", "Sierpinski"],
)
def test_known_dimensions(labels, least, most):
    found = counted(labels)
    assert found.sizes == (1, 2, 4, 8, 16, 32)
    assert least <= found.value <= most
    assert found.lower - 1e-9 <= found.value <= found.upper + 1e-9


def test_a_straight_line_fills_the_boxes_it_crosses():
    assert counted(row < 101).counts == (256, 128, 64, 32, 16, 8)
    # The last pixel has no neighbour beyond it.
    assert counted((row + column) % 2 == 0).counts == (256**2 - 1, 128**2, 64**2, 32**2, 16**2, 8**2)


def test_any_shape_can_be_counted():
    labels = np.random.default_rng(1).random((75, 201)) < 0.5
    found = counted(labels)
    whole = boundary_cells(np.pad(labels, ((0, 1), (0, 1)), mode="edge"))
    for size, count in zip(found.sizes, found.counts, strict=True):
        boxes = {(down // size, across // size) for down, across in np.argwhere(whole)}
        assert count == len(boxes), size


def test_without_a_boundary_there_is_no_dimension():
    found = counted(np.ones((64, 64), bool))
    assert np.isnan(found.value)
    assert str(found) == "no dimension: too little boundary in 64 x 64 pixels"
    assert "no dimension" in str(counted(np.arange(4).reshape(2, 2) == 0))


def test_the_protocol_is_said_with_the_dimension():
    told = str(counted(row < 101))
    assert told.startswith("box-counting dimension 1.000 (95 % interval 1.000 to 1.000)")
    assert told.endswith("boxes of 1 to 32 pixels in 256 x 256")


def test_pixels_beside_another_label():
    labels = np.zeros((5, 6), bool)
    labels[2, 3] = True
    expected = np.zeros((5, 6), bool)
    expected[2, 2:5] = expected[1:4, 3] = True
    np.testing.assert_array_equal(boundary_pixels(labels), expected)
