"""A proxy in front of a real MLflow server that can fail in every way a network can."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import requests

HOP_BY_HOP = {"connection", "content-length", "transfer-encoding", "content-encoding", "host", "keep-alive"}


class Proxy:
    """Forwards while `mode` is `pass`; else answers `500`, `nonsense` (HTML with a 200), `empty` (`{}`), `slow` (ten
    seconds late), `cut` (hangs up), `endless` (never stops sending), `drip` (a byte now and then, and no end), `slow files`
    (artifacts alone, `delay` seconds late), or `no files` (500 for artifacts alone)."""

    def __init__(self, target: str) -> None:
        self.target, self.mode, self.delay = target, "pass", 10.0
        #: of answers without an end: their status, and the bytes that were sent
        self.status, self.sent = 200, 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients that hang up are meant
        self.uri = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        if self.mode == "slow" or (self.mode == "slow files" and "artifacts" in path):
            time.sleep(self.delay)
        if self.mode == "cut":
            raise ConnectionAbortedError
        canned = {
            "500": (500, b"Internal Server Error"),
            "nonsense": (200, b"<html>login</html>"),
            "empty": (200, b"{}"),
        }
        mode = "500" if self.mode == "no files" and "artifacts" in path else self.mode
        if mode in canned:
            status, text = canned[mode]
            return status, {"content-type": "text/html"}, text
        sent = {k: v for k, v in headers.items() if k.lower() not in HOP_BY_HOP}
        found = requests.request(method, self.target + path, headers=sent, data=body, timeout=60)
        return found.status_code, {k: v for k, v in found.headers.items() if k.lower() not in HOP_BY_HOP}, found.content

    def go_on(self, send: Callable[[bytes], Any]) -> None:
        """Sends an answer that has no end, until the client hangs up or the mode changes."""
        piece, pause = (b"x" * 2**16, 0.0) if self.mode == "endless" else (b" ", 0.5)
        mode = self.mode
        while self.mode == mode:
            self.sent += len(piece)
            send(piece)
            time.sleep(pause)

    def _handler(proxy) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                if proxy.mode in ("endless", "drip"):
                    self.close_connection = True
                    with contextlib.suppress(ConnectionError):
                        self.wfile.write(b"HTTP/1.1 %d OK\r\ncontent-type: application/json\r\n\r\n" % proxy.status)
                        proxy.go_on(self.wfile.write)
                    return
                try:
                    status, headers, answer = proxy.answer(self.command, self.path, dict(self.headers), body)
                except ConnectionAbortedError:
                    self.close_connection = True
                    return
                with contextlib.suppress(ConnectionError):  # the client had no patience
                    self.send_response(status)
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.send_header("content-length", str(len(answer)))
                    self.end_headers()
                    self.wfile.write(answer)

            do_POST = do_PATCH = do_DELETE = do_GET

            def log_message(self, *args: Any) -> None:
                """Silence."""

        return Handler


@contextlib.contextmanager
def proxied(target: str) -> Iterator[Proxy]:
    """A proxy for the length of a block."""
    proxy = Proxy(target)
    try:
        yield proxy
    finally:
        proxy.close()
