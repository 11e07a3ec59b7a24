"""One window of a trainability map: its tiles, the map that is assembled from them, and the counts of its pixels."""

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
    """One window of a map: its tiles, and the files with the assembled map.

    config: the config of the window. folder: has the tiles, and the files in its folder `result`. engine: trains the tiles.
    """

    def __init__(self, config: MappedConfig, folder: Path, engine: Engine) -> None:
        self.config, self.folder, self.engine = config, folder, engine
        self.grid: Grid = grid(config)
        self.tile_slices = self.grid.tiles()
        self.tiles = Tiles(folder, "tile", PIXEL)
        self.result = folder / "result"
        self.result.mkdir(exist_ok=True)
        self.map, self.floor = self.result / MAP, self.result / FLOOR

    def train(self) -> float:
        """Train the missing tiles and assemble the map. Returns the number of networks trained per second."""
        items = [(self.config, self.grid, tile) for tile in self.tile_slices]
        rate = self._train_missing_tiles(self.tiles, train_tile, items, "map")
        self._assemble(self.tiles, self.map)
        return rate

    def train_floor(self) -> dict[str, float]:
        """Train the boundary again, and return the shares of its labels that one rounding and the other precision flip."""
        tiles = Tiles(self.folder, "floor", np.dtype(np.uint8))
        self._train_missing_tiles(tiles, train_floor, BoundaryItems(self), "floor")
        self._assemble(tiles, self.floor)
        counts = sum((np.bincount(band.ravel(), minlength=5) for _, band in read_bands(self.floor)), np.zeros(5, int))
        pixels = max(int(counts[1:].sum()), 1)
        return {"rounding": float(counts[3:].sum()) / pixels, "precision": float(counts[2] + counts[4]) / pixels}

    def _train_missing_tiles(
        self, tiles: Tiles, function: Callable[..., Array], items: Sequence[tuple[Any, ...]], name: str
    ) -> float:
        missing_numbers = [number for number, tile in enumerate(self.tile_slices) if not self._is_trained(tiles, number, tile)]
        if missing_numbers and len(missing_numbers) < len(self.tile_slices):
            print(
                f"{len(self.tile_slices) - len(missing_numbers)} of {len(self.tile_slices)} tiles of the {name} are there already"
            )
        pixels = sum(_size(self.tile_slices[number]) for number in missing_numbers)
        start = time.perf_counter()
        with tqdm(total=pixels, desc=name, unit=" networks", unit_scale=True, disable=None) as bar:
            while missing_numbers:
                lost_numbers = []
                with self.engine.pool(function, _Selection(items, missing_numbers), self.config.map.n_jobs) as pool:

                    def tick() -> None:
                        raise_lost_interrupt()
                        bar.refresh()

                    for index, tile in pool.results(tick, TICK_SECONDS):
                        if isinstance(tile, WorkerLost):
                            lost_numbers.append(missing_numbers[index])
                        elif isinstance(tile, Exception):
                            raise tile
                        else:
                            tiles.write(missing_numbers[index], tile)
                            bar.update(tile.size)
                if lost_numbers == missing_numbers:
                    raise UserError(
                        f"every process that trained a tile was killed, perhaps for want of memory: map.tile is "
                        f"{self.config.map.tile}, a smaller one needs less"
                    )
                missing_numbers = lost_numbers
        return pixels / max(time.perf_counter() - start, 1e-9)

    def _is_trained(self, tiles: Tiles, number: int, tile: tuple[slice, slice]) -> bool:
        try:
            return tiles.read(number, _shape(tile)) is not None
        except ValueError as error:
            print(f"{error}: it is trained again")
            return False

    def _assemble(self, tiles: Tiles, file: Path) -> None:
        def rows() -> Iterator[Array]:
            tiles_per_row = -(-self.grid.shape[1] // self.grid.tile)
            for first_number in range(0, len(self.tile_slices), tiles_per_row):
                numbers = range(first_number, first_number + tiles_per_row)
                row = [tiles.read(number, _shape(self.tile_slices[number])) for number in numbers]
                yield np.concatenate([tile for tile in row if tile is not None], axis=1)

        assemble(file, self.grid.shape, tiles.dtype, rows())

    def labels(self, tile: tuple[slice, slice]) -> tuple[Array, Array]:
        """Return a tile's labels, which are True where a network has trained, and which of its pixels are on the boundary."""
        rows, columns = tile
        rows_before, columns_before = min(rows.start, 1), min(columns.start, 1)
        has_trained = read_rows(self.map, rows.start - rows_before, rows.stop + 1)["outcome"] == TRAINED
        has_trained = has_trained[:, columns.start - columns_before : columns.stop + 1]
        tile_pixels = np.s_[
            rows_before : rows_before + rows.stop - rows.start, columns_before : columns_before + columns.stop - columns.start
        ]
        return has_trained[tile_pixels], boundary_pixels(has_trained)[tile_pixels]

    def shares(self) -> dict[str, float]:
        """Return the share of networks of each outcome."""
        counts = sum(
            (np.bincount(band["outcome"].ravel(), minlength=len(OUTCOMES)) for _, band in read_bands(self.map)),
            np.zeros(len(OUTCOMES), int),
        )
        return {name: float(counts[code]) / counts.sum() for name, code in OUTCOMES.items()}

    def dimension(self) -> Dimension:
        """Return the dimension of the boundary between networks that have trained and networks that have not."""
        largest = box_sizes(self.grid.shape)[-1]
        labels = (band["outcome"] == TRAINED for _, band in read_bands(self.map, rows=largest, rows_after=1))
        return box_counting_dimension(labels, self.grid.shape)

    def boundary_center(self) -> tuple[float, float]:
        """Return x and y of the boundary's pixel nearest to the map's middle; the middle where there is no boundary."""
        rows, columns = self.grid.shape
        nearest, center = np.inf, (rows // 2, columns // 2)
        for tile in self.tile_slices:
            row_indices, column_indices = np.nonzero(self.labels(tile)[1])
            row_indices, column_indices = row_indices + tile[0].start, column_indices + tile[1].start
            distances = np.hypot(row_indices - rows / 2, column_indices - columns / 2)
            if distances.size and distances.min() < nearest:
                nearest, center = distances.min(), (int(row_indices[distances.argmin()]), int(column_indices[distances.argmin()]))
        return float(self.grid.x[center[1]]), float(self.grid.y[center[0]])


class BoundaryItems(Sequence[tuple[Any, ...]]):
    """The arguments for training each tile's boundary again. They are read from the map when the tile is trained."""

    def __init__(self, frame: Frame) -> None:
        self.frame = frame

    def __len__(self) -> int:
        return len(self.frame.tile_slices)

    def __getitem__(self, number: Any) -> Any:
        tile = self.frame.tile_slices[number]
        return self.frame.config, self.frame.grid, tile, *self.frame.labels(tile)


class _Selection(Sequence[tuple[Any, ...]]):
    """The items of those numbers; each is created when it is accessed."""

    def __init__(self, items: Sequence[tuple[Any, ...]], numbers: Sequence[int]) -> None:
        self.items, self.numbers = items, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, number: Any) -> Any:
        return self.items[self.numbers[number]]


def _shape(tile: tuple[slice, slice]) -> tuple[int, int]:
    return tile[0].stop - tile[0].start, tile[1].stop - tile[1].start


def _size(tile: tuple[slice, slice]) -> int:
    return _shape(tile)[0] * _shape(tile)[1]
