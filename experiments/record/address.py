"""Where the record goes: a tracking URI made absolute, without its password, and whether a store is there.

MLflow and SQLAlchemy are imported only where a URI needs them, so that a store beside the project costs no import.
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
    """The store answers that it cannot: what was recorded before stays."""


class Unreachable(UserError):
    """A tracking server, or a database server, does not answer."""


DEFAULT_FILE = "mlflow.db"
SERVERS, DATABASES = ("http", "https"), ("postgresql", "mysql", "mssql")
ALLOWED = "sqlite:///FILE, http://HOST:PORT, https://HOST, or postgresql://USER@HOST/DATABASE (mysql, mssql alike)"
SQLITE = "a SQLite store is written sqlite:///FILE, sqlite:////FILE from the root, and may end in ?timeout=SECONDS"
CONNECT_SECONDS = 10
# A server that is asked and says one of these may say otherwise a little later; the pauses between the questions.
TRANSIENT = (408, 429, 500, 502, 503, 504)
PAUSES = (1.0, 2.0, 4.0)
# What a client asks first; `/health` is answered to everybody, by servers that let nobody in, too.
QUESTION = "/api/2.0/mlflow/experiments/search"
LOCKED_SECONDS = 120.0
# Options of databases' drivers that are passwords, or have one in them.
SECRETS = ("password", "sslpassword", "passwd", "odbc_connect")
# The typed URI of a database whose password is in no other place.
FULL_URI = "DEPTH_LABORATORY_DATABASE"


_secret = re.compile(rf"(\b(?:{'|'.join(SECRETS)})=)[^&]*")


def _scheme(uri: str) -> str:
    return uri.partition(":")[0].partition("+")[0]


def masked(uri: str) -> str:
    """The URI for the eyes of everybody, even where it cannot be read."""
    hidden = uri if _scheme(uri) == "sqlite" else re.sub(r"(?<=://).*@", "***@", uri)
    return _secret.sub(r"\1***", hidden)


def _split(uri: str) -> "URL":
    """The parts of a database's URL, as SQLAlchemy reads them."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(uri)
        # A password with an @ that is not written %40 ends there, and its rest would be printed as the host.
        if "\0" in unquote(uri) or "@" in (url.host or ""):
            raise ValueError
        return url
    except (ArgumentError, ValueError):
        must = SQLITE if _scheme(uri) == "sqlite" else f"allowed: {ALLOWED}"
        raise UserError(f"tracking.uri is {masked(uri)!r}, which is no URL of a database: {must}") from None


def conceal(uri: str) -> str:
    """The URI without its password, which this process and all that it starts have in their environment from now on.

    Raises UserError for a URI that cannot be read.
    """
    if _scheme(uri) in SERVERS:
        try:
            parts = urlsplit(uri)
            readable = bool(parts.hostname) and parts.port != 0 and not (parts.query or parts.fragment)
        except ValueError:
            readable = False
        if not readable:
            raise UserError(f"tracking.uri is {masked(uri)!r}, which is no address of a server, allowed: {ALLOWED}")
        # Where MLflow's client looks for them.
        if parts.username:
            os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(parts.username)
        if parts.password:
            os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(parts.password)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl().rstrip("/")
    if _scheme(uri) in DATABASES:
        url = _split(uri)
        bare = url._replace(password=None).difference_update_query(SECRETS)
        if bare != url:
            os.environ[FULL_URI] = uri
        return bare.render_as_string(hide_password=False)
    return uri


def anchor(tracking: TrackingConfig) -> TrackingConfig:
    """With a URI that stays the same place where the working directory changes, as Hydra can do for a job."""
    return replace(tracking, uri=absolute(tracking.uri)) if tracking.enabled else tracking


def conceal_typed() -> None:
    """Take passwords out of the command's `tracking.uri=` and of MLFLOW_TRACKING_URI, before anything saves or prints them."""
    for index, argument in enumerate(sys.argv):
        if "tracking.uri=" in argument:
            sys.argv[index] = re.sub(r"[a-z0-9+]+://[^'\"\s]*", lambda found: conceal(found[0]), argument)
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        os.environ["MLFLOW_TRACKING_URI"] = conceal(uri)


def with_password(uri: str) -> str:
    """What a database is connected to by: the URI with the password that `conceal` took out of it."""
    # Of libpq; without it nobody there is waited for as long as the operating system likes.
    os.environ.setdefault("PGCONNECT_TIMEOUT", str(CONNECT_SECONDS))
    full = os.environ.get(FULL_URI, "")
    return full if full and conceal(full) == uri else uri


def absolute(uri: str | None) -> str:
    """The tracking URI, absolute and without password: null is a SQLite file beside the project.

    Raises UserError for one that cannot be.
    """
    if not uri:
        return _of_file(project_folder() / DEFAULT_FILE)
    if _scheme(uri) == "sqlite":
        return _sqlite(uri)
    if _scheme(uri) not in (*SERVERS, *DATABASES):
        raise UserError(f"tracking.uri is {masked(uri)!r}, allowed: {ALLOWED}")
    return conceal(uri)


def _sqlite(uri: str) -> str:
    url = _split(uri)
    # Memory is gone before anybody looks, and a file: URI would name the file a second way.
    if url.host or not url.database or url.database.startswith((":memory:", "file:")):
        raise UserError(f"tracking.uri is {uri!r}, but {SQLITE}")
    try:
        with warnings.catch_warnings():
            # Options that are unknown SQLAlchemy warns of and leaves out.
            warnings.simplefilter("error")
            if "uri" in url.query or url.get_driver_name() != "pysqlite":
                raise ValueError("neither uri= nor another driver than pysqlite is allowed")
            _, options = url.get_dialect()().create_connect_args(url)
            if not 0 <= options.get("timeout", 0) <= threading.TIMEOUT_MAX:
                raise ValueError("a timeout is seconds from 0 on, and not for ever")
    # SQLAlchemy has an error of its own for a driver that is not there.
    except Exception as error:
        raise UserError(f"tracking.uri is {uri!r}, but {SQLITE}: {error}") from None
    return _of_file(Path(url.database).absolute(), uri.partition("?")[2])


def _of_file(file: Path, options: str = "") -> str:
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
    """The URI of a SQLite file."""
    return "sqlite:///" + str(file).replace("%", "%25").replace("?", "%3F")


def sqlite_file(uri: str) -> Path | None:
    """The file of an absolute SQLite URI, None of any other."""
    if _scheme(uri) != "sqlite":
        return None
    return Path(unquote(uri.removeprefix("sqlite:///").partition("?")[0]))


def patience(uri: str) -> float:
    """For how many seconds a SQLite file that another program has locked is waited for: its `timeout`, if it has one."""
    (seconds,) = parse_qs(uri.partition("?")[2]).get("timeout", [str(LOCKED_SECONDS)])[-1:]
    return float(seconds)


def check_uri(uri: str | None) -> None:
    """Raise UserError where the tracking URI of a config names no store that answers, or tells a password to all who read it."""
    clean = absolute(uri)
    if uri and sqlite_file(clean) is None and (urlsplit(uri).password or _secret.search(uri)):
        raise UserError(
            f"tracking.uri is {masked(uri)!r} in a file, and every run would show its password: "
            "type it, or give it by MLFLOW_TRACKING_URI or MLFLOW_TRACKING_PASSWORD"
        )
    check_reachable(clean)


def check_reachable(uri: str, pauses: Sequence[float] = PAUSES) -> None:
    """Raise Unreachable where a server does not answer, StoreError where a SQLite file is no store of MLflow's.

    uri: absolute. pauses: seconds before each further question to a server that is busy.
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
        with contextlib.closing(_reading(file)) as store:
            tables = {name for (name,) in store.execute("select name from sqlite_master where type = 'table'")}
    except sqlite3.DatabaseError as error:
        # Whoever opens it waits.
        if "locked" in str(error):
            return
        raise StoreError(f"tracking.uri is {uri!r}, whose file is damaged, or no SQLite database: {error}") from None
    if not {"alembic_version", "experiments", "runs"} <= tables:
        some = ", ".join(sorted(tables)[:3]) or "none"
        raise StoreError(f"tracking.uri is {uri!r}, but another program made that file, its tables are {some}: take another one")


def _check_server(uri: str, pauses: Sequence[float]) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    for pause in (*pauses, None):
        try:
            answer = http_request(
                get_default_host_creds(uri),
                QUESTION,
                "POST",
                json={"max_results": 1},
                max_retries=0,
                timeout=CONNECT_SECONDS,
                raise_on_status=False,
            )
        except MlflowException as error:
            raise Unreachable(f"tracking.uri is {uri!r}, which does not answer: {_reason(error)}") from None
        if answer.status_code not in TRANSIENT or pause is None:
            break
        time.sleep(pause)
    if answer.status_code in (401, 403):
        raise Unreachable(
            f"tracking.uri is {uri!r}, which answers {answer.status_code}: MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, must be those of one of its users"
        )
    if answer.status_code in TRANSIENT:
        raise Unreachable(f"tracking.uri is {uri!r}, which does not answer but with {answer.status_code}")
    is_json = answer.headers.get("Content-Type", "").startswith("application/json")
    if answer.status_code != 200 or not is_json:
        what = answer.status_code if answer.status_code != 200 else "with a page"
        raise Unreachable(f"tracking.uri is {uri!r}, which is no MLflow server: it answers {what}")


def _reason(error: BaseException) -> str:
    """What lies under the errors that libraries have wrapped around it, in one line."""
    while (under := error.__cause__ or error.__context__) is not None:
        error = under
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
        raise Unreachable(f"tracking.uri is {uri!r}, which does not answer: {_reason(error)}") from None


def lock_file(uri: str) -> Path:
    """What processes on this machine lock while they make a store or begin a sweep in it."""
    if file := sqlite_file(uri):
        return Path(f"{file}.lock")
    name = hashlib.sha256(f"{uri} {Path.home()}".encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir(), f"depth-laboratory-{name}.lock")


def is_new(file: Path) -> bool:
    """Whether a SQLite store is still to be made."""
    return not file.exists() or file.stat().st_size == 0


def _reading(file: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)


def may_know(uri: str, fingerprint: str) -> bool:
    """Whether the store may have a sweep of that fingerprint: False is certain, and saves waiting for MLflow's import."""
    file = sqlite_file(uri)
    if file is None:
        return True
    if is_new(file):
        return False
    with contextlib.suppress(sqlite3.Error), contextlib.closing(_reading(file)) as store:
        query = "select 1 from tags where key = 'fingerprint' and value = ? limit 1"
        return store.execute(query, (fingerprint,)).fetchone() is not None
    return True
