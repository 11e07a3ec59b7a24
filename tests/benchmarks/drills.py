"""What the record promises, put to the test at full count: runs reproduced, sweeps killed, the server taken away."""

import contextlib
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from experiments import dashboard

TRAIN = [sys.executable, "-m", "experiments.train", "-m"]
SMALL = ["network.depth=2,3,9", "optimizer.learning_rate=0.1,0.3,1e6", "network.width=16", "training.epochs=20"]
LONG = [
    "network.depth=2,3,5",
    "optimizer.learning_rate=0.1,0.3",
    "network.width=32",
    "tracking.pictures=none",
    "tracking.models=none",
]
MIXED = [
    "network.depth=1,2,5,17,33",
    "optimizer.learning_rate=0.003,0.1,3",
    "optimizer.name=gradient_descent,adam",
    "dtype=float32,float64",
    "dataset=digits,diabetes,iris",
    "network.width=16",
    "training.epochs=5",
]


class Store:
    """A SQLite store in a folder, read past MLflow so that a look costs nothing and opens nothing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.uri = f"sqlite:///{folder / 'runs.db'}"

    def sweep(self, axes: Sequence[str], uri: str | None = None) -> subprocess.Popen[str]:
        """Start the command, in a process group of its own."""
        environ = {**os.environ, "MLFLOW_TRACKING_URI": uri or self.uri, "DO_NOT_TRACK": "true"}
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return subprocess.Popen([*TRAIN, *axes], cwd=self.folder, env=environ, text=True, start_new_session=True, **streams)  # type: ignore[call-overload]

    def ask(self, query: str) -> list[tuple]:
        """Rows of the store; none where it is not there yet."""
        file = f"file:{self.folder / 'runs.db'}?mode=ro"
        with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(file, uri=True)) as store:
            return store.execute(query).fetchall()
        return []

    def finished(self) -> list[tuple[int, str, Path]]:
        """(job, run id, folder of its artifacts) of the finished runs of sweeps."""
        rows = self.ask(
            "select cast(tags.value as integer), runs.run_uuid, runs.artifact_uri from runs join tags using (run_uuid) "
            "where tags.key = 'job' and runs.status = 'FINISHED' order by 1"
        )
        return [(job, run_id, Path(uri.removeprefix("file://"))) for job, run_id, uri in rows]

    def statuses(self) -> Counter[str]:
        """How many runs of each status, the sweep's own among them."""
        return Counter(dict(self.ask("select status, count(*) from runs group by status")))

    def content(self) -> dict[str, bytes]:
        """What a sweep leaves: every job's history and parameters, and the table."""
        files = {
            f"{job}/{name}": (folder / name).read_bytes()
            for job, _, folder in self.finished()
            for name in ("history.npz", "parameters.npy")
        }
        (parent,) = self.ask(
            "select artifact_uri from runs join tags using (run_uuid) where tags.key = 'kind' and tags.value = 'sweep'"
        )
        return {**files, "table.csv": Path(parent[0].removeprefix("file://"), "table.csv").read_bytes()}


def kill_and_resume(store: Store, axes: Sequence[str], delay: float, expected: dict[str, bytes]) -> str:
    """SIGKILL the whole group of a sweep after so many seconds, and type its command again; what is wrong then, "" if nothing."""
    process = store.sweep(axes)
    time.sleep(delay)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    finished_before = {run_id for _, run_id, _ in store.finished()}
    second_start = store.sweep(axes)
    output, _ = second_start.communicate(timeout=300)
    if second_start.returncode:
        return f"the second start left with {second_start.returncode}: {output}"
    jobs = [job for job, *_ in store.finished()]
    if not finished_before <= {run_id for _, run_id, _ in store.finished()}:
        return "a finished run was replaced"
    if jobs != sorted(set(jobs)):
        return f"jobs with several finished runs: {jobs}"
    if store.statuses()["RUNNING"]:
        return "a run is left RUNNING"
    if store.content() != expected:
        return "histories, parameters or table differ from the unbroken sweep's"
    return ""


def unbroken(folder: Path, axes: Sequence[str]) -> tuple[dict[str, bytes], float]:
    """What the sweep leaves when nothing disturbs it, and its seconds."""
    store = Store(folder)
    start = time.monotonic()
    process = store.sweep(axes)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return store.content(), time.monotonic() - start


def kills(count: int = 100, seed: int = 0) -> list[str]:
    """Sweeps killed at random moments, from start-up to the last artifact, each resumed."""
    moments = random.Random(seed)
    faults = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "unbroken")
        folder.mkdir()
        expected, seconds = unbroken(folder, SMALL)
        for number in range(count):
            folder = Path(name, str(number))
            folder.mkdir()
            delay = moments.uniform(0, seconds)
            fault = kill_and_resume(Store(folder), SMALL, delay, expected)
            faults += [f"killed after {delay:.2f} s: {fault}"] if fault else []
    print("\n".join([f"\n{count} sweeps killed at random moments and resumed: {count - len(faults)} as if unbroken", *faults]))
    return faults


def reproductions(count: int = 100, seed: int = 0) -> int:
    """Runs drawn from a sweep over depth, rate, optimizer, dtype and data set, trained again from their records."""
    with tempfile.TemporaryDirectory() as name:
        store = Store(Path(name))
        store.sweep(MIXED).communicate(timeout=600)
        runs = [run_id for _, run_id, _ in store.finished()]
        sample = random.Random(seed).sample(runs, min(count, len(runs)))
        command = [sys.executable, "-m", "experiments.reproduce", "--uri", store.uri, *sample]
        done = subprocess.run(command, cwd=name, capture_output=True, text=True, check=False)
        identical = sum(line.endswith("  identical") for line in done.stdout.splitlines())
        print(f"\n{len(sample)} of {len(runs)} runs trained again from their records: {identical} identical")
    return len(sample) - identical


class Server:
    """MLflow's own server on loopback, over a store in a folder, that can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it and wait until it answers."""
        store = f"sqlite:///{self.folder / 'runs.db'}"
        places = ["--backend-store-uri", store, "--artifacts-destination", str(self.folder / "artifacts")]
        self.log = (self.folder / "server.log").open("a")
        self.process = dashboard.start(self.port, *places, stdout=self.log, stderr=self.log, cwd=self.folder)
        if not dashboard.wait_until_ready(self.process, self.port):
            raise TimeoutError((self.folder / "server.log").read_text())

    def kill(self) -> None:
        """SIGKILL it with its workers."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.log.close()


@contextlib.contextmanager
def server(folder: Path) -> Iterator[Server]:
    """A server that is started here and killed at the end."""
    new_server = Server(folder)
    new_server.start()
    try:
        yield new_server
    finally:
        new_server.kill()


POINTS = (
    "select t.value, m.key, count(distinct m.step), sum(m.value) "
    "from metrics m join tags t using (run_uuid) join runs r using (run_uuid) "
    "where t.key = 'job' and r.status = 'FINISHED' group by 1, 2 order by 1, 2"
)


def outages(count: int = 10, epochs: int = 2500) -> list[str]:
    """The server killed and started again so many times within a sweep, of so many epochs each time; what is wrong then."""
    axes = [*LONG, f"training.epochs={epochs * count}"]
    with tempfile.TemporaryDirectory() as name:
        calm, stormy = Store(Path(name, "calm")), Store(Path(name, "stormy"))
        for store in (calm, stormy):
            store.folder.mkdir()
        unbroken(calm.folder, axes)
        happened = 0
        with server(stormy.folder) as restarted_server:
            process = stormy.sweep(axes, restarted_server.uri)
            while process.poll() is None and happened < count:
                time.sleep(1)
                if stormy.statuses()["RUNNING"]:
                    restarted_server.kill()
                    time.sleep(1)
                    restarted_server.start()
                    happened += 1
            output, _ = process.communicate(timeout=300)
            folders = list(stormy.folder.glob("multirun/*/*"))
            if not folders:
                return [f"the sweep did not begin: {output}"]
            if process.returncode:
                command = [sys.executable, "-m", "experiments.deliver", str(folders[0]), "--uri", restarted_server.uri]
                subprocess.run(command, check=True, capture_output=True)
        missing = set(calm.ask(POINTS)) ^ set(stormy.ask(POINTS))
    print(f"\nthe server killed and started again {happened} times within a sweep: {len(missing)} series with a fault")
    return [*sorted(map(str, missing)), *(["the sweep was over too soon"] if happened < count else [])]
