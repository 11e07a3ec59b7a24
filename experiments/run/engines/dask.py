"""The engine of `hydra.launcher.backend=dask`."""

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
from experiments.run.pool import WorkerLost, cores

ASK_SCHEDULER = "import sys, distributed; distributed.Client(sys.argv[1]).scheduler_info()"


class Dask:
    """A connection to a Dask scheduler, which gives a lost worker's task to another worker, by default up to three times."""

    shares_files = False

    def __init__(self, client: Client) -> None:
        self.client = client

    def cores(self) -> int:
        """Return the number of workers: each works on one item, however many threads it has, see `cluster.WORK_LOCK`."""
        with _scheduler_errors():
            return len(self.client.ncores())

    def share(self, value: Any) -> Any:
        """Return a task that returns the value: a worker fetches it once. `scatter` would lose it together with a worker."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sending large graph")
            return self.submit(_identity, value)

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """See `Cluster`. `pure=False` keeps Dask from using the result of an earlier call with equal arguments."""
        with _scheduler_errors():
            return self.client.submit(function, *arguments, pure=False)

    @staticmethod
    def wait_for_any(tasks: Sequence[Any], seconds: float) -> Sequence[Any]:
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
            raise WorkerLost(f"Dask's worker was lost: {str(error).strip().splitlines()[0]}") from None

    def cancel(self, tasks: Sequence[Any]) -> None:
        """See `Cluster`. A worker of another machine finishes the task that it has begun."""
        with contextlib.suppress(WorkerLost), _scheduler_errors():
            self.client.cancel(list(tasks), force=True)

    def pool(self, function: Callable[..., Any], items: Sequence[tuple[Any, ...]], n_jobs: int) -> Tasks:
        """See `Engine`."""
        return Tasks(self, function, items, n_jobs)


@contextlib.contextmanager
def _scheduler_errors() -> Iterator[None]:
    try:
        yield
    except (OSError, ClosedClientError) as error:
        raise WorkerLost(f"the Dask scheduler does not answer any more: {error}") from None


def _identity(value: Any) -> Any:
    return value


@contextlib.contextmanager
def connect(address: str | None, keys: str) -> Iterator[Dask]:
    """Connect to the scheduler at the address or of DASK_SCHEDULER_ADDRESS, or start one here; see `engines.connect`."""
    # The results say which workers were lost, so that Dask's own log need not. Two of its loggers have levels of their own.
    for name in ("distributed", "distributed.client", "distributed.gc"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    address = address or dask.config.get("scheduler-address", None)
    with contextlib.ExitStack() as exit_stack:
        if address:
            check_answers(f"{keys}.address", address, "Dask scheduler", ["-c", ASK_SCHEDULER, address])
        else:
            cluster = LocalCluster(n_workers=cores(), threads_per_worker=1, dashboard_address="127.0.0.1:0")
            address = exit_stack.enter_context(cluster).scheduler_address
        yield Dask(exit_stack.enter_context(Client(address)))
