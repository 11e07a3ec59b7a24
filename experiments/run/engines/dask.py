"""Dask's workers: `hydra.launcher.backend=dask`."""

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from typing import Any

import dask
from distributed import Client, KilledWorker, LocalCluster, wait
from distributed.client import ClosedClientError

from experiments.run.engines import check_answers
from experiments.run.engines.cluster import Tasks
from experiments.run.pool import Lost, cores

ASK = "import sys, distributed; distributed.Client(sys.argv[1]).scheduler_info()"


class Dask:
    """A connection to a Dask scheduler. A lost worker's task is run again by another one, Dask's default is three times."""

    here = False

    def __init__(self, client: Client) -> None:
        self.client = client

    def cores(self) -> int:
        """One a worker, however many threads it has, see `cluster.ALONE`."""
        with _answering():
            return len(self.client.ncores())

    def share(self, value: Any) -> Any:
        """A task that returns it: a worker fetches its result once. `scatter` would lose it together with a worker."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sending large graph")
            return self.submit(_itself, value)

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Not pure: Dask must not take an item for an earlier one."""
        with _answering():
            return self.client.submit(function, *arguments, pure=False)

    @staticmethod
    def finished(tasks: Sequence[Any], seconds: float) -> Sequence[Any]:
        """See `Cluster`."""
        try:
            return list(wait(tasks, timeout=seconds, return_when="FIRST_COMPLETED").done)
        except TimeoutError:
            return []
        except CancelledError:
            return [task for task in tasks if task.done()]

    @staticmethod
    def result(task: Any) -> Any:
        """See `Cluster`."""
        try:
            return task.result()
        except (KilledWorker, CancelledError) as error:
            raise Lost(f"Dask's worker was lost: {str(error).strip().splitlines()[0]}") from None

    def cancel(self, tasks: Sequence[Any]) -> None:
        """Those that wait are dropped; a worker of another machine goes on with the one that it has begun."""
        with contextlib.suppress(Lost), _answering():
            self.client.cancel(list(tasks), force=True)

    def pool(self, function: Callable[..., Any], items: Sequence[tuple[Any, ...]], n_jobs: int) -> Tasks:
        """See `Engine`."""
        return Tasks(self, function, items, n_jobs)


@contextlib.contextmanager
def _answering() -> Iterator[None]:
    try:
        yield
    except (OSError, ClosedClientError) as error:
        raise Lost(f"the Dask scheduler does not answer any more: {error}") from None


def _itself(value: Any) -> Any:
    return value


@contextlib.contextmanager
def connect(address: str | None, keys: str) -> Iterator[Dask]:
    """A connection to the scheduler at the address, of DASK_SCHEDULER_ADDRESS, or to one of this process with workers on
    this machine; see `engines.connect`.
    """
    # What is lost, the results tell.
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    address = address or dask.config.get("scheduler-address", None)
    with contextlib.ExitStack() as opened:
        if address:
            check_answers(f"{keys}.address", address, "Dask scheduler", ["-c", ASK, address])
        else:
            local = LocalCluster(n_workers=cores(), threads_per_worker=1, dashboard_address="127.0.0.1:0")
            address = opened.enter_context(local).scheduler_address
        yield Dask(opened.enter_context(Client(address)))
