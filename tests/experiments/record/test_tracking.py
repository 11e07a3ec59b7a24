import numpy as np
import pytest
import yaml

from blocks.history import log_spaced
from experiments.record.address import absolute, check_reachable
from experiments.record.metrics import metrics
from experiments.record.tracking import Store
from experiments.run.config import UserError, flat, typed
from experiments.run.stack import train_stack


@pytest.fixture
def trained(composed):
    return train_stack([typed(composed("training.epochs=3", "network.depth=3", "network.width=8"))])[0]


def recorded(lab, trained):
    trained.config.tracking.uri = lab.uri
    store = Store(trained.config.tracking)
    run = store.begin("a run", {"kind": "run"})
    run.finish(trained)
    return store, store.client.get_run(run.run_id)


def test_a_run_is_written_whole(lab, trained):
    store, run = recorded(lab, trained)
    assert run.info.status == "FINISHED"
    assert run.data.tags["outcome"] == trained.outcome
    # What the dashboard's linear axes need beside the config: the rate is 0.1.
    around = ("tracking.", "sweep.")
    expected = {key: value for key, value in flat(trained.config).items() if not key.startswith(around)}
    expected["optimizer.log10_learning_rate"] = -1.0
    assert run.data.params == {key: str(value) for key, value in expected.items()}
    (dataset,) = [entry.dataset for entry in run.inputs.dataset_inputs]
    assert dataset.name == "digits"

    with np.load(lab.artifact(run, "history.npz"), allow_pickle=False) as history:
        np.testing.assert_array_equal(history["loss"], trained.history.loss)
        np.testing.assert_array_equal(history["grad_norm"], trained.history.grad_norm)
        np.testing.assert_array_equal(history["measures/loss/train"], trained.history.measures["loss/train"])
    config = yaml.safe_load(lab.artifact(run, "config.yaml").read_text())
    assert config["network"]["depth"] == 3
    environment = yaml.safe_load(lab.artifact(run, "environment.json").read_text())
    assert environment["numpy"] == np.__version__
    assert environment["threads"] == "1"
    assert {"blas", "blas_kernel", "cpu", "python", "git.commit"} <= environment.keys()

    steps = trained.history.loss.shape[0]
    points = store.client.get_metric_history(run.info.run_id, "grad_norm/W_02")
    assert [point.step for point in points] == log_spaced(steps, 20).tolist()
    assert [point.value for point in points] == trained.history.grad_norm[log_spaced(steps, 20), 1].astype(float).tolist()


def test_metrics_are_named_by_block_and_never_more_than_the_points(trained):
    written = list(metrics(trained, points=5, blocks=None))
    names = {metric.key for metric in written}
    assert {"loss/batch", "loss/train", "loss/validation", "accuracy/train", "accuracy/validation"} <= names
    assert {"grad_norm/W_01", "grad_norm/W_02", "grad_norm/W_03", "grad_norm/all"} <= names
    assert {"final/loss_train", "best/accuracy_validation"} <= names
    values, measures = {metric.key: metric.value for metric in written}, trained.history.measures
    assert values["final/loss_train"] == measures["loss/train"][-1]
    assert values["best/loss_train"] == measures["loss/train"].min() < measures["loss/train"].max()
    assert values["best/accuracy_train"] == measures["accuracy/train"].max() > measures["accuracy/train"].min()
    steps = trained.history.loss.shape[0]
    for name in names - {name for name in names if name.startswith(("final", "best"))}:
        at = [metric.step for metric in written if metric.key == name]
        assert len(at) <= 5
        assert at == sorted(set(at))
        assert at[0] == 0
        assert at[-1] in (steps - 1, steps)


def test_a_deep_network_shows_a_dozen_blocks_evenly_spaced_and_all_when_asked(composed):
    deep = train_stack([typed(composed("training.epochs=1", "network.depth=65", "network.width=4", "training.batch_size=null"))])[
        0
    ]
    for blocks, shown in ((12, 12), (2, 2), (None, 65)):
        numbers = sorted(int(m.key[-2:]) for m in metrics(deep, 20, blocks) if m.key.startswith("grad_norm/W"))
        assert len(numbers) == shown
        assert (numbers[0], numbers[-1]) == (1, 65)
        assert max(np.diff(numbers)) - min(np.diff(numbers)) <= 1


def test_a_run_that_diverges_has_no_nan_or_inf_in_its_metrics(lab, composed):
    diverging = train_stack([typed(composed("training.epochs=3", "network.width=8", "optimizer.learning_rate=1e8"))])[0]
    assert diverging.outcome == "diverged"
    assert not np.isfinite(diverging.history.loss).all()
    assert all(np.isfinite(metric.value) for metric in metrics(diverging, 20, None))
    _, run = recorded(lab, diverging)
    assert run.info.status == "FINISHED"
    assert run.data.tags["diverged_step"] == str(diverging.history.diverged_step)
    assert int(run.data.tags["diverged_block"]) in (0, 1, 2, 3)
    assert "final/loss_train" not in run.data.metrics


def test_the_same_history_is_the_same_bytes(tmp_path, composed):
    for name in ("a.npz", "b.npz"):
        run = train_stack([typed(composed("training.epochs=2", "network.width=8"))])[0]
        run.history.save(tmp_path / name)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_the_store_lies_where_the_uri_says_with_its_artifacts_beside_it(lab, trained):
    _, run = recorded(lab, trained)
    assert (lab.folder / "runs.db").exists()
    assert str(lab.artifact(run, "")).startswith(str(lab.folder / "mlartifacts"))


@pytest.mark.parametrize("uri", ["sqlite:////nowhere/at/all.db", "foo", "ftp://host/x", "file:///tmp/mlruns"])
def test_a_uri_that_cannot_be_a_store_is_named(uri):
    with pytest.raises(UserError, match=r"tracking\.uri is"):
        absolute(uri)


def test_a_server_that_does_not_answer_is_named():
    with pytest.raises(UserError, match=r"tracking.uri is 'http://127.0.0.1:9', which does not answer"):
        check_reachable("http://127.0.0.1:9")


def test_a_deleted_experiment_is_named(lab, trained):
    store, run = recorded(lab, trained)
    store.client.delete_experiment(run.info.experiment_id)
    with pytest.raises(UserError, match="was deleted"):
        Store(trained.config.tracking)
