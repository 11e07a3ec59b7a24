"""What a search draws from, and how it is drawn."""

import math

import numpy as np
import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from hydra_plugins.depth_laboratory._composer import Composer
from hydra_plugins.depth_laboratory._space import Axis, create_space

from experiments.run.composition import register
from experiments.train import CONF

LOG = "optimizer.learning_rate=tag(log,interval(1e-3,1))"
SHARES = np.linspace(0, 1, 2001)[:-1]


@pytest.fixture(scope="module")
def space():
    """space(*overrides) -> what a search of `-m overrides` draws from."""
    register()
    with initialize_config_dir(CONF, version_base="1.3"):
        hydra = GlobalHydra.instance().hydra

        def made(*typed: str):
            master = hydra.compose_config("config", ["hydra/sweeper=random", *typed], run_mode=RunMode.MULTIRUN)
            composer = Composer(hydra.config_loader, master)
            return create_space(composer, master.hydra.sweeper.params, composer.parser.parse_overrides(list(typed)))

        yield made


def test_hydra_s_own_words_are_axes(space):
    found = space(
        LOG,
        "network.depth=int(interval(2,5))",
        "network.width=range(8,17,4)",
        "network.activation=relu,tanh",
        "network.kind=choice(plain,residual)",
        "dataset=glob(i*)",
        "network.gain=interval(0.5,2)",
        "seed=3",
    )
    assert found.fixed_overrides == ("seed=3",)
    assert found.axes == (
        Axis("optimizer.learning_rate", low=1e-3, high=1.0, log=True),
        Axis("network.depth", low=2, high=5, is_integer=True),
        Axis("network.width", ("8", "12", "16")),
        Axis("network.activation", ("relu", "tanh")),
        Axis("network.kind", ("plain", "residual")),
        Axis("dataset", ("iris",)),
        Axis("network.gain", low=0.5, high=2.0),
    )


def test_with_nothing_typed_the_preset_s_grid_is_drawn_from(space):
    assert [axis.key for axis in space().axes] == ["network.depth", "optimizer.learning_rate"]
    assert [axis.key for axis in space("seed=0,1").axes] == ["seed"]


def test_values_are_spread_evenly_over_an_axis():
    log = np.log10([float(Axis("k", low=1e-3, high=1, log=True).value_at(share)) for share in SHARES])
    np.testing.assert_allclose(log, -3 + 3 * SHARES, atol=1e-5)
    even = [float(Axis("k", low=-1, high=3).value_at(share)) for share in SHARES]
    np.testing.assert_allclose(even, -1 + 4 * SHARES, atol=1e-4)
    integers = [Axis("k", low=2, high=5, is_integer=True).value_at(share) for share in SHARES]
    assert {value: integers.count(value) for value in integers} == dict.fromkeys("2345", 500)
    values = [Axis("k", ("a", "b", "c", "d")).value_at(share) for share in SHARES]
    assert {value: values.count(value) for value in values} == dict.fromkeys("abcd", 500)
    # Depth 1 is as frequent as 2 and 3 together: log 2 - log 1 = log 4 - log 2.
    doubled = [Axis("k", low=1, high=3, log=True, is_integer=True).value_at(share) for share in SHARES]
    assert doubled.count("1") == pytest.approx(doubled.count("2") + doubled.count("3"), abs=2)
    inside = [float(Axis("k", low=1 / 3, high=2 / 3).value_at(share)) for share in (0.0, math.nextafter(1, 0))]
    assert inside == [1 / 3, 2 / 3]


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["optimizer.learning_rate=interval(1,0.1)"], "must be an interval from a smaller number to a larger one"),
        (["optimizer.learning_rate=interval(1,1)"], "must be an interval from a smaller number to a larger one"),
        (["optimizer.learning_rate=tag(log,interval(0,1))"], "begins at 0: an interval with the tag log must begin above 0"),
        (["optimizer.learning_rate=tag(lgo,interval(1,2))"], "has the tag 'lgo', allowed: log, int"),
        (["network.depth=tag(int,interval(1.5,3))"], "is of whole numbers, its ends must be, too"),
        (["seed=interval(0,9)"], r"seed=interval\(0,9\) has values that are not whole.*: seed=int\(interval\(0"),
        (["training.batch_size=tag(log,interval(8,64))"], r"must be: training.batch_size=int\(tag\(log,interval\(8"),
        (["experiment=kinds,catapult"], "is of several presets, of which a search has one"),
        (["~experiment", "seed=1"], "there is nothing to search"),
        (["network.depth=range(3,3)", LOG], "has no value"),
    ],
)
def test_what_cannot_be_drawn_from_is_one_line(space, typed, said):
    with pytest.raises(HydraException, match=said) as raised:
        space(*typed)
    assert len(str(raised.value).splitlines()) == 1
