"""A proxy in front of a real MLflow server that can fail in every way a network can."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import requests

HOP_BY_HOP = {"connection", "content-length", "transfer-encoding", "content-encoding", "host", "keep-alive"}


class Proxy:
    """Forwards while `mode` is `pass`; else answers `500`, `nonsense` (HTML with a 200), `empty` (`{}`), `slow` (ten
    seconds late), `cut` (hangs up), or `slow files` (artifacts alone, `delay` seconds late)."""

    def __init__(self, target: str) -> None:
        self.target, self.mode, self.delay = target, "pass", 10.0
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
        if self.mode in canned:
            status, text = canned[self.mode]
            return status, {"content-type": "text/html"}, text
        sent = {k: v for k, v in headers.items() if k.lower() not in HOP_BY_HOP}
        found = requests.request(method, self.target + path, headers=sent, data=body, timeout=60)
        return found.status_code, {k: v for k, v in found.headers.items() if k.lower() not in HOP_BY_HOP}, found.content

    def _handler(proxy) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
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
