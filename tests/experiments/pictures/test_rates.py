"""The studies of warm-up and of the gradient noise scale, on measurements made up to hold and not to."""

import re
from dataclasses import replace

import numpy as np
import pytest

from experiments.pictures.studies import STUDIES
from experiments.run.composition import parse_config
from experiments.run.config import UserError
from tests.experiments.pictures.test_studies import history, observed, verdict  # noqa: F401


@pytest.mark.parametrize(("longest", "holds"), [(1.6, True), (3.2, True), (0.4, False), (0.2, False)])
def test_the_largest_rate_is_compared_with_that_without_warm_up(observed, longest, holds):  # noqa: F811
    def run(warmup, rate, largest):
        # The first sharpness is 10, the last one 1.05 times the edge.
        made = history(4, sharpness=[[10.0], *[[1.05 * 2 / rate]] * 2])
        made.quantities["sharpness"] = replace(made.quantities["sharpness"], at=np.array([0, 300, 399]))
        axes = [f"optimizer.warmup={warmup}", f"optimizer.learning_rate={rate}"]
        return observed("warm_up", axes, "trained" if rate <= largest else "diverged", made)

    rates = (0.2, 0.4, 0.8, 1.6, 3.2)
    told = verdict("warm_up", [run(1, rate, 0.4) for rate in rates] + [run(256, rate, longest) for rate in rates])
    assert told.holds == holds
    assert f"in units of 1 / lambda_0, 4.0 with 1, {10 * longest:.1f} with 256 updates of warm-up" in told.text
    assert "the sharpness is at most 1.1 times 2 / rate in 2 of 2 of these runs" in told.text


@pytest.mark.parametrize(("scale", "holds"), [(100.0, True), (190.0, True), (210.0, False), (40.0, False)])
def test_updates_are_compared_with_the_noise_scale(observed, scale, holds):  # noqa: F811
    # 10 (1 + 100 / batch size) updates, the logarithm of the loss falling from 1 in a line.
    def run(batch_size, slower):
        updates = slower * 10 * (1 + 100 / batch_size)
        made = history(3, noise_scale=[[scale], [np.nan], [scale]])
        at = np.array([0, 400])
        losses = np.array([1.0, 0.1 ** (400 / updates)])
        made = replace(made, evaluated=at, measures={"loss/train": losses})
        axes = [f"training.batch_size={batch_size}", f"optimizer.learning_rate={slower}"]
        return observed("noise_scale", axes, "trained", made)

    told = verdict("noise_scale", [run(size, slower) for size in (8, 64, 512) for slower in (1.0, 3.0)])
    assert told.holds == holds
    assert f"with B = 100, beyond which returns diminish; the gradient noise scale on the way is {scale:.0f}" in told.text
    assert "fewer than three batch sizes" in verdict("noise_scale", [run(8, 1.0), run(64, 1.0)]).text


@pytest.mark.parametrize(
    ("preset", "override", "message"),
    [
        ("warm_up", "training.batch_size=64", "training.batch_size is 64, but sweep.study warm_up needs null, all examples"),
        ("warm_up", "optimizer.warmup=0", "optimizer.warmup is 0.0, but sweep.study warm_up needs updates, 1 for no warm-up"),
        ("edge_of_stability", "optimizer.warmup=8", "optimizer.warmup is 8.0, but sweep.study edge_of_stability needs 0"),
        ("noise_scale", "training.evaluations=5", "training.evaluations is 5, but sweep.study noise_scale needs more than"),
    ],
)
def test_what_they_cannot_use_is_named(composed, preset, override, message):
    config = parse_config(composed(f"experiment={preset}", override))
    with pytest.raises(UserError, match=re.escape(message)):
        STUDIES[config.sweep.study].check(config)
