import numpy as np
import pytest
from numpy.testing import assert_array_equal

from blocks.arrays import largest, norm, smallest, times


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 7, 5), (6, 1, 5), (6, 7, 1), (16, 17, 32), (65, 64, 64), (10, 65, 29)])
@pytest.mark.parametrize("turned", [(False, False), (True, False), (False, True), (True, True)])
def test_times_has_the_bits_of_matmul_for_a_matrix_and_in_a_stack(shape, turned, dtype):
    n, k, m = shape
    rng = np.random.default_rng(0)

    def matrices(rows, columns, turn):
        made = rng.standard_normal((3, columns, rows) if turn else (3, rows, columns)).astype(dtype)
        return made.mT if turn else made

    left, right = matrices(n, k, turned[0]), matrices(k, m, turned[1])
    expected = np.matmul(left, right)
    stack, out = np.empty((2, 3, n, m), dtype)
    assert times(left)(right, stack) is stack
    assert_array_equal(stack, expected)
    for lane in range(3):
        assert times(left[lane])(right[lane], out[lane]) is not None
        assert_array_equal(out[lane], expected[lane])
        assert_array_equal(times(left[lane])(right[lane]), expected[lane])


def test_one_matrix_times_a_stack_is_every_lane_s_product():
    rng = np.random.default_rng(1)
    left, right = rng.standard_normal((4, 5)), rng.standard_normal((3, 5, 6))
    assert_array_equal(times(left)(right), np.stack([left @ lane for lane in right]))


def test_the_largest_and_the_smallest_of_numbers_with_a_nan_are_nan():
    assert (largest(np.array([[1.0, 3.0], [2.0, -4.0]])), smallest(np.array([[1.0, 3.0], [2.0, -4.0]]))) == (3, -4)
    assert (largest(np.array(2.0)), largest(np.array([1, np.inf])), smallest(np.array([1, -np.inf]))) == (2, np.inf, -np.inf)
    assert np.isnan([largest(np.array([1, np.nan, np.inf])), smallest(np.array([1, np.nan, -np.inf]))]).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([3.0, 4.0], 5.0),
        ([0.0, 0.0], 0.0),
        ([3.0, np.inf], np.inf),
        ([3.0, np.nan], np.nan),
        ([1.0, 1e-30], 1.0),
    ],
)
@pytest.mark.parametrize("share", [1.0, "largest", "smallest"])
def test_a_norms_squares_stay_in_range(values, expected, share, dtype):
    """3-4-5 at both ends of the numbers that a dtype has."""
    unit = {"largest": 2.0 ** (np.finfo(dtype).maxexp - 4), "smallest": 2.0 ** (np.finfo(dtype).minexp + 2)}.get(share, share)
    scaled = (np.array(values) * unit).astype(dtype)
    assert norm(scaled).dtype == dtype
    np.testing.assert_array_equal(norm(scaled), dtype(expected * unit))
    np.testing.assert_array_equal(
        norm(np.stack([scaled, [unit, 0]], axis=-1).astype(dtype), axis=0), [dtype(expected * unit), unit]
    )


def test_a_norm_beyond_the_largest_number_is_inf():
    assert norm(np.array([1.7e308, 1.7e308])) == np.inf
    assert norm(np.array([5e-324, 0.0])) == 5e-324
