"""The schema of a map's config, and its grid: two keys of a run's config vary along x and y, and every pixel is a network."""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

import numpy as np
from omegaconf import MISSING, DictConfig, OmegaConf

from blocks.arrays import Array, check_number, choice, whole_number
from experiments.run.checks import check
from experiments.run.composition import parse_as
from experiments.run.config import Config, UserError

SCALES = ("log", "linear")
SETUPS = ("paper", "config")
MAX_PIXELS, MAX_FRAMES = 4096, 1000
BLOCK_RATES = "optimizer.block_rates."


@dataclass
class AxisConfig:
    """One axis of the map.

    key: the key of a run's config that this axis varies, such as optimizer.learning_rate; it must be a number.
        `optimizer.block_rates.1` is the learning rate of block 1.
    lower: the value of the first pixel, above 0 on a log axis. upper: the value of the last pixel, above lower.
    scale: spacing of the pixels' values, log or linear. Values of a whole-number key are rounded.
    resolution: number of pixels along this axis, 2 to 4096; null is map.resolution.
    """

    key: str = MISSING
    lower: float = MISSING
    upper: float = MISSING
    scale: str = "log"
    resolution: int | None = None


@dataclass
class ZoomConfig:
    """A series of maps, in which each map shows a smaller window of the map before it.

    frames: number of maps, 1 to 1000; 1 is the map alone.
    factor: factor by which each map's sides are shorter than the last one's, above 1; on a log axis, sides in decades.
    center: (x, y) on which all windows are centred; null is the pixel on the first map's boundary that is nearest its middle.
    """

    frames: int = 1
    factor: float = 2.0
    center: list[float] | None = None


@dataclass
class MapConfig:
    """A map of which networks train, over two keys of the config.

    setup: `config` trains the run's config. `paper` trains the networks of Sohl-Dickstein 2024, see `run.paper`, which read only
        network.activation, network.width, training.epochs, optimizer.block_rates, seed and dtype.
    file: .npz file with W0, W1, X and Y of the paper's networks; null draws them from seed.
    resolution: number of pixels along each side, 2 to 4096.
    tile: number of pixels along each side of a tile, 1 to 256; a tile is trained and stored as one piece.
    early_exit: true stops a network of the paper as soon as its later losses cannot be finite; no label depends on it.
    floor: true trains the pixels on the boundary again, with values that differ by one rounding, and in the other precision.
    n_jobs: number of tiles that are trained at the same time, at least 1; -1 is one for each core.
    backend: where the tiles are trained: loky uses processes of this machine, ray and dask use a cluster, see `run.engines`. The
        workers of a cluster must find `file` under the same name.
    address: address of the cluster; null starts one on this machine, unless RAY_ADDRESS or DASK_SCHEDULER_ADDRESS names one.
    folder: folder in which tiles are stored; null is outputs/trainability/ and the map's fingerprint.
    """

    x: AxisConfig = field(default_factory=AxisConfig)
    y: AxisConfig = field(default_factory=AxisConfig)
    setup: str = "config"
    file: str | None = None
    resolution: int = 256
    tile: int = 64
    early_exit: bool = True
    floor: bool = True
    zoom: ZoomConfig = field(default_factory=ZoomConfig)
    n_jobs: int = -1
    backend: str = "loky"
    address: str | None = None
    folder: str | None = None


@dataclass
class MappedConfig(Config):
    """A run's config, and the map over two of its keys."""

    map: MapConfig = field(default_factory=MapConfig)


@dataclass(frozen=True, eq=False)
class Grid:
    """The pixels of one map.

    x: (columns,) the values of the key along x. y: (rows,) the values of the key along y, from the lowest.
    tile: number of pixels along each side of a tile.
    """

    x: Array
    y: Array
    tile: int

    @property
    def shape(self) -> tuple[int, int]:
        """The number of (rows, columns)."""
        return len(self.y), len(self.x)

    def tiles(self) -> list[tuple[slice, slice]]:
        """Return the slices (rows, columns) of every tile, row by row."""
        rows, columns = (
            [slice(start, min(start + self.tile, count)) for start in range(0, count, self.tile)] for count in self.shape
        )
        return [(down, across) for down in rows for across in columns]

    def pixels(self, tile: tuple[slice, slice]) -> tuple[Array, Array]:
        """Return x and y of a tile's pixels, each (pixels,), row by row. tile: its slices (rows, columns)."""
        x, y = np.meshgrid(self.x[tile[1]], self.y[tile[0]])
        return x.ravel(), y.ravel()


def grid(config: MappedConfig) -> Grid:
    """Return the grid of a map's config."""
    x, y = (axis_values(axis, _resolution(config, axis), key_type(config, axis.key)) for axis in axes(config).values())
    return Grid(x, y, config.map.tile)


def axes(config: MappedConfig) -> dict[str, AxisConfig]:
    """Return both axes by the key of their config."""
    return {"map.x": config.map.x, "map.y": config.map.y}


def _resolution(config: MappedConfig, axis: AxisConfig) -> int:
    return config.map.resolution if axis.resolution is None else axis.resolution


def axis_values(axis: AxisConfig, count: int, kind: type) -> Array:
    """Return `count` values from lower to upper. Values of an int key are rounded, so that neighbours may be equal."""
    spaced = np.geomspace if axis.scale == "log" else np.linspace
    values = spaced(axis.lower, axis.upper, count)
    return np.rint(values) if kind is int else values


def key_type(config: Config, key: str) -> type:
    """Return the type, int or float, of a key that a map can vary."""
    return dict(_numbers(config))[key]


def _numbers(config: Any, prefix: str = "") -> Iterator[tuple[str, type]]:
    """Yield key and type, int or float, of every number in the config that a map can vary."""
    for config_field in fields(config):
        value, name = getattr(config, config_field.name), f"{prefix}{config_field.name}"
        if f"{name}." == BLOCK_RATES:
            yield from ((f"{BLOCK_RATES}{block}", float) for block in range(1, len(value or []) + 1))
        elif is_dataclass(value) and config_field.name not in ("map", "tracking", "sweep", "instruments"):
            yield from _numbers(value, f"{name}.")
        elif config_field.type in (int, int | None) and name != "training.threads":
            yield name, int
        elif config_field.type in (float, float | None):
            yield name, float


def with_value(config: Any, key: str, value: float) -> Any:
    """Return a copy of the config in which the key has that value."""
    head, _, subkey = key.partition(".")
    current = getattr(config, head)
    new_value: Any = value
    if isinstance(current, list):
        new_value = [*current[: int(subkey) - 1], value, *current[int(subkey) :]]
    elif subkey:
        new_value = with_value(current, subkey, value)
    return replace(config, **{head: new_value})


def pixel_configs(config: MappedConfig, x: Array, y: Array) -> list[MappedConfig]:
    """Return the configs of the runs of some pixels. x, y: (pixels,) the values of the two keys."""
    types = [key_type(config, axis.key) for axis in axes(config).values()]
    pairs = zip(x.tolist(), y.tolist(), strict=True)
    x_key, y_key = config.map.x.key, config.map.y.key
    return [with_value(with_value(config, x_key, types[0](x_value)), y_key, types[1](y_value)) for x_value, y_value in pairs]


def corners(config: MappedConfig) -> list[MappedConfig]:
    """Return the configs of the runs at the four corners of the map."""
    across, up = config.map.x, config.map.y
    x, y = np.meshgrid([across.lower, across.upper], [up.lower, up.upper])
    return pixel_configs(config, x.ravel(), y.ravel())


def windows(config: MappedConfig, center: tuple[float, float]) -> Iterator[MappedConfig]:
    """Yield the config of every map of a zoom, first the config itself. center: (x, y), on which all other maps are centred.

    Raises UserError as `check_distinct`.
    """
    yield config
    for frame in range(1, config.map.zoom.frames):
        window_axes: dict[str, Any] = {}
        for name, axis, centre in zip("xy", axes(config).values(), center, strict=True):
            transform, inverse = (np.log10, lambda value: 10.0**value) if axis.scale == "log" else (float, float)
            half_side = (transform(axis.upper) - transform(axis.lower)) / 2 / config.map.zoom.factor**frame
            lower, upper = (float(inverse(transform(centre) + side)) for side in (-half_side, half_side))
            window_axes[name] = replace(axis, lower=lower, upper=upper)
        window = replace(config, map=replace(config.map, **window_axes))
        check_distinct(window, f"frame {frame + 1} of map.zoom.frames: ")
        yield window


def parse_map(cfg: DictConfig) -> MappedConfig:
    """Return a composed config of a map as a checked object. Raises UserError for a value that is not allowed."""
    for name in "xy":
        for key in ("key", "lower", "upper"):
            if OmegaConf.is_missing(cfg.map[name], key):
                raise UserError(f"map.{name}.{key} is missing: name a preset, trainability=NAME, or set it")
    config = parse_as(MappedConfig, cfg)
    keys = [axis.key for axis in axes(config).values()]
    if config.optimizer.block_rates is None and any(str(key).startswith(BLOCK_RATES) for key in keys):
        rates = [config.optimizer.learning_rate] * config.network.depth
        config = replace(config, optimizer=replace(config.optimizer, block_rates=rates))
    try:
        _check_map(config)
    except ValueError as error:
        raise UserError(str(error)) from None
    check_distinct(config)
    return config


def _check_map(config: MappedConfig) -> None:
    """Raise UserError or ValueError for the first value in config.map that is not allowed."""
    map_config, zoom = config.map, config.map.zoom
    choice("map.setup", map_config.setup, dict.fromkeys(SETUPS))
    whole_number("map.tile", map_config.tile, at_least=1, at_most=256)
    whole_number("map.zoom.frames", zoom.frames, at_least=1, at_most=MAX_FRAMES)
    check_number("map.zoom.factor", zoom.factor, above=1)
    if map_config.n_jobs != -1:
        whole_number("map.n_jobs", map_config.n_jobs, at_least=1)
    for name, axis in axes(config).items():
        has_resolution = axis.resolution is not None
        whole_number(
            f"{name}.resolution" if has_resolution else "map.resolution",
            _resolution(config, axis),
            at_least=2,
            at_most=MAX_PIXELS,
        )
        choice(f"{name}.scale", axis.scale, dict.fromkeys(SCALES))
        for limit, value in (("lower", axis.lower), ("upper", axis.upper)):
            if axis.scale == "log" and not value > 0:
                raise UserError(f"{name}.{limit} is {value:g}, it must be above 0 on a log axis")
            check_number(f"{name}.{limit}", value)
        if not axis.lower < axis.upper:
            raise UserError(f"{name}.lower is {axis.lower:g}, it must be below {name}.upper, which is {axis.upper:g}")
        if axis.key not in (keys := dict(_numbers(config))):
            raise UserError(f"{name}.key is {axis.key!r}, it must be a number of a run's config: {', '.join(keys)}")
    if map_config.x.key == map_config.y.key:
        raise UserError(f"map.x.key and map.y.key are both {map_config.x.key}, they must be two keys")
    if zoom.center is not None and len(zoom.center) != 2:
        raise UserError(f"map.zoom.center is {zoom.center}, it must be null or [x, y]")
    for corner in corners(config):
        check(corner)


def check_distinct(config: MappedConfig, prefix: str = "") -> None:
    """Raise UserError where a map is so narrow that neighbouring pixels have the same value in the run's precision.

    prefix: the first words of the error.
    """
    for name, axis in axes(config).items():
        if key_type(config, axis.key) is float:
            values = axis_values(axis, _resolution(config, axis), float).astype(config.dtype)
            if len(np.unique(values)) < len(values):
                raise UserError(
                    f"{prefix}{name}.lower to {name}.upper is {axis.lower!r} to {axis.upper!r}, "
                    f"in which {config.dtype} cannot tell {len(values)} values apart"
                )
