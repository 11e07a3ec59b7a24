"""Distributions in bins that can be drawn: shares of the entries, against histograms of NumPy's of the values themselves."""

import math

import numpy as np
import pytest

from experiments.pictures.distributions import BINS, MAX_HEIGHT, Distribution, distributions
from experiments.pictures.movie import write_movie
from tests.experiments.page.synthetic import history, measured


def test_a_uniform_distribution_stays_one():
    found = distributions(history(3, 0.1, 0, signals=True))["z"]
    assert found.shares.shape == (3, 3, BINS)
    middles = (found.edges[1:] + found.edges[:-1]) / 2
    width = found.edges[1] - found.edges[0]
    for block in (1, 2, 3):
        inside = np.abs(middles) < block - width
        np.testing.assert_allclose(found.shares[0, block - 1][inside], width / (2 * block), rtol=1e-9)
        assert (found.shares[0, block - 1][np.abs(middles) > block + width] == 0).all()


def test_the_shares_of_a_normal_distribution_are_those_of_its_values():
    values = np.random.default_rng(0).normal(size=100_000)
    fine = np.concatenate([[-np.inf], np.linspace(-8, 8, 2001), [np.inf]])
    made = history(1, 0.1, 0)
    made.quantities["signals"] = measured(1)
    histogram = made.quantities["signals"].histograms["z"]
    histogram.edges, histogram.counts = fine, np.histogram(values, fine)[0][None, None]
    found = distributions(made)["z"]
    np.testing.assert_allclose(found.shares[0, 0], np.histogram(values, found.edges)[0] / values.size, atol=4e-4)
    # All but 1 % of them are drawn.
    assert 0.99 <= found.shares.sum() < 1
    assert found.edges[-1] == pytest.approx(2.576, abs=0.1)


def test_gradients_of_all_decades_are_on_one_log_axis():
    found = distributions(history(3, 0.1, 0, signals=True))["dW"]
    assert found.is_logarithmic
    np.testing.assert_allclose(np.diff(np.log10(found.edges)), np.diff(np.log10(found.edges))[0])
    # The mode of block l at measurement p lies between 2^-(l + p) and twice that.
    modes = found.edges[found.shares.argmax(axis=-1)]
    for place in range(3):
        for block in (1, 2, 3):
            assert 0.9 * 2.0 ** -(block + place) <= modes[place, block - 1] < 2.0 ** (1 - block - place)


def test_what_lies_at_0_does_not_press_the_rest_flat():
    made = history(1, 0.1, 0, signals=True)
    histogram = made.quantities["signals"].histograms["a"]
    histogram.edges = np.array([-1, -0.5, -0.01, 0.01, 0.5, 1])
    histogram.counts = np.array([50, 49, 300, 49, 50])[None, None]
    heights = distributions(made)["a"].heights[0, 0]
    assert heights[BINS // 2] == 1
    np.testing.assert_allclose(np.delete(heights, [BINS // 2 - 1, BINS // 2, BINS // 2 + 1]), 1, rtol=1e-9)


def test_where_nothing_was_measured_nothing_is_drawn():
    made = history(2, 0.1, 0, signals=True)
    for histogram in made.quantities["signals"].histograms.values():
        histogram.counts[:] = 0
    for found in distributions(made).values():
        assert not found.heights.any()
    assert distributions(history(2, 0.1, 0)) == {}


@pytest.mark.parametrize("signals", [False, True])
def test_a_movie_s_frames_differ(tmp_path, monkeypatch, signals):
    from PIL import Image

    monkeypatch.setattr("experiments.pictures.movie.FRAMES", 5)
    write_movie(history(4, 1.0, 0, signals=signals), "a run", tmp_path / "movie.gif")
    assert (tmp_path / "movie.gif").stat().st_size < 3e6
    with Image.open(tmp_path / "movie.gif") as movie:
        assert movie.n_frames == 5
        first = np.asarray(movie.convert("RGB"))
        movie.seek(movie.n_frames - 1)
        assert (np.asarray(movie.convert("RGB")) != first).any()


def test_a_movie_of_a_run_that_diverged_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.pictures.movie.FRAMES", 5)
    write_movie(history(4, 1.0, 0, diverged=True), "a run", tmp_path / "movie.gif")
    assert (tmp_path / "movie.gif").stat().st_size > 0


def test_normal_heights_are_the_shares_of_a_normal_density():
    """Of blocks 1 and 3, measured are 0.1 in one bin: the shares of N(0, q) are read off the error function."""
    edges = np.linspace(-3, 3, BINS + 1)
    shares = np.zeros((1, 2, BINS))
    shares[:, :, 10] = 0.1
    found = Distribution(np.array([0]), np.array([1, 3]), edges, shares, False)
    heights = found.normal_heights(np.array([0.25, 9.0, 4.0]))
    for row, deviation in zip(heights, (0.5, 2.0), strict=True):
        below = np.array([math.erf(edge / (deviation * math.sqrt(2))) for edge in edges]) / 2
        np.testing.assert_allclose(row, np.diff(below) / 0.1, rtol=1e-6, atol=1e-12)
    assert found.normal_heights(np.array([1e-300, 0.0, 0.0])).max() == MAX_HEIGHT
