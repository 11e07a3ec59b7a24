"""python -m experiments.dashboard [RUN_ID]: start MLflow's server on loopback and print the link to a sweep, a run or a map."""

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
from experiments.record.relocation import relocate_artifacts
from experiments.run.config import UserError
from experiments.run.interrupts import SIGNALS

START_SECONDS = 90


def _is_free(port: int) -> bool:
    with socket.socket() as probe, contextlib.suppress(OSError):
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))
        return True
    return False


def start(port: int, *options: str, **streams: Any) -> subprocess.Popen[bytes]:
    """Start MLflow's server on loopback, with one worker and without the dozen processes of its job queue, which is not used."""
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1", "--port", str(port), *options]
    environ = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    return subprocess.Popen(command, env=environ, start_new_session=True, **streams)


def wait_until_ready(process: subprocess.Popen[bytes], port: int) -> bool:
    """Wait until the server answers; return False where it ends before that or takes longer than START_SECONDS."""
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
            return True
        time.sleep(0.2)
    return False


def serve(uri: str, port: int) -> subprocess.Popen[bytes]:
    """Start MLflow's server on a store, and return it when it answers. Raises UserError where it does not start."""
    if file := sqlite_file(uri):
        from experiments.record.client import retry_while_locked

        for line in retry_while_locked(uri, partial(relocate_artifacts, file)):
            print(line)
    if not _is_free(port):
        raise UserError(f"--port is {port}, which another program uses: stop it, or take another one")
    log = tempfile.TemporaryFile()  # noqa: SIM115, the server writes into it for as long as it runs
    # The URI, which may contain a password, is passed in the environment, since every user can list the arguments of processes.
    os.environ["MLFLOW_BACKEND_STORE_URI"] = with_password(uri)
    process = start(port, stdout=log, stderr=log)
    if wait_until_ready(process, port):
        return process
    stop(process)
    log.seek(0)
    lines = log.read().decode(errors="replace").strip().splitlines() or ["no word"]
    raise UserError(f"MLflow's server does not start on {uri}: {lines[-1]}")


def stop(process: subprocess.Popen[bytes]) -> None:
    """End the server and its workers."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    process.wait()


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m experiments.dashboard", description=__doc__)
    parser.add_argument("run_id", nargs="?", help="of a sweep's parent run, a run or a map; the newest one when none is named")
    parser.add_argument("--uri", default=os.environ.get("MLFLOW_TRACKING_URI"), help="MLflow's tracking URI")
    parser.add_argument("--port", type=int, default=5000, help="of the server, 1 to 65535")
    arguments = parser.parse_args()
    if not 0 < arguments.port < 65536:
        parser.error(f"--port is {arguments.port}, it must be 1 to 65535")
    from experiments.record.reading import Archive

    signals = [signum for signum in SIGNALS if signal.getsignal(signum) is not signal.SIG_IGN]

    def interrupt(signum: int, frame: object) -> None:
        # A second signal would break off the end of the server.
        for signum in signals:
            signal.signal(signum, signal.SIG_IGN)
        raise KeyboardInterrupt

    for signum in signals:
        signal.signal(signum, interrupt)
    try:
        with tempfile.TemporaryDirectory() as folder:
            archive = Archive(arguments.uri, Path(folder))
            page, name = archive.page(arguments.run_id)
        if archive.uri.startswith("http"):
            print(f"{name}: {archive.uri}/{page}")
            return
        server = serve(archive.uri, arguments.port)
        try:
            print(f"{name}: http://127.0.0.1:{arguments.port}/{page}\nCtrl-C ends the server", flush=True)
            server.wait()
        finally:
            stop(server)
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
