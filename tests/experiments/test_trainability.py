"""The command that maps trainability, with a store of its own: resumed after a kill, told what it cannot do, looked at."""

import errno
import os
import re
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from experiments.record.tiles import Tiles, assemble, read_bands
from experiments.run.boundary import boundary_pixels
from experiments.run.composition import compose_config, register
from experiments.run.config import UserError
from experiments.run.data import load_dataset
from experiments.run.grid import MappedConfig, grid, parse_map
from experiments.run.paper import DIVERGED, PIXEL, TRAINED, Problem, losses, score
from experiments.trainability import OWNER, _check_owner, _folder_lock, title_of

MODULE = "experiments.trainability"
PUBLISHED = Path(__file__).parents[1] / "published"
SMALL = ["trainability=fractal_identity", "map.resolution=32", "map.tile=16", "map.n_jobs=1"]
# Sixteen tiles, each in a process's tenth of a second.
LONGER = ["trainability=fractal_tanh", "map.resolution=64", "map.tile=16", "map.floor=false", "map.folder=there", "map.n_jobs=2"]


def made(*overrides):
    register("base_map", MappedConfig)
    return parse_map(compose_config("trainability", overrides))


def rates_of(config):
    pixels = grid(config)
    x, y = np.meshgrid(pixels.x, pixels.y)
    return np.stack([x.ravel(), y.ravel()], axis=-1)


def test_a_map_is_one_run_with_its_pixels_pictures_and_figures(lab):
    output = lab.run(*SMALL, module=MODULE)
    (run,) = lab.runs("map")
    assert run.info.status == "FINISHED"
    assert run.data.params["map.x.key"] == "optimizer.block_rates.1"
    assert run.data.params["map.resolution"] == "32"
    config = made(*SMALL)
    problem = Problem.random(8, 8, 0)
    expected = score(losses(problem, "identity", rates_of(config), 100, "float64")).reshape(32, 32)
    pixels = np.load(lab.artifact(run, "map.npy"))
    assert pixels.tobytes() == expected.tobytes()
    labels = expected["outcome"] == TRAINED
    assert run.data.metrics["map/trained"] == pytest.approx(labels.mean())
    assert run.data.metrics["map/networks_a_second"] > 0
    assert f"{labels.mean():.2%} trained" in output
    assert "window: optimizer.block_rates.1 0.001 to 1000000.0, optimizer.block_rates.2 0.001 to 1000000.0" in output
    assert "boxes of 1 to 4 pixels in 32 x 32" in output
    for name in ("map.png", "floor.png", "boxes.png", "map.txt", "floor.npy"):
        assert lab.artifact(run, name).stat().st_size > 0
    note = run.data.tags["mlflow.note.content"]
    for name in ("map", "floor", "boxes"):
        page = f"#/experiments/1/runs/{run.info.run_id}/artifacts/{name}.png?workflowType=machine_learning"
        assert f"[{name}]({page})" in note
        assert f"![{name}.png](get-artifact?path={name}.png&run_uuid={run.info.run_id})" in note
    assert lab.artifact(run, "map.txt").read_text() in note
    floor = np.load(lab.artifact(run, "floor.npy"))
    np.testing.assert_array_equal(floor > 0, boundary_pixels(labels))


@pytest.mark.slow
def test_the_floor_is_what_rounding_and_float32_flip(lab):
    few = ["map.resolution=40", "map.tile=16", "map.x.lower=1e3", "map.y.lower=1e-3", "map.y.upper=1"]
    lab.run(*few, module=MODULE)
    (run,) = lab.runs("map")
    config, problem = made(*few), Problem.random(8, 72, 0)
    rates = rates_of(config)

    def labels(rates, dtype="float64"):
        return (score(losses(problem, "tanh", rates, 100, dtype))["outcome"] == TRAINED).reshape(40, 40)

    own = labels(rates)
    boundary = boundary_pixels(own)
    rounded, single = labels(rates * (1 + 2.0**-52)) != own, labels(rates, "float32") != own
    expected = np.where(boundary, 1 + single + 2 * rounded, 0)
    np.testing.assert_array_equal(np.load(lab.artifact(run, "floor.npy")), expected)
    assert run.data.metrics["floor/precision"] == pytest.approx(single[boundary].mean())
    assert run.data.metrics["floor/rounding"] == pytest.approx(rounded[boundary].mean())
    assert single[boundary].mean() > 0.02


def test_a_title_names_nothing_that_is_mapped():
    assert title_of(made("trainability=depth_by_rate")) == "digits, relu, width 16: 32 x 32 networks, float32"
    paper = "tanh, width 8, 100 updates (Sohl-Dickstein 2024): 256 x 256 networks, float64"
    assert title_of(made("trainability=fractal_tanh")) == paper


def test_the_authors_own_networks_have_the_authors_labels(lab):
    file = PUBLISHED / "trainability_identity_n8.npz"
    lab.run("trainability=fractal_identity", "map.resolution=32", f"map.file={file}", "map.floor=false", module=MODULE)
    (run,) = lab.runs("map")
    trained = np.load(lab.artifact(run, "map.npy"))["outcome"] == TRAINED
    np.testing.assert_array_equal(trained, np.load(file)["trainable"])


@pytest.fixture(scope="module")
def unbroken():
    """The pixels of the map that nothing disturbs."""
    rates = rates_of(made(*LONGER))
    return score(losses(Problem.random(8, 72, 0), "tanh", rates, 100, "float64")).reshape(64, 64)


def begun(lab, tiles=3):
    """A map under way, with so many tiles stored."""
    process = lab.start(*LONGER, module=MODULE)
    deadline = time.monotonic() + 120
    while len(list((lab.folder / "there").glob("tile_*.npz"))) < tiles:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


def test_a_killed_map_trains_the_missing_tiles_alone(lab, unbroken):
    process = begun(lab)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    tiles = {file: file.stat().st_mtime_ns for file in (lab.folder / "there").glob("tile_*.npz")}
    assert 3 <= len(tiles) < 16
    assert not (lab.folder / "there" / "result" / "map.npy").exists()
    output = lab.run(*LONGER, module=MODULE)
    assert f"{len(tiles)} of 16 tiles of the map are there already" in output
    assert {file: file.stat().st_mtime_ns for file in tiles} == tiles
    assert np.load(lab.folder / "there" / "result" / "map.npy").tobytes() == unbroken.tobytes()
    (run,) = lab.runs("map")
    assert run.info.status == "FINISHED"


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_an_interrupted_map_ends_in_order(lab, number):
    process = begun(lab)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "Traceback" not in output
    assert [run.info.status for run in lab.runs("map")] == ["KILLED"]


@pytest.mark.slow
def test_a_killed_process_costs_its_tile_and_no_other(lab, unbroken):
    process = begun(lab)
    workers = [child for child in psutil.Process(process.pid).children(recursive=True) if "loky" in " ".join(child.cmdline())]
    workers[-1].kill()
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    assert np.load(lab.folder / "there" / "result" / "map.npy").tobytes() == unbroken.tobytes()


@pytest.mark.slow
def test_a_tile_that_was_cut_short_is_trained_again_and_said_so(lab):
    arguments = [*SMALL, "map.folder=there"]
    lab.run(*arguments, module=MODULE)
    folder = lab.folder / "there"
    before = (folder / "result" / "map.npy").read_bytes()
    tile = folder / "tile_00002.npz"
    tile.write_bytes(tile.read_bytes()[: tile.stat().st_size // 2])
    (folder / "tile_00003.npz").write_bytes(b"")
    np.savez(folder / "tile_00001.npz", values=np.zeros((3, 3), PIXEL))
    output = lab.run(*arguments, module=MODULE)
    assert "tile_00002.npz is cut short or damaged (File is not a zip file): it is trained again" in output
    assert "tile_00003.npz is cut short or damaged" in output
    assert "tile_00001.npz holds" in output
    assert "1 of 4 tiles of the map are there already" in output
    assert (folder / "result" / "map.npy").read_bytes() == before
    assert len(lab.runs("map")) == 1


def test_a_folder_holds_one_map(lab):
    arguments = [*SMALL, "map.floor=false", "map.folder=there"]
    lab.run(*arguments, module=MODULE)
    output = lab.run(*arguments, "map.x.lower=0.1", module=MODULE, status=1)
    assert "which holds the tiles of another map: name another folder" in output
    assert len(lab.runs("map")) == 1
    tile = lab.folder / "there" / "tile_00000.npz"
    before = tile.stat().st_mtime_ns
    lab.run(*arguments, module=MODULE)
    assert tile.stat().st_mtime_ns == before
    lab.run(*arguments, "sweep.resume=false", module=MODULE)
    assert tile.stat().st_mtime_ns > before
    assert len(lab.runs("map")) == 2


def test_of_two_starts_at_once_one_says_so(lab):
    process = begun(lab)
    # So that it is not done before the second one begins.
    process.send_signal(signal.SIGSTOP)
    try:
        output = lab.run(*LONGER, module=MODULE, status=1)
        assert "error: this map is being trained by another process" in output
    finally:
        process.kill()
        process.communicate()


def full(*arguments, **more):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_where_no_space_is_left_what_is_finished_stays(tmp_path, monkeypatch):
    tiles = Tiles(tmp_path, "tile", PIXEL)
    tiles.write(0, np.zeros((4, 4), PIXEL))
    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(UserError) as error:
        tiles.write(1, np.zeros((4, 4), PIXEL))
    assert "no space is left there; the tiles in it stay, the same command trains the others" in str(error.value)
    assert "\n" not in str(error.value)
    assert [file.name for file in tmp_path.iterdir()] == ["tile_00000.npz"]
    assert tiles.read(0, (4, 4)) is not None
    monkeypatch.setattr(np.lib.format, "write_array_header_2_0", full)
    with pytest.raises(UserError, match="no space is left there"):
        assemble(tmp_path / "map.npy", (4, 4), PIXEL, [np.zeros((4, 4), PIXEL)])
    assert [file.name for file in tmp_path.iterdir()] == ["tile_00000.npz"]


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="needs a file system that is full")
def test_a_full_file_system_ends_the_command_in_one_line(lab):
    there = lab.folder / "there"
    there.mkdir()
    import subprocess

    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(there)], check=True)
    try:
        output = lab.run(*LONGER, "map.resolution=96", module=MODULE, status=1)
        assert "error: map.folder is" in output
        assert "no space is left there" in output
        assert "Traceback" not in output
        assert len(list(there.glob("tile_*.npz"))) > 0
        assert [run.info.status for run in lab.runs("map")] == ["FAILED"]
    finally:
        subprocess.run(["umount", str(there)], check=True)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["map.resolution=1"], "error: map.resolution is 1, it must be a whole number from 2 to 4096"),
        (["trainability=fractal_sine"], "error: In 'trainability': Could not find 'trainability/fractal_sine'"),
        (["map.pixels=3"], "Key 'pixels' not in 'MapConfig'; full_key: map.pixels; allowed: x, y, setup, file"),
        (["map.file=nowhere.npz"], "error: map.file is 'nowhere.npz', it must be a .npz with W0, W1, X and Y: "),
        (["map.backend=slurm"], "error: map.backend 'slurm' is unknown, allowed: loky, ray, dask"),
        (["map.address=there:1"], "error: map.address is 'there:1', which is for ray and dask: with loky it must be null"),
        (["network.activation=gelu"], "error: network.activation is 'gelu', the paper's set-up has tanh, relu, identity"),
        (["map.x.key=network.gain"], "error: map.x.key is 'network.gain', the paper's set-up maps optimizer.block_rates.1"),
        (["map.folder=/dev/null/there"], "error: map.folder is '/dev/null/there', but /dev/null is not a folder"),
        (["trainability=rate_by_gain", "training.batch_size=9999"], "error: training.batch_size is 9999"),
        (["sweep.halving=2"], "error: sweep.halving is 2.0, which a map does not have: it must be null"),
        (["sweep.measure=r2/train"], "error: sweep.measure is 'r2/train', which a map does not have: it must be loss/train"),
    ],
)
def test_what_cannot_be_mapped_is_one_line_and_makes_nothing(lab, arguments, told):
    output = lab.run(*arguments, module=MODULE, status=1)
    assert told in output
    assert len(output.strip().splitlines()) == 1
    assert list(lab.folder.iterdir()) == []


@pytest.mark.slow
def test_a_zoom_is_a_series_of_frames_in_one_run(lab):
    from PIL import Image

    lab.run("map.resolution=24", "map.tile=24", "map.zoom.frames=3", "map.zoom.factor=4", "map.floor=false", module=MODULE)
    (run,) = lab.runs("map")
    with Image.open(lab.artifact(run, "zoom.gif")) as animation:
        assert animation.n_frames == 3
    first, third = (np.load(lab.artifact(run, f"{name}map.npy")) for name in ("", "frame_003/"))
    assert first.shape == third.shape == (24, 24)
    # Centred on a boundary pixel of the first: both labels are in every frame.
    for pixels in (first, third):
        assert 0 < (pixels["outcome"] == TRAINED).mean() < 1
    assert "optimizer.block_rates.1 0." in lab.artifact(run, "map.txt").read_text()
    # The centre is the boundary's pixel that is next to the middle.
    window = re.findall(r"block_rates\.\d (\S+) to ([^,\s]+)", lab.artifact(run, "frame_003/map.txt").read_text())
    x, y = (np.sqrt(float(lower) * float(upper)) for lower, upper in window)
    pixels = grid(made("map.resolution=24"))
    found = np.abs(np.log(pixels.y / y)).argmin(), np.abs(np.log(pixels.x / x)).argmin()
    away = np.hypot(*(np.argwhere(boundary_pixels(first["outcome"] == TRAINED)) - 12).T)
    assert np.hypot(found[0] - 12, found[1] - 12) == away.min()
    history = lab.client().get_metric_history(run.info.run_id, "map/trained")
    assert [point.step for point in history] == [1, 2, 3]


@pytest.mark.slow
def test_a_zoom_has_the_tiles_of_the_map_before_it_and_another_zoom_tiles_of_its_own(lab):
    few = ["map.resolution=16", "map.tile=16", "map.floor=false", "map.n_jobs=1"]
    lab.run(*few, module=MODULE)
    (tile,) = lab.folder.rglob("tile_*.npz")
    trained = tile.stat().st_mtime_ns
    lab.run(*few, "map.zoom.frames=2", module=MODULE)
    assert len(list(lab.folder.rglob("tile_*.npz"))) == 2
    lab.run(*few, "map.zoom.frames=2", "map.zoom.factor=4", module=MODULE)
    assert len(list(lab.folder.rglob("tile_*.npz"))) == 3
    assert tile.stat().st_mtime_ns == trained
    plain, zoom, narrower = lab.runs("map")
    assert not lab.artifact(plain, "zoom.gif").exists()
    first, second, third = (np.load(lab.artifact(run, "map.npy")).tobytes() for run in (plain, zoom, narrower))
    assert first == second == third
    frames = [np.load(lab.artifact(run, "frame_002/map.npy")).tobytes() for run in (zoom, narrower)]
    assert frames[0] != frames[1]


def test_a_folder_in_which_another_process_trains_is_one_line(tmp_path):
    line = "where another process trains tiles: wait for it"
    with _folder_lock(tmp_path / "there"), pytest.raises(UserError, match=line), _folder_lock(tmp_path / "there"):
        pass


def linear_boundary(lab, *overrides):
    """The command's map of a linear model, and where it is known to diverge: above 2 / (lambda_max + lambda)."""
    arguments = ["trainability=linear", "dataset.test_fraction=0.9", *overrides]
    lab.run(*arguments, module=MODULE)
    (run,) = lab.runs("map")
    config = made(*arguments)
    x = load_dataset(config.dataset).x
    limit = 2 / (np.linalg.eigvalsh(x @ x.T / x.shape[1])[-1] + grid(config).y)
    return run, np.load(lab.artifact(run, "map.npy")), grid(config).x > limit[:, None]


@pytest.mark.slow
def test_the_boundary_of_a_linear_model_is_at_the_right_pixel_everywhere(lab):
    _, pixels, above = linear_boundary(lab, "map.resolution=24")
    np.testing.assert_array_equal(pixels["outcome"] == DIVERGED, above)
    np.testing.assert_array_equal(pixels["outcome"] == TRAINED, ~above)


@pytest.mark.slow
def test_the_boundary_of_a_linear_model_has_dimension_1(lab):
    run, pixels, above = linear_boundary(lab, "map.resolution=96", "training.epochs=2000")
    np.testing.assert_array_equal(pixels["outcome"] == DIVERGED, above)
    assert 1.0 <= round(run.data.metrics["map/dimension"], 9) <= 1.05
    assert run.data.metrics["map/dimension_lower"] <= 1 <= run.data.metrics["map/dimension_upper"]


def test_bands_are_the_rows_of_a_map(tmp_path):
    values = np.arange(77 * 5).reshape(77, 5)
    assemble(tmp_path / "map.npy", values.shape, values.dtype, np.array_split(values, 9))
    np.testing.assert_array_equal(np.load(tmp_path / "map.npy"), values)
    for start, band in read_bands(tmp_path / "map.npy", rows=16, rows_before=1, rows_after=2):
        np.testing.assert_array_equal(band, values[max(start - 1, 0) : start + 18])
    np.testing.assert_array_equal(np.concatenate([band for _, band in read_bands(tmp_path / "map.npy", rows=10)]), values)


def test_a_tile_that_somebody_else_has_put_there_is_trained_again(tmp_path):
    tiles = Tiles(tmp_path, "tile", PIXEL)
    tiles.write(0, np.zeros((2, 3), PIXEL))
    assert tiles.read(0, (2, 3)).dtype == PIXEL
    for make, told in [
        (os.mkfifo, "is cut short or damaged .it is no plain file"),
        (lambda file: file.symlink_to("/dev/zero"), "is cut short or damaged .it is a link"),
        (lambda file: np.savez(file, values=np.zeros((2, 3))), r"holds float64 \(2, 3\), not"),
        (lambda file: np.savez(file, values=np.zeros((2, 4), PIXEL)), r"holds .* \(2, 4\), not"),
        (lambda file: np.savez(file, other=np.zeros((2, 3), PIXEL)), "is cut short or damaged .'values'"),
    ]:
        tiles.file(0).unlink()
        make(tiles.file(0))
        with pytest.raises(ValueError, match=f"tile_00000.npz {told}"):
            tiles.read(0, (2, 3))
    tiles.write(0, np.ones((2, 3), PIXEL))
    assert (tiles.read(0, (2, 3)) == np.ones((2, 3), PIXEL)).all()


def test_a_folder_whose_mark_is_no_file_is_one_line(tmp_path):
    os.mkfifo(tmp_path / OWNER)
    with pytest.raises(UserError, match=r"map.folder is .*, whose fingerprint\.txt is damaged: it is no plain file"):
        _check_owner(tmp_path, "mark")
    assert _check_owner(tmp_path / "new", "mark") is None


@pytest.mark.slow
def test_memory_is_flat_in_the_grids_size(lab):
    import subprocess
    import sys

    def peak(side):
        """KiB of the command itself, and of the largest of its processes."""
        code = (
            "import resource, sys; from experiments.trainability import main; "
            f"sys.argv = ['map', 'trainability=fractal_identity', 'map.resolution={side}', 'tracking.enabled=false', "
            "'training.epochs=4', 'map.n_jobs=1', 'map.floor=true']; main(); "
            "print(*(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))"
        )
        output = subprocess.run([sys.executable, "-c", code], cwd=lab.folder, capture_output=True, text=True, check=True).stdout
        return np.array(output.strip().splitlines()[-1].split(), int)

    small, large = peak(1024), peak(2048)
    assert (large < small + 30 * 1024).all(), (small, large)
