"""A reverse proxy in front of a tracking server, which can be slow, err, and let in those alone who know the password."""

import base64
import contextlib
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# A header of one connection, not of the message.
HOP = ("host", "connection", "transfer-encoding", "accept-encoding")


class Proxy:
    """Started by `with`.

    uri: of the server behind. prefix: of all paths. seconds: before each answer. user, password: let nobody else in.
    status: number of a request, from 0 -> the status it is answered with instead of being handed on, None hands it on.
    requests: the method and path of every request.
    """

    def __init__(self, uri: str, prefix: str = "", seconds: float = 0, user: str = "", password: str = "") -> None:
        self.behind, self.prefix, self.seconds = uri, prefix, seconds
        self.credentials = base64.b64encode(f"{user}:{password}".encode()).decode() if user else None
        self.status: Callable[[int], int | None] = lambda number: None
        self.requests: list[str] = []
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                status, kind, content = proxy.answer(self, body)
                # A client may have stopped waiting.
                with contextlib.suppress(ConnectionError):
                    self.send_response(status)
                    self.send_header("Content-Type", kind)
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.uri = f"http://127.0.0.1:{self.server.server_port}{prefix}"

    def answer(self, request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, str, bytes]:
        number = len(self.requests)
        self.requests.append(f"{request.command} {request.path.partition('?')[0]}")
        time.sleep(self.seconds)
        if self.credentials and request.headers.get("Authorization") != f"Basic {self.credentials}":
            return 401, "text/html", b"<html>who are you?</html>"
        if status := self.status(number):
            return status, "text/html", b"<html>not now</html>"
        headers = {key: value for key, value in request.headers.items() if key.lower() not in (*HOP, "authorization")}
        asked = urllib.request.Request(
            self.behind + request.path.removeprefix(self.prefix), body or None, headers, method=request.command
        )
        try:
            with urllib.request.urlopen(asked, timeout=60) as answer:
                return answer.status, answer.headers.get("Content-Type", "text/plain"), answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers.get("Content-Type", "text/plain"), error.read()
        except OSError:
            return 502, "text/html", b"<html>bad gateway</html>"

    def __enter__(self) -> "Proxy":
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()
