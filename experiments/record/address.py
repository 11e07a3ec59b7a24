"""Where the record goes: a tracking URI made absolute, and whether it answers. Needs no MLflow, so that it costs no import."""

import os
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from experiments.record.identity import project_folder
from experiments.run.config import UserError

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


def check_reachable(uri: str) -> None:
    """Raise UserError where a tracking server does not answer."""
    if uri.startswith("http"):
        try:
            urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=CONNECT_SECONDS).close()
        except urllib.error.HTTPError as error:
            raise UserError(f"tracking.uri is {uri!r}, which is no MLflow server: it answers {error.code}") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise UserError(f"tracking.uri is {uri!r}, which does not answer: {reason}") from None
