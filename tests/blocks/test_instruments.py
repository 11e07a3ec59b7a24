import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blocks import LOSSES, Adam, GradientDescent, History, Instrument, Momentum, Network, losses, train
from blocks.diagnostics import example_gradient_norms, saturated, update_ratios
from blocks.hessian import CURVATURES
from blocks.instruments import INSTRUMENTS, SHARPNESS_TOLERANCE
from tests.blocks.test_hessian import flat_loss

LOSS = losses.softmax_cross_entropy
SIZES = [6, 9, 8, 7, 3]
EPOCHS, BATCH, M = 5, 8, 24
STEPS = EPOCHS * M // BATCH
# Every kind of schedule, and every instrument.
EVERY = [
    Instrument("sharpness", "3", examples=20, count=2),
    Instrument("update_ratio", "1"),
    Instrument("saturated", "log"),
    Instrument("example_norm", "2"),
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
            assert quantity.at.tolist() == alone.quantities[name].at.tolist()


def test_after_its_divergence_alone_a_lane_has_nan():
    history = fit(stack(), GradientDescent(RATES), EVERY)
    diverged = history.diverged_step[1]
    assert 0 < diverged < STEPS - 1
    for quantity in history.quantities.values():
        measured = np.isfinite(quantity.values)
        assert measured[[0, 2]].all()
        # The step at which it left had no update, and nothing is measured there.
        assert ((quantity.at < diverged) == measured[1].T).all()


def test_lanes_keep_their_own_shape():
    network = Network.create(SIZES, "tanh", "lecun", rng=np.random.default_rng(5), lanes=6)
    in_rows = network.with_parameters(network.parameters.reshape(2, 3, -1).copy())
    flat, rows = (fit(each, GradientDescent(0.1), EVERY) for each in (network, in_rows))
    for name, quantity in rows.quantities.items():
        assert quantity.values.shape[:2] == (2, 3)
        assert quantity.values.tobytes() == flat.quantities[name].values.tobytes()


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
        assert (values["update_ratio"] == update_ratios(before.parameters, after.parameters, before.layout)).all()
        norms = np.sqrt((example_gradient_norms(before, x, y, LOSS) ** 2).mean(axis=-1))
        np.testing.assert_allclose(values["example_norm"], norms, rtol=1e-12)
        hessian = hessian_of(jnp.asarray(before.parameters), jnp.asarray(x), jnp.asarray(y))
        # A Ritz value is never above the eigenvalue.
        top = np.linalg.eigvalsh(hessian)[-1]
        assert top * (1 - 5 * SHARPNESS_TOLERANCE) <= values["sharpness"][0] <= top * (1 + 1e-12)


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
    with pytest.raises(ValueError, match="instrument 'flatness' is unknown, allowed: sharpness, update_ratio"):
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
    loaded.save(tmp_path / "again.npz")
    assert (tmp_path / "again.npz").read_bytes() == (tmp_path / "history.npz").read_bytes()


def test_every_loss_has_its_curvature():
    assert list(CURVATURES) == list(LOSSES)
