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


def train_frames(config: MappedConfig, folder: Path, run: AnyRun, engine: Engine) -> None:
    """Train, draw, measure and record all frames of a map."""
    first_frame = Frame(config, folder, engine)
    _record_frame(first_frame, run, 1)
    if config.map.zoom.frames > 1:
        center = config.map.zoom.center or first_frame.boundary_center()
        pictures = [first_frame.result / "map.png"]
        for number, window in enumerate(windows(config, (center[0], center[1])), 1):
            if number > 1:
                frame = Frame(window, folder / f"frame_{_map_fingerprint(_without_zoom(window))[:12]}", engine)
                _record_frame(frame, run, number)
                pictures.append(frame.result / "map.png")
        from experiments.pictures.trainability import animation

        # The folder of the map's pictures has no animation, since a map without a zoom shares it.
        with tempfile.TemporaryDirectory() as animation_folder:
            animation(pictures, Path(animation_folder, "zoom.gif"))
            run.log_artifacts(Path(animation_folder))


def _record_frame(frame: Frame, run: AnyRun, number: int) -> None:
    """Train one frame, draw and measure it, and record the results."""
    from experiments.pictures import trainability as pictures

    config = frame.config
    networks_a_second = frame.train()
    shares, dimension = frame.shares(), frame.dimension()
    window = ", ".join(f"{axis.key} {axis.lower!r} to {axis.upper!r}" for axis in axes(config).values())
    summary = [", ".join(f"{share:.2%} {name}" for name, share in shares.items()), str(dimension)]
    title = title_of(config)
    pictures.save(pictures.map_picture(frame.map, config, f"{title}\n{summary[0]}"), frame.result / "map.png")
    pictures.save(pictures.boxes_picture(dimension), frame.result / "boxes.png")
    metrics = {f"map/{name}": share for name, share in shares.items()}
    metrics |= {"map/dimension": dimension.value, "map/dimension_lower": dimension.lower, "map/dimension_upper": dimension.upper}
    if config.map.floor:
        flipped_shares = frame.train_floor()
        metrics |= {f"floor/{name}": share for name, share in flipped_shares.items()}
        summary.append(
            f"labels of boundary pixels flipped by one rounding: {flipped_shares['rounding']:.2%}, "
            f"by {OTHER_DTYPE[config.dtype]}: {flipped_shares['precision']:.2%}"
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
    """Return the title of a map: what all its networks share, and their number."""
    rows, columns = grid(config).shape
    network, mapped_keys = config.network, [axis.key for axis in axes(config).values()]
    depth, width, updates = (
        "" if key in mapped_keys else f", {text}"
        for key, text in (
            ("network.depth", f"depth {network.depth}"),
            ("network.width", f"width {network.width}"),
            ("training.epochs", f"{config.training.epochs} updates"),
        )
    )
    headline = (
        f"{network.activation}{width}{updates} (Sohl-Dickstein 2024)"
        if config.map.setup == "paper"
        else f"{config.dataset.name}, {network.activation}{depth}{width}"
    )
    return f"{headline}: {columns} x {rows} networks, {config.dtype}"


def _params(config: MappedConfig) -> dict[str, str]:
    return {key: str(value) for key, value in flatten(config).items() if key.partition(".")[0] not in RECORD_GROUPS}


def _data_digest(config: MappedConfig) -> str:
    """Return the digest of the data; in the paper's setup, that of its data and initial weights."""
    if config.map.setup == "config":
        return load_dataset(config.dataset).digest
    problem, digest = paper.create_problem(config, config.map.file), hashlib.sha256()
    for array in (problem.W0, problem.W1, problem.X, problem.Y):
        digest.update(array.tobytes())
    return digest.hexdigest()


def _check_owner(folder: Path, map_fingerprint: str) -> None:
    """Raise UserError where the folder has the tiles of another map."""
    try:
        owner = read_text(folder / OWNER)
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise UserError(f"map.folder is {str(folder)!r}, whose {OWNER} is damaged: {error}") from None
    if owner != map_fingerprint:
        raise UserError(f"map.folder is {str(folder)!r}, which holds the tiles of another map: name another folder")


@contextlib.contextmanager
def _folder_lock(folder: Path) -> Iterator[None]:
    """Lock the folder during the context. Raises UserError where another process trains tiles in it."""
    folder.mkdir(parents=True, exist_ok=True)
    in_use = UserError(f"map.folder is {str(folder)!r}, where another process trains tiles: wait for it")
    with lock_folder(folder, in_use):
        yield


def _prepare_folder(folder: Path, map_fingerprint: str, resume: bool) -> None:
    """Write the map's fingerprint into the folder. Without `resume`, delete the tiles of an earlier start."""
    if not resume:
        for tile in folder.rglob("*.npz"):
            tile.unlink()
    (folder / OWNER).write_text(map_fingerprint)


def _without_resources(config: MappedConfig) -> MappedConfig:
    """Return the config with the default folder and engine: these keys do not change the map."""
    return replace(config, map=replace(config.map, folder=None, n_jobs=-1, backend="loky", address=None))


def _without_zoom(config: MappedConfig) -> MappedConfig:
    """Return the config of that window without a zoom."""
    return replace(config, map=replace(config.map, zoom=ZoomConfig()))


def _map_fingerprint(config: MappedConfig) -> str:
    """Return a fingerprint that is equal for two maps of the same networks."""
    return fingerprint(_without_resources(config), _data_digest(config))


def run_map(config: MappedConfig) -> None:
    """Check the config, then train the map and record it."""
    config, reason = with_machine(config)
    if reason:
        print(reason)
    check_trainable(config)
    # The first frame of a zoom shares its tiles with the map without a zoom.
    map_fingerprint = _map_fingerprint(_without_zoom(config))
    folder = Path(config.map.folder or Path("outputs", "trainability", map_fingerprint[:12])).absolute()
    check_folder("map.folder", str(folder))
    _check_owner(folder, map_fingerprint)
    check_tracking(config.tracking)
    with connect(config.map.backend, config.map.address, "map") as engine:
        _record(config, map_fingerprint, folder, engine)


def _record(config: MappedConfig, map_fingerprint: str, folder: Path, engine: Engine) -> None:
    """Train a map with its zoom and record it as one run. map_fingerprint: that of the map without its zoom."""
    store = open_store(config.tracking)
    name = f"map of {config.map.x.key} by {config.map.y.key}"
    try:
        run, _ = store.begin_sweep(name, {"kind": "map"}, _map_fingerprint(config), config.sweep)
        with run.heartbeats(), _folder_lock(folder):
            run.log_summary(_params(_without_resources(config)))
            _prepare_folder(folder, map_fingerprint, config.sweep.resume)
            train_frames(config, folder, run, engine)
            _set_description(run, folder / "result")
            run.end()
    except BaseException as error:
        with contextlib.suppress(UserError):
            store.close(status_of(error), reason_of(error))
        raise
    store.close()
    print(f"folder: {folder}")
    for line in store.page.next_steps:
        print(line)


def _set_description(run: AnyRun, result: Path) -> None:
    """Set the run's description: the text and the pictures of the map."""
    text = (result / "map.txt").read_text()
    if not isinstance(run, Untracked):
        from experiments.pictures.gallery import picture_links

        names = [name for name in ("map.png", "floor.png", "boxes.png") if (result / name).exists()]
        links, images = picture_links(run.experiment.experiment_id, run.run_id, names)
        run.set_description(f"Pictures: {links}.\n\n{text}\n{images}")


@end_in_order("the same command trains the tiles that are missing")
def main() -> None:
    """Run the command."""
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
