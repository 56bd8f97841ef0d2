"""An HTTP server whose every answer a test decides, good or bad, and which remembers what it was sent."""

from __future__ import annotations

import hashlib
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from cog_celery.files.urls import AddressPolicy

KEPT_BYTES = 1 << 20
LOCAL = AddressPolicy(allow=["127.0.0.0/8", "::1"])
"""For clients of these servers, which are all on this machine."""


@dataclass
class Seen:
    """A request as it came; of a large body only the hash and the length are kept."""

    method: str
    target: str
    headers: Message
    body: bytes
    length: int
    sha256: str
    peer: Any


class Handler(BaseHTTPRequestHandler):
    """One connection; a reply is a function of it."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    web: Web

    def log_message(self, format: str, *args: Any) -> None:
        """Silent: tests look at what was seen."""

    def answer(self, status: int, body: bytes = b"", /, **headers: str) -> None:
        """A complete answer; `Retry_After` in `headers` stands for Retry-After."""
        self.send_response_only(status)
        for name, value in {"Content_Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if status != 304:  # which has none, whatever it says of its length
            self.wfile.write(body)

    def raw(self, text: bytes) -> None:
        """Any bytes, then the end of the connection."""
        self.wfile.write(text)
        self.close_connection = True

    def wait_for_the_end(self) -> None:
        """Say nothing until the client closes the connection."""
        while not self.web.stopping.is_set():
            if select.select([self.connection], [], [], 0.02)[0] and not self._more():
                self.web.dropped.set()
                break
        self.close_connection = True

    def _more(self) -> bool:
        try:
            return bool(self.connection.recv(65536))
        except OSError:
            return False

    def _handle(self) -> None:
        replies = self.web.replies.get(self.path.partition("?")[0]) or self.web.replies.get("*", [_not_found])
        with self.web.lock:
            reply = replies.pop(0) if len(replies) > 1 else replies[0]
        if getattr(reply, "early", False):
            self.web.seen.append(self._seen(b"", 0, ""))
        else:
            self.web.seen.append(self._read())
        reply(self)

    do_GET = do_PUT = do_POST = _handle

    def _read(self) -> Seen:
        left = int(self.headers.get("Content-Length") or 0)
        digest, body, length = hashlib.sha256(), b"", 0
        while left and (block := self.rfile.read(min(left, 1 << 18))):
            digest.update(block)
            length += len(block)
            left -= len(block)
            if len(body) < KEPT_BYTES:
                body += block
        return self._seen(body, length, digest.hexdigest())

    def _seen(self, body: bytes, length: int, digest: str) -> Seen:
        return Seen(self.command, self.path, self.headers, body, length, digest, self.client_address)


Reply = Callable[[Handler], None]


def _not_found(handler: Handler) -> None:
    handler.answer(404)


def reply(status: int, body: bytes = b"", /, **headers: str) -> Reply:
    """A complete answer."""
    return lambda handler: handler.answer(status, body, **headers)


def raw(text: bytes) -> Reply:
    """Any bytes, then the end of the connection."""
    return lambda handler: handler.raw(text)


def hang(handler: Handler) -> None:
    """No answer at all."""
    handler.wait_for_the_end()


def hang_within(body: bytes, length: int) -> Reply:
    """The beginning of an answer, and then nothing."""

    def act(handler: Handler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (length, body))
        handler.wait_for_the_end()

    return act


def drip(handler: Handler) -> None:
    """A byte of the headers now and then, for ever."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    try:
        while not handler.web.stopping.wait(0.05):
            handler.wfile.write(b"x")
    except OSError:
        handler.web.dropped.set()
    handler.close_connection = True


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away in the middle are what the tests are about."""


class Web:
    """A server on a free port of `host`, an address. `on` scripts its answers; anything else is a 404."""

    def __init__(self, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> None:
        self.replies: dict[str, list[Reply]] = {}
        self.seen: list[Seen] = []
        self.lock = threading.Lock()
        self.stopping = threading.Event()
        self.dropped = threading.Event()
        handler = type("BoundHandler", (Handler,), {"web": self})
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._server = type("BoundServer", (_Server,), {"address_family": family})((host, 0), handler)
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self.scheme = "https" if tls else "http"
        self.port: int = self._server.server_address[1]
        self.netloc = f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"
        self.url = f"{self.scheme}://{self.netloc}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def on(self, path: str, *replies: Reply) -> str:
        """Answer requests for `path` (`*`: any other) with each reply in turn, then always the last; its URL."""
        self.replies[path] = list(replies)
        return self.url + path

    def targets(self) -> list[str]:
        """What was asked for, in order."""
        return [f"{seen.method} {seen.target}" for seen in self.seen]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()


class SilentPort:
    """A port that takes connections into its backlog and never serves one: a TLS handshake there hangs."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=0)
        self._fillers: list[socket.socket] = []
        self.netloc = f"127.0.0.1:{self._socket.getsockname()[1]}"

    def fill(self) -> None:
        """Make the backlog full, so that one more connection is neither taken nor refused."""
        for _ in range(8):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(self._socket.getsockname())
            self._fillers.append(filler)
            if not select.select([], [filler], [], 0.2)[1]:
                return

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for filler in self._fillers:
            filler.close()
        self._socket.close()


def closed_port() -> str:
    """host:port where nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


def elapsed(start: float) -> float:
    """Seconds since a time.monotonic()."""
    return time.monotonic() - start
