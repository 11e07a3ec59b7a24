"""The studies' verdicts on measurements made up to hold and not to, and on the presets themselves."""

import re
from dataclasses import dataclass, replace

import numpy as np
import pytest

from blocks.history import History, Quantity
from experiments.pictures.studies import STUDIES, ObservedRun, Verdict
from experiments.run.composition import parse_config


@dataclass(frozen=True)
class Made:
    """Stands where a run's record is read."""

    history: History

    def files(self):
        return self


def history(depth=3, loss=(2.0, 1.0), accuracy=0.9, **quantities):
    steps = len(loss)
    return History(
        np.array(loss),
        np.ones((steps, depth)),
        np.ones((steps, depth)),
        np.ones(steps, int),
        steps,
        np.array([0, steps]),
        {"accuracy/train": np.array([0.1, accuracy])},
        {name: Quantity(np.arange(len(values)), np.array(values)) for name, values in quantities.items()},
    )


@pytest.fixture
def observed(composed):
    """observed(preset, overrides, outcome, history) -> a run of it."""

    def one(preset, overrides, outcome, made):
        return ObservedRun(parse_config(composed(f"experiment={preset}", *overrides)), outcome, Made(made))

    return one


def verdict(name, runs) -> Verdict:
    return STUDIES[name].draw(runs)[1]


@pytest.mark.parametrize(("factor", "holds"), [(0.432, True), (0.45, True), (0.50, False), (0.38, False)])
def test_signals_are_compared_with_chi_1(observed, factor, holds):
    # tanh with sigma_w^2 = 0.5 and sigma_b^2 = 0.05 has chi_1 = 0.431987 (Schoenholz et al. 2017).
    norms = [[factor ** ((32 - block) / 2) for block in range(1, 33)]]
    axes = ["network.gain=0.5", "network.bias_variance=0.05"]
    runs = [observed("signal_propagation", axes, "stuck", history(32, example_norm=norms))]
    told = verdict("signal_propagation", runs)
    assert told.holds == holds
    assert f"at {int(holds)} of 1 points, the worst {100 * abs(factor / 0.431987 - 1):.1f} % off" in told.text


def test_a_narrow_network_is_told(observed):
    norms = [[0.432 ** ((32 - block) / 2) for block in range(1, 33)]]
    axes = ["network.gain=0.5", "network.bias_variance=0.05", "network.width=64"]
    runs = [observed("signal_propagation", axes, "stuck", history(32, example_norm=norms))]
    assert "warning: the theory is of wide blocks, width 64 is narrow at depth 32" in str(verdict("signal_propagation", runs))
    wide = replace(runs[0], config=replace_width(runs[0].config, 300))
    assert "warning" not in str(verdict("signal_propagation", [wide]))
    assert "width 64 is narrow" in str(verdict("signal_propagation", [wide, *runs]))


def replace_width(config, width):
    return replace(config, network=replace(config.network, width=width))


def test_trained_cells_are_compared_with_6_xi_c(observed):
    # sigma_w^2 = 1, sigma_b^2 = 0.05: 6 xi_c = 21.8 (Schoenholz et al. 2017); a factor of 2 around it does not count.
    def runs(accuracies):
        return [
            observed("trainable_depth", [f"network.depth={depth}", "network.gain=1.0"], "trained", history(accuracy=accuracy))
            for depth, accuracy in accuracies.items()
        ]

    good = verdict("trainable_depth", runs({3: 0.9, 6: 0.9, 16: 0.1, 26: 0.9, 64: 0.1, 100: 0.1}))
    assert good.holds
    assert "4 of 4 runs (100.0 %)" in good.text
    bad = verdict("trainable_depth", runs({3: 0.9, 6: 0.1, 16: 0.1, 26: 0.9, 64: 0.1, 100: 0.9}))
    assert bad.holds is False
    assert "2 of 4 runs (50.0 %)" in bad.text


@pytest.mark.parametrize(("factor", "holds"), [(0.5, True), (0.9, False)])
def test_initializers_are_compared_with_theirs(observed, factor, holds):
    def run(initializer, depth, factor):
        axes = [f"network.initializer={initializer}", f"network.depth={depth}"]
        made = history(depth, example_norm=[[factor ** (depth / 2)] * depth])
        return observed("he_or_xavier", axes, "trained" if depth < 33 else "stuck", made)

    runs = [run("he", depth, 1.0) for depth in (5, 33)] + [run("glorot", depth, factor) for depth in (3, 5, 33)]
    told = verdict("he_or_xavier", runs)
    assert told.holds == holds
    assert f"glorot changes squared gradients {factor:.2f} times a block (theory 0.5), trains to depth 5" in told.text


@pytest.mark.parametrize(("factor", "holds"), [(1.467, True), (1.42, True), (1.6, False), (1.0, False)])
def test_standardising_kinds_are_compared_with_pi_over_pi_less_1(observed, factor, holds):
    def run(kind, gain, factor):
        norms = np.array([[factor ** (-block / 2) for block in range(1, 25)]] * 2)
        made = replace(history(24), grad_norm=norms)
        return observed("normalization", [f"network.kind={kind}", f"network.gain={gain}"], "stuck", made)

    # What plain blocks do is drawn, and not judged.
    told = verdict(
        "normalization", [run("batch_normalized", 0.5, 1.467), run("batch_normalized", 2.0, factor), run("plain", 1.0, 3.0)]
    )
    assert told.holds == holds
    assert f"{factor:.2f}" in told.text
    assert "(theory 1.467), plain 3.00 to 3.00" in told.text


@pytest.mark.parametrize(("loss", "holds"), [(0.4, True), (0.6, False)])
def test_isometry_is_of_orthogonal_weights_that_train(observed, loss, holds):
    def run(initializer, rate, last, singular_values):
        axes = [f"network.initializer={initializer}", "network.depth=10", f"optimizer.learning_rate={rate}"]
        made = replace(history(10, loss=(2.0, last), singular_value=[singular_values]), steps_an_epoch=1)
        return observed("isometry", ["network.activation=tanh", "network.gain=1.0", *axes], "trained", made)

    # 4, 1, 0, 0, squared 16, 1, 0, 0: 257 / 4 / (17 / 4)^2 - 1 = 2.557.
    uneven = run("normal", 0.01, 1.0, [4.0, 1.0, 0.0, 0.0])
    slower, best = run("orthogonal", 0.01, 1.5, [1.0] * 4), run("orthogonal", 0.1, loss, [1.0] * 4)
    told = verdict("isometry", [uneven, slower, best])
    assert told.holds == holds
    reached = 2 if holds else "never"
    assert f"tanh, normal 2.6, never and never; tanh, orthogonal 0, {reached} and {reached}" in told.text


@pytest.mark.parametrize(("level", "holds"), [(1.0, True), (1.2, False), (0.8, False)])
def test_every_rule_is_compared_with_its_own_edge(observed, level, holds):
    # mu = 0.9 and beta_1 = 0.9.
    edges = {
        "gradient_descent": 2 / 0.1,
        "momentum": 3.8 / 0.1,
        "nesterov": 3.8 / 2.8 / 0.1,
        "adam": 38 / 0.1,
        "rmsprop": 2 / 0.1,
    }
    runs = [
        observed(
            "edges_of_stability",
            [f"optimizer={{name: {name}, learning_rate: 0.1}}"],
            "trained",
            history(preconditioned_sharpness=[[np.nan], *[[edge * {"adam": level, "rmsprop": 1.3}.get(name, 1)]] * 9]),
        )
        for name, edge in edges.items()
    ]
    told = verdict("edges_of_stability", runs)
    assert told.holds == holds
    assert (
        f"adam {level:.2f}; gradient_descent 1.00; momentum 1.00; nesterov 1.00; rmsprop 1.30 (not judged, P moves)" in told.text
    )


@pytest.mark.parametrize(
    ("levels", "holds", "told"),
    [
        ({0.2: 5.0, 0.4: 5.0}, True, "rate 0.2 does not get there, rate 0.4 stays at 1.00 times 2 / rate"),
        ({0.2: 5.0, 0.4: 7.0}, False, "rate 0.4 stays at 1.40 times"),
        ({0.2: 5.0, 0.4: 3.0}, False, "rate 0.4 does not get there"),
    ],
)
def test_the_sharpness_is_compared_with_2_over_the_rate(observed, levels, holds, told):
    runs = [
        observed("edge_of_stability", [f"optimizer.learning_rate={rate}"], "trained", history(sharpness=[[9.0], *[[level]] * 9]))
        for rate, level in levels.items()
    ]
    found = verdict("edge_of_stability", runs)
    assert found.holds == holds
    assert told in found.text


def test_the_three_phases_of_the_catapult(observed):
    def run(rate, loss, last, outcome="trained"):
        made = history(loss=loss, sharpness=[[100.0], [last]])
        return observed("catapult", [f"optimizer.learning_rate={rate}"], outcome, made)

    lazy, caught = run(0.01, (1.0, 0.5), 100.0), run(0.03, (1.0, 9.0, 0.5), 40.0)
    gone = run(0.05, (1.0, 9.0), np.nan, "diverged")
    assert verdict("catapult", [lazy, caught, gone]).holds
    for wrong in (
        run(0.01, (1.0, 1.1, 0.5), 100.0),
        run(0.03, (1.0, 0.9, 0.5), 40.0),
        run(0.03, (1.0, 9.0, 0.5), 90.0),
        run(0.05, (1.0, 9.0), 10.0),
    ):
        assert verdict("catapult", [lazy, caught, gone, wrong]).holds is False


def test_a_data_sets_limit_is_between_the_rates(observed):
    # digits as it is split here: 2 / lambda_max = 0.2690 (numpy.linalg.eigvalsh).
    def runs(*diverged):
        rates = (0.25, 0.26, 0.28, 0.29)
        outcomes = ["diverged" if rate in diverged else "trained" for rate in rates]
        return [
            observed("linear_limit", ["dataset=digits", f"optimizer.learning_rate={rate}"], outcome, history(1))
            for rate, outcome in zip(rates, outcomes, strict=True)
        ]

    good = verdict("linear_limit", runs(0.28, 0.29))
    assert good.holds
    assert "on 1 of 1 data sets, to 7.7 %" in good.text
    assert verdict("linear_limit", runs(0.29)).holds is False
    assert verdict("linear_limit", runs(0.26, 0.28, 0.29)).holds is False


def test_the_exponent_and_its_interval(observed):
    # Rates as L^-1, L^-1.5 and L^-2: mean -1.5, standard deviation 0.5; t(0.975, 2) = 4.3027, half width 4.3027 0.5 / sqrt(3).
    runs = []
    for seed, power in enumerate((1.0, 1.5, 2.0)):
        for depth in (4, 16):
            largest = depth**-power
            for rate in (largest / 2, largest, 2 * largest):
                axes = [f"network.depth={depth}", f"optimizer.learning_rate={rate!r}", f"seed={seed}"]
                outcome = "trained" if rate <= largest else "stuck"
                runs.append(observed("learning_rate_by_depth", axes, outcome, history()))
    told = verdict("learning_rate_by_depth", runs)
    assert told.holds is None
    slope, half = map(float, re.search(r"L\^\((-[\d.]+) \+- ([\d.]+)\) \(95 %, 3 seeds\)", told.text).groups())
    assert slope == -1.5
    assert half == pytest.approx(4.3027 * 0.5 / np.sqrt(3), abs=0.006)
    assert "no exponent can be told" in verdict("learning_rate_by_depth", runs[:6]).text


BAD = {
    "sweep.study=tea": "sweep.study 'tea' is unknown, allowed: signal_propagation, trainable_depth,",
    "training.batch_size=64": "training.batch_size is 64, but sweep.study edge_of_stability needs null, all examples",
    "tracking.enabled=false": "tracking.enabled is false, but sweep.study edge_of_stability reads what is recorded",
}
KINK = (
    "network.activation is 'relu', but sweep.study edge_of_stability needs a second derivative, which relu has not at its kink: "
    "its sharpness, that of the pieces between, jumps where a unit crosses it; allowed: identity"
)
SHARPNESS = "instruments.sharpness is None, but sweep.study edge_of_stability needs a schedule"
ADAM = "optimizer.name is 'adam', but sweep.study edge_of_stability needs gradient_descent"


@pytest.mark.parametrize("override", BAD)
def test_what_a_study_cannot_use_is_one_line(lab, override):
    output = lab.run("-m", "experiment=edge_of_stability", override, status=1)
    assert BAD[override] in output
    assert len(output.strip().splitlines()) == 1
    assert not list(lab.folder.iterdir())


@pytest.mark.parametrize(
    ("preset", "overrides", "message"),
    [
        ("trainable_depth", ["dataset=diabetes"], "dataset.name is 'diabetes', but sweep.study trainable_depth needs a data set"),
        ("trainable_depth", ["network.kind=residual"], "network.kind is 'residual', but sweep.study trainable_depth needs plain"),
        ("signal_propagation", ["network.depth=4"], "network.depth is 4, but sweep.study signal_propagation needs at least 8"),
        ("feature_learning", ["network.gamma=null"], "network.gamma is None, but sweep.study feature_learning needs a number"),
        ("edge_of_stability", ["network.activation=relu"], KINK),
        ("edge_of_stability", ["instruments.sharpness=null"], SHARPNESS),
        ("edge_of_stability", ["optimizer.name=adam"], ADAM),
        ("linear_limit", ["network.depth=2"], "network.depth is 2, but sweep.study linear_limit needs 1, a linear model"),
    ],
)
def test_what_the_others_cannot_use_is_named(composed, preset, overrides, message):
    from experiments.run.config import UserError

    config = parse_config(composed(f"experiment={preset}", *overrides))
    with pytest.raises(UserError, match=re.escape(message)):
        STUDIES[config.sweep.study].check(config)


@pytest.mark.parametrize(("wide", "holds"), [(1e-2, True), (4e-2, False)])
def test_best_rates_are_compared_over_widths_and_depths(observed, wide, holds):
    """Losses are parabolas in log rate, whose minimum is put where the test has it: from 1e-2, of mup by 1, of standard by 4."""
    best = {("mup", 64, 4): wide, ("mup", 32, 8): 1e-2, ("standard", 64, 4): 2.5e-3, ("standard", 32, 8): 2.5e-3}
    runs = []
    for name, width, depth in [*best, ("mup", 32, 4), ("standard", 32, 4)]:
        for rate in (1e-3 * 3.0 ** np.arange(6)).tolist():
            loss = 0.1 * np.exp(0.2 * np.log(rate / best.get((name, width, depth), 1e-2)) ** 2)
            axes = [f"network.{key}={value}" for key, value in (("parametrization", name), ("width", width), ("depth", depth))]
            made = replace(history(loss=(2.0, loss)), steps_an_epoch=1)
            runs.append(observed("transfer", [*axes, f"optimizer.learning_rate={rate!r}"], "trained", made))
    told = verdict("transfer", runs)
    assert told.holds == holds
    assert f"mup, by width 0.01 to {wide:.2g} ({wide / 1e-2:.1f} times); mup, by depth 0.01 to 0.01 (1.0 times)" in told.text
    assert "standard, by width 0.0025 to 0.01 (4.0 times); standard, by depth 0.0025 to 0.01 (4.0 times)" in told.text


@pytest.mark.parametrize(("power", "holds"), [(1.0, True), (0.9, True), (0.6, False)])
def test_exponents_of_gamma_are_compared_with_2_and_2_over_the_depth(observed, power, holds):
    # Depth 2: the best rate goes as gamma^2 up to 0.01, and from 10 on as gamma^power, of which theory has 1.
    best = {0.0001: 1e-8, 0.01: 1e-4, 10.0: 1.0, 1000.0: 100.0**power}
    runs = []
    for gamma, least in best.items():
        for rate in (10.0 ** np.arange(-10, 5)).tolist():
            made = replace(history(loss=(0.4, 0.01 * np.exp(0.02 * np.log(rate / least) ** 2))), steps_an_epoch=1)
            axes = ["network.depth=2", f"network.gamma={gamma}", f"optimizer.learning_rate={rate!r}"]
            runs.append(observed("feature_learning", axes, "trained", made))
    told = verdict("feature_learning", runs)
    assert told.holds == holds
    assert f"depth 2, small gamma 2.00 (2.00); depth 2, large gamma {power:.2f} (1.00)" in told.text


SHORTER = {
    "signal_propagation": ["network.gain=0.5,1.76,3.0", "seed=0"],
    "trainable_depth": ["network.depth=3,10,26", "network.gain=0.5,1.0,1.76,4.0", "seed=0"],
    "he_or_xavier": ["seed=0"],
    "normalization": ["network.width=128", "network.gain=0.5,2.0", "seed=0"],
    "isometry": ["optimizer.learning_rate=0.00316,0.0316"],
    "edges_of_stability": [
        "optimizer={name: nesterov, learning_rate: 0.25},{name: adam, learning_rate: 0.02}",
        "training.epochs=800",
    ],
    "edge_of_stability": ["optimizer.learning_rate=0.4,0.5", "training.epochs=1000"],
    "transfer": [],
    "feature_learning": ["network.depth=2"],
    "catapult": [],
    "warm_up": ["optimizer.warmup=1,256", "optimizer.learning_rate=0.18,0.25,0.35,0.5,0.71,1.0", "seed=0"],
    "noise_scale": ["optimizer.learning_rate=0.0313,0.125,0.25,0.5,1.0", "seed=0"],
    "boundary": ["optimizer.learning_rate=0.125,0.5,2.0,8.0,32.0", "seed=0,1,2"],
    "linear_limit": ["dataset=iris,diabetes,moons", "optimizer.learning_rate=0.461,0.484,0.648,0.681,0.715,1.35,1.41,1.48"],
    "learning_rate_by_depth": ["network.depth=3,8,24", "optimizer.learning_rate=0.01,0.0316,0.1,0.316,1.0", "seed=0,1,2"],
}


@pytest.mark.slow
@pytest.mark.parametrize("preset", STUDIES)
def test_the_preset_draws_and_holds(lab, preset):
    output = lab.run("-m", f"experiment={preset}", *SHORTER[preset])
    (line,) = [line for line in output.splitlines() if line.startswith(f"{preset}: ")]
    begins = {"learning_rate_by_depth": "the largest", "boundary": "does not hold: "}.get(preset, "holds: ")
    assert line.startswith(f"{preset}: {begins}"), line
    (parent,) = lab.runs("sweep")
    assert line in parent.data.tags["mlflow.note.content"]
    assert lab.artifact(parent, f"{preset}.png").stat().st_size > 10_000
