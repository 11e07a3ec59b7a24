"""What a map can be asked for, and the pixels that come of it."""

import numpy as np
import pytest

from experiments.run.composition import compose_config, register
from experiments.run.config import UserError
from experiments.run.data import load_task
from experiments.run.grid import MappedConfig, corners, grid, parse_map, pixel_configs, windows
from experiments.run.stack import train_stack
from experiments.run.tile import OUTCOMES, train_tile


@pytest.fixture(scope="module")
def asked():
    """asked(*overrides) -> the checked config of a map"""
    register("base_map", MappedConfig)
    return lambda *overrides: parse_map(compose_config("trainability", overrides))


def test_the_tiles_cover_every_pixel_once(asked):
    made = grid(asked("map.resolution=50", "map.x.resolution=37", "map.tile=16"))
    seen = np.zeros(made.shape, int)
    for place in made.tiles():
        seen[place] += 1
        x, y = made.pixels(place)
        np.testing.assert_array_equal(x.reshape(seen[place].shape), np.broadcast_to(made.x[place[1]], seen[place].shape))
        np.testing.assert_array_equal(y.reshape(seen[place].shape).T, np.broadcast_to(made.y[place[0]], seen[place].T.shape))
    assert made.shape == (50, 37)
    assert (seen == 1).all()


def test_axes_are_log_or_linear_with_both_ends(asked):
    made = grid(asked("map.resolution=10", "map.y.scale=linear", "map.y.lower=1", "map.y.upper=4"))
    np.testing.assert_allclose(made.x, 10.0 ** np.arange(-3, 7), rtol=1e-14)
    np.testing.assert_allclose(made.y, np.linspace(1, 4, 10), rtol=1e-15)


def test_any_two_numbers_of_a_run_can_be_mapped(asked):
    config = asked(
        "trainability=depth_by_rate",
        "map.x.key=network.gain",
        "map.y.key=optimizer.block_rates.2",
        "network.depth=3",
        "map.y.scale=log",
        "map.y.lower=0.1",
    )
    runs = pixel_configs(config, np.array([0.5, 2.0]), np.array([0.25, 4.0]))
    assert [run.network.gain for run in runs] == [0.5, 2.0]
    assert [run.optimizer.block_rates for run in runs] == [[0.1, 0.25, 0.1], [0.1, 4.0, 0.1]]
    assert config.optimizer.block_rates == [0.1, 0.1, 0.1]


def test_whole_numbers_are_rounded(asked):
    config = asked("trainability=depth_by_rate", "map.y.lower=2", "map.y.upper=5", "map.y.resolution=7")
    made = grid(config)
    assert made.y.tolist() == [2, 2, 3, 4, 4, 4, 5]
    assert {type(run.network.depth) for run in pixel_configs(config, made.x[:7], made.y)} == {int}


def test_a_pixel_is_the_run_alone(asked):
    config = asked(
        "trainability=depth_by_rate",
        "map.x.resolution=4",
        "map.y.resolution=3",
        "map.y.upper=6",
        "map.tile=4",
        "map.x.upper=100",
        "training.epochs=2",
        "network.width=8",
    )
    made = grid(config)
    (place,) = made.tiles()
    pixels = train_tile(config, made, place).ravel()
    for pixel, run in zip(pixels, pixel_configs(config, *made.pixels(place)), strict=True):
        (alone,) = train_stack([run], load_task(run))
        assert pixel["outcome"] == OUTCOMES[alone.outcome]
        assert pixel["step"] == alone.history.diverged_step
        loss = alone.final("loss/train")
        assert pixel["measure"] == (loss if np.isfinite(loss) else np.inf)
    assert len(set(pixels["outcome"].tolist())) > 1


def test_block_rates_train_as_one_rate_where_they_are_equal(asked):
    config = asked("trainability=depth_by_rate", "training.epochs=1", "network.depth=3")
    (run,) = corners(config)[:1]
    run.network.depth = 3
    (one,) = train_stack([run], load_task(run))
    run.optimizer.block_rates = [run.optimizer.learning_rate] * 3
    (three,) = train_stack([run], load_task(run))
    assert one.parameters.tobytes() == three.parameters.tobytes()
    run.optimizer.block_rates = [run.optimizer.learning_rate, 0.2, run.optimizer.learning_rate]
    (other,) = train_stack([run], load_task(run))
    assert one.parameters.tobytes() != other.parameters.tobytes()


def test_early_exit_changes_no_pixel(asked):
    for name in ("identity", "relu"):
        config = asked(f"trainability=fractal_{name}", "map.resolution=32")
        made = grid(config)
        (place,) = made.tiles()
        config.map.early_exit = False
        whole = train_tile(config, made, place)
        config.map.early_exit = True
        assert train_tile(config, made, place).tobytes() == whole.tobytes()
        assert len(np.unique(whole["outcome"])) > 1


def test_a_zooms_windows_shrink_around_its_center(asked):
    config = asked(
        "map.zoom.frames=4",
        "map.zoom.factor=10",
        "map.y.scale=linear",
        "map.y.lower=-1",
        "map.y.upper=3",
        "map.y.key=optimizer.block_rates.2",
        "map.y.lower=1",
        "map.y.upper=5",
    )
    frames = list(windows(config, (2.0, 3.0)))
    assert len(frames) == 4
    for number, frame in enumerate(frames[1:], 1):
        x, y = frame.map.x, frame.map.y
        assert np.log10(x.upper / x.lower) == pytest.approx(9 / 10**number)
        assert np.sqrt(x.upper * x.lower) == pytest.approx(2.0)
        assert (y.upper - y.lower, (y.upper + y.lower) / 2) == pytest.approx((4 / 10**number, 3.0))


def test_a_zoom_deeper_than_the_precision_is_one_line(asked):
    config = asked("map.zoom.frames=60", "map.zoom.factor=2")
    with pytest.raises(UserError, match=r"frame \d+ of map.zoom.frames: map.x.lower to map.x.upper is .* cannot tell 256 values"):
        list(windows(config, (2.0, 3.0)))


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["map.resolution=0"], "map.resolution is 0, it must be a whole number from 2 to 4096"),
        (["map.resolution=1"], "map.resolution is 1, it must be a whole number from 2 to 4096"),
        (["map.resolution=4097"], "map.resolution is 4097, it must be a whole number from 2 to 4096"),
        (["map.x.resolution=1"], "map.x.resolution is 1, it must be a whole number from 2 to 4096"),
        (["map.x.resolution=0"], "map.x.resolution is 0, it must be a whole number from 2 to 4096"),
        (["map.x.lower=0"], "map.x.lower is 0, it must be above 0 on a log axis"),
        (["map.y.lower=10", "map.y.upper=1"], "map.y.lower is 10, it must be below map.y.upper, which is 1"),
        (["map.y.lower=10", "map.y.upper=10"], "map.y.lower is 10, it must be below map.y.upper, which is 10"),
        (["map.y.upper=inf"], "map.y.upper is inf, it must be finite"),
        (["map.x.lower=1", "map.x.upper=1.00000000000001"], "in which float64 cannot tell 256 values apart"),
        (["dtype=float32", "map.x.lower=1", "map.x.upper=1.00001"], "in which float32 cannot tell 256 values apart"),
        (["map.x.key=optimizer.rate"], "map.x.key is 'optimizer.rate', it must be a number of a run's config: dataset.seed, "),
        (["map.x.key=tracking.points"], "map.x.key is 'tracking.points', it must be"),
        (["map.x.key=optimizer.block_rates.3"], "map.x.key is 'optimizer.block_rates.3', it must be"),
        (["map.x.key=optimizer.block_rates.2"], "map.x.key and map.y.key are both optimizer.block_rates.2"),
        (["map.x.scale=cubic"], "map.x.scale 'cubic' is unknown, allowed: log, linear"),
        (["map.setup=toy"], "map.setup 'toy' is unknown, allowed: paper, config"),
        (["map.tile=0"], "map.tile is 0, it must be a whole number from 1 to 256"),
        (["map.n_jobs=0"], "map.n_jobs is 0, it must be a whole number of at least 1"),
        (["map.zoom.frames=0"], "map.zoom.frames is 0, it must be a whole number from 1 to 1000"),
        (["map.zoom.factor=1"], "map.zoom.factor is 1.0, it must be finite and above 1"),
        (["map.zoom.center=[1.0]"], "map.zoom.center is [1.0], it must be null or [x, y]"),
        (["trainability=rate_by_momentum", "map.y.upper=1.5"], "optimizer.momentum is 1.5, it must be"),
        (["optimizer.block_rates=[0.1]"], "optimizer.block_rates is [0.1], it must have 2 values, one a block"),
        (["optimizer.block_rates=[0.1,0.0]"], "optimizer.block_rates is [0.1 0. ], it must be finite and above 0"),
    ],
)
def test_what_no_map_can_have_is_one_line(asked, overrides, told):
    with pytest.raises(UserError) as error:
        asked(*overrides)
    assert told in str(error.value)
    assert "\n" not in str(error.value)
