"""The composer's configs are Hydra's own, for random sweeps over this project's config."""

import os
import pickle
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException, HydraException
from hydra.types import RunMode
from hydra_plugins.depth_laboratory._composer import Composer
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from experiments.run.composition import register
from experiments.train import CONF

# key -> values; a job takes one value of every key that was drawn.
AXES = {
    "network.depth": ["2", "33", "${network.width}"],
    "network.width": ["8", "${oc.env:NOT_SET,16}"],
    "network.activation": ["relu", "'tanh'"],
    "optimizer.learning_rate": ["0.1", "1e-3", "1", "inf"],
    "optimizer.momentum": ["null", "0.9"],
    "training.batch_size": ["null", "7"],
    "training.loss": ["null", "softmax_cross_entropy"],
    "tracking.experiment": ["a", '"a b, c"', "x\\=y", "${dataset.name}"],
    "tracking.enabled": ["true", "false"],
    "dataset": ["iris", "moons"],
    "experiment": ["he_or_xavier", "vanishing_tanh"],
    "dataset.seed": ["0", "3"],
    "+dataset.loader.shuffle": ["true", "false"],
    "++dataset.loader.n_samples": ["100", "200"],
    "dataset.loader": ["{_target_:sklearn.datasets.load_wine}", "{_target_:sklearn.datasets.load_iris}"],
    "~optimizer.momentum": ["", None],
    "~experiment": ["null", None],
    "network": ["{depth:4,width:8}", "{depth:5}"],
    "optimizer.block_rates": ["[0.1,0.2]", "[1]"],
    "hydra.job.name": ["one", "two"],
    "hydra.sweep.subdir": ["${hydra.job.num}", "${hydra.job.override_dirname}"],
}


@pytest.fixture(scope="module")
def hydra():
    register()
    with initialize_config_dir(CONF, version_base="1.3"):
        yield GlobalHydra.instance().hydra


def outcome(compose):
    try:
        config = compose()
    except HydraException as error:
        return type(error)
    types = {key: OmegaConf.get_type(config, key) for key in config}
    flags = [config._get_flag("struct"), config.hydra._get_flag("readonly")]
    own = OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])
    return OmegaConf.to_container(config, resolve=False), OmegaConf.to_container(own, resolve=True), types, flags


@settings(max_examples=5, deadline=None)
@given(data=st.data())
def test_every_job_of_a_random_sweep_is_composed_as_by_hydra(hydra, data):
    keys = data.draw(st.lists(st.sampled_from(list(AXES)), max_size=5, unique=True))
    master = hydra.compose_config("config", [], run_mode=RunMode.MULTIRUN)
    composer = Composer(hydra.config_loader, master)
    for _ in range(3):
        values = {key: data.draw(st.sampled_from(AXES[key])) for key in keys}
        job = [key if value is None or key.startswith("~") else f"{key}={value}" for key, value in values.items()]
        assert outcome(lambda job=job: composer.compose(job)) == outcome(
            lambda job=job: hydra.config_loader.load_sweep_config(master, job)
        )


def test_values_alone_are_composed_by_hydra_once(hydra, monkeypatch):
    master = hydra.compose_config("config", [], run_mode=RunMode.MULTIRUN)
    composer, calls = Composer(hydra.config_loader, master), []
    by_hydra = hydra.config_loader.load_sweep_config
    monkeypatch.setattr(hydra.config_loader, "load_sweep_config", lambda *a: calls.append(a) or by_hydra(*a))
    depths = [composer.compose([f"network.depth={depth}", "seed=1"]).network.depth for depth in range(2, 30)]
    assert depths == list(range(2, 30))
    assert len(calls) == 1
    composer.compose(["network.depth=2", "dataset=iris"])
    assert len(calls) == 2


def test_an_error_is_hydras_own(hydra):
    composer = Composer(hydra.config_loader, hydra.compose_config("config", [], run_mode=RunMode.MULTIRUN))
    composer.compose(["network.depth=2"])
    with pytest.raises(ConfigCompositionException, match=r"Error merging override network\.depth=two"):
        composer.compose(["network.depth=two"])
    with pytest.raises(ConfigCompositionException, match=r"Could not override 'network\.dpth'"):
        composer.compose(["network.dpth=2"])


def tasks(hydra, *typed, jobs):
    master = hydra.compose_config("config", list(typed), run_mode=RunMode.MULTIRUN)
    composer = Composer(hydra.config_loader, master)
    return master, [(OmegaConf.to_container(task, resolve=True), folder) for task, folder in composer.tasks(jobs)]


def test_a_jobs_resolvers_see_what_they_see_in_the_job(hydra, monkeypatch):
    monkeypatch.delenv("OF_THE_JOB", raising=False)
    key = "tracking.experiment"
    resolvers = {
        "hydra:runtime.choices.dataset": ["iris", "wine"],
        "hydra:job.num": ["0", "1"],
        "oc.env:OF_THE_JOB": ["iris0", "wine1"],
        "hydra:runtime.output_dir": [f"{Path.cwd()}/m/iris-0", f"{Path.cwd()}/m/wine-1"],
        "hydra:job.override_dirname": ["dataset=iris", "dataset=wine"],
    }
    typed = (
        "+hydra.job.env_set.OF_THE_JOB='${dataset.name}${hydra:job.num}'",
        "hydra.sweep.dir=m",
        "hydra.sweep.subdir='${hydra:runtime.choices.dataset}-${hydra.job.num}'",
        "hydra.job.config.override_dirname.exclude_keys=[tracking.experiment]",
    )
    for resolver, expected in resolvers.items():
        jobs = [[f"dataset={name}", f"{key}=${{{resolver}}}"] for name in ("iris", "wine")]
        _, found = tasks(hydra, *typed, jobs=jobs)
        assert [config["tracking"]["experiment"] for config, _ in found] == expected
        assert [folder for _, folder in found] == resolvers["hydra:runtime.output_dir"]
    assert "OF_THE_JOB" not in os.environ
    assert not HydraConfig.initialized()


def test_a_time_of_day_is_one_for_a_sweep_and_for_the_launcher_that_composes_its_jobs_again(hydra):
    job = ["tracking.experiment=${now:%f}"]
    master, found = tasks(hydra, jobs=[[*job, "seed=1"], [*job, "seed=2"], [*job, "dataset=iris"]])
    times = {config["tracking"]["experiment"] for config, _ in found}
    times.add(hydra.config_loader.load_sweep_config(pickle.loads(pickle.dumps(master)), job).tracking.experiment)
    assert len(times) == 1
