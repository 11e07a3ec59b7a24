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
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from experiments.map.frame import Frame
from experiments.record import AnyRun, Untracked, check_tracking, open_store
from experiments.record.address import strip_typed_passwords
from experiments.record.identity import RECORD_GROUPS, fingerprint
from experiments.run import paper
from experiments.run.bounded import read_text
from experiments.run.composition import compose_config, register, with_machine
from experiments.run.config import UserError
from experiments.run.data import load_dataset
from experiments.run.engines import Engine, connect
from experiments.run.folder import check_folder, lock_folder
from experiments.run.grid import MappedConfig, ZoomConfig, axes, grid, parse_map, windows
from experiments.run.interrupts import end_in_order
from experiments.run.job import reason_of, status_of
from experiments.run.naming import flatten
from experiments.run.tile import OTHER_DTYPE, check_trainable
from experiments.train import is_expected, one_line

OWNER = "fingerprint.txt"

register("base_map", MappedConfig)


def make(config: MappedConfig, folder: Path, run: AnyRun, engine: Engine) -> None:
    """All frames of a map: trained, drawn, measured, kept."""
    first = Frame(config, folder, engine)
    _record_frame(first, run, 1)
    if config.map.zoom.frames > 1:
        center = config.map.zoom.center or first.middle()
        pictures = [first.result / "map.png"]
        for number, window in enumerate(windows(config, (center[0], center[1])), 1):
            if number > 1:
                frame = Frame(window, folder / f"frame_{_mark(_without_zoom(window))[:12]}", engine)
                _record_frame(frame, run, number)
                pictures.append(frame.result / "map.png")
        from experiments.pictures.trainability import animation

        # Not beside the map's own pictures, which a map without a zoom has, too.
        with tempfile.TemporaryDirectory() as made:
            animation(pictures, Path(made, "zoom.gif"))
            run.log_artifacts(Path(made))


def _record_frame(frame: Frame, run: AnyRun, number: int) -> None:
    """Train one frame, draw and measure it, and record the results."""
    from experiments.pictures import trainability as pictures

    config = frame.config
    networks_a_second = frame.train()
    shares, found = frame.shares(), frame.dimension()
    window = ", ".join(f"{axis.key} {axis.lower!r} to {axis.upper!r}" for axis in axes(config).values())
    summary = [", ".join(f"{share:.2%} {name}" for name, share in shares.items()), str(found)]
    title = title_of(config)
    pictures.save(pictures.map_picture(frame.map, config, f"{title}\n{summary[0]}"), frame.result / "map.png")
    pictures.save(pictures.boxes_picture(found), frame.result / "boxes.png")
    metrics = {f"map/{name}": share for name, share in shares.items()}
    metrics |= {"map/dimension": found.value, "map/dimension_lower": found.lower, "map/dimension_upper": found.upper}
    if config.map.floor:
        flipped = frame.train_floor()
        metrics |= {f"floor/{name}": share for name, share in flipped.items()}
        summary.append(
            f"labels of boundary pixels flipped by one rounding: {flipped['rounding']:.2%}, "
            f"by {OTHER_DTYPE[config.dtype]}: {flipped['precision']:.2%}"
        )
        picture = pictures.floor_picture(frame.floor, config, f"{title}\n{summary[-1]}")
        pictures.save(picture, frame.result / "floor.png")
    text = "\n".join([title, f"window: {window}", *summary])
    (frame.result / "map.txt").write_text(text + "\n")
    print(f"\n{text}")
    if networks_a_second > 0:
        metrics["map/networks_a_second"] = networks_a_second
    run.check_owner()
    run.log_summary({}, metrics, number)
    run.log_artifacts(frame.result, "" if number == 1 else f"frame_{number:03d}")


def title_of(config: MappedConfig) -> str:
    """What all networks of the map have in common, and how many they are."""
    rows, columns = grid(config).shape
    network, mapped = config.network, [axis.key for axis in axes(config).values()]
    depth, width, updates = (
        "" if key in mapped else f", {text}"
        for key, text in (
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
    return {key: str(value) for key, value in flatten(config).items() if key.partition(".")[0] not in RECORD_GROUPS}


def _digest(config: MappedConfig) -> str:
    """Of the data, and of the paper's initial weights."""
    if config.map.setup == "config":
        return load_dataset(config.dataset).digest
    problem, digest = paper.create_problem(config, config.map.file), hashlib.sha256()
    for part in (problem.W0, problem.W1, problem.X, problem.Y):
        digest.update(part.tobytes())
    return digest.hexdigest()


def _check_owner(folder: Path, mark: str) -> None:
    """Raise UserError where the folder holds another map's tiles."""
    try:
        owner = read_text(folder / OWNER)
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise UserError(f"map.folder is {str(folder)!r}, whose {OWNER} is damaged: {error}") from None
    if owner != mark:
        raise UserError(f"map.folder is {str(folder)!r}, which holds the tiles of another map: name another folder")


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Raises UserError where another process trains tiles in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    in_use = UserError(f"map.folder is {str(folder)!r}, where another process trains tiles: wait for it")
    with lock_folder(folder, in_use):
        yield


def _claim(folder: Path, mark: str, resume: bool) -> None:
    """The folder is this map's; without `resume`, what an earlier start has trained goes."""
    if not resume:
        for tile in folder.rglob("*.npz"):
            tile.unlink()
    (folder / OWNER).write_text(mark)


def _without_place(config: MappedConfig) -> MappedConfig:
    """The config without where the map is trained, and by how many processes."""
    return replace(config, map=replace(config.map, folder=None, n_jobs=-1, backend="loky", address=None))


def _without_zoom(config: MappedConfig) -> MappedConfig:
    """The map of that window alone, of whatever zoom it is a frame."""
    return replace(config, map=replace(config.map, zoom=ZoomConfig()))


def _mark(config: MappedConfig) -> str:
    """Equal for two maps of the same networks."""
    return fingerprint(_without_place(config), _digest(config))


def run_map(config: MappedConfig) -> None:
    """Check, train, record."""
    config, reason = with_machine(config)
    if reason:
        print(reason)
    check_trainable(config)
    # A zoom's first map has the tiles of the map without a zoom.
    mark = _mark(_without_zoom(config))
    folder = Path(config.map.folder or Path("outputs", "trainability", mark[:12])).absolute()
    check_folder("map.folder", str(folder))
    _check_owner(folder, mark)
    check_tracking(config.tracking)
    with connect(config.map.backend, config.map.address, "map") as engine:
        _record(config, mark, folder, engine)


def _record(config: MappedConfig, mark: str, folder: Path, engine: Engine) -> None:
    """One map, with its zoom, as one run. mark: of the map without it, whose tiles are in the folder."""
    store = open_store(config.tracking)
    name = f"map of {config.map.x.key} by {config.map.y.key}"
    try:
        run, _ = store.begin_sweep(name, {"kind": "map"}, _mark(config), config.sweep)
        with run.heartbeats(), _held(folder):
            run.log_summary(_params(_without_place(config)))
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
    for step in store.page.next_steps:
        print(step)


def _describe(run: AnyRun, result: Path) -> None:
    """What came of the map, in words and pictures."""
    text = (result / "map.txt").read_text()
    if not isinstance(run, Untracked):
        from experiments.pictures.gallery import linked

        names = [name for name in ("map.png", "floor.png", "boxes.png") if (result / name).exists()]
        links, images = linked(run.experiment.experiment_id, run.run_id, names)
        run.set_description(f"Pictures: {links}.\n\n{text}\n{images}")


@end_in_order("the same command trains the tiles that are missing")
def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.trainability", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of the map's and the run's config")
    sys.set_int_max_str_digits(0)
    try:
        strip_typed_passwords()
        overrides = parser.parse_args().overrides
        run_map(parse_map(compose_config("trainability", overrides)))
    except Exception as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1" or not is_expected(error):
            raise
        sys.exit(one_line(error))


if __name__ == "__main__":
    main()
