"""Which jobs a command spans: those of the presets' files, and of what was typed."""

import itertools
from pathlib import Path

import pytest
import yaml
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from hydra_plugins.depth_laboratory._axes import span
from hydra_plugins.depth_laboratory._composer import Composer

from experiments.run.composition import register
from experiments.train import CONF

DEFAULT = "depth_by_learning_rate"


@pytest.fixture(scope="module")
def jobs():
    """jobs(*overrides) -> a {key: value} for every job of `-m overrides`."""
    register()
    with initialize_config_dir(CONF, version_base="1.3"):
        hydra = GlobalHydra.instance().hydra

        def spanned(*overrides: str) -> list[dict[str, str]]:
            master = hydra.compose_config("config", list(overrides), run_mode=RunMode.MULTIRUN)
            composer = Composer(hydra.config_loader, master)
            typed = composer.parser.parse_overrides([each for each in overrides if not each.startswith(("hydra.", "+hydra."))])
            params = master.hydra.sweeper.params or {}
            return [dict(each.split("=", 1) for each in job) for job in span(composer, params, typed)]

        yield spanned


def product(preset, **more):
    """What the preset's file says, and more: {key: values}."""
    params = yaml.safe_load((Path(CONF) / "experiment" / f"{preset}.yaml").read_text())["hydra"]["sweeper"]["params"]
    axes = {key: values.split(",") for key, values in params.items()} | {"experiment": [preset]} | more
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


@pytest.mark.parametrize("swept", ["kinds,vanishing_tanh", "vanishing_tanh,batch_size,kinds", "glob(catap*)", "kinds,kinds"])
def test_each_preset_spans_its_own_axes_after_the_one_before(jobs, swept):
    presets = {"glob(catap*)": ["catapult"]}.get(swept, swept.split(","))
    assert jobs(f"experiment={swept}") == [job for preset in presets for job in product(preset)]


def test_what_is_typed_takes_the_axis_place_in_every_preset(jobs):
    spanned = jobs("experiment=kinds,vanishing_tanh", "network.depth=2,7", "seed=0,1")
    more = {"network.depth": ["2", "7"], "seed": ["0", "1"]}

    def as_set(jobs):
        return {frozenset(job.items()) for job in jobs}

    assert len(spanned) == 2 * 2 * (3 * 8 + 2 * 3)
    assert as_set(spanned) == as_set(product("kinds", **more) + product("vanishing_tanh", **more))


GIVE_WAY = {
    # What is typed -> the keys of the preset's axes that stay: an axis replaces the default's, a value takes its key's place.
    "network={depth:2,width:8},{depth:3,width:4}": [],
    "++network.depth=2,3": [],
    "++network={depth:4}": ["optimizer.learning_rate"],
    "dataset={seed:1},{seed:2}": [],
    "dataset=iris,wine": [],
    "dataset=iris": ["network.depth", "optimizer.learning_rate"],
    "seed=range(3)": [],
    "network.width=8": ["network.depth", "optimizer.learning_rate"],
    "+hydra.sweeper.params.seed='0,1'": ["seed", "network.depth", "optimizer.learning_rate"],
    "+hydra.sweeper.params.seed='0,1' network.width=8,16": ["seed"],
    "experiment=batch_size": ["training.batch_size", "optimizer.learning_rate"],
    "experiment=batch_size seed=0,1": ["training.batch_size", "optimizer.learning_rate"],
    f"experiment={DEFAULT} seed=0,1": ["network.depth", "optimizer.learning_rate"],
    f"experiment={DEFAULT} network.depth=2,3": ["optimizer.learning_rate"],
    "~experiment": [],
    "~experiment seed=0,1": [],
}


@pytest.mark.parametrize("typed", GIVE_WAY)
def test_axes_of_a_preset_give_way_to_what_is_typed_for_their_key_above_or_below_it(jobs, typed):
    own = {each.partition("=")[0] for each in typed.split()}
    for job in jobs(*typed.split()):
        assert set(job) - own == set(GIVE_WAY[typed])


def test_axes_that_are_typed_are_all_that_is_swept(jobs):
    spanned = jobs("network.depth=5,17", "seed=0,1,2", "network.width=8")
    assert spanned == [
        {"network.depth": depth, "seed": seed, "network.width": "8"} for depth in ("5", "17") for seed in ("0", "1", "2")
    ]


def test_a_preset_of_a_search_path_has_its_axes_too(jobs, tmp_path):
    folder = tmp_path / "experiment"
    folder.mkdir()
    for name, values in (("mine", "0,1"), ("yours", "2")):
        (folder / f"{name}.yaml").write_text(f"# @package _global_\nhydra:\n  sweeper:\n    params:\n      seed: {values!r}\n")
    spanned = jobs(f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine,yours")
    assert [job["seed"] for job in spanned] == ["0", "1", "2"]


def test_values_that_are_shuffled_are_drawn_once(jobs):
    seeds = [job["seed"] for job in jobs("~experiment", "seed=shuffle(range(50))")]
    assert sorted(map(int, seeds)) == list(range(50))
