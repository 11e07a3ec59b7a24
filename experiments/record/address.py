"""The address of a store: a tracking URI, which is made absolute and loses its password, and the check that a store answers.

MLflow and SQLAlchemy are imported only where a URI needs them: the default store, a file beside the project, needs neither.
"""

import contextlib
import hashlib
import os
import re
import sqlite3
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, unquote, urlsplit

from experiments.run.config import TrackingConfig, UserError
from experiments.run.environment import project_folder

if TYPE_CHECKING:
    from sqlalchemy.engine import URL


class StoreError(UserError):
    """The store refuses a request. Earlier records are kept."""


class Unreachable(UserError):
    """A tracking server, or a database server, does not answer."""


DEFAULT_FILE = "mlflow.db"
SERVERS, DATABASES = ("http", "https"), ("postgresql", "mysql", "mssql")
ALLOWED_URIS = "sqlite:///FILE, http://HOST:PORT, https://HOST, or postgresql://USER@HOST/DATABASE (mysql, mssql alike)"
SQLITE_FORM = "a SQLite store is written sqlite:///FILE, sqlite:////FILE from the root, and may end in ?timeout=SECONDS"
CONNECT_SECONDS = 10
# A server that answers with one of these statuses is asked again, after these pauses in seconds.
TRANSIENT = (408, 429, 500, 502, 503, 504)
PAUSES = (1.0, 2.0, 4.0)
# The request that checks a server. `/health` does not serve: it is answered even to a user without access.
SEARCH_PATH = "/api/2.0/mlflow/experiments/search"
LOCKED_SECONDS = 120.0
# Options of database drivers whose values are, or contain, passwords.
SECRET_OPTIONS = ("password", "sslpassword", "passwd", "odbc_connect")
# The environment variable with the typed URI of a database, the only place that has its password.
FULL_URI = "DEPTH_LABORATORY_DATABASE"


_secret_pattern = re.compile(rf"(\b(?:{'|'.join(SECRET_OPTIONS)})=)[^&]*")


def _scheme(uri: str) -> str:
    return uri.partition(":")[0].partition("+")[0]


def mask_password(uri: str) -> str:
    """Return the URI with `***` in place of user and password. It need not be a valid URI."""
    without_user = uri if _scheme(uri) == "sqlite" else re.sub(r"(?<=://).*@", "***@", uri)
    return _secret_pattern.sub(r"\1***", without_user)


def _parse_database_url(uri: str) -> "URL":
    """Parse a database's URL with SQLAlchemy. Raises UserError where it is none."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(uri)
        # In a password an @ must be written %40. Otherwise the part after it is read, and would be printed, as the host.
        if "\0" in unquote(uri) or "@" in (url.host or ""):
            raise ValueError
        return url
    except (ArgumentError, ValueError):
        requirement = SQLITE_FORM if _scheme(uri) == "sqlite" else f"allowed: {ALLOWED_URIS}"
        raise UserError(f"tracking.uri is {mask_password(uri)!r}, which is no URL of a database: {requirement}") from None


def strip_password(uri: str) -> str:
    """Return the URI without its password, and put the password into the environment of this process and its children.

    Raises UserError for an invalid URI.
    """
    if _scheme(uri) in SERVERS:
        try:
            parts = urlsplit(uri)
            is_readable = bool(parts.hostname) and parts.port != 0 and not (parts.query or parts.fragment)
        except ValueError:
            is_readable = False
        if not is_readable:
            raise UserError(f"tracking.uri is {mask_password(uri)!r}, which is no address of a server, allowed: {ALLOWED_URIS}")
        # MLflow's client reads user and password from these variables.
        if parts.username:
            os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(parts.username)
        if parts.password:
            os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(parts.password)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl().rstrip("/")
    if _scheme(uri) in DATABASES:
        url = _parse_database_url(uri)
        without_password = url._replace(password=None).difference_update_query(SECRET_OPTIONS)
        if without_password != url:
            os.environ[FULL_URI] = uri
        return without_password.render_as_string(hide_password=False)
    return uri


def with_absolute_uri(tracking: TrackingConfig) -> TrackingConfig:
    """Return the config with an absolute URI, which is valid even where Hydra changes the working directory for a job."""
    return replace(tracking, uri=absolute_uri(tracking.uri)) if tracking.enabled else tracking


def strip_typed_passwords() -> None:
    """Strip the passwords of the typed `tracking.uri=` and of MLFLOW_TRACKING_URI, before anything saves or prints them."""
    for index, argument in enumerate(sys.argv):
        if "tracking.uri=" in argument:
            sys.argv[index] = re.sub(r"[a-z0-9+]+://[^'\"\s]*", lambda match: strip_password(match[0]), argument)
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        os.environ["MLFLOW_TRACKING_URI"] = strip_password(uri)


def with_password(uri: str) -> str:
    """Return the URI with the password that `strip_password` has removed, to connect to a database."""
    # libpq's own limit; without it a connection attempt waits as long as the operating system does.
    os.environ.setdefault("PGCONNECT_TIMEOUT", str(CONNECT_SECONDS))
    full_uri = os.environ.get(FULL_URI, "")
    return full_uri if full_uri and strip_password(full_uri) == uri else uri


def absolute_uri(uri: str | None) -> str:
    """Return the tracking URI, absolute and without its password. None is a SQLite file beside the project.

    Raises UserError for an invalid URI.
    """
    if not uri:
        return _file_uri(project_folder() / DEFAULT_FILE)
    if _scheme(uri) == "sqlite":
        return _absolute_sqlite_uri(uri)
    if _scheme(uri) not in (*SERVERS, *DATABASES):
        raise UserError(f"tracking.uri is {mask_password(uri)!r}, allowed: {ALLOWED_URIS}")
    return strip_password(uri)


def _absolute_sqlite_uri(uri: str) -> str:
    url = _parse_database_url(uri)
    # A database in memory would be lost with the process, and a file: URI would be a second name of the same file.
    if url.host or not url.database or url.database.startswith((":memory:", "file:")):
        raise UserError(f"tracking.uri is {uri!r}, but {SQLITE_FORM}")
    try:
        with warnings.catch_warnings():
            # SQLAlchemy only warns of unknown options.
            warnings.simplefilter("error")
            if "uri" in url.query or url.get_driver_name() != "pysqlite":
                raise ValueError("neither uri= nor another driver than pysqlite is allowed")
            _, options = url.get_dialect()().create_connect_args(url)
            if not 0 <= options.get("timeout", 0) <= threading.TIMEOUT_MAX:
                raise ValueError("a timeout is seconds from 0 on, and not for ever")
    # Any exception, since SQLAlchemy has an error of its own for a driver that is not installed.
    except Exception as error:
        raise UserError(f"tracking.uri is {uri!r}, but {SQLITE_FORM}: {error}") from None
    return _file_uri(Path(url.database).absolute(), uri.partition("?")[2])


def _file_uri(file: Path, options: str = "") -> str:
    if not (file.parent.is_dir() and os.access(file.parent, os.W_OK)):
        raise UserError(f"tracking.uri is 'sqlite:///{file}', but {file.parent} is not a folder that can be written to")
    try:
        file.exists()
    except OSError as error:
        raise UserError(f"tracking.uri is 'sqlite:///{file}', which is no file that can be: {error.strerror}") from None
    if file.exists() and not (file.is_file() and os.access(file, os.R_OK | os.W_OK)):
        raise UserError(f"tracking.uri is 'sqlite:///{file}', but {file} is not a file that can be read and written to")
    return sqlite_uri(file) + (f"?{options}" if options else "")


def sqlite_uri(file: Path) -> str:
    """Return the URI of a SQLite file."""
    return "sqlite:///" + str(file).replace("%", "%25").replace("?", "%3F")


def sqlite_file(uri: str) -> Path | None:
    """Return the file of an absolute SQLite URI, None for any other URI."""
    if _scheme(uri) != "sqlite":
        return None
    return Path(unquote(uri.removeprefix("sqlite:///").partition("?")[0]))


def lock_timeout(uri: str) -> float:
    """Return the seconds to wait for a SQLite file that another program has locked: the URI's `timeout`, if it has one."""
    (seconds,) = parse_qs(uri.partition("?")[2]).get("timeout", [str(LOCKED_SECONDS)])[-1:]
    return float(seconds)


def check_uri(uri: str | None) -> None:
    """Raise UserError where a config's tracking URI contains a password, or where no store answers there."""
    absolute = absolute_uri(uri)
    if uri and sqlite_file(absolute) is None and (urlsplit(uri).password or _secret_pattern.search(uri)):
        raise UserError(
            f"tracking.uri is {mask_password(uri)!r} in a file, and every run would show its password: "
            "type it, or give it by MLFLOW_TRACKING_URI or MLFLOW_TRACKING_PASSWORD"
        )
    check_reachable(absolute)


def check_reachable(uri: str, pauses: Sequence[float] = PAUSES) -> None:
    """Raise Unreachable where a server does not answer, StoreError where a SQLite file is no store of MLflow's.

    uri: absolute. pauses: the seconds before each further request to a server that is busy.
    """
    if file := sqlite_file(uri):
        _check_file(uri, file)
    elif _scheme(uri) in SERVERS:
        _check_server(uri, pauses)
    else:
        _check_database(uri)


def _check_file(uri: str, file: Path) -> None:
    if is_new(file):
        return
    try:
        with contextlib.closing(_connect_read_only(file)) as store:
            tables = {name for (name,) in store.execute("select name from sqlite_master where type = 'table'")}
    except sqlite3.DatabaseError as error:
        # Opening the store waits for the lock.
        if "locked" in str(error):
            return
        raise StoreError(f"tracking.uri is {uri!r}, whose file is damaged, or no SQLite database: {error}") from None
    if not {"alembic_version", "experiments", "runs"} <= tables:
        table_names = ", ".join(sorted(tables)[:3]) or "none"
        raise StoreError(
            f"tracking.uri is {uri!r}, but another program made that file, its tables are {table_names}: take another one"
        )


def _check_server(uri: str, pauses: Sequence[float]) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    for pause in (*pauses, None):
        try:
            response = http_request(
                get_default_host_creds(uri),
                SEARCH_PATH,
                "POST",
                json={"max_results": 1},
                max_retries=0,
                timeout=CONNECT_SECONDS,
                raise_on_status=False,
            )
        except MlflowException as error:
            raise Unreachable(f"tracking.uri is {uri!r}, which does not answer: {_root_reason(error)}") from None
        if response.status_code not in TRANSIENT or pause is None:
            break
        time.sleep(pause)
    if response.status_code in (401, 403):
        raise Unreachable(
            f"tracking.uri is {uri!r}, which answers {response.status_code}: MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, must be those of one of its users"
        )
    if response.status_code in TRANSIENT:
        raise Unreachable(f"tracking.uri is {uri!r}, which does not answer but with {response.status_code}")
    is_json = response.headers.get("Content-Type", "").startswith("application/json")
    if response.status_code != 200 or not is_json:
        reply = response.status_code if response.status_code != 200 else "with a page"
        raise Unreachable(f"tracking.uri is {uri!r}, which is no MLflow server: it answers {reply}")


def _root_reason(error: BaseException) -> str:
    """Return the innermost cause of an error as one line, without the errors that libraries have wrapped around it."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    lines = str(getattr(error, "reason", None) or error).splitlines()
    return lines[0] if lines else type(error).__name__


def _check_database(uri: str) -> None:
    from sqlalchemy import create_engine
    from sqlalchemy.exc import NoSuchModuleError, SQLAlchemyError
    from sqlalchemy.pool import NullPool

    try:
        with create_engine(with_password(uri), poolclass=NullPool).connect():
            pass
    except (NoSuchModuleError, ModuleNotFoundError) as error:
        name = getattr(error, "name", None) or _scheme(uri)
        raise UserError(
            f"tracking.uri is {uri!r}, whose driver {name!r} is not installed: "
            "pip install 'depth-laboratory[postgresql]', or the driver of another database"
        ) from None
    except (SQLAlchemyError, TypeError, ValueError) as error:
        raise Unreachable(f"tracking.uri is {uri!r}, which does not answer: {_root_reason(error)}") from None


def lock_file(uri: str) -> Path:
    """Return the file that processes of this machine lock while they create a store or begin a sweep in it."""
    if file := sqlite_file(uri):
        return Path(f"{file}.lock")
    name = hashlib.sha256(f"{uri} {Path.home()}".encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir(), f"depth-laboratory-{name}.lock")


def is_new(file: Path) -> bool:
    """Return whether a SQLite store does not exist yet."""
    return not file.exists() or file.stat().st_size == 0


def _connect_read_only(file: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)


def may_contain_sweep(uri: str, fingerprint: str) -> bool:
    """Return whether the store may have a sweep of that fingerprint. False is certain, and saves the import of MLflow."""
    file = sqlite_file(uri)
    if file is None:
        return True
    if is_new(file):
        return False
    with contextlib.suppress(sqlite3.Error), contextlib.closing(_connect_read_only(file)) as store:
        query = "select 1 from tags where key = 'fingerprint' and value = ? limit 1"
        return store.execute(query, (fingerprint,)).fetchone() is not None
    return True
