from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blocks.parameters import Layout


@given(st.lists(st.integers(1, 6), min_size=2, max_size=5), st.sampled_from([(), (3,), (2, 3)]))
def test_every_parameter_belongs_to_one_place_of_one_block(sizes, lanes):
    layout = Layout(sizes)
    flat = np.zeros((*lanes, layout.size))
    for joined in layout.blocks(flat):
        assert np.shares_memory(joined, flat)
        joined += 1
    assert (flat == 1).all()
    assert layout.is_weight.sum() == sum(n * n_prev for n_prev, n in pairwise(sizes))


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e-44, 1e30, 1e37])
@pytest.mark.parametrize("lanes", [(), (3,)])
def test_norms_are_right_where_float32_squares_are_not(scale, lanes):
    layout = Layout([5, 4, 3])
    rng = np.random.default_rng(0)
    flat = (scale * rng.standard_normal((*lanes, layout.size))).astype(np.float32)
    expected = []
    for joined in layout.blocks(flat):
        exact = joined.astype(np.float64)
        expected += [np.sqrt((exact[..., :-1] ** 2).sum(axis=(-2, -1))), np.sqrt((exact[..., -1] ** 2).sum(axis=-1))]
    # Numbers near 1e-44 are subnormal: they have a digit or two.
    np.testing.assert_allclose(layout.norms(flat), np.stack(expected, axis=-1), rtol=1e-6 if scale > 1e-40 else 0.1)


def test_norms_of_zeros_and_of_what_is_not_finite():
    layout = Layout([2, 2, 2])
    flat = np.zeros((3, layout.size))
    layout.blocks(flat)[1][1, 0, 0] = np.inf
    layout.blocks(flat)[0][2, 0, -1] = np.nan
    norms = layout.norms(flat)
    np.testing.assert_array_equal(norms, [[0, 0, 0, 0], [0, 0, np.inf, 0], [0, np.nan, 0, 0]])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_lanes_norms_have_the_bits_of_the_lane_alone(dtype):
    layout = Layout([7, 9, 5])
    flat = np.random.default_rng(0).standard_normal((4, layout.size)).astype(dtype)
    flat[1] *= 1e-25
    for lane in range(4):
        np.testing.assert_array_equal(layout.norms(flat)[lane], layout.norms(flat[lane]))
