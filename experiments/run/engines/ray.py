"""The engine of `hydra.launcher.backend=ray`."""

import contextlib
import logging
import os
import secrets
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from experiments.run.engines import check_answers
from experiments.run.engines.cluster import Tasks
from experiments.run.pool import WorkerLost, cores

HEAD_SECONDS = 10


class Ray:
    """A connection to a Ray cluster, which repeats a lost worker's task up to three times, Ray's default."""

    shares_files = False

    def __init__(self) -> None:
        self.head = ray.get_runtime_context().gcs_address

    @staticmethod
    def cores() -> int:
        """Return the cores of all nodes."""
        return int(ray.cluster_resources().get("CPU", 0))

    @staticmethod
    def share(value: Any) -> Any:
        """Put the value into Ray's object store: each node fetches it once, and its workers share the memory."""
        return ray.put(value)

    @staticmethod
    def submit(function: Callable[..., Any], *arguments: Any) -> Any:
        """See `Cluster`. A task takes one core."""
        return ray.remote(num_cpus=1)(function).remote(*arguments)

    def wait_for_any(self, tasks: Sequence[Any], seconds: float) -> Sequence[Any]:
        """See `Cluster`."""
        done, _ = ray.wait(list(tasks), timeout=seconds)
        self._check_head()
        return done

    def _check_head(self) -> None:
        """Raise WorkerLost where the head node is gone: a minute later Ray would end this process, in the midst of its work."""
        host, _, port = self.head.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=HEAD_SECONDS).close()
        except OSError as error:
            raise WorkerLost(f"the Ray head at {self.head} does not answer any more: {error}") from None

    @staticmethod
    def result(task: Any) -> Any:
        """See `Cluster`."""
        try:
            return ray.get(task)
        except RayTaskError as error:
            raise error.cause from None
        except RayError as error:
            raise WorkerLost(f"Ray's worker was lost: {str(error).strip().splitlines()[0]}") from None

    @staticmethod
    def cancel(tasks: Sequence[Any]) -> None:
        """See `Cluster`. The tasks' processes end."""
        for task in tasks:
            ray.cancel(task, force=True)

    def pool(self, function: Callable[..., Any], items: Sequence[tuple[Any, ...]], n_jobs: int) -> Tasks:
        """See `Engine`."""
        return Tasks(self, function, items, n_jobs)


@contextlib.contextmanager
def connect(address: str | None, keys: str) -> Iterator[Ray]:
    """Connect to the cluster at the address or of RAY_ADDRESS, or start one here; see `engines.connect`."""
    address = address or os.environ.get("RAY_ADDRESS")
    logging_options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    sigterm_handler = signal.getsignal(signal.SIGTERM)
    # A new cluster gets a secret token: without one in the environment Ray would write its own into the user's home.
    original_environ = dict(os.environ)
    if not address:
        os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_AUTH_TOKEN=secrets.token_hex(32))
    try:
        if address:
            check_answers(
                f"{keys}.address", address, "Ray cluster", ["-m", "ray.scripts.scripts", "status", "--address", address]
            )
            ray.init(address, **logging_options)
        else:
            ray.init("local", num_cpus=cores(), include_dashboard=False, _node_ip_address="127.0.0.1", **logging_options)
        # Ray has set a handler of its own, with which this process would end with another exit status.
        signal.signal(signal.SIGTERM, sigterm_handler)
        yield Ray()
    finally:
        ray.shutdown()
        signal.signal(signal.SIGTERM, sigterm_handler)
        for key in [key for key in os.environ if key.startswith("RAY_")]:
            del os.environ[key]
        os.environ.update(original_environ)
