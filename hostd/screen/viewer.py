"""A web page that shows a guest's picture as it changes.

The server listens on the loopback interface alone, and the page's address has a random part: whoever hasn't been told
it sees nothing, another user of the machine and a foreign web page among them.
"""

from __future__ import annotations

import hashlib
import html
import secrets
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

BOUNDARY = "frame"
PAGE = """<!doctype html>
<meta charset="utf-8">
<title>{name}</title>
<style>
  body {{ margin: 0; background: #222; color: #ccc; font: 14px sans-serif; text-align: center }}
  img {{ display: block; margin: 1em auto; max-width: 100%; image-rendering: pixelated; background: #000 }}
</style>
<img src="stream" alt="what {name} shows">
{name}
"""


class Viewer(ThreadingHTTPServer):
    """Serves the pictures that `take` gives (any bytes) and `encode` makes a PNG of, while they change.

    When `take` raises, the guest has gone: `failed` says why, and `serve_forever` returns. A context manager: leaving
    it stops serving.
    """

    daemon_threads = True

    def __init__(
        self,
        name: str,
        take: Callable[[], bytes],
        encode: Callable[[bytes], bytes],
        *,
        port: int = 0,
        rate: float = 10.0,
    ) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.name = name
        self.take = take
        self.encode = encode
        self.rate = rate
        """pictures a second, at most"""
        self.token = secrets.token_urlsafe(16)
        self.closing = False
        self.failed: Exception | None = None

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://127.0.0.1:{self.server_port}/{self.token}/"

    def picture(self) -> bytes:
        """Return what the guest shows, as bytes in its memory."""
        try:
            return self.take()
        except Exception as error:
            self.failed, self.closing = error, True
            # Not from the thread of the loop that ends: it would wait for itself. This one is a request's.
            self.shutdown()
            raise

    def server_close(self) -> None:
        self.closing = True
        super().server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever looks may go at any time."""


class _Handler(BaseHTTPRequestHandler):
    server: Viewer
    protocol_version = "HTTP/1.0"

    def do_GET(self) -> None:
        _, token, *rest = self.path.split("/")
        if not secrets.compare_digest(token.encode(), self.server.token.encode()):
            self.send_error(HTTPStatus.NOT_FOUND)
        elif rest == [""]:
            self._answer("text/html; charset=utf-8", PAGE.format(name=html.escape(self.server.name)).encode())
        elif rest == ["picture.png"]:
            self._answer("image/png", self.server.encode(self.server.picture()))
        elif rest == ["stream"]:
            self._stream()
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def _answer(self, kind: str, body: bytes) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def _stream(self) -> None:
        """Send each picture that differs from the one before, as parts of one answer that doesn't end."""
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", f"multipart/x-mixed-replace; boundary={BOUNDARY}")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(f"--{BOUNDARY}\r\n".encode())
        shown = b""
        while not self.server.closing:
            memory = self.server.picture()
            digest = hashlib.blake2b(memory, digest_size=16).digest()
            if digest != shown:
                body = self.server.encode(memory)
                head = f"Content-Type: image/png\r\nContent-Length: {len(body)}\r\n\r\n"
                # A browser shows a part when the next one begins: so its boundary follows at once.
                self.wfile.write(head.encode() + body + f"\r\n--{BOUNDARY}\r\n".encode())
                self.wfile.flush()
                shown = digest
            time.sleep(1 / self.server.rate)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal is the user's."""
