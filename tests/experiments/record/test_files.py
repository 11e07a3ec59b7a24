import dataclasses
import os
import pickle

import numpy as np
import pytest

from experiments.record import files
from experiments.run.composition import parse_config
from experiments.run.config import UserError
from experiments.run.data import load_task
from experiments.run.stack import train_stack


@pytest.fixture
def folder(composed, tmp_path):
    (run,) = train_stack([parse_config(composed("training.epochs=1", "network.depth=2", "network.width=8"))])
    files.write(run, tmp_path)
    return tmp_path


def test_what_is_written_is_read(folder, composed):
    (run,) = train_stack([parse_config(composed("training.epochs=1", "network.depth=2", "network.width=8"))])
    kept = files.read(folder)
    assert kept.parameters.tobytes() == run.parameters.tobytes()
    assert kept.history.grad_norm.tobytes() == run.history.grad_norm.tobytes()
    assert kept.config["network"]["width"] == 8


def test_a_run_that_its_last_update_led_astray_is_read(composed, tmp_path):
    # The first value that is not finite is one of the whole data sets, after all steps.
    overrides = [
        "dataset=iris",
        "training.epochs=1",
        "training.batch_size=null",
        "network.depth=2",
        "optimizer.learning_rate=1e30",
    ]
    (run,) = train_stack([parse_config(composed(*overrides))])
    assert run.history.diverged_step == len(run.history.loss) == 1
    files.write(run, tmp_path)
    assert files.read(tmp_path).history.diverged_step == 1


def test_the_environment_is_the_worker_s_that_trained_the_run(composed, tmp_path):
    (run,) = train_stack([parse_config(composed("training.epochs=1", "network.depth=2", "network.width=8"))])
    files.write(dataclasses.replace(run, environment={**run.environment, "cpu": "another"}), tmp_path)
    kept = files.read(tmp_path).environment
    assert (kept["cpu"], kept["numpy"], kept["threads"]) == ("another", np.__version__, "1")


@pytest.mark.parametrize("name", [files.HISTORY, files.PARAMETERS, files.CONFIG, files.ENVIRONMENT])
@pytest.mark.parametrize("share", [0, 0.3, 0.99])
def test_a_file_that_was_cut_off_is_a_clear_error(folder, name, share):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: int(share * len(content))])
    if name == files.CONFIG and share:
        # Half a YAML file may be YAML; then its keys are missing, which the schema or the fingerprint sees.
        return
    with pytest.raises(UserError, match=rf"{name} is damaged"):
        files.read(folder)


def test_a_missing_file_is_a_clear_error(folder):
    (folder / files.PARAMETERS).unlink()
    with pytest.raises(UserError, match=r"parameters\.npy is not there"):
        files.read(folder)


class Trap:
    def __reduce__(self):
        return os.system, ("touch sprung",)


@pytest.mark.parametrize("name", [files.HISTORY, files.PARAMETERS])
def test_nothing_is_unpickled(folder, name, monkeypatch):
    monkeypatch.chdir(folder)
    trap = np.array([Trap()], dtype=object)
    with (folder / name).open("wb") as file:
        np.savez(file, loss=trap) if name == files.HISTORY else np.save(file, trap, allow_pickle=True)
    with pytest.raises(UserError, match="is damaged"):
        files.read(folder)
    (folder / name).write_bytes(pickle.dumps(Trap()))
    with pytest.raises(UserError, match="is damaged"):
        files.read(folder)
    assert not (folder / "sprung").exists()


def arrays(folder, **edits):
    """The history's file again, with other arrays."""
    with np.load(folder / files.HISTORY) as saved:
        values = {**dict(saved), **edits}
    np.savez(folder / files.HISTORY, **{name: value for name, value in values.items() if value is not None})


def signals(values=(1, 11, 2), counts=(1, 2, 3), edges=(0, 1, 2, np.inf), dtype=np.uint16, symbols=("z", "a", "da", "dW")):
    """What the instrument signals leaves in a history's file, of two blocks and three bins."""
    name, edges = "quantities/signals", np.array(edges, float)
    histograms = [{f"{name}/{s}/edges": edges, f"{name}/{s}/counts": np.zeros(counts, dtype)} for s in symbols]
    return {name: np.zeros(values), f"{name}/at": np.zeros(1, int)} | {
        key: array for each in histograms for key, array in each.items()
    }


# What History.load takes and nothing else could work with. 23 steps of 2 blocks, 2 evaluations.
UNFIT = [
    {"loss": np.array(["0.1"] * 23)},
    {"loss": np.zeros(23, "<f4,<f4")},
    {"loss": np.zeros(23, complex)},
    {"loss": np.zeros(23, np.longdouble)},
    {"loss": np.zeros(23, int)},
    {"loss": np.zeros(22)},
    {"loss": np.zeros(())},
    {"loss": None},
    {"grad_norm": np.zeros((23, 3))},
    {"grad_norm": np.zeros((2, 23, 2))},
    {"grad_norm": np.zeros((0, 2)), "grad_norm_b": np.zeros((0, 2)), "loss": np.zeros(0), "batch_sizes": np.zeros(0, int)},
    {"evaluated": np.array([0, 10**9])},
    {"diverged_step": np.array(10**9)},
    {"diverged_block": np.array([1, 2])},
    {"steps_an_epoch": np.array(0)},
    {"steps_an_epoch": np.array([1, 2])},
    {"measures/loss/train": np.zeros(0)},
    {"quantities/sharpness": np.zeros((1, 1))},
    {"quantities/sharpness": np.zeros((1, 1)), "quantities/sharpness/at": np.zeros(2, int)},
    {"measures/\x1b[2J": np.zeros(2)},
    {"quantities/foo": np.zeros((1, 1)), "quantities/foo/at": np.zeros(1, int)},
    {"quantities/foo/at": np.zeros(1, int)},
    {"quantities/signals": np.zeros((1, 11, 2)), "quantities/signals/at": np.zeros(1, int)},
    *(signals(**edit) for edit in ({"values": (1, 11, 3)}, {"counts": (1, 2, 4)}, {"counts": (1, 3, 3)}, {"counts": (2, 2, 3)})),
    *(signals(edges=edges) for edges in ([0, 1, 1, 2], [3, 2, 1, 0], [np.nan] * 4, [[0, 1, 2, 3]], [0])),
    signals(dtype=float),
    signals(symbols=["z", "a", "da"]),
    {**signals(), "quantities/signals/surprise/counts": np.zeros((1, 2, 3), np.uint8)},
    {"surprise": np.zeros(1)},
]


def test_a_history_whose_arrays_do_not_fit_each_other_is_damaged(folder):
    honest = (folder / files.HISTORY).read_bytes()
    for edit in UNFIT:
        (folder / files.HISTORY).write_bytes(honest)
        arrays(folder, **edit)
        with pytest.raises(UserError, match=r"history\.npz is damaged: \S") as damaged:
            files.read(folder)
        assert "\n" not in str(damaged.value)


def test_signals_are_read(folder):
    arrays(folder, **signals())
    quantity = files.read(folder).history.quantities["signals"]
    assert quantity.histograms["dW"].edges.tolist() == [0, 1, 2, np.inf]


def test_histograms_that_no_record_has_room_for_are_refused_before_training(composed):
    config = parse_config(composed("network.depth=65", "instruments.signals=1", "training.epochs=100"))
    with pytest.raises(
        UserError, match=r"training.epochs is 100 and network.depth 65, instruments.signals 1, whose history takes"
    ):
        files.check_recordable(config, load_task(config))
    fewer = parse_config(composed("network.depth=65", "instruments.signals=log", "training.epochs=100"))
    files.check_recordable(fewer, load_task(fewer))


@pytest.mark.parametrize("name", [files.HISTORY, files.PARAMETERS])
def test_arrays_of_more_than_a_record_has_are_not_read(folder, name):
    os.truncate(folder / name, files.ARRAY_BYTES + 1)
    with pytest.raises(UserError, match=rf"{name} is damaged: it has 268435457 bytes, 268435456 at most are read"):
        files.read(folder)


@pytest.mark.parametrize("parameters", [np.zeros(3, int), np.zeros((3, 1)), np.array("text"), np.zeros(3, complex)])
def test_parameters_are_a_vector_of_floats(folder, parameters):
    np.save(folder / files.PARAMETERS, parameters)
    with pytest.raises(UserError, match=r"parameters\.npy is damaged: \S"):
        files.read(folder)


@pytest.mark.parametrize("name", files.FILE_NAMES)
def test_a_fifo_a_device_or_somebody_else_s_file_in_the_place_of_one_is_not_opened(folder, name):
    secret = folder / "secret"
    secret.write_text("password: password")
    file = folder / name
    for make in (os.mkfifo, lambda at: at.symlink_to("/dev/zero"), lambda at: at.symlink_to(secret)):
        file.unlink(missing_ok=True)
        make(file)
        with pytest.raises(UserError, match=rf"{name} is damaged: it is (no plain file|a link)") as damaged:
            files.read(folder)
        assert "password" not in str(damaged.value)


def test_a_diff_that_is_no_text_is_damaged_and_what_is_wrong_is_said_without_escapes(folder):
    (folder / files.DIFF).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"git\.diff is damaged: .*can't decode"):
        files.read(folder)
    (folder / files.ENVIRONMENT).write_text('{"\\u001b]0;owned\\u0007\\u202e": 1}')
    with pytest.raises(UserError) as damaged:
        files.read(folder)
    assert str(damaged.value).endswith(r"environment.json is damaged: \x1b]0;owned\x07\u202e must be text")
