"""Ray's workers: `hydra.launcher.backend=ray`."""

import contextlib
import logging
import os
import secrets
import signal
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from experiments.run.engines import check_answers
from experiments.run.engines.cluster import Tasks
from experiments.run.pool import Lost, cores


class Ray:
    """A connection to a Ray cluster. A lost worker's task is run again three times, Ray's default."""

    here = False

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

    @staticmethod
    def finished(tasks: Sequence[Any], seconds: float) -> Sequence[Any]:
        """See `Cluster`."""
        done, _ = ray.wait(list(tasks), timeout=seconds)
        return done

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
def connect(address: str | None) -> Iterator[Ray]:
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
            check_answers(address, "Ray cluster", ["-m", "ray.scripts.scripts", "status", "--address", address])
            ray.init(address, **quiet)
        else:
            ray.init("local", num_cpus=cores(), include_dashboard=False, _node_ip_address="127.0.0.1", **quiet)
        # Ray has set a handler of its own, which ends this process with another status.
        with _kept_status(handler):
            yield Ray()
    finally:
        ray.shutdown()
        for key in [key for key in os.environ if key.startswith("RAY_")]:
            del os.environ[key]
        os.environ.update(before)


@contextlib.contextmanager
def _kept_status(handler: Any) -> Iterator[None]:
    """SIGTERM is handled by `handler`, and where that leaves by an exit, its status is kept: Ray's waiting makes it 1."""
    exits: list[SystemExit] = []

    def handle(number: int, frame: FrameType | None) -> None:
        try:
            handler(number, frame)
        except SystemExit as leaving:
            exits.append(leaving)
            raise

    signal.signal(signal.SIGTERM, handle if callable(handler) else handler)
    try:
        yield
    except SystemExit as leaving:
        raise (exits or [leaving])[0] from None
    finally:
        signal.signal(signal.SIGTERM, handler)
