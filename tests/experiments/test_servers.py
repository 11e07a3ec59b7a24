"""Tracking servers as users have them: behind a password, a prefix, busy, slow, gone, or none at all."""

import os
import socket
import threading
from contextlib import contextmanager

import pytest

from experiments.record.address import Unreachable, check_reachable
from experiments.record.reading import Archive
from experiments.record.tracking import Store
from experiments.run.composition import parse_config
from experiments.run.config import TrackingConfig, UserError
from experiments.run.stack import train_stack
from tests.benchmarks.drills import server
from tests.experiments.conftest import ALONE
from tests.experiments.proxy import Proxy

PASSWORD = "s3cret-enough"
TINY = ["dataset=iris", "network.width=8", "training.epochs=1", "tracking.pictures=none", "tracking.models=none"]
FOUR = ["-m", *TINY, "network.depth=2,3", "optimizer.learning_rate=0.1,0.2"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def behind(tmp_path_factory):
    with server(tmp_path_factory.mktemp("server")) as started:
        yield started


@pytest.fixture(autouse=True)
def own_environment(monkeypatch):
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.fixture
def tracking(request):
    """An experiment of the test's own."""
    return TrackingConfig(experiment=request.node.name)


def trained(composed):
    (run,) = train_stack([parse_config(composed(*TINY))])
    return run


def statuses(store):
    return sorted(run.info.status for run in store.client.search_runs([store.experiment_id]))


def test_a_server_with_a_password_and_a_prefix_takes_a_sweep_and_no_file_has_the_password(lab, behind):
    with Proxy(behind.uri, prefix="/team/mlflow", user="ann", password=PASSWORD) as proxy:
        lab.uri = proxy.uri
        refused = lab.run(*FOUR, status=1)
        assert "answers 401: MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in refused
        assert len(refused.splitlines()) == 1
        lab.uri = proxy.uri.replace("://", f"://ann:{PASSWORD}@")
        # Once by the variable, once typed.
        output = lab.run("experiment=kinds", *TINY, "tracking.experiment=private")
        output += lab.run(*FOUR, f"tracking.uri={lab.uri}", "tracking.experiment=private")
        assert "4 trained" in output or "trained" in output
        runs = Store(TrackingConfig(uri=lab.uri, experiment="private")).client.search_runs(["1", "2", "3"])
        again = lab.run(runs[0].info.run_id, "--uri", lab.uri, module="experiments.reproduce")
        assert "1 of 1 runs are identical" in again
        lab.uri = proxy.uri.replace("://", "://ann:wrong@")
        refused = lab.run("--all", "private", module="experiments.reproduce", status=1)
        assert "answers 401" in refused
    assert PASSWORD not in output + again
    for folder in (lab.folder, behind.folder):
        written = [path for path in folder.rglob("*") if path.is_file()]
        assert len(written) > 4
        assert [path for path in written if PASSWORD.encode() in path.read_bytes()] == []


def test_a_sweep_on_a_server_keeps_its_own_pictures_and_no_run_s_files(lab, behind):
    lab.uri = behind.uri
    axes = ["network.depth=2,3", "optimizer.learning_rate=0.1,0.2", "network.width=8", "training.epochs=1", ALONE]
    lab.run("-m", "dataset=iris", *axes, "tracking.experiment=pictures")
    store = Store(TrackingConfig(uri=behind.uri, experiment="pictures"))
    (parent,) = store.client.search_runs([store.experiment_id], "tags.kind = 'sweep'")
    (folder,) = behind.folder.glob(f"artifacts/*/{parent.info.run_id}/artifacts")
    drawn = {f"{name}.{kind}" for name in ("map", "best_curves", "norm_ratios") for kind in ("png", "svg")}
    assert {path.name for path in folder.iterdir()} == {"table.csv", "table.json", "report.html"} | drawn


@pytest.mark.parametrize("status", [429, 502])
def test_a_server_that_is_busy_now_and_then_is_asked_again(status, behind, composed, tracking):
    run = trained(composed)
    with Proxy(behind.uri) as proxy:
        proxy.status = lambda number: status if number % 10 in (0, 7) else None
        tracking.uri = proxy.uri
        store = Store(tracking)
        for _ in range(3):
            store.finish([(store.begin("a run", {"kind": "run"}), run)])
    tracking.uri = behind.uri
    assert statuses(Store(tracking)) == ["FINISHED"] * 3


@pytest.mark.parametrize("status", [403, 503])
def test_a_server_that_lets_nobody_in_any_more_gets_the_records_later(status, behind, lab):
    with Proxy(behind.uri) as proxy:
        lab.uri = proxy.uri
        # The sweep's own run is there, and the first of the jobs'.
        proxy.status = lambda number: status if number > 9 else None
        output = lab.run(*FOUR, f"tracking.experiment=from {status}", status=1)
        assert output.count("training goes on") == 1
        assert "Traceback" not in output
        proxy.status = lambda number: None
        (folder,) = lab.folder.glob("multirun/*/*")
        assert "records delivered" in lab.run(str(folder), module="experiments.deliver")
        store = Store(TrackingConfig(uri=behind.uri, experiment=f"from {status}"))
        runs = store.client.search_runs([store.experiment_id], "attributes.status = 'FINISHED'")
        assert sorted(run.data.tags.get("job", "sweep") for run in runs) == ["0", "1", "2", "3", "sweep"]


def test_a_run_whose_creation_is_not_answered_waits_on_disk(behind, lab):
    with Proxy(behind.uri) as proxy:
        lab.uri = proxy.uri
        proxy.status = lambda number: 403 if any("runs/create" in request for request in proxy.requests) else None
        few = ["dataset=iris", "network.depth=2", "training.epochs=1", "tracking.experiment=one run alone"]
        output = lab.run(*few, status=1)
        assert "Traceback" not in output
        proxy.status = lambda number: None
        (folder,) = lab.folder.glob("outputs/*/*")
        assert "1 records delivered" in lab.run(str(folder), module="experiments.deliver")


def test_a_slow_server_is_asked_for_several_things_at_once(behind, composed, tracking):
    run = trained(composed)
    with Proxy(behind.uri, seconds=0.5) as proxy:
        tracking.uri = proxy.uri
        store = Store(tracking)
        before = len(proxy.requests)
        store.finish([(store.begin("a run", {"kind": "run"}), run)])
        asked = proxy.requests[before:]
    # Its beginning, its numbers, its data, its files, its end: none twice, and nothing is read.
    assert len(asked) == len(set(asked))
    assert not any(request.startswith("GET") for request in asked)


@contextmanager
def listener(answer):
    """A program that answers each connection with those bytes, or with nothing at all."""
    silent = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve():
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                connection.recv(65536)
                if answer is None:
                    silent.append(connection)
                else:
                    connection.sendall(answer)
                    connection.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)
        thread.join()
    for connection in silent:
        connection.close()


PAGE = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello"
OTHER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\nConnection: close\r\n\r\n[]"


@pytest.mark.parametrize(
    "answer", [b"SSH-2.0-OpenSSH_9.2p1\r\n", b"", PAGE, OTHER, None], ids=["ssh", "", "page", "json", "silence"]
)
def test_something_else_at_the_address_is_one_line(answer, tracking):
    with listener(answer) as uri:
        tracking.uri = uri
        with pytest.raises(UserError, match=r"tracking\.uri is 'http://127\.0\.0\.1") as raised:
            Store(tracking)
    assert len(str(raised.value).splitlines()) == 1


def test_a_server_that_becomes_something_else_gets_nothing_and_records_wait(behind, composed, tracking):
    run = trained(composed)
    with Proxy(behind.uri) as proxy:
        tracking.uri = proxy.uri
        store = Store(tracking)
        begun = store.begin("a run", {"kind": "run"})
        proxy.status = lambda number: 404
        with pytest.raises(Unreachable) as raised:
            begun.experiment.finish([(begun, run)])
        assert len(str(raised.value).splitlines()) == 1
        proxy.status = lambda number: None
        begun.end("KILLED")


def test_a_missing_run_is_no_absent_server(behind, tracking, tmp_path):
    tracking.uri = behind.uri
    Store(tracking)
    with pytest.raises(UserError, match="RESOURCE_DOES_NOT_EXIST") as raised:
        Archive(behind.uri, tmp_path).run("0" * 32)
    assert not isinstance(raised.value, Unreachable)
    check_reachable(behind.uri)
    assert "MLFLOW_TRACKING_USERNAME" not in os.environ
