"""What a sweep asks and the command that runs it again: for every preset."""

import itertools
import shlex
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from experiments.page.question import find_question, train_command
from experiments.run.composition import CONF, parse_config
from experiments.run.naming import flatten

PRESETS = sorted(file.stem for file in Path(CONF, "experiment").glob("*.yaml"))


def jobs(composed, *typed_words, most=None):
    """The configs of what is typed after `-m`: of every axis at most so many values."""
    words = OverridesParser.create().parse_overrides(list(typed_words))
    axes = [
        list(word.sweep_string_iterator())[:most] if word.is_sweep_override() else [word.get_value_element_as_str()]
        for word in words
    ]
    names = [word.get_key_element() for word in words]
    return [
        parse_config(
            composed(*(name if name.startswith("~") else f"{name}={value}" for name, value in zip(names, values, strict=True)))
        )
        for values in itertools.product(*axes)
    ]


def preset(composed, name, most=2):
    """Of a preset's axes the first values."""
    params = OmegaConf.load(Path(CONF, "experiment", f"{name}.yaml")).hydra.sweeper.params
    return jobs(composed, f"experiment={name}", *(f"{key}={values}" for key, values in params.items()), most=most)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_s_own_runs_ask_its_question_and_are_typed_again(composed, name):
    configs = preset(composed, name)
    line = Path(CONF, "experiment", f"{name}.yaml").read_text().splitlines()[1]
    # It is a page's heading.
    assert f"# {find_question(configs)}" == line
    assert line[-1] in ".?"
    python, m, module, many, *words = shlex.split(train_command(configs))
    assert (python, m, module, many) == ("python", "-m", "experiments.train", "-m")
    again = jobs(composed, *words)
    assert sorted(str(flatten(config)) for config in again) == sorted(str(flatten(config)) for config in configs)


@pytest.mark.parametrize(
    ("name", "keys"), [("isometry", ["network", "network.initializer"]), ("edges_of_stability", ["optimizer"])]
)
def test_values_that_are_swept_together_are_typed_together(composed, name, keys):
    params = OmegaConf.load(Path(CONF, "experiment", f"{name}.yaml")).hydra.sweeper.params
    configs = jobs(composed, f"experiment={name}", *(f"{key}={params[key]}" for key in keys))
    words = shlex.split(train_command(configs))[5:]
    assert [word.partition("=")[0] for word in words if "," in word] == keys
    again = jobs(composed, *words)
    assert sorted(str(flatten(config)) for config in again) == sorted(str(flatten(config)) for config in configs)


def test_values_that_no_preset_has_ask_nothing(composed):
    assert find_question(jobs(composed, "~experiment", "network.depth=2,4", "optimizer.learning_rate=0.003,0.19")) == ""
    assert (
        find_question(jobs(composed, "~experiment", "network.depth=2,3", "optimizer.learning_rate=0.003,0.19", "seed=7,8")) != ""
    )


def test_what_is_no_full_grid_has_no_command(composed):
    configs = jobs(composed, "~experiment", "network.depth=2,3", "optimizer.learning_rate=0.1,0.2")
    assert train_command(configs) != ""
    assert train_command(configs[:3]) == ""
    assert train_command(configs[:1]) == "python -m experiments.train dataset=digits network.depth=2"


def test_a_loader_with_arguments_of_its_own_has_no_command(composed):
    assert train_command(jobs(composed, "dataset=moons", "seed=1,2")) != ""
    assert train_command(jobs(composed, "dataset=moons", "dataset.loader.noise=0.1", "seed=1,2")) == ""


def test_lists_and_nothing_are_typed_as_hydra_reads_them(composed):
    words = ["~experiment", "network.depth=2", "optimizer.block_rates=[0.1, 0.2],[0.3, 0.4]", "training.batch_size=null"]
    configs = jobs(composed, *words)
    again = jobs(composed, *shlex.split(train_command(configs))[4:])
    assert [flatten(config) for config in again] == [flatten(config) for config in configs]
