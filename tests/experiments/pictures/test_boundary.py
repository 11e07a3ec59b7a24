"""The study of the largest rate that trains, on boundaries made up to fall as predicted and not to."""

import re
from dataclasses import replace

import numpy as np
import pytest

from experiments.pictures.studies import STUDIES, boundary
from experiments.pictures.studies.study import Observed
from experiments.run.composition import parse_config
from experiments.run.config import UserError

RATES = (2.0 ** np.arange(-9, 3)).tolist()


@pytest.fixture(scope="module")
def config(composed):
    return parse_config(composed("experiment=boundary", "dataset=iris", "network.depth=2"))


def cell(config, kind, depth, width, seed, largest):
    """Its runs, of which those up to the largest rate have trained."""
    network = replace(config.network, kind=kind, depth=depth, width=width)
    return [
        Observed(
            replace(config, network=network, seed=seed, optimizer=replace(config.optimizer, learning_rate=rate)),
            "trained" if rate <= largest else "diverged",
            None,
        )
        for rate in RATES
    ]


def runs(config, kind, powers, width_power=0):
    """2^(1/4) L^-power n^width_power of depths 2 and 8, widths 2 and 4; a seed a power."""
    return [
        run
        for seed, power in enumerate(powers)
        for depth in (2, 8)
        for width in (2, 4)
        for run in cell(config, kind, depth, width, seed, 2**0.25 * depth**-power * width**width_power)
    ]


@pytest.fixture
def untrained(monkeypatch):
    monkeypatch.setattr(boundary, "_flipped", lambda runs: (1, 8))


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize(("residual", "holds"), [((0, 0.5, 0), True), ((2, 2.5, 2), False)])
def test_exponents_their_intervals_and_the_prediction(config, residual, holds):
    # Rates are powers of 2, and 8^-power is 4 times 2^-power at power 1. s of 1, 1.5, 2 is 0.5, t(0.975, 2) = 4.3027.
    figure, told = boundary.boundary([*runs(config, "plain", (1, 1, 1), -1), *runs(config, "residual", residual)])
    assert told.holds == holds
    assert "plain L^(-1.00 +- 0.00) n^(-1.00 +- 0.00); residual" in told.text
    assert "(95 %, 3 seeds); of 16 runs beside this boundary 2 (12.5%) flip" in told.text
    assert len(figure.axes) == 2


def test_the_interval_is_students(config):
    # 1, 1.5, 2 and one that is missing: t(0.975, 2) = 4.3027, s = 0.5.
    mean, half = boundary._interval(np.array([[1.0], [1.5], [np.nan], [2.0]]))
    assert mean == pytest.approx([1.5])
    assert half == pytest.approx([4.3027 * 0.5 / np.sqrt(3)], rel=1e-4)


@pytest.mark.usefixtures("untrained")
def test_boundaries_beyond_the_rates_are_left_out(config):
    everything = [*runs(config, "plain", (1, 1)), *cell(config, "plain", 16, 4, 0, 0.0), *cell(config, "plain", 16, 2, 0, 9.0)]
    told = boundary.boundary(everything)[1]
    # Of depth 16 nobody has seed 1.
    assert "plain L^(-1.00 +- 0.00) n^(0.00 +- 0.00)" in told.text
    assert "warning: 4 boundaries are not between two of the rates and are left out" in told.text
    assert told.holds is None


@pytest.mark.parametrize(("largest", "flipped"), [(0.5, 1), (2.0**-9, 0)])
def test_what_float64_flips(config, largest, flipped):
    """Networks that learn iris at a rate of 0.5 and at none of 1e6, whatever the precision."""
    learns = replace(config, training=replace(config.training, epochs=20))
    beside = [cell(learns, "plain", 2, 8, 0, largest)[k] for k in (RATES.index(0.25), RATES.index(0.5))]
    beside[1] = replace(
        beside[1], config=replace(beside[1].config, optimizer=replace(beside[1].config.optimizer, learning_rate=1e6))
    )
    outcomes = ("trained", "trained") if flipped else ("trained", "diverged")
    beside = [replace(run, outcome=outcome) for run, outcome in zip(beside, outcomes, strict=True)]
    assert boundary._flipped(beside) == (flipped, 1 if flipped else 2)


def test_what_it_cannot_use_is_named(composed):
    config = parse_config(composed("experiment=boundary", "network.depth=2", "optimizer.block_rates=[0.1,0.2]"))
    with pytest.raises(UserError, match=re.escape("but sweep.study boundary needs null, one rate")):
        STUDIES["boundary"].needs(config)
