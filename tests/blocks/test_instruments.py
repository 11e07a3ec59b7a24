import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits

from blocks import Adam, GradientDescent, History, Instrument, Momentum, Network, RMSProp, losses, train
from blocks.measure import instruments
from blocks.measure.diagnostics import example_gradient_norms, noise_scale, saturated, update_ratios
from blocks.measure.hessian import hessian_vector_product
from blocks.measure.instruments import INSTRUMENTS, SHARPNESS_TOLERANCE
from tests.blocks.test_hessian import flat_loss

LOSS = losses.softmax_cross_entropy
SIZES = [6, 9, 8, 7, 3]
EPOCHS, BATCH, M = 5, 8, 24
STEPS = EPOCHS * M // BATCH
# Every kind of schedule, and every instrument.
EVERY = [
    Instrument("sharpness", "3", examples=20, count=2),
    Instrument("preconditioned_sharpness", "6"),
    Instrument("update_ratio", "1"),
    Instrument("saturated", "log"),
    Instrument("example_norm", "2"),
    Instrument("noise_scale", "3"),
    Instrument("singular_value", "5"),
    Instrument("signals", "2"),
    Instrument("parameters", "3"),
]
# Of the lanes, the second diverges on the way, the first trains, the third hardly moves.
RATES = np.array([0.2, 40.0, 1e-3])


def data():
    rng = np.random.default_rng(3)
    return rng.standard_normal((SIZES[0], M)), rng.integers(0, SIZES[-1], M)


def stack(dtype=np.float64):
    return Network.create(SIZES, "tanh", "lecun", rng=np.random.default_rng(5), lanes=3, dtype=dtype)


def fit(network, rule, instruments=(), epochs=EPOCHS, batch_size=BATCH, loss_bound=6.0):
    x, y = data()
    common = {"loss": LOSS, "optimizer": rule, "batch_size": batch_size, "loss_bound": loss_bound, "evaluations": 0}
    return train(network, x, y, epochs=epochs, instruments=instruments, **common)


RULES = {
    "gradient_descent": lambda rates: GradientDescent(rates),
    "momentum": lambda rates: Momentum(rates, momentum=0.5),
    "adam": lambda rates: Adam(rates),
}


def same_bits(one, two):
    for name in ("loss", "grad_norm", "grad_norm_b", "diverged_step", "diverged_block"):
        assert getattr(one, name).tobytes() == getattr(two, name).tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rule", RULES)
def test_a_training_that_is_watched_has_the_bits_of_one_that_is_not(rule, dtype):
    watched, alone = stack(dtype), stack(dtype)
    history = fit(watched, RULES[rule](RATES), EVERY)
    same_bits(history, fit(alone, RULES[rule](RATES)))
    assert watched.parameters.tobytes() == alone.parameters.tobytes()
    assert (history.diverged_step >= 0).tolist() == [False, True, False]
    assert list(history.quantities) == list(INSTRUMENTS)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rule", RULES)
def test_a_lane_has_the_quantities_of_the_network_alone(rule, dtype):
    whole = stack(dtype)
    starts = whole.parameters.copy()
    history = fit(whole, RULES[rule](RATES), EVERY)
    for lane in range(3):
        alone = fit(whole.with_parameters(starts[lane].copy()), RULES[rule](RATES[lane]), EVERY)
        for name, quantity in history.quantities.items():
            assert quantity.values[lane].tobytes() == alone.quantities[name].values.tobytes()
            assert history.lane(lane).quantities[name].values.tobytes() == alone.quantities[name].values.tobytes()
            for symbol, histogram in quantity.histograms.items():
                counts = alone.quantities[name].histograms[symbol].counts
                assert histogram.counts[lane].tobytes() == counts.tobytes()
                assert history.lane(lane).quantities[name].histograms[symbol].counts.tobytes() == counts.tobytes()
            assert quantity.at.tolist() == alone.quantities[name].at.tolist()


def test_after_its_divergence_alone_a_lane_has_nan():
    history = fit(stack(), GradientDescent(RATES), EVERY)
    diverged = history.diverged_step[1]
    assert 0 < diverged < STEPS - 1
    # The random labels may hide the gradient from the noise scale, wherever a lane is.
    for quantity in [quantity for name, quantity in history.quantities.items() if name != "noise_scale"]:
        measured = np.isfinite(quantity.values)
        assert measured[[0, 2]].all()
        # The step at which it left had no update, and nothing is measured there.
        assert ((quantity.at < diverged) == measured[1].T).all()
        for histogram in quantity.histograms.values():
            counted = histogram.counts.any(axis=-1)
            assert counted[[0, 2]].all()
            assert ((quantity.at < diverged) == counted[1].T).all()


def test_lanes_keep_their_own_shape():
    network = Network.create(SIZES, "tanh", "lecun", rng=np.random.default_rng(5), lanes=6)
    in_rows = network.with_parameters(network.parameters.reshape(2, 3, -1).copy())
    flat, rows = (fit(each, GradientDescent(0.1), EVERY) for each in (network, in_rows))
    for name, quantity in rows.quantities.items():
        assert quantity.values.shape[:2] == (2, 3)
        assert quantity.values.tobytes() == flat.quantities[name].values.tobytes()
        for symbol, histogram in quantity.histograms.items():
            assert histogram.counts.shape[:2] == (2, 3)
            assert histogram.counts.tobytes() == flat.quantities[name].histograms[symbol].counts.tobytes()


def network_at(step, activation):
    """A full batch's training stopped after so many updates: another training."""
    network = Network.create(SIZES, activation, "lecun", rng=np.random.default_rng(5))
    if step:
        fit(network, GradientDescent(0.2), epochs=step, batch_size=None)
    return network


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_every_quantity_is_that_of_the_network_at_the_step(activation):
    x, y = data()
    every = [Instrument(name, "2") for name in INSTRUMENTS]
    history = fit(network_at(0, activation), GradientDescent(0.2), every, epochs=7, batch_size=None)
    hessian_of = jax.jit(jax.hessian(flat_loss(network_at(0, activation).layout, activation, LOSS.name)))
    for place, step in enumerate([0, 2, 4, 6]):
        before, after = network_at(step, activation), network_at(step + 1, activation)
        values = {name: quantity.values[place] for name, quantity in history.quantities.items()}
        assert [quantity.at[place] for quantity in history.quantities.values()] == [step] * len(INSTRUMENTS)
        assert (values["saturated"] == saturated(before, x)).all()
        assert (values["parameters"] == before.parameters).all()
        assert (values["update_ratio"] == update_ratios(before.parameters, after.parameters, before.layout)).all()
        norms = np.sqrt((example_gradient_norms(before, x, y, LOSS) ** 2).mean(axis=-1))
        np.testing.assert_allclose(values["example_norm"], norms, rtol=1e-12)
        # nan where the random labels hide the gradient.
        np.testing.assert_array_equal(values["noise_scale"], [noise_scale(before, x, y, LOSS)])
        hessian = hessian_of(jnp.asarray(before.parameters), jnp.asarray(x), jnp.asarray(y))
        np.testing.assert_allclose(values["sharpness"], np.linalg.eigvalsh(hessian)[-1:], rtol=SHARPNESS_TOLERANCE)


def dense_sharpness(network, parameters, x, y):
    """The largest eigenvalue of the whole Hessian, whose products test_hessian.py compares, at each of (..., P) parameters."""
    at = network.with_parameters(parameters.astype(np.float64))
    size = network.layout.size
    v = np.broadcast_to(np.eye(size).reshape(size, *[1] * (parameters.ndim - 1), size), (size, *parameters.shape))
    every = np.moveaxis(hessian_vector_product(at, x, y, LOSS, v), 0, -1)
    return np.linalg.eigvalsh(every)[..., -1]


@pytest.mark.parametrize(
    ("kind", "activation", "dtype"),
    [
        ("plain", "relu", np.float32),
        ("residual", "gelu", np.float64),
        ("normalized", "relu", np.float32),
        ("batch_normalized", "tanh", np.float64),
    ],
)
def test_a_sharpness_is_that_of_the_dense_hessian_all_along_a_training(kind, activation, dtype):
    x, y = data()
    sizes = [SIZES[0], 6, 6, 6, SIZES[-1]]
    network = Network.create(sizes, activation, "he", rng=np.random.default_rng(6), lanes=5, dtype=dtype, kind=kind)
    # Dead units, saturated ones, and a curvature that is mostly negative.
    network.parameters *= np.array([0.1, 0.5, 1, 1, 3], dtype)[:, None]
    passed = [network.parameters.copy()]
    history = train(
        network,
        x,
        y,
        loss=LOSS,
        optimizer=GradientDescent(np.array([0.3, 0.1, 0.05, 1, 0.01])),
        epochs=9,
        evaluations=0,
        loss_bound=1e3,
        instruments=[Instrument("sharpness", "3")],
        watch=lambda step, _: passed.append(network.parameters.copy()),
    )
    quantity = history.quantities["sharpness"]
    measured = quantity.at < np.where(history.diverged_step < 0, STEPS, history.diverged_step)[:, None]
    assert measured.mean() > 0.7
    assert (quantity.reasons[measured] == "").all()
    expected = np.stack([dense_sharpness(network, passed[step], x, y) for step in quantity.at], axis=1)
    np.testing.assert_allclose(quantity.values[measured, 0], expected[measured], rtol=SHARPNESS_TOLERANCE)


@pytest.mark.parametrize("rule", [Adam(np.array([0.01, 0.1])), RMSProp(np.array([0.001, 0.01])), Momentum(np.array([0.1, 0.3]))])
def test_a_preconditioned_sharpness_is_that_of_the_dense_matrix(rule):
    x, y = data()
    network = Network.create([SIZES[0], 5, 5, SIZES[-1]], "tanh", "lecun", rng=np.random.default_rng(6), lanes=2)
    passed = [network.parameters.copy()]
    common = {"loss": LOSS, "epochs": 6, "evaluations": 0, "instruments": [Instrument("preconditioned_sharpness", "1")]}
    history = train(network, x, y, optimizer=rule, watch=lambda *_: passed.append(network.parameters.copy()), **common)
    quantity = history.quantities["preconditioned_sharpness"]
    P = np.zeros_like(passed[0]) if not isinstance(rule, Momentum) else np.ones_like(passed[0])
    v = 0
    for step, parameters in enumerate(passed[:-1]):
        now = network.with_parameters(parameters)
        if step or isinstance(rule, Momentum):
            for lane in range(2):
                alone = network.with_parameters(parameters[lane])
                H = hessian_vector_product(alone, x, y, LOSS, np.eye(network.layout.size))
                expected = np.linalg.eigvals(H / P[lane][:, None]).real.max()
                assert quantity.values[lane, step, 0] == pytest.approx(expected, rel=SHARPNESS_TOLERANCE)
        else:
            assert np.isnan(quantity.values[:, step]).all()
            assert (quantity.reasons[:, step] == "no update was made").all()
        logits, caches = now.forward(x)
        g = now.gradient(LOSS(logits, y)[1], caches)
        if isinstance(rule, Adam):
            v = 0.999 * v + 0.001 * g**2
            P = (1 - 0.9 ** (step + 1)) * (np.sqrt(v / (1 - 0.999 ** (step + 1))) + 1e-8)
        elif isinstance(rule, RMSProp):
            v = 0.9 * v + 0.1 * g**2
            P = np.sqrt(v) + 1e-8


@pytest.mark.parametrize(
    ("kind", "seed", "step", "largest"),
    [
        # Of dense Hessians: 51.45 beside a smallest one of -5583; 37.01 beside -85.
        ("normalized", 1, 0, 51.45),
        ("normalized", 0, 0, 37.01),
        ("plain", 2, 20, 3.114),
        ("residual", 0, 3, 3.196),
    ],
)
def test_a_sharpness_beside_larger_negative_curvature(kind, seed, step, largest):
    x, y = load_digits(return_X_y=True)
    deviation = x.std(axis=0)
    x, y = ((x - x.mean(axis=0)) / np.where(deviation > 0, deviation, 1)).T[:, :256], y[:256]
    network = Network.create([64, 8, 8, 10], "relu", "he", rng=np.random.default_rng(seed), dtype=np.float32, kind=kind)
    common = {"loss": LOSS, "optimizer": GradientDescent(0.1), "evaluations": 0}
    if step:
        train(network, x, y, epochs=step, **common)
    history = train(network, x, y, epochs=1, instruments=[Instrument("sharpness", "1")], **common)
    assert history.quantities["sharpness"].values.item() == pytest.approx(largest, rel=SHARPNESS_TOLERANCE)


def test_a_sharpness_that_is_missing_has_its_reason(monkeypatch):
    monkeypatch.setattr(instruments, "PRODUCTS", 3)
    network = stack(np.float32)
    # Loss and gradient of the first lane are finite, its curvature, some 1e60, is not.
    network.blocks[2].joined[0] *= 1e-30
    network.blocks[3].joined[0] *= 1e30
    history = fit(network, GradientDescent(1e-30), [Instrument("sharpness", "7")], loss_bound=np.inf)
    quantity = history.quantities["sharpness"]
    assert np.isnan(quantity.values).all()
    assert quantity.reasons[0, 0] == "a product of H is not finite"
    assert quantity.reasons[1:].tolist() == [["not within 1% after 200 products of H"] * 3] * 2
    assert history.lane(1).quantities["sharpness"].reasons.tolist() == ["not within 1% after 200 products of H"] * 3


@pytest.mark.parametrize("depth", [300])
def test_the_norm_of_examples_whose_squares_vanish_is_no_zero(depth):
    network = Network.create([2, *[3] * (depth - 1), 2], "sigmoid", "lecun", rng=np.random.default_rng(0))
    x, y = np.array([[1.0], [2.0]]), np.array([1])
    common = {"loss": LOSS, "optimizer": GradientDescent(0.1), "epochs": 1, "evaluations": 0}
    history = train(network, x, y, instruments=[Instrument("example_norm", "1")], **common)
    # With one example its gradient is the batch's.
    assert history.grad_norm[0, 0] < 1e-30
    np.testing.assert_allclose(history.quantities["example_norm"].values, history.grad_norm, rtol=1e-12)


def test_the_first_so_many_examples_are_measured():
    x, y = data()
    history = fit(network_at(0, "tanh"), GradientDescent(0.2), [Instrument("example_norm", "100", examples=5)])
    norms = np.sqrt((example_gradient_norms(network_at(0, "tanh"), x[:, :5], y[:5], LOSS) ** 2).mean(axis=-1))
    np.testing.assert_allclose(history.quantities["example_norm"].values, norms[None], rtol=1e-12)
    batch = fit(network_at(0, "tanh"), GradientDescent(0.2), [Instrument("example_norm", "100")])
    norms = np.sqrt((example_gradient_norms(network_at(0, "tanh"), x[:, :BATCH], y[:BATCH], LOSS) ** 2).mean(axis=-1))
    np.testing.assert_allclose(batch.quantities["example_norm"].values, norms[None], rtol=1e-12)


@pytest.mark.parametrize(
    ("schedule", "steps", "at"),
    [
        ("1", 4, [0, 1, 2, 3]),
        ("3", 7, [0, 3, 6]),
        ("10", 7, [0]),
        ("log", 5, [0, 1, 2, 3, 4]),
        # 100^(k / 19), rounded, less one.
        ("log", 100, [0, 1, 2, 3, 4, 6, 8, 10, 13, 17, 22, 29, 37, 47, 61, 77, 99]),
    ],
)
def test_schedules(schedule, steps, at):
    x, y = np.zeros((2, 1)), np.zeros(1, int)
    network = Network.create([2, 2], rng=np.random.default_rng(0))
    instruments = [Instrument("update_ratio", schedule)]
    history = train(network, x, y, loss=LOSS, optimizer=GradientDescent(0.1), epochs=steps, instruments=instruments)
    assert history.quantities["update_ratio"].at.tolist() == at
    assert history.quantities["update_ratio"].values.shape == (len(at), 1)


@pytest.mark.parametrize("schedule", ["0", "-1", "1.5", "often", "", "²"])
def test_a_bad_schedule_is_refused(schedule):
    with pytest.raises(ValueError, match=f"schedule is '{schedule}', it must be a whole number of at least 1, .* or log"):
        Instrument("sharpness", schedule)


def test_bad_instruments_are_refused():
    with pytest.raises(ValueError, match="instrument 'flatness' is unknown, allowed: sharpness, preconditioned_sharpness, "):
        Instrument("flatness", "1")
    with pytest.raises(ValueError, match="count is 0, it must be a whole number of at least 1"):
        Instrument("sharpness", "1", count=0)
    with pytest.raises(ValueError, match="examples is 0, it must be a whole number of at least 1"):
        Instrument("sharpness", "1", examples=0)
    size = network_at(0, "tanh").layout.size
    for asked, message in (
        (
            Instrument("saturated", "1", examples=M + 1),
            f"saturated's examples is {M + 1}, it must be a whole number from 1 to {M}",
        ),
        (Instrument("noise_scale", "1", examples=1), f"noise_scale's examples is 1, it must be a whole number from 2 to {M}"),
        (Instrument("sharpness", "1", count=size + 1), f"sharpness's count is {size + 1}, .* from 1 to {size}"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(network_at(0, "tanh"), GradientDescent(0.2), [asked])


def test_a_history_with_quantities_is_saved_and_loaded(tmp_path):
    history = fit(stack(), GradientDescent(RATES), EVERY)
    history.save(tmp_path / "history.npz")
    loaded = History.load(tmp_path / "history.npz")
    same_bits(history, loaded)
    assert list(loaded.quantities) == list(history.quantities)
    for name, quantity in history.quantities.items():
        assert loaded.quantities[name].at.tolist() == quantity.at.tolist()
        assert loaded.quantities[name].values.tobytes() == quantity.values.tobytes()
        for symbol, histogram in quantity.histograms.items():
            again = loaded.quantities[name].histograms[symbol]
            assert again.edges.tobytes() == histogram.edges.tobytes()
            assert again.counts.tobytes() == histogram.counts.tobytes()
    loaded.save(tmp_path / "again.npz")
    assert (tmp_path / "again.npz").read_bytes() == (tmp_path / "history.npz").read_bytes()
