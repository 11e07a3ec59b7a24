"""The signals by block, against np.histogram, np.mean and np.std of what the plain network computes, and JAX of its gradients."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blocks import ACTIVATIONS, KINDS, GradientDescent, Instrument, Network, losses, train
from blocks.measure.signals import BINS, GRADIENTS, NUMBERS, VALUES
from tests.blocks import oracle
from tests.blocks.reference import all_pairs, derivative

LOSS = losses.softmax_cross_entropy
SIZES, M, STEPS, LANES = [4, 7, 7, 7, 3], 11, 4, 3
# Every activation, and every kind.
PAIRS = [*((activation, "plain") for activation in ACTIVATIONS), ("gelu", "residual"), ("gelu", "normalized")]


def counted(bins, values):
    """np.histogram, with bins that hold their edge of larger |v|: it has them hold the lower one."""
    lower = np.histogram(-values.ravel(), -bins.edges[::-1])[0][::-1]
    if not bins.signed:
        # The edge at 0 is the last one here, which np.histogram lets hold it.
        return np.histogram(-np.abs(values.ravel()), -bins.edges[::-1])[0][::-1]
    middle = len(lower) // 2
    upper = np.histogram(values.ravel(), bins.edges)[0]
    inner = np.count_nonzero(np.abs(values) <= 2.0**bins.low)
    return np.concatenate([upper[:middle], [inner], lower[middle + 1 :]])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("bins", [VALUES, GRADIENTS])
def test_counts_are_numpy_s(bins, dtype):
    rng = np.random.default_rng(0)
    edges = bins.edges[np.isfinite(bins.edges)]
    # Of all sizes; just the edges and their neighbours; what is hardly a number; what is 1 to the last bit, as a saturated tanh.
    values = rng.standard_normal(5000) * 10.0 ** rng.uniform(-36, 10, 5000)
    beside = [edges, np.nextafter(edges, np.inf, dtype=dtype), np.nextafter(edges, -np.inf, dtype=dtype)]
    values = np.concatenate([values, *beside, [0.0, -0.0, np.inf, -np.inf, 1.0, -1.0, np.tanh(30.0)]]).astype(dtype)
    (counts,) = bins.counts(values, (len(values),))
    assert counts.tolist() == counted(bins, values).tolist()
    assert counts.sum() == len(values)


def test_the_bins_are_as_fine_as_values_are_small():
    # Sixteenths below 1, eighths above: where a tanh ends.
    near = VALUES.edges[(VALUES.edges > 0.8) & (VALUES.edges < 1.3)]
    assert near.tolist() == [0.8125, 0.875, 0.9375, 1.0, 1.125, 1.25]
    assert VALUES.edges.tolist() == (-VALUES.edges[::-1]).tolist()
    assert GRADIENTS.edges[[0, 1, 2, 3, -2, -1]].tolist() == [0, 2**-100, 1.5 * 2**-100, 2**-99, 2**20, np.inf]


def data():
    rng = np.random.default_rng(3)
    return rng.standard_normal((SIZES[0], M)), rng.integers(0, SIZES[-1], M)


@cache
def trained(activation, kind, dtype):
    """A stack in which parameters and signals are measured at every step."""
    network = Network.create(SIZES, activation, "he", rng=np.random.default_rng(1), gain=2.0, lanes=LANES, dtype=dtype, kind=kind)
    every = [Instrument("signals", "1"), Instrument("parameters", "1")]
    rule, x_y = GradientDescent(np.array([0.1, 0.5, 1.0])), data()
    history = train(network, *x_y, loss=LOSS, optimizer=rule, epochs=STEPS, instruments=every)
    return network, history


def plain(network):
    """z, a, da and dW of every block, from the blocks' own forward and backward."""
    x, y = data()
    logits, caches = network.forward(x)
    _, da = LOSS.value_and_gradient(logits, LOSS.target(y, SIZES[-1], logits.dtype))
    found = {"z": [c.z for c in caches], "a": [c.a for c in caches], "da": [], "dW": []}
    for block, kept in zip(reversed(network.blocks), reversed(caches), strict=True):
        found["da"].insert(0, da)
        da, dW, _ = block.backward(da, kept)
        found["dW"].insert(0, dW)
    return found, caches


def is_saturated(activation, z, a):
    by_name = {"tanh": np.abs(a) > 0.97, "sigmoid": np.abs(2 * a - 1) > 0.97, "relu": a == 0, "identity": a != a}
    if activation in by_name:
        return by_name[activation]
    steepest = np.abs(derivative(activation)(np.linspace(-20, 20, 4001))).max()
    return np.abs(derivative(activation)(z.ravel().astype(np.float64))) < (1 - 0.97**2) * steepest


@pytest.mark.parametrize(("activation", "kind", "dtype"), all_pairs([*ACTIVATIONS], [*KINDS], [np.float32, np.float64]))
def test_signals_are_those_of_the_plain_network_at_the_step(activation, kind, dtype):
    whole, history = trained(activation, kind, dtype)
    signals, parameters = history.quantities["signals"], history.quantities["parameters"].values
    assert signals.values.shape == (LANES, STEPS, len(NUMBERS), len(SIZES) - 1)
    for lane in range(LANES):
        after = [*parameters[lane, 1:], whole.parameters[lane]]
        for step in (0, STEPS - 1):
            network = whole.with_parameters(parameters[lane, step])
            found, caches = plain(network)
            numbers = dict(zip(NUMBERS, signals.values[lane, step], strict=True))
            for symbol, arrays in found.items():
                histogram = signals.histograms[symbol]
                assert histogram.edges.tolist() == BINS[symbol].edges.tolist()
                expected = [counted(BINS[symbol], array) for array in arrays]
                assert (histogram.counts[lane, step] == expected).all()
                exact = [array.astype(np.float64) for array in arrays]
                scale = np.array([np.abs(array).max() for array in exact])
                assert (np.abs(numbers[f"{symbol}_mean"] - [array.mean() for array in exact]) <= 1e-12 * scale).all()
                np.testing.assert_allclose(numbers[f"{symbol}_std"], [array.std() for array in exact], rtol=1e-10)
            at = [block.activation_at(kept) for block, kept in zip(network.blocks, caches, strict=True)]
            shares = [is_saturated(activation, z, a).mean() for z, a in at[:-1]]
            np.testing.assert_allclose(numbers["saturated"], [*shares, 0.0])
            moved = whole.with_parameters(after[step] - parameters[lane, step])
            deviation = [block.W.astype(float).std() for block in network.blocks]
            expected = [dW.astype(float).std() for dW in found["dW"]] / np.array(deviation)
            np.testing.assert_allclose(numbers["grad_data"], expected, rtol=1e-10)
            expected = [block.W.astype(float).std() for block in moved.blocks] / np.array(deviation)
            np.testing.assert_allclose(numbers["update_data"], expected, rtol=1e-10)


@pytest.mark.parametrize(("activation", "kind"), PAIRS)
def test_gradients_are_counted_as_jax_s(activation, kind):
    whole, history = trained(activation, kind, np.float64)
    x, y = data()
    added = [jnp.zeros((n, M)) for n in SIZES[1:]]

    def value(parameters, added):
        return oracle.LOSSES[LOSS.name](oracle.logits_of(parameters, x, activation, kind, added), y)

    gradients = jax.jit(jax.grad(value, argnums=(0, 1)))
    signals, parameters = history.quantities["signals"], history.quantities["parameters"].values
    for lane in range(LANES):
        at_last = whole.with_parameters(parameters[lane, -1])
        of_parameters, da = gradients(oracle.parameters_of(at_last), added)
        for symbol, arrays in {"da": da, "dW": [dW for dW, _ in of_parameters]}.items():
            expected = [counted(BINS[symbol], np.asarray(array)) for array in arrays]
            assert (signals.histograms[symbol].counts[lane, -1] == expected).all()


def test_a_part_of_a_stack_at_a_time_changes_no_bit(monkeypatch):
    _, whole = trained("tanh", "plain", np.float32)
    monkeypatch.setattr("blocks.measure.signals.PART", 2 * max(SIZES) * M)
    _, in_parts = trained.__wrapped__("tanh", "plain", np.float32)
    one, other = (history.quantities["signals"] for history in (whole, in_parts))
    assert one.values.tobytes() == other.values.tobytes()
    for symbol in BINS:
        assert (one.histograms[symbol].counts == other.histograms[symbol].counts).all()


@pytest.mark.parametrize(("m", "dtype"), [(11, np.uint8), (300, np.uint16), (70000, np.uint32)])
def test_counts_take_the_smallest_numbers_that_hold_them(m, dtype):
    network = Network.create([3, 4, 2], "relu", rng=np.random.default_rng(0))
    x, y = np.zeros((3, m)), np.arange(m) % 2
    instruments = [Instrument("signals", "1")]
    history = train(network, x, y, loss=LOSS, optimizer=GradientDescent(0.1), epochs=1, evaluations=0, instruments=instruments)
    histogram = history.quantities["signals"].histograms["z"]
    assert histogram.counts.dtype == dtype
    assert histogram.counts.sum(axis=-1).tolist() == [[4 * m, 2 * m]]
