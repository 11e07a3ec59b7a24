"""python -m experiments.dashboard [SWEEP_ID]: start MLflow's server on loopback and print the link to a sweep."""

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from functools import partial
from pathlib import Path
from typing import Any

from experiments.record.address import sqlite_file, with_password
from experiments.record.moved import relocate
from experiments.run.config import UserError
from experiments.run.interrupts import SIGNALS

STARTS_WITHIN = 90


def _free(port: int) -> bool:
    with socket.socket() as trial, contextlib.suppress(OSError):
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        trial.bind(("127.0.0.1", port))
        return True
    return False


def start(port: int, *options: str, **streams: Any) -> subprocess.Popen[bytes]:
    """MLflow's server on loopback: one worker, and without the dozen processes that wait for jobs nobody here gives it."""
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1", "--port", str(port), *options]
    environ = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    return subprocess.Popen(command, env=environ, start_new_session=True, **streams)


def answers(process: subprocess.Popen[bytes], port: int) -> bool:
    """Wait until the server does; False where it has ended before, or takes too long."""
    deadline = time.monotonic() + STARTS_WITHIN
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
            return True
        time.sleep(0.2)
    return False


def serve(uri: str, port: int) -> subprocess.Popen[bytes]:
    """MLflow's server on a store, once it answers; raises UserError where it does not start."""
    if file := sqlite_file(uri):
        from experiments.record.client import patiently

        for line in patiently(uri, partial(relocate, file)):
            print(line)
    if not _free(port):
        raise UserError(f"--port is {port}, which another program uses: stop it, or take another one")
    log = tempfile.TemporaryFile()  # noqa: SIM115, the server writes into it for as long as it runs
    # In its environment: whoever lists processes sees their arguments, and a database's URI may hold a password.
    os.environ["MLFLOW_BACKEND_STORE_URI"] = with_password(uri)
    process = start(port, stdout=log, stderr=log)
    if answers(process, port):
        return process
    stop(process)
    log.seek(0)
    last = log.read().decode(errors="replace").strip().splitlines() or ["no word"]
    raise UserError(f"MLflow's server does not start on {uri}: {last[-1]}")


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a server with its workers."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    process.wait()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m experiments.dashboard", description=__doc__)
    parser.add_argument("sweep_id", nargs="?", help="a sweep's parent run; the newest one when none is named")
    parser.add_argument("--uri", default=os.environ.get("MLFLOW_TRACKING_URI"), help="MLflow's tracking URI")
    parser.add_argument("--port", type=int, default=5000, help="of the server, 1 to 65535")
    arguments = parser.parse_args()
    if not 0 < arguments.port < 65536:
        parser.error(f"--port is {arguments.port}, it must be 1 to 65535")
    from experiments.record.reading import Archive

    handled = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]

    def leave(signum: int, frame: object) -> None:
        # A second one must not leave the server running.
        for number in handled:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in handled:
        signal.signal(number, leave)
    try:
        with tempfile.TemporaryDirectory() as folder:
            archive = Archive(arguments.uri, Path(folder))
            page, sweep = archive.page(arguments.sweep_id)
        if archive.uri.startswith("http"):
            print(f"{sweep}: {archive.uri}/{page}")
            return
        server = serve(archive.uri, arguments.port)
        try:
            print(f"{sweep}: http://127.0.0.1:{arguments.port}/{page}\nCtrl-C ends the server", flush=True)
            server.wait()
        finally:
            stop(server)
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
