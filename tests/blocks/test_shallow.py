"""Networks of two blocks by the thousand: against the general cycle, against JAX, lane by lane, with and without early exit."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blocks import GradientDescent, Network, losses, train
from blocks.shallow.cycles import _Hidden, shallow_losses
from blocks.shallow.tanh import TableTanh

ACTIVATIONS = ["identity", "tanh", "relu", "gelu"]


def problem(n=6, inputs=8, m=20, seed=0):
    rng = np.random.default_rng(seed)
    W, w = rng.standard_normal((n, inputs)) / np.sqrt(inputs), rng.standard_normal((1, n)) / n
    return W, w, rng.standard_normal((inputs, m)), rng.standard_normal((1, m))


def rates_of(lanes, low=-3, high=0.5, seed=1):
    return 10 ** np.random.default_rng(seed).uniform(low, high, (lanes, 2))


def general(W, w, x, y, rates, activation, steps):
    """The same networks in the general cycle, their biases, which have to be there, held at 0 by rates of next to nothing."""
    lanes = len(rates)
    network = Network.create([W.shape[1], W.shape[0], 1], activation, "zeros", rng=np.random.default_rng(0), lanes=lanes)
    network.blocks[0].W[...], network.blocks[1].W[...] = W, w
    by_parameter = np.where(network.layout.is_weight, network.layout.of_blocks(rates), 1e-300)
    return train(
        network,
        x,
        y,
        loss=losses.half_mean_squared_error,
        optimizer=GradientDescent(by_parameter),
        epochs=steps,
        evaluations=0,
    ).loss


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", [(6, 8, 20), (8, 8, 8), (5, 9, 3), (1, 1, 1), (8, 3, 40)])
def test_the_losses_are_those_of_the_general_cycle(activation, shape):
    of = problem(*shape)
    # What is near divergence would show every rounding.
    rates = rates_of(40, -3, -1)
    expected = general(*of, rates, activation, 30)
    ours = shallow_losses(*of, rates, activation, 30)
    np.testing.assert_allclose(ours, expected, rtol=1e-9)
    assert (ours[:, -1] < ours[:, 0]).all()


@pytest.mark.parametrize("activation", ["identity", "tanh", "relu"])
def test_float32_is_float32(activation):
    W, w, x, y = problem()
    rates = rates_of(10, -3, -1)
    double = shallow_losses(W, w, x, y, rates, activation, 20)
    single = shallow_losses(W.astype(np.float32), w.astype(np.float32), x, y, rates, activation, 20)
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, double, rtol=1e-4)
    assert (single != double).mean() > 0.9


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_lanes_bits_do_not_depend_on_its_neighbours(activation, dtype):
    W, w, x, y = problem()
    of = W.astype(dtype), w.astype(dtype), x, y
    # From rates that train to rates that diverge within a step or two, more lanes than a part has.
    rates = rates_of(1500 if activation == "identity" else 150, -3, 5)
    whole = shallow_losses(*of, rates, activation, 40)
    for some in (slice(7, 8), slice(3, 40), slice(None, None, -3)):
        assert whole[some].tobytes() == shallow_losses(*of, rates[some], activation, 40).tobytes()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_early_exit_changes_no_finite_loss(activation):
    of = problem()
    rates = np.concatenate([rates_of(300, -3, 6), rates_of(50, 250, 307)])
    stopped = shallow_losses(*of, rates, activation, 60)
    whole = shallow_losses(*of, rates, activation, 60, early_exit=False)
    finite = np.isfinite(whole)
    np.testing.assert_array_equal(np.isfinite(stopped), finite)
    assert stopped[finite].tobytes() == whole[finite].tobytes()
    if activation == "identity":
        assert 0.1 < finite.mean() < 0.5


def test_saturated_networks_train_their_second_block_alone(monkeypatch):
    alone = []
    run = _Hidden.run

    def counted(self, W, w, rates, steps, second=False):
        alone.append(second * len(w))
        return run(self, W, w, rates, steps, second)

    monkeypatch.setattr(_Hidden, "run", counted)
    W, w, x, y = problem()
    shallow_losses(W, w, x, y, rates_of(200, 2, 6), "tanh", 60)
    assert sum(alone) > 30


def test_an_infinite_W_is_not_the_end_of_a_tanh_network():
    # One input: with more of them z would be inf - inf.
    of = problem(6, 1, 20)
    rates = np.array([[1e308, 1e-3]] * 3)
    stopped = shallow_losses(of[0], 1e3 * of[1], of[2], of[3], rates, "tanh", 40)
    assert np.isfinite(stopped).all()
    assert (stopped[:, 1] != stopped[:, 0]).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps is 0, it must be a whole number of at least 1"),
        ({"rates": np.ones((3, 3))}, r"rates has shape \(3, 3\), it must be \(..., lanes, 2\)"),
        ({"rates": np.array([[-1.0, 1.0]])}, "rates is .* at least 0"),
        ({"activation": "sine"}, "activation 'sine' is unknown"),
        ({"w": np.ones((1, 3))}, r"w has shape \(1, 3\), it must be \(..., 1, 6\)"),
        ({"y": np.ones((1, 3))}, r"y has shape \(1, 3\), it must be \(..., 1, 20\)"),
        ({"x": np.full((8, 20), np.nan)}, r"x of shape \(8, 20\) must be finite"),
    ],
)
def test_what_does_not_fit_is_one_clear_line(change, message):
    W, w, x, y = problem()
    arguments = {"W": W, "w": w, "x": x, "y": y, "rates": rates_of(3), "activation": "tanh", "steps": 5, **change}
    with pytest.raises(ValueError, match=message):
        shallow_losses(**arguments)


def ulps(ours, exact):
    return np.abs((ours - exact) / np.spacing(np.abs(exact.astype(np.float64)))).astype(float)


def test_tanh_from_the_table_is_tanh():
    rng = np.random.default_rng(0)
    z = np.concatenate(
        [np.linspace(-25, 25, 20001), rng.standard_normal(50000), 10.0 ** rng.uniform(-300, 3, 20000), np.arange(-30, 30) / 512]
    )
    ours = TableTanh(z.shape)(z, np.empty_like(z))
    exact = np.tanh(z.astype(np.longdouble))
    assert ulps(ours, exact).max() < 3
    assert np.abs(ours).max() <= 1


@given(st.floats(allow_nan=False))
def test_tanh_from_the_table_is_odd_and_bounded(z):
    ours = TableTanh((2,))(np.array([z, -z]), np.empty(2))
    assert ours[0] == -ours[1]
    assert abs(ours[0]) <= 1
    assert np.copysign(1.0, ours[0]) == np.copysign(1.0, z) or z == 0


def test_tanh_from_the_table_keeps_nan_and_may_write_over_z():
    z = np.array([np.nan, np.inf, -np.inf, 0.0, 0.3])
    np.testing.assert_array_equal(TableTanh((5,))(z, z)[:4], [np.nan, 1, -1, 0])
    assert z[4] == pytest.approx(np.tanh(0.3), rel=4e-16)
