import shlex

import numpy as np
import pytest
import yaml
from mlflow import MlflowClient
from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH, _validate_param

from blocks.history import log_spaced
from experiments.record import check_tracking
from experiments.record.address import absolute_uri, check_reachable
from experiments.record.metrics import metrics, param_texts
from experiments.record.outbox import Outbox
from experiments.record.tracking import Store
from experiments.record.writer import Requests
from experiments.run.composition import parse_config
from experiments.run.config import TrackingConfig, UserError
from experiments.run.job import reason_of
from experiments.run.naming import flatten
from experiments.run.stack import train_stack


@pytest.fixture
def trained(composed):
    return train_stack([parse_config(composed("training.epochs=3", "network.depth=3", "network.width=8"))])[0]


def recorded(lab, trained):
    lab.make_store()
    trained.config.tracking.uri = lab.uri
    store = Store(trained.config.tracking)
    run = store.begin("a run", {"kind": "run"}, config=trained.config)
    store.finish([(run, trained)])
    return store, store.client.get_run(run.run_id)


def test_a_run_is_written_whole(lab, trained):
    store, run = recorded(lab, trained)
    assert run.info.status == "FINISHED"
    assert run.data.tags["outcome"] == trained.outcome
    # What the dashboard's linear axes need beside the config: the rate is 0.1.
    around = ("tracking.", "sweep.")
    expected = {key: value for key, value in flatten(trained.config).items() if not key.startswith(around)}
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


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError("Unable to allocate 3 GiB\nfor an array"), "Unable to allocate 3 GiB for an array"),
        (MemoryError(), "MemoryError"),
        (ValueError("\x1b[31m" + "long " * 5000), "\\x1b[31mlong long"),
        (KeyboardInterrupt(), "interrupted by SIGINT"),
        (SystemExit(143), "interrupted by SIGTERM"),
        (SystemExit(1), "left with status 1"),
    ],
)
def test_a_run_that_failed_has_its_params_and_the_reason(lab, trained, error, reason):
    lab.make_store()
    store = Store(TrackingConfig(uri=lab.uri))
    begun = store.begin("a run", {"kind": "run"}, config=trained.config)
    begun.fail(reason_of(error), "FAILED")
    run = store.client.get_run(begun.run_id)
    assert run.info.status == "FAILED"
    assert run.data.tags["reason"].startswith(reason)
    assert (run.data.params["network.depth"], run.data.params["training.epochs"]) == ("3", "3")


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
    deep = train_stack(
        [parse_config(composed("training.epochs=1", "network.depth=65", "network.width=4", "training.batch_size=null"))]
    )[0]
    for blocks, shown in ((12, 12), (2, 2), (None, 65)):
        numbers = sorted(int(m.key[-2:]) for m in metrics(deep, 20, blocks) if m.key.startswith("grad_norm/W"))
        assert len(numbers) == shown
        assert (numbers[0], numbers[-1]) == (1, 65)
        assert max(np.diff(numbers)) - min(np.diff(numbers)) <= 1


def test_a_run_that_diverges_has_no_nan_or_inf_in_its_metrics(lab, composed):
    diverging = train_stack([parse_config(composed("training.epochs=3", "network.width=8", "optimizer.learning_rate=1e8"))])[0]
    assert diverging.outcome == "diverged"
    assert not np.isfinite(diverging.history.loss).all()
    assert all(np.isfinite(metric.value) for metric in metrics(diverging, 20, None))
    _, run = recorded(lab, diverging)
    assert run.info.status == "FINISHED"
    assert run.data.tags["diverged_step"] == str(diverging.history.diverged_step)
    assert int(run.data.tags["diverged_block"]) in (0, 1, 2, 3)
    assert "final/loss_train" not in run.data.metrics


@pytest.mark.parametrize("rate", [1e8, 1e3, 30.0])
def test_what_blows_up_is_not_drawn_and_final_losses_are_what_they_are(composed, rate):
    run = train_stack([parse_config(composed("training.epochs=3", "network.width=8", f"optimizer.learning_rate={rate}"))])[0]
    written = list(metrics(run, 20, None))
    losses = [metric.value for metric in written if metric.key.startswith("loss/")]
    norms = [metric.value for metric in written if metric.key.startswith("grad_norm/")]
    first = run.history.loss[0], np.sqrt((run.history.grad_norm[0] ** 2 + run.history.grad_norm_b[0] ** 2).sum())
    # A hundredfold the first loss, ten thousandfold the first norm.
    assert max(losses) <= 100 * first[0]
    assert max(norms) <= 10000 * first[1] * (1 + 1e-6)
    assert np.nanmax(run.history.loss) > 100 * first[0]
    ends = {metric.key: metric.value for metric in written if metric.key.startswith("final/loss")}
    last = run.final("loss/train")
    assert ends.get("final/loss_train", np.inf) == (last if np.isfinite(last) else np.inf)


def test_the_first_block_s_norm_over_the_last_one_s_and_the_log_of_the_loss_are_metrics(trained):
    written = [(metric.key, metric.step, metric.value) for metric in metrics(trained, 20, None)]
    norms = trained.history.grad_norm.astype(float)
    ratios = {step: value for key, step, value in written if key == "norm_ratio/first_over_last"}
    assert ratios == {step: pytest.approx(norms[step, 0] / norms[step, -1]) for step in log_spaced(len(norms), 20).tolist()}
    (log,) = [value for key, _, value in written if key == "final/log10_loss_train"]
    assert 10**log == pytest.approx(trained.final("loss/train"))


def test_the_same_history_is_the_same_bytes(tmp_path, composed):
    for name in ("a.npz", "b.npz"):
        run = train_stack([parse_config(composed("training.epochs=2", "network.width=8"))])[0]
        run.history.save(tmp_path / name)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_the_store_lies_where_the_uri_says_with_its_artifacts_beside_it(lab, trained):
    _, run = recorded(lab, trained)
    assert (lab.folder / "runs.db").exists()
    assert str(lab.artifact(run, "")).startswith(str(lab.folder / "mlartifacts"))


@pytest.mark.parametrize("uri", ["sqlite:////nowhere/at/all.db", "foo", "ftp://host/x", "file:///tmp/mlruns"])
def test_a_uri_that_cannot_be_a_store_is_named(uri):
    with pytest.raises(UserError, match=r"tracking\.uri is"):
        absolute_uri(uri)


def test_a_server_that_does_not_answer_is_named():
    with pytest.raises(UserError, match=r"tracking.uri is 'http://127.0.0.1:9', which does not answer"):
        check_reachable("http://127.0.0.1:9")


def test_a_deleted_experiment_is_named(lab, trained):
    store, run = recorded(lab, trained)
    store.client.delete_experiment(run.info.experiment_id)
    with pytest.raises(UserError, match="was deleted"):
        Store(trained.config.tracking)


def test_an_experiment_that_is_made_twice_is_one(lab, monkeypatch):
    once = MlflowClient.create_experiment

    def twice(*arguments):
        # As a client does whose first answer was lost, or two machines at the same moment.
        once(*arguments)
        return once(*arguments)

    monkeypatch.setattr(MlflowClient, "create_experiment", twice)
    lab.make_store()
    made = Store(TrackingConfig(uri=lab.uri, experiment="made twice"))
    assert made.client.get_experiment(made.experiment_id).name == "made twice"


def test_params_are_what_mlflow_takes():
    said = {"network.depth": [2, 3], "dataset.loader.a@b=c/d": {"x": 1}, "seed": "9" * 10000, "k" * 400: None, "größe": 1}
    for key, value in param_texts(said).items():
        _validate_param(key, value)
        assert len(value) <= MAX_PARAM_VAL_LENGTH
    assert param_texts(said)["dataset.loader.a_b_c_d"] == "{'x': 1}"
    assert param_texts(said)["network.depth"] == "[2, 3]"


def test_params_that_a_run_has_stay(lab):
    lab.make_store()
    store = Store(TrackingConfig(uri=lab.uri))
    run = store.begin("a sweep", {"kind": "sweep"})
    run.log_summary({"network.depth": "range(2,4)"})
    run.log_summary({"network.depth": "2,3", "seed": "0"}, {"map/trained": 0.5})
    found = store.client.get_run(run.run_id).data
    assert found.params == {"network.depth": "range(2,4)", "seed": "0"}
    assert found.metrics == {"map/trained": 0.5}


def test_the_command_that_delivers_can_be_pasted(tmp_path):
    folder = tmp_path / 'a b\'s; "c"'
    command = Outbox(TrackingConfig(), folder).instructions.partition("; python ")[2].removesuffix(" delivers them")
    assert shlex.split(command) == ["-m", "experiments.deliver", str(folder)]


NAMES = ["iris", "team iris", "team/iris", "a:b", "", " ", ".", "..", "..x", "...", "x..", ".x", "../x", "/x", "x/", "x" * 256]


@pytest.mark.parametrize("name", NAMES)
def test_a_model_s_name_is_refused_where_mlflow_would_refuse_it_at_the_end(name, lab):
    from mlflow.exceptions import MlflowException
    from mlflow.utils.validation import _validate_model_name

    config = TrackingConfig(uri=lab.uri, register=name)
    try:
        _validate_model_name(name)
    except MlflowException:
        with pytest.raises(UserError, match=r"tracking\.register is .* without / and :"):
            check_tracking(config)
    else:
        check_tracking(config)


@pytest.mark.parametrize("name", ["", "  ", "x" * 501])
def test_an_experiment_s_name_is_refused_where_mlflow_would_refuse_it(name, lab):
    with pytest.raises(UserError, match=r"tracking\.experiment is .* 1 to 500 characters"):
        check_tracking(TrackingConfig(uri=lab.uri, experiment=name))


def test_an_option_of_the_record_is_checked_before_anything_is_trained(lab):
    output = lab.run("-m", "seed=0,1", "tracking.register=team/iris", status=1)
    assert output.startswith("error: tracking.register is 'team/iris'")
    assert len(output.splitlines()) == 1
    assert not list(lab.folder.iterdir())


@pytest.mark.parametrize("raised", ["MlflowException('a\\nb')", "sqlalchemy.exc.OperationalError('select', {}, Exception('no'))"])
def test_an_error_in_mlflow_is_one_line_once(lab, monkeypatch, raised):
    """Whatever MLflow's client raises: `one_line` follows causes, and would say it twice."""
    import sqlalchemy
    from mlflow.exceptions import MlflowException

    from experiments.train import one_line

    lab.make_store()
    store = Store(TrackingConfig(uri=lab.uri))
    error = eval(raised, {"MlflowException": MlflowException, "sqlalchemy": sqlalchemy})

    def create_run(*arguments, **more):
        raise error

    monkeypatch.setattr(store.client._client, "create_run", create_run)
    store.writer = Requests(store.client, store.experiment_id)
    with pytest.raises(UserError) as found:
        store.begin("a run", {})
    said = one_line(found.value)
    assert len(said.splitlines()) == 1
    assert said.count("tracking.uri") == 1
    assert said.endswith((": a", ": no"))
