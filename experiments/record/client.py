"""MLflow's client of a store: whatever goes wrong in it is one line, and what may go right a little later is tried again."""

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, TypeVar

import requests
from mlflow import MlflowClient
from mlflow.exceptions import RestException
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

from experiments.record.address import PAUSES, StoreError, Unreachable, patience, sqlite_file, with_password
from experiments.run.config import UserError

T = TypeVar("T")

# A server that is busy is asked again after 0, 2 and 4 seconds; MLflow's own seven pauses would stop a sweep for minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
# A server may say that it is to be asked in an hour: until then records wait on disk.
os.environ.setdefault("MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER", "false")
# For each run that ends MLflow would ask for the run again, to print its address.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
MOST_CHARACTERS = 300
LOCKED_PAUSE = 1.0

for _chatty in ("alembic", "mlflow.tracking"):
    logging.getLogger(_chatty).setLevel(logging.WARNING)
# What they say, with tracebacks of hundreds of lines, is said in one.
for _chatty in ("mlflow.store.db.utils", "urllib3.connectionpool", "mlflow.exceptions"):
    logging.getLogger(_chatty).setLevel(logging.CRITICAL)


def error_of(uri: str, error: BaseException) -> UserError:
    """An error in MLflow as ours, in one line: Unreachable where a server does not answer or let in, StoreError otherwise."""
    # SQLAlchemy puts lines of its own around what the database says.
    said = next((cause.orig for cause in _causes(error) if isinstance(cause, DBAPIError)), error)
    lines = [line.strip() for line in str(said).splitlines() if line.strip()] or [type(said).__name__]
    text = "".join(letter for letter in lines[0] if letter.isprintable())[:MOST_CHARACTERS].replace(with_password(uri), uri)
    kind = Unreachable if sqlite_file(uri) is None and not _answered(error) else StoreError
    return kind(f"tracking.uri is {uri!r}: {text}")


def _answered(error: BaseException) -> bool:
    """Whether the error is what an MLflow server, or a database, says to the request itself."""
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return _final(error.response.status_code)
    if isinstance(error, RestException):
        return _final(error.get_http_status_code())
    causes = _causes(error)
    if any(isinstance(cause, DBAPIError) for cause in causes):
        return not any(isinstance(cause, OperationalError | InterfaceError) for cause in causes)
    # A file that cannot be read here is no word of a server's.
    return isinstance(error, OSError) and not isinstance(error, requests.RequestException | ConnectionError)


def _final(status: int) -> bool:
    return 400 <= status < 500 and status not in (401, 403, 407, 408, 429)


def _causes(error: BaseException | None) -> list[BaseException]:
    found = []
    while error is not None:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


@contextlib.contextmanager
def in_one_line(uri: str) -> Iterator[None]:
    """Errors in MLflow, SQLAlchemy and the database as `error_of` has them."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise error_of(uri, error) from None


def patiently(uri: str, call: Callable[[], T]) -> T:
    """What the call returns; where another program has locked the SQLite file it waits, says so, and calls again."""
    deadline, said = time.monotonic() + patience(uri), False
    while True:
        try:
            with in_one_line(uri):
                return call()
        except StoreError as error:
            if "is locked" not in str(error) or time.monotonic() > deadline:
                raise
        if not said:
            print(f"{sqlite_file(uri)} is locked by another program; waiting for it", flush=True)
        said = True
        time.sleep(LOCKED_PAUSE)


class Client:
    """MLflow's client of the store at an absolute URI, whose methods are called by `patiently`."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._client = self._opened()

    def _opened(self) -> MlflowClient:
        # Its tables may be in the making, by another machine, where no lock of this one's holds.
        for pause in () if sqlite_file(self.uri) else PAUSES:
            try:
                return patiently(self.uri, lambda: MlflowClient(with_password(self.uri)))
            except StoreError:
                time.sleep(pause)
        return patiently(self.uri, lambda: MlflowClient(with_password(self.uri)))

    @property
    def tracking_store(self) -> Any:
        """MLflow's store behind its client."""
        return self._client._tracking_client.store

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        @wraps(method)
        def called(*arguments: Any, **more: Any) -> Any:
            return patiently(self.uri, lambda: method(*arguments, **more))

        return called
