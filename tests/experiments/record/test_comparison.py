import copy

import numpy as np
import pytest

from experiments.record.comparison import (
    environment_differences,
    first_difference,
    first_differing_parameter,
    largest_difference,
    ulps,
)
from experiments.run.composition import parse_config
from experiments.run.stack import train_stack


@pytest.fixture(scope="module")
def run(composed):
    return train_stack([parse_config(composed("training.epochs=2", "network.depth=3", "network.width=8"))])[0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ulps_counts_the_floats_between(dtype):
    start = np.array([1.0, -1.0, 0.0, 1e-40, 65504.0], dtype)
    stepped = start
    for count in range(1, 6):
        stepped = np.nextafter(stepped, dtype(np.inf))
        assert ulps(start, stepped).tolist() == [count] * 5
        assert ulps(stepped, start).tolist() == [count] * 5
    tiny = np.nextafter(dtype(0), dtype(1))
    assert ulps(np.array([-tiny]), np.array([tiny])).tolist() == [2]
    nan = np.array([np.nan], dtype)
    assert ulps(nan, nan).tolist() == [0]
    assert ulps(nan, start[:1]).tolist() == [np.inf]


def test_the_first_step_and_metric_that_differ_are_named(run):
    assert first_difference(run.history, copy.deepcopy(run.history)) is None
    other = copy.deepcopy(run.history)
    other.loss[20] = np.nextafter(other.loss[20], np.float32(np.inf))
    other.grad_norm[7, 1] = np.nextafter(np.nextafter(other.grad_norm[7, 1], np.float32(0)), np.float32(0))
    found = first_difference(run.history, other)
    assert (found.step, found.metric, found.ulps) == (7, "grad_norm/W_02", 2)
    assert "step 7: grad_norm/W_02" in str(found)
    # Of one step, what is computed first.
    other.loss[7] = np.nextafter(other.loss[7], np.float32(np.inf))
    assert first_difference(run.history, other).metric == "loss/batch"
    other.grad_norm_b[3, 2] = np.nan
    found = first_difference(run.history, other)
    assert (found.step, found.metric, found.ulps) == (3, "grad_norm/b_03", np.inf)


def test_a_zero_of_the_other_sign_is_a_difference(run):
    one, other = copy.deepcopy(run.history), copy.deepcopy(run.history)
    one.loss[4], other.loss[4] = 0.0, -0.0
    assert first_difference(one, other).step == 4


def test_histories_of_other_shapes_are_not_laid_side_by_side(run):
    shorter = copy.deepcopy(run.history)
    shorter.loss, shorter.grad_norm = shorter.loss[:-1], shorter.grad_norm[:-1]
    with pytest.raises(ValueError, match="46 steps of 3 blocks beside 45 steps of 3"):
        first_difference(run.history, shorter)


def test_the_first_parameter_that_differs_stands_at_the_last_step(run):
    assert first_differing_parameter(run.parameters, run.parameters.copy(), 46) is None
    other = run.parameters.copy()
    other[100] = np.nextafter(other[100], np.float32(np.inf))
    found = first_differing_parameter(run.parameters, other, 46)
    assert (found.step, found.metric, found.ulps) == (46, "final parameter 100", 1)


def test_distance_is_relative_and_infinite_where_one_alone_diverges(run):
    other = copy.deepcopy(run.history)
    other.loss[5] = run.history.loss[5] * np.float32(1.25)
    assert largest_difference(run.history, other) == pytest.approx(0.2, rel=1e-6)
    other.loss[6] = np.inf
    assert largest_difference(run.history, other) == np.inf


def test_what_may_explain_a_difference_is_named():
    assert environment_differences({"numpy": "2.4.5", "cpu": "a"}, {"numpy": "2.4.6", "cpu": "a"}) == ["numpy 2.4.5, here 2.4.6"]
