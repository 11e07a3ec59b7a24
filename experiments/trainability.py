"""python -m experiments.trainability [KEY=VALUE ...]: which values train? A map with a network for every pixel.

  trainability=fractal_tanh                 a preset, conf/trainability/; the default
  trainability=rate_by_gain dataset=iris network.depth=5 map.resolution=32
  map.x.lower=1 map.x.upper=100             a window of the preset's axes; map.y likewise
  map.x.key=optimizer.momentum              another axis: any number of a run's config
  map.zoom.frames=8                         a series of windows, each half as wide
Every key, with what is allowed: experiments/run/grid.py and experiments/run/config.py.

Typed again after it was killed, it trains the tiles that are missing. One MLflow run holds the map.
"""

import argparse
import contextlib
import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from blocks.arrays import Array
from experiments.record import AnyRun, Untracked, check_tracking, open_store
from experiments.record.address import conceal_typed
from experiments.record.identity import SURROUNDINGS, fingerprint
from experiments.record.tiles import Tiles, assemble, bands, rows_of
from experiments.run import paper
from experiments.run.boundary import Dimension, beside, box_sizes, dimension
from experiments.run.bounded import text
from experiments.run.config import UserError, composed, flat, register, settled
from experiments.run.data import load
from experiments.run.engines import Engine, connect
from experiments.run.folder import check_folder, hold
from experiments.run.grid import Grid, MappedConfig, ZoomConfig, axes, grid, typed_map, windows
from experiments.run.interrupts import end_in_order, raise_lost_interrupt
from experiments.run.job import reason_of, status_of
from experiments.run.paper import PIXEL, TRAINED
from experiments.run.pool import Lost
from experiments.run.tile import OTHER, OUTCOMES, check_trainable, train_tile
from experiments.run.tile import floor_tile as train_floor
from experiments.train import is_expected, one_line

TICK_SECONDS = 0.5
MAP, FLOOR, OWNER = "map.npy", "floor.npy", "fingerprint.txt"

register("base_map", MappedConfig)


class Frame:
    """One map: its tiles, and the files that come of them.

    config: of its window. folder: for the tiles, and in `result` for what is kept of them. engine: trains the tiles.
    """

    def __init__(self, config: MappedConfig, folder: Path, engine: Engine) -> None:
        self.config, self.folder, self.engine = config, folder, engine
        self.grid: Grid = grid(config)
        self.places = self.grid.tiles()
        self.tiles = Tiles(folder, "tile", PIXEL)
        self.result = folder / "result"
        self.result.mkdir(exist_ok=True)
        self.map, self.floor = self.result / MAP, self.result / FLOOR

    def train(self) -> float:
        """Train the tiles that are missing, and put the map together; the networks a second."""
        items = [(self.config, self.grid, place) for place in self.places]
        rate = self._fill(self.tiles, train_tile, items, "map")
        self._assemble(self.tiles, self.map)
        return rate

    def train_floor(self) -> dict[str, float]:
        """The shares of the boundary's labels that one rounding, and the other precision, flips."""
        tiles = Tiles(self.folder, "floor", np.dtype(np.uint8))
        self._fill(tiles, train_floor, _OfBoundary(self), "floor")
        self._assemble(tiles, self.floor)
        counts = sum((np.bincount(band.ravel(), minlength=5) for _, band in bands(self.floor)), np.zeros(5, int))
        pixels = max(int(counts[1:].sum()), 1)
        return {"rounding": float(counts[3:].sum()) / pixels, "precision": float(counts[2] + counts[4]) / pixels}

    def _fill(self, tiles: Tiles, function: Callable[..., Array], items: Sequence[tuple[Any, ...]], name: str) -> float:
        missing = [number for number, place in enumerate(self.places) if not self._there(tiles, number, place)]
        if missing and len(missing) < len(self.places):
            print(f"{len(self.places) - len(missing)} of {len(self.places)} tiles of the {name} are there already")
        pixels = sum(_size(self.places[number]) for number in missing)
        started = time.perf_counter()
        with tqdm(total=pixels, desc=name, unit=" networks", unit_scale=True, disable=None) as bar:
            while missing:
                lost = []
                with self.engine.pool(function, _Some(items, missing), self.config.map.n_jobs) as pool:

                    def tick() -> None:
                        raise_lost_interrupt()
                        bar.refresh()

                    for index, trained in pool.results(tick, TICK_SECONDS):
                        if isinstance(trained, Lost):
                            lost.append(missing[index])
                        elif isinstance(trained, Exception):
                            raise trained
                        else:
                            tiles.put(missing[index], trained)
                            bar.update(trained.size)
                if lost == missing:
                    raise UserError(
                        f"every process that trained a tile was killed, perhaps for want of memory: map.tile is "
                        f"{self.config.map.tile}, a smaller one needs less"
                    )
                missing = lost
        return pixels / max(time.perf_counter() - started, 1e-9)

    def _there(self, tiles: Tiles, number: int, place: tuple[slice, slice]) -> bool:
        try:
            return tiles.get(number, _shape(place)) is not None
        except ValueError as error:
            print(f"{error}: it is trained again")
            return False

    def _assemble(self, tiles: Tiles, file: Path) -> None:
        def rows() -> Iterator[Array]:
            across = -(-self.grid.shape[1] // self.grid.tile)
            for first in range(0, len(self.places), across):
                numbers = range(first, first + across)
                row = [tiles.get(number, _shape(self.places[number])) for number in numbers]
                yield np.concatenate([tile for tile in row if tile is not None], axis=1)

        assemble(file, self.grid.shape, tiles.dtype, rows())

    def labels(self, place: tuple[slice, slice]) -> tuple[Array, Array]:
        """A tile's labels, True where a network has trained, and which of its pixels are the boundary's."""
        rows, columns = place
        above, left = min(rows.start, 1), min(columns.start, 1)
        around = rows_of(self.map, rows.start - above, rows.stop + 1)["outcome"] == TRAINED
        around = around[:, columns.start - left : columns.stop + 1]
        inner = np.s_[above : above + rows.stop - rows.start, left : left + columns.stop - columns.start]
        return around[inner], beside(around)[inner]

    def shares(self) -> dict[str, float]:
        """The share of networks of each outcome."""
        counts = sum(
            (np.bincount(band["outcome"].ravel(), minlength=len(OUTCOMES)) for _, band in bands(self.map)),
            np.zeros(len(OUTCOMES), int),
        )
        return {name: float(counts[code]) / counts.sum() for name, code in OUTCOMES.items()}

    def dimension(self) -> Dimension:
        """Of the boundary between what has trained and what has not."""
        largest = box_sizes(self.grid.shape)[-1]
        labels = (band["outcome"] == TRAINED for _, band in bands(self.map, rows=largest, after=1))
        return dimension(labels, self.grid.shape)

    def middle(self) -> tuple[float, float]:
        """x and y of the boundary's pixel next to the map's middle; the middle where there is no boundary."""
        rows, columns = self.grid.shape
        nearest, found = np.inf, (rows // 2, columns // 2)
        for place in self.places:
            down, across = np.nonzero(self.labels(place)[1])
            down, across = down + place[0].start, across + place[1].start
            away = np.hypot(down - rows / 2, across - columns / 2)
            if away.size and away.min() < nearest:
                nearest, found = away.min(), (int(down[away.argmin()]), int(across[away.argmin()]))
        return float(self.grid.x[found[1]]), float(self.grid.y[found[0]])


class _OfBoundary(Sequence[tuple[Any, ...]]):
    """What the processes are given to train a map's boundary again, read from the map when a tile's turn comes."""

    def __init__(self, frame: Frame) -> None:
        self.frame = frame

    def __len__(self) -> int:
        return len(self.frame.places)

    def __getitem__(self, number: Any) -> Any:
        place = self.frame.places[number]
        return self.frame.config, self.frame.grid, place, *self.frame.labels(place)


class _Some(Sequence[tuple[Any, ...]]):
    """Some of the items, each made when it is asked for."""

    def __init__(self, items: Sequence[tuple[Any, ...]], numbers: Sequence[int]) -> None:
        self.items, self.numbers = items, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, number: Any) -> Any:
        return self.items[self.numbers[number]]


def _shape(place: tuple[slice, slice]) -> tuple[int, int]:
    return place[0].stop - place[0].start, place[1].stop - place[1].start


def _size(place: tuple[slice, slice]) -> int:
    return _shape(place)[0] * _shape(place)[1]


def make(config: MappedConfig, folder: Path, run: AnyRun, engine: Engine) -> None:
    """All frames of a map: trained, drawn, measured, kept."""
    first = Frame(config, folder, engine)
    _keep(first, run, 1)
    if config.map.zoom.frames > 1:
        center = config.map.zoom.center or first.middle()
        pictures = [first.result / "map.png"]
        for number, window in enumerate(windows(config, (center[0], center[1])), 1):
            if number > 1:
                frame = Frame(window, folder / f"frame_{_mark(_window(window))[:12]}", engine)
                _keep(frame, run, number)
                pictures.append(frame.result / "map.png")
        from experiments.pictures.trainability import animation

        # Not beside the map's own pictures, which a map without a zoom has, too.
        with tempfile.TemporaryDirectory() as made:
            animation(pictures, Path(made, "zoom.gif"))
            run.keep(Path(made))


def _keep(frame: Frame, run: AnyRun, number: int) -> None:
    """Train one frame, and put what came of it beside it and into the record."""
    from experiments.pictures import trainability as pictures

    config = frame.config
    networks_a_second = frame.train()
    shares, found = frame.shares(), frame.dimension()
    window = ", ".join(f"{axis.key} {axis.lower!r} to {axis.upper!r}" for axis in axes(config).values())
    told = [", ".join(f"{share:.2%} {name}" for name, share in shares.items()), str(found)]
    title = title_of(config)
    pictures.save(pictures.map_picture(frame.map, config, f"{title}\n{told[0]}"), frame.result / "map.png")
    pictures.save(pictures.boxes_picture(found), frame.result / "boxes.png")
    metrics = {f"map/{name}": share for name, share in shares.items()}
    metrics |= {"map/dimension": found.value, "map/dimension_lower": found.lower, "map/dimension_upper": found.upper}
    if config.map.floor:
        flipped = frame.train_floor()
        metrics |= {f"floor/{name}": share for name, share in flipped.items()}
        told.append(
            f"labels of boundary pixels flipped by one rounding: {flipped['rounding']:.2%}, "
            f"by {OTHER[config.dtype]}: {flipped['precision']:.2%}"
        )
        picture = pictures.floor_picture(frame.floor, config, f"{title}\n{told[-1]}")
        pictures.save(picture, frame.result / "floor.png")
    text = "\n".join([title, f"window: {window}", *told])
    (frame.result / "map.txt").write_text(text + "\n")
    print(f"\n{text}")
    if networks_a_second > 0:
        metrics["map/networks_a_second"] = networks_a_second
    run.check_owner()
    run.describe({}, metrics, number)
    run.keep(frame.result, "" if number == 1 else f"frame_{number:03d}")


def title_of(config: MappedConfig) -> str:
    """What all networks of the map have in common, and how many they are."""
    rows, columns = grid(config).shape
    network, mapped = config.network, [axis.key for axis in axes(config).values()]
    depth, width, updates = (
        "" if key in mapped else f", {told}"
        for key, told in (
            ("network.depth", f"depth {network.depth}"),
            ("network.width", f"width {network.width}"),
            ("training.epochs", f"{config.training.epochs} updates"),
        )
    )
    what = (
        f"{network.activation}{width}{updates} (Sohl-Dickstein 2024)"
        if config.map.setup == "paper"
        else f"{config.dataset.name}, {network.activation}{depth}{width}"
    )
    return f"{what}: {columns} x {rows} networks, {config.dtype}"


def _params(config: MappedConfig) -> dict[str, str]:
    return {key: str(value) for key, value in flat(config).items() if key.partition(".")[0] not in SURROUNDINGS}


def _digest(config: MappedConfig) -> str:
    """Of the data, and of the paper's initial weights."""
    if config.map.setup == "config":
        return load(config.dataset).digest
    of, digest = paper.problem(config, config.map.file), hashlib.sha256()
    for part in (of.W0, of.W1, of.X, of.Y):
        digest.update(part.tobytes())
    return digest.hexdigest()


def _check_own(folder: Path, mark: str) -> None:
    """Raise UserError where the folder holds another map's tiles."""
    try:
        owner = text(folder / OWNER)
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise UserError(f"map.folder is {str(folder)!r}, whose {OWNER} is damaged: {error}") from None
    if owner != mark:
        raise UserError(f"map.folder is {str(folder)!r}, which holds the tiles of another map: name another folder")


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Raises UserError where another process trains tiles in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    in_use = UserError(f"map.folder is {str(folder)!r}, where another process trains tiles: wait for it")
    with hold(folder, in_use):
        yield


def _claim(folder: Path, mark: str, resume: bool) -> None:
    """The folder is this map's; without `resume`, what an earlier start has trained goes."""
    if not resume:
        for tile in folder.rglob("*.npz"):
            tile.unlink()
    (folder / OWNER).write_text(mark)


def _what(config: MappedConfig) -> MappedConfig:
    """What is trained: where, and by how many, is left out."""
    return replace(config, map=replace(config.map, folder=None, n_jobs=-1, backend="loky", address=None))


def _window(config: MappedConfig) -> MappedConfig:
    """The map of that window alone, of whatever zoom it is a frame."""
    return replace(config, map=replace(config.map, zoom=ZoomConfig()))


def _mark(config: MappedConfig) -> str:
    """Equal for two maps of the same networks."""
    return fingerprint(_what(config), _digest(config))


def run_map(config: MappedConfig) -> None:
    """Check, train, record."""
    config, reason = settled(config)
    if reason:
        print(reason)
    check_trainable(config)
    # A zoom's first map has the tiles of the map without a zoom.
    mark = _mark(_window(config))
    folder = Path(config.map.folder or Path("outputs", "trainability", mark[:12])).absolute()
    check_folder("map.folder", str(folder))
    _check_own(folder, mark)
    check_tracking(config.tracking)
    with connect(config.map.backend, config.map.address, "map") as engine:
        _record(config, mark, folder, engine)


def _record(config: MappedConfig, mark: str, folder: Path, engine: Engine) -> None:
    """One map, with its zoom, as one run. mark: of the map without it, whose tiles are in the folder."""
    store = open_store(config.tracking)
    name = f"map of {config.map.x.key} by {config.map.y.key}"
    try:
        run, _ = store.begin_sweep(name, {"kind": "map"}, _mark(config), config.sweep)
        with run.beating(), _alone(folder):
            run.describe(_params(_what(config)))
            _claim(folder, mark, config.sweep.resume)
            make(config, folder, run, engine)
            _describe(run, folder / "result")
            run.end()
    except BaseException as error:
        with contextlib.suppress(UserError):
            store.close(status_of(error), reason_of(error))
        raise
    store.close()
    print(f"folder: {folder}")
    if store.page.command:
        print(f"dashboard: {store.page.command}")


def _describe(run: AnyRun, result: Path) -> None:
    """What came of the map, in words and pictures."""
    text = (result / "map.txt").read_text()
    if not isinstance(run, Untracked):
        from experiments.pictures.gallery import linked

        names = [name for name in ("map.png", "floor.png", "boxes.png") if (result / name).exists()]
        links, images = linked(run.store.experiment_id, run.run_id, names)
        run.note(f"Pictures: {links}.\n\n{text}\n{images}")


@end_in_order("the same command trains the tiles that are missing")
def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.trainability", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of the map's and the run's config")
    sys.set_int_max_str_digits(0)
    try:
        conceal_typed()
        overrides = parser.parse_args().overrides
        run_map(typed_map(composed("trainability", overrides)))
    except Exception as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1" or not is_expected(error):
            raise
        sys.exit(one_line(error))


if __name__ == "__main__":
    main()
