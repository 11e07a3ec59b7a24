import dataclasses
import os
import pickle

import numpy as np
import pytest

from experiments.record import files
from experiments.run.config import UserError, typed
from experiments.run.stack import train_stack


@pytest.fixture
def folder(composed, tmp_path):
    (run,) = train_stack([typed(composed("training.epochs=1", "network.depth=2", "network.width=8"))])
    files.write(run, tmp_path)
    return tmp_path


def test_what_is_written_is_read(folder, composed):
    (run,) = train_stack([typed(composed("training.epochs=1", "network.depth=2", "network.width=8"))])
    kept = files.read(folder)
    assert kept.parameters.tobytes() == run.parameters.tobytes()
    assert kept.history.grad_norm.tobytes() == run.history.grad_norm.tobytes()
    assert kept.config["network"]["width"] == 8


def test_the_environment_is_the_worker_s_that_trained_the_run(composed, tmp_path):
    (run,) = train_stack([typed(composed("training.epochs=1", "network.depth=2", "network.width=8"))])
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
