"""MLflow's client of a store, whose errors become one line, and whose calls are repeated while the store is busy."""

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

from experiments.record.address import PAUSES, StoreError, Unreachable, lock_timeout, sqlite_file, with_password
from experiments.run.config import UserError

T = TypeVar("T")

# A server that is busy is asked again after 0, 2 and 4 seconds; MLflow's default of seven pauses would stop a sweep for minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
# A server's Retry-After header, which may be an hour, is ignored: until the server answers, records wait on disk.
os.environ.setdefault("MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER", "false")
# Otherwise MLflow would request each run that ends once more, to print its address.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
MAX_CHARACTERS = 300
LOCK_PAUSE = 1.0

for _logger_name in ("alembic", "mlflow.tracking"):
    logging.getLogger(_logger_name).setLevel(logging.WARNING)
# Their tracebacks of hundreds of lines are replaced by one line.
for _logger_name in ("mlflow.store.db.utils", "urllib3.connectionpool", "mlflow.exceptions"):
    logging.getLogger(_logger_name).setLevel(logging.CRITICAL)


def as_user_error(uri: str, error: BaseException) -> UserError:
    """Return an error of MLflow's as a UserError of one line.

    It is an Unreachable where a server does not answer or does not let the user in, else a StoreError.
    """
    # SQLAlchemy adds its own lines to the database's error.
    innermost_error = next((cause.orig for cause in _causes(error) if isinstance(cause, DBAPIError)), error)
    lines = [line.strip() for line in str(innermost_error).splitlines() if line.strip()] or [type(innermost_error).__name__]
    text = "".join(letter for letter in lines[0] if letter.isprintable())[:MAX_CHARACTERS].replace(with_password(uri), uri)
    error_class = Unreachable if sqlite_file(uri) is None and not _is_final_answer(error) else StoreError
    return error_class(f"tracking.uri is {uri!r}: {text}")


def _is_final_answer(error: BaseException) -> bool:
    """Return whether the error is an answer of the MLflow server or the database, which another attempt would not change."""
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return _is_final_status(error.response.status_code)
    if isinstance(error, RestException):
        return _is_final_status(error.get_http_status_code())
    causes = _causes(error)
    if any(isinstance(cause, DBAPIError) for cause in causes):
        return not any(isinstance(cause, OperationalError | InterfaceError) for cause in causes)
    # An error of a local file has nothing to do with the server, and counts as final.
    return isinstance(error, OSError) and not isinstance(error, requests.RequestException | ConnectionError)


def _is_final_status(status: int) -> bool:
    return 400 <= status < 500 and status not in (401, 403, 407, 408, 429)


def _causes(error: BaseException | None) -> list[BaseException]:
    causes = []
    while error is not None:
        causes.append(error)
        error = error.__cause__ or error.__context__
    return causes


@contextlib.contextmanager
def errors_in_one_line(uri: str) -> Iterator[None]:
    """Turn errors of MLflow, SQLAlchemy and the database into UserErrors, see `as_user_error`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise as_user_error(uri, error) from None


def retry_while_locked(uri: str, call: Callable[[], T]) -> T:
    """Return what the call returns. While another program locks the SQLite file, print so once, and call again."""
    deadline, has_printed = time.monotonic() + lock_timeout(uri), False
    while True:
        try:
            with errors_in_one_line(uri):
                return call()
        except StoreError as error:
            if "is locked" not in str(error) or time.monotonic() > deadline:
                raise
        if not has_printed:
            print(f"{sqlite_file(uri)} is locked by another program; waiting for it", flush=True)
        has_printed = True
        time.sleep(LOCK_PAUSE)


class Client:
    """MLflow's client of the store at an absolute URI. All of its methods are called by `retry_while_locked`."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._client = self._open()

    def _open(self) -> MlflowClient:
        # Another machine, for which this machine's locks do not count, may be creating the database's tables now.
        for pause in () if sqlite_file(self.uri) else PAUSES:
            try:
                return retry_while_locked(self.uri, lambda: MlflowClient(with_password(self.uri)))
            except StoreError:
                time.sleep(pause)
        return retry_while_locked(self.uri, lambda: MlflowClient(with_password(self.uri)))

    @property
    def tracking_store(self) -> Any:
        """MLflow's tracking store, which its client calls."""
        return self._client._tracking_client.store

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        @wraps(method)
        def call(*arguments: Any, **keywords: Any) -> Any:
            return retry_while_locked(self.uri, lambda: method(*arguments, **keywords))

        return call
