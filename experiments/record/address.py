"""Where the record goes: a tracking URI made absolute, and whether it answers. Needs no MLflow, so that it costs no import."""

import contextlib
import hashlib
import os
import sqlite3
import tempfile
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from experiments.run.config import TrackingConfig, UserError
from experiments.run.environment import project_folder


class StoreError(UserError):
    """The store answers that it cannot: what was recorded before stays."""


class Unreachable(UserError):
    """A tracking server does not answer."""


DEFAULT_FILE = "mlflow.db"
CONNECT_SECONDS = 5


def absolute(uri: str | None) -> str:
    """The tracking URI, absolute: null is a SQLite file beside the project. Raises UserError for one that cannot be."""
    uri = uri or f"sqlite:///{project_folder() / DEFAULT_FILE}"
    scheme = urlsplit(uri).scheme.partition("+")[0]
    if scheme == "sqlite":
        file = Path(uri.partition(":///")[2]).absolute()
        if not (file.parent.is_dir() and os.access(file.parent, os.W_OK)):
            raise UserError(f"tracking.uri is {uri!r}, but {file.parent} is not a folder that can be written to")
        return f"sqlite:///{file}"
    if scheme not in ("http", "https", "postgresql", "mysql", "mssql"):
        raise UserError(f"tracking.uri is {uri!r}, allowed: sqlite:///FILE, http://HOST:PORT, or another database MLflow takes")
    return uri


def anchor(tracking: TrackingConfig) -> TrackingConfig:
    """With a URI that stays the same place where the working directory changes, as Hydra can do for a job."""
    return replace(tracking, uri=absolute(tracking.uri)) if tracking.enabled else tracking


def check_reachable(uri: str) -> None:
    """Raise Unreachable where a tracking server does not answer."""
    if uri.startswith("http"):
        try:
            urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=CONNECT_SECONDS).close()
        except urllib.error.HTTPError as error:
            raise Unreachable(f"tracking.uri is {uri!r}, which is no MLflow server: it answers {error.code}") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise Unreachable(f"tracking.uri is {uri!r}, which does not answer: {reason}") from None


def lock_file(uri: str) -> Path:
    """What processes on this machine lock while they make a store or begin a sweep in it."""
    if uri.startswith("sqlite"):
        return Path(f"{uri.removeprefix('sqlite:///')}.lock")
    name = hashlib.sha256(f"{uri} {Path.home()}".encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir(), f"depth-laboratory-{name}.lock")


def is_new(file: Path) -> bool:
    """Whether a SQLite store is still to be made."""
    return not file.exists() or file.stat().st_size == 0


def may_know(uri: str, fingerprint: str) -> bool:
    """Whether the store may have a sweep of that fingerprint: False is certain, and saves waiting for MLflow's import."""
    if not uri.startswith("sqlite"):
        return True
    file = Path(uri.removeprefix("sqlite:///"))
    if is_new(file):
        return False
    with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as store:
        query = "select 1 from tags where key = 'fingerprint' and value = ? limit 1"
        return store.execute(query, (fingerprint,)).fetchone() is not None
    return True
