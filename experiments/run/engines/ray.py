"""Ray's workers: `hydra.launcher.backend=ray`."""

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
from experiments.run.pool import Lost, cores

HEAD_SECONDS = 10


class Ray:
    """A connection to a Ray cluster. A lost worker's task is run again three times, Ray's default."""

    here = False

    def __init__(self) -> None:
        self.head = ray.get_runtime_context().gcs_address

    @staticmethod
    def cores() -> int:
        """Of all nodes."""
        return int(ray.cluster_resources().get("CPU", 0))

    @staticmethod
    def share(value: Any) -> Any:
        """A reference to it in Ray's object store: a node fetches it once, its workers share the memory."""
        return ray.put(value)

    @staticmethod
    def submit(function: Callable[..., Any], *arguments: Any) -> Any:
        """One task, on one core."""
        return ray.remote(num_cpus=1)(function).remote(*arguments)

    def finished(self, tasks: Sequence[Any], seconds: float) -> Sequence[Any]:
        """See `Cluster`."""
        done, _ = ray.wait(list(tasks), timeout=seconds)
        self._check_head()
        return done

    def _check_head(self) -> None:
        """Raise Lost where the head is gone: Ray would end this process a minute later, whatever it has still to write."""
        host, _, port = self.head.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=HEAD_SECONDS).close()
        except OSError as error:
            raise Lost(f"the Ray head at {self.head} does not answer any more: {error}") from None

    @staticmethod
    def result(task: Any) -> Any:
        """See `Cluster`."""
        try:
            return ray.get(task)
        except RayTaskError as error:
            raise error.cause from None
        except RayError as error:
            raise Lost(f"Ray's worker was lost: {str(error).strip().splitlines()[0]}") from None

    @staticmethod
    def cancel(tasks: Sequence[Any]) -> None:
        """Their processes end."""
        for task in tasks:
            ray.cancel(task, force=True)

    def pool(self, function: Callable[..., Any], items: Sequence[tuple[Any, ...]], n_jobs: int) -> Tasks:
        """See `Engine`."""
        return Tasks(self, function, items, n_jobs)


@contextlib.contextmanager
def connect(address: str | None, keys: str) -> Iterator[Ray]:
    """A connection to the cluster at the address, of RAY_ADDRESS, or to a new one on this machine; see `engines.connect`."""
    address = address or os.environ.get("RAY_ADDRESS")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    handler = signal.getsignal(signal.SIGTERM)
    # A new cluster's token is nobody else's: without one in the environment Ray writes it into the user's home.
    before = dict(os.environ)
    if not address:
        os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_AUTH_TOKEN=secrets.token_hex(32))
    try:
        if address:
            check_answers(
                f"{keys}.address", address, "Ray cluster", ["-m", "ray.scripts.scripts", "status", "--address", address]
            )
            ray.init(address, **quiet)
        else:
            ray.init("local", num_cpus=cores(), include_dashboard=False, _node_ip_address="127.0.0.1", **quiet)
        # Ray has set a handler of its own, which ends this process with another status.
        signal.signal(signal.SIGTERM, handler)
        yield Ray()
    finally:
        ray.shutdown()
        signal.signal(signal.SIGTERM, handler)
        for key in [key for key in os.environ if key.startswith("RAY_")]:
            del os.environ[key]
        os.environ.update(before)
