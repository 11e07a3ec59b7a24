import itertools
from dataclasses import replace

import numpy as np
import pytest

from blocks import OPTIMIZERS
from experiments.record.metrics import metrics, outcome_tags
from experiments.run.composition import parse_config
from experiments.run.config import UserError
from experiments.run.data import load_task
from experiments.run.grid import AxisConfig, MapConfig, MappedConfig
from experiments.run.job import Result
from experiments.run.paper import DIVERGED, STUCK
from experiments.run.stack import check_size, train_stack
from experiments.run.tile import train_pixels

FEW = ["training.epochs=2", "network.width=16"]


def runs(composed, *overrides):
    return [parse_config(composed(*FEW, *more)) for more in overrides]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("seeds", [[7, 7, 7, 7, 7, 7], [7, 8, 9, 9, 2**100, 1]])
def test_runs_that_differ_in_values_alone_have_the_same_bits_in_a_stack(composed, seeds, optimizer, dtype):
    base = [f"optimizer.name={optimizer}", f"dtype={dtype}", "network.depth=4"]
    values = [
        ["optimizer.learning_rate=0.01"],
        ["optimizer.learning_rate=0.1", "optimizer.weight_decay=0.01"],
        ["optimizer.learning_rate=1e4"],
        ["optimizer.learning_rate=0.1", "network.gain=0.5", "network.initializer=glorot", "network.bias_variance=0.1"],
        ["optimizer.learning_rate=0.1", "training.loss_bound=1.5", "network.parametrization=mup"],
        ["optimizer.learning_rate=0.1", "network.gamma=2"],
    ]
    configs = runs(composed, *([*base, *own, f"seed={seed}"] for own, seed in zip(values, seeds, strict=True)))
    for together, config in zip(train_stack(configs), configs, strict=True):
        alone = train_stack([config])[0]
        assert together.outcome == alone.outcome
        assert together.parameters.tobytes() == alone.parameters.tobytes()
        for name in ("loss", "grad_norm", "grad_norm_b", "diverged_step", "diverged_block"):
            assert getattr(together.history, name).tobytes() == getattr(alone.history, name).tobytes()
        for name, values in alone.history.measures.items():
            assert together.history.measures[name].tobytes() == values.tobytes()


def test_outcomes_are_trained_stuck_and_diverged(composed):
    configs = runs(composed, ["optimizer.learning_rate=0.1"], ["optimizer.learning_rate=1e-6"], ["optimizer.learning_rate=1e6"])
    trained = train_stack(configs)
    assert [run.outcome for run in trained] == ["trained", "stuck", "diverged"]
    assert trained[2].history.diverged_step >= 0
    assert np.isnan(trained[2].final("loss/train"))


def test_a_loss_within_a_tenth_of_the_best_constants_is_stuck(composed):
    linear = ["network.depth=1", "network.initializer=zeros"]
    near, beyond = runs(composed, [*linear, "optimizer.learning_rate=2e-3"], [*linear, "optimizer.learning_rate=3e-3"])
    trained = train_stack([near, beyond])
    # Digits are ten classes of nearly one size.
    shares = [run.final("loss/train") / np.log(10) for run in trained]
    assert 0.9 < shares[0] < 1
    assert 0.8 < shares[1] < 0.9
    assert [run.outcome for run in trained] == ["stuck", "trained"]


@pytest.mark.parametrize("optimizer", ["momentum", "nesterov"])
def test_momentum_is_0_9_where_none_is_asked_for(composed, optimizer):
    base = [f"optimizer.name={optimizer}", "optimizer.learning_rate=0.01"]
    default, same, without = train_stack(runs(composed, base, [*base, "optimizer.momentum=0.9"], [*base, "optimizer.momentum=0"]))
    assert default.parameters.tobytes() == same.parameters.tobytes() != without.parameters.tobytes()


def test_what_the_last_update_led_to_is_an_outcome(composed):
    (config,) = runs(composed, ["training.epochs=1", "training.batch_size=null", "optimizer.learning_rate=1e30"])
    (run,) = train_stack([config])
    assert (run.outcome, int(run.history.diverged_step)) == ("diverged", 1)
    assert str(Result.from_trained(run)) == "diverged: final training loss inf"
    tags = outcome_tags(run)
    assert (tags["outcome"], tags["diverged_step"]) == ("diverged", "1")
    assert not [metric.key for metric in metrics(run, 20, None) if metric.key.startswith("final/")]
    # A map's pixel.
    mapped = {"network": replace(config.network, depth=2), "training": config.training, "dataset": config.dataset}
    axis = {"lower": 1e-3, "upper": 1e30}
    of_map = MapConfig(
        setup="config",
        x=AxisConfig(key="optimizer.learning_rate", **axis),
        y=AxisConfig(key="network.gain", **axis),
    )
    pixels = train_pixels(MappedConfig(**mapped, map=of_map), np.array([1e-3, 1e30]), np.array([1.0, 1.0]))
    assert pixels["outcome"].tolist() == [STUCK, DIVERGED]
    assert pixels["step"].tolist() == [-1, 1]


def test_a_loss_above_its_bound_after_the_last_update(composed):
    # The bound lies between the loss before it, and that behind it.
    base = ["training.epochs=1", "training.batch_size=null", "optimizer.learning_rate=30", "dtype=float64"]
    (free,) = train_stack(runs(composed, base))
    before, after = free.history.measures["loss/train"]
    assert before < after < np.inf
    bounded, stuck = (train_stack(runs(composed, [*base, f"training.loss_bound={bound}"]))[0] for bound in (after * 0.99, after))
    assert (bounded.outcome, stuck.outcome) == ("diverged", "stuck")
    assert bounded.history.measures["loss/train"][-1] == after
    assert np.isnan(bounded.final("loss/train"))


def test_the_norm_of_all_blocks_and_why_a_sharpness_is_missing(composed):
    (run,) = train_stack(runs(composed, ["dtype=float64", "instruments.sharpness=20", "training.epochs=1"]))
    norms = run.history.grad_norm
    norms *= 1e300 / norms.max()
    run.history.grad_norm_b[...] = 0
    points = {metric.step: metric.value for metric in metrics(run, 20, None) if metric.key == "grad_norm/all"}
    for step, value in points.items():
        assert value == pytest.approx(1e300 * np.linalg.norm(norms[step] / 1e300), rel=1e-12)
    assert "sharpness_missing" not in outcome_tags(run)
    run.history.quantities["sharpness"].reasons[1] = "not within 1% after 200 products of H"
    assert outcome_tags(run)["sharpness_missing"] == "step 20: not within 1% after 200 products of H"


def test_batch_size_null_is_the_full_batch_in_the_datas_order(composed):
    (run,) = train_stack(runs(composed, ["training.batch_size=null", "training.epochs=3"]))
    assert run.history.loss.shape == (3,)
    assert run.history.batch_sizes.tolist() == [1437] * 3


def test_the_seed_draws_weights_and_order_and_the_split_is_another_seeds(composed):
    first, again, other = (
        train_stack(runs(composed, []))[0],
        train_stack(runs(composed, []))[0],
        train_stack(runs(composed, ["seed=1"]))[0],
    )
    assert first.history.loss.tobytes() == again.history.loss.tobytes()
    assert first.history.loss[0] != other.history.loss[0]


def test_a_regression_is_scored_by_r2_as_scikit_learn_does(composed):
    from sklearn.metrics import r2_score

    from blocks import Network
    from experiments.run.data import load_dataset

    (run,) = train_stack(runs(composed, ["dataset=diabetes", "network.depth=2", "dtype=float64"]))
    dataset = load_dataset(run.config.dataset)
    network = Network([10, 16, 1], "relu", run.parameters)
    predicted = network.forward(dataset.x_validation)[0]
    expected = r2_score(dataset.y_validation.ravel(), predicted.ravel())
    # r2 over the whole set comes from a loss averaged over batches.
    assert run.final("r2/validation") == pytest.approx(expected, rel=1e-10)


TOO_LARGE = ["network.width=1000000000", "network.depth=1000000000", "network.width=1000000", "training.epochs=1000000000000"]


@pytest.mark.parametrize("override", [*TOO_LARGE, f"network.depth={10**30}", f"network.width={10**30}"])
def test_a_network_that_no_memory_takes_is_refused_before_it_is_made(composed, override):
    config = parse_config(composed(override))
    key, _, value = override.partition("=")
    with pytest.raises(UserError, match=rf"{key} (is )?{value}.*, which does not fit: it takes \S+ GiB of memory") as refused:
        check_size(config, load_task(config))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("depth", [1, 2, 3, 9])
def test_the_parameters_of_a_network_are_counted_as_it_has_them(composed, depth):
    overrides = ["dataset=iris", f"network.depth={depth}", "network.width=7"]
    sizes = [4, *[7] * (depth - 1), 3]
    count = sum(n * (before + 1) for before, n in itertools.pairwise(sizes))
    config = parse_config(composed(*overrides, f"instruments.eigenvalues={count}"))
    check_size(config, load_task(config))
    more = parse_config(composed(*overrides, f"instruments.eigenvalues={count + 1}"))
    with pytest.raises(UserError, match=f"it must be 1 to {count}, the parameters"):
        check_size(more, load_task(more))
