"""One window of a trainability map: its tiles, the map that is put together from them, and what is counted in it."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from blocks.arrays import Array
from experiments.record.tiles import Tiles, assemble, read_bands, read_rows
from experiments.run.boundary import Dimension, boundary_pixels, box_counting_dimension, box_sizes
from experiments.run.config import UserError
from experiments.run.engines import Engine
from experiments.run.grid import Grid, MappedConfig, grid
from experiments.run.interrupts import raise_lost_interrupt
from experiments.run.paper import PIXEL, TRAINED
from experiments.run.pool import WorkerLost
from experiments.run.tile import OUTCOMES, train_tile
from experiments.run.tile import floor_tile as train_floor

TICK_SECONDS = 0.5
MAP, FLOOR = "map.npy", "floor.npy"


class Frame:
    """One map: its tiles, and the files that come of them.

    config: of its window. folder: for the tiles, and in `result` for the files. engine: what trains the tiles.
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
        self._fill(tiles, train_floor, BoundaryItems(self), "floor")
        self._assemble(tiles, self.floor)
        counts = sum((np.bincount(band.ravel(), minlength=5) for _, band in read_bands(self.floor)), np.zeros(5, int))
        pixels = max(int(counts[1:].sum()), 1)
        return {"rounding": float(counts[3:].sum()) / pixels, "precision": float(counts[2] + counts[4]) / pixels}

    def _fill(self, tiles: Tiles, function: Callable[..., Array], items: Sequence[tuple[Any, ...]], name: str) -> float:
        missing = [number for number, place in enumerate(self.places) if not self._is_trained(tiles, number, place)]
        if missing and len(missing) < len(self.places):
            print(f"{len(self.places) - len(missing)} of {len(self.places)} tiles of the {name} are there already")
        pixels = sum(_size(self.places[number]) for number in missing)
        started = time.perf_counter()
        with tqdm(total=pixels, desc=name, unit=" networks", unit_scale=True, disable=None) as bar:
            while missing:
                lost = []
                with self.engine.pool(function, _Selected(items, missing), self.config.map.n_jobs) as pool:

                    def tick() -> None:
                        raise_lost_interrupt()
                        bar.refresh()

                    for index, trained in pool.results(tick, TICK_SECONDS):
                        if isinstance(trained, WorkerLost):
                            lost.append(missing[index])
                        elif isinstance(trained, Exception):
                            raise trained
                        else:
                            tiles.write(missing[index], trained)
                            bar.update(trained.size)
                if lost == missing:
                    raise UserError(
                        f"every process that trained a tile was killed, perhaps for want of memory: map.tile is "
                        f"{self.config.map.tile}, a smaller one needs less"
                    )
                missing = lost
        return pixels / max(time.perf_counter() - started, 1e-9)

    def _is_trained(self, tiles: Tiles, number: int, place: tuple[slice, slice]) -> bool:
        try:
            return tiles.read(number, _shape(place)) is not None
        except ValueError as error:
            print(f"{error}: it is trained again")
            return False

    def _assemble(self, tiles: Tiles, file: Path) -> None:
        def rows() -> Iterator[Array]:
            across = -(-self.grid.shape[1] // self.grid.tile)
            for first in range(0, len(self.places), across):
                numbers = range(first, first + across)
                row = [tiles.read(number, _shape(self.places[number])) for number in numbers]
                yield np.concatenate([tile for tile in row if tile is not None], axis=1)

        assemble(file, self.grid.shape, tiles.dtype, rows())

    def labels(self, place: tuple[slice, slice]) -> tuple[Array, Array]:
        """A tile's labels, True where a network has trained, and which of its pixels are the boundary's."""
        rows, columns = place
        above, left = min(rows.start, 1), min(columns.start, 1)
        around = read_rows(self.map, rows.start - above, rows.stop + 1)["outcome"] == TRAINED
        around = around[:, columns.start - left : columns.stop + 1]
        inner = np.s_[above : above + rows.stop - rows.start, left : left + columns.stop - columns.start]
        return around[inner], boundary_pixels(around)[inner]

    def shares(self) -> dict[str, float]:
        """The share of networks of each outcome."""
        counts = sum(
            (np.bincount(band["outcome"].ravel(), minlength=len(OUTCOMES)) for _, band in read_bands(self.map)),
            np.zeros(len(OUTCOMES), int),
        )
        return {name: float(counts[code]) / counts.sum() for name, code in OUTCOMES.items()}

    def dimension(self) -> Dimension:
        """Of the boundary between what has trained and what has not."""
        largest = box_sizes(self.grid.shape)[-1]
        labels = (band["outcome"] == TRAINED for _, band in read_bands(self.map, rows=largest, rows_after=1))
        return box_counting_dimension(labels, self.grid.shape)

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


class BoundaryItems(Sequence[tuple[Any, ...]]):
    """Arguments for training each tile's boundary again, read from the map when the tile's turn comes."""

    def __init__(self, frame: Frame) -> None:
        self.frame = frame

    def __len__(self) -> int:
        return len(self.frame.places)

    def __getitem__(self, number: Any) -> Any:
        place = self.frame.places[number]
        return self.frame.config, self.frame.grid, place, *self.frame.labels(place)


class _Selected(Sequence[tuple[Any, ...]]):
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
