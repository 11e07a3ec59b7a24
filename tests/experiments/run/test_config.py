import pytest
from omegaconf.errors import ConfigAttributeError, ValidationError

from experiments.run.composition import compose_config as resolved
from experiments.run.composition import parse_config
from experiments.run.config import Config, UserError
from experiments.run.naming import differing_keys, run_name, sweep_name

BAD_VALUES = {
    "network.depth=0": "network.depth is 0, it must be a whole number of at least 1",
    "network.depth=-1": "network.depth is -1",
    "network.width=0": "network.width is 0",
    "network.gain=-1": "network.gain is -1.0, it must be finite and at least 0",
    "network.bias_variance=-1": "network.bias_variance is -1.0",
    "network.kind=foo": "network.kind 'foo' is unknown, allowed: plain, residual, normalized, batch_normalized",
    "network.activation=foo": "network.activation 'foo' is unknown, allowed: identity, sigmoid, tanh",
    "network.initializer=foo": "network.initializer 'foo' is unknown, allowed: zeros, normal",
    "network.parametrization=foo": "network.parametrization 'foo' is unknown, allowed: standard, mup",
    "network.gamma=0": "network.gamma is 0.0, it must be finite and above 0",
    "optimizer.name=foo": "optimizer.name 'foo' is unknown, allowed: gradient_descent, momentum",
    "optimizer.schedule=foo": "optimizer.schedule 'foo' is unknown, allowed: constant",
    "optimizer.learning_rate=0": "optimizer.learning_rate is 0.0, it must be finite and above 0",
    "optimizer.learning_rate=-1": "optimizer.learning_rate is -1.0",
    "optimizer.learning_rate=nan": "optimizer.learning_rate is nan",
    "optimizer.momentum=0.5": "gradient_descent has none: it must be null, or optimizer.name one of momentum, nesterov",
    "network.kind=batch_normalized instruments.example_norm=1": "instruments.example_norm is '1', but network.kind "
    "batch_normalized mixes the examples of a batch",
    "network.depth=1 instruments.singular_value=1": "network.depth is 1, but instruments.singular_value is of hidden blocks",
    "network.kind=batch_normalized instruments.singular_value=1": "instruments.singular_value is '1', but network.kind",
    "optimizer.weight_decay=-1": "optimizer.weight_decay is -1.0",
    "optimizer.warmup=-1": "optimizer.warmup is -1.0, it must be finite and at least 0",
    "network.kind=batch_normalized instruments.noise_scale=1": "instruments.noise_scale is '1', but network.kind",
    "training.loss=foo": "training.loss 'foo' is unknown, allowed: softmax_cross_entropy",
    "training.epochs=0": "training.epochs is 0",
    "training.batch_size=0": "training.batch_size is 0",
    "training.evaluations=1": "training.evaluations is 1, it must be a whole number of at least 2",
    "training.loss_bound=0": "training.loss_bound is 0.0",
    "tracking.points=1": "tracking.points is 1",
    "tracking.pictures=some": "tracking.pictures 'some' is unknown, allowed: best, all, none",
    "dataset.test_fraction=0": "dataset.test_fraction is 0.0, it must be finite and above 0 and below 1",
    "dataset.test_fraction=1": "dataset.test_fraction is 1.0",
    "seed=-1": "seed is -1",
    "dtype=float16": "dtype 'float16' is unknown, allowed: float32, float64",
    "+network.foo=1": "network.foo is unknown, allowed: network.depth, network.width",
    "+foo=1": "foo is unknown, allowed: dataset, network",
}


@pytest.mark.parametrize("override", BAD_VALUES)
def test_a_value_no_run_can_have_is_named_with_what_is_allowed(composed, override):
    with pytest.raises(UserError) as error:
        parse_config(composed(*override.split()))
    assert BAD_VALUES[override] in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "override", ["network.depth=2.5", "optimizer.learning_rate=fast", "training.epochs=true", "network.dpth=3"]
)
def test_wrong_types_and_unknown_keys_fail_when_the_config_is_composed(composed, override):
    with pytest.raises(Exception, match=r"(?s)merging|override") as error:
        composed(override)
    assert isinstance(error.value.__cause__, ValidationError | ConfigAttributeError)


def test_the_defaults_are_a_run(composed):
    config = parse_config(composed())
    assert isinstance(config, Config)
    assert (config.dataset.name, config.network.depth, config.dtype) == ("digits", 3, "float32")


def test_what_differs_of_a_data_set_is_its_name_and_what_differs_between_runs_of_one_name():
    def run(name, samples, centers=None):
        return {
            "dataset.name": name,
            "dataset.loader._target_": f"make_{name}",
            "dataset.loader.n_samples": samples,
            **(centers or {}),
        }

    assert differing_keys([run("blobs", 100), run("moons", 200)]) == ["dataset.name"]
    assert differing_keys([run("blobs", 100), run("blobs", 200)]) == ["dataset.loader.n_samples"]
    assert differing_keys([run("blobs", 100), run("moons", 100), run("moons", 200)]) == [
        "dataset.name",
        "dataset.loader.n_samples",
    ]
    # An argument that only one of two runs has.
    assert differing_keys([run("blobs", 100), run("blobs", 100, {"dataset.loader.centers": [3, 4]})]) == [
        "dataset.loader.centers"
    ]
    assert differing_keys([run("blobs", 100)]) == []


def test_a_map_is_composed_as_a_job_is(monkeypatch):
    monkeypatch.delenv("OF_THE_JOB", raising=False)
    said = ["tracking.experiment=${hydra:runtime.choices.dataset} ${oc.env:OF_THE_JOB}", "+hydra.job.env_set.OF_THE_JOB=here"]
    assert resolved("config", [*said, "dataset=wine"]).tracking.experiment == "wine here"


NAMES = {
    # What a run is asked for, and the keys that differ in its sweep -> its name.
    ("network.depth=5", ()): "depth 5, rate 0.1",
    ("network.depth=5 seed=2", ("seed", "network.depth")): "depth 5, seed 2",
    ("optimizer.learning_rate=1e-3", ("optimizer.learning_rate",)): "rate 0.001",
    ("network.initializer=glorot seed=1", ("network.initializer", "seed")): "initializer glorot, seed 1",
    ("optimizer.name=adam dataset=iris", ("dataset.name", "optimizer.name")): "dataset iris, optimizer adam",
    ("seed=3 dataset.seed=4", ("dataset.seed", "seed")): "dataset.seed 4, seed 3",
    ("training.batch_size=null", ("training.batch_size",)): "batch_size None",
    ("network.depth=2 optimizer.block_rates=[0.1,0.2]", ("optimizer.block_rates",)): "block_rates [0.1, 0.2]",
}


@pytest.mark.parametrize(("asked", "keys"), NAMES)
def test_a_run_is_named_by_what_differs(composed, asked, keys):
    assert run_name(parse_config(composed(*asked.split())), keys) == NAMES[asked, keys]


def test_a_sweep_is_named_by_what_was_swept():
    assert sweep_name(["optimizer.learning_rate", "network.depth"], 48) == "depth x rate, 48 runs"
    assert sweep_name(["seed", "network.initializer"], 20) == "seed x initializer, 20 runs"
    assert sweep_name([], 1) == "1 run"


def test_no_name_is_longer_than_a_database_takes(composed):
    long = parse_config(composed("network.depth=200", f"optimizer.block_rates={[0.1] * 200}"))
    assert len(run_name(long, ["optimizer.block_rates"])) == 250
    many = [f"dataset.loader.argument_{number}" for number in range(40)]
    name = sweep_name(many, 1000)
    assert len(name) <= 250
    assert name.endswith("..., 1000 runs")
