"""Means and bands over seeds, against NumPy by hand."""

import numpy as np
import pytest

from experiments.run.composition import parse_config
from experiments.run.repeats import band, describe_band, stack_histories
from experiments.run.stack import train_stack


def test_a_band_is_the_range_below_five_seeds_and_the_standard_deviation_from_five_on():
    few = np.array([[1.0, 4.0], [2.0, 8.0], [6.0, 0.0]])
    np.testing.assert_allclose(band(few), [[3, 4], [1, 0], [6, 8]])
    assert describe_band([3, 4]) == "mean, band: range"
    # Of 1, 2, 3, 4, 5 the mean is 3 and s^2 is (4 + 1 + 0 + 1 + 4) / 4.
    mean, lower, upper = band(np.arange(1.0, 6.0)[:, None])
    np.testing.assert_allclose([mean, lower, upper], np.array([[3.0], [3 - 2.5**0.5], [3 + 2.5**0.5]]))
    assert describe_band([5]) == "mean, band: standard deviation"
    assert describe_band([5, 4]) == "mean, band: standard deviation, range of fewer than 5"


def test_on_a_logarithmic_axis_the_mean_is_that_of_the_logarithm():
    decades = np.array([[1e-4], [1e-3], [1e-2], [1e-1], [1e0]])
    # The deviation of -4, ..., 0 is the square root of 2.5.
    np.testing.assert_allclose(band(decades, logarithmic=True), 10 ** np.array([[-2.0], [-2 - 2.5**0.5], [-2 + 2.5**0.5]]))
    assert describe_band([5], logarithmic=True) == "mean of the logarithm, band: standard deviation"


@pytest.mark.parametrize("logarithmic", [False, True])
def test_what_is_not_finite_is_left_out_and_what_has_nothing_left_is_nan(logarithmic):
    values = np.array([[2.0, np.nan, np.nan], [2.0, 3.0, np.inf]])
    np.testing.assert_allclose(band(values, logarithmic), [[2, 3, np.nan]] * 3)


def test_a_norm_of_zero_has_no_logarithm():
    np.testing.assert_allclose(band(np.array([[0.0], [4.0]], np.float32), logarithmic=True), [[4], [4], [4]])


def test_the_lanes_of_stacked_histories_are_the_histories(composed, tmp_path):
    base = ["dataset=iris", "training.epochs=2", "network.width=4", "instruments.update_ratio=log"]
    histories = [train_stack([parse_config(composed(*base, f"seed={seed}"))])[0].history for seed in (0, 1)]
    together = stack_histories(histories)
    assert together.grad_norm.shape == (2, *histories[0].grad_norm.shape)
    for lane, history in enumerate(histories):
        history.save(tmp_path / "own.npz")
        together.lane(lane).save(tmp_path / "lane.npz")
        assert (tmp_path / "lane.npz").read_bytes() == (tmp_path / "own.npz").read_bytes()
